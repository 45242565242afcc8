"""Outlines of occupancy: closed contours slice by slice, the way back from the rasteriser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.structure import Structure

INSIDE_RATIO = 0.5
# An outline may leave the line of half occupancy so far to enclose the area that the occupancy sums to.
_LOWEST_LEVEL, _HIGHEST_LEVEL = 0.3, 0.7
_HALVINGS = 6


def outlines(structure: Structure) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Slice number and outline, (points, 3) in LPS mm, of every region of the slices that are half inside somewhere.

    Each outline follows a line of equal occupancy, interpolated between pixels: the one between 0.3 and 0.7 that
    encloses the slice's own area, or 0.5 where none does (the slice is covered in part of its thickness). At exactly
    0.5 small round structures would shrink, a twentieth of the volume at 4 mm pixels. Holes are joined to their
    outline by a channel of no width (the keyhole technique, DICOM PS3.3 C.8.8.6.3).
    """
    start = np.array([part.start for part in structure.box])
    for k, occupancy in enumerate(structure.box_occupancy):
        if occupancy.max() < INSIDE_RATIO:
            continue
        for rings in _regions(occupancy):
            ring = rings[0]
            for hole in rings[1:]:
                ring = _joined(ring, hole)
            if len(ring) >= 3:
                index = np.column_stack([np.full(len(ring), float(k)), ring]) + start
                yield int(start[0] + k), structure.grid.to_lps_mm(index)


def _regions(occupancy: NDArray[np.float32]) -> list[list[NDArray[np.float64]]]:
    """Outer ring and holes, each (points, 2) of (row, column), of every region of a slice."""
    from contourpy import FillType, contour_generator

    generator: Any = contour_generator(z=np.pad(occupancy, 1).astype(float), fill_type=FillType.OuterOffset)

    def at(level: float) -> list[list[NDArray[np.float64]]]:
        regions, offsets = generator.filled(level, np.inf)
        return [
            [points[a : b - 1, ::-1] - 1 for a, b in zip(ends[:-1], ends[1:], strict=True)]  # the last is the first
            for points, ends in zip(regions, offsets, strict=True)
        ]

    wanted = float(occupancy.sum(dtype=float))
    low, high = _LOWEST_LEVEL, min(_HIGHEST_LEVEL, float(occupancy.max()))
    if not _area(at(high)) <= wanted <= _area(at(low)):
        return at(INSIDE_RATIO)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _area(at(middle)) > wanted else (low, middle)
    return at((low + high) / 2)


def _area(regions: list[list[NDArray[np.float64]]]) -> float:
    """Pixels enclosed: outer rings less their holes (shoelace formula)."""
    total = 0.0
    for rings in regions:
        for i, ring in enumerate(rings):
            y, x = ring.T
            area = abs(float(y @ np.roll(x, -1) - x @ np.roll(y, -1))) / 2
            total += area if i == 0 else -area
    return total


def _joined(ring: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """One ring through both, there and back along the shortest way between their points."""
    apart = ((ring[:, None] - hole[None]) ** 2).sum(axis=-1)
    i, j = np.unravel_index(int(np.argmin(apart)), apart.shape)
    return np.concatenate([ring[: i + 1], hole[j:], hole[: j + 1], ring[i:]])
