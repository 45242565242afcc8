"""The dose surrogate: the network at work on one patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.model.features import Features, build_features
from RTDigitalTwinLib.model.network import DoseUNet, Encoded
from RTDigitalTwinLib.model.weights import choose_device, load_network
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume


class DoseSurrogate:
    """A network on a device, giving doses at the voxels of a patient's mask.

    Attributes
    ----------
    weights_sha256 : of the file its weights came from; "" for weights from memory.
    """

    def __init__(self, network: DoseUNet, device: torch.device, weights_sha256: str = "") -> None:
        self.network = network.to(device, memory_format=torch.channels_last_3d)
        self.device = device
        self.weights_sha256 = weights_sha256

    @classmethod
    def load(cls, weights: Path | None = None, device: str = "auto") -> DoseSurrogate:
        """From a weights file, by default the one that comes with the software. Raises ModelError."""
        chosen = choose_device(device)
        loaded = load_network(weights)
        return cls(loaded.network, chosen, loaded.sha256)

    @torch.inference_mode()
    def encode(self, features: Features) -> Encoded:
        """The part of the work that all samples share."""
        channels = torch.from_numpy(features.channels)[None].to(self.device)
        return self.network.encode(channels.contiguous(memory_format=torch.channels_last_3d))

    @torch.inference_mode()
    def decode(self, encoded: Encoded, features: Features, factors: Sequence[Tensor] | None = None) -> NDArray:
        """Doses in Gy (samples, mask voxels), float32: one sample a row of the factors, or one without dropout."""
        if factors is not None:
            factors = [f.to(self.device) for f in factors]
        dose = self.network.decode(encoded, factors)
        return dose[:, torch.from_numpy(features.mask).to(self.device)].cpu().numpy()

    def expected_dose(self, patient: Patient) -> Volume:
        """The deterministic prediction, dropout off, on the patient's grid."""
        features = build_features(patient)
        return spread_over_grid(self.decode(self.encode(features), features)[0], features, Quantity.DOSE_GY)


def spread_over_grid(values: NDArray, features: Features, quantity: Quantity) -> Volume:
    """A whole-grid volume from values at the mask's voxels; 0 elsewhere."""
    full = np.zeros(features.grid.voxel_count, np.float32)
    full[features.mask_indices] = values
    return Volume(full.reshape(features.grid.shape), features.grid, quantity)
