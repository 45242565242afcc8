"""The process that does jobs: ``python -m RTDigitalTwinLib.job_process [FOLDER]``.

With a folder it does that folder's job. Without one it does job after job and keeps what they have in common: a line on
its input is in JSON ``["begin", FOLDER]`` or ``["stop", FOLDER]``. It ends when its input ends, when no line came for a
while, or when a job went wrong in a way that the next might feel.

Progress goes to ``progress.jsonl`` in the folder, a line each; what goes wrong for the user to ``error.json``; the exit
code, last, to ``ended.json``. Asked to end, or left alone by the application that started it, it takes away what it had
begun to write.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from queue import Empty, Queue

from RTDigitalTwinLib import errors
from RTDigitalTwinLib.allocation import (
    keep_freed_memory,
    lasting_imports,
    let_waiting_threads_sleep,
    own_memory_mib,
    return_freed_memory,
)
from RTDigitalTwinLib.errors import Cancelled, MemoryShortage, RTDigitalTwinError
from RTDigitalTwinLib.files import WRITING_ERRORS, whole_file
from RTDigitalTwinLib.job_twins import Twins
from RTDigitalTwinLib.jobs import run_job

BEGIN, STOP = "begin", "stop"
PROGRESS_FILE, ERROR_FILE, ENDED_FILE = "progress.jsonl", "error.json", "ended.json"
EXIT_ERROR, EXIT_FAULT = 1, 3  # after a fault the process is not to be trusted with another job
HELD_MIB = 1536  # between jobs; above it no twin is kept, and where that does not help the process ends
_PARENT_LOOKED_AT_S = 2.0
_PATIENCE_S = 5.0  # with work that does not end when it is asked to
_PAUSE_S = 10.0  # after which free memory goes back
_IDLE_S = 300.0  # after which all of it does
NO_MEMORY = RTDigitalTwinError(
    "There is not enough memory.", remedy="Close other programs, take fewer samples, or choose the processor."
)


@dataclass(frozen=True, eq=False)
class Order:
    """A folder whose job is to be done, unless it is cancelled."""

    folder: Path
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    has_ended: threading.Event = field(default_factory=threading.Event)

    def fulfil(self, twins: Twins) -> int:
        """Do the job; returns the exit code, which lies in the folder too."""
        with (self.folder / PROGRESS_FILE).open("w", encoding="utf-8") as told:

            def progress(done_ratio: float, message: str) -> None:
                if self.is_cancelled.is_set():
                    raise Cancelled
                told.write(json.dumps([round(done_ratio, 4), message]) + "\n")
                told.flush()

            code = do(self.folder, lambda: run_job(self.folder, progress, twins))
        with whole_file(self.folder / ENDED_FILE) as aside:
            aside.write_text(json.dumps(code), encoding="utf-8")
        self.has_ended.set()
        return code


class Orders:
    """What this process was told to do, in order."""

    def __init__(self) -> None:
        self._waiting: Queue[Order | None] = Queue()
        self._told: list[Order] = []
        self._parent = os.getppid()
        self._is_left = self.is_ending = False

    def add(self, folder: Path) -> None:
        self._told.append(Order(folder))
        self._waiting.put(self._told[-1])

    def close(self) -> None:
        """No more will come."""
        self._waiting.put(None)

    def next(self, patience_s: float) -> Order | None:
        """The next one; None after the last. Raises queue.Empty where none comes for so long."""
        return self._waiting.get(timeout=patience_s)

    def listen(self) -> None:
        """Take the lines of the input for orders, beside what is done, until it ends."""

        def read() -> None:
            for line in FileIO(0, closefd=False):  # nothing buffered that would be locked when the process ends
                what, folder = json.loads(line)
                if what == BEGIN:
                    self.add(Path(folder))
                for order in self._told:
                    if what == STOP and order.folder == Path(folder):
                        order.is_cancelled.set()
            self._leave()

        threading.Thread(target=read, daemon=True).start()

    def watch_parent(self) -> None:
        """End this process when the application that started it is gone, so that none computes for nobody."""

        def watch() -> None:
            while os.getppid() == self._parent:
                time.sleep(_PARENT_LOOKED_AT_S)
            self._leave()

        if sys.platform != "win32":  # there a parent's number stays when it has ended
            threading.Thread(target=watch, daemon=True).start()

    def clear_away(self) -> None:
        """Where nobody else is there to do so, take the patients' files away."""
        is_alone = os.getppid() != self._parent
        for order in self._told:
            is_unwanted = order.is_cancelled.is_set() or not order.has_ended.is_set()
            if is_alone or (self._is_left and is_unwanted):
                shutil.rmtree(order.folder, ignore_errors=True)

    def end(self, *unused: object) -> None:
        """Asked to end: leave off what is under way; nothing where this process ends already."""
        if not self.is_ending:
            sys.exit(EXIT_ERROR)

    def _leave(self) -> None:
        """End this process, at the latest after its patience."""
        self._is_left = True
        under_way = [order for order in self._told if not order.has_ended.is_set()]
        for order in under_way:
            order.is_cancelled.set()
        self.close()
        if not under_way:
            return
        if sys.platform != "win32":  # there it would end at once, without clearing away
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE_S)
        self.clear_away()
        os._exit(EXIT_ERROR)


