"""What studies of a cohort share: whose turn it is, on how many processes, and that nothing of two studies is mixed."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.errors import OutputError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.ledger import canonical
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.fingerprint import fingerprint
from RTDigitalTwinLib.patient.loading import choose_folders, load_patient
from RTDigitalTwinLib.progress import Progress
from RTDigitalTwinLib.words import counted

SETTINGS_FILE, CASES = "study.json", "cases"
DATA = "patient_sha256"  # in a case: of each part of the patient's data


def in_processes(each: Callable[[Path], None], waiting: Sequence[Path], processes: int, progress: Progress) -> None:
    """``each`` of the folders, so many at a time; it must be one that can be sent to another process."""
    # Fresh processes: torch's threads do not outlive a fork.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_when_told) as pool:
        futures = [pool.submit(each, folder) for folder in waiting]
        try:
            for k, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(k / len(waiting), f"{k} of {len(waiting)} patients done")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # a patient may take minutes
            raise


def _end_when_told() -> None:
    """In a process of the pool: Ctrl-C is for the one that started it, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a half-written file is removed


def on_dask(each: Callable[[Path], None], waiting: Sequence[Path], address: str, progress: Progress) -> None:
    """``each`` of the folders on the workers of a Dask scheduler, which must see the same files.

    Raises RTDigitalTwinError where Dask is not installed or the scheduler does not answer.
    """
    try:
        from distributed import Client, as_completed as completed
    except ImportError as error:
        raise RTDigitalTwinError(
            "Dask is not installed.", remedy="Install it (pip install distributed), or leave --dask out."
        ) from error
    try:
        client = Client(address, timeout="20s")
    except (OSError, ValueError, TimeoutError) as error:
        raise RTDigitalTwinError(
            "The Dask scheduler does not answer.", where=address, remedy="Check its address, and that it runs."
        ) from error
    with client:
        futures = [client.submit(each, folder, pure=False) for folder in waiting]
        try:
            for k, future in enumerate(completed(futures), start=1):
                future.result()
                progress(k / len(waiting), f"{k} of {len(waiting)} patients done")
        except BaseException:
            client.cancel(futures)
            raise


def chosen_folders(data: Path, patients: int | Sequence[str], surrogate: DoseSurrogate) -> list[Path]:
    """Patients by name, or so many of the folder's that the network was not trained on. Raises PatientDataError."""
    named = [] if isinstance(patients, int) else list(patients)
    folders = choose_folders(data, named)
    trained = [folder.name for folder in folders if folder.name in surrogate.trained_on]
    if named and trained:
        raise PatientDataError(
            f"The network was trained on {', '.join(trained)}, so its error there says nothing of others.",
            remedy="Choose patients that were kept apart, such as validation-pats.",
        )
    if not isinstance(patients, int):
        return folders
    apart = [folder for folder in folders if folder.name not in surrogate.trained_on]
    if not 1 <= patients <= len(apart):
        raise PatientDataError(
            f"Asked for are {counted(patients, 'patient')}; {len(apart)} of the folder's {len(folders)} were kept "
            "apart from training.",
            where=data.name,
        )
    return [apart[k * len(apart) // patients] for k in range(patients)]


def adopt_study(out: Path, about: dict[str, Any], groups: Sequence[str] = ()) -> None:
    """Begin a study in a new or empty folder, or go on with one of the same settings. Raises OutputError.

    ``groups`` are settings that are told apart by their own keys.
    """
    path = out / SETTINGS_FILE
    if path.is_file():
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise OutputError("The earlier study cannot be read.", where=SETTINGS_FILE) from error
        if differing := _differing(known, about, groups):
            raise OutputError(
                f"The folder holds a study with other settings ({', '.join(differing)}).",
                where=out.name,
                remedy="Choose another folder, or the weights, bands, software and settings it was begun with.",
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError("The output exists and is no study.", where=out.name, remedy="Choose another folder.")
    with whole_file(path) as aside:
        aside.write_text(json.dumps(about, indent=1) + "\n")


def is_begun(out: Path) -> bool:
    """Whether a folder holds a study that the same command goes on with."""
    return (out / SETTINGS_FILE).is_file()


def _differing(known: Any, now: dict[str, Any], groups: Sequence[str] = ()) -> list[str]:
    """Keys whose values are not the same; of ``groups``, which of it: "treatments: as planned"."""
    if not isinstance(known, dict):
        return sorted(now)
    found = []
    for key in sorted({*known, *now}):
        there, here = known.get(key), now.get(key)
        if canonical(there) == canonical(here):
            continue
        inner = _differing(there, here) if key in groups and isinstance(there, dict) and isinstance(here, dict) else []
        found.append(f"{key}: {', '.join(inner)}" if inner else key)
    return found


def require_same_data(
    out: Path, folders: Sequence[Path], done_of: Callable[[Path, str], Iterable[dict[str, Any]]]
) -> None:
    """Raises OutputError where cases were made of other data of a patient than its folder holds now."""
    for folder in folders:
        done = list(done_of(out, folder.name))
        if not done:
            continue
        now: dict[str, Any] = fingerprint(load_patient(folder))
        differing = sorted({part for row in done for part in _differing(row.get(DATA), now)})
        if differing:
            raise OutputError(
                f"The folder holds cases of {folder.name} with other data of it: "
                f"{', '.join(part.replace('_', ' ') for part in differing)}.",
                where=out.name,
                remedy="Choose another folder, or the data it was begun with.",
            )
