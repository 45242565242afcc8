"""Which widget can show which type of parameter, by the exact class, as ``slicer.parameterNodeWrapper`` has it."""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ctk
import qt
import slicer

from Testing.host.parameter_kinds import Kind
from Testing.host.validators import Choice, Decimals, FloatRange, Maximum, Minimum, RangeBounds, SingleStep, WithinRange


@dataclass
class Connector:
    """A widget tied to a parameter."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    signal: Any
    slot: Callable[..., None] | None = None

    def on_changed(self, slot: Callable[..., None]) -> None:
        self.slot = slot
        self.signal.connect(slot)

    def stop(self) -> None:
        if self.slot is not None:
            self.signal.disconnect(self.slot)
            self.slot = None


def connector(widget: Any, kind: Kind) -> Connector:
    """Tie a widget to a parameter of a kind.

    Raises
    ------
    RuntimeError
        if widgets of this very class cannot show it (subclasses are not taken for their bases).
    """
    of, is_a = type(widget), kind.type if isinstance(kind.type, type) else object

    def by_property(name: str, signal: str) -> Connector:
        return Connector(lambda: getattr(widget, name), lambda v: setattr(widget, name, v), getattr(widget, signal))

    if is_a is bool and of is qt.QCheckBox:
        return by_property("checked", "stateChanged")
    if is_a is bool and of is qt.QPushButton:
        widget.checkable = True
        return by_property("checked", "toggled")
    if is_a is int and of in (qt.QSlider, qt.QSpinBox):
        _bounds(widget, kind, -(2**31), 2**31 - 1, must=of is qt.QSlider)
        return by_property("value", "valueChanged")
    if is_a is float and of in (qt.QDoubleSpinBox, ctk.ctkSliderWidget):
        _bounds(widget, kind, -1e300, 1e300, must=of is ctk.ctkSliderWidget)
        return by_property("value", "valueChanged")
    if is_a is FloatRange and of is ctk.ctkRangeWidget:
        return _range(widget, kind)
    if of is qt.QComboBox and is_a in (int, float, str, bool):
        choice = next((note for note in kind.annotations if isinstance(note, Choice)), None)
        if choice is None:
            raise RuntimeError("A combo box needs a parameter with Choice")
        return _list(widget, [(str(value), value) for value in choice.choices])
    if of is qt.QComboBox and issubclass(is_a, enum.Enum):
        words = getattr(is_a, "label", lambda each: each.name)
        return _list(widget, [(words(value), value) for value in is_a])
    if is_a is str and of is qt.QLineEdit:
        return by_property("text", "textChanged")
    if is_a is str and of is qt.QTextEdit:
        return Connector(widget.toPlainText, widget.setPlainText, widget.textChanged)
    if issubclass(is_a, pathlib.PurePath) and of in (ctk.ctkPathLineEdit, ctk.ctkDirectoryButton):
        name = "currentPath" if of is ctk.ctkPathLineEdit else "directory"
        signal = getattr(widget, f"{name}Changed")
        return Connector(lambda: is_a(getattr(widget, name)), lambda v: setattr(widget, name, str(v)), signal)
    if kind.is_nodes and of is slicer.qMRMLNodeComboBox:
        kinds = kind.node_types if kind.is_union else [kind.type]
        widget.nodeTypes = [each().GetClassName() for each in kinds]
        return Connector(widget.currentNode, widget.setCurrentNode, widget.currentNodeChanged)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{kind.annotated}' to widget type '{of}'")


def _bounds(widget: Any, kind: Kind, lowest: float, highest: float, must: bool) -> None:
    bounded = 0
    for note in kind.annotations:
        if isinstance(note, SingleStep):
            widget.singleStep = note.value
        if isinstance(note, Decimals):
            widget.decimals = note.value
        if isinstance(note, WithinRange | Minimum):
            lowest, bounded = note.minimum, bounded + 1
        if isinstance(note, WithinRange | Maximum):
            highest, bounded = note.maximum, bounded + 1
    if must and bounded < 2:
        raise RuntimeError("A slider cannot show a number without bounds")
    widget.minimum, widget.maximum = lowest, highest


def _range(widget: Any, kind: Kind) -> Connector:
    for note in kind.annotations:
        if isinstance(note, RangeBounds):
            widget.setRange(note.minimum, note.maximum)
    return Connector(
        lambda: FloatRange(widget.minimumValue, widget.maximumValue),
        lambda value: widget.setValues(value.minimum, value.maximum),
        widget.valuesChanged,
    )


def _list(widget: Any, rows: list[tuple[str, Any]]) -> Connector:
    widget.clear()
    for words, _ in rows:
        widget.addItem(words)

    def write(value: Any) -> None:
        widget.currentIndex = [each for _, each in rows].index(value)

    return Connector(lambda: rows[widget.currentIndex][1], write, widget.currentIndexChanged)
