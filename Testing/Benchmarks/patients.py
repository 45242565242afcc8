"""The patients to measure on."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from RTDigitalTwinLib.dosimetry.planning import planned
from RTDigitalTwinLib.model.crop import Crop, cut
from RTDigitalTwinLib.model.features import build_features
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.patient.patient import Patient

FULL_SIDE = (128, 128, 128)
DATA_VARIABLE, PATIENT_VARIABLE = "RTDT_OPENKBP", "RTDT_PATIENT"
_SHARED = Path(__file__).resolve().parents[3] / "shared" / "openkbp"
_MEDIAN = "pt_201"  # near the median of the validation patients' dose masks


def shared_folder(name: str) -> Path | None:
    """An OpenKBP patient's folder in $RTDT_OPENKBP (public CSV layout, its splits too); None where it is not there."""
    root = Path(os.environ.get(DATA_VARIABLE) or _SHARED)
    places = (root / name, root / "validation-pats" / name)
    return next((place for place in places if (place / "ct.csv").is_file()), None)


def chosen_patient(*, with_dose: bool = False) -> Patient:
    """The patient that $RTDT_PATIENT names, else one of median size, else the built-in sample."""
    folder = shared_folder(os.environ.get(PATIENT_VARIABLE) or _MEDIAN)
    patient = Patient.sample() if folder is None else load_patient(folder)
    if with_dose and patient.plan.dose is None:
        patient = planned(patient)
    return patient


def full_grid(patient: Patient, names: tuple[str, ...]) -> torch.Tensor:
    """Features on the whole grid, as the plain way takes them."""
    crop = Crop((0, 0, 0), cut(patient.dose_mask.mask, (0, 0, 0), FULL_SIDE, False), patient.ct.grid)
    return torch.from_numpy(build_features(patient, names, crop).channels)[None]
