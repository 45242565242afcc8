"""Seconds on a CUDA GPU, absolute. Skipped where there is none; ``prediction_on`` runs on a CPU too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from RTDigitalTwinLib.loop import LoopSettings, loop_patient
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.run import SAMPLE
from RTDigitalTwinLib.solver.sampling import sample_dose
from Testing.Benchmarks.framework import Benchmark, Case, Effort, Skipped, Spent, Values, spent_by
from Testing.Benchmarks.patients import FULL_SIDE, chosen_patient, full_grid, shared_folder

SAMPLES = 32
PREDICTION_TARGET_S, LOOP_TARGET_S = 0.10, 1.0  # on a GPU of the H100's class


def prediction(effort: Effort) -> Case:
    _require_gpu()
    return prediction_on("cuda", effort)


def prediction_on(device: str, effort: Effort, samples: int = SAMPLES) -> Case:
    """Features are worked out before: their beams run on the CPU.

    Plain passes may round products to TF32, as torch does by default; ours are full float32 and deterministic.
    """
    patient, surrogate = chosen_patient(), DoseSurrogate.load(device=device)
    surrogate.features(patient)
    network = surrogate.network
    channels = full_grid(patient, network.configuration.channels).to(device)
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        surrogate.forget()
        sample_dose(surrogate, patient, samples)
        _wait(surrogate.device)

    def plain() -> None:
        with torch.inference_mode():
            for _ in range(samples):
                network(channels, [f.to(device) for f in network.draw_factors(1, generator)])
        _wait(surrogate.device)

    def facts() -> dict[str, Any]:
        return {
            "patient": patient.pseudonym,
            "crop": "x".join(map(str, surrogate.features(patient).crop.shape)),
            "grid_of_the_passes": "x".join(map(str, FULL_SIDE)),
            "target_seconds": PREDICTION_TARGET_S,
            **_memory_of(surrogate.device, ours),
        }

    return Case(ours, plain, effort.of(9, 3), facts=facts)


def loop(effort: Effort) -> Values:
    """The second loop of a process: in the first, CUDA starts and its libraries choose how to convolve."""
    _require_gpu()
    source = shared_folder("pt_201") or SAMPLE

    def once() -> Spent:
        with tempfile.TemporaryDirectory() as place:
            settings = LoopSettings(device="cuda", views=False)
            return spent_by(lambda: loop_patient(source, Path(place) / "loop", settings))

    first, *later = [once() for _ in range(1 + effort.of(3, 1))]
    facts = {"seconds_of_the_first": round(first.seconds, 2), "target_seconds": LOOP_TARGET_S}
    return Values.of_seconds(later, (), facts | _name_of(torch.device("cuda")))


def _require_gpu() -> None:
    if not torch.cuda.is_available():
        raise Skipped("torch finds no CUDA GPU")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name_of(device: torch.device) -> dict[str, Any]:
    return {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}


def _memory_of(device: torch.device, work: Callable[[], None]) -> dict[str, Any]:
    """The device, and the most of its memory that is in use while it works: the plain way's is not in it."""
    if device.type != "cuda":
        return _name_of(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return _name_of(device) | {"peak_gpu_memory_mib": torch.cuda.max_memory_allocated(device) // 2**20}


BENCHMARKS = (
    Benchmark("GPU, prediction", "32 samples, features known", "32 whole passes on 128^3", prediction),
    Benchmark("GPU, loop", "three fractions, with reading, of a warm process", "-", loop),
)
