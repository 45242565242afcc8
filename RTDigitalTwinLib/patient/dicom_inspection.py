"""What a folder of DICOM files holds and what is wrong with it, as a tree to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TypeVar

import numpy as np

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.dicom_case import choose_files
from RTDigitalTwinLib.patient.dicom_ct import read_ct
from RTDigitalTwinLib.patient.dicom_dose import read_dose
from RTDigitalTwinLib.patient.dicom_index import (
    CT,
    ENHANCED_CT,
    RTDOSE,
    RTPLAN,
    RTSTRUCT,
    DicomIndex,
    IndexedFile,
    PatientFiles,
    index_folder,
)
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, match_rois, read_indexed
from RTDigitalTwinLib.patient.dicom_plan import DicomPlan, read_plan
from RTDigitalTwinLib.patient.dicom_structures import Roi, occupancies, read_rois
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.structure_matching import Match, MatchState
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.words import counted

NO_DICOM = ("file that is no DICOM", "files that are no DICOM")
Source = TypeVar("Source")
Result = TypeVar("Result")


class Weight(Enum):
    """How much a line of the tree matters."""

    PLAIN = "plain"
    GOOD = "good"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass
class Line:
    """A line of the tree with what hangs on it."""

    text: str
    weight: Weight = Weight.PLAIN
    below: list[Line] = field(default_factory=list)

    def add(self, text: str, weight: Weight = Weight.PLAIN) -> Line:
        line = Line(text, weight)
        self.below.append(line)
        return line


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes
    ----------
    unusable : why a patient cannot be used, by pseudonym; one that waits for names to be confirmed can.
    matches : what the names mean, by pseudonym, in the structure set that would be used; or the error why it is open.
    """

    index: DicomIndex
    tree: Line
    unusable: dict[str, str]
    matches: dict[str, list[Match] | RTDigitalTwinError]

    def require_usable(self, patient: str = "") -> None:
        """Raises PatientDataError with the reasons where a patient cannot be used; "" for: where none of them can."""
        folder = self.index.folder.name
        if not self.index.patients:
            other = openkbp.recognises(self.index.folder)
            remedy = "It looks like an OpenKBP patient, which the other commands take as it is." if other else ""
            what = "No patient in DICOM files is here, so nothing can be used."
            raise PatientDataError(what, where=folder, remedy=remedy)
        of_it = [self.index.patient(patient).pseudonym] if patient else list(self.index.patients)
        if all(one in self.unusable for one in of_it):
            whys = " ".join(f"{one}: {self.unusable[one]}" for one in of_it)
            raise PatientDataError("Nothing here can be used as it is.", where=folder, remedy=whys)

    def names_of(self, patient: str = "") -> list[Match]:
        """What the names mean of a patient's structures; "" for the only one. Raises PatientDataError."""
        found = self.matches[self.index.patient(patient).pseudonym]
        if isinstance(found, RTDigitalTwinError):
            raise found
        return found


def inspect_folder(
    folder: Path,
    choice: DicomChoice | None = None,
    *,
    accept: Callable[[Patient], Iterable[str]] = lambda _: (),
    show_identity: bool = False,
    progress: Progress = silent,
) -> Inspection:
    """Read everything in a folder as far as it goes; patients by pseudonym, with identifier where asked.

    A patient is said to be usable where ``read_patient`` takes it and ``accept`` raises none of our errors for it;
    what that returns is to be told of the patient.
    Raises PatientDataError only where there is no such folder.
    """
    choice = choice or DicomChoice()
    index = index_folder(folder, part(progress, 0.0, 0.3))
    tree = Line(
        f"{folder.name or folder}: {counted(len(index.patients), 'patient')}, {counted(index.other_files, *NO_DICOM)}"
    )
    matches: dict[str, list[Match] | RTDigitalTwinError] = {}
    unusable: dict[str, str] = {}
    for i, patient in enumerate(index.patients.values()):
        who = f" (identifier {patient.identity.patient_id!r})" if show_identity else ""
        line = tree.add(f"{patient.pseudonym}{who}: {counted(len(patient.files), 'file')}")
        matches[patient.pseudonym], why = _inspect_patient(index, patient, line, choice, accept)
        if why:
            unusable[patient.pseudonym] = why
        progress(0.3 + 0.7 * (i + 1) / len(index.patients), "inspecting")
    for problem in index.problems:
        where = f"{problem.where}: " if problem.where else ""
        tree.add(f"{where}{problem.what} {problem.remedy}".strip(), Weight.PROBLEM)
    return Inspection(index, tree, unusable, matches)


