"""Convolutions whose gradients are worked out in other numbers than they are themselves, on a CPU.

Products of bfloat16 take half the time of those of float32 where the processor has them. A gradient shows where to go
and may be a little off; what is minimised is not, and stays in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def gradient_precision(device: torch.device) -> torch.dtype:
    """bfloat16 on a CPU with products of it, else float32."""
    told = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 does not tell
    return torch.bfloat16 if device.type == "cpu" and told.get("avx512_bf16") else torch.float32


def gradients(
    gradient: Tensor, values: Tensor, kernel: Tensor, precision: torch.dtype, transposed: bool, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Those of ``Convolution`` by values and kernel, as far as ``wanted``, in float32."""
    step = [2 if transposed else 1] * 3
    of_values, of_kernel, _ = torch.ops.aten.convolution_backward(
        *(t.to(precision) for t in (gradient, values, kernel)),
        *(None, step, [1] * 3, [1] * 3, transposed, [1 if transposed else 0] * 3, 1, [*wanted, False]),
    )
    return tuple(None if g is None else g.float() for g in (of_values, of_kernel))  # type: ignore[return-value]


class Convolution(torch.autograd.Function):
    """3 x 3 x 3 with padding 1 and no bias; transposed, it doubles each size."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Tensor, transposed: bool, precision: torch.dtype) -> Tensor:
        ctx.save_for_backward(values, kernel)
        ctx.transposed, ctx.precision = transposed, precision
        if transposed:
            return functional.conv_transpose3d(values, kernel, None, 2, 1, 1)
        return functional.conv3d(values, kernel, None, 1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, kernel = ctx.saved_tensors
        return *gradients(gradient, values, kernel, ctx.precision, ctx.transposed, ctx.needs_input_grad[:2]), None, None
