"""Processes that train one network together, each on its own device, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from RTDigitalTwinLib.errors import TrainingError


@dataclass(frozen=True)
class Workers:
    """This process among its like.

    Attributes
    ----------
    rank : its number; 0 validates and writes.
    count : how many there are; 1 without torchrun, and then nothing is exchanged.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> tuple[Workers, torch.device]:
        """Meet the others where torchrun started this process; returns also the device of this one.

        Raises TrainingError where there are more processes on this machine than GPUs.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(), device
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise TrainingError(
                    f"There are {torch.cuda.device_count()} GPUs and more processes than that.",
                    remedy="Start torchrun with --nproc-per-node no higher.",
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        # The others wait while process 0 validates.
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
        return cls(distributed.get_rank(), distributed.get_world_size()), device

    @staticmethod
    def part() -> None:
        """Leave the others, where there are any."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()

    def mean(self, values: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.count == 1:
            return
        values = list(values)
        flat = torch.cat([value.flatten() for value in values])
        distributed.all_reduce(flat)
        flat /= self.count
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))

    def agreed(self, number: float, device: torch.device) -> float:
        """The number that process 0 has."""
        if self.count == 1:
            return number
        shared = torch.tensor([number], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)
