"""Pictures of panels and of the whole layout, as the test host renders them; not desktop Slicer's look."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import slicer
from PySide6 import QtCore

from Testing.host import views
from Testing.host.mrml_tables import qMRMLTableView
from Testing.host.pythonqt import application, make_qt

qt = make_qt()
PANEL_PIXELS = 520
VIEW_PIXELS = (1240, 900)
_GAP = 3
_TITLE_PIXELS = 20


def grab(widget: Any, path: Path, width: int = PANEL_PIXELS) -> Path:
    """A widget's picture at its natural height."""
    _pixmap(widget, width).save(str(path))
    return path


def _pixmap(widget: Any, width: int, height: int | None = None) -> Any:
    widget.setMinimumWidth(width)
    widget.resize(width, height or max(widget.sizeHint.height(), widget.minimumSizeHint.height()))
    widget.setAttribute(QtCore.Qt.WidgetAttribute.WA_DontShowOnScreen, True)
    widget.show()
    application().processEvents()
    tall = widget.heightForWidth(width)
    widget.resize(width, height or max(tall, widget.sizeHint.height(), widget.minimumSizeHint.height()))
    application().processEvents()
    return widget.grab()


def grab_layout(module: Any, path: Path) -> Path:
    """The module's panel at the left, the present layout's views at the right."""
    panel = _pixmap(module.parent, PANEL_PIXELS)
    height = max(VIEW_PIXELS[1], panel.height())
    canvas = qt.QImage(PANEL_PIXELS + VIEW_PIXELS[0], height, qt.QImage.Format.Format_RGB32)
    canvas.fill(application().palette().color(qt.QPalette.ColorRole.Window))
    painter = qt.QPainter(canvas)
    try:
        painter.drawPixmap(0, 0, panel)
        area = QtCore.QRect(PANEL_PIXELS, 0, VIEW_PIXELS[0], min(height, VIEW_PIXELS[1]))
        painter.fillRect(area, qt.QColor(40, 40, 40))
        node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
        _draw(painter, ElementTree.fromstring(node.GetLayoutDescription(node.GetViewArrangement())), area)
    finally:
        painter.end()
    canvas.save(str(path))
    return path


def _draw(painter: Any, element: Any, area: Any) -> None:
    """A layout element, its items side by side, one below the other, in a grid, or the first of tabs."""
    views_here = element.findall("view")
    if views_here:
        _draw_view(painter, views_here[0], area.adjusted(_GAP, _GAP, -_GAP, -_GAP))
        return
    if element.tag == "item":
        for inner in element:
            _draw(painter, inner, area)
        return
    items = element.findall("item")
    kind = element.get("type", "horizontal")
    if kind == "tab":
        _draw(painter, items[0], area)
        return
    if kind == "grid":
        rows = 1 + max(int(item.get("row", 0)) for item in items)
        columns = 1 + max(int(item.get("column", 0)) for item in items)
        for item in items:
            row, column = int(item.get("row", 0)), int(item.get("column", 0))
            wide = int(item.get("colspan", 1))
            _draw(painter, item, _part(_part(area, row, rows, False), column, columns, True, wide))
        return
    sizes = [float(item.get("splitSize", 0)) or 1.0 for item in items]
    start = 0.0
    for item, size in zip(items, sizes, strict=True):
        share = size / sum(sizes)
        if kind == "horizontal":
            left, right = (round(area.width() * at) for at in (start, start + share))
            _draw(painter, item, QtCore.QRect(area.x() + left, area.y(), right - left, area.height()))
        else:
            top, bottom = (round(area.height() * at) for at in (start, start + share))
            _draw(painter, item, QtCore.QRect(area.x(), area.y() + top, area.width(), bottom - top))
        start += share


def _part(area: Any, index: int, of: int, horizontal: bool, span: int = 1) -> Any:
    length = (area.width() if horizontal else area.height()) // of
    if horizontal:
        return QtCore.QRect(area.x() + index * length, area.y(), span * length, area.height())
    return QtCore.QRect(area.x(), area.y() + index * length, area.width(), span * length)


def _draw_view(painter: Any, view: Any, area: Any) -> None:
    name, kind = view.get("singletontag", ""), view.get("class")
    title = QtCore.QRect(area.x(), area.y(), area.width(), _TITLE_PIXELS)
    inside = area.adjusted(0, _TITLE_PIXELS, 0, 0)
    size = (inside.width(), inside.height())
    node = slicer.mrmlScene.GetSingletonNode(name, kind)
    colour = qt.QColor.fromRgbF(*node.GetLayoutColor()) if hasattr(node, "GetLayoutColor") else qt.QColor("grey")
    painter.fillRect(title, colour)
    painter.setPen(qt.QColor("black" if colour.lightness() > 110 else "white"))
    painter.drawText(title.adjusted(6, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, node.GetLayoutLabel() or name)
    if kind == "vtkMRMLSliceNode":
        logic = slicer.app.layoutManager().sliceWidget(name).sliceLogic()
        painter.drawImage(inside, _image(views.draw_slice(logic, size)))
    elif kind == "vtkMRMLViewNode":
        painter.drawImage(inside, _image(views.draw_solid(node, size)))
    elif kind == "vtkMRMLPlotViewNode" and node.GetPlotChartNode() is not None:
        painter.drawImage(inside, _image(views.draw_chart(node.GetPlotChartNode(), size)))
    elif kind == "vtkMRMLTableViewNode" and node.GetTableNode() is not None:
        table = qMRMLTableView()
        table.setMRMLTableNode(node.GetTableNode())
        painter.drawPixmap(inside.topLeft(), _pixmap(table, *size))
        table.stop_observing()
    else:
        painter.fillRect(inside, qt.QColor("black" if kind == "vtkMRMLPlotViewNode" else "white"))


def _image(rows: Any) -> Any:
    height, width, _ = rows.shape
    return qt.QImage(rows.tobytes(), width, height, 3 * width, qt.QImage.Format.Format_RGB888).copy()
