"""Training cases: patients packed to what the network sees and has to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from RTDigitalTwinLib.errors import TrainingError
from RTDigitalTwinLib.model.augmentation import Example
from RTDigitalTwinLib.model.familiarity import describe
from RTDigitalTwinLib.model.features import (
    CHANNELS,
    DISTANCE_CHANNELS,
    FITTED_BEAMS,
    HU_SCALE,
    MASK_CHANNEL,
    PRESCRIBED_BEAMS,
    build_features,
)
from RTDigitalTwinLib.patient.loading import load_patients, patient_folders
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK, TARGETS
from RTDigitalTwinLib.patient.packed import SUFFIX, is_packed, read_packed, write_packed
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent

TRAINING_SPLIT, VALIDATION_SPLIT = "train-pats", "validation-pats"
HELD_OUT_EVERY = 10
STRUCTURES = (*ORGANS_AT_RISK, *TARGETS)
DERIVED_CHANNELS = (*DISTANCE_CHANNELS, PRESCRIBED_BEAMS, FITTED_BEAMS)


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """One patient's crop, packed 17 bytes a voxel: doses to 0.03 Gy, structures as masks.

    Attributes
    ----------
    ct : HU, clipped, int16.
    structures : bit k set where structure STRUCTURES[k] is, int16.
    derived : DERIVED_CHANNELS, float16.
    dose_gy : float16.
    mask : voxels that can receive dose.
    descriptors : what ``familiarity`` compares patients by.
    """

    pseudonym: str
    ct: Tensor
    structures: Tensor
    derived: Tensor
    dose_gy: Tensor
    mask: Tensor
    descriptors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, patient: Patient, device: torch.device | str = "cpu") -> TrainingCase:
        """Kept on ``device``. Raises TrainingError where the reference dose is not known everywhere in the mask."""
        if not patient.plans or patient.plan.dose is None:
            raise TrainingError("The patient has no reference dose (dose.csv).", where=patient.pseudonym)
        if not np.isfinite(patient.plan.dose.values[patient.dose_mask.mask]).all():
            raise TrainingError("The reference dose is not known everywhere in the dose mask.", where=patient.pseudonym)
        features = build_features(patient, device=device)
        crop, channels = features.crop, dict(zip(features.names, features.channels, strict=True))
        bits = np.zeros(crop.shape, np.int16)
        for k, name in enumerate(STRUCTURES):
            bits |= (channels[name] >= 0.5).astype(np.int16) << k
        dose = np.zeros(crop.shape, np.float16)
        dose[crop.mask] = patient.plan.dose.values.reshape(-1)[crop.mask_indices]
        ct = np.round(channels["CT"] * HU_SCALE).astype(np.int16)
        derived = np.stack([channels[name] for name in DERIVED_CHANNELS]).astype(np.float16)
        ct, bits, derived, dose, mask = (torch.from_numpy(a).to(device) for a in (ct, bits, derived, dose, crop.mask))
        return cls(patient.pseudonym, ct, bits, derived, dose, mask, describe(patient))

    def structure(self, name: str) -> Tensor:
        """Mask of a structure on the crop."""
        return (self.structures >> STRUCTURES.index(name) & 1).bool()

    def example(self, names: Sequence[str] = CHANNELS) -> Example:
        """What a training step sees of the patient, with these inputs."""
        values = torch.empty((*self.ct.shape, len(names) + 2), device=self.ct.device)
        for i, name in enumerate(names):
            if name == "CT":
                values[..., i] = self.ct / HU_SCALE
            elif name == MASK_CHANNEL:
                values[..., i] = self.mask
            elif name in STRUCTURES:
                values[..., i] = self.structure(name)
            else:
                values[..., i] = self.derived[DERIVED_CHANNELS.index(name)]
        values[..., -2] = self.dose_gy
        values[..., -1] = self.mask
        return Example(tuple(names), values)


@dataclass(frozen=True, eq=False)
class Cohort:
    """Patients to train on, packed, and to validate with."""

    cases: list[TrainingCase]
    validation: list[Patient]


def load_cohort(data: Path, device: torch.device | str = "cpu", progress: Progress = silent) -> Cohort:
    """From a folder, patient by patient, or from a packed cohort.

    Raises TrainingError or PatientDataError where there are fewer than two patients or something cannot be read.
    """
    if is_packed(data):
        splits = read_packed(data, progress)
        packed, validation = splits.get(TRAINING_SPLIT, []), splits.get(VALIDATION_SPLIT, [])
        _require_both(packed, validation, data)
        count, training = len(packed), iter(packed)
    else:
        folders, others = split_folders(data)
        validation = load_patients(others)
        count, training = len(folders), (load_patients([folder])[0] for folder in folders)
    cases: list[TrainingCase] = []
    for patient in training:
        progress(len(cases) / count, f"preparing patient {len(cases) + 1} of {count}")
        cases.append(TrainingCase.of(patient, device))
    return Cohort(cases, validation)


def pack_cohort(data: Path, path: Path, progress: Progress = silent) -> int:
    """Pack a folder's patients into one file; returns its size in bytes. Raises as ``load_cohort`` does."""
    training, validation = split_folders(data)
    both = {TRAINING_SPLIT: training, VALIDATION_SPLIT: validation}
    return write_packed(
        path, {split: (load_patients([f])[0] for f in folders) for split, folders in both.items()}, progress
    )


def split_folders(data: Path) -> tuple[list[Path], list[Path]]:
    """(training, validation) folders: by train-pats and validation-pats where both are there, else every tenth.

    Raises TrainingError where there are fewer than two patients.
    """
    if data.is_file():
        raise TrainingError(f"This file is no packed cohort: its name must end in {SUFFIX}.", where=data.name)
    if not data.is_dir():
        raise TrainingError("There is no such folder.", where=str(data))
    if (data / TRAINING_SPLIT).is_dir() and (data / VALIDATION_SPLIT).is_dir():
        training, validation = patient_folders(data / TRAINING_SPLIT), patient_folders(data / VALIDATION_SPLIT)
    else:
        folders = patient_folders(data)
        validation = folders[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or folders[-1:]
        training = [f for f in folders if f not in validation]
    _require_both(training, validation, data)
    return training, validation


def _require_both(training: Sequence[object], validation: Sequence[object], data: Path) -> None:
    if not training or not validation:
        raise TrainingError(
            f"Training needs at least two patients; found {len(training)} to train and {len(validation)} to validate.",
            where=data.name,
        )
