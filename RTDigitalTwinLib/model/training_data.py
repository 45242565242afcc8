"""Training cases: patients packed to what the network sees and has to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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
    structures : bit k set where structure STRUCTURES[k] is, uint16.
    derived : DERIVED_CHANNELS, float16.
    dose_gy : float16.
    mask : voxels that can receive dose.
    descriptors : what ``familiarity`` compares patients by.
    """

    pseudonym: str
    ct: NDArray[np.int16]
    structures: NDArray[np.uint16]
    derived: NDArray[np.float16]
    dose_gy: NDArray[np.float16]
    mask: NDArray[np.bool_]
    descriptors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, patient: Patient) -> TrainingCase:
        """Raises TrainingError where the patient has no reference dose."""
        if not patient.plans or patient.plan.dose is None:
            raise TrainingError("The patient has no reference dose (dose.csv).", where=patient.pseudonym)
        features = build_features(patient)
        crop, channels = features.crop, dict(zip(features.names, features.channels, strict=True))
        bits = np.zeros(crop.shape, np.uint16)
        for k, name in enumerate(STRUCTURES):
            bits |= (channels[name] >= 0.5).astype(np.uint16) << k
        dose = np.zeros(crop.shape, np.float16)
        dose[crop.mask] = patient.plan.dose.values.reshape(-1)[crop.mask_indices]
        ct = np.round(channels["CT"] * HU_SCALE).astype(np.int16)
        derived = np.stack([channels[name] for name in DERIVED_CHANNELS]).astype(np.float16)
        return cls(patient.pseudonym, ct, bits, derived, dose, crop.mask, describe(patient))

    def structure(self, name: str) -> NDArray[np.bool_]:
        """Mask of a structure on the crop."""
        return (self.structures >> STRUCTURES.index(name) & 1).astype(bool)

    def example(self, names: Sequence[str] = CHANNELS) -> Example:
        """What a training step sees of the patient, with these inputs."""
        values = torch.empty((*self.ct.shape, len(names) + 2))
        for i, name in enumerate(names):
            if name == "CT":
                values[..., i] = torch.from_numpy(self.ct) / HU_SCALE
            elif name == MASK_CHANNEL:
                values[..., i] = torch.from_numpy(self.mask)
            elif name in STRUCTURES:
                values[..., i] = torch.from_numpy(self.structure(name))
            else:
                values[..., i] = torch.from_numpy(self.derived[DERIVED_CHANNELS.index(name)])
        values[..., -2] = torch.from_numpy(self.dose_gy)
        values[..., -1] = torch.from_numpy(self.mask)
        return Example(tuple(names), values)


def split_folders(data: Path) -> tuple[list[Path], list[Path]]:
    """(training, validation) folders: by train-pats and validation-pats where both are there, else every tenth.

    Raises TrainingError where there are fewer than two patients.
    """
    if not data.is_dir():
        raise TrainingError("There is no such folder.", where=str(data))
    if (data / TRAINING_SPLIT).is_dir() and (data / VALIDATION_SPLIT).is_dir():
        training, validation = patient_folders(data / TRAINING_SPLIT), patient_folders(data / VALIDATION_SPLIT)
    else:
        folders = patient_folders(data)
        validation = folders[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or folders[-1:]
        training = [f for f in folders if f not in validation]
    if not training or not validation:
        raise TrainingError(
            f"Training needs at least two patients; found {len(training)} to train and {len(validation)} to validate.",
            where=data.name,
        )
    return training, validation


def load_cases(folders: list[Path], progress: Progress = silent) -> list[TrainingCase]:
    """Training cases one by one, so that only the packed form stays in memory."""
    cases = []
    for i, folder in enumerate(folders):
        progress(i / len(folders), f"reading patient {i + 1} of {len(folders)}")
        cases += [TrainingCase.of(patient) for patient in load_patients([folder])]
    return cases
