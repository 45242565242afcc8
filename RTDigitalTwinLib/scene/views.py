"""Off-screen slice and 3D views drawn by Slicer's displayable managers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from vtkmodules.vtkCommonCore import vtkPoints
from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
from vtkmodules.vtkCommonMisc import vtkErrorCode
from vtkmodules.vtkIOImage import vtkPNGWriter
from vtkmodules.vtkRenderingAnnotation import vtkScalarBarActor
from vtkmodules.vtkRenderingCore import (
    vtkActor,
    vtkActor2D,
    vtkImageMapper,
    vtkPolyDataMapper,
    vtkPolyDataMapper2D,
    vtkRenderer,
    vtkRenderWindowInteractor,
    vtkTextActor,
    vtkWindowToImageFilter,
)

from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.colours import Colour
from RTDigitalTwinLib.scene.geometry import array_of
from RTDigitalTwinLib.scene.rendering import offscreen_window

SIZE = (1120, 800)
PANEL_PIXELS = 185  # on both sides of the image: structure names on the left, colour legend on the right
_BAND_PIXELS = 42  # at top and bottom: title and ruler
_MARGIN_PIXELS = 72  # above and below the image's anatomy: titles, letters, ruler
_LEGEND_TOP = 0.75  # of the height
_SLICE_MANAGERS = (
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
)
_SOLID_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLModelDisplayableManager",
)
_AXIS_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # towards lower and higher RAS
_UNPEELED_RATIO = 0.01  # of the pixels may lack their deepest translucent layers: changes of a few grey levels
_COMPRESSION = 2  # of 9: a third of the time of VTK's 5 for files a seventh larger
SOFT_TISSUE_HU = 40.0
LEGEND_NOTE = "as over soft tissue"
_GREY, _WHITE = (0.72, 0.72, 0.75), (1.0, 1.0, 1.0)


class _View:
    """A window without a screen. Its nodes leave the scene when it is closed."""

    _samples_a_pixel = 0  # with more, translucent segments vanish in 3D

    def __init__(self, scene: Any, application_logic: Any, factory: Any, managers: Sequence[str]) -> None:
        self.scene, self.application_logic = scene, application_logic
        self._ids_before = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
        self.renderer = vtkRenderer()
        self.window = offscreen_window()
        self.window.SetMultiSamples(self._samples_a_pixel)
        self.window.SetSize(*SIZE)
        self.window.SwapBuffersOff()  # no frame goes to a display: each would be resolved once more
        self.window.AddRenderer(self.renderer)
        self.interactor = vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        self._texts: list[Any] = []
        self._before_managers()
        instance = factory.GetInstance()
        instance.SetMRMLApplicationLogic(application_logic)
        for name in managers:
            if not instance.IsDisplayableManagerRegistered(name):
                instance.RegisterDisplayableManager(name)
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()
        self.managers.SetRenderer(self.renderer)
        self.managers.Initialize(instance, self.renderer)

    def _before_managers(self) -> None:
        """Draw what lies beneath the managers' props."""

    def text(
        self, words: str, x: float, y: float, size: int = 16, colour: Colour = _WHITE, align: str = "left"
    ) -> None:
        """Words at a place in pixels from the lower left corner."""
        actor = vtkTextActor()
        actor.SetInput(words)
        style = actor.GetTextProperty()
        style.SetFontSize(size)
        style.SetColor(*colour)
        style.SetFontFamilyToArial()
        style.SetShadow(colour == _WHITE)  # on anatomy; a dark colour would get a white shadow
        {"left": style.SetJustificationToLeft, "right": style.SetJustificationToRight,
         "middle": style.SetJustificationToCentered}[align]()  # fmt: skip
        style.SetVerticalJustificationToCentered()
        actor.SetPosition(x, y)
        self.renderer.AddViewProp(actor)
        self._texts.append(actor)

    def clear_texts(self) -> None:
        for actor in self._texts:
            self.renderer.RemoveViewProp(actor)
        self._texts.clear()

    def list_names(self, named: Sequence[tuple[str, Colour]]) -> None:
        """Names in their colours down the left panel."""
        for row, (name, colour) in enumerate(named):
            self.text(name, 16, SIZE[1] - 96 - 26 * row, 16, colour)

    def save(self, path: Path) -> None:
        """Render and write a PNG."""
        self.window.Render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ShouldRerenderOff()
        grab.ReadFrontBufferOff()
        grab.Update()
        with whole_file(path) as aside:
            writer = vtkPNGWriter()
            writer.SetFileName(str(aside))
            writer.SetCompressionLevel(_COMPRESSION)
            writer.SetInputConnection(grab.GetOutputPort())
            writer.Write()
            if writer.GetErrorCode():
                raise OSError(vtkErrorCode.GetStringFromErrorCode(writer.GetErrorCode()))

    def close(self) -> None:
        self.clear_texts()
        self.managers.SetMRMLDisplayableNode(None)
        made = [self.scene.GetNthNode(i) for i in range(self.scene.GetNumberOfNodes())]
        for node in made:
            if node.GetID() not in self._ids_before:
                self.scene.RemoveNode(node)
        self.window.Finalize()


