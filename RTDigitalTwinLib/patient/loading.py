"""Recognise what a path holds, and read it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

from RTDigitalTwinLib.errors import OutputError, PatientDataError, told_of
from RTDigitalTwinLib.patient import dicom_patient, openkbp
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.identity import Belonging, Identity
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.words import counted


class Reader(Protocol):
    """A module or object that knows one layout."""

    def recognises(self, folder: Path) -> bool: ...

    def read_patient(self, folder: Path) -> Patient: ...


READERS: tuple[Reader, ...] = (openkbp,)


def load_patient(path: str | PathLike[str], choice: DicomChoice | None = None, progress: Progress = silent) -> Patient:
    """Read the patient in a folder, whichever known layout it has.

    Parameters
    ----------
    choice : of DICOM, which patient and plan are meant and what the names of its structures mean.

    Raises
    ------
    PatientDataError : there is no folder, its content is not recognised or damaged, or names wait to be confirmed.
    """
    folder, reader = _recognised(path)
    return dicom_patient.read_patient(folder, choice, progress) if reader is None else reader.read_patient(folder)


def require_patient(path: str | PathLike[str], choice: DicomChoice | None = None) -> None:
    """Refuse what ``load_patient`` does not recognise as one patient, or whose files of DICOM do not go together.

    Nothing but the beginnings of files is read. Raises PatientDataError.
    """
    folder, reader = _recognised(path)
    if reader is None:
        dicom_patient.require_files(folder, choice)


def _recognised(path: str | PathLike[str]) -> tuple[Path, Reader | None]:
    """The folder, and the reader of its layout; None for DICOM."""
    folder = Path(os.path.abspath(path))  # "." has no name to say
    if not folder.is_dir():
        what = "This is a file, not a folder." if folder.exists() else "There is no such folder."
        raise PatientDataError(what, where=str(path), remedy="Give the folder that holds one patient's files.")
    for reader in READERS:
        if reader.recognises(folder):
            return folder, reader
    inside = patient_folders(folder)
    if inside:
        raise PatientDataError(
            f"The folder holds {counted(len(inside), 'patient')}, not one.",
            where=folder.name,
            remedy=f"Give one of them, for example {inside[0].relative_to(folder)}.",
        )
    if dicom_patient.recognises(folder):
        return folder, None
    raise PatientDataError(
        "The folder holds nothing known.",
        where=folder.name,
        remedy="An OpenKBP patient has ct.csv, possible_dose_mask.csv and more; other patients are DICOM files.",
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


def choose_folders(data: Path, names: Sequence[str] = ()) -> list[Path]:
    """The patients of a folder, of its split folders, or the folder itself; of these the named ones.

    Raises PatientDataError where there are none, or a name is not among them.
    """
    if not data.is_dir():
        raise PatientDataError("There is no such folder.", where=str(data))
    data = Path(os.path.abspath(data))  # "." has no name to say or to choose by
    folders = [data] if openkbp.recognises(data) else patient_folders(data)
    if not folders:
        raise PatientDataError(
            "The folder holds no patients.",
            where=data.name,
            remedy="Give a folder of patient folders, or of splits such as test-pats.",
        )
    if not names:
        return folders
    missing = sorted(set(names) - {f.name for f in folders})
    if missing:
        raise PatientDataError(
            f"Not among the folder's {counted(len(folders), 'patient')}: {', '.join(missing)}.", where=data.name
        )
    return [f for f in folders if f.name in names]


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


def belonging_of(folder: Path, choice: DicomChoice | None = None) -> Belonging:
    """Whose data a folder of any layout holds, without reading all of it; OpenKBP patients have but a pseudonym.

    Raises PatientDataError where that cannot be told.
    """
    folder = Path(os.path.abspath(folder))
    if openkbp.recognises(folder):
        return Belonging(Identity(openkbp.pseudonym_of(folder), "", ""))
    return dicom_patient.belonging_of(folder, choice)


def load_patients(folders: list[Path], progress: Progress = silent) -> list[Patient]:
    """All patients, every error naming its folder."""
    patients = []
    for i, folder in enumerate(folders):
        progress(i / len(folders), f"reading patient {i + 1} of {len(folders)}")
        with told_of(folder.name):
            patients.append(Patient.load(folder))
    return patients
