"""Averaging onto a grid of larger voxels along LPS: every new voxel gets the mean over its own extent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.grid import IDENTITY_DIRECTION, Box, Grid, bounding_box
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import resample

_ALIGNED = 1e-4
_ROUNDING = 1e-4


def is_aligned(grid: Grid, *, any_order: bool = False) -> bool:
    """Whether a grid's axes are those of LPS; in any order and sense where asked."""
    axes = np.reshape(grid.direction, (3, 3))
    if any_order:
        return bool(np.allclose(np.sort(np.abs(axes), axis=0), [[0] * 3, [0] * 3, [1] * 3], atol=_ALIGNED))
    return bool(np.allclose(axes, np.eye(3), atol=_ALIGNED))


def aligned_grid(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """A grid along LPS of the given spacing (x, y, z) around another, sharing its lower corner."""
    edges = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape])).reshape(3, -1).T
    corners = grid.to_lps_mm(edges)
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y, z = (max(1, int(np.ceil((b - a) / s - 1e-3))) for a, b, s in zip(low, high, spacing_mm, strict=True))
    origin = low + np.array(spacing_mm) / 2
    return Grid(
        (z, y, x), spacing_mm, (float(origin[0]), float(origin[1]), float(origin[2])), IDENTITY_DIRECTION,
        grid.frame_of_reference,
    )  # fmt: skip


class Averaging:
    """From one grid to another along LPS.

    Where the source's axes are those of LPS in some order, values are averaged exactly over each new voxel along axes
    that get coarser, and interpolated linearly along those that get finer. An oblique source is first interpolated
    onto a grid along LPS of its own finest spacing.

    Raises GeometryError where the target is not along LPS.
    """

    def __init__(self, source: Grid, target: Grid) -> None:
        if not is_aligned(target):
            raise GeometryError("Averages are taken along LPS only.", remedy="Resample instead.")
        self.source, self.target = source, target
        self._between: Grid | None = None
        if not is_aligned(source, any_order=True):
            finest = min(source.spacing_mm)
            self._between = aligned_grid(source, (finest, finest, finest))
        aligned = self._between or source
        axes = np.reshape(aligned.direction, (3, 3))
        # Of each LPS axis, z first as in arrays: the array axis of the source, and whether it runs against it.
        of_voxel = [int(np.argmax(np.abs(axes[lps]))) for lps in (2, 1, 0)]
        self._order = [2 - v for v in of_voxel]
        self._flipped = [axes[lps, v] < 0 for lps, v in zip((2, 1, 0), of_voxel, strict=True)]
        self._weights = []
        for k, (lps, v) in enumerate(zip((2, 1, 0), of_voxel, strict=True)):
            count, step = aligned.shape[2 - v], aligned.spacing_mm[v]
            start = aligned.origin_mm[lps]
            if self._flipped[k]:
                start -= step * (count - 1)
            wanted = target.origin_mm[lps], target.spacing_mm[lps], target.shape[k]
            self._weights.append(_weights((start, step, count), wanted))

    def values(self, values: NDArray, outside: float) -> NDArray[np.float32]:
        """An array on the source, (slices, rows, columns), on the target; ``outside`` beyond the source.

        A new voxel that any NaN has a part in is NaN.
        """
        missing = np.isnan(values)
        if missing.any():
            known = self.values(np.where(missing, np.float32(outside), values), outside)
            known[self.values(missing, 0.0) > _ROUNDING] = np.nan
            return known
        moved = np.asarray(values, np.float32) - np.float32(outside)
        if self._between is not None:
            moved = resample(moved, self.source, self._between, outside=0.0)
        return self._applied(moved, (slice(None),) * 3) + np.float32(outside)

    def structure(self, structure: Structure) -> Structure:
        """A structure on the target. Raises GeometryError where nothing of it lies there."""
        if self._between is None:
            part, box = structure.box_occupancy, structure.box
        else:
            part = np.clip(resample(structure.occupancy, self.source, self._between, outside=0.0), 0, 1)
            box = (slice(0, part.shape[0]), slice(0, part.shape[1]), slice(0, part.shape[2]))
        full = np.clip(self._applied(part, box), 0, 1)
        full[full < _ROUNDING] = 0
        tight = bounding_box(full > 0)
        if tight is None:
            raise GeometryError("No part of it lies on the grid.", where=structure.name)
        return replace(structure, grid=self.target, box=tight, box_occupancy=full[tight])

    def _applied(self, values: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
        moved = np.transpose(values, self._order)
        for k, axis in enumerate(self._order):
            weights = self._weights[k]
            if self._flipped[k]:
                weights = weights[:, ::-1]
            moved = np.moveaxis(np.tensordot(weights[:, box[axis]], moved, axes=(1, k)), 0, k)
        return np.ascontiguousarray(moved)


def _weights(source: tuple[float, float, int], target: tuple[float, float, int]) -> NDArray[np.float32]:
    """(target, source) weights along one axis, each axis given by first centre, step and count."""
    start, step, count = source
    first, width, wanted = target
    centres = first + width * np.arange(wanted)
    if width < step * (1 - 1e-6):
        places = (centres - start) / step
        inside = (places >= -0.5) & (places <= count - 0.5)
        kept = np.clip(places, 0, count - 1)
        return (np.clip(1 - np.abs(kept[:, None] - np.arange(count)), 0, None) * inside[:, None]).astype(np.float32)
    low = start + step * (np.arange(count) - 0.5)
    overlap = np.minimum(centres[:, None] + width / 2, low + step) - np.maximum(centres[:, None] - width / 2, low)
    return (np.clip(overlap, 0, None) / width).astype(np.float32)
