"""The decoder's last stage on a CPU: eight channels on the full field, in forms that suit the processor.

Eight channels fill half a vector. Where channels come last in memory, two neighbours along the last axis are sixteen
channels of a field of half the length, without a copy: a convolution of three becomes one of four by steps of two, a
third more arithmetic in less time. Where gradients go through norms and activations they go through the field in parts
that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from RTDigitalTwinLib.model.convolution import Products, gradients
from RTDigitalTwinLib.model.norm import mean_and_scale, normalise_, repeated, rows, together

PART = 30720  # numbers: so few that torch shares no such loop among threads, which wait for each other
CLAMPED_FROM = 0.5  # slopes above this are too near 1 to tell the two sides of 0 apart by a difference


def convolved(values: Tensor, kernel: Tensor) -> Tensor:
    """A convolution (3 x 3 x 3, padding 1, no bias) of (1, channels, ...), channels last and the last size even."""
    return _pairs_apart(functional.conv3d(values, _paired(kernel), None, (1, 1, 2), 1))


def raised(below: Tensor, kernel: Tensor) -> Tensor:
    """The transposed convolution (3 x 3 x 3, doubling each size, no bias) of (1, channels, ...), channels last."""
    width = kernel.shape[1]
    pairs = kernel.new_zeros(len(kernel), 2 * width, 3, 3, 2)
    pairs[:, :width, ..., 1] = kernel[..., 1]
    pairs[:, width:, ..., 0], pairs[:, width:, ..., 1] = kernel[..., 0], kernel[..., 2]
    pairs = pairs.contiguous(memory_format=torch.channels_last_3d)
    return _pairs_apart(functional.conv_transpose3d(_with_zeros_behind(below), pairs, None, (2, 2, 1), 1, (1, 1, 0)))


def spread(of_rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``rows``."""
    return of_rows.view(*shape[2:], shape[1]).permute(3, 0, 1, 2)[None]


