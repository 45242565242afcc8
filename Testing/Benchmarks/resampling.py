"""Averaging a CT of 512 x 512 pixels onto the network's grid, against SimpleITK's smoothing and resampling."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from RTDigitalTwinLib.patient.averaging import Averaging, aligned_grid
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.volume import to_sitk
from Testing.Benchmarks.framework import Benchmark, Case, Effort

FINE = Grid((100, 512, 512), (0.9765625, 0.9765625, 2.5))
STEP_MM = 3.90625
AIR_HU = -1000.0


def averaging(effort: Effort) -> Case:
    hu = np.random.default_rng(0).integers(-1000, 1000, FINE.shape).astype(np.float32)
    coarse = aligned_grid(FINE, (STEP_MM, STEP_MM, 2.5))
    image, reference = to_sitk(hu, FINE), to_sitk(np.zeros(coarse.shape, np.float32), coarse)
    sigma_mm = STEP_MM / np.sqrt(12)  # of a pixel's box

    def theirs() -> None:
        smooth = sitk.DiscreteGaussian(image, [sigma_mm**2, sigma_mm**2, 0.0])
        sitk.GetArrayFromImage(sitk.Resample(smooth, reference, sitk.Transform(), sitk.sitkLinear, AIR_HU))

    return Case(
        lambda: Averaging(FINE, coarse).values(hu, AIR_HU),
        theirs,
        effort.of(5, 2),
        facts=lambda: {"voxels": FINE.voxel_count, "new_voxels": coarse.voxel_count},
    )


BENCHMARKS = (
    Benchmark(
        "resampling",
        "a CT averaged onto the network's grid (exact box)",
        "SimpleITK: Gaussian of the same width, then linear",
        averaging,
        processor_seconds=True,
    ),
)
