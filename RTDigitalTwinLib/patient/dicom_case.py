"""Which files of a patient belong together: structure set, CT, plan and dose, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_file import shown_syntax, transfer_syntax
from RTDigitalTwinLib.patient.dicom_index import (
    CT,
    ENHANCED_CT,
    RTDOSE,
    RTPLAN,
    RTSTRUCT,
    DicomIndex,
    IndexedFile,
    PatientFiles,
)
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.words import counted


@dataclass(frozen=True, eq=False)
class CaseFiles:
    """The files of one planned treatment.

    Attributes
    ----------
    ct : one series.
    plan, doses : None, empty where there are none.
    """

    pseudonym: str
    ct: tuple[IndexedFile, ...]
    structure_set: IndexedFile
    plan: IndexedFile | None
    doses: tuple[IndexedFile, ...]

    @property
    def plan_knows_structures(self) -> bool:
        """Whether the plan's numbers of structures are those of this structure set."""
        return self.plan is not None and self.structure_set.sop_uid in self.plan.references


def choose_files(
    index: DicomIndex,
    patient: str,
    overrides: Overrides,
    warnings: list[str],
    *,
    structure_set: str = "",
    plan: str = "",
) -> CaseFiles:
    """The files that belong together, of a patient of the index.

    Parameters
    ----------
    patient : pseudonym or identifier; "" for the only one.
    structure_set, plan : labels, to choose among several.

    Raises
    ------
    PatientDataError : something is missing, several sets leave the choice open, or identities, studies or frames of
        reference contradict each other without an override.
    """
    chosen = index.patient(patient)
    files = with_strays(index, chosen, overrides, warnings)
    require_one_person(chosen, overrides, warnings)
    the_plan = _one(files, RTPLAN, plan, index)
    set_ = _structure_set(files, the_plan, structure_set, index)
    ct = _ct_of(files, set_, index, overrides, warnings)
    require_frame(set_, ct[0], "structure set", overrides, warnings)
    require_study(set_, ct[0], "structure set", ct[0].series_uid in set_.references, overrides, warnings)
    if the_plan is not None:
        tied = set_.sop_uid in the_plan.references
        if the_plan.frame_uid or not tied:  # many plans name none; through their structure set they have one
            require_frame(the_plan, ct[0], "plan", overrides, warnings)
        _require_plan_of(the_plan, set_, overrides, warnings)
        require_study(the_plan, set_, "plan", tied, overrides, warnings)
    doses = _doses_of(files, the_plan, ct[0], overrides, warnings)
    require_undisputed((*ct, set_, *([the_plan] if the_plan else []), *doses), overrides, warnings)
    return CaseFiles(chosen.pseudonym, tuple(ct), set_, the_plan, tuple(doses))


def with_strays(
    index: DicomIndex, chosen: PatientFiles, overrides: Overrides, warnings: list[str]
) -> Sequence[IndexedFile]:
    """The patient's files, and those tied to them under another identity: only where that is overridden."""
    mine = {uid for file in chosen.files for uid in _own_uids(file)}
    wanted = {uid for file in chosen.files for uid in file.references}
    strays = [
        file
        for other in index.patients.values()
        if other is not chosen
        for file in other.files
        if mine & {*file.references, *_own_uids(file)} or wanted & _own_uids(file)
    ]
    if not strays:
        return chosen.files
    kinds = ", ".join(sorted({file.kind for file in strays}))
    overrides.settle(
        "identity",
        f"{counted(len(strays), 'file')} of this patient's series, study or frame of reference, or that refer to such "
        f"files or are referred to by them, {'bears' if len(strays) == 1 else 'bear'} another patient's identity "
        f"({kinds}).",
        strays[0].where,
        warnings,
    )
    there = {file.sop_uid for file in chosen.files}
    return (*chosen.files, *(file for file in strays if file.sop_uid not in there))


def _own_uids(file: IndexedFile) -> set[str]:
    """What places a file: its object, series, study and frame of reference."""
    return {file.sop_uid, file.series_uid, file.study_uid, file.frame_uid} - {""}


def require_one_person(chosen: PatientFiles, overrides: Overrides, warnings: list[str]) -> None:
    for file in chosen.files:
        if file.identity.contradicts(chosen.identity):
            overrides.settle("identity", "Files of one identifier differ in name or birth date.", file.where, warnings)
            return


def require_undisputed(used: Sequence[IndexedFile], overrides: Overrides, warnings: list[str]) -> None:
    disputed = [file for file in used if file.is_disputed]
    if disputed:
        overrides.settle(
            "copies",
            f"{len(disputed)} objects are there in several files of different content ({disputed[0].kind}).",
            disputed[0].where,
            warnings,
        )


def _one(files: Sequence[IndexedFile], kind: str, label: str, index: DicomIndex) -> IndexedFile | None:
    """The only file of a kind, or the one with the label; None where there are none."""
    found = [file for file in files if file.kind == kind and (not label or file.label == label)]
    option = {RTPLAN: "--plan", RTSTRUCT: "--structure-set"}[kind]
    if len(found) > 1:
        raise PatientDataError(
            f"There are {len(found)} {kind} files: {', '.join(file.label or file.where for file in found)}.",
            where=index.folder.name,
            remedy=f"Choose one by its label with {option}.",
        )
    if not found and label:
        there = ", ".join(file.label for file in files if file.kind == kind) or "none"
        raise PatientDataError(f"There is no {kind} of the label {label!r}; there is {there}.", where=index.folder.name)
    return found[0] if found else None


