"""The dose network's small layers, in forms that keep channels-last memory and cost little beside its convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelDropout(nn.Module):
    """Multiplies whole channels by given factors (0, or 1/(1 - p)); the identity where none are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.factors: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        if self.factors is None:
            return values
        return values * self.factors.to(values.dtype)[:, :, None, None, None]


class SharedPReLU(nn.PReLU):
    """PReLU with one slope for all channels; on a CPU its gradient takes a sixth of the time of torch's."""

    def forward(self, values: Tensor) -> Tensor:
        if values.device.type == "cpu":
            return _SharedPReLU.apply(values, self.weight)
        return super().forward(values)


class _SharedPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(values, slope)
        return functional.leaky_relu(values, float(slope))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        values, slope = ctx.saved_tensors
        of_values = torch.ops.aten.leaky_relu_backward(gradient, values, float(slope), False)
        if not ctx.needs_input_grad[1]:
            return of_values, None
        below = values.clamp(max=0)
        if gradient.dtype == below.dtype == slope.dtype:
            of_slope = torch.dot(_flat(gradient), _flat(below))
        else:  # in half precision a product's sum would be as coarse
            of_slope = (gradient * below).sum(dtype=slope.dtype)
        of_slope = of_slope.reshape(slope.shape)
        return of_values, of_slope


def _flat(values: Tensor) -> Tensor:
    """All of (samples, channels, ...) with channels last: a view where they are so in memory."""
    return values.movedim(1, -1).reshape(-1)
