"""What a folder of DICOM files holds: patients, studies, series, and what refers to what.

One damaged file costs only itself: it becomes a problem in the index, and the rest is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.dicom_file import DicomItem, is_whole, looks_like_dicom, open_dicom
from RTDigitalTwinLib.patient.identity import Identity
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.words import counted

MOST_FILES = 200_000
HAVE_PROBLEMS = ("DICOM file has problems", "DICOM files have problems")
CT, RTSTRUCT, RTPLAN, RTDOSE = "CT", "RTSTRUCT", "RTPLAN", "RTDOSE"
ENHANCED_CT = "enhanced CT"
SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": CT,
    "1.2.840.10008.5.1.4.1.1.481.2": RTDOSE,
    "1.2.840.10008.5.1.4.1.1.481.3": RTSTRUCT,
    "1.2.840.10008.5.1.4.1.1.481.5": RTPLAN,
}
OTHER_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2.1": ENHANCED_CT,
    "1.2.840.10008.5.1.4.1.1.481.8": "ion plan",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.481.1": "RT image",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.1": "spatial registration",
    "1.2.840.10008.1.3.10": "DICOMDIR",
}
STUDY_KEYWORDS = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "PatientName",
    "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "FrameOfReferenceUID", "Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
    "AnatomicalOrientationType", "RescaleSlope", "RescaleIntercept", "NumberOfFrames", "StructureSetLabel",
    "RTPlanLabel",
    "ReferencedFrameOfReferenceSequence", "ReferencedStructureSetSequence", "ReferencedRTPlanSequence",
    "DoseSummationType", "DoseUnits", "DoseType", *STUDY_KEYWORDS,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class IndexedFile:
    """One readable DICOM file.

    Attributes
    ----------
    kind : CT, RTSTRUCT, RTPLAN or RTDOSE; else what it is in words.
    references : UIDs it refers to: a structure set's image series, a plan's structure set, a dose's plan.
    header : the elements of ``KEYWORDS``.
    is_disputed : whether another intact file gives the same object with another content.
    """

    path: Path
    where: str
    kind: str
    identity: Identity
    sop_uid: str
    study_uid: str
    series_uid: str
    frame_uid: str
    label: str
    references: tuple[str, ...]
    header: DicomItem
    is_disputed: bool = False


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, or with how files fit together; ``where`` is "" for the latter."""

    what: str
    where: str = ""
    remedy: str = ""


@dataclass(frozen=True, eq=False)
class PatientFiles:
    """The files of one patient.

    Attributes
    ----------
    pseudonym : from a hash of the identifier and the first study's UID; says nothing of the patient.
    """

    pseudonym: str
    identity: Identity
    files: tuple[IndexedFile, ...]

    def of_kind(self, kind: str) -> list[IndexedFile]:
        return [file for file in self.files if file.kind == kind]

    @cached_property
    def ct_series(self) -> dict[str, list[IndexedFile]]:
        """CT files by series UID."""
        series: dict[str, list[IndexedFile]] = {}
        for file in self.of_kind(CT):
            series.setdefault(file.series_uid, []).append(file)
        return series


@dataclass(frozen=True, eq=False)
class DicomIndex:
    """A folder's content.

    Attributes
    ----------
    patients : by pseudonym, in alphabetical order.
    problems : files that could not be read, and contradictions.
    other_files : number of files that are no DICOM.
    """

    folder: Path
    patients: dict[str, PatientFiles]
    problems: tuple[Problem, ...]
    other_files: int = 0

    def patient(self, chosen: str = "") -> PatientFiles:
        """The patient of a pseudonym (or identifier), or the only one. Raises PatientDataError listing pseudonyms."""
        if not self.patients:
            bad = (
                f" {counted(len(self.problems), 'file or object has', 'files or objects have')} problems."
                if self.problems
                else ""
            )
            raise PatientDataError(
                f"No DICOM file of a patient could be read.{bad}",
                where=self.folder.name,
                remedy="rt-digital-twin inspect shows what is there.",
            )
        named = ", ".join(self.patients)
        if chosen:
            found = [p for p in self.patients.values() if chosen in (p.pseudonym, p.identity.patient_id)]
            if len(found) != 1:
                raise PatientDataError(f"There is no such patient; there are {named}.", where=self.folder.name)
            return found[0]
        if len(self.patients) > 1:
            raise PatientDataError(
                f"The folder holds {counted(len(self.patients), 'patient')}: {named}.",
                where=self.folder.name,
                remedy="Choose one with --patient.",
            )
        return next(iter(self.patients.values()))


def index_folder(folder: Path, progress: Progress = silent) -> DicomIndex:
    """Index a folder of any nesting. Raises PatientDataError where it is no folder or holds too many files."""
    if not folder.is_dir():
        raise PatientDataError("There is no such folder.", where=str(folder))
    files: list[IndexedFile] = []
    problems: list[Problem] = []
    other = 0
    paths = list(files_below(folder))
    for i, path in enumerate(paths):
        if i % 50 == 0:
            progress(i / len(paths), f"reading file {i + 1} of {len(paths)}")
        if not looks_like_dicom(path):
            other += 1
            continue
        try:
            files.append(index_file(path, path.relative_to(folder).as_posix()))
        except RTDigitalTwinError as error:
            problems.append(Problem(error.what, error.where, error.remedy))
    files, repeated = _without_copies(files)
    patients = _by_patient(files)
    problems += repeated + _contradictions(patients)
    return DicomIndex(folder, dict(sorted(patients.items())), tuple(problems), other)


