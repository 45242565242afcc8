"""A differentiable loss on DVH metrics: what the benchmark's DVH score asks for, smoothed over a few voxels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from RTDigitalTwinLib.patient.structure import StructureKind

# Shares of a target's voxels, from the coldest, whose mean stands for D99, D95 and D1.
TARGET_SHARES = ((0.005, 0.015), (0.04, 0.06), (0.985, 0.995))
HOTTEST_VOXELS = 5  # D0.1cc is 1 to 9 voxels at the benchmark's voxel sizes
FEWEST_VOXELS = 10


def dvh_error_gy(
    predicted_gy: Tensor, dose_gy: Tensor, structures: Iterable[tuple[StructureKind, Tensor]]
) -> Tensor | None:
    """Mean absolute difference in Gy over structures and metrics; None where no structure has 10 voxels.

    Doses and the structures' masks have one shape. Gradients reach the voxels that each metric is made of.
    """
    cells = []
    for kind, mask in structures:
        predicted, expected = predicted_gy[mask], dose_gy[mask]
        count = predicted.numel()
        if count < FEWEST_VOXELS:
            continue
        found, wanted = predicted.sort().values, expected.sort().values
        if kind is StructureKind.TARGET:
            for low, high in TARGET_SHARES:
                first = int(low * count)
                ranks = slice(first, max(first + 1, math.ceil(high * count)))
                cells.append((found[ranks].mean() - wanted[ranks].mean()).abs())
        else:
            cells.append((predicted.mean() - expected.mean()).abs())
            cells.append((found[-HOTTEST_VOXELS:].mean() - wanted[-HOTTEST_VOXELS:].mean()).abs())
    return torch.stack(cells).mean() if cells else None
