"""The body around what a picture in space shows: the dose mask, its edge evened out."""

from __future__ import annotations

from typing import Any

import numpy as np
from vtkmodules.util import numpy_support
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkCommonTransforms import vtkTransform
from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D
from vtkmodules.vtkFiltersGeneral import vtkTransformPolyDataFilter
from vtkmodules.vtkImagingGeneral import vtkImageGaussianSmooth

from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.scene.geometry import ras_from_index, vtk_matrix

SMOOTHING_MM = 4.0  # standard deviation; masks of doses end in a sponge of single voxels, with layers upon layers
_REACH = 2.0  # standard deviations


def body_surface(mask: Structure) -> Any:
    """Surface (triangles in RAS, mm, with normals) where the smoothed mask is one half; empty of a small mask."""
    grid = mask.grid
    widths = [SMOOTHING_MM / spacing for spacing in grid.spacing_mm]  # columns, rows, slices
    margin = int(np.ceil(_REACH * max(widths))) + 1
    occupancy = np.pad(mask.box_occupancy.astype(np.float32), margin)
    image = vtkImageData()
    image.SetDimensions(*occupancy.shape[::-1])
    image.SetOrigin(*(float(part.start - margin) for part in reversed(mask.box)))
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(occupancy.ravel(), deep=True))
    smooth = vtkImageGaussianSmooth()
    smooth.SetInputData(image)
    smooth.SetStandardDeviations(*widths)
    smooth.SetRadiusFactors(_REACH, _REACH, _REACH)
    edges = vtkFlyingEdges3D()
    edges.SetInputConnection(smooth.GetOutputPort())
    edges.SetValue(0, 0.5)
    edges.ComputeScalarsOff()
    edges.ComputeNormalsOn()
    transform = vtkTransform()
    transform.SetMatrix(vtk_matrix(ras_from_index(grid)))
    mover = vtkTransformPolyDataFilter()
    mover.SetInputConnection(edges.GetOutputPort())
    mover.SetTransform(transform)
    mover.Update()
    return mover.GetOutput()
