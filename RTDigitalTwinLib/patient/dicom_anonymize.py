"""A folder of DICOM-RT files for handing on, without whose it is."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.files import require_apart, whole_folder
from RTDigitalTwinLib.patient.dicom_deidentification import (
    FreshUids,
    Person,
    deidentified,
    personal_words,
)
from RTDigitalTwinLib.patient.dicom_file import DicomItem, decoding, open_dicom, stored_pixels
from RTDigitalTwinLib.patient.dicom_index import (
    CT,
    RTDOSE,
    RTPLAN,
    RTSTRUCT,
    IndexedFile,
    PatientFiles,
    Problem,
    index_folder,
)
from RTDigitalTwinLib.patient.dicom_writing import save
from RTDigitalTwinLib.patient.identity import Identity
from RTDigitalTwinLib.patient.personal_words import PersonalWords
from RTDigitalTwinLib.progress import Progress, part, silent

if TYPE_CHECKING:
    from pydicom import Dataset

_KINDS = (CT, RTSTRUCT, RTPLAN, RTDOSE)
_LABELS = {RTSTRUCT: ("StructureSetLabel", "Structures"), RTPLAN: ("RTPlanLabel", "Plan")}


@dataclass(frozen=True)
class AnonymizedPatient:
    """What became of a patient.

    Attributes
    ----------
    pseudonym : of the source, as ``inspect`` shows it.
    identifier : the new one, random, and the name of its folder.
    structure_names : that are kept; sorted.
    renamed : number of structure names that held a word of a person.
    """

    pseudonym: str
    identifier: str
    files: int
    structure_names: tuple[str, ...]
    renamed: int


@dataclass(frozen=True)
class Anonymized:
    """What was written, and which files were left out and why.

    Attributes
    ----------
    left_out : with paths of the source, which may name a patient: not for handing on.
    reasons : of ``left_out``, without any path, and how many files each holds of.
    other_files : number of files that are no DICOM.
    """

    patients: tuple[AnonymizedPatient, ...]
    left_out: tuple[Problem, ...]
    reasons: dict[str, int]
    other_files: int


def anonymize_folder(folder: Path, out: Path, progress: Progress = silent) -> Anonymized:
    """Write CT, RTSTRUCT, RTPLAN and RTDOSE of a folder without identities, a folder each patient, into ``out``.

    ``out`` appears whole or not at all, and may neither lie in the source nor around it. A file that cannot be read or
    written is left out and told. Other objects are left out, for what they may hold is not covered. What contradicts
    each other in the source does so afterwards. Raises PatientDataError where nothing could be written, OutputError.
    """
    require_apart(out, folder)
    index = index_folder(folder, part(progress, 0.0, 0.2))
    left_out = list(index.problems)
    uids = FreshUids()
    patients = []
    with whole_folder(out) as aside:
        for i, files in enumerate(index.patients.values()):
            shown = part(progress, 0.2 + 0.8 * i / len(index.patients), 0.2 + 0.8 * (i + 1) / len(index.patients))
            done = _write_patient(files, aside, uids, left_out, shown)
            if done is not None:
                patients.append(done)
        if not patients:
            raise PatientDataError(
                "There is no CT, structure set, plan or dose that could be written.",
                where=folder.name,
                remedy="rt-digital-twin inspect shows what is there.",
            )
    paths = {file.where for files in index.patients.values() for file in files.files}
    return Anonymized(tuple(patients), tuple(left_out), _reasons(left_out, paths), index.other_files)


def _reasons(left_out: Sequence[Problem], paths: Collection[str]) -> dict[str, int]:
    """Reasons without the paths of other files that they name."""
    by_length = sorted(paths, key=len, reverse=True)
    reasons: Counter[str] = Counter()
    for problem in left_out:
        told = f"{problem.what} {problem.remedy}"
        for path in by_length:
            told = told.replace(path, "another file")
        reasons[" ".join(told.split())] += 1
    return dict(reasons)


def _write_patient(
    files: PatientFiles, aside: Path, uids: FreshUids, left_out: list[Problem], progress: Progress
) -> AnonymizedPatient | None:
    identifier = f"anon-{secrets.token_hex(4)}"
    mine: list[IndexedFile] = []
    words = PersonalWords()
    for i, file in enumerate(files.files):
        progress(0.5 * i / len(files.files), "looking for names")
        if file.kind not in _KINDS:
            left_out.append(Problem(f"{file.kind}: what it may hold is not covered.", file.where))
            continue
        try:
            item = open_dicom(file.path, file.where)
            words = words.together(personal_words(item))
        except RTDigitalTwinError as error:
            left_out.append(Problem(error.what, file.where, error.remedy))
            continue
        if file.kind == CT and item.text("BurnedInAnnotation", "").upper() == "YES":
            left_out.append(Problem("It says that text is burned into its pixels, which is not covered.", file.where))
            continue
        mine.append(file)
    names = _names(mine, identifier)
    renamed: dict[str, str] = {}
    kept: set[str] = set()
    numbers = dict.fromkeys(_KINDS, 0)
    for i, file in enumerate(mine):
        progress(0.5 + 0.5 * i / len(mine), "writing")
        number = numbers[file.kind] + 1
        labels = {}
        if file.kind in _LABELS:
            keyword, word = _LABELS[file.kind]
            labels[keyword] = f"{word} {number}"
        person = Person(names[file.where], identifier, words, labels)
        name = f"{file.kind}.{number:04d}.dcm" if file.kind == CT else f"{file.kind}.{number}.dcm"
        try:
            item = open_dicom(file.path, file.where)
            cleaned = deidentified(item, person, uids, renamed)
            if file.kind in (CT, RTDOSE):
                _add_pixels(cleaned, item, file.path)
            (aside / identifier).mkdir(exist_ok=True)
            with decoding(file.where):
                save(cleaned, aside / identifier / name)
        except RTDigitalTwinError as error:
            (aside / identifier / name).unlink(missing_ok=True)
            left_out.append(Problem(error.what, file.where, error.remedy))
            continue
        numbers[file.kind] = number
        if file.kind == RTSTRUCT:
            kept |= {str(roi.get("ROIName", "")) for roi in cleaned.get("StructureSetROISequence", [])}
    if not any(numbers.values()):
        return None
    return AnonymizedPatient(
        files.pseudonym, identifier, sum(numbers.values()), tuple(sorted(kept - {""})), len(renamed)
    )


def _names(files: Sequence[IndexedFile], identifier: str) -> dict[str, str]:
    """A new name for each file, of the same person the same: who shares an identifier only stays apart."""
    persons: list[Identity] = []
    names: dict[str, str] = {}
    for file in files:
        known = next((i for i, other in enumerate(persons) if not file.identity.contradicts(other)), None)
        if known is None:
            known = len(persons)
            persons.append(file.identity)
        names[file.where] = f"{identifier}^{known + 1}" if known else identifier
    return names


def _add_pixels(cleaned: Dataset, item: DicomItem, path: Path) -> None:
    """Pixels as numbers of little endian, whatever their transfer syntax was."""
    pixels, rescaled = stored_pixels(item, path)
    if rescaled:
        if not np.array_equal(pixels, np.round(pixels)) or pixels.min() < -(2**15) or pixels.max() >= 2**15:
            raise item.error("Its compressed pixels do not fit whole numbers of 16 bits.", "Export it uncompressed.")
        pixels = pixels.astype(np.int16)
        cleaned.RescaleSlope, cleaned.RescaleIntercept = 1, 0
        cleaned.BitsAllocated, cleaned.BitsStored, cleaned.HighBit, cleaned.PixelRepresentation = 16, 16, 15, 1
        for keyword in ("PixelPaddingValue", "SmallestImagePixelValue", "LargestImagePixelValue"):
            if keyword in cleaned:
                del cleaned[keyword]
    content = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"))).tobytes()
    cleaned.PixelData = content + b"\0" * (len(content) % 2)
    cleaned["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
