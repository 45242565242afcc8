"""A recalibration step against fine-tuning the whole network on the full grid, in one run, on the same observation.

Ours is one evaluation of the decoder's objective and its gradient, encoder frozen and its activations kept. Theirs is a
step of AdamW on all weights through the full 128^3 grid in the default memory layout, towards the same dose volume.
Times are processor seconds of one thread, so that a busy machine does not show. The patient is that of the sampling
benchmark, or the one that $RTDT_PATIENT names in $RTDT_OPENKBP. Prints one JSON line; the ratio is what to quote. With
it, the seconds a whole Gaussian-process update takes.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from RTDigitalTwinLib.calibration.calibrator import gather
from RTDigitalTwinLib.calibration.decoder import _Objective
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.calibration.trial import Trial
from RTDigitalTwinLib.dosimetry.planning import planned
from RTDigitalTwinLib.model.crop import cut
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.twin import Twin
from Testing.Benchmarks.sampling import FULL_SIDE, full_grid, median_patient

REPEATS = int(os.environ.get("RTDT_REPEATS", "3"))


def chosen_patient() -> Patient:
    name, data = os.environ.get("RTDT_PATIENT"), os.environ.get("RTDT_OPENKBP")
    if name and data:
        return load_patient(Path(data) / name)
    patient = median_patient()
    return planned(patient) if patient.plan.dose is None else patient


def processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    patient = chosen_patient()
    belief = Twin(patient, device="cpu").dose_belief
    drawn = belief.sample(4, 0)  # what a step costs does not depend on their number
    trial = Trial.of(belief, drawn, "shift 5 mm", "volume", 1)  # type: ignore[arg-type]
    evidence = gather(belief, trial.observations, drawn)
    update = processor_seconds(lambda: GaussianProcess().absorb(evidence))
    objective = _Objective(evidence)
    objective.size_prior()
    position = [torch.zeros_like(p) for p in objective.before.values()]
    ours = [processor_seconds(lambda: objective.at(position)) for _ in range(REPEATS + 1)][1:]
    surrogate = evidence.prior.surrogate
    network = copy.deepcopy(surrogate.network).to(memory_format=torch.contiguous_format)
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

    theirs = [processor_seconds(fine_tuning_step) for _ in range(REPEATS + 1)][1:]
    result = {
        "benchmark": "recalibration step",
        "patient": patient.pseudonym,
        "mask_voxels": int(patient.dose_mask.mask.sum()),
        "crop": list(drawn.crop.shape),
        "decoder_step_s": [round(t, 2) for t in ours],
        "fine_tuning_step_s": [round(t, 2) for t in theirs],
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 2),
        "gaussian_process_update_s": round(update, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
