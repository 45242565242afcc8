"""Occupancy of a segment on a grid, from any of its representations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray
from vtkmodules.util import numpy_support
from vtkmodules.vtkCommonMath import vtkMatrix4x4
from vtkmodules.vtkCommonTransforms import vtkTransform
from vtkmodules.vtkFiltersGeneral import vtkTransformPolyDataFilter
from vtkmodules.vtkImagingStencil import vtkImageStencilToImage, vtkPolyDataToImageStencil

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.volume import resample
from RTDigitalTwinLib.scene.geometry import array_of, placed, ras_from_index, vtk_matrix, world_from_node

_Converter = slicer.vtkSegmentationConverter
_BINARY = _Converter.GetBinaryLabelmapRepresentationName()
_FRACTIONAL = _Converter.GetFractionalLabelmapRepresentationName()
_SURFACE = _Converter.GetClosedSurfaceRepresentationName()
_SCALAR_RANGE = "ScalarRange"  # field of a fractional labelmap: values of empty and of full voxels

# A surface is asked at 3x3x3 places in each voxel: occupancy in steps of 1/27.
_PLACES = 3
_MOST_PLACES = 5
_LARGEST_SLAB_PLACES = 30_000_000
_NEAR_INTEGER = 1e-4


def segment_occupancy(node: Any, segment_id: str, reference: Grid) -> NDArray[np.float32]:
    """Share of each voxel of the grid in the segment: (slices, rows, columns), 0..1; parent transforms applied.

    Taken from the segmentation's source representation. Where a labelmap's voxels are the grid's the values are exact,
    elsewhere they are interpolated linearly. Raises SceneError where the segment is empty, has no usable
    representation, or lies under a transform that is not linear.
    """
    segmentation = node.GetSegmentation()
    segment = segmentation.GetSegment(segment_id)
    name = segment.GetName() or segment_id
    world = world_from_node(node)
    source = segmentation.GetSourceRepresentationName()
    if source not in (_BINARY, _FRACTIONAL, _SURFACE):
        source = _SURFACE  # contours, where an extension knows how to convert them
    held = segment.GetRepresentation(source)
    if held is None:
        held = slicer.vtkSlicerSegmentationsModuleLogic.CreateRepresentationForOneSegment(
            segmentation, segment_id, source
        )
    if held is None:
        raise SceneError("The segment has neither labelmap nor closed surface.", where=name,
                         remedy="Convert it to a binary labelmap in the Segmentations module.")  # fmt: skip
    if source == _SURFACE:
        return _from_surface(held, world, reference, name)
    values = _full_ratio(held, source, segment, name)
    return _onto(values, held, world, reference, name)


def _full_ratio(image: Any, source: str, segment: Any, name: str) -> NDArray[np.float32]:
    """The labelmap's own voxels as occupancy."""
    if min(image.GetDimensions()) < 1:
        raise _empty(name)
    scalars = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    values = scalars.reshape(image.GetDimensions()[::-1])
    if source == _BINARY:
        ratio = (values == segment.GetLabelValue()).astype(np.float32)
    else:
        range_ = image.GetFieldData().GetArray(_SCALAR_RANGE)
        low, high = (range_.GetValue(0), range_.GetValue(1)) if range_ else (values.min(), values.max())
        ratio = np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    if not ratio.any():
        raise _empty(name)
    return ratio


def _onto(ratio: NDArray, image: Any, world: NDArray, reference: Grid, name: str) -> NDArray[np.float32]:
    to_world = vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_world)
    first = np.eye(4)
    first[:3, 3] = np.array(image.GetExtent())[[0, 2, 4]]
    ras_from_ijk = world @ array_of(to_world) @ first
    exact = _copied(ratio, ras_from_ijk, reference)
    if exact is not None:
        return exact
    # One empty voxel around it: interpolation falls to 0 at the segment's edge, not at the labelmap's.
    padded = np.pad(ratio, 1)
    shifted = ras_from_ijk.copy()
    shifted[:3, 3] -= ras_from_ijk[:3, :3].sum(axis=1)
    placement = placed(shifted, padded.shape, name, reference.frame_of_reference)
    return _averaged(placement.arranged(padded), placement.grid, reference)


