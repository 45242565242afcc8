"""``qt.QUiLoader`` that knows the stand-ins, and keeps their Python halves alive with the panel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from Testing.host.pythonqt import LOADING


class MissingWidget(Exception):
    """The .ui file names a class that neither Qt nor the stand-ins have."""


def make_loader(modules: tuple[ModuleType, ...]) -> type:
    """A loader that looks for classes in the modules first, in order."""

    class QUiLoader(QtUiTools.QUiLoader):
        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self._made: list[Any] = []
            self._missing: list[str] = []

        def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
            for module in modules:
                kind = getattr(module, class_name, None)
                if isinstance(kind, type) and issubclass(kind, QtWidgets.QWidget):
                    widget = kind(parent)
                    widget.setObjectName(name)
                    self._made.append(widget)
                    return widget
            made = super().createWidget(class_name, parent, name)
            if made is None or class_name.startswith(("ctk", "qMRML", "qSlicer")):
                self._missing.append(class_name)
            return made

        def load(self, file: Any, parent: Any = None) -> Any:
            known: list[str] = []
            before = QtCore.qInstallMessageHandler(lambda kind, context, text: known.append(text))
            LOADING.append(True)
            panel = None
            try:
                panel = super().load(file, parent)
            except RuntimeError:
                if not self._missing:
                    raise
            finally:
                LOADING.pop()
                QtCore.qInstallMessageHandler(before)
            if self._missing:
                raise MissingWidget(f"{', '.join(self._missing)}: give Testing/host a stand-in")
            if panel is not None:
                for name in [each for each, found in panel.__dict__.items() if isinstance(found, QtCore.QObject)]:
                    del panel.__dict__[name]  # desktop Slicer's does not
                panel.__dict__["_made_by_loader"] = self._made
                panel.__dict__["_loader_messages"] = known
            return panel

    return QUiLoader
