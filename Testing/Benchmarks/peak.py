"""The most arithmetic and memory traffic that this machine is seen to do: what a line's FLOP/s are held against."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.versions import machine as described_machine
from Testing.Benchmarks.framework import Work, flops_of, seconds_of

REPEATS = 5


def machine() -> dict[str, Any]:
    """Processor, threads, and measured peaks: the better of a large product and a large convolution, and of a copy."""
    keep_freed_memory()
    found = peak_rates()
    with torch.inference_mode():
        many, there = torch.rand(2**25), torch.empty(2**25)
        copied = min(seconds_of(lambda: there.copy_(many)) for _ in range(REPEATS))
    told = {k: v for k, v in described_machine().items() if k in ("processor", "instructions", "threads", "system")}
    return {
        **told, **{name: round(rate, 1) for name, rate in found.items()},
        "measured_peak_gflop_per_s": round(max(found.values()), 1),
        "copy_gb_per_s": round(2 * 4 * many.numel() / copied / 1e9, 1),
    }  # fmt: skip


def peak_rates(processor: bool = False) -> dict[str, float]:
    """GFLOP a second of the clock, or of the processor, of a large product and a large convolution."""
    with torch.inference_mode():
        product = torch.rand(2048, 2048)
        last = torch.channels_last_3d
        values = torch.rand(1, 128, 32, 32, 64).contiguous(memory_format=last)
        weights = torch.rand(128, 128, 3, 3, 3).contiguous(memory_format=last)
        return {
            "matmul_gflop_per_s": _best(lambda: product @ product, processor),
            "conv_gflop_per_s": _best(lambda: functional.conv3d(values, weights, padding=1), processor),
        }


def _best(work: Work, processor: bool) -> float:
    flops = flops_of(work)
    return flops / min(seconds_of(work, processor) for _ in range(REPEATS)) / 1e9
