"""Training cases: patients packed to what the network sees and has to predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.errors import TrainingError
from RTDigitalTwinLib.model.features import CHANNELS, HU_SCALE, build_features
from RTDigitalTwinLib.patient.loading import load_patients, patient_folders
from RTDigitalTwinLib.patient.naming import RIGHT_LEFT_PAIRS
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent

TRAINING_SPLIT, VALIDATION_SPLIT = "train-pats", "validation-pats"
HELD_OUT_EVERY = 10


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """One patient's crop, packed 7 bytes a voxel: doses to 0.03 Gy, structures as masks.

    Attributes
    ----------
    ct : HU, clipped, int16.
    structures : bit k set where structure CHANNELS[k + 1] is, uint16.
    dose_gy : float16.
    mask : voxels that can receive dose.
    """

    pseudonym: str
    ct: NDArray[np.int16]
    structures: NDArray[np.uint16]
    dose_gy: NDArray[np.float16]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, patient: Patient) -> TrainingCase:
        """Raises TrainingError where the patient has no reference dose."""
        if not patient.plans or patient.plan.dose is None:
            raise TrainingError("The patient has no reference dose (dose.csv).", where=patient.pseudonym)
        features = build_features(patient)
        bits = np.zeros(features.mask.shape, np.uint16)
        for k in range(len(CHANNELS) - 1):
            bits |= (features.channels[k + 1] >= 0.5).astype(np.uint16) << k
        dose = np.zeros(features.mask.shape, np.float16)
        dose[features.mask] = patient.plan.dose.values.reshape(-1)[features.mask_indices]
        ct = np.round(features.channels[0] * HU_SCALE).astype(np.int16)
        return cls(patient.pseudonym, ct, bits, dose, features.mask)

    def tensors(self, *, mirrored: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Features (1, channels, ...), dose in Gy (1, ...) and mask (1, ...); ``mirrored`` swaps left and right."""
        channels = torch.empty((1, len(CHANNELS), *self.ct.shape))
        channels[0, 0] = torch.from_numpy(self.ct) / HU_SCALE
        bits = torch.from_numpy(self.structures.astype(np.int16))
        for k in range(len(CHANNELS) - 1):
            channels[0, k + 1] = (bits >> k) & 1
        dose = torch.from_numpy(self.dose_gy).float()[None]
        mask = torch.from_numpy(self.mask)[None]
        if mirrored:
            channels, dose, mask = channels.flip(-1)[:, _mirror_order()], dose.flip(-1), mask.flip(-1)
        return channels.contiguous(memory_format=torch.channels_last_3d), dose, mask


def _mirror_order() -> list[int]:
    order = list(range(len(CHANNELS)))
    for right, left in RIGHT_LEFT_PAIRS:
        i, j = CHANNELS.index(right), CHANNELS.index(left)
        order[i], order[j] = j, i
    return order


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
