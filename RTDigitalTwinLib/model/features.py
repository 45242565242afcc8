"""What the dose network sees of a patient: a pure function of the patient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.grid import Box, Grid, Shape
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK, TARGETS
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Volume

CHANNELS = ("CT", *ORGANS_AT_RISK, *TARGETS)
SIZE_MULTIPLE = 16  # four halvings in the network
MARGIN_VOXELS = 2
AIR_HU, HIGHEST_HU, HU_SCALE = -1000.0, 3071.0, 1000.0


@dataclass(frozen=True, eq=False)
class Features:
    """Network input on a crop around the dose mask.

    Attributes
    ----------
    channels : (len(CHANNELS), slices, rows, columns), float32; each size a multiple of 16. CT in units of 1000 HU
        (clipped to -1..3.071, air beyond the grid), then occupancy of each structure (0 where absent).
    start : index of the crop's first voxel in the patient's grid; negative where padding begins outside it.
    mask : (slices, rows, columns) of the crop: voxels that can receive dose.
    grid : the patient's whole grid.
    """

    channels: NDArray[np.float32]
    start: Shape
    mask: NDArray[np.bool_]
    grid: Grid

    @cached_property
    def mask_indices(self) -> NDArray[np.int64]:
        """Flat indices of the mask's voxels in the whole grid, in C order of the crop."""
        inside = np.argwhere(self.mask) + self.start
        return np.ravel_multi_index(tuple(inside.T), self.grid.shape)


def crop_of(box: Box) -> tuple[Shape, Shape]:
    """Start and sizes of the network's crop around a box: a margin, then centred up to multiples of 16."""
    start, sizes = [], []
    for part in box:
        wanted = part.stop - part.start + 2 * MARGIN_VOXELS
        size = -(-wanted // SIZE_MULTIPLE) * SIZE_MULTIPLE
        start.append(part.start - MARGIN_VOXELS - (size - wanted) // 2)
        sizes.append(size)
    return (start[0], start[1], start[2]), (sizes[0], sizes[1], sizes[2])


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


def normalised_ct(ct: Volume, start: Shape, sizes: Shape) -> NDArray[np.float32]:
    """CT crop as the network sees it."""
    hu = cut(ct.values, start, sizes, AIR_HU).astype(np.float32)
    return np.clip(hu, AIR_HU, HIGHEST_HU) / np.float32(HU_SCALE)


def build_features(patient: Patient) -> Features:
    """Features of a patient at native resolution, in the channel order of ``CHANNELS``.

    Raises PatientDataError where the patient has no planning target volume.
    """
    if not any(name in patient.structures for name in TARGETS):
        raise PatientDataError(
            f"The patient has none of {', '.join(TARGETS)}.",
            where=patient.pseudonym,
            remedy="At least one is needed to predict a dose.",
        )
    start, sizes = crop_of(patient.dose_mask.box)
    channels = np.zeros((len(CHANNELS), *sizes), np.float32)
    channels[0] = normalised_ct(patient.ct, start, sizes)
    for channel, name in enumerate(CHANNELS[1:], start=1):
        if name in patient.structures:
            channels[channel] = cut(patient.structures[name].occupancy, start, sizes, 0.0)
    mask = cut(patient.dose_mask.mask, start, sizes, False)
    return Features(channels, start, mask, patient.ct.grid)
