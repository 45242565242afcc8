"""DVHs, metrics and goals of 12 structures for 64 samples on a 128^3 grid, against dicompyler-core one by one.

dicompyler-core takes one dose and one structure at a time, as contours. Timing it on all 64 samples would take long and
tell no more, so it is timed on one and taken to cost the same for each. Its own reader of DICOM is not used: the dose
is handed over in memory. Goals are counted on our side only. Against plain numpy as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, dose_axis_gy
from RTDigitalTwinLib.dosimetry.goals import Criterion, Goal, GoalSet, evaluate_goals
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_doses_of
from RTDigitalTwinLib.dosimetry.metric_samples import MetricSamples
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from Testing.Benchmarks.framework import Benchmark, Case, Effort, Skipped

SIDE, SPACING_MM = 128, 3.0
SAMPLES, STRUCTURES, THEIR_SAMPLES = 64, 12, 4
METRICS = tuple(DvhMetric.parse(text) for text in ("D95", "D50", "D2", "D0.1cc", "V20", "V50", "mean", "min", "max"))
THEIR_STATISTICS = ("D95", "D50", "D2", "D0.1cc", "V20Gy", "V50Gy")


@dataclass(frozen=True)
class Ball:
    name: str
    radius_mm: float
    centre_mm: tuple[float, float, float]  # slice, row, column


def balls() -> list[Ball]:
    rng = np.random.default_rng(0)
    centres = rng.uniform(130, 250, (STRUCTURES, 3)).tolist()
    return [Ball(f"ball {k}", 6 + 31 * k / (STRUCTURES - 1), tuple(c)) for k, c in enumerate(centres)]


def made_up_doses(grid: Grid) -> list[Volume]:
    """A smooth bell, rippled another way in each sample."""
    axis = np.arange(SIDE) * SPACING_MM
    bell = np.exp(-(((axis - 190) / 60) ** 2)).astype(np.float32)
    base = 70 * bell[:, None, None] * bell[None, :, None] * bell[None, None, :]
    phases = np.random.default_rng(1).uniform(0, 6, SAMPLES)
    ripples = [(1 + 0.03 * np.sin(axis / 25 + phase)).astype(np.float32) for phase in phases]
    return [Volume(base * ripple[:, None, None], grid, Quantity.DOSE_GY) for ripple in ripples]


def structure_of(ball: Ball, grid: Grid) -> Structure:
    """Occupancy from 4 places along each edge of a voxel."""
    parts = 4
    lines, box = [], []
    for centre in ball.centre_mm:
        first = int((centre - ball.radius_mm) // SPACING_MM) - 1
        last = int((centre + ball.radius_mm) // SPACING_MM) + 2
        places = (np.arange((last - first) * parts) + 0.5) / parts - 0.5 + first
        lines.append((places * SPACING_MM - centre) ** 2)
        box.append(slice(first, last))
    inside = lines[0][:, None, None] + lines[1][None, :, None] + lines[2][None, None, :] <= ball.radius_mm**2
    a, b, c = (len(line) // parts for line in lines)
    occupancy = inside.reshape(a, parts, b, parts, c, parts).mean(axis=(1, 3, 5)).astype(np.float32)
    return Structure(ball.name, grid, (box[0], box[1], box[2]), occupancy)


def goals_of(structures: list[Structure]) -> GoalSet:
    d95, mean = METRICS[0], METRICS[6]
    goals = [Goal(s.name, 1, (Criterion((s.name,), metric, True, 30.0),)) for s in structures for metric in (d95, mean)]
    return GoalSet("benchmark", "", "", tuple(goals))


def ours(doses: list[Volume], structures: list[Structure]) -> dict[str, float]:
    """Curves, metrics and goals of everything; returns the first sample's mean of each structure."""
    axis, found = dose_axis_gy(75), {}
    for structure in structures:
        inside = structure_doses_of(doses, structure)
        inside.volume_at_dose_ratio(axis)
        found[structure.name] = {metric: inside.metric(metric) for metric in METRICS}
    results = evaluate_goals(
        goals_of(structures), list(found), lambda n, m: MetricSamples(float(found[n][m].mean()), found[n][m], True)
    )
    assert len(results) == 2 * len(structures)
    return {name: float(values[METRICS[6]][0]) for name, values in found.items()}


