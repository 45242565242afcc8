"""Instance normalisation on a CPU, where channels come last in memory: in place, and with sums that keep their digits.

torch adds up a channel's voxels one after the other in single precision: over 10^5 of them the doses of the network
that comes with the software were off by up to 0.07 Gy, and by another amount with another number of threads. Here as
many voxels as fill ``TOGETHER`` numbers lie side by side, added up each by themselves and then to one another: doses
are off by 0.001 Gy, and few channels fill the processor's vectors too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-5  # under the root of the variance, as torch's norms have it
TOGETHER = 2048  # numbers side by side, at most


def rows(values: Tensor) -> Tensor:
    """(voxels, channels) of (1, channels, slices, rows, columns): a view where channels come last in memory."""
    return values[0].permute(1, 2, 3, 0).flatten(0, 2)


def together(of_rows: Tensor) -> Tensor:
    """(voxels / n, n channels) of (voxels, channels): a view with n neighbours side by side, a power of two."""
    voxels, width = of_rows.shape
    count = 1
    while 2 * count * width <= TOGETHER and voxels % (2 * count) == 0:
        count *= 2
    return of_rows.view(-1, count * width)


def repeated(of_channels: Tensor, side_by_side: Tensor) -> Tensor:
    """(channels,) as often as ``together`` has them side by side."""
    return of_channels.repeat(side_by_side.shape[1] // len(of_channels))


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """(channels,) mean and variance over (1, channels, slices, rows, columns)."""
    if not _channels_last(values):  # torch adds up what lies together in memory with care
        variance, mean = torch.var_mean(values[0].flatten(1), 1, correction=0)
        return mean, variance
    side_by_side = together(rows(values)).T[None, ..., None]
    mean, variance = torch.batch_norm_update_stats(side_by_side, None, None, 0.0)
    mean, variance = mean.view(-1, values.shape[1]), variance.view(-1, values.shape[1])
    middle = mean.mean(0)
    return middle, (variance + (mean - middle).square()).mean(0)


def mean_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """(channels,) mean, and 1 / standard deviation as norms have it."""
    mean, variance = moments(values)
    return mean, (variance + NORM_EPSILON).rsqrt()


def normalise_(values: Tensor, factors: Tensor | None = None) -> Tensor:
    """To mean 0 and variance 1 in place, times ``factors`` (channels,); returns (channels,) 1 / standard deviation."""
    mean, scale = mean_and_scale(values)
    _apply(values, mean, scale if factors is None else scale * factors, values)
    return scale


class InstanceNorm(nn.Module):
    """Each channel of each sample to mean 0 and variance 1.

    Over one sample it is batch normalisation by the batch's own statistics: torch's instance normalisation copies to
    another layout, and of one sample with channels last its gradients are wrong (torch 2.13).
    """

    def forward(self, values: Tensor) -> Tensor:
        if len(values) != 1:
            return functional.instance_norm(values)
        if values.device.type == "cpu" and values.dtype == torch.float32:
            return _Normalised.apply(values)
        return functional.batch_norm(values, None, None, training=True)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        mean, scale = mean_and_scale(values)
        ctx.save_for_backward(values, mean, scale)
        result = torch.empty_like(values)
        _apply(values, mean, scale, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        values, mean, scale = ctx.saved_tensors
        return torch.ops.aten.native_batch_norm_backward(
            gradient, values, None, None, None, mean, scale, True, NORM_EPSILON, [True, False, False]
        )[0]


def _apply(values: Tensor, mean: Tensor, scale: Tensor, result: Tensor) -> None:
    if _channels_last(values) and _channels_last(result):
        source, target = together(rows(values)), together(rows(result))
        torch.addcmul(repeated(-mean * scale, source), source, repeated(scale, source), out=target)
    else:
        torch.sub(values, mean[:, None, None, None], out=result).mul_(scale[:, None, None, None])


def _channels_last(values: Tensor) -> bool:
    return values[0].permute(1, 2, 3, 0).is_contiguous()
