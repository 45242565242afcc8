"""Coarse networks beside the dose network: another opinion on where dose is smooth.

Nearly all of a predicted dose's error is smooth: averaged over blocks of 2 x 2 x 2 voxels it is hardly smaller.
Networks that see a patient in such blocks learn that part at a fraction of the price, and their mean, with the dose
network's own deterministic dose, errs less than any of them (L. K. Hansen and P. Salamon, Neural network ensembles,
IEEE PAMI 12, 993, 1990). It becomes a correction that all samples of a patient share, added to the network's baseline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from RTDigitalTwinLib.model.augmentation import block_doses, mirrored_order
from RTDigitalTwinLib.model.features import Features
from RTDigitalTwinLib.model.network import PRESCRIPTION_SCALE_GY, DoseUNet, Encoded
from RTDigitalTwinLib.patient.volume import Quantity, Volume

# Coarse networks err much alike, so that their mean is one opinion beside the dose network's.
WEIGHT_OF_COARSE = 0.5


def coarse_dose_gy(network: DoseUNet, channels: Tensor) -> Tensor:
    """A coarse network's dose (slices, rows, columns) of blocks, without dropout: the mean of two views, one mirrored.

    ``channels``: its inputs (1, names, slices, rows, columns) in native voxels.
    """
    means = functional.avg_pool3d(channels, network.configuration.block)
    mirrored = means[:, mirrored_order(network.configuration.channels)].flip(-1)
    seen, otherwise = (network(view.contiguous(memory_format=torch.channels_last_3d))[0] for view in (means, mirrored))
    return (seen + otherwise.flip(-1)) / 2


def interpolated(of_blocks: Tensor, share: Tensor, block: int) -> Tensor:
    """(slices, rows, columns) of native voxels: linear between the middles of blocks that have some mask in them.

    ``share``: of each block's voxels that lie in the mask. 0 far from it.
    """
    weighted = torch.stack([of_blocks * share, share])[None]
    sums = functional.interpolate(weighted, scale_factor=block, mode="trilinear", align_corners=False)[0]
    return sums[0] / sums[1].clamp(min=1e-3)


def coarse_dose(network: DoseUNet, features: Features, device: torch.device) -> Volume:
    """A coarse network's own dose on a patient's grid; the caller switches gradients off."""
    channels = torch.from_numpy(features.channels)[None].to(device)
    mask = torch.from_numpy(features.crop.mask).to(device)
    block = network.configuration.block
    _, share = block_doses(torch.zeros(mask.shape, device=device), mask, block)
    dose_gy = interpolated(coarse_dose_gy(network, channels), share, block)
    return features.crop.spread(dose_gy[mask].cpu().numpy(), Quantity.DOSE_GY)


@dataclass(frozen=True, eq=False)
class Committee:
    """The coarse networks that came with a dose network; all have its inputs, and one size of blocks."""

    members: tuple[DoseUNet, ...]

    def __post_init__(self) -> None:
        if len({member.configuration.block for member in self.members}) != 1:
            raise ValueError("coarse networks of one committee have one size of blocks")

    def corrected(self, encoded: Encoded, channels: Tensor, dose_gy: Tensor, mask: Tensor) -> Encoded:
        """With a baseline that moves the dose's means over blocks halfway to the mean of the coarse networks.

        ``channels``: the inputs (1, names, slices, rows, columns). ``dose_gy``: the dose network's own (slices, rows,
        columns), without dropout. ``mask``: voxels that can receive dose.
        """
        block = self.members[0].configuration.block
        own_gy, share = block_doses(dose_gy, mask, block)
        others_gy = torch.stack([coarse_dose_gy(member, channels) for member in self.members]).mean(0)
        correction_gy = interpolated(WEIGHT_OF_COARSE * (others_gy - own_gy), share, block) * mask
        correction = correction_gy / PRESCRIPTION_SCALE_GY
        baseline = correction[None] if encoded.baseline is None else encoded.baseline + correction
        return replace(encoded, baseline=baseline)
