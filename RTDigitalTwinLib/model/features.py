"""What the dose network sees of a patient: a pure function of the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.beams import CoplanarBeams, fitted_fluence, prescribed_fluence
from RTDigitalTwinLib.dosimetry.customary import prescribed_dose
from RTDigitalTwinLib.dosimetry.distance import signed_distance_mm
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.crop import Crop, crop_around
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK, TARGETS
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import OPENKBP_GANTRY_ANGLES_DEG
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Volume

ANATOMY_CHANNELS = ("CT", *ORGANS_AT_RISK, *TARGETS)
DISTANCE_CHANNELS = tuple(f"Distance {name}" for name in TARGETS)
PRESCRIBED_BEAMS, FITTED_BEAMS, MASK_CHANNEL = "Beams prescribed", "Beams fitted", "Dose mask"
CHANNELS = (*ANATOMY_CHANNELS, *DISTANCE_CHANNELS, PRESCRIBED_BEAMS, FITTED_BEAMS, MASK_CHANNEL)

AIR_HU, HIGHEST_HU, HU_SCALE = -1000.0, 3071.0, 1000.0
NEAREST_MM, FARTHEST_MM, DISTANCE_SCALE_MM = -20.0, 80.0, 40.0
PRESCRIPTION_SCALE_GY = 70.0
# Beyond a patient's crop; 0 in all other channels.
OUTSIDE = {"CT": AIR_HU / HU_SCALE, **dict.fromkeys(DISTANCE_CHANNELS, FARTHEST_MM / DISTANCE_SCALE_MM)}


@dataclass(frozen=True, eq=False)
class Features:
    """Network input on a crop around the dose mask.

    Attributes
    ----------
    names : of the channels, out of ``CHANNELS``.
    channels : (names, slices, rows, columns), float32. CT in units of 1000 HU (clipped to -1..3.071, air beyond the
        grid), occupancy of each structure (0 where absent), distances in units of 40 mm, doses in units of 70 Gy.
    crop : where they lie.
    """

    names: tuple[str, ...]
    channels: NDArray[np.float32]
    crop: Crop


def build_features(
    patient: Patient, names: Sequence[str] = CHANNELS, crop: Crop | None = None, device: torch.device | str = "cpu"
) -> Features:
    """Features of a patient at native resolution, in the order of ``names``, by default on the crop of its dose mask.

    ``device`` computes the beams' doses. Raises PatientDataError where the patient has no planning target volume,
    GeometryError where the beams' inputs are wanted on a CT that is not axial.
    """
    if not any(name in patient.structures for name in TARGETS):
        raise PatientDataError(
            f"The patient has none of {', '.join(TARGETS)}.",
            where=patient.pseudonym,
            remedy="At least one is needed to predict a dose.",
        )
    crop = crop or crop_around(patient)
    made: dict[str, NDArray] = {"CT": normalised_ct(patient.ct, crop), MASK_CHANNEL: crop.mask}
    for name in (*ORGANS_AT_RISK, *TARGETS):
        if name in names and name in patient.structures:
            made[name] = crop.cut(patient.structures[name].occupancy, 0.0)
    for channel, name in zip(DISTANCE_CHANNELS, TARGETS, strict=True):
        if channel in names:
            made[channel] = signed_distance(patient.structures.get(name), crop)
    if PRESCRIBED_BEAMS in names or FITTED_BEAMS in names:
        made[PRESCRIBED_BEAMS], made[FITTED_BEAMS] = beam_estimates(patient, crop, device)
    channels = np.zeros((len(names), *crop.shape), np.float32)
    for i, name in enumerate(names):
        if name in made:
            channels[i] = made[name]
    return Features(tuple(names), channels, crop)


def assumptions(patient: Patient) -> tuple[str, ...]:
    """What the features take for granted where the patient does not say it, for the user to read."""
    if patient.plans and not patient.plan.gantry_angles_deg:
        return ("The plan names no beam angles; nine equally spaced coplanar fields are assumed.",)
    return ()


def normalised_ct(ct: Volume, crop: Crop) -> NDArray[np.float32]:
    """CT crop as the network sees it."""
    hu = crop.cut(ct.values, AIR_HU).astype(np.float32)
    return np.clip(hu, AIR_HU, HIGHEST_HU) / np.float32(HU_SCALE)


def signed_distance(structure: Structure | None, crop: Crop) -> NDArray[np.float32]:
    """Distance to a structure's surface in units of 40 mm, negative inside, clipped; farthest where it is absent."""
    mask = None if structure is None else crop.cut(structure.mask, False)
    if mask is None or not mask.any():
        return np.full(crop.shape, FARTHEST_MM / DISTANCE_SCALE_MM, np.float32)
    distance_mm = signed_distance_mm(mask, crop.grid.spacing_mm, FARTHEST_MM)
    return (np.clip(distance_mm, NEAREST_MM, FARTHEST_MM) / DISTANCE_SCALE_MM).astype(np.float32)


def beam_estimates(
    patient: Patient, crop: Crop, device: torch.device | str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Doses of the plan's coplanar beams on the crop, in units of 70 Gy: prescription as fluence, and fitted to it.

    Nine equally spaced fields where the plan names none; 0 outside the dose mask.
    """
    box = patient.dose_mask.box
    targets = [name for name in TARGETS if name in patient.structures]
    prescribed_gy = torch.from_numpy(prescribed_dose(patient, targets, box)).to(device)
    angles_deg = patient.plan.gantry_angles_deg or OPENKBP_GANTRY_ANGLES_DEG
    beams = CoplanarBeams(patient.ct.values, patient.ct.grid, angles_deg, window=box, device=device)
    organs = torch.zeros(beams.shape, device=device)
    for name in ORGANS_AT_RISK:
        if name in patient.structures:
            organs = torch.maximum(organs, torch.from_numpy(patient.structures[name].occupancy[box]).to(device))
    if not bool((beams.transmission.sum(0)[prescribed_gy > 0] > 0).any()):
        raise PatientDataError("There is no tissue in the targets.", where=patient.pseudonym, remedy="Check the CT.")
    mask = torch.from_numpy(patient.dose_mask.mask[box]).to(device)
    first = [part.start - begin for part, begin in zip(box, crop.start, strict=True)]
    inside = tuple(slice(a, a + n) for a, n in zip(first, beams.shape, strict=True))
    estimates = []
    start = prescribed_fluence(beams, prescribed_gy)
    for fluence in (start, fitted_fluence(beams, start, prescribed_gy, organs, mask)):
        estimate = np.zeros(crop.shape, np.float32)
        estimate[inside] = (beams.dose(fluence) * mask / PRESCRIPTION_SCALE_GY).cpu().numpy()
        estimates.append(estimate)
    return estimates[0], estimates[1]
