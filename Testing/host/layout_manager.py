"""``slicer.app.layoutManager()``: the real layout logic and view nodes, with stand-ins for the views' widgets.

Views are drawn on demand by ``views``; nothing is drawn while the module runs.
"""

from __future__ import annotations

from typing import Any

import slicer


class _View:
    """A view's widget: hands out its node and its controller."""

    def __init__(self, manager: LayoutManager, node: Any, logic: Any = None) -> None:
        self._manager, self._node, self._logic = manager, node, logic

    def mrmlSliceNode(self) -> Any:
        return self._node

    def mrmlViewNode(self) -> Any:
        return self._node

    def mrmlPlotViewNode(self) -> Any:
        return self._node

    def mrmlTableViewNode(self) -> Any:
        return self._node

    def sliceLogic(self) -> Any:
        return self._logic

    def sliceView(self) -> Any:
        return self

    def sliceController(self) -> Any:
        return self

    def threeDView(self) -> Any:
        return self

    def threeDController(self) -> Any:
        return self

    def plotView(self) -> Any:
        return self

    def tableView(self) -> Any:
        return self

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToAll()

    def setSliceOffsetValue(self, offset: float) -> None:
        self._logic.SetSliceOffset(offset)

    def sliceOffsetSlider(self) -> Any:
        return self

    def resetFocalPoint(self) -> None:
        self._manager.reset_cameras()

    def resetCamera(self) -> None:
        self._manager.reset_cameras()

    def lookFromAxis(self, axis: int) -> None:
        pass

    def forceRender(self) -> None:
        pass

    scheduleRender = forceRender

    def setMRMLTableViewNode(self, node: Any) -> None:
        self._node = node


class LayoutManager:
    """Layouts by number, view nodes made by the layout's description."""

    _KINDS = {"slice": "vtkMRMLSliceNode", "three": "vtkMRMLViewNode", "plot": "vtkMRMLPlotViewNode",
              "table": "vtkMRMLTableViewNode"}  # fmt: skip

    def __init__(self, scene: Any, application_logic: Any) -> None:
        self._scene, self._application_logic = scene, application_logic
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLScene(scene)
        self._slices: dict[str, Any] = {}
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def layoutLogic(self) -> Any:
        return self._logic

    def _node(self) -> Any:
        return self._logic.GetLayoutNode()

    def setLayout(self, number: int) -> None:
        if not self._node().IsLayoutDescription(number):
            raise ValueError(f"There is no layout {number}")
        self._node().SetViewArrangement(number)
        self._make_slice_logics()

    layout = property(lambda s: s._node().GetViewArrangement(), lambda s, v: s.setLayout(v))

    def viewport(self) -> Any:
        return None

    def mrmlScene(self) -> Any:
        return self._scene

    def _shown(self, kind: str) -> list[Any]:
        """Mapped view nodes of a kind, in the layout's order."""
        views = self._logic.GetViewNodes()
        nodes = [views.GetItemAsObject(index) for index in range(views.GetNumberOfItems())]
        return [node for node in nodes if node.IsA(self._KINDS[kind])]

    def _make_slice_logics(self) -> None:
        """As the application does for each slice view that comes up."""
        for node in self._shown("slice"):
            name = node.GetLayoutName()
            if name in self._slices and self._scene.IsNodePresent(self._slices[name].GetSliceNode()):
                continue
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(self._application_logic)
            self._application_logic.GetSliceLogics().AddItem(logic)
            logic.SetMRMLScene(self._scene)
            logic.SetSliceNode(node)
            logic.ResizeSliceNode(400, 300)
            self._slices[name] = logic

    def sliceViewNames(self) -> list[str]:
        self._make_slice_logics()
        return [node.GetLayoutName() for node in self._shown("slice")]

    def sliceWidget(self, name: str) -> _View | None:
        self._make_slice_logics()
        logic = self._slices.get(name)
        return None if logic is None else _View(self, logic.GetSliceNode(), logic)

    def mrmlSliceLogics(self) -> Any:
        return self._application_logic.GetSliceLogics()

    def resetSliceViews(self) -> None:
        self._make_slice_logics()
        for logic in self._slices.values():
            logic.FitSliceToAll()

    def resetThreeDViews(self) -> None:
        self.reset_cameras()

    def reset_cameras(self) -> None:
        """Cameras look anew when the view is next drawn."""
        for node in slicer.util.getNodesByClass("vtkMRMLCameraNode"):
            node.SetAttribute("TestHost.Reset", "1")

    def _widget(self, kind: str, index: int) -> _View | None:
        nodes = self._shown(kind)
        return _View(self, nodes[index]) if 0 <= index < len(nodes) else None

    threeDViewCount = property(lambda s: len(s._shown("three")))
    plotViewCount = property(lambda s: len(s._shown("plot")))
    tableViewCount = property(lambda s: len(s._shown("table")))

    def threeDWidget(self, index: int) -> _View | None:
        return self._widget("three", index)

    def plotWidget(self, index: int) -> _View | None:
        return self._widget("plot", index)

    def tableWidget(self, index: int) -> _View | None:
        return self._widget("table", index)

    def close(self) -> None:
        for logic in self._slices.values():
            self._application_logic.GetSliceLogics().RemoveItem(logic)
            logic.SetMRMLScene(None)
        self._slices.clear()
        self._logic.SetMRMLScene(None)
