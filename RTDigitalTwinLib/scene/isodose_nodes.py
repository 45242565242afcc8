"""Isodose surfaces as models, whose cuts are the isodose lines of slice views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from vtkmodules.util import numpy_support
from vtkmodules.vtkCommonDataModel import vtkDataObject, vtkImageData
from vtkmodules.vtkCommonTransforms import vtkTransform
from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D, vtkThreshold
from vtkmodules.vtkFiltersGeneral import vtkTransformPolyDataFilter
from vtkmodules.vtkFiltersGeometry import vtkGeometryFilter

from RTDigitalTwinLib.patient.isodoses import IsodoseLevel
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.scene import slicerrt_names as names
from RTDigitalTwinLib.scene.geometry import ras_from_index, vtk_matrix

PERCENT_ATTRIBUTE = "RTDigitalTwin.IsodosePercent"
DOSE_ATTRIBUTE = "RTDigitalTwin.IsodoseGy"
LEGEND_TITLE = "Isodose [Gy]"
SOLID_PERCENT = 95.0  # the level whose surface is shown in 3D
_SOLID_OPACITY = 0.25
_LINE_WIDTH = 2
_KNOWN, _WHOLLY_KNOWN = "known", 0.9999


@dataclass(frozen=True, eq=False)
class IsodoseNodes:
    """Models by level, from the highest down; levels that the dose does not reach have none.

    ``colours`` is the table that SlicerRT's Isodose module takes its levels from.
    """

    levels: tuple[IsodoseLevel, ...]
    models: tuple[Any, ...]
    colours: Any


def add_isodoses(
    scene: Any, dose: Volume, dose_node: Any, levels: Sequence[IsodoseLevel], *, shown: bool = True
) -> IsodoseNodes:
    """One model a level, in RAS, with its lines in slice views; no line where the dose is not known (NaN)."""
    table = _colour_table(scene, dose_node, levels)
    reached, models = [], []
    for level in levels:
        surface = isodose_surface(dose, level.dose_gy)
        if surface.GetNumberOfPoints():
            reached.append(level)
            models.append(_model(scene, surface, level, dose_node, shown))
    if models:
        _add_legend(models[0], table, len(levels), shown)
    return IsodoseNodes(tuple(reached), tuple(models), table)


def show_isodoses_of(scene: Any, *doses: Any) -> None:
    """Show the isodoses of the first of these dose nodes that has any, and hide those of all others."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLModelNode")
    models = [scene.GetNthNodeByClass(index, "vtkMRMLModelNode") for index in range(count)]
    ours = [model for model in models if model.GetAttribute(PERCENT_ATTRIBUTE)]
    owners = {model: model.GetNodeReference(names.DVH_DOSE_VOLUME_REFERENCE) for model in ours}
    shown = next((dose for dose in doses if dose in owners.values()), None)
    for node, owner in owners.items():
        node.GetDisplayNode().SetVisibility(owner is shown)
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
        if legend is not None:
            legend.SetVisibility(owner is shown)


