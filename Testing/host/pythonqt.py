"""The module ``qt`` as PythonQt offers it, made of PySide6.

All of Qt lies flat in one module; a Qt property is an attribute (``box.text``, not ``box.text()``); a widget refuses
attributes that Qt does not know; ``w.connect("clicked(bool)", f)`` works beside ``w.clicked.connect(f)``.
Left out: enumerations are PySide6's and not integers, and objects that Qt makes by itself (a table's header, a tab
bar) know only the second way to connect.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from types import ModuleType
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

_SOURCES = (QtCore, QtGui, QtWidgets, QtUiTools)
# Bases keep PySide6's own classes, so that isinstance and findChildren see every object.
_LEFT = {
    "QObject", "QWidget", "QFrame", "QAbstractButton", "QAbstractItemView", "QAbstractScrollArea", "QAbstractSlider",
    "QAbstractSpinBox", "QLayout", "QBoxLayout", "QCoreApplication", "QGuiApplication", "QApplication", "QUiLoader",
    "QAbstractItemModel", "QAbstractTableModel", "QIODevice", "QWindow", "QThread", "QFile", "QFileDevice",
}  # fmt: skip
# In PythonQt these are methods although Qt has a property of the name.
_METHODS = {"parent", "layout", "children", "property"}
_application: Any = None
LOADING: list[bool] = []  # PySide6's loader of .ui files puts widgets on the panel as attributes


def _keep_none() -> None:
    """Let None outlive PySide6 6.12, whose calls without a result each drop a reference to it.

    From Python 3.12 on None is immortal; before, a few thousand such calls end the process.
    """
    if sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40


def application() -> Any:
    """The process's one Qt application, without a screen."""
    global _application
    if _application is None:
        _keep_none()
        _application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["RTDigitalTwinTestHost"])
        _application.setStyle("Fusion")  # the same on every machine
        _application.setQuitOnLastWindowClosed(False)
    return _application


def connect(self: Any, signal: str, function: Any) -> bool:
    """PythonQt's way to connect, which refuses a signal the object does not have."""
    self.__dict__.setdefault("_connections", {})
    bound = _signal(self, signal)
    count = _argument_count(signal)
    slot = function if count else (lambda *unused: function())
    self.__dict__["_connections"].setdefault((signal, function), []).append(slot)
    bound.connect(slot)
    return True


def disconnect(self: Any, signal: str, function: Any) -> bool:
    """Undo what ``connect`` with the same arguments did."""
    made = self.__dict__.get("_connections", {}).get((signal, function))
    if not made:
        return False
    _signal(self, signal).disconnect(made.pop())
    return True


def _argument_count(signal: str) -> int:
    inside = signal[signal.index("(") + 1 : signal.rindex(")")].strip()
    return len(inside.split(",")) if inside else 0


def _signal(self: Any, signal: str) -> Any:
    """The bound signal of a signature, such as ``currentNodeChanged(vtkMRMLNode*)``."""
    name, bracket, _ = signal.partition("(")
    normal = QtCore.QMetaObject.normalizedSignature(signal)
    normal = bytes(normal).decode() if not isinstance(normal, str) else normal
    known = self.metaObject().indexOfSignal(normal) >= 0 or signal in getattr(self, "SIGNALS", ())
    if not (bracket and known and hasattr(self, name)):
        raise ValueError(f"{type(self).__name__} has no signal {signal}")
    bound = getattr(self, name)
    arguments = normal[normal.index("(") :]
    try:  # an overloaded signal is chosen by its arguments
        return bound[arguments[1:-1]] if "," not in arguments and arguments != "()" else bound
    except (IndexError, KeyError, TypeError):
        return bound


def _set_known(self: Any, name: str, value: object) -> None:
    """Refuse an attribute that Qt does not have, as PythonQt does on objects of its own classes."""
    own = type(self).__dict__.get("_of_qt", False)
    if own and not LOADING and not name.startswith("_") and not hasattr(type(self), name):
        raise AttributeError(f"{type(self).__name__}.{name} does not exist and cannot be made on a Qt object")
    _of_pyside(type(self)).__setattr__(self, name, value)


@cache
def _of_pyside(kind: type) -> Any:
    """The nearest base that is PySide6's own."""
    return next(base for base in kind.__mro__ if base.__module__.startswith("PySide6"))


def qt_class(kind: type) -> type:
    """Mark a stand-in's class as one of Qt's own: it refuses unknown attributes; what is derived from it does not."""
    kind._of_qt = True  # type: ignore[attr-defined]
    kind.__setattr__ = _set_known  # type: ignore[assignment, method-assign]
    kind.connect, kind.disconnect = connect, disconnect  # type: ignore[attr-defined]
    kind.__init_subclass__ = classmethod(_connecting)  # type: ignore[assignment, arg-type]
    return kind


def _connecting(kind: Any, **unused: object) -> None:
    """Shiboken finds ``connect`` only in an object's own class."""
    kind.connect, kind.disconnect = connect, disconnect


def make_qt() -> ModuleType:
    """The flat module; made once, for PySide6's classes get their properties as attributes for good."""
    if "_qt" not in globals():
        globals()["_qt"] = _make()
    return globals()["_qt"]


def _make() -> ModuleType:
    application()
    qt = ModuleType("qt", __doc__)
    QtCore.QObject.name = property(lambda s: s.property("objectName"), lambda s, v: s.setObjectName(v))
    QtCore.QObject.className = lambda s: s.metaObject().className()
    for source in _SOURCES:
        for name in dir(source):
            found = getattr(source, name)
            if name.startswith("_"):
                continue
            if isinstance(found, type) and issubclass(found, QtCore.QObject):
                _properties_as_attributes(found)
            setattr(qt, name, found)
    for source in _SOURCES:
        for name in dir(source):
            found = getattr(source, name)
            if isinstance(found, type) and issubclass(found, QtCore.QObject) and name not in _LEFT:
                try:
                    setattr(qt, name, _leaf(name, found))
                except (TypeError, RuntimeError):
                    continue  # cannot be derived from
    return qt


def _leaf(name: str, base: Any) -> type:
    body: dict[str, Any] = {"__module__": "qt", "__doc__": base.__doc__}
    if hasattr(base, "exec") and not hasattr(base, "exec_"):
        body["exec_"] = base.exec
    return qt_class(type(name, (base,), body))


def _properties_as_attributes(kind: Any) -> None:
    meta = kind.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        present = kind.__dict__.get(name)
        if name in _METHODS or isinstance(present, (property, QtCore.Property)):
            continue
        capital = name[0].upper() + name[1:]
        getter = getattr(kind, "is" + capital, None) or (present if callable(present) else None)
        try:
            setattr(kind, name, _Attribute(name, getter, getattr(kind, "set" + capital, None), present))
        except TypeError:
            print(f"the property {kind.__name__}.{name} stays a method", file=sys.stderr)


class _Attribute(property):
    """A Qt property; on the class itself still the static method of its name (``QTimer.singleShot``)."""

    def __init__(self, name: str, getter: Any, setter: Any, static: Any) -> None:
        def read(of: Any) -> Any:
            return getter(of) if getter else QtCore.QObject.property(of, name)

        def write(of: Any, value: Any) -> None:
            if setter:
                setter(of, value)
            elif not of.setProperty(name, value):
                raise AttributeError(f"{type(of).__name__}.{name} cannot be set")

        super().__init__(read, write)
        self._static = static

    def __get__(self, of: Any, kind: type | None = None) -> Any:
        return self._static if of is None and self._static is not None else super().__get__(of, kind)
