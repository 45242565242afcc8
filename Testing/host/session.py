"""Start the stand-in application, load a scripted module into it, and leave the process as it was."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from PySide6 import QtCore

from Testing.host import dialogs, observing
from Testing.host.pythonqt import application as qt_application, make_qt

ROOT = Path(__file__).resolve().parents[2]
MODULE_FILE = ROOT / "RTDigitalTwin" / "RTDigitalTwin.py"
OWN_FILES_VARIABLE = "RTDT_SLICER_PYTHON"
LIBRARY = "RTDigitalTwinLib"  # has nothing of the application at import
_ABSENT = object()


class LoadedModule:
    """A scripted module in the host.

    Attributes
    ----------
    python : its Python module.
    record : as ``slicer.modules`` knows it.
    widget : the instance of its Widget class.
    parent : the Qt widget its panel lies in.
    """

    def __init__(self, python: ModuleType, record: Any, widget: Any, parent: Any, seconds: float) -> None:
        self.python, self.record, self.widget, self.parent = python, record, widget, parent
        self.seconds_to_open = seconds

    @property
    def ui(self) -> Any:
        return self.widget.ui

    @property
    def logic(self) -> Any:
        return self.widget.logic

    def enter(self) -> None:
        """The user chooses the module in the module list."""
        if not self.parent._entered:
            self.parent._entered = True
            self.widget.enter()

    def exit(self) -> None:
        """The user goes to another module."""
        if self.parent._entered:
            self.parent._entered = False
            self.widget.exit()


class Host:
    """The running stand-in application.

    Attributes
    ----------
    scene : the MRML scene.
    dialogs : boxes shown; ``dialogs.answers`` and ``dialogs.paths`` are laid ready by the test.
    uncaught : exceptions that left a slot or an observer: a Slicer user sees them in the console only.
    """

    is_desktop = False

    def __init__(self, session: Any, record: dialogs.Dialogs) -> None:
        self.scene, self.application_logic, self.dialogs = session.scene, session.application_logic, record
        self.uncaught: list[BaseException] = []
        self.modules: list[LoadedModule] = []

    def load_module(self, path: Path = MODULE_FILE, enter: bool = True) -> LoadedModule:
        """Discover, instantiate and open a scripted module, as the application does."""
        import slicer

        start = time.perf_counter()
        name = path.stem
        python = _import(name, path)
        record = slicer.qSlicerScriptedLoadableModule(name, str(path))
        setattr(slicer.modules, name.lower(), record)
        setattr(slicer.modules, f"{name}Instance", getattr(python, name)(record))
        slicer.app.moduleManager().loaded[name] = record
        parent = slicer.qSlicerScriptedLoadableModuleWidget()
        parent.setObjectName(f"{name}ModuleWidget")
        parent.setMRMLScene(self.scene)
        record._widget = parent
        widget = getattr(python, f"{name}Widget")(parent)
        parent._panel = widget
        setattr(slicer.modules, f"{name}Widget", widget)
        widget.setup()
        module = LoadedModule(python, record, widget, parent, 0.0)
        self.modules.append(module)
        if enter:
            module.enter()
        self.process_events()
        module.seconds_to_open = time.perf_counter() - start
        return module

    def unload(self, module: LoadedModule) -> None:
        import slicer

        module.exit()
        slicer.app.moduleManager().unload(module.record.name)
        module.parent.close()
        self.modules.remove(module)

    def close_scene(self) -> None:
        """File > Close scene."""
        self.scene.Clear(0)
        self.process_events()

    def save_mrb(self, path: Path) -> None:
        import slicer

        messages = slicer.vtkMRMLMessageCollection()
        if not self.scene.WriteToMRB(str(path), None, messages):
            raise OSError(messages.GetAllMessagesAsString())

    def load_mrb(self, path: Path) -> None:
        """File > Add data, of a saved scene into a closed one."""
        import slicer

        messages = slicer.vtkMRMLMessageCollection()
        self.scene.Clear(0)
        if not self.scene.ReadFromMRB(str(path), False, messages):
            raise OSError(messages.GetAllMessagesAsString())
        self.process_events()

    def process_events(self) -> None:
        qt_application().processEvents()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 30.0, doing: str = "") -> None:
        """Run the event loop until a condition holds.

        Raises
        ------
        TimeoutError
            if it does not within the time.
        """
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"Waited {seconds:g} s in vain {doing}")
            qt_application().processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 20)
            time.sleep(0.002)

    def grab(self, widget: Any, path: Path, width: int = 520) -> Path:
        """A picture of a widget at its natural height."""
        from Testing.host.pictures import grab

        return grab(widget, path, width)

    def grab_layout(self, module: LoadedModule, path: Path) -> Path:
        """A picture of the panel at the left and the layout's views at the right."""
        from Testing.host.pictures import grab_layout

        return grab_layout(module, path)


