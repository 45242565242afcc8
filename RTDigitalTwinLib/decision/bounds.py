"""Bounds of a change of the dose in space: how much at a voxel, and how steep between voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.crop import Crop

MOST_CUT_RATIO = 0.02
_HALVINGS = 20
_ROUNDING_RATIO = 1e-6


@dataclass(frozen=True)
class ChangeBounds:
    """What a change may be at most.

    Attributes
    ----------
    most_change_ratio : of the present mean dose at any voxel, up or down.
    most_change_gy : at any voxel, up or down, beside that share.
    steepest_gy_per_cm : slope of the change in any direction.
    """

    most_change_ratio: float = 0.1
    most_change_gy: float = 10.0
    steepest_gy_per_cm: float = 5.0

    def __post_init__(self) -> None:
        numbers = (self.most_change_ratio, self.most_change_gy, self.steepest_gy_per_cm)
        if not all(np.isfinite(v) and v > 0 for v in numbers) or self.most_change_ratio >= 1:
            raise RTDigitalTwinError(
                f"A change of the dose cannot be bounded like this: {self}.",
                remedy="Give a share between 0 and 1, and Gy and Gy per cm above 0.",
            )

    def limits_gy(self, present_gy: NDArray) -> NDArray[np.float32]:
        """(mask voxels,) the most change at each, of a present dose."""
        return np.minimum(self.most_change_ratio * present_gy, self.most_change_gy).astype(np.float32)

    def bounded(self, change_gy: NDArray, present_gy: NDArray, crop: Crop) -> NDArray[np.float32]:
        """A change (mask voxels,) brought within the bounds, as much of its shape kept as may be.

        It is scaled down until cutting off what is too much takes no more than 2 % of it (of its sum of squares), and
        cut; then it is lessened until no slope is too steep. For that, what rises and what falls is cut apart, each to
        the largest that is nowhere steeper from voxel to voxel, so that no voxel changes more or the other way. Where
        both meet, or in directions between the axes, it may still be too steep; then all of it is scaled.
        """
        limits = self.limits_gy(present_gy)
        scaled = _largest_scale(np.asarray(change_gy, float), limits) * np.asarray(change_gy, float)
        cut = np.clip(scaled, -limits, limits)
        per_mm = self.steepest_gy_per_cm / 10
        rising, falling = (_no_steeper(_spread(np.maximum(part, 0), crop), crop, per_mm) for part in (cut, -cut))
        field = rising - falling
        steepest = steepest_gy_per_mm(field, crop)
        if steepest > per_mm:
            field *= per_mm / steepest * (1 - _ROUNDING_RATIO)
        return field[crop.mask].astype(np.float32)


def steepest_gy_per_mm(field: NDArray, crop: Crop) -> float:
    """The steepest slope between neighbouring voxels of the mask: of a change (slices, rows, columns) of the crop.

    At each voxel the steeper of both sides along each axis, put together.
    """
    squares = np.zeros(crop.shape)
    for axis, spacing_mm in enumerate(reversed(crop.grid.spacing_mm)):
        before, after = _sides(axis)
        both = crop.mask[before] & crop.mask[after]
        slope = np.where(both, np.abs(field[after] - field[before]), 0) / spacing_mm
        steeper = np.zeros(crop.shape)
        steeper[before] = slope
        steeper[after] = np.maximum(steeper[after], slope)
        squares += steeper**2
    return float(np.sqrt(squares.max()))


def _largest_scale(change_gy: NDArray, limits_gy: NDArray) -> float:
    """The largest factor up to 1 with which limits cut no more than ``MOST_CUT_RATIO`` of a change."""

    def cuts_little(factor: float) -> bool:
        scaled = factor * change_gy
        cut = np.clip(scaled, -limits_gy, limits_gy)
        return bool(np.square(scaled - cut).sum() <= MOST_CUT_RATIO * np.square(scaled).sum())

    if cuts_little(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cuts_little(middle) else (low, middle)
    return low


def _no_steeper(field: NDArray, crop: Crop, per_mm: float) -> NDArray:
    """The largest field below a non-negative one that rises by no more than ``per_mm`` between voxels of the mask."""
    field = np.where(crop.mask, field, np.inf)
    while True:
        highest = field
        for axis, spacing_mm in enumerate(reversed(crop.grid.spacing_mm)):
            before, after = _sides(axis)
            lower = highest.copy()
            lower[after] = np.minimum(lower[after], highest[before] + per_mm * spacing_mm)
            lower[before] = np.minimum(lower[before], highest[after] + per_mm * spacing_mm)
            highest = np.where(crop.mask, lower, np.inf)
        if np.array_equal(highest, field):
            return np.where(crop.mask, field, 0)
        field = highest


def _spread(values: NDArray, crop: Crop) -> NDArray[np.float64]:
    field = np.zeros(crop.shape)
    field[crop.mask] = values
    return field


def _sides(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels that have a neighbour after them along an axis, and these neighbours."""
    before, after = [slice(None)] * 3, [slice(None)] * 3
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    return tuple(before), tuple(after)
