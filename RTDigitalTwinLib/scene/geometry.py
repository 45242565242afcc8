"""Geometry between MRML (RAS, any handedness, parent transforms) and Grid (LPS, right-handed)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray
from vtkmodules.util import numpy_support
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkCommonMath import vtkMatrix4x4

from RTDigitalTwinLib.errors import GeometryError, SceneError
from RTDigitalTwinLib.patient.grid import Grid

FRAME_ATTRIBUTE = "RTDigitalTwin.FrameOfReference"
_FRAME_PREFIX = "frame-"
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Placement:
    """A node's grid, and whether its slices are to be reversed to fit it (left-handed source)."""

    grid: Grid
    slices_reversed: bool

    def arranged(self, values: NDArray) -> NDArray:
        """The node's array (slices, rows, columns) in the grid's order."""
        return np.ascontiguousarray(values[::-1] if self.slices_reversed else values)


def ras_from_index(grid: Grid) -> NDArray[np.float64]:
    """4x4 matrix from (column, row, slice) indices to RAS in mm."""
    return _LPS_FROM_RAS @ grid.affine


def vtk_matrix(values: NDArray) -> Any:
    """A vtkMatrix4x4 of a 4x4 array."""
    matrix = vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(values, dtype=float).ravel().tolist())
    return matrix


def array_of(matrix: Any) -> NDArray[np.float64]:
    """The 4x4 array of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def place(node: Any, grid: Grid) -> None:
    """Give a volume node the geometry of a grid; its frame of reference is kept as a pseudonym."""
    directions = (_LPS_FROM_RAS[:3, :3] @ np.reshape(grid.direction, (3, 3))).tolist()
    node.SetSpacing(grid.spacing_mm)
    node.SetIJKToRASDirections(*(part for row in directions for part in row))
    x, y, z = grid.origin_mm
    node.SetOrigin(-x, -y, z)
    if grid.frame_of_reference:
        node.SetAttribute(FRAME_ATTRIBUTE, pseudonymous_frame(grid.frame_of_reference))


def pseudonymous_frame(uid: str) -> str:
    """A stand-in for a frame of reference UID, which could lead back to a patient; always the same for one UID."""
    return uid if uid.startswith(_FRAME_PREFIX) else _FRAME_PREFIX + sha256(uid.encode()).hexdigest()[:16]


def set_voxels(node: Any, values: NDArray) -> None:
    """Give a volume node a copy of an array (slices, rows, columns) of a type that VTK has."""
    image = vtkImageData()
    image.SetDimensions(*values.shape[::-1])
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(np.ravel(values), deep=True))
    node.SetAndObserveImageData(image)


def voxels_of(node: Any) -> NDArray:
    """A volume node's voxels (slices, rows, columns), one value each, as they lie in its memory."""
    image = node.GetImageData()
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def placement_of(node: Any) -> Placement:
    """Geometry of a volume node in the world, its parent transform applied.

    A rotation or shift moves the grid and leaves the values as they are. Raises SceneError where the transform is not
    linear, or the axes are sheared.
    """
    image = node.GetImageData()
    if image is None or min(image.GetDimensions()) < 1:
        raise SceneError("The volume has no voxels.", where=node.GetName(), remedy="Load or choose another volume.")
    matrix = vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    frame = node.GetAttribute(FRAME_ATTRIBUTE) or ""
    return placed(world_from_node(node) @ array_of(matrix), image.GetDimensions()[::-1], node.GetName(), frame)


def placed(ras_from_ijk: NDArray, shape: tuple[int, int, int], name: str, frame: str = "") -> Placement:
    """The right-handed grid of a 4x4 index-to-RAS matrix and a shape (slices, rows, columns).

    Raises SceneError naming the node where the axes are sheared.
    """
    matrix = _LPS_FROM_RAS @ ras_from_ijk
    reversed_ = bool(np.linalg.det(matrix[:3, :3]) < 0)
    if reversed_:
        matrix = matrix.copy()
        matrix[:3, 3] += matrix[:3, 2] * (shape[0] - 1)
        matrix[:3, 2] *= -1
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    try:
        direction = matrix[:3, :3] / np.where(spacing > 0, spacing, np.nan)
        grid = Grid(shape, tuple(spacing), tuple(matrix[:3, 3]), tuple(direction.ravel()), frame)
    except GeometryError as error:
        raise SceneError(
            f"The axes are sheared or degenerate, so this is no regular grid ({error.what})",
            where=name,
            remedy="Resample it onto a regular grid first (Resample Scalar/Vector/DWI Volume).",
        ) from error
    return Placement(grid, reversed_)


def world_from_node(node: Any) -> NDArray[np.float64]:
    """4x4 matrix of the node's parent transforms, in RAS. Raises SceneError where they are not linear."""
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise SceneError(
            f"It lies under the transform {transform.GetName()!r}, which is not linear.",
            where=node.GetName(),
            remedy="Harden the transform in the Transforms module first, or take it away.",
        )
    matrix = vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(transform, None, matrix)
    return array_of(matrix)
