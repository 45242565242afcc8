"""What tests in the host need: skipped by name where it is missing, or desktop Slicer in its place."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def in_desktop() -> bool:
    """Whether this Python is the one of a running desktop Slicer."""
    import slicer

    return type(getattr(slicer, "app", None)).__name__ == "qSlicerApplication"


def skip_where_missing() -> None:
    """Skip the calling file where neither slicer-core with PySide6 nor desktop Slicer is there."""
    pytest.importorskip("slicer", reason="slicer-core is not installed: NOTHING of the module was tested")
    if not in_desktop():
        pytest.importorskip(
            "PySide6.QtWidgets", reason="PySide6 is not installed: NOTHING of the module's window was tested",
            exc_type=ImportError,
        )  # fmt: skip


@contextmanager
def running_application() -> Iterator[Any]:
    """Desktop Slicer where this runs in it, else the stand-in application."""
    if in_desktop():
        from Testing.host.desktop import desktop_application

        with desktop_application() as host:
            yield host
    else:
        from Testing.host.session import slicer_application

        with slicer_application() as host:
            yield host


def own_files_folder() -> Path | None:
    """The folder with Slicer's own Python files that RTDT_SLICER_PYTHON names."""
    named = os.environ.get("RTDT_SLICER_PYTHON")
    return Path(named) if named else None


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None
