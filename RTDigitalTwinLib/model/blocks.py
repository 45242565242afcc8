"""The dose network's blocks: convolutions of 3 x 3 x 3 voxels with what follows them, and residual units.

The residual unit is that of K. He et al., Deep residual learning for image recognition, CVPR 2016, in the form of the
prototype's MONAI U-Net (E. Kerfoot et al., Left-ventricle quantification using residual U-Net, STACOM 2018). Parts bear
the names that MONAI's have, so that either's weights fit the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from RTDigitalTwinLib.model.layers import ChannelDropout, SharedPReLU
from RTDigitalTwinLib.model.norm import InstanceNorm

KERNEL = 3


class Behind(nn.Module):
    """What follows a convolution: norm, dropout of whole channels where it is asked for, activation."""

    def __init__(self, width: int, *, dropout: bool) -> None:
        super().__init__()
        self.N = InstanceNorm()
        self.D = ChannelDropout(width) if dropout else nn.Identity()
        self.A = SharedPReLU()

    def forward(self, values: Tensor) -> Tensor:
        return self.A(self.D(self.N(values)))


class Block(nn.Module):
    """A convolution and what follows it; by itself where that is nothing."""

    def __init__(self, conv: nn.Module, behind: Behind | None) -> None:
        super().__init__()
        self.conv = conv
        if behind is not None:
            self.adn = behind

    def forward(self, values: Tensor) -> Tensor:
        values = self.conv(values)
        return self.adn(values) if hasattr(self, "adn") else values


class ResidualUnit(nn.Module):
    """From (samples, inputs, ...) to (samples, width, ...), of 1 / ``strides`` the size.

    One or more blocks one after the other, and beside them a way that is as short as the sizes allow;
    ``last_conv_only``: nothing follows the last convolution.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        strides: int = 1,
        subunits: int = 1,
        dropout: bool = False,
        last_conv_only: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for k in range(subunits):
            before, step = (width, 1) if k else (inputs, strides)
            ends_bare = last_conv_only and k == subunits - 1
            conv = nn.Conv3d(before, width, KERNEL, step, padding=KERNEL // 2)
            self.conv.add_module(f"unit{k}", Block(conv, None if ends_bare else Behind(width, dropout=dropout)))
        self.residual: nn.Module = nn.Identity()
        if strides > 1:
            self.residual = nn.Conv3d(inputs, width, KERNEL, strides, padding=KERNEL // 2)
        elif inputs != width:
            self.residual = nn.Conv3d(inputs, width, 1)

    def forward(self, values: Tensor) -> Tensor:
        beside = self.residual(values)  # first, as in MONAI's: gradients are summed in the same order
        return self.conv(values) + beside


def convolution(inputs: int, width: int) -> nn.Module:
    """From (samples, inputs, ...) to (samples, width, ...), with norm and activation."""
    return Block(nn.Conv3d(inputs, width, KERNEL, padding=KERNEL // 2), Behind(width, dropout=False))


def up_convolution(inputs: int, width: int, *, dropout: bool) -> nn.Module:
    """From (samples, inputs, ...) to (samples, width, ...), of twice the size, with norm and activation."""
    conv = nn.ConvTranspose3d(inputs, width, KERNEL, 2, padding=KERNEL // 2, output_padding=1)
    return Block(conv, Behind(width, dropout=dropout))


@dataclass(frozen=True)
class Blocks:
    """Who makes a network's blocks: see ``ResidualUnit`` and the functions of these names."""

    residual_unit: Callable[..., Any]
    convolution: Callable[..., Any]
    up_convolution: Callable[..., Any]


OWN_BLOCKS = Blocks(ResidualUnit, convolution, up_convolution)
