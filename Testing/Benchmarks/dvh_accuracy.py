"""Errors of the DVH engine by grid spacing, beside those of voxels counted as points behind masks of voxel centres.

24 mm shapes in 1 Gy/mm, whose DVHs are known in closed form; the worst over the grids' offsets. The shapes' own error
is not in it: their occupancy is exact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.patient.structure import Structure
from Testing.Benchmarks.framework import Benchmark, Effort, Values
from Testing.shapes import CASES, MIDDLE_GY, Shape

SPACINGS_MM = (0.5, 1.0, 2.0, 3.0)
OFFSETS = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.25, 0.1, 0.4), (0.33, 0.7, 0.15))
VOLUME_RATIOS = np.array([0.02, 0.05, 0.5, 0.95, 0.98])
DOSES_GY = np.linspace(4.5, 27.5, 47)
ERRORS = ("volume_percent", "mean_percent", "dx_percent", "vx_points")


def errors(shape: Shape, found: StructureDose) -> list[float]:
    exact_gy = shape.dose_at_volume_gy(VOLUME_RATIOS)
    exact_ratio = shape.volume_at_dose_ratio(DOSES_GY)
    return [
        100 * abs(found.volume_cc / shape.volume_cc - 1),
        100 * abs(found.mean_gy()[0] / MIDDLE_GY - 1),
        100 * float(np.abs(found.doses_at_volume_gy(VOLUME_RATIOS)[0] / exact_gy - 1).max()),
        100 * float(np.abs(found.volume_at_dose_ratio(DOSES_GY)[0] - exact_ratio).max()),
    ]


def worst_errors(effort: Effort) -> Values:
    """Largest errors of a Dx over shapes and offsets at 3 mm; all the rest among the facts."""
    facts: dict[str, Any] = {}
    middle: dict[str, list[float]] = {"ours": [], "voxel centres": []}
    for case in CASES:
        shape = Shape(case)
        for spacing_mm in SPACINGS_MM[-effort.of(4, 1) :]:
            ours, plain = [], []
            for offset in OFFSETS:
                dose, structure = shape.on_grid(spacing_mm, offset)
                ours.append(errors(shape, structure_dose_of(dose, structure)))
                mask = Structure.from_array(case, structure.mask, structure.grid)
                plain.append(errors(shape, replace(structure_dose_of(dose, mask), half_widths_gy=None)))
            for way, found in (("ours", ours), ("voxel centres", plain)):
                worst = np.max(found, axis=0)
                told = {name: round(float(error), 3) for name, error in zip(ERRORS, worst, strict=True)}
                facts[f"{case} at {spacing_mm:g} mm, {way}"] = told
                if spacing_mm == SPACINGS_MM[-1]:
                    middle[way].append(float(worst[ERRORS.index("dx_percent")]))
    return Values((max(middle["ours"]),), (max(middle["voxel centres"]),), facts)


BENCHMARKS = (
    Benchmark(
        "DVH accuracy",
        "worst error of a Dx of known shapes at 3 mm",
        "the same, voxel centres behind a mask",
        worst_errors,
        unit="% of the dose",
    ),
)
