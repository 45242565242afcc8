"""Stand-ins for the widgets of ``ctk`` that a module of Slicer uses: their properties, signals and methods.

Look and finer behaviour (popup sliders, completers, icons) are left out.
"""

from __future__ import annotations

import html
from enum import Flag
from pathlib import Path
from types import ModuleType
from typing import Any

from PySide6 import QtCore
from PySide6.QtCore import Property, QFlag, Signal

from Testing.host.pythonqt import make_qt, qt_class

qt = make_qt()


def passed_on(inner: str, name: str, kind: type) -> Any:
    """A property that is a property of an inner widget."""

    def read(self: Any) -> Any:
        return getattr(getattr(self, inner), name)

    def write(self: Any, value: Any) -> None:
        setattr(getattr(self, inner), name, value)

    return Property(kind, read, write)


def kept(name: str, kind: Any, default: Any) -> Any:
    """A property that is only remembered."""
    field = f"_kept_{name}"
    return Property(kind, lambda s: s.__dict__.get(field, default), lambda s, v: s.__dict__.__setitem__(field, v))


@qt_class
class ctkCollapsibleButton(qt.QWidget):
    """A titled area that folds: its title row, and its children hidden while it is collapsed."""

    contentsCollapsed = Signal(bool)
    clicked = Signal(bool)
    toggled = Signal(bool)
    _TITLE_PIXELS = 28

    def __init__(self, *arguments: Any) -> None:
        words, parents = _words_and_parent(arguments)
        super().__init__(*parents)
        self._text, self._collapsed, self._hidden = words, False, []
        self.setContentsMargins(4, self._TITLE_PIXELS + 2, 4, 4)

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    text = Property(str, lambda s: s._text, _set_text)

    def setText(self, text: str) -> None:
        self._set_text(text)

    def _fold(self, collapsed: bool) -> None:
        if bool(collapsed) == self._collapsed:
            return
        self._collapsed = bool(collapsed)
        here = QtCore.Qt.FindChildOption.FindDirectChildrenOnly
        children = self.findChildren(qt.QWidget, options=here)
        if self._collapsed:
            self._hidden = [child for child in children if not child.isHidden()]
        for child in self._hidden:
            child.setVisible(not self._collapsed)
        self.setMaximumHeight(self._TITLE_PIXELS + 4 if self._collapsed else 16777215)
        self.contentsCollapsed.emit(self._collapsed)
        self.toggled.emit(not self._collapsed)
        self.update()

    collapsed = Property(bool, lambda s: s._collapsed, _fold)
    checked = Property(bool, lambda s: not s._collapsed, lambda s, v: s._fold(not v))
    checkable = kept("checkable", bool, True)
    flat = kept("flat", bool, False)
    contentsFrameShape = kept("contentsFrameShape", int, 0)
    collapsedHeight = kept("collapsedHeight", int, 0)

    def setCollapsed(self, collapsed: bool) -> None:
        self._fold(collapsed)

    def setChecked(self, checked: bool) -> None:
        self._fold(not checked)

    def isChecked(self) -> bool:
        return not self._collapsed

    def click(self) -> None:
        if self.enabled:
            self._fold(not self._collapsed)
            self.clicked.emit(not self._collapsed)

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() <= self._TITLE_PIXELS:
            self.click()

    def paintEvent(self, event: Any) -> None:
        painter = qt.QPainter(self)
        title = QtCore.QRect(0, 0, self.width, self._TITLE_PIXELS)
        painter.fillRect(title, self.palette.button())
        painter.setPen(self.palette.color(qt.QPalette.ColorRole.ButtonText))
        mark = "▸" if self._collapsed else "▾"
        painter.drawText(title.adjusted(8, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, f"{mark}  {self._text}")
        painter.end()


@qt_class
class ctkCollapsibleGroupBox(qt.QGroupBox):
    """A group box that folds."""

    def _fold(self, collapsed: bool) -> None:
        self.__dict__["_collapsed"] = bool(collapsed)
        for child in self.findChildren(qt.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(not collapsed)

    collapsed = Property(bool, lambda s: s.__dict__.get("_collapsed", False), _fold)
    collapsedHeight = kept("collapsedHeight", int, 0)


@qt_class
class ctkPathLineEdit(qt.QWidget):
    """A line for a path with a button to browse."""

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    @QFlag
    class Filter(Flag):
        Dirs, Files, Drives, NoSymLinks = 1, 2, 4, 8
        Readable, Writable, Executable, Hidden = 16, 32, 64, 256

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._line, self._browse = qt.QLineEdit(), qt.QToolButton()
        self._browse.setText("…")
        row.addWidget(self._line)
        row.addWidget(self._browse)
        self._line.textChanged.connect(self._changed)
        self._browse.clicked.connect(lambda: self.browse())

    def _changed(self, path: str) -> None:
        self.currentPathChanged.emit(path)
        self.validInputChanged.emit(Path(path).exists())

    currentPath = passed_on("_line", "text", str)
    filters = kept("filters", int, 2)
    nameFilters = kept("nameFilters", "QStringList", [])
    settingKey = kept("settingKey", str, "")
    label = kept("label", str, "")
    showBrowseButton = kept("showBrowseButton", bool, True)
    showHistoryButton = kept("showHistoryButton", bool, True)

    def setCurrentPath(self, path: str) -> None:
        self._line.setText(path)

    def addCurrentPathToHistory(self) -> None:
        pass

    def browse(self) -> None:
        """Ask for a folder; ctk's own choice between folder and file follows ``filters``."""
        chosen = qt.QFileDialog.getExistingDirectory(self, "Select a directory...")
        if chosen:
            self._line.setText(chosen)


@qt_class
class ctkDirectoryButton(qt.QPushButton):
    """A button that shows and asks for a folder."""

    directoryChanged = Signal(str)
    directorySelected = Signal(str)

    def _put(self, folder: str) -> None:
        if folder != self.__dict__.get("_folder", ""):
            self.__dict__["_folder"] = folder
            self.setText(folder)
            self.directoryChanged.emit(folder)

    directory = Property(str, lambda s: s.__dict__.get("_folder", ""), _put)

    def browse(self) -> None:
        chosen = qt.QFileDialog.getExistingDirectory(self, "Select a directory...")
        if chosen:
            self._put(chosen)
            self.directorySelected.emit(chosen)


@qt_class
class ctkDoubleSpinBox(qt.QWidget):
    """A number with decimals; ctk's is a widget that holds a Qt one."""

    valueChanged = Signal(float)
    editingFinished = Signal()

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._box = qt.QDoubleSpinBox()
        row.addWidget(self._box)
        self._box.valueChanged.connect(self.valueChanged.emit)
        self._box.editingFinished.connect(self.editingFinished.emit)

    value = passed_on("_box", "value", float)
    minimum = passed_on("_box", "minimum", float)
    maximum = passed_on("_box", "maximum", float)
    singleStep = passed_on("_box", "singleStep", float)
    decimals = passed_on("_box", "decimals", int)
    suffix = passed_on("_box", "suffix", str)
    prefix = passed_on("_box", "prefix", str)

    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    def setRange(self, minimum: float, maximum: float) -> None:
        self._box.setRange(minimum, maximum)

    def setMinimum(self, minimum: float) -> None:
        self._box.setMinimum(minimum)

    def setMaximum(self, maximum: float) -> None:
        self._box.setMaximum(maximum)


class _Slider(ctkDoubleSpinBox):
    """A slider beside a number."""

    valueIsChanging = Signal(float)
    _STEPS = 1000

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._slider = qt.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._slider.setRange(0, self._STEPS)
        self.layout().insertWidget(0, self._slider)
        self._following = False
        self._box.valueChanged.connect(self._follow)
        self._slider.valueChanged.connect(self._lead)

    def _follow(self, value: float) -> None:
        span = self._box.maximum - self._box.minimum
        self._following = True
        self._slider.setValue(round(self._STEPS * (value - self._box.minimum) / span) if span else 0)
        self._following = False

    def _lead(self, step: int) -> None:
        if not self._following:
            self._box.setValue(self._box.minimum + step / self._STEPS * (self._box.maximum - self._box.minimum))

    pageStep = kept("pageStep", float, 1.0)
    tickInterval = kept("tickInterval", float, 0.0)
    tracking = kept("tracking", bool, True)
    spinBoxVisible = kept("spinBoxVisible", bool, True)


@qt_class
class ctkSliderWidget(_Slider):
    pass


@qt_class
class ctkRangeWidget(qt.QWidget):
    """Two numbers, the first not above the second."""

    valuesChanged = Signal(float, float)
    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._low, self._high = qt.QDoubleSpinBox(), qt.QDoubleSpinBox()
        for box, signal in ((self._low, self.minimumValueChanged), (self._high, self.maximumValueChanged)):
            row.addWidget(box)
            box.valueChanged.connect(signal.emit)
            box.valueChanged.connect(self._changed)
        self._high.setValue(self._high.maximum)

    def _changed(self, _: float) -> None:
        if self._low.value > self._high.value:
            pushed = self._high if self.sender() is self._low else self._low
            pushed.setValue(self._low.value if pushed is self._high else self._high.value)
            return
        self.valuesChanged.emit(self._low.value, self._high.value)

    minimumValue = passed_on("_low", "value", float)
    maximumValue = passed_on("_high", "value", float)
    suffix = Property(str, lambda s: s._low.suffix, lambda s, v: s._both("suffix", v))
    decimals = Property(int, lambda s: s._low.decimals, lambda s, v: s._both("decimals", v))
    singleStep = Property(float, lambda s: s._low.singleStep, lambda s, v: s._both("singleStep", v))
    minimum = Property(float, lambda s: s._low.minimum, lambda s, v: s._both("minimum", v))
    maximum = Property(float, lambda s: s._low.maximum, lambda s, v: s._both("maximum", v))

    def _both(self, name: str, value: Any) -> None:
        for box in (self._low, self._high):
            setattr(box, name, value)

    def setValues(self, low: float, high: float) -> None:
        blocked = self.blockSignals(True)
        self._low.setValue(low)
        self._high.setValue(high)
        self._low.setValue(low)
        self.blockSignals(blocked)
        self.valuesChanged.emit(low, high)

    def setRange(self, low: float, high: float) -> None:
        for box in (self._low, self._high):
            box.setRange(low, high)


@qt_class
class ctkComboBox(qt.QComboBox):
    defaultText = kept("defaultText", str, "")
    forceDefault = kept("forceDefault", bool, False)


@qt_class
class ctkCheckableComboBox(qt.QComboBox):
    """A list of ticks."""

    checkedIndexesChanged = Signal()

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.setModel(qt.QStandardItemModel(self))
        self.model().itemChanged.connect(lambda item: self.checkedIndexesChanged.emit())
        self.model().rowsInserted.connect(self._make_checkable)

    def _make_checkable(self, parent: Any, first: int, last: int) -> None:
        for row in range(first, last + 1):
            item = self.model().item(row)
            item.setCheckable(True)

    def checkableModel(self) -> Any:
        return self.model()

    def checkedIndexes(self) -> list[Any]:
        model = self.model()
        ticked = (row for row in range(model.rowCount()) if model.item(row).checkState() == qt.Qt.Checked)
        return [model.index(row, 0) for row in ticked]

    def setCheckState(self, index: Any, state: Any) -> None:
        self.model().itemFromIndex(index).setCheckState(state)


@qt_class
class ctkColorPickerButton(qt.QPushButton):
    colorChanged = Signal(qt.QColor)

    def _put(self, colour: Any) -> None:
        self.__dict__["_colour"] = qt.QColor(colour)
        self.colorChanged.emit(self.__dict__["_colour"])

    color = Property(qt.QColor, lambda s: s.__dict__.get("_colour", qt.QColor()), _put)
    displayColorName = kept("displayColorName", bool, True)


@qt_class
class ctkSearchBox(qt.QLineEdit):
    pass


@qt_class
class ctkCheckBox(qt.QCheckBox):
    pass


@qt_class
class ctkCheckablePushButton(qt.QPushButton):
    pass


@qt_class
class ctkFittedTextBrowser(qt.QTextBrowser):
    collapsibleText = kept("collapsibleText", bool, False)


def _words_and_parent(arguments: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    if arguments and isinstance(arguments[0], str):
        return html.unescape(arguments[0]), arguments[1:]
    return "", arguments


def make_ctk() -> ModuleType:
    """The module ``ctk`` with every stand-in of this file."""
    from Testing.host import dialogs

    ctk = ModuleType("ctk", __doc__)
    for name, found in {**globals(), "ctkMessageBox": dialogs.ctkMessageBox}.items():
        if name.startswith("ctk"):
            setattr(ctk, name, found)
    return ctk