def _averaged(ratio: NDArray, source: Grid, reference: Grid) -> NDArray[np.float32]:
    """Linear interpolation, averaged over several places a voxel where the source is finer than the grid."""
    full = np.zeros(reference.shape, np.float32)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in source.shape])).reshape(3, -1).T
    reached = reference.to_index(source.to_lps_mm(corners))
    low = np.clip(np.floor(reached.min(axis=0)).astype(int), 0, None)
    high = np.minimum(np.ceil(reached.max(axis=0)).astype(int) + 1, reference.shape)
    if (high <= low).any():
        return full
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    part = reference.cropped((box[0], box[1], box[2]))
    finer = max(reference.spacing_mm) / min(source.spacing_mm)
    affordable = int((_LARGEST_SLAB_PLACES / part.voxel_count) ** (1 / 3))
    places = max(1, min(int(np.ceil(finer - _NEAR_INTEGER)), _MOST_PLACES, affordable))
    slices, rows, columns = part.shape
    width, height, depth = part.spacing_mm
    x, y, z = part.to_lps_mm(np.full(3, 0.5 / places - 0.5))
    refined = replace(
        part,
        shape=(slices * places, rows * places, columns * places),
        spacing_mm=(width / places, height / places, depth / places),
        origin_mm=(float(x), float(y), float(z)),
    )
    asked = np.clip(resample(ratio, source, refined, outside=0.0), 0, 1)
    grouped = asked.reshape(slices, places, rows, places, columns, places)
    full[box] = grouped.mean(axis=(1, 3, 5), dtype=np.float32)
    return full


def _copied(ratio: NDArray, ras_from_ijk: NDArray, reference: Grid) -> NDArray[np.float32] | None:
    """The values where their voxels are the grid's, in any order of axes; None where they are not."""
    index_from_ijk = np.linalg.inv(ras_from_index(reference)) @ ras_from_ijk
    steps = np.round(index_from_ijk)
    ends = np.array(ratio.shape[::-1])
    if np.abs((index_from_ijk - steps)[:3, :3] * ends).max() > _NEAR_INTEGER:
        return None
    if np.abs((index_from_ijk - steps)[:3, 3]).max() > _NEAR_INTEGER:
        return None
    turn = steps[:3, :3].astype(int)
    if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
        return None
    full = np.zeros(reference.shape, np.float32)
    inside = np.argwhere(ratio > 0)
    places = inside[:, ::-1] @ turn.T + steps[:3, 3].astype(int)
    kept = ((places >= 0) & (places < reference.shape[::-1])).all(axis=1)
    columns, rows, slices = places[kept].T
    full[slices, rows, columns] = ratio[tuple(inside[kept].T)]
    return full


def _from_surface(surface: Any, world: NDArray, reference: Grid, name: str) -> NDArray[np.float32]:
    if not surface.GetNumberOfPoints():
        raise _empty(name)
    index_from_ras = np.linalg.inv(ras_from_index(reference)) @ world
    transform = vtkTransform()
    transform.SetMatrix(vtk_matrix(index_from_ras))
    mover = vtkTransformPolyDataFilter()
    mover.SetInputData(surface)
    mover.SetTransform(transform)
    mover.Update()
    in_index = mover.GetOutput()
    bounds = np.reshape(in_index.GetBounds(), (3, 2))
    low = np.clip(np.floor(bounds[:, 0] + 0.5).astype(int), 0, None)
    high = np.minimum(np.ceil(bounds[:, 1] - 0.5).astype(int), np.array(reference.shape[::-1]) - 1)
    full = np.zeros(reference.shape, np.float32)
    if (high < low).any():
        return full
    columns, rows, slices = (high - low + 1).tolist()
    thickness = max(1, _LARGEST_SLAB_PLACES // (columns * rows * _PLACES**3))
    for start in range(low[2], low[2] + slices, thickness):
        stop = min(start + thickness, int(high[2]) + 1)
        first = (int(low[0]), int(low[1]), int(start))
        sizes = (columns, rows, stop - start)
        part = _inside_places(in_index, first, sizes)
        grouped = part.reshape(sizes[2], _PLACES, rows, _PLACES, columns, _PLACES)
        full[start:stop, low[1] : high[1] + 1, low[0] : high[0] + 1] = grouped.mean(axis=(1, 3, 5), dtype=np.float32)
    return full


def _inside_places(surface: Any, first: tuple[int, int, int], sizes: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Which of the regular places in a box of voxels lie inside a surface in index coordinates: 0 or 1."""
    stencil = vtkPolyDataToImageStencil()
    stencil.SetInputData(surface)
    step = 1 / _PLACES
    stencil.SetOutputOrigin(*(index - 0.5 + step / 2 for index in first))
    stencil.SetOutputSpacing(step, step, step)
    extent = [end for size in sizes for end in (0, size * _PLACES - 1)]
    stencil.SetOutputWholeExtent(extent)
    painter = vtkImageStencilToImage()
    painter.SetInputConnection(stencil.GetOutputPort())
    painter.SetInsideValue(1)
    painter.SetOutputScalarTypeToUnsignedChar()
    painter.Update()
    places = numpy_support.vtk_to_numpy(painter.GetOutput().GetPointData().GetScalars())
    return places.reshape([size * _PLACES for size in sizes[::-1]])


def _empty(name: str) -> SceneError:
    return SceneError("The segment is empty.", where=name, remedy="Contour it, or delete it.")
