"""The dose network's blocks: MONAI's convolution and residual unit, their weights' names and first values the same.

Written out, because importing MONAI takes longer than predicting a few samples. A test compares both.
"""

from __future__ import annotations

from torch import Tensor, nn

from RTDigitalTwinLib.model.layers import ChannelDropout, InstanceNorm, SharedPReLU


class Convolution(nn.Sequential):
    """A 3 x 3 x 3 convolution, then norm, dropout where ``drops``, and activation; or, ``bare``, nothing.

    Strides of 2 halve the sizes, or double them if ``transposed``.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, drops: bool = False, bare: bool = False,
        transposed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv: nn.Conv3d | nn.ConvTranspose3d
        if transposed:
            self.conv = nn.ConvTranspose3d(inputs, outputs, 3, stride, 1, stride - 1)
        else:
            self.conv = nn.Conv3d(inputs, outputs, 3, stride, 1)
        if not bare:
            self.adn = nn.Sequential()
            self.adn.add_module("N", InstanceNorm())
            if drops:
                self.adn.add_module("D", ChannelDropout(outputs))
            self.adn.add_module("A", SharedPReLU())


class ResidualUnit(nn.Module):
    """Convolutions one after the other, beside the input, which a convolution brings to their sizes where needed.

    The last convolution is followed by nothing if ``ends_bare``.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, units: int = 2, *, drops: bool = False,
        ends_bare: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Sequential()
        self.residual: nn.Module = nn.Identity()
        for k in range(units):
            first, last = k == 0, k == units - 1
            unit = Convolution(
                inputs if first else outputs, outputs, stride if first else 1, drops=drops, bare=ends_bare and last
            )
            self.conv.add_module(f"unit{k}", unit)
        if stride != 1:
            self.residual = nn.Conv3d(inputs, outputs, 3, stride, 1)
        elif inputs != outputs:
            self.residual = nn.Conv3d(inputs, outputs, 1)

    def forward(self, values: Tensor) -> Tensor:
        beside = self.residual(values)
        return self.conv(values) + beside
