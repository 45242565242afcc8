"""The layout's views drawn without a screen: slices and 3D by Slicer's displayable managers, charts by VTK's own.

Desktop Slicer hands its nodes to VTK's charts and qMRML's tables; both are done here anew from the nodes.
"""

from __future__ import annotations

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


def draw_chart(node: Any, size: tuple[int, int]) -> np.ndarray:
    """A plot chart node as desktop Slicer's view draws it: VTK's chart, a plot a series, named as the series is."""
    view, window = vtk.vtkContextView(), offscreen_window()
    window.SetSize(*size)
    view.SetRenderWindow(window)
    try:
        view.GetScene().AddItem(chart_of(node))
        return pixels(window)
    finally:
        window.Finalize()


def chart_of(node: Any) -> Any:
    """VTK's chart of a plot chart node."""
    chart = vtk.vtkChartXY()
    chart.SetTitle(node.GetTitle() or "")
    chart.GetTitleProperties().SetFontFamilyToArial()
    chart.GetTitleProperties().SetFontSize(node.GetTitleFontSize())
    chart.SetShowLegend(node.GetLegendVisibility())
    chart.GetLegend().GetLabelProperties().SetFontFamilyToArial()
    for index in range(node.GetNumberOfPlotSeriesNodes()):
        plot = _plot(node.GetNthPlotSeriesNode(index))
        if plot is not None:
            chart.AddPlot(plot)
    for side, title, is_auto, span in (
        (vtk.vtkAxis.BOTTOM, node.GetXAxisTitle(), node.GetXAxisRangeAuto(), node.GetXAxisRange()),
        (vtk.vtkAxis.LEFT, node.GetYAxisTitle(), node.GetYAxisRangeAuto(), node.GetYAxisRange()),
    ):
        axis = chart.GetAxis(side)
        axis.SetTitle(title or "")
        axis.SetGridVisible(node.GetGridVisibility())
        for style, pixels_high in (
            (axis.GetTitleProperties(), node.GetAxisTitleFontSize()),
            (axis.GetLabelProperties(), node.GetAxisLabelFontSize()),
        ):
            style.SetFontFamilyToArial()
            style.SetFontSize(pixels_high)
        if not is_auto:
            axis.SetBehavior(vtk.vtkAxis.FIXED)
            axis.SetUnscaledRange(*span)
    return chart


def _plot(series: Any) -> Any:
    """A series as line or bars; None where its table has not what it shows."""
    table = series.GetTableNode() if series is not None else None
    if table is None or table.GetTable().GetColumnByName(series.GetYColumnName()) is None:
        return None
    is_bar = series.GetPlotType() in (series.PlotTypeBar, series.PlotTypeScatterBar)
    plot = vtk.vtkPlotBar() if is_bar else vtk.vtkPlotLine()
    needs_x = series.IsXColumnRequired()
    plot.SetUseIndexForXSeries(not needs_x)
    plot.SetInputData(table.GetTable(), series.GetXColumnName() if needs_x else series.GetYColumnName(),
                      series.GetYColumnName())  # fmt: skip
    plot.SetWidth(series.GetLineWidth())
    plot.SetColorF(*series.GetColor())
    plot.GetPen().SetOpacityF(series.GetOpacity())
    if not is_bar:
        styles = {series.LineStyleNone: vtk.vtkPen.NO_PEN, series.LineStyleSolid: vtk.vtkPen.SOLID_LINE,
                  series.LineStyleDash: vtk.vtkPen.DASH_LINE, series.LineStyleDot: vtk.vtkPen.DOT_LINE,
                  series.LineStyleDashDot: vtk.vtkPen.DASH_DOT_LINE,
                  series.LineStyleDashDotDot: vtk.vtkPen.DASH_DOT_DOT_LINE}  # fmt: skip
        plot.GetPen().SetLineType(styles[series.GetLineStyle()])
        is_marked = series.GetMarkerStyle() != series.MarkerStyleNone
        plot.SetMarkerStyle(vtk.vtkPlotPoints.CIRCLE if is_marked else vtk.vtkPlotPoints.NONE)
    plot.SetLabel(series.GetName() or "")
    return plot