def isodoses_of(scene: Any, dose_node: Any) -> list[Any]:
    """The isodose models of a dose node."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLModelNode")
    models = [scene.GetNthNodeByClass(index, "vtkMRMLModelNode") for index in range(count)]
    ours = [model for model in models if model.GetAttribute(PERCENT_ATTRIBUTE)]
    return [model for model in ours if model.GetNodeReference(names.DVH_DOSE_VOLUME_REFERENCE) is dose_node]


def colours_of_isodoses(dose_node: Any) -> Any | None:
    """The table of isodose levels that a dose node refers to."""
    return dose_node.GetNodeReference(names.ISODOSE_COLOUR_TABLE_REFERENCE)


def isodose_surface(dose: Volume, level_gy: float) -> Any:
    """Surface (polygons in RAS, mm) of a dose in Gy, interpolated linearly between voxel centres."""
    values = np.ascontiguousarray(dose.values, dtype=np.float32)
    known = np.isfinite(values)
    image = vtkImageData()
    image.SetDimensions(*values.shape[::-1])
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(np.where(known, values, 0).ravel(), deep=True))
    if not known.all():
        carried = numpy_support.numpy_to_vtk(known.ravel().astype(np.float32), deep=True)
        carried.SetName(_KNOWN)
        image.GetPointData().AddArray(carried)
    edges = vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, level_gy)
    edges.ComputeScalarsOff()
    edges.ComputeNormalsOff()
    edges.SetInterpolateAttributes(not known.all())
    edges.Update()
    surface = edges.GetOutput()
    if not known.all() and surface.GetNumberOfPoints():
        surface = _where_known(surface)
    transform = vtkTransform()
    transform.SetMatrix(vtk_matrix(ras_from_index(dose.grid)))
    mover = vtkTransformPolyDataFilter()
    mover.SetInputData(surface)
    mover.SetTransform(transform)
    mover.Update()
    return mover.GetOutput()


def _where_known(surface: Any) -> Any:
    """The polygons all of whose corners lie between known voxels: the others would be the edge of knowledge."""
    threshold = vtkThreshold()
    threshold.SetInputData(surface)
    threshold.SetInputArrayToProcess(0, 0, 0, vtkDataObject.FIELD_ASSOCIATION_POINTS, _KNOWN)
    threshold.SetUpperThreshold(_WHOLLY_KNOWN)  # what lies at or above is kept
    threshold.SetThresholdFunction(vtkThreshold.THRESHOLD_UPPER)
    polygons = vtkGeometryFilter()
    polygons.SetInputConnection(threshold.GetOutputPort())
    polygons.Update()
    kept = polygons.GetOutput()
    kept.GetPointData().Initialize()
    return kept


def _model(scene: Any, surface: Any, level: IsodoseLevel, dose_node: Any, shown: bool) -> Any:
    name = f"{dose_node.GetName()}, isodose {level.words}"
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", scene.GenerateUniqueName(name))
    node.SetAndObservePolyData(surface)
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetDefaultWriteFileExtension("vtp")  # compressed, as the bundle itself is not
    node.SetAttribute(names.ISODOSE_MODEL, names.TRUE)
    node.SetAttribute(PERCENT_ATTRIBUTE, f"{level.percent:g}")
    node.SetAttribute(DOSE_ATTRIBUTE, f"{level.dose_gy:g}")
    node.SetNodeReferenceID(names.DVH_DOSE_VOLUME_REFERENCE, dose_node.GetID())
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetColor(*level.colour)
    display.SetOpacity(_SOLID_OPACITY)
    display.SetSliceIntersectionOpacity(1.0)
    display.SetSliceIntersectionThickness(_LINE_WIDTH)
    display.SetBackfaceCulling(False)
    display.SetScalarVisibility(False)
    display.SetVisibility2D(True)
    display.SetVisibility3D(level.percent == SOLID_PERCENT)
    display.SetVisibility(shown)
    return node


def _colour_table(scene: Any, dose_node: Any, levels: Sequence[IsodoseLevel]) -> Any:
    """The levels in Gy as SlicerRT keeps them: an ascending table whose names are numbers, referred to by the dose."""
    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetName(scene.GenerateUniqueName(dose_node.GetName() + names.ISODOSE_COLOUR_TABLE_POSTFIX))
    node.SetNumberOfColors(len(levels))
    for index, level in enumerate(reversed(levels)):
        node.SetColor(index, f"{level.dose_gy:g}", *level.colour, 1.0)
    node.GetLookupTable().SetTableRange(0, len(levels) - 1)
    node = scene.AddNode(node)
    dose_node.SetNodeReferenceID(names.ISODOSE_COLOUR_TABLE_REFERENCE, node.GetID())
    return node


def _add_legend(model: Any, table: Any, count: int, shown: bool) -> None:
    """A legend of all levels, which Slicer hangs on one of the models; on the left, for the dose's own is right."""
    display = model.GetDisplayNode()
    display.SetAndObserveColorNodeID(table.GetID())
    display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseManualScalarRange)  # the model itself has no scalars
    display.SetScalarRange(0, count - 1)
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(model)
    legend.SetTitleText(LEGEND_TITLE)
    legend.SetUseColorNamesForLabels(True)
    legend.SetMaxNumberOfColors(count)
    legend.SetNumberOfLabels(count)
    legend.SetPosition(0.02, 0.5)
    legend.SetVisibility(shown)
