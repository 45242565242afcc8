"""Registration: where the tissue of one image lies in another, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.grid import IDENTITY_DIRECTION, Grid, Triple
from RTDigitalTwinLib.patient.volume import Quantity, Volume, to_sitk

_VOXELS_TOGETHER = 4_000_000
_FAR_MM = 1e6  # where no image reaches: stands for a place that is not known
_ROTATION_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Registration:
    """A mapping from places of the fixed frame to where the same tissue lies in the moving frame.

    A place x goes to R (x + u(x)) + t: first the displacement, where there is one, then rotation and shift.

    Attributes
    ----------
    fixed_frame, moving_frame : frames of reference, "" where there is none.
    rotation : R, 3x3, row-major.
    offset_mm : t, LPS.
    displacement_mm : u, (slices, rows, columns, 3), LPS, on ``grid``; None of a rigid registration. NaN where it is
        not known; beyond its grid it is not known either.
    grid : of the displacement, in the fixed frame.
    error : its uncertainty as the inconsistency with its inverse, in mm on a grid of the fixed frame: how far a place
        is from itself after the way there and back. NaN where that is not known; None where it was not estimated.
        A registration can be consistent and wrong: this is a lower bound of its error.

    Raises
    ------
    GeometryError : no rotation, numbers that are not finite, or a displacement that does not fit its grid.
    """

    fixed_frame: str
    moving_frame: str
    rotation: tuple[float, ...] = IDENTITY_DIRECTION
    offset_mm: Triple = (0.0, 0.0, 0.0)
    displacement_mm: NDArray[np.floating] | None = None
    grid: Grid | None = None
    error: Volume | None = None

    def __post_init__(self) -> None:
        if (
            len(self.rotation) != 9
            or len(self.offset_mm) != 3
            or not np.isfinite([*self.rotation, *self.offset_mm]).all()
        ):
            raise GeometryError("A registration needs nine finite numbers of rotation and three of shift.")
        matrix = np.reshape(self.rotation, (3, 3))
        if not np.allclose(matrix @ matrix.T, np.eye(3), atol=_ROTATION_TOLERANCE) or np.linalg.det(matrix) < 0:
            raise GeometryError("The matrix of a registration is no rotation.", remedy="Scalings are not supported.")
        if (self.displacement_mm is None) != (self.grid is None):
            raise GeometryError("A displacement needs its grid, and a grid its displacement.")
        if self.displacement_mm is not None and self.grid is not None:
            if self.displacement_mm.shape != (*self.grid.shape, 3):
                raise GeometryError(
                    f"A displacement of shape {self.displacement_mm.shape} does not fit a grid of {self.grid.shape}."
                )
            view = self.displacement_mm.view()
            view.flags.writeable = False
            object.__setattr__(self, "displacement_mm", view)
        for what, grid in (("displacement", self.grid), ("error", self.error.grid if self.error else None)):
            if grid is not None and grid.frame_of_reference != self.fixed_frame:
                raise GeometryError(f"The {what} of a registration must lie in its fixed frame.")

    @property
    def is_deformable(self) -> bool:
        return self.displacement_mm is not None

    def shifts_mm(self, grid: Grid) -> NDArray[np.float64]:
        """How far the tissue at each voxel of a grid has moved: (slices, rows, columns, 3), LPS; NaN where not known.

        Raises GeometryError where the grid is not in the fixed frame.
        """
        self._require_fixed(grid)
        places = grid.to_lps_mm(np.moveaxis(np.indices(grid.shape), 0, -1))
        return self._moved(places, self._displacement_on(grid)) - places

    def onto(self, volume: Volume, grid: Grid) -> Volume:
        """A volume of the moving frame at the tissue of each voxel of a grid of the fixed frame, interpolated linearly.

        NaN where that is not known: beyond the volume, or beyond the displacement. Raises GeometryError where grid or
        volume are not in the frames of this registration.
        """
        self._require_moving(volume.grid)
        found = [interpolated(volume.values, volume.grid, slab, self.shifts_mm(slab)) for slab in _slabs(grid)]
        return Volume(np.concatenate(found), grid, volume.quantity)

    def moved_mm(self, grid: Grid) -> Volume:
        """How far the tissue at each voxel of a grid has moved, without the direction; NaN where not known."""
        found = [np.linalg.norm(self.shifts_mm(slab), axis=-1).astype(np.float32) for slab in _slabs(grid)]
        return Volume(np.concatenate(found), grid, Quantity.DISPLACEMENT_MM)

    def inconsistency(self, inverse: Registration, grid: Grid) -> Volume:
        """How far each voxel of a grid is from itself in mm after the way there and, by ``inverse``, back.

        NaN where that is not known. Raises GeometryError where ``inverse`` goes between other frames.
        """
        if (inverse.fixed_frame, inverse.moving_frame) != (self.moving_frame, self.fixed_frame):
            raise GeometryError("The inverse of a registration must go between the same frames, the other way.")
        away = [np.linalg.norm(self._there_and_back_mm(inverse, slab), axis=-1) for slab in _slabs(grid)]
        return Volume(np.concatenate(away).astype(np.float32), grid, Quantity.DISPLACEMENT_MM)

    def _there_and_back_mm(self, inverse: Registration, grid: Grid) -> NDArray[np.float64]:
        shifts = self.shifts_mm(grid)
        places = grid.to_lps_mm(np.moveaxis(np.indices(grid.shape), 0, -1))
        known: ArrayLike = 0.0
        if inverse.displacement_mm is not None and inverse.grid is not None:
            parts = [interpolated(inverse.displacement_mm[..., k], inverse.grid, grid, shifts) for k in range(3)]
            known = np.stack(parts, axis=-1)
        return inverse._moved(places + shifts, known) - places

    def _moved(self, places_mm: NDArray, displacement_mm: ArrayLike) -> NDArray[np.float64]:
        return (places_mm + displacement_mm) @ np.reshape(self.rotation, (3, 3)).T + self.offset_mm

    def _displacement_on(self, grid: Grid) -> ArrayLike:
        if self.displacement_mm is None or self.grid is None:
            return 0.0
        if self.grid.same_as(grid):
            return self.displacement_mm
        nowhere = np.zeros((*grid.shape, 3))
        parts = [interpolated(self.displacement_mm[..., k], self.grid, grid, nowhere) for k in range(3)]
        return np.stack(parts, axis=-1)

    def _require_fixed(self, grid: Grid) -> None:
        if grid.frame_of_reference != self.fixed_frame:
            raise GeometryError("The grid is not in the fixed frame of the registration.")

    def _require_moving(self, grid: Grid) -> None:
        if grid.frame_of_reference != self.moving_frame:
            raise GeometryError("The volume is not in the moving frame of the registration.")


def _slabs(grid: Grid) -> Iterator[Grid]:
    """A grid in parts of whole slices, few enough voxels each for places of double precision."""
    slices, rows, columns = grid.shape
    together = max(1, _VOXELS_TOGETHER // (rows * columns))
    if slices <= together:
        yield grid
        return
    for first in range(0, slices, together):
        yield grid.cropped((slice(first, min(first + together, slices)), slice(None), slice(None)))


def interpolated(values: NDArray, source: Grid, target: Grid, shifts_mm: NDArray) -> NDArray[np.float64]:
    """``values`` on ``source`` at each voxel of ``target`` plus a shift, linear; NaN outside, and where a shift is NaN.

    Parameters
    ----------
    shifts_mm : (slices, rows, columns, 3) of the target, LPS. Frames are not compared: the shift is what joins them.
    """
    import SimpleITK as sitk  # here, since training does without it

    unknown = np.isnan(shifts_mm).any(axis=-1)
    field = sitk.GetImageFromArray(np.where(unknown[..., None], _FAR_MM, shifts_mm).astype(float), isVector=True)
    field.SetSpacing(target.spacing_mm)
    field.SetOrigin(target.origin_mm)
    field.SetDirection(target.direction)
    moved = sitk.Resample(
        to_sitk(np.asarray(values, float), source),
        target.shape[::-1],
        sitk.DisplacementFieldTransform(field),
        sitk.sitkLinear,
        target.origin_mm,
        target.spacing_mm,
        target.direction,
        np.nan,
    )
    found = sitk.GetArrayFromImage(moved)
    found[unknown] = np.nan
    return found