class SliceView(_View):
    """A slice along one of the patient's axes at a time (see ``frame``)."""

    _samples_a_pixel = 4  # else outlines of many short lines have gaps

    def __init__(self, scene: Any, application_logic: Any) -> None:
        super().__init__(scene, application_logic, slicer.vtkMRMLSliceViewDisplayableManagerFactory, _SLICE_MANAGERS)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application_logic)
        application_logic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(scene)
        self.node = self.logic.AddSliceNode("RTDigitalTwin")
        self.managers.SetMRMLDisplayableNode(self.node)
        self.node.SetMappedInLayout(True)
        self.node.SetRulerType(slicer.vtkMRMLAbstractViewNode.RulerTypeThin)
        self.logic.ResizeSliceNode(*SIZE)

    def _before_managers(self) -> None:
        self._mapper = vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        image = vtkActor2D()
        image.SetMapper(self._mapper)
        image.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(image)
        width, height = SIZE
        for area in (
            (0, 0, PANEL_PIXELS, height), (width - PANEL_PIXELS, 0, width, height),
            (0, 0, width, _BAND_PIXELS), (0, height - _BAND_PIXELS, width, height),
        ):  # fmt: skip
            self.renderer.AddViewProp(_panel(*area))
        self._legend = vtkScalarBarActor()
        self._legend.SetPosition((SIZE[0] - PANEL_PIXELS / 2 - 20) / SIZE[0], 1 - _LEGEND_TOP)
        self._legend.SetPosition2(70 / SIZE[0], 2 * _LEGEND_TOP - 1)
        self._legend.SetBarRatio(0.35)
        self._legend.SetMaximumNumberOfColors(256)
        self._legend.UnconstrainedFontSizeOn()
        style = self._legend.GetLabelTextProperty()
        style.SetFontSize(16)
        style.BoldOff()
        style.ItalicOff()
        style.ShadowOff()
        self.renderer.AddViewProp(self._legend)

    def show(self, background: Any, overlay: Any | None, opacity: float) -> None:
        """A volume, with another above it and that one's colour legend where there is one."""
        self.clear_texts()
        composite = self.logic.GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID("" if overlay is None else overlay.GetID())
        composite.SetForegroundOpacity(opacity)
        self._legend.SetVisibility(overlay is not None)
        if overlay is not None:
            self._show_legend(overlay, opacity, _soft_tissue_grey(background))
        # Another connection with every change of volumes.
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())

    def list_key(self, title: str, rows: Sequence[tuple[str, str, Colour]]) -> None:
        """Two columns of words, in colours, down the right panel."""
        left, top = SIZE[0] - PANEL_PIXELS + 12, SIZE[1] * _LEGEND_TOP + 26
        self.text(title, left, top, 16, _WHITE)
        for row, (first, second, colour) in enumerate(rows, start=1):
            self.text(first, left + 58, top - 26 * row, 16, colour, "right")
            self.text(second, left + 150, top - 26 * row, 16, colour, "right")

    def _show_legend(self, volume: Any, opacity: float, grey: float) -> None:
        """The volume's colour legend in the right panel, from its legend node, as its colours look over this grey.

        Drawn here: the displayable manager draws only legends that are newer than the view, with text of its own size.
        """
        kept = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume)
        display = volume.GetDisplayNode()
        half = display.GetWindow() / 2
        table = display.GetColorNode().CreateLookupTableCopy()
        for entry in range(table.GetNumberOfTableValues()):
            *colour, own = table.GetTableValue(entry)
            table.SetTableValue(entry, *blended(colour, opacity * own, grey), 1.0)
        table.SetTableRange(display.GetLevel() - half, display.GetLevel() + half)
        legend = self._legend
        legend.SetLookupTable(table)
        legend.SetNumberOfLabels(kept.GetNumberOfLabels())
        legend.SetLabelFormat(kept.GetLabelFormat())
        middle = SIZE[0] - PANEL_PIXELS / 2
        self.text(kept.GetTitleText(), middle, SIZE[1] * _LEGEND_TOP + 26, 16, _WHITE, "middle")
        self.text(LEGEND_NOTE, middle, SIZE[1] * (1 - _LEGEND_TOP) - 24, 13, _WHITE, "middle")

    def frame(self, orientation: str, points_ras: Any, through_ras: Sequence[float], slab_mm: float) -> None:
        """Put an ``Axial``, ``Coronal`` or ``Sagittal`` slice through a point.

        Those of ``points_ras`` (n, 3) that lie within a slab fill the image between the panels.
        """
        self.node.SetOrientation(orientation)
        axes = array_of(self.node.GetSliceToRAS())[:3, :3]
        depth = float(np.asarray(through_ras) @ axes[:, 2])
        points = np.asarray(points_ras) @ axes
        points = points[np.abs(points[:, 2] - depth) <= slab_mm]
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        room = np.array([SIZE[0] - 2 * PANEL_PIXELS - 60, SIZE[1] - 2 * _MARGIN_PIXELS])
        mm_per_pixel = float(((high - low) / room).max())
        self.node.SetFieldOfView(SIZE[0] * mm_per_pixel, SIZE[1] * mm_per_pixel, 1.0)
        matrix = self.node.GetSliceToRAS()
        for row, value in enumerate(axes @ (*((low + high) / 2), depth)):
            matrix.SetElement(row, 3, value)
        self.node.UpdateMatrices()

    @property
    def normal_ras(self) -> tuple[float, float, float]:
        """Of the slice's plane."""
        x, y, z = array_of(self.node.GetSliceToRAS())[:3, 2]
        return float(x), float(y), float(z)

    def letters(self) -> None:
        """R, L, A, P, S, I at the image's edges."""
        axes = array_of(self.node.GetSliceToRAS())[:3, :3]
        width, height = SIZE
        places = (
            (0, 0, PANEL_PIXELS + 18, height / 2), (0, 1, width - PANEL_PIXELS - 18, height / 2),
            (1, 0, width / 2, 58), (1, 1, width / 2, height - 58),
        )  # fmt: skip
        for axis, end, x, y in places:
            towards = axes[:, axis]
            main = int(np.abs(towards).argmax())
            higher = (towards[main] > 0) == bool(end)
            self.text(_AXIS_LETTERS[main][int(higher)], x, y, 22, _WHITE, "middle")

    def close(self) -> None:
        self.application_logic.GetSliceLogics().RemoveItem(self.logic)
        super().close()


