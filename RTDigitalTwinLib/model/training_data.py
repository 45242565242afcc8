"""Training cases: patients packed to what the network sees and has to predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.errors import TrainingError
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
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK, RIGHT_LEFT_PAIRS, TARGETS
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import StructureKind
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

    def structure_masks(self, *, mirrored: bool) -> Iterator[tuple[StructureKind, Tensor]]:
        """Kind and mask (1, ...) of each structure the patient has."""
        for name in STRUCTURES:
            mask = torch.from_numpy(self.structure(name))[None]
            if bool(mask.any()):
                kind = StructureKind.TARGET if name in TARGETS else StructureKind.ORGAN
                yield kind, mask.flip(-1) if mirrored else mask

    def tensors(self, names: Sequence[str] = CHANNELS, *, mirrored: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Features (1, names, ...), dose in Gy (1, ...) and mask (1, ...); ``mirrored`` swaps left and right."""
        channels = torch.empty((1, len(names), *self.ct.shape))
        for i, name in enumerate(_swapped(names) if mirrored else names):
            if name == "CT":
                channels[0, i] = torch.from_numpy(self.ct) / HU_SCALE
            elif name == MASK_CHANNEL:
                channels[0, i] = torch.from_numpy(self.mask)
            elif name in STRUCTURES:
                channels[0, i] = torch.from_numpy(self.structure(name))
            else:
                channels[0, i] = torch.from_numpy(self.derived[DERIVED_CHANNELS.index(name)])
        dose = torch.from_numpy(self.dose_gy).float()[None]
        mask = torch.from_numpy(self.mask)[None]
        if mirrored:
            channels, dose, mask = channels.flip(-1), dose.flip(-1), mask.flip(-1)
        return channels.contiguous(memory_format=torch.channels_last_3d), dose, mask


def _swapped(names: Sequence[str]) -> list[str]:
    """Channel names with right and left exchanged."""
    other = {a: b for pair in RIGHT_LEFT_PAIRS for a, b in (pair, pair[::-1])}
    return [other.get(name, name) for name in names]


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
