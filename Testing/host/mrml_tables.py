"""Stand-ins for qMRML's tables, charts and segment lists."""

from __future__ import annotations

from typing import Any

import vtk
from PySide6.QtCore import Property, Signal

from Testing.host.mrml_widgets import _OfScene, kept, qMRMLNodeComboBox, qMRMLWidget
from Testing.host.observing import Observing
from Testing.host.pythonqt import make_qt, qt_class

qt = make_qt()


@qt_class
class qMRMLTableView(_OfScene, Observing, qt.QTableWidget):  # type: ignore[misc, name-defined]
    """Shows a table node; reads only, as with a locked table."""

    def setMRMLTableNode(self, node: Any) -> None:
        self.stop_observing()
        self.__dict__["_table"] = node
        if node is not None:
            self.observe(node, vtk.vtkCommand.ModifiedEvent, qMRMLTableView._refresh)
        self._refresh()

    def mrmlTableNode(self) -> Any:
        return self.__dict__.get("_table")

    def _refresh(self) -> None:
        node = self.mrmlTableNode()
        columns = node.GetNumberOfColumns() if node is not None else 0
        self.setColumnCount(columns)
        self.setRowCount(node.GetNumberOfRows() if columns else 0)
        self.setHorizontalHeaderLabels([node.GetColumnName(column) for column in range(columns)])
        for row in range(self.rowCount):
            for column in range(columns):
                self.setItem(row, column, qt.QTableWidgetItem(node.GetCellText(row, column)))
        self.resizeColumnsToContents()


@qt_class
class qMRMLPlotView(_OfScene, qt.QWidget):  # type: ignore[misc, name-defined]
    """Holds a plot view node; draws nothing by itself (``pictures.chart`` draws charts)."""

    def setMRMLPlotViewNode(self, node: Any) -> None:
        self.__dict__["_view"] = node

    def mrmlPlotViewNode(self) -> Any:
        return self.__dict__.get("_view")


@qt_class
class qMRMLSegmentSelectorWidget(_OfScene, Observing, qt.QWidget):  # type: ignore[misc, name-defined]
    """A segmentation and a segment of it."""

    currentNodeChanged = Signal(object)
    currentSegmentChanged = Signal(str)
    SIGNALS = ("currentNodeChanged(vtkMRMLNode*)",)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        column = qt.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self._nodes, self._segments = qMRMLNodeComboBox(), qt.QComboBox()
        self._nodes.nodeTypes = ["vtkMRMLSegmentationNode"]
        column.addWidget(self._nodes)
        column.addWidget(self._segments)
        self._nodes.currentNodeChanged.connect(self._other_node)
        self._segments.currentIndexChanged.connect(lambda row: self.currentSegmentChanged.emit(self.currentSegmentID()))

    noneEnabled = kept("noneEnabled", bool, False)
    segmentationNodeSelectorVisible = kept("segmentationNodeSelectorVisible", bool, True)

    def _other_node(self, node: Any) -> None:
        self.stop_observing()
        if node is not None:
            segmentation = node.GetSegmentation()
            for event in (segmentation.SegmentAdded, segmentation.SegmentRemoved, segmentation.SegmentModified):
                self.observe(segmentation, event, qMRMLSegmentSelectorWidget._refresh)
        self._refresh()
        self.currentNodeChanged.emit(node)

    def _refresh(self) -> None:
        current = self.currentSegmentID()
        self._segments.clear()
        node = self.currentNode()
        for segment_id in node.GetSegmentation().GetSegmentIDs() if node is not None else ():
            self._segments.addItem(node.GetSegmentation().GetSegment(segment_id).GetName(), segment_id)
        self.setCurrentSegmentID(current)

    def currentNode(self) -> Any:
        return self._nodes.currentNode()

    def setCurrentNode(self, node: Any) -> None:
        self._nodes.setCurrentNode(node)

    def currentNodeID(self) -> str:
        return self._nodes.currentNodeID

    def currentSegmentID(self) -> str:
        return self._segments.currentData() or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        row = self._segments.findData(segment_id)
        if row >= 0:
            self._segments.setCurrentIndex(row)


@qt_class
class qMRMLSegmentsTableView(_OfScene, Observing, qt.QTableWidget):  # type: ignore[misc, name-defined]
    """The segments of a segmentation, one a row: visibility, colour, name."""

    _COLUMNS = ("Visible", "Color", "Name")

    def setSegmentationNode(self, node: Any) -> None:
        self.stop_observing()
        self.__dict__["_segmentation"] = node
        if node is not None:
            segmentation = node.GetSegmentation()
            for event in (segmentation.SegmentAdded, segmentation.SegmentRemoved, segmentation.SegmentModified):
                self.observe(segmentation, event, qMRMLSegmentsTableView._refresh)
        self._refresh()

    def segmentationNode(self) -> Any:
        return self.__dict__.get("_segmentation")

    def _ids(self) -> list[str]:
        node = self.segmentationNode()
        return list(node.GetSegmentation().GetSegmentIDs()) if node is not None else []

    def _refresh(self) -> None:
        node = self.segmentationNode()
        self.setColumnCount(len(self._COLUMNS))
        self.setHorizontalHeaderLabels(list(self._COLUMNS))
        self.setRowCount(len(self._ids()))
        for row, segment_id in enumerate(self._ids()):
            segment = node.GetSegmentation().GetSegment(segment_id)
            display = node.GetDisplayNode()
            shown = display is not None and display.GetSegmentVisibility(segment_id)
            colour = qt.QTableWidgetItem("")
            colour.setBackground(qt.QColor.fromRgbF(*segment.GetColor()))
            for column, item in enumerate(
                (qt.QTableWidgetItem("●" if shown else "○"), colour, qt.QTableWidgetItem(segment.GetName()))
            ):
                self.setItem(row, column, item)

    def selectedSegmentIDs(self) -> list[str]:
        ids = self._ids()
        return [ids[index.row()] for index in self.selectionModel().selectedRows()]


@qt_class
class qMRMLSubjectHierarchyTreeView(qMRMLWidget):
    """Holds the current item; its tree is not drawn."""

    currentItemChanged = Signal(int)
    currentItemsChanged = Signal(object)
    nodeTypes = kept("nodeTypes", "QStringList", [])
    multiSelection = kept("multiSelection", bool, False)
    rootItem = Property(int, lambda s: s.__dict__.get("_root", 0), lambda s, v: s.__dict__.__setitem__("_root", v))

    def subjectHierarchyNode(self) -> Any:
        import slicer

        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.mrmlScene())

    def currentItem(self) -> int:
        return self.__dict__.get("_item", 0)

    def setCurrentItem(self, item: int) -> None:
        self.__dict__["_item"] = item
        self.currentItemChanged.emit(item)
        self.currentItemsChanged.emit([item])

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentItem(self.subjectHierarchyNode().GetItemByDataNode(node) if node is not None else 0)

    def clearSelection(self) -> None:
        self.setCurrentItem(0)
