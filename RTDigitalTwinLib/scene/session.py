"""A Slicer without its window: scene, logics and files, from the slicer-core wheels alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import slicer
from vtkmodules.vtkCommonCore import vtkCollection, vtkOutputWindow

VERSION = "Slicer 5.12.4"  # of the scene files' format, as the wheels write it

# Terminologies are left out: their definition files come with the desktop application only.
_MODULE_LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}
_STAND_INS = ("mrmlScene", "app", "modules")


@dataclass(frozen=True, eq=False)
class Session:
    """A running Slicer: its scene and its application logic."""

    scene: Any
    application_logic: Any


@dataclass(frozen=True, eq=False)
class HeadlessApplication:
    """What scripts ask of ``slicer.app``, where there is no application."""

    scene: Any
    logic: Any
    temporaryPath: str  # noqa: N815 (Slicer's name)
    applicationName: str = "slicer-core"  # noqa: N815
    majorVersion: int = 5  # noqa: N815
    minorVersion: int = 12  # noqa: N815

    def mrmlScene(self) -> Any:  # noqa: N802
        return self.scene

    def applicationLogic(self) -> Any:  # noqa: N802
        return self.logic

    def layoutManager(self) -> None:  # noqa: N802
        return None

    def processEvents(self, *unused: object) -> None:  # noqa: N802
        pass

    def pauseRender(self) -> None:  # noqa: N802
        pass

    def resumeRender(self) -> None:  # noqa: N802
        pass


@dataclass(frozen=True, eq=False)
class _Module:
    name: str
    module_logic: Any

    def logic(self) -> Any:
        return self.module_logic


def in_application() -> bool:
    """Whether this runs inside desktop Slicer (or any host that brings its own application)."""
    app = getattr(slicer, "app", None)
    return app is not None and not isinstance(app, HeadlessApplication)


@contextmanager
def headless_session() -> Iterator[Session]:
    """A new, empty scene with all that is needed to fill, save, load and draw it.

    Inside desktop Slicer this is the application's own scene. Sessions may follow one another or be nested: each
    leaves ``slicer.mrmlScene``, ``slicer.app`` and ``slicer.modules`` as it found them.
    """
    if in_application():
        yield Session(slicer.mrmlScene, slicer.app.applicationLogic())
        return
    before = {name: getattr(slicer, name) for name in _STAND_INS if hasattr(slicer, name)}
    with tempfile.TemporaryDirectory(prefix="rt-digital-twin-", ignore_cleanup_errors=True) as folder:
        alive: list[Any] = []  # logics nobody else holds
        session = _start(folder, alive)
        try:
            yield session
        finally:
            session.scene.Clear(True)
            for name in _STAND_INS:
                if name in before:
                    setattr(slicer, name, before[name])
                else:
                    delattr(slicer, name)
            _tell_view_factories(before["app"].applicationLogic() if "app" in before else None)


def _start(folder: str, alive: list[Any]) -> Session:
    messages = vtkOutputWindow()
    messages.SetDisplayModeToAlwaysStdErr()  # else a window on Windows
    vtkOutputWindow.SetInstance(messages)

    scene = slicer.vtkMRMLScene()
    scene.SetVersion(VERSION)
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.SetTemporaryPath(folder)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtkCollection())
    application.SetViewLogics(vtkCollection())
    _tell_view_factories(application)

    modules = SimpleNamespace()
    for name, class_name in _MODULE_LOGICS.items():
        # The Colors module's own logic looks for colour files of the desktop application.
        logic = application.GetColorLogic() if name == "Colors" else getattr(slicer, class_name)()
        if name != "Colors":
            logic.SetMRMLApplicationLogic(application)
            logic.SetMRMLScene(scene)
            alive.append(logic)
        application.SetModuleLogic(name, logic)
        setattr(modules, name.lower(), _Module(name, logic))
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    _allow_files(scene, application, folder, alive)

    slicer.mrmlScene, slicer.modules = scene, modules
    slicer.app = HeadlessApplication(scene, application, folder)
    return Session(scene, application)


def _allow_files(scene: Any, application: Any, folder: str, alive: list[Any]) -> None:
    """Reading an MRB asks the scene for a data manager with a cache folder."""
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLScene(scene)
    remote.SetMRMLApplicationLogic(application)
    remote.GetCacheManager().SetRemoteCacheDirectory(folder)
    manager = slicer.vtkDataIOManagerLogic()
    manager.SetMRMLScene(scene)
    manager.SetMRMLApplicationLogic(application)
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    alive += [remote, manager]


def _tell_view_factories(application: Any) -> None:
    for factory in (
        slicer.vtkMRMLSliceViewDisplayableManagerFactory,
        slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
    ):
        factory.GetInstance().SetMRMLApplicationLogic(application)
