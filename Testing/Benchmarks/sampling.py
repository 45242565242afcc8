"""Monte Carlo sampling against the plain way: ``samples`` full 128^3 passes of the same network, in one run.

The patient is the one with the median dose mask among those in $RTDT_OPENKBP (public CSV layout), else the built-in
sample. Prints one JSON line; times are wall-clock seconds, the ratio is what to quote.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from RTDigitalTwinLib.model.crop import Crop, crop_around, cut
from RTDigitalTwinLib.model.features import build_features
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.loading import load_patients, patient_folders
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.sampling import sample_dose

SAMPLES = 32
FULL_SIDE = (128, 128, 128)


def median_patient() -> Patient:
    """The patient to measure on."""
    data = os.environ.get("RTDT_OPENKBP")
    if not data:
        return Patient.sample()
    patients = load_patients(patient_folders(Path(data)))
    return sorted(patients, key=lambda p: p.dose_mask.mask.sum())[len(patients) // 2]


def full_grid(patient: Patient, names: tuple[str, ...]) -> torch.Tensor:
    """Features on the whole grid, as the plain way takes them."""
    crop = Crop((0, 0, 0), cut(patient.dose_mask.mask, (0, 0, 0), FULL_SIDE, False), patient.ct.grid)
    return torch.from_numpy(build_features(patient, names, crop).channels)[None]


def seconds_of(work: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    patient = median_patient()
    surrogate = DoseSurrogate.load(device="cpu")
    network = surrogate.network
    generator = torch.Generator().manual_seed(0)
    sample_dose(surrogate, patient, 1)
    ours = seconds_of(lambda: sample_dose(surrogate, patient, SAMPLES), 3)
    plain = {}
    for name, layout in (("channels-last", torch.channels_last_3d), ("default layout", torch.contiguous_format)):
        network.to(memory_format=layout)
        channels = full_grid(patient, network.configuration.channels).contiguous(memory_format=layout)
        with torch.inference_mode():
            network(channels, network.draw_factors(1, generator))
            times = seconds_of(lambda c=channels: network(c, network.draw_factors(1, generator)), SAMPLES)  # type: ignore[misc]
        plain[name] = times
    crop = crop_around(patient).shape
    result = {
        "benchmark": "sampling",
        "patient": patient.pseudonym,
        "mask_voxels": int(patient.dose_mask.mask.sum()),
        "crop": list(crop),
        "samples": SAMPLES,
        "ours_s": [round(t, 2) for t in ours],
        **{f"plain_{name.replace(' ', '_')}_s": round(sum(times), 2) for name, times in plain.items()},
        **{
            f"ratio_to_plain_{name.replace(' ', '_')}": round(sum(times) / statistics.median(ours), 2)
            for name, times in plain.items()
        },
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
