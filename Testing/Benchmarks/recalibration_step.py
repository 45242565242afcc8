"""A recalibration step against fine-tuning the whole network on the full grid, in one run, on the same observation.

Ours is one evaluation of the decoder's objective and its gradient, encoder frozen and its activations kept. Theirs is a
step of AdamW on all weights through the full 128^3 grid in the default memory layout, towards the same dose volume.
Times are processor seconds of one thread, so that a busy machine does not show. With them, the seconds a whole
Gaussian-process update takes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.calibration.calibrator import gather
from RTDigitalTwinLib.calibration.decoder import _Objective
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.calibration.trial import VOLUME, Trial
from RTDigitalTwinLib.model.crop import cut
from RTDigitalTwinLib.twin import Twin
from Testing.Benchmarks.framework import Benchmark, Case, Effort, seconds_of
from Testing.Benchmarks.patients import FULL_SIDE, chosen_patient, full_grid


def setup(effort: Effort) -> Case:
    torch.set_num_threads(1)
    keep_freed_memory()
    patient = chosen_patient(with_dose=True)
    belief = Twin(patient, device="cpu").dose_belief
    drawn = belief.sample(4, 0)  # what a step costs does not depend on their number
    trial = Trial.of(belief, drawn, "shift 5 mm", VOLUME, 1)  # type: ignore[arg-type]
    evidence = gather(belief, trial.observations, drawn)
    objective = _Objective(evidence)
    objective.size_prior()
    network = copy.deepcopy(evidence.prior.surrogate.network).to(memory_format=torch.contiguous_format)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    channels = full_grid(patient, network.configuration.channels)
    mask = torch.from_numpy(cut(patient.dose_mask.mask, (0, 0, 0), FULL_SIDE, False))
    wanted = torch.from_numpy(cut(trial.truth.values, (0, 0, 0), FULL_SIDE, 0.0))
    optimiser = torch.optim.AdamW(network.parameters(), 1e-5)

    def fine_tuning_step() -> None:
        dose = network(channels)[0]
        loss = (dose[mask] - wanted[mask]).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def facts() -> dict[str, Any]:
        update = seconds_of(lambda: GaussianProcess().absorb(evidence), processor=True)
        return {
            "patient": patient.pseudonym,
            "crop": "x".join(map(str, drawn.crop.shape)),
            "gaussian_process_update_s": round(update, 2),
        }

    return Case(lambda: objective.at(objective.start), fine_tuning_step, effort.of(3, 1), facts=facts)


BENCHMARKS = (
    Benchmark(
        "recalibration step",
        "the decoder's objective and gradient, encoder kept",
        "a step of the whole network on 128^3",
        setup,
        processor_seconds=True,
    ),
)
