"""Jobs done beside an application: in a process of its own, or in a thread where none can be started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Protocol

from RTDigitalTwinLib.errors import Cancelled, RTDigitalTwinError
from RTDigitalTwinLib.job_process import PROGRESS_FILE, do, error_in
from RTDigitalTwinLib.progress import Progress, silent

PYTHON_OF_SLICER = "PythonSlicer"
_PATIENCE_S = 5.0
_ENDING_S = 1.0  # for work to take away what it had begun to write
_LOOK_S = 0.05
_ROOM = "rt-digital-twin-"


class Work(Protocol):
    """Work under way."""

    folder: Path

    def poll(self) -> bool:
        """Whether it has ended."""
        ...

    def cancel(self) -> None:
        """End it, with all it started."""
        ...


def new_folder() -> Path:
    """A private temporary folder for a job. ``drop`` removes it. Raises RTDigitalTwinError where there is no room."""
    try:
        return Path(tempfile.mkdtemp(prefix=_ROOM))  # of this user alone
    except OSError as error:
        raise RTDigitalTwinError(
            f"No temporary folder can be made ({error.strerror}).", remedy="Free space on the disk of temporary files."
        ) from error


def drop(folder: Path) -> None:
    """Remove a job's folder."""
    shutil.rmtree(folder, ignore_errors=True)


def python_executable() -> str | None:
    """A Python to start a process with: this one, or inside an application the one that comes with it."""
    name = Path(sys.executable or "").stem.lower()
    if name.startswith("python"):
        return sys.executable
    return shutil.which(PYTHON_OF_SLICER)


def start(folder: Path) -> Work:
    """Begin the job that a folder tells, in a process, or in a thread where no Python is found."""
    python = python_executable()
    return _Thread(folder) if python is None else _Process(folder, python)


def progress_of(folder: Path) -> tuple[float, str]:
    """The share done and what is under way, as far as the work told."""
    try:
        lines = (folder / PROGRESS_FILE).read_text(encoding="utf-8").splitlines()
        done, message = json.loads(lines[-1])
        return float(done), str(message)
    except (OSError, ValueError, IndexError):
        return 0.0, ""


def require_done(folder: Path, exit_code: int) -> None:
    """Raise what went wrong in ended work, for the user to read."""
    error = error_in(folder)
    if error is not None:
        raise error
    if exit_code:
        raise RTDigitalTwinError(
            f"The computation ended by itself (exit code {exit_code}), perhaps for want of memory.",
            remedy="Close other programs, take fewer samples, or choose the processor as device.",
        )


def wait(work: Work, progress: Progress = silent) -> None:
    """Wait for work; what ``progress`` raises cancels it. Raises what went wrong."""
    try:
        while not work.poll():
            progress(*progress_of(work.folder))
            time.sleep(_LOOK_S)
    except BaseException:
        work.cancel()
        raise
    require_done(work.folder, exit_code_of(work))


def exit_code_of(work: Work) -> int:
    """The exit code of ended work; 0 of a thread, which tells its errors."""
    return work.exit_code if isinstance(work, _Process) else 0


class _Process:
    """A process with all it started."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
        with (folder / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [python, "-m", "RTDigitalTwinLib.job_process", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=sys.platform != "win32",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )

    @property
    def exit_code(self) -> int:
        return self._process.returncode or 0

    def poll(self) -> bool:
        return self._process.poll() is not None

    def cancel(self) -> None:
        if self.poll():
            return
        if sys.platform == "win32":
            tree = ["taskkill", "/F", "/T", "/PID", str(self._process.pid)]
            subprocess.run(tree, capture_output=True)
        else:
            os.killpg(self._process.pid, signal.SIGTERM)  # a group of its own, started above
            try:
                self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


class _Thread:
    """A thread, which ends at its next sign of progress when it is cancelled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> bool:
        return not self._thread.is_alive()

    def cancel(self) -> None:
        self._is_cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        from RTDigitalTwinLib.jobs import run_job

        with (self.folder / PROGRESS_FILE).open("w", encoding="utf-8") as told:

            def progress(done_ratio: float, message: str) -> None:
                if self._is_cancelled.is_set():
                    raise Cancelled
                told.write(json.dumps([round(done_ratio, 4), message]) + "\n")
                told.flush()

            do(self.folder, lambda: run_job(self.folder, progress))
