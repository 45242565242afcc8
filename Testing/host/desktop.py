"""The same tests in desktop Slicer: ``Slicer --no-main-window --testing --python-script Testing/host/desktop.py OUT``.

Needs pytest in Slicer's Python. Nothing here has run where there is no desktop Slicer: it is the first thing to try
on a machine that has one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("_walk", "_interruptions", "_decide", "_course")


@contextmanager
def desktop_application() -> Iterator[Any]:
    """Slicer itself with an empty scene, answering as the stand-in's Host does."""
    import slicer

    from Testing.host.desktop_host import DesktopHost

    slicer.mrmlScene.Clear(0)
    host = DesktopHost()
    with host.recording():
        yield host
    slicer.mrmlScene.Clear(0)


def main() -> None:
    """Run the module's tests and leave Slicer with pytest's exit code."""
    import slicer

    sys.path.insert(0, str(ROOT))
    try:
        import pytest
    except ImportError:
        print("pytest is missing: PythonSlicer -m pip install pytest", file=sys.stderr)
        slicer.util.exit(2)
        return
    report = sys.argv[1] if len(sys.argv) > 1 else "slicer-report.xml"
    tests = [str(ROOT / "Testing" / f"test_module{part}.py") for part in ("", *PARTS)]
    slicer.util.exit(int(pytest.main(["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests])))


if __name__ == "__main__":
    main()