class LastStage(torch.autograd.Function):
    """From the field below to (voxels, channels) behind the last residual unit at some places.

    Takes the field below (1, channels, ...), the kernels of the up-sampling and of the unit, the slopes of their two
    activations, the skip connection's share, the places as flat indices, each once, and the products of its
    convolutions. Biases in front of norms do nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        below: Tensor,
        up: Tensor,
        up_slope: Tensor,
        unit: Tensor,
        slope: Tensor,
        share: Tensor,
        places: Tensor,
        products: Products,
    ) -> Tensor:
        ctx.precision = products.gradients
        normal = raised(below.to(products.values), up.to(products.values)).float().add_(share)
        up_scale = normalise_(normal)
        values = functional.leaky_relu(normal, float(up_slope))
        found = convolved(values.to(products.values), unit.to(products.values)).float()
        mean, scale = mean_and_scale(found)
        inside = rows(found).index_select(0, places).sub_(mean).mul_(scale)
        ctx.save_for_backward(
            below, up, up_slope, unit, slope, places, normal, up_scale, values, found, mean, scale, inside
        )
        return functional.leaky_relu(inside, float(slope)).add_(rows(values).index_select(0, places))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        below, up, up_slope, unit, slope, places, normal, up_scale, values, found, mean, scale, inside = (
            ctx.saved_tensors
        )
        of_slope = torch.dot(gradient.flatten(), inside.clamp(max=0).flatten())
        beside = torch.ops.aten.leaky_relu_backward(gradient, inside, float(slope), False)
        # scale * (g - mean(g) - n * mean(g n)), with g 0 at other places and n = (found - mean) * scale everywhere.
        voxels = found[0, 0].numel()
        tilt = -scale.square() * ((beside * inside).sum(0) / voxels)
        level = -scale * beside.sum(0) / voxels - tilt * mean
        of_found = torch.empty_like(found, dtype=ctx.precision)
        source, target = together(rows(found)), together(rows(of_found))
        level, tilt = repeated(level, source), repeated(tilt, source)
        for part in _parts(source):
            target[part].copy_(torch.addcmul(level, source[part], tilt))
        _add_at(rows(of_found), places, beside.mul_(scale).to(ctx.precision))
        of_unit = _of_kernel(of_found, values.to(ctx.precision), unit).float()
        of_values = convolved(of_found, unit.transpose(0, 1).flip(2, 3, 4).to(ctx.precision))
        _add_at(rows(of_values), places, gradient.to(ctx.precision))
        of_up_slope = _through_norm(rows(of_values), rows(normal), float(up_slope), up_scale)
        of_below, of_up = gradients(of_values, below, up, ctx.precision, True, ctx.needs_input_grad[:2])
        return of_below, of_up, of_up_slope.view_as(up_slope), of_unit, of_slope.view_as(slope), None, None, None


def _through_norm(gradient: Tensor, normal: Tensor, slope: float, scale: Tensor) -> Tensor:
    """Turns (voxels, channels) of a gradient behind norm and activation into that in front of them, in place.

    ``normal`` are values between the two, ``scale`` is one over the standard deviation. Returns the slope's gradient.
    """
    voxels = len(gradient)
    gradient, normal = together(gradient), together(normal)
    sums, along = torch.zeros(2, gradient.shape[1])
    by_slope = torch.zeros(())
    for part in _parts(gradient):
        here, n = gradient[part].float(), normal[part]
        by_slope += (here * (n if slope < CLAMPED_FROM else n.clamp(max=0))).sum()
        torch.ops.aten.leaky_relu_backward(here, n, slope, False, grad_input=here)
        gradient[part].copy_(here)
        sums += here.sum(0)
        along += here.mul(n).sum(0)
    sums, along = (of_all.view(-1, len(scale)).sum(0) for of_all in (sums, along))
    if slope < CLAMPED_FROM:  # below 0 the product with n has shrunk by the slope, above it has not
        by_slope = (by_slope - along.sum()) / (1 - slope)
    level, tilt, scale = (
        repeated(of_all, gradient) for of_all in (sums * (-scale / voxels), along * (-scale / voxels), scale)
    )
    for part in _parts(gradient):
        gradient[part].copy_(torch.addcmul(level, gradient[part].float(), scale).addcmul_(normal[part], tilt))
    return by_slope


def _add_at(of_rows: Tensor, places: Tensor, more: Tensor) -> None:
    """Add to rows at places, each once: a fifth of what ``index_add_`` takes, which allows for repeated ones."""
    of_rows.index_copy_(0, places, of_rows.index_select(0, places).add_(more))


def _parts(of_rows: Tensor) -> Iterator[slice]:
    length = PART // of_rows.shape[1]
    return (slice(first, first + length) for first in range(0, len(of_rows), length))


def _paired(kernel: Tensor) -> Tensor:
    width = len(kernel)
    pairs = kernel.new_zeros(2 * width, kernel.shape[1], 3, 3, 4)
    pairs[:width, ..., :3], pairs[width:, ..., 1:] = kernel, kernel
    return pairs.contiguous(memory_format=torch.channels_last_3d)


def _of_kernel(gradient: Tensor, values: Tensor, kernel: Tensor) -> Tensor:
    """The gradient of ``convolved`` by its kernel."""
    width = len(kernel)
    pairs = torch.ops.aten.convolution_backward(
        *(_pairs_together(gradient), values, _paired(kernel.to(values.dtype)), None),
        *([1, 1, 2], [1] * 3, [1] * 3, False, [0] * 3, 1, [False, True, False]),
    )[1]
    return pairs[:width, ..., :3] + pairs[width:, ..., 1:]


def _pairs_apart(values: Tensor) -> Tensor:
    last = values.permute(0, 2, 3, 4, 1)
    samples, slices, rows_, columns, width = last.shape
    return last.reshape(samples, slices, rows_, 2 * columns, width // 2).permute(0, 4, 1, 2, 3)


def _pairs_together(values: Tensor) -> Tensor:
    last = values.permute(0, 2, 3, 4, 1)
    samples, slices, rows_, columns, width = last.shape
    return last.reshape(samples, slices, rows_, columns // 2, 2 * width).permute(0, 4, 1, 2, 3)


def _with_zeros_behind(values: Tensor) -> Tensor:
    return functional.pad(values, (0, 1)).contiguous(memory_format=torch.channels_last_3d)
