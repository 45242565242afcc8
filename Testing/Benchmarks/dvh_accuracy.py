"""Errors of the DVH engine by grid spacing, beside those of voxels counted as points behind masks of voxel centres.

24 mm shapes in 1 Gy/mm, whose DVHs are known in closed form; the worst over the grids' offsets. Prints one JSON line a
shape and spacing: ours and the plain way. The shapes' own error is not in it: their occupancy is exact.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.patient.structure import Structure
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


def main() -> None:
    for case in CASES:
        shape = Shape(case)
        for spacing_mm in SPACINGS_MM:
            ours, plain = [], []
            for offset in OFFSETS:
                dose, structure = shape.on_grid(spacing_mm, offset)
                ours.append(errors(shape, structure_dose_of(dose, structure)))
                mask = Structure.from_array(case, structure.mask, structure.grid)
                plain.append(errors(shape, replace(structure_dose_of(dose, mask), half_widths_gy=None)))
            rows = {
                way: {name: round(worst, 3) for name, worst in zip(ERRORS, np.max(found, axis=0), strict=True)}
                for way, found in (("ours", ours), ("voxel_centres", plain))
            }
            print(json.dumps({"benchmark": "DVH accuracy", "shape": case, "spacing_mm": spacing_mm, **rows}))


if __name__ == "__main__":
    main()
