"""Structures as a segmentation node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import slicer
from vtkmodules.util import numpy_support
from vtkmodules.util.vtkConstants import VTK_UNSIGNED_CHAR
from vtkmodules.vtkCommonDataModel import vtkPlane, vtkPolyData
from vtkmodules.vtkFiltersCore import vtkCutter

from RTDigitalTwinLib.patient.colours import structure_colour
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.scene import slicerrt_names as names
from RTDigitalTwinLib.scene.geometry import ras_from_index, vtk_matrix

KIND_TAG = "RTDigitalTwin.Kind"
_ORGAN_OPACITY_3D = 0.35
_SOLID_OPACITY_3D = 1.0
_OUTER_TARGET_OPACITY_3D = 0.25
_OUTLINE_WIDTH = 3
_HALO_WIDTH = 3  # more than the outline's
_TARGET_FILL_OPACITY = 0.4
# Slicer's 0.5 takes half of a spinal cord three voxels wide; this keeps 91 % of it and more of all else.
_SMOOTHING = "0.2"


def add_structures(
    scene: Any,
    structures: Iterable[Structure],
    hidden: Iterable[Structure],
    solid: Structure | None,
    ct_node: Any,
    name: str,
    above: Sequence[Structure] = (),
) -> Any:
    """A segmentation node with one binary segment a structure: its voxels at least half inside.

    Segment ids and names are the structures'. ``hidden`` ones are there but not shown; in 3D ``solid`` is opaque
    and the others are translucent around it. Segments are numbered in the order given; Slicer draws outlines in the
    order of segments, so those of ``above`` come last, its last one on top of all.
    """
    structures, hidden = list(structures), list(hidden)
    numbered = list(enumerate([*structures, *hidden], start=1))
    heights = {structure.name: height for height, structure in enumerate(above, start=1)}
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(ct_node)
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(_BINARY)
    smoothing = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule.GetSmoothingFactorParameterName()
    segmentation.SetConversionParameter(smoothing, _SMOOTHING)
    for number, structure in sorted(numbered, key=lambda one: heights.get(one[1].name, 0)):
        segmentation.AddSegment(_segment(structure, number), structure.name)
    node.CreateClosedSurfaceRepresentation()
    _display(node, structures, hidden, solid)
    return node


_BINARY = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()


def binary_voxels(structure: Structure) -> np.ndarray:
    """Mask over the structure's box; a region too small for a voxel half inside keeps its fullest voxels."""
    return structure.box_occupancy >= min(0.5, float(structure.box_occupancy.max()))


def _segment(structure: Structure, number: int) -> Any:
    segment = slicer.vtkSegment()
    segment.SetName(structure.name)
    segment.SetColor(*structure_colour(structure.name))
    segment.SetTag(names.ROI_NUMBER, str(number))
    segment.SetTag(KIND_TAG, structure.kind.value)
    segment.AddRepresentation(_BINARY, _labelmap(structure))
    return segment


def _labelmap(structure: Structure) -> Any:
    """Only the box around the structure, placed by its extent in the whole grid."""
    image = slicer.vtkOrientedImageData()
    slices, rows, columns = structure.box
    image.SetExtent(
        columns.start, columns.stop - 1, rows.start, rows.stop - 1, slices.start, slices.stop - 1
    )  # fmt: skip
    image.SetImageToWorldMatrix(vtk_matrix(ras_from_index(structure.grid)))
    scalars = numpy_support.numpy_to_vtk(
        np.ascontiguousarray(binary_voxels(structure), dtype=np.uint8).ravel(),
        deep=True,
        array_type=VTK_UNSIGNED_CHAR,
    )
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def _display(node: Any, structures: list[Structure], hidden: list[Structure], solid: Structure | None) -> None:
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetSliceIntersectionThickness(_OUTLINE_WIDTH)
    # Outlines of the smoothed surface, not the stairs of voxels.
    display.SetPreferredDisplayRepresentationName2D(
        slicer.vtkSegmentationConverter.GetClosedSurfaceRepresentationName()
    )
    for structure in structures:
        opacity = _OUTER_TARGET_OPACITY_3D if structure.kind is StructureKind.TARGET else _ORGAN_OPACITY_3D
        display.SetSegmentOpacity3D(structure.name, _SOLID_OPACITY_3D if structure is solid else opacity)
    for structure in hidden:
        display.SetSegmentVisibility(structure.name, False)


def cut_by(node: Any, through_ras: Sequence[float], normal_ras: Sequence[float]) -> set[str]:
    """The segments whose surface a plane cuts: those with an outline in a slice there."""
    plane = vtkPlane()
    plane.SetOrigin(*through_ras)
    plane.SetNormal(*normal_ras)
    cutter = vtkCutter()
    cutter.SetCutFunction(plane)
    found = set()
    for segment in node.GetSegmentation().GetSegmentIDs():
        surface = vtkPolyData()
        if node.GetClosedSurfaceRepresentation(segment, surface):
            cutter.SetInputData(surface)
            cutter.Update()
            if cutter.GetOutput().GetNumberOfCells():
                found.add(segment)
    return found


@contextmanager
def haloed(node: Any) -> Iterator[None]:
    """Black lines beneath the outlines for a while, so that each is seen on a wash of its own colour.

    Slicer draws a segmentation's displays in their order and edits the first, so a halo cannot stay in the scene.
    """
    scene, outlines = node.GetScene(), node.GetDisplayNode()
    halo = scene.AddNewNodeByClass("vtkMRMLSegmentationDisplayNode")
    halo.Copy(outlines)
    halo.SetSliceIntersectionThickness(outlines.GetSliceIntersectionThickness() + _HALO_WIDTH)
    halo.SetVisibility3D(False)
    for segment in node.GetSegmentation().GetSegmentIDs():
        halo.SetSegmentOverrideColor(segment, 0, 0, 0)
    node.SetAndObserveNthDisplayNodeID(0, halo.GetID())
    node.SetAndObserveNthDisplayNodeID(1, outlines.GetID())
    try:
        yield
    finally:
        node.SetAndObserveNthDisplayNodeID(0, outlines.GetID())
        node.RemoveNthDisplayNodeID(1)
        scene.RemoveNode(halo)


@contextmanager
def targets_filled(node: Any, targets: Sequence[str]) -> Iterator[None]:
    """Targets as areas without outlines for a while: lines are left to the isodoses and organs."""
    ids = list(node.GetSegmentation().GetSegmentIDs())
    displays = [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
    top = displays[-1]
    top.SetVisibility2DFill(True)
    for segment in ids:
        top.SetSegmentVisibility2DFill(segment, segment in targets)
        top.SetSegmentOpacity2DFill(segment, _TARGET_FILL_OPACITY)
        for display in displays:
            display.SetSegmentVisibility2DOutline(segment, segment not in targets)
    try:
        yield
    finally:
        top.SetVisibility2DFill(False)
        for segment in ids:
            top.SetSegmentVisibility2DFill(segment, True)
            top.SetSegmentOpacity2DFill(segment, 1.0)
            for display in displays:
                display.SetSegmentVisibility2DOutline(segment, True)
