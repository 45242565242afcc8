"""Smooth random deformations of an anatomy for training: other patients than the ones there are.

Slices are stretched and slide over one another, which coplanar beams hardly notice, for the dose of a slice is that of
its own part of the beams; across the slices it is stretched and bent a little, as anatomies differ. The dose goes along
with the anatomy. After P. Simard, D. Steinkraus and J. Platt, Best practices for convolutional neural networks, ICDAR
2003, with displacements interpolated between knots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SLICE_RANGE = 1.25  # slices are seen up to so many times thicker or thinner
ELONGATION_RANGE = 1.08  # rows against columns
KNOTS = 5  # along each direction
SLICE_SHIFT_VOXELS = 1.2  # standard deviations at the knots: of slices along slices,
SLIDE_VOXELS = 1.0  # of whole slices over one another,
BEND_VOXELS = 1.0  # and of what is in them
SPARE_VOXELS = 10  # beyond the mask's box is seen: more than a displacement is likely to be


@dataclass(frozen=True)
class Deformation:
    """One deformation.

    Attributes
    ----------
    slice_ratio : slices are seen so many times thicker than they are.
    elongation : rows are seen so many times larger, columns so many times smaller.
    seed : of the smooth displacements.
    """

    slice_ratio: float
    elongation: float
    seed: int

    @classmethod
    def draw(cls, generator: torch.Generator) -> Deformation:
        drawn = (2 * torch.rand(2, generator=generator) - 1).tolist()
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return cls(SLICE_RANGE ** drawn[0], ELONGATION_RANGE ** drawn[1], seed)

    def ratios(self, pixel_ratio: float) -> tuple[float, float, float]:
        """Of the sizes along slices, rows and columns that it is seen in to its own."""
        return self.slice_ratio, pixel_ratio * self.elongation, pixel_ratio / self.elongation

    def positions(
        self, lowest: Sequence[float], highest: Sequence[float], ratios: Sequence[float], block: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where to look for what is seen from ``lowest`` to ``highest`` and a bit beyond, along slices, rows, columns.

        Of blocks of so many voxels, in units of blocks; each of the shape of what is seen.
        """
        spare = -(-SPARE_VOXELS // block)
        axes = [
            torch.arange(math.floor(low) - spare, math.ceil(high) + spare + 1, dtype=torch.float32) * ratio
            for low, high, ratio in zip(lowest, highest, ratios, strict=True)
        ]
        slices, rows, columns = torch.meshgrid(*axes, indexing="ij")
        random = torch.Generator().manual_seed(self.seed)

        def smooth(std_voxels: float, *knots: int) -> Tensor:
            at_knots = torch.randn(1, 1, *knots, generator=random) * (std_voxels / block)
            return functional.interpolate(at_knots, size=slices.shape, mode="trilinear", align_corners=True)[0, 0]

        def displaced(positions: Tensor) -> Tensor:
            return positions + smooth(SLIDE_VOXELS, KNOTS, 1, 1) + smooth(BEND_VOXELS, KNOTS, KNOTS, KNOTS)

        return slices + smooth(SLICE_SHIFT_VOXELS, KNOTS, 1, 1), displaced(rows), displaced(columns)


def resampled(values: Tensor, at: Sequence[Tensor], outside: Tensor) -> Tensor:
    """(..., channels) of values (slices, rows, columns, channels), linear between voxels.

    ``at``: positions along slices, rows and columns, in voxels, each of one shape (...). ``outside``: what each channel
    has beyond.
    """
    sizes, count = values.shape[:3], values.shape[3]
    place = torch.zeros((8, at[0].numel()), dtype=torch.long, device=values.device)
    weight = torch.ones((8, at[0].numel()), dtype=values.dtype, device=values.device)
    for axis, positions in enumerate(at):
        low = positions.flatten().floor()
        for corner in range(8):
            is_upper = corner >> axis & 1
            index = low.long() + is_upper
            share = positions.flatten() - low if is_upper else 1 - (positions.flatten() - low)
            weight[corner] *= share * ((index >= 0) & (index < sizes[axis]))
            place[corner] = place[corner] * sizes[axis] + index.clamp(0, sizes[axis] - 1)
    table = (values - outside).reshape(-1, count)
    sums = functional.embedding_bag(place.T, table, per_sample_weights=weight.T.contiguous(), mode="sum")
    return sums.view(*at[0].shape, count) + outside