class DoseInMemory:
    """What dicompyler-core asks of a dose."""

    def __init__(self, dose: Volume) -> None:
        self.pixel_array = np.round(dose.values * 1000).astype(np.uint32)
        self.lut = (np.arange(SIDE) * SPACING_MM, np.arange(SIDE) * SPACING_MM)

    def GetDoseData(self) -> dict[str, Any]:  # noqa: N802
        return {
            "lut": self.lut, "rows": SIDE, "columns": SIDE, "dosegridscaling": 0.001, "x_lut_index": 0,
            "dosemax": float(self.pixel_array.max()),
        }  # fmt: skip

    def GetImageData(self) -> dict[str, Any]:  # noqa: N802
        return {"position": (0.0, 0.0, 0.0), "pixelspacing": (SPACING_MM, SPACING_MM)}

    def GetDoseGrid(self, z: str | float) -> NDArray:  # noqa: N802
        return self.pixel_array[round(float(z) / SPACING_MM)]


def contours_of(ball: Ball) -> dict[str, Any]:
    """The ball as dicompyler-core takes a structure."""
    angles = np.linspace(0, 2 * np.pi, 73)[:-1]
    slice_mm, row_mm, column_mm = ball.centre_mm
    planes = {}
    for index in range(SIDE):
        z = index * SPACING_MM
        if abs(z - slice_mm) < ball.radius_mm:
            r = (ball.radius_mm**2 - (z - slice_mm) ** 2) ** 0.5
            points = [[column_mm + r * np.cos(t), row_mm + r * np.sin(t), z] for t in angles]
            planes[f"{z:.2f}"] = [{"data": points}]
    return {"id": 1, "name": ball.name, "planes": planes, "thickness": SPACING_MM}


def theirs(dose: Volume, structures: list[dict[str, Any]]) -> dict[str, float]:
    """One sample, one structure after the other; returns the means."""
    from dicompylercore import dvhcalc
    from dicompylercore.dvh import DVH

    held, means = DoseInMemory(dose), {}
    for structure in structures:
        counts = dvhcalc._calculate_dvh(structure, held).histogram
        curve = DVH(counts=counts, bins=np.arange(counts.size + 1) / 100, dvh_type="differential", dose_units="Gy")
        for statistic in THEIR_STATISTICS:
            curve.statistic(statistic)
        means[structure["name"]] = float(curve.mean)
        _ = curve.min, curve.max
    return means


def setup(effort: Effort) -> Case:
    try:
        import dicompylercore  # noqa: F401
    except ImportError:
        raise Skipped("dicompyler-core is not installed (pip install dicompyler-core)") from None
    keep_freed_memory()
    grid, shapes = Grid((SIDE,) * 3, (SPACING_MM,) * 3), balls()
    doses = made_up_doses(grid)
    structures, contours = [structure_of(b, grid) for b in shapes], [contours_of(b) for b in shapes]

    def apart() -> dict[str, Any]:
        mine, other = ours(doses[:1], structures), theirs(doses[0], contours)
        return {
            "structures": STRUCTURES,
            "samples": SAMPLES,
            "dicompyler_core_samples_timed": 1,
            "largest_difference_of_means_gy": round(max(abs(mine[n] - other[n]) for n in mine), 3),
        }

    return Case(
        lambda: ours(doses, structures),
        lambda: theirs(doses[0], contours),
        effort.of(3, 1),
        SAMPLES,
        warm_plain=not effort.quick,
        facts=apart,
    )


def naive(effort: Effort) -> Case:
    """numpy, one sample and structure after the other: voxels behind a mask, sorted; no part of a voxel counts."""
    keep_freed_memory()
    grid = Grid((SIDE,) * 3, (SPACING_MM,) * 3)
    doses, structures = made_up_doses(grid), [structure_of(b, grid) for b in balls()]
    axis = dose_axis_gy(75)
    masks = [structure.mask for structure in structures]

    def plainly() -> None:
        for dose in doses[:THEIR_SAMPLES]:
            for mask in masks:
                inside = np.sort(dose.values[mask])
                1 - np.searchsorted(inside, axis) / inside.size
                np.quantile(inside, (0.02, 0.05, 0.5)), inside.mean(), inside.min(), inside.max()
                (inside > 20).mean(), (inside > 50).mean()

    return Case(lambda: ours(doses, structures), plainly, effort.of(3, 1), SAMPLES / THEIR_SAMPLES)


BENCHMARKS = (
    Benchmark(
        "DVHs and goals, dicompyler-core",
        f"{STRUCTURES} structures, {SAMPLES} samples, goals too",
        "dicompyler-core, one by one",
        setup,
    ),
    Benchmark(
        "DVHs and goals, numpy",
        f"{STRUCTURES} structures, {SAMPLES} samples, goals and parts of voxels too",
        "numpy on masks, one by one",
        naive,
    ),
)
