"""The layout's views drawn without a screen: slices and 3D by Slicer's displayable managers, charts by matplotlib.

Desktop Slicer draws charts with VTK's own and tables with qMRML's view; both are redrawn here from their nodes.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from RTDigitalTwinLib.scene.rendering import offscreen_window

_SLICE = (
    "vtkMRMLModelSliceDisplayableManager", "vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLRulerDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)  # fmt: skip
_SOLID = (
    "vtkMRMLCameraDisplayableManager", "vtkMRMLViewDisplayableManager", "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)  # fmt: skip


def pixels(window: Any) -> np.ndarray:
    """(height, width, 3), first row at the top."""
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    rows = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3]
    return np.ascontiguousarray(rows)


class _Drawing:
    """A window with the displayable managers of a view node."""

    def __init__(self, factory: Any, managers: tuple[str, ...], size: tuple[int, int], samples: int) -> None:
        self.renderer, self.window = vtk.vtkRenderer(), offscreen_window()
        self.window.SetMultiSamples(samples)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        instance = factory.GetInstance()
        instance.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for name in managers:
            if not instance.IsDisplayableManagerRegistered(name):
                instance.RegisterDisplayableManager(name)
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.SetRenderer(self.renderer)
        self.group.Initialize(instance, self.renderer)

    def close(self) -> None:
        self.group.SetMRMLDisplayableNode(None)
        self.window.Finalize()


def draw_slice(logic: Any, size: tuple[int, int]) -> np.ndarray:
    """What a slice view of the layout shows."""
    node = logic.GetSliceNode()
    logic.ResizeSliceNode(*size)
    logic.FitSliceToAll(*size)
    drawing = _Drawing(slicer.vtkMRMLSliceViewDisplayableManagerFactory, _SLICE, size, 4)
    try:
        drawing.renderer.GetActiveCamera().ParallelProjectionOn()
        mapper = vtk.vtkImageMapper()
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        image = vtk.vtkActor2D()
        image.SetMapper(mapper)
        image.GetProperty().SetDisplayLocationToBackground()
        if logic.GetImageDataConnection() is not None:
            drawing.renderer.AddViewProp(image)
            mapper.SetInputConnection(logic.GetImageDataConnection())
        drawing.group.SetMRMLDisplayableNode(node)
        slicer.app.processEvents()
        node.Modified()
        return pixels(drawing.window)
    finally:
        drawing.close()


def draw_solid(node: Any, size: tuple[int, int]) -> np.ndarray:
    """What a 3D view of the layout shows, from the front after the camera's reset."""
    drawing = _Drawing(slicer.vtkMRMLThreeDViewDisplayableManagerFactory, _SOLID, size, 0)
    try:
        drawing.renderer.SetUseDepthPeeling(True)
        drawing.group.SetMRMLDisplayableNode(node)
        slicer.app.processEvents()
        camera = drawing.renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(-250, 400, 120)
        camera.SetViewUp(0, 0, 1)
        drawing.window.Render()
        drawing.renderer.ResetCamera()
        camera.Zoom(1.8)  # the box around it all has much room
        drawing.renderer.ResetCameraClippingRange()
        return pixels(drawing.window)
    finally:
        drawing.close()


def draw_chart(node: Any, size: tuple[int, int]) -> bytes:
    """A plot chart node as PNG: its series from their tables."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index in range(node.GetNumberOfPlotSeriesNodes()):
        _draw_series(axes, node.GetNthPlotSeriesNode(index))
    axes.set(xlabel=node.GetXAxisTitle() or "", ylabel=node.GetYAxisTitle() or "")
    figure.suptitle(node.GetTitle() or "", fontsize=8, wrap=True)  # over the whole width, which is where it breaks
    axes.tick_params(labelsize=7)
    axes.grid(node.GetGridVisibility(), alpha=0.3)
    if not node.GetXAxisRangeAuto():
        axes.set_xlim(*node.GetXAxisRange())
    if not node.GetYAxisRangeAuto():
        axes.set_ylim(*node.GetYAxisRange())
    if node.GetLegendVisibility() and axes.lines:
        axes.legend(fontsize=6, loc="best")
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_series(axes: Any, series: Any) -> None:
    table = series.GetTableNode() if series is not None else None
    if table is None:
        return
    columns = [table.GetTable().GetColumnByName(name) for name in (series.GetXColumnName(), series.GetYColumnName())]
    if columns[1] is None:
        return
    y = vtk_to_numpy(columns[1])
    x = vtk_to_numpy(columns[0]) if columns[0] is not None else np.arange(len(y))
    styles = {series.LineStyleNone: "", series.LineStyleDash: "--", series.LineStyleDot: ":",
              series.LineStyleDashDot: "-.", series.LineStyleDashDotDot: "-."}  # fmt: skip
    style = styles.get(series.GetLineStyle(), "-")
    if series.GetPlotType() == series.PlotTypeBar:
        axes.bar(x, y, color=series.GetColor(), label=series.GetName(), alpha=series.GetOpacity())
        return
    # A band's lower and upper curve repeat the structure's name in dashes: the legend names it once.
    name = series.GetName() if style in ("-", "") else "_nolegend_"
    marker = "" if series.GetMarkerStyle() == series.MarkerStyleNone else "o"
    axes.plot(
        x, y, style or "", marker=marker, markersize=3, color=series.GetColor(), label=name,
        linewidth=series.GetLineWidth() * 0.6, alpha=series.GetOpacity(),
    )  # fmt: skip
