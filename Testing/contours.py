"""Occupancy of closed planar contours on a grid whose slices are theirs, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.grid import Grid

ROWS_PER_VOXEL = 16


def occupancy_of_contours(contours: Sequence[NDArray], grid: Grid) -> NDArray[np.float32]:
    """Each contour (points, 3) in LPS stands for the slab of its slice; several in a slice combine even-odd.

    Exact along columns, on 16 lines a voxel along rows. The grid's axes are those of the patient.
    """
    slices, rows, columns = grid.shape
    (dx, dy, dz), (x0, y0, z0) = grid.spacing_mm, grid.origin_mm
    signed = np.zeros((slices, rows * ROWS_PER_VOXEL, columns + 1))
    lines_y = ((np.arange(rows * ROWS_PER_VOXEL) + 0.5) / ROWS_PER_VOXEL - 0.5) * dy + y0
    crossings: dict[int, list[list[float]]] = {}
    for contour in contours:
        k = round((contour[0, 2] - z0) / dz)
        assert abs(z0 + k * dz - contour[0, 2]) < 0.01, "contours and slices must coincide"
        lines = crossings.setdefault(k, [[] for _ in lines_y])
        for (xa, ya), (xb, yb) in zip(contour[:-1, :2], contour[1:, :2], strict=True):
            if ya == yb:
                continue
            first, last = np.searchsorted(lines_y, sorted((ya, yb)))
            for line in range(first, last):
                lines[line].append(xa + (xb - xa) * (lines_y[line] - ya) / (yb - ya))
    edges = (np.arange(columns + 1) - 0.5) * dx + x0
    for k, lines in crossings.items():
        for line, found in enumerate(lines):
            for start, stop in zip(*[iter(sorted(found))] * 2, strict=True):
                signed[k, line] += np.clip(edges, start, stop)  # length to the left of each edge
    lengths = np.diff(signed, axis=2) / dx
    return lengths.reshape(slices, rows, ROWS_PER_VOXEL, columns).mean(axis=2).clip(0, 1).astype(np.float32)