def main(folder: Path | None = None) -> int:
    """Do a folder's job, or those that the input tells; returns the exit code of the last."""
    keep_freed_memory()
    let_waiting_threads_sleep()
    orders = Orders()
    signal.signal(signal.SIGTERM, orders.end)  # so that half-written folders are removed
    try:  # from here on: those who listen may end this process at once
        try:
            return _work(orders, folder)
        finally:
            orders.is_ending = True  # to be asked now would break off the clearing away
    finally:
        orders.clear_away()


def _work(orders: Orders, folder: Path | None) -> int:
    """Do what is ordered until no more comes; returns the exit code of the last."""
    twins, code = Twins(importing=lasting_imports), 0
    orders.watch_parent()
    if folder is None:
        orders.listen()
    else:
        orders.add(folder)
        orders.close()
    while (order := _next(orders)) is not None:
        code = order.fulfil(twins)
        if code == EXIT_FAULT or not _has_room(twins):
            break
    return code


def _next(orders: Orders) -> Order | None:
    """The next order; None where none comes. Meanwhile the memory goes back."""
    try:
        return orders.next(_PAUSE_S)
    except Empty:
        return_freed_memory()
    try:
        return orders.next(_IDLE_S - _PAUSE_S)
    except Empty:
        return None


def _has_room(twins: Twins) -> bool:
    """Whether this process may stay with what it holds, or with less of it."""
    for give_back in (lambda: None, return_freed_memory, twins.forget, return_freed_memory):
        give_back()
        if (own := own_memory_mib()) is None or own <= HELD_MIB:
            return True
    return False


def do(folder: Path, work: Callable[[], None]) -> int:
    """Do some work for a folder; what goes wrong is written there for the user. Returns the exit code."""
    try:
        work()
    except RTDigitalTwinError as error:
        return _tell(folder, error, EXIT_FAULT if isinstance(error, MemoryShortage) else EXIT_ERROR)
    except MemoryError:
        return _tell(folder, NO_MEMORY, EXIT_FAULT)
    except ImportError as error:
        missing = RTDigitalTwinError(
            f"A package is missing ({error.name or error}).", remedy="Install what is needed first."
        )
        return _tell(folder, missing, EXIT_FAULT)
    except OSError as error:
        full = error.errno in WRITING_ERRORS
        remedy = "Free space or choose another place." if full else "Check the place and its permissions."
        told = RTDigitalTwinError(f"{error.strerror or type(error).__name__}.", remedy=remedy)
        return _tell(folder, told, EXIT_ERROR)
    except Exception as error:  # a fault of the software: without its words, which may hold a path of a patient
        fault = RTDigitalTwinError(f"The computation failed ({type(error).__name__}).", remedy="Try again.")
        return _tell(folder, fault, EXIT_FAULT)
    return 0


def error_in(folder: Path) -> RTDigitalTwinError | None:
    """What went wrong, as the process told it; None where it told nothing."""
    try:
        told = json.loads((folder / ERROR_FILE).read_text(encoding="utf-8"))
        kind = getattr(errors, told["type"], RTDigitalTwinError)
        if kind is Cancelled:
            return Cancelled(told["remedy"])
        return kind(told["what"], where=told["where"], remedy=told["remedy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ended_in(folder: Path) -> int | None:
    """The exit code of a folder's job; None where it has not ended."""
    try:
        return int(json.loads((folder / ENDED_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _tell(folder: Path, error: RTDigitalTwinError, code: int) -> int:
    told = {"type": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}
    (folder / ERROR_FILE).write_text(json.dumps(told), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
