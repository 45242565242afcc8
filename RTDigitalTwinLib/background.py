"""Jobs done beside an application: in a process that stays for the next, or in a thread where none can be started.

Nothing here blocks: work is begun, looked at, asked to end, and looked at until it has. Only ``wait`` waits.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.job_process import BEGIN, EXIT_ERROR, PROGRESS_FILE, STOP, Order, ended_in, error_in
from RTDigitalTwinLib.job_twins import Twins
from RTDigitalTwinLib.progress import Progress, silent

PYTHON_OF_SLICER = "PythonSlicer"
_ASKED_S = 3.0  # for work to stop when it is asked to: about what a fresh process costs
_ENDING_S = 1.0  # for a process to take away what it had begun to write
_LOOK_S = 0.05
_ROOM = "rt-digital-twin-"


class Work(Protocol):
    """Work under way."""

    folder: Path
    exit_code: int | None

    def poll(self) -> bool:
        """Whether it has ended; its exit code is known then."""
        ...

    def cancel(self) -> None:
        """Ask it to end. It does within seconds, or ``poll`` ends it with all it started."""
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
    """Begin the job that a folder tells, after those told before; in a thread where no Python is found."""
    python = python_executable()
    return _InThread(folder) if python is None else _InProcess(folder, python)


def end_process() -> None:
    """End the process that waits for jobs, if there is one; it takes away what it was doing. The next starts another.

    For an application that ends, or after what is installed has changed.
    """
    for worker in _WORKERS:
        worker.end()


def progress_of(folder: Path) -> tuple[float, str]:
    """The share done and what is under way, as far as the work told."""
    try:
        lines = (folder / PROGRESS_FILE).read_text(encoding="utf-8").splitlines()
        done, message = json.loads(lines[-1])
        return float(done), str(message)
    except (OSError, ValueError, IndexError):
        return 0.0, ""


def require_done(folder: Path, exit_code: int | None) -> None:
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
        while not work.poll():
            time.sleep(_LOOK_S)
        raise
    require_done(work.folder, work.exit_code)


def abandon(work: Work) -> None:
    """Cancel work that nobody looks at any more. Its folder goes when it has ended, or with this application.

    The process takes it away too, unless it is killed, or ends by itself before it hears of it.
    """
    work.cancel()
    if work.poll():
        drop(work.folder)
        return

    def at_the_latest() -> None:
        drop(work.folder)

    def see_off() -> None:
        while not work.poll():
            time.sleep(_LOOK_S)
        drop(work.folder)
        atexit.unregister(at_the_latest)

    atexit.register(at_the_latest)
    threading.Thread(target=see_off, daemon=True).start()


class _Worker:
    """The process that does jobs one after the other, with all it started: ``job_process`` without a folder."""

    def __init__(self, python: str, environment: dict[str, str], place: str) -> None:
        self.made_for = (python, environment, place)
        self.takes_jobs, self._jobs = True, 0
        self._process = subprocess.Popen(
            [python, "-m", "RTDigitalTwinLib.job_process"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=sys.platform != "win32",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )

    @property
    def exit_code(self) -> int | None:
        """None as long as it is there."""
        return self._process.poll()

    def begin(self, folder: Path) -> None:
        """Tell it a job; what becomes of it is in the folder."""
        self._jobs += 1
        self._tell(BEGIN, folder)

    def stop(self, folder: Path) -> None:
        """Ask it to stop a job."""
        self._tell(STOP, folder)

    def let_go(self) -> None:
        """A job has ended."""
        self._jobs -= 1
        if not self.takes_jobs:
            self.retire()

    def retire(self) -> None:
        """Take no more jobs, and end after those there are."""
        self.takes_jobs = False
        if self._jobs == 0:
            self.end()

    def end(self) -> None:
        """End with what it is doing; it takes away the folders of jobs that have not ended."""
        self.takes_jobs = False
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self, *, at_once: bool) -> None:
        """End it, with or without the chance to take away what it had begun to write."""
        self.takes_jobs = False
        if self.exit_code is not None:
            return
        if sys.platform == "win32":
            tree = ["taskkill", "/F", "/T", "/PID", str(self._process.pid)]
            subprocess.run(tree, capture_output=True)
        else:  # a group of its own, started above
            os.killpg(self._process.pid, signal.SIGKILL if at_once else signal.SIGTERM)

    @property
    def has_one_job(self) -> bool:
        return self._jobs == 1

    def _tell(self, what: str, folder: Path) -> None:
        """A line. One that is gone does not hear it, which its exit code says."""
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps([what, str(folder)]).encode() + b"\n")


_WORKERS: list[_Worker] = []  # of this application; those before the last take no more jobs


def _worker(python: str) -> _Worker:
    """The process that takes jobs: the one there is, where it was started as one would be now."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
    made_for = (python, environment, os.getcwd())
    _WORKERS[:] = [worker for worker in _WORKERS if worker.exit_code is None]
    if _WORKERS and _WORKERS[-1].takes_jobs and _WORKERS[-1].made_for == made_for:
        return _WORKERS[-1]
    for worker in _WORKERS:
        worker.retire()
    _WORKERS.append(_Worker(*made_for))
    return _WORKERS[-1]


class _InProcess:
    """A job of the process that stays for the next."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self._python = folder, python
        self.exit_code: int | None = None
        self._is_cancelled_since: float | None = None
        self._is_told_again = self._is_pressed = False
        self._worker = _worker(python)
        self._worker.begin(folder)

    def poll(self) -> bool:
        if self.exit_code is not None:
            return True
        died = self._worker.exit_code  # before looking at what it wrote last
        code = ended_in(self.folder)
        if code is None and died is None:
            self._press()
            return False
        if code is None and self._may_begin_again:
            self._is_told_again = True
            self._worker = _worker(self._python)
            self._worker.begin(self.folder)
            return False
        self.exit_code = (died or EXIT_ERROR) if code is None else code
        self._worker.let_go()
        return True

    def cancel(self) -> None:
        if not self.poll() and self._is_cancelled_since is None:
            self._is_cancelled_since = time.monotonic()
            self._worker.stop(self.folder)

    @property
    def _may_begin_again(self) -> bool:
        """Whether the process ended before the job's turn: it was idle, or was ended for the job before."""
        return not (self._has_begun or self._is_told_again or self._is_cancelled_since is not None)

    @property
    def _has_begun(self) -> bool:
        return (self.folder / PROGRESS_FILE).is_file()

    def _press(self) -> None:
        """End the process where the job does not stop when it is asked to."""
        is_its_turn = self._has_begun or self._worker.has_one_job  # another's work is not ended for it
        if self._is_cancelled_since is None or not is_its_turn:
            return
        seconds = time.monotonic() - self._is_cancelled_since
        if seconds > _ASKED_S + _ENDING_S:
            self._worker.kill(at_once=True)
        elif seconds > _ASKED_S and not self._is_pressed:
            self._is_pressed = True
            self._worker.kill(at_once=False)


class _InThread:
    """A job in a thread, which ends at its next sign of progress when it is cancelled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exit_code: int | None = None
        self._order = Order(folder)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> bool:
        if self.exit_code is None and not self._thread.is_alive():
            self.exit_code = ended_in(self.folder) or 0  # it tells its errors
        return self.exit_code is not None

    def cancel(self) -> None:
        self._order.is_cancelled.set()

    def _run(self) -> None:
        self._order.fulfil(Twins())
        if self._order.is_cancelled.is_set():
            drop(self.folder)  # where nobody looks any more
