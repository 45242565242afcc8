"""Desktop Slicer with the methods of the stand-in's Host, so that one test file runs in both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer


class _Record:
    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.answers: list[bool] = []
        self.paths: list[str] = []

    @property
    def errors(self) -> list[Any]:
        return [message for message in self.messages if message.kind == "error"]


class DesktopHost:
    """The running Slicer."""

    is_desktop = True

    def __init__(self) -> None:
        self.scene, self.dialogs, self.uncaught = slicer.mrmlScene, _Record(), []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """With --testing no box is shown, so errors are taken where slicer.util shows them."""
        before = slicer.util.tryWithErrorDisplay, slicer.util.confirmOkCancelDisplay, sys.excepthook

        @contextmanager
        def attempt(message: str | None = None, show: bool = True, waitCursor: bool = False) -> Iterator[None]:
            try:
                yield
            except Exception as error:
                text = str(error) if message is None else f"{message}\n\n{error}"
                self.dialogs.messages.append(SimpleNamespace(kind="error", text=text))
                raise

        slicer.util.tryWithErrorDisplay = attempt
        slicer.util.confirmOkCancelDisplay = lambda *a, **k: self.dialogs.answers.pop(0)
        sys.excepthook = lambda kind, error, traceback: self.uncaught.append(error)
        try:
            yield
        finally:
            slicer.util.tryWithErrorDisplay, slicer.util.confirmOkCancelDisplay, sys.excepthook = before

    def load_module(self, path: Path | None = None, enter: bool = True) -> Any:
        path = path or Path(__file__).resolve().parents[2] / "RTDigitalTwin" / "RTDigitalTwin.py"
        start = time.perf_counter()
        if not hasattr(slicer.modules, path.stem.lower()):
            slicer.app.moduleManager().factoryManager().registerModule(_file_info(path))
            slicer.app.moduleManager().factoryManager().loadModules([path.stem])
        widget = slicer.util.getNewModuleWidget(path.stem)
        if enter:
            widget.enter()
        record = getattr(slicer.modules, path.stem.lower())
        return SimpleNamespace(
            record=record, widget=widget, parent=widget.parent, ui=widget.ui, logic=widget.logic, enter=widget.enter,
            exit=widget.exit, seconds_to_open=time.perf_counter() - start,
        )  # fmt: skip

    def close_scene(self) -> None:
        self.scene.Clear(0)
        self.process_events()

    def save_mrb(self, path: Path) -> None:
        if not slicer.util.saveScene(str(path)):
            raise OSError(f"{path} was not written")

    def load_mrb(self, path: Path) -> None:
        self.scene.Clear(0)
        slicer.util.loadScene(str(path))
        self.process_events()

    def process_events(self) -> None:
        slicer.app.processEvents()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 30.0, doing: str = "") -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"Waited {seconds:g} s in vain {doing}")
            slicer.app.processEvents()


def _file_info(path: Path) -> Any:
    import qt

    return qt.QFileInfo(str(path))
