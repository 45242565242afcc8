"""Grid: where voxels lie in the patient (DICOM LPS, mm)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.errors import GeometryError

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

IDENTITY_DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_ORTHONORMAL_TOLERANCE = 1e-4
_SAME_GRID_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class Grid:
    """Immutable right-handed voxel geometry.

    Arrays on a grid are ordered (slice, row, column), as SimpleITK gives them; physical triples are ordered
    (x, y, z) = (along columns, along rows, along slices), as SimpleITK takes them.

    Attributes
    ----------
    shape : (slices, rows, columns).
    spacing_mm : voxel size along (columns, rows, slices).
    origin_mm : LPS position of the centre of voxel (0, 0, 0).
    direction : 3x3 matrix, row-major; its columns are the unit vectors of (columns, rows, slices).
    frame_of_reference : DICOM frame of reference UID, or "" where there is none.

    Raises
    ------
    GeometryError : sizes or spacings not positive, axes not orthonormal or left-handed.
    """

    shape: Shape
    spacing_mm: Triple
    origin_mm: Triple = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY_DIRECTION
    frame_of_reference: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        for name in ("spacing_mm", "origin_mm", "direction"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"A grid needs three positive sizes, not {self.shape}.")
        if len(self.spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise GeometryError(f"Voxel sizes must be positive numbers in mm, not {self.spacing_mm}.")
        if len(self.origin_mm) != 3 or not np.isfinite(self.origin_mm).all():
            raise GeometryError(f"The origin must be three finite numbers in mm, not {self.origin_mm}.")
        axes = np.reshape(self.direction, (3, 3))
        if not np.allclose(axes.T @ axes, np.eye(3), atol=_ORTHONORMAL_TOLERANCE):
            raise GeometryError(f"Axes are sheared or not of unit length: {self.direction}.")
        if np.linalg.det(axes) < 0:
            raise GeometryError(
                f"Axes are left-handed: {self.direction}.", remedy="Flip one axis together with its array."
            )

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """4x4 matrix from (column, row, slice) indices to LPS in mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing_mm
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def voxel_volume_mm3(self) -> float:
        return float(np.prod(self.spacing_mm))

    @property
    def voxel_count(self) -> int:
        return int(np.prod(self.shape))

    def to_lps_mm(self, indices: ArrayLike) -> NDArray[np.float64]:
        """LPS positions (..., 3) of (slice, row, column) indices (..., 3), which may be fractional."""
        columns_first = np.asarray(indices, dtype=float)[..., ::-1]
        return columns_first @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, positions_mm: ArrayLike) -> NDArray[np.float64]:
        """Fractional (slice, row, column) indices (..., 3) of LPS positions (..., 3)."""
        offsets = np.asarray(positions_mm, dtype=float) - self.affine[:3, 3]
        return (offsets @ np.linalg.inv(self.affine[:3, :3]).T)[..., ::-1]

    def cropped(self, box: Box) -> Grid:
        """The grid of ``array[box]``; box slices have a step of 1 and lie inside the grid."""
        starts = [s.start or 0 for s in box]
        stops = [n if s.stop is None else s.stop for s, n in zip(box, self.shape, strict=True)]
        if any(s.step not in (None, 1) for s in box) or any(
            not 0 <= a < b <= n for a, b, n in zip(starts, stops, self.shape, strict=True)
        ):
            raise GeometryError(f"The box {box} does not lie inside a grid of {self.shape}.")
        shape = (stops[0] - starts[0], stops[1] - starts[1], stops[2] - starts[2])
        x, y, z = self.to_lps_mm(starts)
        return replace(self, shape=shape, origin_mm=(float(x), float(y), float(z)))

    def same_as(self, other: Grid) -> bool:
        """Whether both grids place every voxel within a micrometre of each other, in the same frame."""
        if self is other:
            return True
        if self.shape != other.shape or self.frame_of_reference != other.frame_of_reference:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1).T
        return bool(np.abs(self.to_lps_mm(corners) - other.to_lps_mm(corners)).max() <= _SAME_GRID_TOLERANCE_MM)

    def require_same(self, other: Grid, what: str) -> None:
        """Raise GeometryError unless ``other`` is this grid."""
        if not self.same_as(other):
            raise GeometryError(
                f"{what} lie on different grids ({self.shape}, {self.spacing_mm} mm, and {other.shape}, "
                f"{other.spacing_mm} mm).",
                remedy="Resample one onto the other first.",
            )


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box around the true voxels of a 3D array; None where there is none."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not hit.size:
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return box[0], box[1], box[2]
