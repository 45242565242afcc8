"""Seconds on a CUDA GPU, absolute. Skipped where there is none."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from RTDigitalTwinLib.loop import LoopSettings, loop_patient
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.run import SAMPLE
from RTDigitalTwinLib.solver.sampling import sample_dose
from Testing.Benchmarks.framework import Benchmark, Case, Effort, Skipped, Values, seconds_of
from Testing.Benchmarks.patients import FULL_SIDE, chosen_patient, full_grid, shared_folder

SAMPLES = 32


def prediction(effort: Effort) -> Case:
    """Features are worked out before: their beams run on the CPU."""
    _require_gpu()
    patient, surrogate = chosen_patient(), DoseSurrogate.load(device="cuda")
    surrogate.features(patient)
    network = surrogate.network
    channels = full_grid(patient, network.configuration.channels).cuda()
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        surrogate._encoded.clear()
        sample_dose(surrogate, patient, SAMPLES)
        torch.cuda.synchronize()

    def plain() -> None:
        with torch.inference_mode():
            for _ in range(SAMPLES):
                network(channels, [f.cuda() for f in network.draw_factors(1, generator)])
        torch.cuda.synchronize()

    return Case(
        ours,
        plain,
        effort.of(9, 3),
        facts=lambda: {
            "gpu": torch.cuda.get_device_name(),
            "grid": "x".join(map(str, FULL_SIDE)),
            "peak_gpu_memory_mib": torch.cuda.max_memory_allocated() // 2**20,
        },
    )


def loop(effort: Effort) -> Values:
    _require_gpu()
    source = shared_folder("pt_201") or SAMPLE
    with tempfile.TemporaryDirectory() as place:
        settings = LoopSettings(device="cuda", views=False)
        seconds = seconds_of(lambda: loop_patient(source, Path(place) / "loop", settings))
    return Values((seconds,), (), {"gpu": torch.cuda.get_device_name()})


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise Skipped("torch finds no CUDA GPU")


BENCHMARKS = (
    Benchmark("GPU, prediction", "32 samples, features known", "32 whole passes on 128^3", prediction),
    Benchmark("GPU, loop", "three fractions, with reading", "-", loop),
)