def _structure_set(
    files: Sequence[IndexedFile], plan: IndexedFile | None, label: str, index: DicomIndex
) -> IndexedFile:
    sets = [file for file in files if file.kind == RTSTRUCT]
    if not label and plan is not None and plan.references:
        meant = [file for file in sets if file.sop_uid in plan.references]
        if len(meant) == 1:
            return meant[0]
        if sets and not meant:
            raise plan.header.error(
                "The plan refers to a structure set that is not here.",
                "Export plan and structure set together, or choose one with --structure-set.",
            )
    chosen = _one(files, RTSTRUCT, label, index)
    if chosen is None:
        raise PatientDataError(
            "There is no structure set (RTSTRUCT).", where=index.folder.name, remedy="Export it with the CT."
        )
    return chosen


def _ct_of(
    files: Sequence[IndexedFile], set_: IndexedFile, index: DicomIndex, overrides: Overrides, warnings: list[str]
) -> list[IndexedFile]:
    series: dict[str, list[IndexedFile]] = {}
    for file in files:
        if file.kind == CT:
            series.setdefault(file.series_uid, []).append(file)
    enhanced = next((file for file in files if file.kind == ENHANCED_CT), None)
    if not series and enhanced is not None:
        raise enhanced.header.error(
            "The CT is an enhanced one, with all slices in one file, which is not read "
            f"(transfer syntax {shown_syntax(transfer_syntax(enhanced.header))}).",
            "Export it as classic CT, a file a slice.",
        )
    if not series:
        raise PatientDataError("There is no CT.", where=index.folder.name, remedy="Export it with the structure set.")
    meant = [uid for uid in set_.references if uid in series]
    if set_.references and not meant:
        overrides.settle(
            "series",
            "The structures were drawn on another CT series than is here, so they may not lie where they seem to.",
            set_.where,
            warnings,
        )
    if not meant:
        meant = [uid for uid, slices in series.items() if set_.frame_uid and slices[0].frame_uid == set_.frame_uid]
    if not meant and len(series) == 1:
        meant = list(series)  # whether it fits is judged by frame and study
    if len(set(meant)) != 1:
        raise set_.header.error(
            f"Of {len(series)} CT series, {len(set(meant))} belong to the structure set.",
            "Give a folder with the one series that the structures were drawn on.",
        )
    return series[meant[0]]


def require_frame(file: IndexedFile, ct: IndexedFile, what: str, overrides: Overrides, warnings: list[str]) -> None:
    if not file.frame_uid or not ct.frame_uid:
        warnings.append(
            f"Whether the {what} has the CT's frame of reference could not be checked: one of them names none."
        )
    elif file.frame_uid != ct.frame_uid:
        overrides.settle(
            "frame",
            f"The {what} has another frame of reference than the CT: without a registration their positions mean "
            "nothing to each other.",
            file.where,
            warnings,
        )


def require_study(
    file: IndexedFile, other: IndexedFile, what: str, tied: bool, overrides: Overrides, warnings: list[str]
) -> None:
    if file.study_uid == other.study_uid:
        return
    if tied:
        warnings.append(f"The {what} is of another study than the {other.kind} it refers to.")
        return
    overrides.settle(
        "study",
        f"The {what} is of another study than the {other.kind} and does not refer to it.",
        file.where,
        warnings,
    )


def _require_plan_of(plan: IndexedFile, set_: IndexedFile, overrides: Overrides, warnings: list[str]) -> None:
    consequence = "what it prescribes to single structures is not taken over."
    if not plan.references:
        warnings.append(f"The plan refers to no structure set: {consequence}")
    elif set_.sop_uid not in plan.references:
        overrides.settle(
            "plan", f"The plan refers to another structure set than the one used: {consequence}", plan.where, warnings
        )


def _doses_of(
    files: Sequence[IndexedFile],
    plan: IndexedFile | None,
    ct: IndexedFile,
    overrides: Overrides,
    warnings: list[str],
) -> list[IndexedFile]:
    doses = [file for file in files if file.kind == RTDOSE]
    if plan is not None:
        fitting = [file for file in doses if not file.references or plan.sop_uid in file.references]
        if len(fitting) < len(doses):
            warnings.append(f"{len(doses) - len(fitting)} dose files of other plans were left out.")
        doses = [file for file in fitting if len(set(file.references)) < 2]
        if len(doses) < len(fitting):
            warnings.append(f"{len(fitting) - len(doses)} dose files of several plans together were left out.")
        if any(not file.references for file in doses):
            warnings.append("A dose names no plan: whether it is of the plan here could not be checked.")
    for file in doses:
        require_frame(file, ct, "dose", overrides, warnings)
        require_study(file, ct, "dose", bool(plan and plan.sop_uid in file.references), overrides, warnings)
    return doses
