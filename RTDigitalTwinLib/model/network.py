"""The dose network: a residual 3D U-Net with whole-channel dropout behind its encoder.

Sizes and blocks follow the prototype's MONAI U-Net (five levels of 32 to 512 channels, two residual units a level,
19.2 million parameters); in the prototype's configuration they are MONAI's own. Dropout sits in the bottleneck and
decoder only, so one encoding serves any number of samples, and not in the last level, where dropping the one channel
would drop the whole dose. Each up-sampling convolution is split by linearity into the part of the skip connection,
computed once, and the part of the sample.

The default configuration adds two things to the prototype: a path from the inputs to the last level at full
resolution, computed once, and a baseline, the input dose that the network's output is added to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from RTDigitalTwinLib.errors import ModelError
from RTDigitalTwinLib.model.blocks import OWN_BLOCKS, Blocks
from RTDigitalTwinLib.model.crop import SIZE_MULTIPLE
from RTDigitalTwinLib.model.features import (
    ANATOMY_CHANNELS,
    CHANNELS,
    FITTED_BEAMS,
    MASK_CHANNEL,
    PRESCRIPTION_SCALE_GY,
)
from RTDigitalTwinLib.model.layers import ChannelDropout

# The mask shows in the fitted beams' dose, and 16 inputs make a training step a fifth faster on a CPU than 17.
DEFAULT_CHANNELS = tuple(name for name in CHANNELS if name != MASK_CHANNEL)


@dataclass(frozen=True)
class NetworkConfiguration:
    """What rebuilds a network: stored with its weights.

    Attributes
    ----------
    channels : names of the inputs.
    fine_width : channels of the last level, with a path from the inputs at full resolution; 0 as in the prototype:
        one channel, no such path.
    baseline : the input channel (a dose) that the output is added to; "" for none.
    block : it sees means over blocks of so many voxels along each direction; 1 sees the voxels. See ``coarse``.
    """

    channels: tuple[str, ...] = DEFAULT_CHANNELS
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    residual_units: int = 2
    dropout_ratio: float = 0.1
    fine_width: int = 8
    baseline: str = FITTED_BEAMS
    block: int = 1

    def __post_init__(self) -> None:
        if self.baseline and self.baseline not in self.channels:
            raise ValueError(f"the baseline {self.baseline!r} is none of the inputs")
        if self.block < 1 or (self.block > 1 and SIZE_MULTIPLE % (self.block * 2**self.halvings)):
            raise ValueError(f"blocks of {self.block} and {self.halvings} halvings do not fit crops' sizes")

    def as_dict(self) -> dict[str, object]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def halvings(self) -> int:
        """How often the network halves the sizes of what it sees."""
        return len(self.widths) - 1

    @property
    def is_prototype(self) -> bool:
        """Whether the prototype's network is meant, whatever its sizes and inputs."""
        return not self.fine_width and not self.baseline

    @classmethod
    def from_dict(cls, stored: dict) -> NetworkConfiguration:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**values)


CONFIGURATIONS = {
    "default": NetworkConfiguration(dropout_ratio=0.2),
    "coarse": NetworkConfiguration(widths=(48, 64, 96, 128), fine_width=24, block=2),
    "paper": NetworkConfiguration(channels=ANATOMY_CHANNELS, fine_width=0, baseline=""),
}


@dataclass(frozen=True)
class Encoded:
    """All of a patient that dropout does not touch.

    Attributes
    ----------
    deepest : (1, width, ...) input of the bottleneck.
    skips : for each decoder level, deepest first, the skip connection's share of its up-sampling convolution.
    baseline : (1, slices, rows, columns) in units of 70 Gy, or None.
    """

    deepest: Tensor
    skips: tuple[Tensor, ...]
    baseline: Tensor | None


