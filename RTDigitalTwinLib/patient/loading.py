"""Recognise what a path holds, and read it."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Protocol

from RTDigitalTwinLib.errors import OutputError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent

_DICOM_PREAMBLE_BYTES = 128


class Reader(Protocol):
    """A module or object that knows one layout."""

    def recognises(self, folder: Path) -> bool: ...

    def read_patient(self, folder: Path) -> Patient: ...


READERS: tuple[Reader, ...] = (openkbp,)


def load_patient(path: str | PathLike[str]) -> Patient:
    """Read the patient in a folder, whichever known layout it has.

    Raises PatientDataError where there is no folder, or its content is not recognised.
    """
    folder = Path(os.path.abspath(path))  # "." has no name to say
    if not folder.is_dir():
        what = "This is a file, not a folder." if folder.exists() else "There is no such folder."
        raise PatientDataError(what, where=str(path), remedy="Give the folder that holds one patient's files.")
    for reader in READERS:
        if reader.recognises(folder):
            return reader.read_patient(folder)
    inside = patient_folders(folder)
    if inside:
        raise PatientDataError(
            f"The folder holds {len(inside)} patients, not one.",
            where=folder.name,
            remedy=f"Give one of them, for example {inside[0].relative_to(folder)}.",
        )
    if any(_is_dicom(child) for child in sorted(folder.rglob("*"))[:50] if child.is_file()):
        raise PatientDataError(
            "The folder holds DICOM, which this version cannot read yet.",
            where=folder.name,
            remedy="Convert it to the OpenKBP CSV layout.",
        )
    raise PatientDataError(
        "The folder holds nothing known.",
        where=folder.name,
        remedy="An OpenKBP patient has ct.csv, possible_dose_mask.csv and more.",
    )


def patient_folders(folder: Path) -> list[Path]:
    """Folders of single patients inside a folder, or inside its sub-folders (splits such as test-pats), sorted."""
    found = []
    for child in sorted(p for p in folder.iterdir() if p.is_dir()):
        if any(reader.recognises(child) for reader in READERS):
            found.append(child)
        else:
            found += [p for p in sorted(child.iterdir()) if p.is_dir() and any(r.recognises(p) for r in READERS)]
    return found


def require_outside_patients(out: Path) -> None:
    """Raises OutputError where an output would lie inside a patient's folder, among or over its data."""
    whole = out.resolve()
    for folder in (whole, *whole.parents):
        if any(reader.recognises(folder) for reader in READERS):
            raise OutputError(
                f"The output would lie in the patient's folder {folder.name}.",
                where=str(out),
                remedy="Choose another place for the results.",
            )


def load_patients(folders: list[Path], progress: Progress = silent) -> list[Patient]:
    """All patients, every error naming its folder."""
    patients = []
    for i, folder in enumerate(folders):
        progress(i / len(folders), f"reading patient {i + 1} of {len(folders)}")
        try:
            patients.append(Patient.load(folder))
        except RTDigitalTwinError as error:
            where = "/".join(filter(None, (folder.name, error.where)))
            raise type(error)(error.what, where=where, remedy=error.remedy) from error
    return patients


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(_DICOM_PREAMBLE_BYTES)
            return file.read(4) == b"DICM"
    except OSError:
        return False
