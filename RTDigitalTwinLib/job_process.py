"""The process that does a job: ``python -m RTDigitalTwinLib.job_process FOLDER``.

Progress goes to ``progress.jsonl`` in the folder, a line each; what goes wrong for the user to ``error.json``. Asked to
end, or left alone by the application that started it, it takes away what it had begun to write.
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
from pathlib import Path

from RTDigitalTwinLib import errors
from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.files import WRITING_ERRORS
from RTDigitalTwinLib.jobs import run_job

PROGRESS_FILE, ERROR_FILE = "progress.jsonl", "error.json"
EXIT_ERROR = 1
_PARENT_LOOKED_AT_S = 2.0
_PATIENCE_S = 5.0  # with work that does not end when it is asked to
NO_MEMORY = RTDigitalTwinError(
    "There is not enough memory.", remedy="Close other programs, take fewer samples, or choose the processor."
)


def main(folder: Path) -> int:
    """Do a folder's job; returns the exit code."""
    keep_freed_memory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_ERROR))  # so that half-written folders are removed
    parent = os.getppid()
    _end_with_parent(parent, folder)
    try:
        with (folder / PROGRESS_FILE).open("w", encoding="utf-8") as told:

            def progress(done_ratio: float, message: str) -> None:
                told.write(json.dumps([round(done_ratio, 4), message]) + "\n")
                told.flush()

            return do(folder, lambda: run_job(folder, progress))
    finally:
        if os.getppid() != parent:  # nobody else is there to take the patient's files away
            shutil.rmtree(folder, ignore_errors=True)


def do(folder: Path, work: Callable[[], None]) -> int:
    """Do some work for a folder; what goes wrong is written there for the user. Returns the exit code."""
    try:
        work()
    except RTDigitalTwinError as error:
        return _tell(folder, error)
    except MemoryError:
        return _tell(folder, NO_MEMORY)
    except ImportError as error:
        return _tell(
            folder,
            RTDigitalTwinError(
                f"A package is missing ({error.name or error}).", remedy="Install what is needed first."
            ),
        )
    except OSError as error:
        full = error.errno in WRITING_ERRORS
        remedy = "Free space or choose another place." if full else "Check the place and its permissions."
        return _tell(folder, RTDigitalTwinError(f"{error.strerror or type(error).__name__}.", remedy=remedy))
    except Exception as error:  # a fault of the software: without its words, which may hold a path of a patient
        return _tell(
            folder, RTDigitalTwinError(f"The computation failed ({type(error).__name__}).", remedy="Try again.")
        )
    return 0


def error_in(folder: Path) -> RTDigitalTwinError | None:
    """What went wrong, as the process told it; None where it told nothing."""
    try:
        told = json.loads((folder / ERROR_FILE).read_text(encoding="utf-8"))
        kind = getattr(errors, told["type"], RTDigitalTwinError)
        return kind(told["what"], where=told["where"], remedy=told["remedy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tell(folder: Path, error: RTDigitalTwinError) -> int:
    told = {"type": type(error).__name__, "what": error.what, "where": error.where, "remedy": error.remedy}
    (folder / ERROR_FILE).write_text(json.dumps(told), encoding="utf-8")
    return EXIT_ERROR


def _end_with_parent(parent: int, folder: Path) -> None:
    """End this process when the application that started it is gone, so that none goes on computing for nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_LOOKED_AT_S)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(EXIT_ERROR)

    if sys.platform != "win32":  # there a parent's number stays when it has ended
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