class SolidView(_View):
    """The structures' surfaces in space."""

    def __init__(self, scene: Any, application_logic: Any) -> None:
        super().__init__(scene, application_logic, slicer.vtkMRMLThreeDViewDisplayableManagerFactory, _SOLID_MANAGERS)
        self.renderer.SetUseDepthPeeling(True)
        self.renderer.SetMaximumNumberOfPeels(8)
        self.renderer.SetOcclusionRatio(_UNPEELED_RATIO)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(application_logic)
        application_logic.GetViewLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(scene)
        self.node = self.logic.AddViewNode("RTDigitalTwin3D")
        self.node.SetMappedInLayout(True)
        self.node.SetBoxVisible(False)
        self.node.SetAxisLabelsVisible(False)
        self.node.SetBackgroundColor(0.05, 0.06, 0.09)
        self.node.SetBackgroundColor2(0.20, 0.23, 0.30)
        self.managers.SetMRMLDisplayableNode(self.node)

    def add_surface(self, surface: Any, colour: Colour, opacity: float) -> None:
        """A surface in RAS that is no node of the scene."""
        mapper = vtkPolyDataMapper()
        mapper.SetInputData(surface)
        mapper.ScalarVisibilityOff()
        actor = vtkActor()
        actor.SetMapper(mapper)
        actor.GetProperty().SetColor(*colour)
        actor.GetProperty().SetOpacity(opacity)
        actor.PickableOff()
        self.renderer.AddViewProp(actor)

    def look(self, corners_ras: Any) -> None:
        """From in front, half left of the patient and slightly above; the box of corners (n, 3) fills the picture."""
        towards = np.array([-0.55, 0.80, 0.20])  # RAS: patient's left is -x
        towards /= np.linalg.norm(towards)
        right = np.cross((0, 0, 1), towards)
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(towards, right), towards], axis=1)
        seen = np.asarray(corners_ras) @ axes
        low, high = seen.min(axis=0), seen.max(axis=0)
        room = np.array([SIZE[0] - 2 * PANEL_PIXELS, SIZE[1] - 2 * _MARGIN_PIXELS])
        height_mm = SIZE[1] * float(((high - low)[:2] / room).max())
        camera = self.renderer.GetActiveCamera()
        middle = axes @ ((low + high) / 2)
        distance = height_mm / 2 / np.tan(np.deg2rad(camera.GetViewAngle() / 2))
        camera.SetFocalPoint(*middle)
        camera.SetPosition(*(middle + distance * towards))
        camera.SetViewUp(0, 0, 1)
        self.renderer.ResetCameraClippingRange()

    def close(self) -> None:
        self.application_logic.GetViewLogics().RemoveItem(self.logic)
        super().close()


def _panel(left: int, bottom: int, right: int, top: int) -> Any:
    """A black area, so that words and legend never lie on anatomy."""
    points = vtkPoints()
    for x, y in ((left, bottom), (right, bottom), (right, top), (left, top)):
        points.InsertNextPoint(x, y, 0)
    cells = vtkCellArray()
    cells.InsertNextCell(4, (0, 1, 2, 3))
    area = vtkPolyData()
    area.SetPoints(points)
    area.SetPolys(cells)
    mapper = vtkPolyDataMapper2D()
    mapper.SetInputData(area)
    actor = vtkActor2D()
    actor.SetMapper(mapper)
    actor.GetProperty().SetColor(0, 0, 0)
    return actor


def blended(colour: Sequence[float], opacity: float, grey: float) -> tuple[float, ...]:
    """A colour as it looks laid over a grey, each in 0..1."""
    return tuple(opacity * part + (1 - opacity) * grey for part in colour)


def _soft_tissue_grey(ct: Any) -> float:
    """How bright soft tissue is shown in a CT, 0..1."""
    display = ct.GetDisplayNode()
    window = max(display.GetWindow(), 1.0)
    return float(np.clip((SOFT_TISSUE_HU - display.GetLevel()) / window + 0.5, 0, 1))
