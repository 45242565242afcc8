"""``slicer.app`` and what hangs on it, where there is no application.

Left out: the IO manager (``slicer.util.loadVolume``, ``saveScene``; scenes are saved by ``WriteToMRB``), the extension
manager, the main window's contents.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Signal

from Testing.host.layout_manager import LayoutManager
from Testing.host.pythonqt import application as qt_application, make_qt, qt_class
from Testing.host.scripted_record import ModuleManager

qt = make_qt()


@qt_class
class qSlicerMainWindow(qt.QMainWindow):  # type: ignore[misc, name-defined]
    initialWindowShown = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")


@qt_class
class HostApplication(qt.QObject):  # type: ignore[misc, name-defined]
    """What a module asks of ``slicer.app``."""

    lastWindowClosed = Signal()
    startupCompleted = Signal()
    mrmlSceneChanged = Signal(object)
    SIGNALS = ("mrmlSceneChanged(vtkMRMLScene*)", "aboutToQuit()")
    aboutToQuit = Signal()
    applicationName, majorVersion, minorVersion, revision = "Slicer", 5, 12, "stand-in"
    applicationVersion, platform = "5.12.4 stand-in", "test-host"

    def __init__(self, session: Any, folder: str) -> None:
        super().__init__()
        self._scene, self._logic = session.scene, session.application_logic
        self._folder = folder
        self._window = qSlicerMainWindow()
        self._layout = LayoutManager(self._scene, self._logic)
        self._modules = ModuleManager()
        self._paused = 0

    temporaryPath = property(lambda s: s._folder, lambda s, v: None)
    slicerHome = property(lambda s: s._folder)

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def layoutManager(self) -> Any:
        return self._layout

    def moduleManager(self) -> Any:
        return self._modules

    def mainWindow(self) -> Any:
        return self._window

    def topLevelWidgets(self) -> list[Any]:
        return [self._window, *QtWidgets.QApplication.topLevelWidgets()]

    def testingEnabled(self) -> bool:
        """False, so that ``slicer.util`` shows its boxes, which the host records."""
        return False

    def commandOptions(self) -> Any:
        return SimpleNamespace(noMainWindow=False, testingEnabled=False, runPythonAndExit=False)

    def processEvents(self, *unused: Any) -> None:
        qt_application().processEvents()

    def pauseRender(self) -> None:
        self._paused += 1

    def resumeRender(self) -> None:
        if not self._paused:
            raise RuntimeError("resumeRender without pauseRender")
        self._paused -= 1

    def isRenderPaused(self) -> bool:
        return bool(self._paused)

    def palette(self) -> Any:
        return QtWidgets.QApplication.palette()

    def setOverrideCursor(self, cursor: Any) -> None:
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        QtWidgets.QApplication.restoreOverrideCursor()

    def clipboard(self) -> Any:
        return QtWidgets.QApplication.clipboard()

    def userSettings(self) -> Any:
        return QtCore.QSettings()

    settings = revisionUserSettings = userSettings

    def translate(self, context: str, text: str) -> str:
        return text

    def documentationBaseUrl(self) -> str:
        return "https://slicer.readthedocs.io/"

    def startupEnvironment(self) -> dict[str, str]:
        import os

        return dict(os.environ)

    def setRenderPaused(self, paused: bool) -> None:
        self._paused = int(paused)
