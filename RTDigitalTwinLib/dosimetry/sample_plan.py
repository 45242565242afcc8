"""A plan dose for a patient without one: the beams' fluence optimised to the prescription."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from RTDigitalTwinLib.dosimetry.beams import CoplanarBeams, fitted_fluence, prescribed_fluence
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume


def with_fitted_dose(patient: Patient) -> Patient:
    """The patient with a plan dose in Gy: the plan's fields, fitted to its prescription and sparing the organs.

    Within the dose mask, 0 elsewhere. No treatment plan: nothing says that a machine could deliver it. Raises
    GeometryError on a CT that is not axial.
    """
    plan, grid, box = patient.plan, patient.ct.grid, patient.dose_mask.box
    beams = CoplanarBeams(patient.ct.values, grid, plan.gantry_angles_deg, window=box)
    prescribed_gy, organs = torch.zeros(beams.shape), torch.zeros(beams.shape)
    for name, gy in plan.prescription.target_dose_gy:
        inside = torch.from_numpy(patient.structures[name].mask[box])
        prescribed_gy = torch.maximum(prescribed_gy, gy * inside)
    for name in ORGANS_AT_RISK:
        if name in patient.structures:
            organs = torch.maximum(organs, torch.from_numpy(patient.structures[name].occupancy[box]))
    mask = torch.from_numpy(patient.dose_mask.mask[box])
    fluence = fitted_fluence(beams, prescribed_fluence(beams, prescribed_gy), prescribed_gy, organs, mask)
    values = np.zeros(grid.shape, np.float32)
    values[box] = (beams.dose(fluence) * mask).numpy()
    dose = Volume(values, grid, Quantity.DOSE_GY)
    return replace(patient, plans=(replace(plan, dose=dose), *patient.plans[1:]))