class UpStage(nn.Module):
    """Transposed convolution of (skip, below), then residual units; without activation at the end if ``is_dose``."""

    def __init__(
        self, blocks: Blocks, skip_width: int, below_width: int, width: int, *, dropout: bool, is_dose: bool
    ) -> None:
        super().__init__()
        self.skip_width = skip_width
        self.up = blocks.up_convolution(skip_width + below_width, width, dropout=dropout)
        self.unit = blocks.residual_unit(width, width, dropout=dropout, last_conv_only=is_dose)

    def _transposed(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self.up.conv
        return functional.conv_transpose3d(values, weight, bias, conv.stride, conv.padding, conv.output_padding)

    def of_skip(self, skip: Tensor) -> Tensor:
        """The skip connection's share of the up-sampling."""
        return self._transposed(skip, self.up.conv.weight[: self.skip_width], self.up.conv.bias)

    def of_below(self, below: Tensor) -> Tensor:
        """The rest of the up-sampling."""
        return self._transposed(below, self.weight_of_below(), None)

    def weight_of_below(self) -> Tensor:
        """The up-sampling's weight but for what it gives to the skip connection."""
        return self.up.conv.weight[self.skip_width :]

    def forward(self, skip_share: Tensor, below: Tensor) -> Tensor:
        return self.unit(self.up.adn(skip_share + self.of_below(below)))


def _blocks_of(configuration: NetworkConfiguration) -> Blocks:
    """MONAI's for the prototype's network; our own for others, which need not import it."""
    if not configuration.is_prototype:
        return OWN_BLOCKS
    try:
        from RTDigitalTwinLib.model.monai_blocks import MONAI_BLOCKS
    except ModuleNotFoundError as error:
        raise ModelError(
            "The prototype's network needs MONAI, which is not installed here.",
            remedy="Install it: pip install monai -c constraints.txt. The default network does without.",
        ) from error
    return MONAI_BLOCKS


class DoseUNet(nn.Module):
    """Features (batch, channels, slices, rows, columns) to dose in Gy (batch, slices, rows, columns), never negative.

    All sizes are multiples of 2 to the number of halvings. Dose outside the feasible mask is the caller's to zero.
    """

    def __init__(self, configuration: NetworkConfiguration | None = None) -> None:
        super().__init__()
        self.configuration = configuration or NetworkConfiguration()
        blocks = _blocks_of(self.configuration)
        widths, subunits = self.configuration.widths, self.configuration.residual_units
        inputs = (len(self.configuration.channels), *widths[:-2])
        self.encoder = nn.ModuleList(
            blocks.residual_unit(a, b, strides=2, subunits=subunits) for a, b in zip(inputs, widths[:-1], strict=True)
        )
        self.bottleneck = blocks.residual_unit(widths[-2], widths[-1], subunits=subunits, dropout=True)
        below = (widths[-1], *widths[-3::-1])
        fine = self.configuration.fine_width
        stages = [
            UpStage(blocks, skip, deep, out, dropout=True, is_dose=False)
            for skip, deep, out in zip(widths[-2:0:-1], below, widths[-3::-1], strict=False)
        ]
        last = UpStage(blocks, widths[0], below[-1], fine or 1, dropout=False, is_dose=not fine)
        self.decoder = nn.ModuleList([*stages, last])
        if fine:
            self.fine = nn.Sequential(blocks.convolution(inputs[0], fine), nn.Conv3d(fine, fine, 3, padding=1))
            self.last = nn.Conv3d(fine, 1, 1)
        self._dropouts = [part for part in self.modules() if isinstance(part, ChannelDropout)]

    @torch.no_grad()
    def begin_from(self, other: DoseUNet) -> None:
        """Take over another network's weights; inputs meet by name, and those it did not have begin with weight 0.

        Raises ValueError where the networks differ in more than their inputs and their dropout.
        """
        mine, theirs = self.configuration, other.configuration
        if replace(mine, channels=theirs.channels, dropout_ratio=theirs.dropout_ratio) != theirs:
            raise ValueError("the networks differ in more than their inputs")
        given = other.state_dict()
        both = [(i, theirs.channels.index(c)) for i, c in enumerate(mine.channels) if c in theirs.channels]
        for name, value in self.state_dict().items():
            if value.shape == given[name].shape:
                value.copy_(given[name])
            else:
                value.zero_()
                for i, j in both:
                    value[:, i] = given[name][:, j]

    def encodes_as(self, other: DoseUNet) -> bool:
        """Whether all that ``encode`` uses, the skip connections' share of the decoder included, has equal weights."""

        def used(network: DoseUNet) -> list[Tensor]:
            stages = [s.up.conv for s in network.decoder]
            shares = [c.weight[: s.skip_width] for c, s in zip(stages, network.decoder, strict=True)]
            whole = [
                *network.encoder.parameters(),
                *(network.fine.parameters() if self.configuration.fine_width else ()),
            ]
            return [*whole, *shares, *(c.bias for c in stages if c.bias is not None)]

        if self.configuration != other.configuration:
            return False
        return all(torch.equal(a, b) for a, b in zip(used(self), used(other), strict=True))

    def draw_factors(self, samples: int, generator: torch.Generator, block: int = 1) -> list[Tensor]:
        """Dropout factors (samples, width) for every dropout, from a CPU generator: the same on any device.

        Samples are drawn in blocks, always whole ones, so that sample k is the same however many are drawn. Each sample
        of a block is as if drawn alone; over a block each channel is dropped as often as its ratio says, to one (Latin
        hypercube: McKay, Beckman and Conover, Technometrics 21, 239, 1979), which steadies the mean over samples.
        """
        keep = 1 - self.configuration.dropout_ratio
        widths = [dropout.width for dropout in self._dropouts]
        drawn = []
        for _ in range(0, samples, block):
            strata = torch.rand(block, sum(widths), generator=generator).argsort(dim=0)
            drawn.append((strata + torch.rand(1, sum(widths), generator=generator)) / block < keep)
        factors = torch.cat(drawn)[:samples].float() / keep if drawn else torch.empty(0, sum(widths))
        return list(factors.split(widths, dim=1))

    def encode(self, features: Tensor) -> Encoded:
        """All that precedes the first dropout."""
        inputs, levels = features, []
        for unit in self.encoder:
            features = unit(features)
            levels.append(features)
        skips = tuple(stage.of_skip(level) for stage, level in zip(self.decoder, reversed(levels), strict=True))
        if self.configuration.fine_width:
            skips = (*skips[:-1], skips[-1] + self.fine(inputs))
        baseline = None
        if self.configuration.baseline:
            baseline = inputs[:, self.configuration.channels.index(self.configuration.baseline)].float()
        return Encoded(levels[-1], skips, baseline)

    def decode(self, encoded: Encoded, factors: Sequence[Tensor] | None = None) -> Tensor:
        """Dose in Gy (samples, slices, rows, columns), one a row of the factors; without factors deterministic."""
        return functional.relu(self.decode_unclipped(encoded, factors))

    def decode_unclipped(self, encoded: Encoded, factors: Sequence[Tensor] | None = None) -> Tensor:
        """As ``decode``, without the cut at 0 Gy, behind which no gradient would pass in training."""
        try:
            for i, dropout in enumerate(self._dropouts):
                dropout.factors = None if factors is None else factors[i]
            values = self.bottleneck(encoded.deepest)
            for stage, skip in zip(self.decoder, encoded.skips, strict=True):
                values = stage(skip, values)
        finally:
            for dropout in self._dropouts:
                dropout.factors = None
        if self.configuration.fine_width:
            values = self.last(values)
        dose = values[:, 0].float()
        if encoded.baseline is not None:
            dose = dose + encoded.baseline
        return dose * PRESCRIPTION_SCALE_GY

    def forward(self, features: Tensor, factors: Sequence[Tensor] | None = None) -> Tensor:
        return self.decode(self.encode(features), factors)
