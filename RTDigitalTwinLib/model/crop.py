"""Crop: the part of a patient's grid that the network works on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.grid import Box, Grid, Shape
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume

SIZE_MULTIPLE = 16  # four halvings in the network
MARGIN_VOXELS = 2


@dataclass(frozen=True, eq=False)
class Crop:
    """A box around a patient's dose mask, each size a multiple of 16.

    Attributes
    ----------
    start : index of the first voxel in the patient's grid; negative where padding begins outside it.
    mask : (slices, rows, columns) of the crop: voxels that can receive dose.
    grid : the patient's whole grid.
    """

    start: Shape
    mask: NDArray[np.bool_]
    grid: Grid

    @property
    def shape(self) -> Shape:
        slices, rows, columns = self.mask.shape
        return slices, rows, columns

    @cached_property
    def mask_indices(self) -> NDArray[np.int64]:
        """Flat indices of the mask's voxels in the whole grid, in C order of the crop."""
        inside = np.argwhere(self.mask) + self.start
        return np.ravel_multi_index(tuple(inside.T), self.grid.shape)

    def cut(self, values: NDArray, outside: float) -> NDArray:
        """The crop of an array on the whole grid; ``outside`` where the crop leaves it."""
        return cut(values, self.start, self.shape, outside)

    def spread(self, values: NDArray, quantity: Quantity) -> Volume:
        """A whole-grid volume from values at the mask's voxels; 0 elsewhere."""
        full = np.zeros(self.grid.voxel_count, np.float32)
        full[self.mask_indices] = values
        return Volume(full.reshape(self.grid.shape), self.grid, quantity)


def crop_of(box: Box) -> tuple[Shape, Shape]:
    """Start and sizes of the network's crop around a box: a margin, then centred up to multiples of 16."""
    start, sizes = [], []
    for part in box:
        wanted = part.stop - part.start + 2 * MARGIN_VOXELS
        size = -(-wanted // SIZE_MULTIPLE) * SIZE_MULTIPLE
        start.append(part.start - MARGIN_VOXELS - (size - wanted) // 2)
        sizes.append(size)
    return (start[0], start[1], start[2]), (sizes[0], sizes[1], sizes[2])


def crop_around(patient: Patient) -> Crop:
    """The crop around a patient's dose mask."""
    start, sizes = crop_of(patient.dose_mask.box)
    return Crop(start, cut(patient.dose_mask.mask, start, sizes, False), patient.ct.grid)


def cut(values: NDArray, start: Shape, sizes: Shape, outside: float) -> NDArray:
    """``values`` from ``start`` with ``sizes``; ``outside`` where the crop leaves the array."""
    result = np.full(sizes, outside, values.dtype)
    source, target = [], []
    for begin, size, available in zip(start, sizes, values.shape, strict=True):
        first, last = max(begin, 0), min(begin + size, available)
        source.append(slice(first, last))
        target.append(slice(first - begin, last - begin))
    result[tuple(target)] = values[tuple(source)]
    return result
