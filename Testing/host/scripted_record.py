"""The C++ halves of a scripted module: its record, the parent of its panel, the manager that tells of unloading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

from Testing.host.mrml_widgets import qSlicerWidget
from Testing.host.pythonqt import make_qt, qt_class

qt = make_qt()


class ModuleManager:
    """Tells that a module is about to be unloaded."""

    def __init__(self) -> None:
        self._told: list[Callable[[str], None]] = []
        self.loaded: dict[str, Any] = {}

    def connect(self, signal: str, function: Callable[[str], None]) -> bool:
        if signal != "moduleAboutToBeUnloaded(QString)":
            raise ValueError(f"qSlicerModuleManager has no signal {signal}")
        self._told.append(function)
        return True

    def disconnect(self, signal: str, function: Callable[[str], None]) -> bool:
        self._told.remove(function)
        return True

    def module(self, name: str) -> Any:
        return self.loaded.get(name)

    def modulesNames(self) -> list[str]:
        return list(self.loaded)

    def factoryManager(self) -> Any:
        return self

    def loadedModuleNames(self) -> list[str]:
        return list(self.loaded)

    def unload(self, name: str) -> None:
        for function in list(self._told):
            function(name)
        self.loaded.pop(name, None)


@qt_class
class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The parent of a module's panel; knows whether the user is in the module."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.setLayout(qt.QVBoxLayout())
        self._entered, self._panel = False, None

    isEntered = property(lambda s: s._entered)

    def self(self) -> Any:
        return self._panel


class qSlicerScriptedLoadableModule:
    """A module as the module manager knows it; refuses what desktop Slicer's record does not have."""

    _FIELDS = (
        "path", "name", "title", "categories", "dependencies", "contributors", "helpText", "acknowledgementText",
        "icon", "hidden", "widgetRepresentationCreationEnabled", "index", "associatedNodeTypes", "isBuiltIn",
    )  # fmt: skip

    def __init__(self, name: str, path: str) -> None:
        self.path, self.name, self.title = path, name, ""
        self.categories, self.dependencies, self.contributors = [], [], []
        self.helpText, self.acknowledgementText, self.icon = "", "", None
        self.hidden, self.widgetRepresentationCreationEnabled = False, True
        self._widget: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._FIELDS and not name.startswith("_"):
            raise AttributeError(f"qSlicerScriptedLoadableModule.{name} does not exist")
        object.__setattr__(self, name, value)

    def widgetRepresentation(self) -> Any:
        return self._widget

    def logic(self) -> None:
        return None  # a scripted module's logic is its panel's


def offered() -> dict[str, Any]:
    """Classes below ``slicer``."""
    return {kind.__name__: kind for kind in (qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget)} | {
        "selfTests": {} if not hasattr(slicer, "selfTests") else slicer.selfTests
    }
