"""Decoding one patient at the voxels of its mask, differentiable by the decoder's weights, for recalibration.

As ``DoseUNet.decode_unclipped`` without dropout. The bottleneck is worked out once; behind the last convolution only
the mask's voxels go on, and their gradient alone comes back. The field's axes are turned so that the longer come first:
torch judges by the first ones whether one sample is large enough for the convolution library's fast ways.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from RTDigitalTwinLib.model.convolution import SINGLE, Convolution, Products
from RTDigitalTwinLib.model.features import PRESCRIPTION_SCALE_GY
from RTDigitalTwinLib.model.last_stage import LastStage, spread
from RTDigitalTwinLib.model.network import DoseUNet, Encoded, UpStage
from RTDigitalTwinLib.model.norm import mean_and_scale, rows


class DecoderAlone:
    """From what the bottleneck gives to the dose at some voxels, by weights of its own, at first a network's.

    Attributes
    ----------
    weights : of the way up, by their names in the network, with the axes of convolutions turned; those of the
        convolutions, slopes of activations, and the last bias: other biases do nothing in front of a norm. To be
        changed in place. The share of the skip connections, which the encoding used, gets no gradient.
    """

    def __init__(self, network: DoseUNet, encoded: Encoded, places: Tensor, products: Products = SINGLE) -> None:
        """``places`` are flat indices of the wanted voxels in the field (slices, rows, columns), each once.

        ``products`` are those of the convolutions on a CPU; all else is float32.
        """
        self._products = products
        self._network: DoseUNet = copy.deepcopy(network).requires_grad_(False)
        # Cloned outside inference mode, so that gradients may pass beside them.
        with torch.no_grad():
            deepest = network.bottleneck(encoded.deepest.clone())
        sizes = deepest.shape[2:]
        self._order = sorted(range(len(sizes)), key=lambda axis: -sizes[axis])
        self._deepest = self.turned(deepest)
        self._skips = [self.turned(skip).clone() for skip in encoded.skips]
        shape = encoded.skips[-1].shape[2:]
        index = np.unravel_index(places.cpu().numpy(), shape)
        turned = np.ravel_multi_index([index[axis] for axis in self._order], [shape[axis] for axis in self._order])
        self._places = torch.from_numpy(turned).to(places.device)
        self._baseline = None if encoded.baseline is None else encoded.baseline.flatten()[places].clone()
        self.weights = decoder_weights(self._network)
        for weight in self.weights.values():
            weight.data = self.turned(weight.data)

    def turned(self, values: Tensor) -> Tensor:
        """A field or kernel (., ., slices, rows, columns) with its axes turned; all else as it is."""
        return self._permuted(values, [2 + axis for axis in self._order])

    def turned_back(self, values: Tensor) -> Tensor:
        """The inverse of ``turned``."""
        return self._permuted(values, [2 + self._order.index(axis) for axis in range(len(self._order))])

    @staticmethod
    def _permuted(values: Tensor, axes: list[int]) -> Tensor:
        if values.ndim != 2 + len(axes):
            return values
        return values.permute(0, 1, *axes).contiguous(memory_format=torch.channels_last_3d)

    def _stage(self, stage: UpStage, skip: Tensor, values: Tensor) -> Tensor:
        if self._products == SINGLE:
            return stage(skip, values)
        raised = stage.up.adn(Convolution.apply(values, stage.weight_of_below(), True, self._products).add_(skip))
        block = stage.unit.conv.unit0
        return block.adn(Convolution.apply(raised, block.conv.weight, False, self._products)).add_(raised)

    def dose_unclipped(self) -> Tensor:
        """Gy (voxels,), which may be negative."""
        values = self._deepest
        *stages, last = self._network.decoder
        *skips, last_skip = self._skips
        for stage, skip in zip(stages, skips, strict=True):
            values = self._stage(stage, skip, values)
        block = last.unit.conv.unit0
        if hasattr(block, "adn") and values.device.type == "cpu":
            weights = last.weight_of_below(), last.up.adn.A.weight, block.conv.weight, block.adn.A.weight
            inside = LastStage.apply(values, *weights, last_skip, self._places, self._products)
        else:
            raised = last.up.adn(last_skip + last.of_below(values))
            if hasattr(block, "adn"):
                inside = block.adn.A(_NormalisedAt.apply(block.conv(raised), self._places))
            else:
                inside = _At.apply(block.conv(raised), self._places)
            inside = inside + _At.apply(raised, self._places)
        if self._network.configuration.fine_width:
            dose = torch.addmv(self._network.last.bias, inside, self._network.last.weight.flatten())
        else:
            dose = inside[:, 0]
        if self._baseline is not None:
            dose = dose + self._baseline
        return dose * PRESCRIPTION_SCALE_GY


def decoder_weights(network: DoseUNet) -> dict[str, torch.nn.Parameter]:
    """See ``DecoderAlone.weights``; as they are in the network."""
    if network.configuration.fine_width:
        behind = network.last.bias
    else:
        behind = network.decoder[-1].unit.conv.unit0.conv.bias
    return {
        name: weight
        for name, weight in network.named_parameters()
        if name.split(".")[0] in ("decoder", "last") and (weight is behind or not name.endswith("bias"))
    }


class _At(torch.autograd.Function):
    """(voxels, channels) at some places of (1, channels, slices, rows, columns)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = values.shape
        return rows(values).index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.shape[2:].numel(), gradient.shape[1])
        whole[places] = gradient
        return spread(whole, ctx.shape), None


class _NormalisedAt(torch.autograd.Function):
    """Instance normalisation by the whole field of one sample, at some of its places."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        mean, scale = mean_and_scale(values)
        normalised = (rows(values).index_select(0, places) - mean) * scale
        ctx.save_for_backward(values, places, mean, scale, normalised)
        return normalised

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, places, mean, scale, normalised = ctx.saved_tensors
        voxels = values[0, 0].numel()
        # scale * (g - mean(g) - n * mean(g n)), with g 0 at other places and n = (values - mean) * scale everywhere.
        along = (gradient * normalised).sum(0) / voxels
        slope = -scale.square() * along
        whole = torch.addcmul(-scale * gradient.sum(0) / voxels - slope * mean, rows(values), slope)
        whole.index_add_(0, places, gradient * scale)
        return spread(whole, values.shape), None
