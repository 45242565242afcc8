"""Orientation and laterality judged from where the structures lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.structure import Structure

_SMALLEST_DISTANCE_MM = 5.0
_MIDLINE = ("SpinalCord", "Brainstem", "Larynx", "Bone_Mandible", "Esophagus")


@dataclass(frozen=True)
class _Fact:
    axis: int  # of LPS: 0 towards left, 1 towards posterior, 2 towards superior
    lower: str
    higher: str
    reads: str


_FACTS = (
    _Fact(0, "Parotid_R", "Parotid_L", "Parotid_R must lie to the right of Parotid_L"),
    _Fact(1, "Bone_Mandible", "SpinalCord", "the mandible must lie in front of the spinal cord"),
    _Fact(1, "Larynx", "SpinalCord", "the larynx must lie in front of the spinal cord"),
    _Fact(1, "Parotid_R", "SpinalCord", "the parotids must lie in front of the spinal cord"),
    _Fact(1, "Parotid_L", "SpinalCord", "the parotids must lie in front of the spinal cord"),
    _Fact(2, "SpinalCord", "Parotid_R", "the parotids must lie above the middle of the spinal cord"),
    _Fact(2, "SpinalCord", "Parotid_L", "the parotids must lie above the middle of the spinal cord"),
    _Fact(2, "Esophagus", "Brainstem", "the brainstem must lie above the oesophagus"),
    _Fact(2, "SpinalCord", "Brainstem", "the brainstem must lie above the spinal cord"),
    _Fact(2, "Larynx", "Bone_Mandible", "the mandible must lie above the larynx"),
)


def check_orientation(structures: Mapping[str, Structure]) -> list[str]:
    """Check head-and-neck anatomy against patient coordinates.

    Returns warnings for the axes that no pair of structures could confirm. Raises PatientDataError where a pair
    contradicts the coordinates by more than 5 mm (a swapped side, a flipped or permuted axis).
    """
    confirmed = set()
    for fact in _FACTS:
        if fact.lower not in structures or fact.higher not in structures:
            continue
        low, high = structures[fact.lower], structures[fact.higher]
        distance = high.centroid_mm[fact.axis] - low.centroid_mm[fact.axis]
        if distance < -_SMALLEST_DISTANCE_MM:
            raise PatientDataError(
                f"The anatomy contradicts the orientation: {fact.reads}, but is {-distance:.0f} mm the other way.",
                where=f"{low.source_name}, {high.source_name}",
                remedy="Check for swapped names or flipped axes.",
            )
        if distance > _SMALLEST_DISTANCE_MM:
            confirmed.add(fact.axis)
    names = ("left-right", "front-back", "head-foot")
    open_axes = [name for axis, name in enumerate(names) if axis not in confirmed]
    return [f"Orientation could not be confirmed from the anatomy: {', '.join(open_axes)}."] if open_axes else []


def check_sides(structures: Mapping[str, Structure]) -> None:
    """Check that organs named left or right lie on that side of those in the middle.

    Raises PatientDataError where one lies more than 5 mm on the other side: its name or the images are mirrored.
    """
    middle = [structures[name].centroid_mm[0] for name in _MIDLINE if name in structures]
    if not middle:
        return
    middle_mm = sum(middle) / len(middle)
    for name, structure in structures.items():
        towards_left = {"_L": 1, "_R": -1}.get(name[-2:])
        if towards_left is None:
            continue
        distance = (structure.centroid_mm[0] - middle_mm) * towards_left
        if distance < -_SMALLEST_DISTANCE_MM:
            raise PatientDataError(
                f"It counts as {name}, but lies {-distance:.0f} mm on the other side of the middle.",
                where=structure.source_name,
                remedy="Check its name, or whether the images are mirrored.",
            )