def _inspect_patient(
    index: DicomIndex,
    patient: PatientFiles,
    line: Line,
    choice: DicomChoice,
    accept: Callable[[Patient], Iterable[str]],
) -> tuple[list[Match] | RTDigitalTwinError, str]:
    """What the names mean, and why the patient cannot be used ("" where it can)."""
    if choice.patient not in ("", patient.pseudonym, patient.identity.patient_id):
        choice = replace(choice, names={}, structure_set="", plan="")  # said of another patient
    volumes: dict[str, Volume] = {}
    plans: dict[str, DicomPlan] = {}
    failures: dict[str, str] = {}  # of a series or structure set that could not be read, by its UID
    matches: dict[str, list[Match]] = {}  # by the structure set's UID
    for study in sorted({file.study_uid for file in patient.files}):
        branch = line.add(f"Study {1 + sorted({f.study_uid for f in patient.files}).index(study)}")
        mine = [file for file in patient.files if file.study_uid == study]
        for uid, series in patient.ct_series.items():
            if series[0].study_uid == study:
                volume = _guarded(
                    branch, f"CT, {counted(len(series), 'slice')}", lambda s, node: _ct(s, node, choice), series
                )
                if volume is not None:
                    volumes[uid] = volume
                else:
                    failures[uid] = branch.below[-1].below[-1].text
        for file in mine:
            if file.kind == RTPLAN:
                plan = _guarded(branch, "RTPLAN", _plan, file)
                if plan is not None:
                    plans[file.sop_uid] = plan
            elif file.kind == RTDOSE:
                _guarded(branch, "RTDOSE", _dose, file)
            elif file.kind not in (CT, RTSTRUCT):
                branch.add(f"{file.kind}: not used", Weight.WARNING if file.kind == ENHANCED_CT else Weight.PLAIN)
        for file in mine:
            if file.kind == RTSTRUCT:
                read = _guarded(branch, "RTSTRUCT", _structure_set, file)
                if read is None:
                    failures[file.sop_uid] = branch.below[-1].below[-1].text
                else:
                    node, rois = read
                    frames = {uid: v for uid, v in volumes.items() if uid in file.references}
                    grid = next(iter(frames.values())).grid if frames else None
                    plan = next((plans[p.sop_uid] for p in patient.of_kind(RTPLAN)
                                 if file.sop_uid in p.references and p.sop_uid in plans), None)  # fmt: skip
                    found = _structures(node, rois, grid, plan, choice)
                    if found:
                        matches[file.sop_uid] = found
    warnings: list[str] = []
    try:
        files = choose_files(
            index, patient.pseudonym, choice.overrides, warnings,
            structure_set=choice.structure_set, plan=choice.plan,
        )  # fmt: skip
    except RTDigitalTwinError as error:
        line.add(str(error), Weight.PROBLEM)
        # Whatever else is wrong, of a single set the names can be told.
        single = len(matches) == len(patient.of_kind(RTSTRUCT)) == 1
        return (next(iter(matches.values())) if single else error), str(error)
    for warning in warnings:
        line.add(warning, Weight.WARNING)
    names = matches.get(files.structure_set.sop_uid, [])
    why = ""
    if files.ct[0].series_uid not in volumes or not names:
        used = (files.ct[0].series_uid, files.structure_set.sop_uid)
        why = " ".join(failures[uid] for uid in used if uid in failures) or "No structure could be read."
    elif any(match.waits for match in names):
        line.add("Can be used once the proposed names are confirmed.", Weight.WARNING)
    else:
        try:
            told = list(accept(read_indexed(index, replace(choice, patient=patient.pseudonym))))
        except RTDigitalTwinError as error:
            why = str(error)
        else:
            line.add("CT and structures fit together.", Weight.GOOD)
            for note in told:
                line.add(note, Weight.WARNING)
    if why:
        line.add(f"Cannot be used: {why}", Weight.PROBLEM)
    return names or PatientDataError("No structure could be read.", where=files.structure_set.where), why


