"""A clinical patient as the dose network was trained to see one, and the way back.

The network knows OpenKBP's patients: axes along LPS, pixels of about 4 mm and slices of 2 to 3.3 mm, disjoint targets
of 70, 63 and 56 Gy in 35 fractions. A patient like that passes unchanged. Of others the images are resampled, nested
targets are cut to what no higher target covers, and prescriptions are scaled where a stated rule allows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError, PatientDataError
from RTDigitalTwinLib.patient.averaging import Averaging, aligned_grid, is_aligned
from RTDigitalTwinLib.patient.grid import Grid, bounding_box
from RTDigitalTwinLib.patient.naming import TARGET_DOSE_GY
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import OPENKBP_FRACTIONS, Prescription
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.structure_matching import SAME_DOSE_GY
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.words import counted

PIXEL_MM, SLICE_MM = 3.90625, 2.5  # OpenKBP's most common
# Grids within these pass as they are.
PIXEL_RANGE_MM, SLICE_RANGE_MM = (2.5, 6.0), (1.5, 6.0)
AIR_HU = -1000.0

HIGHEST_LEVEL_GY = 70.0
SCALABLE_GY = (50.0, 77.0)
DOSE_PER_FRACTION_GY = (1.8, 2.4)
FARTHEST_LEVEL_GY = 4.0
_SMALLEST_PART_RATIO, _WORTH_TELLING_RATIO = 0.02, 0.005
_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class NetworkPatient:
    """A patient for the network.

    Attributes
    ----------
    seen : what the network gets: targets under the names of the levels it knows.
    shown : the same under the patient's own names and prescription, with what was done among its warnings;
        predictions belong to it.
    dose_factor : the network's dose times this is the dose for ``shown``.
    """

    seen: Patient
    shown: Patient
    dose_factor: float = 1.0

    @property
    def is_extrapolated(self) -> bool:
        """Whether the prescription is none the network was trained on."""
        return self.seen is not self.shown


def network_patient(patient: Patient) -> NetworkPatient:
    """See the module. Raises PatientDataError where the prescription is beyond what the rule allows."""
    names = scaled_names(patient.plan.prescription) if patient.plans else None
    # Targets first: on the finer grid fewer voxels lie on a border.
    shown, notes = _with_disjoint_targets(patient)
    shown, more = _resampled(shown)
    notes += more
    if names is None:
        told = _told(shown, notes)
        return NetworkPatient(told, told)
    prescription = patient.plan.prescription
    factor = prescription.highest_gy / HIGHEST_LEVEL_GY
    known = dict(TARGET_DOSE_GY)
    seen_plan = replace(
        shown.plan,
        prescription=Prescription(tuple((name, known[name]) for name in names.values()), OPENKBP_FRACTIONS),
        dose=None,
    )
    renamed = {
        names.get(name, name): replace(structure, name=names.get(name, name))
        for name, structure in shown.structures.items()
    }
    levels = ", ".join(f"{gy:g}" for _, gy in reversed(prescription.target_dose_gy))
    stand_in = ", ".join(f"{known[names[name]]:g}" for name, _ in reversed(prescription.target_dose_gy))
    note = (
        f"Extrapolation: {levels} Gy in {counted(prescription.fractions, 'fraction')} is none of the prescriptions the "
        f"network was trained on (70, 63 and 56 Gy in 35). It was predicted as {stand_in} Gy and the dose multiplied "
        f"by {factor:.4f}; bands are not calibrated for that."
    )
    seen = replace(shown, structures=renamed, plans=(seen_plan,))
    return NetworkPatient(seen, _told(shown, (*notes, note)), factor)


def _told(patient: Patient, notes: tuple[str, ...]) -> Patient:
    return replace(patient, warnings=(*patient.warnings, *notes)) if notes else patient


def scaled_names(prescription: Prescription) -> dict[str, str] | None:
    """The model's target for each target of a prescription; None where they are the model's already.

    The highest level stands for 70 Gy; the others, scaled alike, for the model's levels in their order, so that all lie
    within 4 Gy and the sum of the distances is smallest (69.96, 59.4 and 54 Gy stand for 70, 63 and 56).
    Raises PatientDataError where the highest level is not 50 to 77 Gy at 1.8 to 2.4 Gy a fraction, or no such levels
    are left.
    """
    known = dict(TARGET_DOSE_GY)
    given = dict(prescription.target_dose_gy)
    if prescription.fractions == OPENKBP_FRACTIONS and all(
        name in known and abs(known[name] - gy) <= SAME_DOSE_GY for name, gy in given.items()
    ):
        return None
    highest = prescription.highest_gy
    per_fraction = highest / prescription.fractions
    low, high = SCALABLE_GY
    if not low <= highest <= high or not DOSE_PER_FRACTION_GY[0] <= per_fraction <= DOSE_PER_FRACTION_GY[1]:
        raise PatientDataError(
            f"{highest:g} Gy in {counted(prescription.fractions, 'fraction')} is too far from what the network was "
            "trained on, 70 Gy in 35.",
            remedy=f"Highest levels of {low:g} to {high:g} Gy at {DOSE_PER_FRACTION_GY[0]:g} to "
            f"{DOSE_PER_FRACTION_GY[1]:g} Gy a fraction can be scaled.",
        )
    ordered = sorted(given, key=lambda name: given[name])
    scaled = [given[name] * HIGHEST_LEVEL_GY / highest for name in ordered]
    ways = combinations(sorted(known, key=lambda name: known[name]), len(ordered))
    fitting = [
        (sum(apart), way)
        for way in ways
        if max(apart := [abs(known[name] - gy) for name, gy in zip(way, scaled, strict=True)]) <= FARTHEST_LEVEL_GY
    ]
    if not fitting:
        levels = ", ".join(f"{gy:.1f}" for gy in reversed(scaled))
        raise PatientDataError(
            f"{', '.join(f'{given[name]:g}' for name in reversed(ordered))} Gy, {levels} Gy when {highest:g} Gy count "
            f"as 70, do not each lie within {FARTHEST_LEVEL_GY:g} Gy of one of the network's levels, 70, 63 and 56 Gy.",
            where=", ".join(reversed(ordered)),
            remedy='Leave a target out with --map "NAME=", or join targets in the planning system.',
        )
    return dict(zip(ordered, min(fitting)[1], strict=True))


def _with_disjoint_targets(patient: Patient) -> tuple[Patient, tuple[str, ...]]:
    """Targets without what a higher one covers, as in the training data."""
    levels = dict(patient.plan.prescription.target_dose_gy) if patient.plans else {}
    ordered = sorted((n for n in patient.targets if n in levels), key=lambda name: -levels[name])
    structures, notes = dict(patient.structures), []
    above = np.zeros(patient.ct.grid.shape, np.float32)
    for name in ordered:
        target = structures[name]
        covered = above[target.box]
        # Neighbours share the voxels of their border, so only what is more than a whole voxel is cut.
        rest = np.minimum(target.box_occupancy, np.clip(1 - covered, 0, 1))
        if float((target.box_occupancy + covered).max()) > 1 + _ROUNDING:
            left = (rest >= 0.5).sum() / max((target.box_occupancy >= 0.5).sum(), 1)
            if left < _SMALLEST_PART_RATIO:
                raise PatientDataError(
                    "The target lies inside those of higher dose; nothing of it is left.",
                    where=name,
                    remedy=f'Leave it out with --map "{target.source_name}=".',
                )
            structures[name] = _trimmed(target, rest)
            shared = 1 - float(rest.sum() / target.box_occupancy.sum())  # as Structure.shared_cc counts it
            if shared > _WORTH_TELLING_RATIO:
                notes.append(
                    f"{name}: {shared * target.volume_cc:.1f} cc ({100 * shared:.0f} % of it) lie in targets of higher "
                    "dose and count there, as in the training data: "
                    f"{float((1 - shared) * target.volume_cc):.1f} of {target.volume_cc:.1f} cc are left."
                )
        above[target.box] = np.maximum(covered, target.box_occupancy)
    if all(structures[name] is patient.structures[name] for name in ordered):
        return patient, ()
    return replace(patient, structures=structures), tuple(notes)


def _trimmed(structure: Structure, occupancy: NDArray[np.float32]) -> Structure:
    tight = bounding_box(occupancy > 0)
    if tight is None:
        raise GeometryError(
            "It fills no voxel of the network's grid by half.",
            where=structure.name,
            remedy=f'Draw it larger, or leave it out with --map "{structure.source_name or structure.name}=".',
        )
    moved = [
        slice(part.start + inner.start, part.start + inner.stop)
        for part, inner in zip(structure.box, tight, strict=True)
    ]
    return replace(structure, box=(moved[0], moved[1], moved[2]), box_occupancy=occupancy[tight])


def network_grid(grid: Grid) -> Grid:
    """The grid to predict on: the patient's own where it is like the training data's, else one along LPS."""
    column_mm, row_mm, slice_mm = grid.spacing_mm
    pixels_fit = all(PIXEL_RANGE_MM[0] <= step <= PIXEL_RANGE_MM[1] for step in (column_mm, row_mm))
    if is_aligned(grid) and pixels_fit and SLICE_RANGE_MM[0] <= slice_mm <= SLICE_RANGE_MM[1]:
        return grid
    along_z = float(np.abs(np.reshape(grid.direction, (3, 3))[2]) @ grid.spacing_mm)
    fits = is_aligned(grid, any_order=True) and SLICE_RANGE_MM[0] <= along_z <= SLICE_RANGE_MM[1]
    return aligned_grid(grid, (PIXEL_MM, PIXEL_MM, along_z if fits else SLICE_MM))


def _resampled(patient: Patient) -> tuple[Patient, tuple[str, ...]]:
    old = patient.ct.grid
    grid = network_grid(old)
    if grid is old:
        return patient, ()
    averaging = Averaging(old, grid)
    ct = Volume(averaging.values(patient.ct.values, AIR_HU), grid, Quantity.HU)
    structures: Mapping[str, Structure] = {n: averaging.structure(s) for n, s in patient.structures.items()}
    mask = averaging.structure(patient.dose_mask)
    whole = (mask.box_occupancy >= 0.5).astype(np.float32)
    mask = _trimmed(mask, whole)
    plans = []
    for plan in patient.plans:
        if plan.dose is not None:
            plan = replace(plan, dose=Volume(averaging.values(plan.dose.values, 0.0), grid, Quantity.DOSE_GY))
        plans.append(plan)
    note = (
        f"Predicted on {grid.shape[2]} x {grid.shape[1]} x {grid.shape[0]} voxels of "
        f"{' x '.join(f'{s:.2f}' for s in grid.spacing_mm)} mm, averaged from {old.shape[2]} x {old.shape[1]} x "
        f"{old.shape[0]} of {' x '.join(f'{s:.2f}' for s in old.spacing_mm)} mm."
    )
    return replace(patient, images=(Image("CT", ct),), structures=structures, dose_mask=mask, plans=tuple(plans)), (
        note,
    )
