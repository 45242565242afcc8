"""A training step against the same step done plainly: full 128^3 grid, default memory layout, float32. In one run.

The patient is that of the sampling benchmark. Prints one JSON line; the ratio is what to quote.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from RTDigitalTwinLib.dosimetry.planning import planned
from RTDigitalTwinLib.model.crop import cut
from RTDigitalTwinLib.model.network import CONFIGURATIONS
from RTDigitalTwinLib.model.training import Training, TrainingSettings, masked_l1
from RTDigitalTwinLib.model.training_data import TrainingCase
from RTDigitalTwinLib.model.weights import choose_device
from Testing.Benchmarks.sampling import FULL_SIDE, median_patient

REPEATS = 5


def main() -> None:
    patient = median_patient()
    if patient.plan.dose is None:
        patient = planned(patient)
    case, device = TrainingCase.of(patient), choose_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        training = Training(TrainingSettings(60), Path(folder), device, CONFIGURATIONS["default"])
        ours = [seconds(lambda: training.step(case), device) for _ in range(REPEATS + 1)][1:]
        plain = Training(TrainingSettings(60), Path(folder), device, CONFIGURATIONS["default"])
        network = plain.network.to(memory_format=torch.contiguous_format)
        seen = case.example(network.configuration.channels)
        features, dose, mask = (whole_grid(t).to(device) for t in (seen.channels, seen.dose_gy, seen.mask))
        factors = [f.to(device) for f in network.draw_factors(1, torch.Generator().manual_seed(0))]

        def plain_step() -> None:
            loss = masked_l1(network.decode_unclipped(network.encode(features), factors), dose, mask)
            plain.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            plain.optimiser.step()
            plain._update_average()

        theirs = [seconds(plain_step, device) for _ in range(REPEATS + 1)][1:]
    result = {
        "benchmark": "training step",
        "patient": patient.pseudonym,
        "crop": list(case.ct.shape),
        "device": str(device),
        "precision": str(training.precision).removeprefix("torch."),
        "ours_s": [round(t, 2) for t in ours],
        "plain_s": [round(t, 2) for t in theirs],
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 2),
    }
    print(json.dumps(result))


def whole_grid(values: torch.Tensor) -> torch.Tensor:
    """A crop's tensor (..., slices, rows, columns) padded or cut to the whole grid, in the default layout."""
    flat = values.reshape(-1, *values.shape[-3:]).numpy()
    whole = np.stack([cut(part, (0, 0, 0), FULL_SIDE, part.dtype.type(0)) for part in flat])
    return torch.from_numpy(whole).reshape(*values.shape[:-3], *FULL_SIDE)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