def files_below(folder: Path) -> Iterator[Path]:
    """Ordinary files in a folder at any depth, sorted; hidden ones too, links to folders not followed."""
    seen = 0
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(here, name)
            if path.is_file():
                seen += 1
                if seen > MOST_FILES:
                    raise PatientDataError(
                        f"The folder holds more than {MOST_FILES} files.",
                        where=folder.name,
                        remedy="Give the folder of fewer patients.",
                    )
                yield path


def index_file(path: Path, where: str) -> IndexedFile:
    """Read what the index needs of one file. Raises PatientDataError naming file and tag."""
    item = open_dicom(path, where, KEYWORDS)
    sop_class = item.text("SOPClassUID")
    kind = SOP_CLASSES.get(sop_class) or OTHER_SOP_CLASSES.get(sop_class) or f"object of class {sop_class[:64]}"
    if kind == "DICOMDIR":
        return IndexedFile(path, where, kind, Identity("", "", ""), "", "", "", "", "", (), item)
    references: list[str] = []
    frame = item.text("FrameOfReferenceUID", "")
    if kind == RTSTRUCT:
        frames, references = _structure_set_references(item)
        frame = frames[0] if len(frames) == 1 else frame
    if kind == RTPLAN:
        references = _sop_references(item, "ReferencedStructureSetSequence")
    if kind == RTDOSE:
        references = _sop_references(item, "ReferencedRTPlanSequence")
    labels = {RTSTRUCT: "StructureSetLabel", RTPLAN: "RTPlanLabel"}
    return IndexedFile(
        path, where, kind,
        Identity(item.text("PatientID", ""), item.text("PatientName", ""), item.text("PatientBirthDate", "")),
        item.text("SOPInstanceUID"), item.text("StudyInstanceUID"), item.text("SeriesInstanceUID"), frame,
        item.text(labels[kind], "") if kind in labels else "", tuple(references), item,
    )  # fmt: skip


def _structure_set_references(item: DicomItem) -> tuple[list[str], list[str]]:
    """Frames of reference and image series of a structure set."""
    frames, series = [], []
    for frame in item.items("ReferencedFrameOfReferenceSequence"):
        frames.append(frame.text("FrameOfReferenceUID", ""))
        for study in frame.items("RTReferencedStudySequence"):
            for one in study.items("RTReferencedSeriesSequence"):
                series.append(one.text("SeriesInstanceUID", ""))
    return [f for f in frames if f], [s for s in series if s]


def _sop_references(item: DicomItem, keyword: str) -> list[str]:
    uids = [one.text("ReferencedSOPInstanceUID", "") for one in item.items(keyword)]
    return [uid for uid in uids if uid]


def _without_copies(files: Sequence[IndexedFile]) -> tuple[list[IndexedFile], list[Problem]]:
    """Files of distinct objects. Of several files of one object that differ, those that read whole are believed."""
    objects: dict[tuple[str, str], list[IndexedFile]] = {}
    for file in files:
        if file.kind != "DICOMDIR":
            objects.setdefault((file.identity.key, file.sop_uid), []).append(file)
    kept: list[IndexedFile] = []
    problems: list[Problem] = []
    for same in objects.values():
        if len(same) == 1:
            kept += same
            continue
        contents = {file.path: file.path.read_bytes() for file in same}
        # Cut between two elements, a file reads well: but it is the beginning of another.
        every = set(contents.values())
        begun = {part for part in every if any(other != part and other.startswith(part) for other in every)}
        whole = [f for f in same if contents[f.path] not in begun and is_whole(f.path, f.where)] or same
        chosen = whole[0]
        rivals = {contents[file.path] for file in whole} - {contents[chosen.path]}
        kept.append(replace(chosen, is_disputed=bool(rivals)))
        for file in same:
            if file is chosen:
                continue
            if contents[file.path] == contents[chosen.path]:
                what = "is a copy of"
            else:
                what = "has another content than, but the same SOP instance UID as," if file in whole else (
                    "is a damaged copy of")  # fmt: skip
            problems.append(Problem(f"This file {what} {chosen.where}; it is left out.", file.where))
    return kept, problems


def _by_patient(files: Sequence[IndexedFile]) -> dict[str, PatientFiles]:
    groups: dict[str, list[IndexedFile]] = {}
    for file in files:
        groups.setdefault(file.identity.key, []).append(file)
    patients = {}
    for key, group in groups.items():
        study = min(file.study_uid for file in group)
        pseudonym = "patient-" + sha256(f"{key}\0{study}".encode()).hexdigest()[:8]
        patients[pseudonym] = PatientFiles(pseudonym, group[0].identity, tuple(group))
    return patients


def _contradictions(patients: dict[str, PatientFiles]) -> list[Problem]:
    """Identities and references that do not fit together."""
    problems = []
    owner = {}
    for patient in patients.values():
        for file in patient.files:
            owner[file.sop_uid] = owner[file.series_uid] = patient
    for patient in patients.values():
        for file in patient.files:
            if file.identity.contradicts(patient.identity):
                problems.append(
                    Problem(
                        f"Name or birth date differ from those of the other files of {patient.pseudonym}.",
                        file.where,
                        "Two persons may share the identifier: sort the files out.",
                    )
                )
            for uid in file.references:
                if uid in owner and owner[uid] is not patient:
                    problems.append(
                        Problem(
                            f"This {file.kind} of {patient.pseudonym} refers to an object of {owner[uid].pseudonym}.",
                            file.where,
                            "Patients are mixed up: correct it at the source.",
                        )
                    )
    return problems