def _guarded(parent: Line, title: str, read: Callable[[Source, Line], Result], source: Source) -> Result | None:
    node = parent.add(title)
    try:
        return read(source, node)
    except RTDigitalTwinError as error:
        node.add(str(error), Weight.PROBLEM)
        return None


def _ct(series: list[IndexedFile], node: Line, choice: DicomChoice) -> Volume:
    warnings: list[str] = []
    try:
        volume = read_ct(series, choice.overrides, warnings)
    finally:
        for warning in warnings:
            node.add(warning, Weight.WARNING)
    node.add(f"{_described(volume.grid)}; {volume.values.min():g} to {volume.values.max():g} HU")
    return volume


def _described(grid: Grid) -> str:
    columns, rows, slices = grid.shape[::-1]
    sizes = " x ".join(f"{s:.3g}" for s in grid.spacing_mm)
    axes = np.reshape(grid.direction, (3, 3))
    straight = np.allclose(np.abs(axes).max(axis=0), 1, atol=1e-3)
    names = [("L", "R"), ("P", "A"), ("S", "I")]
    sense = ""
    for axis in axes.T:
        lps = int(np.argmax(np.abs(axis)))
        sense += names[lps][0 if axis[lps] > 0 else 1]
    return f"{columns} x {rows} x {slices} voxels of {sizes} mm, axes {sense}{'' if straight else ', oblique'}"


def _plan(file: IndexedFile, node: Line) -> DicomPlan:
    plan = read_plan(file)
    doses = sorted({gy for _, gy in plan.roi_dose_gy} | set(plan.site_doses_gy), reverse=True)
    fractions = "an unknown number of fractions" if plan.fractions is None else counted(plan.fractions, "fraction")
    fields = len(plan.gantry_angles_deg)
    node.add(
        f"{', '.join(f'{gy:g}' for gy in doses) or 'no'} Gy to targets in {fractions}, "
        f"{counted(fields, 'fixed coplanar field') if fields else 'no fixed coplanar fields'}, {plan.approval.value}"
    )
    for remark in plan.remarks:
        node.add(remark, Weight.WARNING)
    return plan


def _dose(file: IndexedFile, node: Line) -> None:
    dose = read_dose(file)
    highest = float(dose.dose.values.max())
    node.add(f"{dose.summation}: up to {highest:.1f} Gy; {_described(dose.dose.grid)}")
    if not dose.is_plan and not dose.is_predicted:
        node.add("Not the dose of a whole plan: it is not used.", Weight.WARNING)
    for remark in dose.remarks:
        node.add(remark, Weight.WARNING)


def _structure_set(file: IndexedFile, node: Line) -> tuple[Line, list[Roi]]:
    rois = read_rois(file)
    node.text = f"RTSTRUCT, {counted(len(rois), 'structure')}"
    return node, rois


def _structures(
    node: Line,
    rois: list[Roi],
    grid: Grid | None,
    plan: DicomPlan | None,
    choice: DicomChoice,
) -> list[Match]:
    remarks: dict[int, str] = {}
    drawn: dict[int, Structure] = {}
    if grid is None:
        node.add("The CT it was drawn on is not here or cannot be read.", Weight.PROBLEM)
    else:
        drawn = occupancies(rois, grid, remarks)
    try:
        found = match_rois(rois, drawn, plan, choice)
    except RTDigitalTwinError as error:
        node.add(str(error), Weight.PROBLEM)
        return []
    for roi, match in zip(rois, found, strict=True):
        size = f", {drawn[roi.number].volume_cc:.1f} cc" if roi.number in drawn else ""
        meaning = f" = {match.name}" if match.name else ""
        weight = Weight.WARNING if match.waits else Weight.PLAIN
        sure = f" {match.confidence:.2f}" if match.state is MatchState.PROPOSED else ""
        node.add(f"{roi.name}{meaning}: {match.state.value}{sure} ({match.reason}){size}", weight)
    for roi in rois:
        if roi.number in remarks:
            node.add(f"{roi.name}: {remarks[roi.number]}", Weight.WARNING)
    return found
