"""Stand-ins for qMRML's widgets that a module uses, on the real scene.

As in desktop Slicer a selector lists the scene's nodes of its types, follows additions, removals and new names, and
tells a change of the current node once.
"""

from __future__ import annotations

from typing import Any

import vtk
from PySide6.QtCore import Property, Signal

from Testing.host.ctk_widgets import _Slider, ctkCollapsibleButton, ctkDoubleSpinBox, ctkRangeWidget, kept
from Testing.host.observing import Observing
from Testing.host.pythonqt import make_qt, qt_class

qt = make_qt()


class _OfScene:
    """A widget that is given a scene, and hands it to those inside it."""

    def setMRMLScene(self: Any, scene: Any) -> None:
        self.__dict__["_scene"] = scene
        for child in self.findChildren(qt.QWidget):
            if isinstance(child, _OfScene) and child is not self and child.__dict__.get("_scene") is not scene:
                child.setMRMLScene(scene)
        if hasattr(self, "mrmlSceneChanged"):
            self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self: Any) -> Any:
        return self.__dict__.get("_scene")


@qt_class
class qMRMLWidget(_OfScene, qt.QWidget):  # type: ignore[misc, name-defined]
    mrmlSceneChanged = Signal(object)
    SIGNALS = ("mrmlSceneChanged(vtkMRMLScene*)",)


@qt_class
class qSlicerWidget(_OfScene, qt.QWidget):  # type: ignore[misc, name-defined]
    mrmlSceneChanged = Signal(object)
    SIGNALS = ("mrmlSceneChanged(vtkMRMLScene*)",)


@qt_class
class qMRMLCollapsibleButton(_OfScene, ctkCollapsibleButton):
    pass


@qt_class
class qMRMLSliderWidget(_OfScene, _Slider):
    quantity = kept("quantity", str, "")


@qt_class
class qMRMLSpinBox(_OfScene, ctkDoubleSpinBox):
    quantity = kept("quantity", str, "")


@qt_class
class qMRMLRangeWidget(_OfScene, ctkRangeWidget):
    quantity = kept("quantity", str, "")


def _listing(name: str, kind: Any, default: Any) -> Any:
    """A property that decides what is listed."""
    field = f"_list_{name}"

    def put(self: Any, value: Any) -> None:
        self.__dict__[field] = list(value) if isinstance(default, list) else value
        self._refresh()

    return Property(kind, lambda s: s.__dict__.get(field, default), put)


@qt_class
class qMRMLNodeComboBox(_OfScene, Observing, qt.QComboBox):  # type: ignore[misc, name-defined]
    """Chooses a node of the scene."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAddedByUser = Signal(object)
    SIGNALS = (
        "currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)", "nodeActivated(vtkMRMLNode*)",
        "nodeAddedByUser(vtkMRMLNode*)",
    )  # fmt: skip

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._filters: list[tuple[str, str, Any]] = []
        self._told = ""
        self._filling = False
        self.currentIndexChanged.connect(lambda index: self._tell())

    nodeTypes = _listing("nodeTypes", "QStringList", [])
    noneEnabled = _listing("noneEnabled", bool, False)
    noneDisplay = _listing("noneDisplay", str, "None")
    showHidden = _listing("showHidden", bool, False)
    showChildNodeTypes = _listing("showChildNodeTypes", bool, True)
    hideChildNodeTypes = _listing("hideChildNodeTypes", "QStringList", [])
    addEnabled = kept("addEnabled", bool, True)
    removeEnabled = kept("removeEnabled", bool, True)
    editEnabled = kept("editEnabled", bool, False)
    renameEnabled = kept("renameEnabled", bool, False)
    selectNodeUponCreation = kept("selectNodeUponCreation", bool, True)
    baseName = kept("baseName", str, "")
    interactionNodeSingletonTag = kept("interactionNodeSingletonTag", str, "")

    def setMRMLScene(self, scene: Any) -> None:
        self.stop_observing()
        self.__dict__["_scene"] = scene
        if scene is not None:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
                self.observe(scene, event, qMRMLNodeComboBox._refresh)
        self._refresh()

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        """List only nodes of the type that have the attribute (with the value)."""
        self._filters.append((node_type, name, value))
        self._refresh()

    def _listed(self) -> list[Any]:
        scene = self.mrmlScene()
        found: list[Any] = []
        for name in self.nodeTypes if scene is not None else []:
            for index in range(scene.GetNumberOfNodesByClass(name)):
                node = scene.GetNthNodeByClass(index, name)
                if node not in found and self._is_shown(node, name):
                    found.append(node)
        return found

    def _is_shown(self, node: Any, name: str) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        if not self.showChildNodeTypes and node.GetClassName() != name:
            return False
        if any(node.IsA(hidden) for hidden in self.hideChildNodeTypes):
            return False
        for node_type, attribute, value in self._filters:
            has = node.GetAttribute(attribute)
            if node.IsA(node_type) and (has is None or (value is not None and has != str(value))):
                return False
        return True

    def _refresh(self) -> None:
        current = self.currentNodeID
        self._filling = True
        self.clear()
        if self.noneEnabled:
            self.addItem(self.noneDisplay, "")
        listed = self._listed()
        self.keep_observing([*listed, self.mrmlScene()])
        for node in listed:
            self.addItem(node.GetName(), node.GetID())
            if not self.observes(node, vtk.vtkCommand.ModifiedEvent):
                self.observe(node, vtk.vtkCommand.ModifiedEvent, qMRMLNodeComboBox._rename)
        found = self.findData(current) if current else -1
        self.setCurrentIndex(found if found >= 0 else 0 if self.count else -1)
        self._filling = False
        self._tell()

    def _rename(self) -> None:
        for index in range(self.count):
            node = self.nodeFromIndex(index)
            if node is not None and node.GetName() != self.itemText(index):
                self.setItemText(index, node.GetName())

    def _tell(self) -> None:
        if not self._filling and self.currentNodeID != self._told:
            self._told = self.currentNodeID
            self.currentNodeIDChanged.emit(self._told)
            self.currentNodeChanged.emit(self.currentNode())

    def _select(self, node_id: str) -> None:
        found = self.findData(node_id or "")
        self.setCurrentIndex(found if found >= 0 else self.findData("") if self.noneEnabled else -1)

    currentNodeID = Property(str, lambda s: s.itemData(s.currentIndex) or "" if s.count else "", _select)

    def nodeFromIndex(self, index: int) -> Any:
        node_id = self.itemData(index)
        return self.mrmlScene().GetNodeByID(node_id) if node_id and self.mrmlScene() is not None else None

    def nodeCount(self) -> int:
        return len(self._listed())

    def currentNode(self) -> Any:
        return self.nodeFromIndex(self.currentIndex)

    def setCurrentNode(self, node: Any) -> None:
        self._select("" if node is None else node.GetID())

    def setCurrentNodeID(self, node_id: str) -> None:
        self._select(node_id)

    def addNode(self, node_type: str | None = None) -> Any:
        kind = node_type or self.nodeTypes[0]
        node = self.mrmlScene().AddNewNodeByClass(kind, self.baseName or kind.removeprefix("vtkMRML"))
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node