def _import(name: str, path: Path) -> ModuleType:
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    python = importlib.util.module_from_spec(spec)
    sys.modules[name] = python
    spec.loader.exec_module(python)
    return python


@contextmanager
def slicer_application() -> Iterator[Host]:
    """A stand-in Slicer application with an empty scene; not to be nested."""
    import slicer

    from RTDigitalTwinLib.scene.session import headless_session

    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")  # VTK's own first choice needs a display
    modules_before, path_before = dict(sys.modules), list(sys.path)
    attributes_before = {name: getattr(slicer, name) for name in dir(slicer)}
    with headless_session() as session, dialogs.recorded() as record, tempfile.TemporaryDirectory() as folder:
        _settings_in(folder)
        host = Host(session, record)
        try:
            _install(slicer, session, folder)
            with _hearing_uncaught(host):
                yield host
                for module in list(host.modules):
                    host.unload(module)
        finally:
            observing.stop_all()
            layout = slicer.app.layoutManager()
            if layout is not None:
                layout.close()
            _restore(slicer, attributes_before, modules_before, path_before)


def _settings_in(folder: str) -> None:
    application = qt_application()
    application.setOrganizationName("RTDigitalTwin")
    application.setApplicationName("TestHost")
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, folder)


def _install(slicer: Any, session: Any, folder: str) -> None:
    sys.modules["qt"] = qt = make_qt()
    from Testing.host import ctk_widgets, mrml_tables, mrml_widgets, scripted_record
    from Testing.host.application import HostApplication
    from Testing.host.ui_loader import make_loader

    sys.modules["ctk"] = ctk = ctk_widgets.make_ctk()
    own = ModuleType("slicer.widgets")
    for source in (mrml_widgets, mrml_tables):
        for name, found in vars(source).items():
            if name.startswith(("qMRML", "qSlicer")):
                setattr(slicer, name, found)
                setattr(own, name, found)
    for name, found in scripted_record.offered().items():
        setattr(slicer, name, found)
    views = ModuleType("qSlicerSubjectHierarchyModuleWidgetsPythonQt")
    views.qMRMLSubjectHierarchyTreeView = mrml_tables.qMRMLSubjectHierarchyTreeView  # type: ignore[attr-defined]
    sys.modules[views.__name__] = views
    qt.QUiLoader = make_loader((ctk, own, qt))  # type: ignore[attr-defined]
    slicer.app = HostApplication(session, folder)
    _install_python(slicer, os.environ.get(OWN_FILES_VARIABLE))


def _install_python(slicer: Any, own_files: str | None) -> None:
    """Slicer's Python packages: its own files from a folder where they are, else the stand-ins."""
    from Testing.host import parameter_node, scripted_module

    stand_ins = {"parameterNodeWrapper": None, **scripted_module.make_modules()}
    for name in ("i18n", "packaging", "ScriptedLoadableModule", "parameterNodeWrapper"):
        if own_files and has_own(own_files, name):
            folder = Path(own_files) / "slicer"
            if str(folder) not in slicer.__path__:
                slicer.__path__.append(str(folder))
            module = importlib.import_module(f"slicer.{name}")
        else:
            module = stand_ins[name] or parameter_node.make_module()
            sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)


def has_own(folder: str | Path, name: str) -> bool:
    """Whether a folder has Slicer's own file or package of a name."""
    place = Path(folder) / "slicer" / name
    return place.is_dir() or place.with_suffix(".py").is_file()


@contextmanager
def _hearing_uncaught(host: Host) -> Iterator[None]:
    before = sys.excepthook

    def hear(kind: Any, error: BaseException, traceback: Any) -> None:
        host.uncaught.append(error)

    sys.excepthook = hear
    try:
        yield
    finally:
        sys.excepthook = before


def _restore(slicer: Any, attributes: dict[str, Any], modules: dict[str, Any], path: list[str]) -> None:
    """Leave nothing that later tests in this process could take for an application."""
    session = {"app", "modules", "mrmlScene"}  # the headless session puts these back itself
    for name in set(dir(slicer)) - attributes.keys() - session:
        delattr(slicer, name)
    for name, value in attributes.items():
        if name not in session:
            setattr(slicer, name, value)
    ours = ("qt", "ctk", "qSlicerSubjectHierarchyModuleWidgetsPythonQt", "slicer.")
    for name in set(sys.modules) - modules.keys():
        if name in ours[:3] or name.startswith(("slicer.", MODULE_FILE.stem)) and not name.startswith(LIBRARY):
            del sys.modules[name]
    sys.path[:] = path
