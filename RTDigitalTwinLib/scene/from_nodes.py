"""MRML nodes as the library's types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from vtkmodules.vtkCommonCore import reference

from RTDigitalTwinLib.errors import GeometryError, SceneError
from RTDigitalTwinLib.patient.anatomy_check import check_orientation
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.naming import DOSE_MASK
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.scene.geometry import placement_of, voxels_of
from RTDigitalTwinLib.scene.occupancy import segment_occupancy
from RTDigitalTwinLib.scene.structure_nodes import KIND_TAG

_TARGET_PREFIXES = ("PTV", "CTV", "GTV", "ITV")


def volume_from_node(node: Any, quantity: Quantity) -> Volume:
    """A volume node's values on their grid in the world, parent transforms applied.

    Rotations and shifts move the grid; values are never interpolated. Raises SceneError where the node has no voxels,
    more than one value a voxel, sheared axes, or lies under a transform that is not linear.
    """
    placement = placement_of(node)
    components = node.GetImageData().GetNumberOfScalarComponents()
    if components != 1:
        raise SceneError(f"The volume has {components} values a voxel; one is expected.", where=node.GetName(),
                         remedy="Choose a scalar volume.")  # fmt: skip
    values = np.array(placement.arranged(voxels_of(node)))
    return Volume(values, placement.grid, quantity)


def structures_from_segmentation(node: Any, reference: Grid) -> dict[str, Structure]:
    """Every segment by name, as occupancy on a grid, whatever its representation, geometry or linear transform.

    Raises SceneError where there are no segments, two of one name, or one that is empty or outside the grid.
    """
    segmentation = node.GetSegmentation()
    ids = list(segmentation.GetSegmentIDs())
    if not ids:
        raise SceneError("The segmentation has no segments.", where=node.GetName(),
                         remedy="Add structures or choose another segmentation.")  # fmt: skip
    structures: dict[str, Structure] = {}
    for segment_id in ids:
        structure = structure_from_segment(node, segment_id, reference)
        if structure.name in structures:
            raise SceneError("Two segments have this name.", where=structure.name, remedy="Rename or delete one.")
        structures[structure.name] = structure
    return structures


def structure_from_segment(node: Any, segment_id: str, reference: Grid) -> Structure:
    """One segment as occupancy on a grid. Raises SceneError where it is not there, empty, or outside the grid."""
    segment = node.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise SceneError("The segmentation has no such segment.", where=segment_id)
    name = segment.GetName() or segment_id
    occupancy = segment_occupancy(node, segment_id, reference)
    try:
        return Structure.from_array(name, occupancy, reference, _kind(segment, name))
    except GeometryError as error:
        raise SceneError("No part of the segment lies on the CT.", where=name,
                         remedy="Align it with the CT, contour it, or delete it.") from error  # fmt: skip


def patient_from_nodes(
    ct_node: Any,
    segmentation_node: Any,
    target_dose_gy: Mapping[str, float],
    fractions: int,
    *,
    dose_node: Any | None = None,
    dose_mask: str = DOSE_MASK,
    pseudonym: str = "scene-patient",
) -> Patient:
    """A patient as it is in the scene.

    Parameters
    ----------
    ct_node : volume node in HU.
    segmentation_node : with the structures under TG-263 names and the dose mask.
    target_dose_gy : prescribed dose by the target's name.
    fractions : of the whole course.
    dose_node : volume node of the reference dose in Gy, resampled onto the CT where its grid differs (NaN outside it).
    dose_mask : name of the segment that can receive dose; the body's outline may serve.
    pseudonym : never a name or number of the hospital.

    Raises
    ------
    SceneError : something is missing, or frames of reference contradict each other.
    PatientDataError : the anatomy contradicts the orientation.
    """
    ct = volume_from_node(ct_node, Quantity.HU)
    structures = structures_from_segmentation(segmentation_node, ct.grid)
    if dose_mask not in structures:
        raise SceneError(f"The segmentation has no segment {dose_mask!r}, where dose may be.",
                         where=segmentation_node.GetName(),
                         remedy="Name the segment to use, such as the body's outline.")  # fmt: skip
    mask = replace(structures.pop(dose_mask), name=DOSE_MASK, kind=StructureKind.REGION)
    missing = [name for name in target_dose_gy if name not in structures]
    if missing or not target_dose_gy:
        raise SceneError(f"The prescription needs targets that are structures; missing: {', '.join(missing) or 'any'}.",
                         where=segmentation_node.GetName(), remedy="Name the targets as their segments.")  # fmt: skip
    for name in target_dose_gy:
        structures[name] = replace(structures[name], kind=StructureKind.TARGET)
    dose = None if dose_node is None else dose_on(dose_node, ct.grid)
    plan = Plan(Prescription(tuple(target_dose_gy.items()), fractions), dose=dose, label="plan in the scene")
    warnings = tuple(check_orientation(structures))
    return Patient(pseudonym, (Image("CT", ct),), structures, mask, (plan,), warnings)


def dose_on(node: Any, grid: Grid) -> Volume:
    """A dose node on a CT's grid; NaN where it does not reach. Raises SceneError where its frame is another."""
    dose = volume_from_node(node, Quantity.DOSE_GY)
    frame = dose.grid.frame_of_reference
    if frame and grid.frame_of_reference and frame != grid.frame_of_reference and not node.GetParentTransformNode():
        raise SceneError("The dose has another frame of reference than the CT.", where=node.GetName(),
                         remedy="Register it to the CT and put it under that transform.")  # fmt: skip
    # From here both are in the scene's one world.
    in_frame = replace(dose.grid, frame_of_reference=grid.frame_of_reference)
    return Volume(dose.values, in_frame, Quantity.DOSE_GY).resampled(grid)


def _kind(segment: Any, name: str) -> StructureKind:
    tag = reference("")
    segment.GetTag(KIND_TAG, tag)
    known = {kind.value: kind for kind in StructureKind}
    if str(tag) in known:
        return known[str(tag)]
    return StructureKind.TARGET if name.upper().startswith(_TARGET_PREFIXES) else StructureKind.ORGAN
