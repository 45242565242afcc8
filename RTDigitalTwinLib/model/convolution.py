"""The decoder's convolutions, or their gradients alone, in half precision (bfloat16) on a CPU that has products of it.

They take half the time of those in float32, or less. A gradient shows where to go and may be a little off; what is
minimised stays in float32 unless half precision is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PRECISIONS = {"single": torch.float32, "half": torch.bfloat16}  # of convolutions; all else is single

# oneDNN's bfloat16 weight gradient of a convolution over two slices holds memory that was never written.
LEAST_SIZE_IN_HALF = 4


def multiplies_in_half(device: torch.device) -> bool:
    """Whether it is a CPU with products of bfloat16."""
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not every torch tells
    return device.type == "cpu" and bool(told.get("avx512_bf16"))


@dataclass(frozen=True)
class Products:
    """The numbers in which a fit's convolutions multiply: those of the values, and those of their gradients."""

    values: torch.dtype = torch.float32
    gradients: torch.dtype = torch.float32

    @classmethod
    def fit_for(cls, device: torch.device, precision: str = "single") -> Products:
        """Values as asked for; gradients in the faster one of those that do for them."""
        return cls(PRECISIONS[precision], torch.bfloat16 if multiplies_in_half(device) else torch.float32)


SINGLE = Products()


def convolve(values: Tensor, kernel: Tensor, transposed: bool) -> Tensor:
    """3 x 3 x 3 with padding 1 and no bias, in the kernel's precision; transposed, it doubles each size."""
    values = values.to(kernel.dtype)
    if transposed:
        return functional.conv_transpose3d(values, kernel, None, 2, 1, 1)
    return functional.conv3d(values, kernel, None, 1, 1)


def gradients(
    gradient: Tensor, values: Tensor, kernel: Tensor, precision: torch.dtype, transposed: bool, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Those of ``convolve`` by values and kernel, as far as ``wanted``, in float32; ``precision`` is the products'."""
    if min(values.shape[2:]) < LEAST_SIZE_IN_HALF:
        precision = torch.float32
    step = [2 if transposed else 1] * 3
    of_values, of_kernel, _ = torch.ops.aten.convolution_backward(
        *(t.to(precision) for t in (gradient, values, kernel)),
        *(None, step, [1] * 3, [1] * 3, transposed, [1 if transposed else 0] * 3, 1, [*wanted, False]),
    )
    return tuple(None if g is None else g.float() for g in (of_values, of_kernel))  # type: ignore[return-value]


class Convolution(torch.autograd.Function):
    """``convolve`` in float32 with products of a precision of their own, and others for the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, kernel: Tensor, transposed: bool, products: Products) -> Tensor:
        ctx.save_for_backward(values, kernel)
        ctx.transposed, ctx.precision = transposed, products.gradients
        return convolve(values, kernel.to(products.values), transposed).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, kernel = ctx.saved_tensors
        return *gradients(gradient, values, kernel, ctx.precision, ctx.transposed, ctx.needs_input_grad[:2]), None, None
