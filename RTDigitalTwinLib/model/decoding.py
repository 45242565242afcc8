"""Decoding many samples on a CPU, without gradients: the network's own arithmetic with less memory traffic.

What dropout does not touch is worked out once: the bottleneck's first convolution, its norm, and its residual. The
deep stages take a few samples at once, since one alone is too small for the convolution library's fast ways; the last
stage takes one at a time, near the cache. Norm and dropout are one pass, in place. Behind the last norm only the voxels
of the dose mask go on. The doses are those of ``DoseUNet.decode`` but for the order of float32's roundings; in half
precision the products of convolutions are bfloat16's, and all else is float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from RTDigitalTwinLib.model.convolution import convolve
from RTDigitalTwinLib.model.features import PRESCRIPTION_SCALE_GY
from RTDigitalTwinLib.model.last_stage import convolved, raised
from RTDigitalTwinLib.model.network import DoseUNet, Encoded, UpStage
from RTDigitalTwinLib.model.norm import mean_and_scale, normalise_

Rows = Iterator[Tensor | None]


class CpuDecoder:
    """Decodes one patient's samples at the voxels of a mask."""

    def __init__(
        self, network: DoseUNet, encoded: Encoded, mask: Tensor, precision: torch.dtype = torch.float32
    ) -> None:
        """``mask`` is boolean (slices, rows, columns), ``precision`` that of the convolutions."""
        self._network, self._encoded = network, encoded
        self._places = mask.flatten().nonzero()[:, 0]
        unit = network.bottleneck
        self._first = unit.conv.unit0.conv(encoded.deepest)
        _normalise(self._first, None)
        self._residual = unit.residual(encoded.deepest)
        self._deepest_kernel = unit.conv.unit1.conv.weight.to(precision)
        self._kernels = [
            (stage.weight_of_below().to(precision), stage.unit.conv.unit0.conv.weight.to(precision))
            for stage in network.decoder
        ]
        self._baseline = None if encoded.baseline is None else encoded.baseline.flatten()[self._places]

    def doses_gy(self, factors: Sequence[Tensor] | None = None) -> Tensor:
        """Doses in Gy (samples, voxels of the mask), never negative; without factors one, deterministic."""
        count = 1 if factors is None else len(factors[0])
        rows: Rows = iter([None] * len(self._network._dropouts) if factors is None else factors)
        values = self._bottleneck(count, rows)
        *stages, last = self._network.decoder
        *shares, last_share = self._encoded.skips
        for stage, share, (up, unit) in zip(stages, shares, self._kernels, strict=False):
            values = convolve(values, up, transposed=True).float().add_(share)
            _normalise(values, next(rows))
            active = functional.leaky_relu_(values, float(stage.up.adn.A.weight))
            values = _residual_unit(stage, unit, active, next(rows))
        up, unit = self._kernels[-1]
        doses = []
        for one in values.split(1):  # with the batch's strides, by which torch knows that channels come last
            raised_one = raised(one.to(up.dtype), up).float().add_(last_share)
            normalise_(raised_one)
            doses.append(self._dose(last, unit, functional.leaky_relu_(raised_one, float(last.up.adn.A.weight))))
        return torch.stack(doses)

    def _bottleneck(self, count: int, rows: Rows) -> Tensor:
        first, second = self._network.bottleneck.conv
        dropped = next(rows)
        values = self._first if dropped is None else self._first * dropped[:, :, None, None, None]
        if values is self._first or len(values) < count:
            values = values.repeat(count, 1, 1, 1, 1).contiguous(memory_format=torch.channels_last_3d)
        values = functional.leaky_relu_(values, float(first.adn.A.weight))
        values = convolve(values, self._deepest_kernel, transposed=False).float()
        _normalise(values, next(rows))
        return functional.leaky_relu_(values, float(second.adn.A.weight)).add_(self._residual)

    def _dose(self, stage: UpStage, kernel: Tensor, raised: Tensor) -> Tensor:
        """The dose (voxels of the mask,) behind the last up-sampling (1, width, ...)."""
        block = stage.unit.conv.unit0
        if hasattr(block, "adn"):
            values = convolved(raised.to(kernel.dtype), kernel).float()
        else:
            values = block.conv(raised)
        inside = self._inside(values)
        if hasattr(block, "adn"):
            mean, scale = mean_and_scale(values)
            inside = (inside - mean) * scale
            inside = functional.leaky_relu_(inside, float(block.adn.A.weight))
        inside = inside.add_(self._inside(raised))
        if self._network.configuration.fine_width:
            dose = torch.addmv(self._network.last.bias, inside, self._network.last.weight.flatten())
        else:
            dose = inside[:, 0]
        if self._baseline is not None:
            dose = dose + self._baseline
        return functional.relu_(dose * PRESCRIPTION_SCALE_GY)

    def _inside(self, values: Tensor) -> Tensor:
        """(voxels of the mask, channels) of one sample (1, channels, ...)."""
        return values[0].permute(1, 2, 3, 0).flatten(0, 2).index_select(0, self._places)


def _residual_unit(stage: UpStage, kernel: Tensor, raised: Tensor, dropped: Tensor | None) -> Tensor:
    values = convolve(raised, kernel, transposed=False).float()
    _normalise(values, dropped)
    return functional.leaky_relu_(values, float(stage.unit.conv.unit0.adn.A.weight)).add_(raised)


def _normalise(values: Tensor, dropped: Tensor | None) -> None:
    """Instance normalisation in place of (samples, channels, ...), times the dropout's factors (samples, channels)."""
    for k, one in enumerate(values.split(1)):
        normalise_(one, None if dropped is None else dropped[k])
