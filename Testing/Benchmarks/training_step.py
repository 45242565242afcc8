"""A training step against the same step done plainly: full 128^3 grid, default memory layout, float32. In one run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.model.crop import cut
from RTDigitalTwinLib.model.network import CONFIGURATIONS
from RTDigitalTwinLib.model.training import Training, TrainingSettings, masked_l1
from RTDigitalTwinLib.model.training_data import TrainingCase
from RTDigitalTwinLib.model.weights import choose_device
from Testing.Benchmarks.framework import Benchmark, Case, Effort
from Testing.Benchmarks.patients import FULL_SIDE, chosen_patient


def setup(effort: Effort) -> Case:
    keep_freed_memory()
    patient = chosen_patient(with_dose=True)
    case, device = TrainingCase.of(patient), choose_device("auto")
    folder = Path(tempfile.gettempdir())  # nothing is written
    training, plain = (Training(TrainingSettings(60), folder, device, CONFIGURATIONS["default"]) for _ in range(2))
    network = plain.network.to(memory_format=torch.contiguous_format)
    seen = case.example(network.configuration.channels)
    features, dose, mask = (whole_grid(t).to(device) for t in (seen.channels, seen.dose_gy, seen.mask))
    factors = [f.to(device) for f in network.draw_factors(1, torch.Generator().manual_seed(0))]

    def step() -> None:
        training.step(case)
        _wait(device)

    def plain_step() -> None:
        loss = masked_l1(network.decode_unclipped(network.encode(features), factors), dose, mask)
        plain.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        plain.optimiser.step()
        plain._update_average()
        _wait(device)

    return Case(
        step,
        plain_step,
        effort.of(4, 1),
        facts=lambda: {
            "patient": patient.pseudonym,
            "crop": "x".join(map(str, case.ct.shape)),
            "device": str(device),
            "precision": str(training.precision).removeprefix("torch."),
        },
    )


def whole_grid(values: torch.Tensor) -> torch.Tensor:
    """A crop's tensor (..., slices, rows, columns) padded or cut to the whole grid, in the default layout."""
    flat = values.reshape(-1, *values.shape[-3:]).numpy()
    whole = np.stack([cut(part, (0, 0, 0), FULL_SIDE, part.dtype.type(0)) for part in flat])
    return torch.from_numpy(whole).reshape(*values.shape[:-3], *FULL_SIDE)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


BENCHMARKS = (Benchmark("training step", "a step on the crop", "the same on 128^3, default layout", setup),)
