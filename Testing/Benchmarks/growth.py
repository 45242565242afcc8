"""How prediction grows with samples and voxels, and DVHs with structures; and what memory it takes.

Seconds are the processor's, so that a busy machine does not look like growth.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.dosimetry.dvh import dose_axis_gy
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_doses_of
from RTDigitalTwinLib.model.decoding import CpuDecoder
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.solver.sampling import sample_dose
from Testing.Benchmarks.dvh_goals import SIDE, SPACING_MM, balls, made_up_doses, structure_of
from Testing.Benchmarks.framework import Benchmark, Effort, Values, peak_memory_mib, seconds_of
from Testing.Benchmarks.patients import chosen_patient

SIZES = ((64, 64, 64), (64, 64, 96), (96, 64, 96), (112, 96, 96), (128, 128, 128))
STRUCTURES = (2, 4, 8, 12)
RADIUS_MM = 25.0


def with_samples(effort: Effort) -> Values:
    """Seconds and peak memory, few samples first since a peak never falls."""
    keep_freed_memory()
    patient, surrogate = chosen_patient(), DoseSurrogate.load(device="cpu")
    seconds, rows = {}, []
    surrogate.encoded(patient)
    for samples in (8, 32) if effort.quick else (8, 32, 64, 128, 256):
        seconds[samples] = seconds_of(lambda n=samples: sample_dose(surrogate, patient, n), processor=True)  # type: ignore[misc]
        rows.append(f"{samples} samples {seconds[samples]:.2f} s, peak {peak_memory_mib():.0f} MiB")
    few, many = min(seconds), max(seconds)
    facts: dict[str, Any] = {"patient": patient.pseudonym, "growth": rows}
    return Values((seconds[many] / many,), (seconds[few] / few,), facts)


def with_voxels(effort: Effort) -> Values:
    keep_freed_memory()
    network = DoseSurrogate.load(device="cpu").network
    generator = torch.Generator().manual_seed(0)
    each, rows = {}, []
    for size in SIZES[:2] if effort.quick else SIZES:
        with torch.inference_mode():
            channels = torch.rand(1, len(network.configuration.channels), *size, generator=generator)
            encoded = network.encode(channels.contiguous(memory_format=torch.channels_last_3d))
            decoder = CpuDecoder(network, encoded, torch.ones(size, dtype=torch.bool))
            factors = network.draw_factors(4, generator)
            decoder.doses_gy(factors)
            voxels = size[0] * size[1] * size[2]
            best = min(seconds_of(lambda: decoder.doses_gy(factors), processor=True) for _ in range(3))  # noqa: B023
            each[voxels] = best / 4 / voxels
        rows.append(f"{'x'.join(map(str, size))}: {1e9 * each[voxels]:.0f} ns a voxel and sample")
    return Values((each[max(each)],), (each[min(each)],), {"growth": rows})


def with_structures(effort: Effort) -> Values:
    """Balls of one size, their geometry known, so that each should take as long however many there are."""
    grid = Grid((SIDE,) * 3, (SPACING_MM,) * 3)
    doses = made_up_doses(grid)[: effort.of(32, 8)]
    structures = [structure_of(replace(ball, radius_mm=RADIUS_MM), grid) for ball in balls()]
    axis = dose_axis_gy(75)

    def curves(count: int) -> None:
        for structure in structures[:count]:
            structure_doses_of(doses, structure).volume_at_dose_ratio(axis)

    curves(len(structures))
    each, rows = {}, []
    for count in STRUCTURES:
        best = min(seconds_of(lambda: curves(count), processor=True) for _ in range(3))  # noqa: B023
        each[count] = best / count
        rows.append(f"{count} structures: {1000 * each[count]:.1f} ms each")
    facts = {"samples": len(doses), "cc_each": round(structures[0].volume_cc), "growth": rows}
    return Values((each[STRUCTURES[-1]],), (each[STRUCTURES[0]],), facts)


BENCHMARKS = (
    Benchmark(
        "growth with samples", "a sample of the most", "a sample of the fewest", with_samples,
        unit="processor s a sample",
    ),
    Benchmark(
        "growth with voxels", "a voxel of the largest grid", "a voxel of the smallest grid", with_voxels,
        unit="processor s a voxel",
    ),
    Benchmark(
        "growth with structures", "a structure of twelve", "a structure of two", with_structures,
        unit="processor s a structure",
    ),
)  # fmt: skip
