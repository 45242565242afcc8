"""Dialogs without a person: what they say is kept, what they ask is answered by the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PySide6.QtCore import Property

from Testing.host.pythonqt import make_qt, qt_class

qt = make_qt()


@dataclass(frozen=True)
class Message:
    """A box that was shown.

    Attributes
    ----------
    kind : ``error``, ``warning``, ``information`` or ``question``.
    text, title, details : as shown.
    """

    kind: str
    text: str
    title: str = ""
    details: str = ""


class UnansweredQuestion(AssertionError):
    """A dialog asked and the test had laid no answer ready: a person would sit before it."""


@dataclass
class Dialogs:
    """Record of boxes and answers laid ready.

    Attributes
    ----------
    messages : every box shown, oldest first.
    answers : for boxes with a choice: True for OK or Yes, False for Cancel or No; taken from the front.
    paths : for file dialogs: a path, or an empty string for Cancel; taken from the front.
    """

    messages: list[Message] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Message]:
        return [message for message in self.messages if message.kind == kind]

    @property
    def errors(self) -> list[Message]:
        return self.of_kind("error")


RECORD = Dialogs()  # of the application that runs


def _kind_of(icon: Any) -> str:
    named = {"Critical": "error", "Warning": "warning", "Question": "question"}
    return named.get(getattr(icon, "name", str(icon)), "information")


class _Box:
    """What a box does in place of waiting for a click."""

    def exec_(self: Any) -> Any:
        buttons = self.standardButtons
        accept = [b for b in (qt.QMessageBox.Ok, qt.QMessageBox.Yes, qt.QMessageBox.Retry) if buttons & b]
        refuse = [b for b in (qt.QMessageBox.Cancel, qt.QMessageBox.No, qt.QMessageBox.Close) if buttons & b]
        kind = "question" if accept and refuse else _kind_of(self.icon)
        RECORD.messages.append(Message(kind, self.text, self.windowTitle.strip(), self.detailedText))
        if not (accept and refuse):
            return (accept or refuse or [qt.QMessageBox.Ok])[0]
        if not RECORD.answers:
            raise UnansweredQuestion(self.text)
        return accept[0] if RECORD.answers.pop(0) else refuse[0]

    exec = exec_


@qt_class
class QMessageBox(_Box, qt.QMessageBox):  # type: ignore[misc, name-defined]
    pass


@qt_class
class ctkMessageBox(_Box, qt.QMessageBox):  # type: ignore[misc, name-defined]
    dontShowAgainVisible = Property(bool, lambda s: False, lambda s, v: None)
    dontShowAgainSettingsKey = Property(str, lambda s: "", lambda s, v: None)


def _static_box(icon: str) -> Any:
    def show(parent: Any, title: str, text: str, buttons: Any = None, default: Any = None) -> Any:
        box = QMessageBox(parent)
        box.windowTitle, box.text, box.icon = title, text, getattr(qt.QMessageBox.Icon, icon)
        both = qt.QMessageBox.Yes | qt.QMessageBox.No
        box.standardButtons = buttons if buttons is not None else both if icon == "Question" else qt.QMessageBox.Ok
        return box.exec_()

    return staticmethod(show)


for _name, _icon in {
    "critical": "Critical", "warning": "Warning", "information": "Information", "question": "Question"
}.items():  # fmt: skip
    setattr(QMessageBox, _name, _static_box(_icon))


class QFileDialog(qt.QFileDialog):  # type: ignore[misc, name-defined]
    """Its static functions, answered from the paths laid ready."""

    @staticmethod
    def _path(question: str) -> str:
        if not RECORD.paths:
            raise UnansweredQuestion(question)
        return str(RECORD.paths.pop(0))

    @staticmethod
    def getExistingDirectory(parent: Any = None, caption: str = "", *unused: Any) -> str:
        return QFileDialog._path(caption)

    # PythonQt hands back the path alone, unlike PySide6.
    @staticmethod
    def getOpenFileName(parent: Any = None, caption: str = "", *unused: Any) -> str:
        return QFileDialog._path(caption)

    @staticmethod
    def getSaveFileName(parent: Any = None, caption: str = "", *unused: Any) -> str:
        return QFileDialog._path(caption)


@contextmanager
def recorded() -> Iterator[Dialogs]:
    """An empty record, and Qt's dialogs that keep to it; unanswered answers are a mistake of the test."""
    before = qt.QMessageBox, qt.QFileDialog
    qt.QMessageBox, qt.QFileDialog = QMessageBox, QFileDialog
    RECORD.__init__()  # type: ignore[misc]
    try:
        yield RECORD
    finally:
        qt.QMessageBox, qt.QFileDialog = before


def as_path(path: str | Path) -> str:
    """As a file dialog gives it: with forward slashes."""
    return Path(path).as_posix() if str(path) else ""
