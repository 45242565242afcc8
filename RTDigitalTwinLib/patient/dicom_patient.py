"""A folder of DICOM-RT files as a Patient at the resolution of its CT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.anatomy_check import check_orientation, check_sides
from RTDigitalTwinLib.patient.dicom_case import CaseFiles, choose_files
from RTDigitalTwinLib.patient.dicom_ct import read_ct
from RTDigitalTwinLib.patient.dicom_dose import DicomDose, read_dose
from RTDigitalTwinLib.patient.dicom_file import looks_like_dicom
from RTDigitalTwinLib.patient.dicom_index import (
    HAVE_PROBLEMS,
    RTPLAN,
    STUDY_KEYWORDS,
    DicomIndex,
    IndexedFile,
    files_below,
    index_folder,
)
from RTDigitalTwinLib.patient.dicom_plan import DicomPlan, read_plan
from RTDigitalTwinLib.patient.dicom_structures import LEFT_OUT, Roi, occupancies, read_rois
from RTDigitalTwinLib.patient.dicom_writing import Origin
from RTDigitalTwinLib.patient.dose_region import (
    BODY_NOTE,
    REGION_NOTE,
    as_mask,
    body_and_couch,
    couch_note,
    dose_region,
)
from RTDigitalTwinLib.patient.identity import Belonging
from RTDigitalTwinLib.patient.naming import DOSE_MASK, ORGANS_AT_RISK
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Approval, Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.structure_matching import (
    EXTERNAL,
    LEVEL_TOLERANCE_GY,
    Candidate,
    Match,
    MatchState,
    level_of,
    match_structures,
)
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.words import counted

_FILES_LOOKED_AT = 2000
# A plan's dose that misses its own prescription by more than this is likely scaled wrongly.
_ODD_DOSE_RATIO = 0.25


@dataclass(frozen=True)
class DicomChoice:
    """What of a folder is meant, and what the user knows of it.

    Attributes
    ----------
    patient : pseudonym or identifier; "" for the only one.
    structure_set, plan : labels, to choose among several.
    names : confirmed TG-263 names by name in the source, "" for what is to be left out.
    shared_names : the same from a file for many patients: names that this patient lacks are passed over.
    fractions : of a treatment without a plan file.
    """

    patient: str = ""
    structure_set: str = ""
    plan: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    shared_names: Mapping[str, str] = field(default_factory=dict)
    fractions: int | None = None
    overrides: Overrides = field(default_factory=Overrides)


def recognises(folder: Path) -> bool:
    """Whether a folder holds DICOM files at any depth."""
    for i, path in enumerate(files_below(folder)):
        if looks_like_dicom(path):
            return True
        if i >= _FILES_LOOKED_AT:
            return False
    return False


def require_files(folder: Path, choice: DicomChoice | None = None) -> None:
    """Refuse what ``read_patient`` refuses of the files' headers; a large folder is not read twice for that.

    Raises PatientDataError.
    """
    if next(islice(files_below(folder), _FILES_LOOKED_AT, None), None) is None:
        _chosen_files(index_folder(folder), choice or DicomChoice(), [])


def read_patient(folder: Path, choice: DicomChoice | None = None, progress: Progress = silent) -> Patient:
    """Read one patient, at the CT's resolution; targets as drawn, so nested ones overlap.

    Raises PatientDataError where files are missing, damaged or contradict each other, and where names of structures
    wait to be confirmed: they are listed with what each may mean.
    """
    return read_indexed(index_folder(folder, part(progress, 0.0, 0.2)), choice, part(progress, 0.2, 1.0))


def read_indexed(index: DicomIndex, choice: DicomChoice | None = None, progress: Progress = silent) -> Patient:
    """``read_patient`` of a folder that was indexed before."""
    choice = choice or DicomChoice()
    warnings: list[str] = []
    if index.problems:
        warnings.append(f"{counted(len(index.problems), *HAVE_PROBLEMS)}; rt-digital-twin inspect shows them.")
    files = _chosen_files(index, choice, warnings)
    ct = read_ct(files.ct, choice.overrides, warnings, part(progress, 0.0, 0.5))
    plan = None if files.plan is None else read_plan(files.plan)
    if plan is not None:
        warnings += plan.remarks
        if not files.plan_knows_structures:
            plan = plan.without_structures()
    progress(0.5, "drawing structures")
    rois = read_rois(files.structure_set)
    _require_frames(rois, files, choice.overrides, warnings)
    remarks: dict[int, str] = {}
    drawn = occupancies(rois, ct.grid, remarks)
    matches = match_rois(rois, drawn, plan, choice)
    require_confirmed(matches)
    for roi, match in zip(rois, matches, strict=True):
        if match.counts and roi.number not in drawn:
            remedy = remarks[roi.number].removeprefix(LEFT_OUT)
            raise PatientDataError("The structure is to be used, but cannot be drawn.", where=roi.name, remedy=remedy)
        if match.counts and roi.number in remarks:
            warnings.append(f"{match.name}: {remarks[roi.number]}")  # not the file's name, which is free text
    structures = {
        match.name: replace(drawn[roi.number], name=match.name, kind=_kind(match.name))
        for roi, match in zip(rois, matches, strict=True)
        if match.counts
    }
    warnings += _absent(structures, matches)
    external, region = structures.pop(EXTERNAL, None), structures.pop(DOSE_MASK, None)
    warnings += check_orientation(structures)
    check_sides(structures)
    progress(0.8, "finding the body")
    if region is not None:
        region = as_mask(region)
    else:
        if external is None:
            external, couch_cc = body_and_couch(ct)
            warnings += [BODY_NOTE, *([couch_note(couch_cc)] if couch_cc else [])]
        targets = [s for s in structures.values() if s.kind is StructureKind.TARGET]
        region = dose_region(external, targets)
        warnings.append(REGION_NOTE)
    dose, is_effective = _plan_dose(files, ct, warnings)
    progress(0.95, "dose")
    patient_plan = replace(
        _plan(plan, choice, structures, rois, matches, dose, warnings), dose_is_effective=is_effective
    )
    return Patient(
        files.pseudonym, (Image("CT", ct),), structures, region, (patient_plan,), tuple(dict.fromkeys(warnings))
    )


def belonging_of(folder: Path, choice: DicomChoice | None = None) -> Belonging:
    """Whose files a folder holds. Raises PatientDataError where there are none, or several patients and no choice."""
    choice = choice or DicomChoice()
    patient = index_folder(folder).patient(choice.patient)
    plans = [file for file in patient.of_kind(RTPLAN) if not choice.plan or file.label == choice.plan]
    return Belonging(patient.identity, plans[0].sop_uid if len(plans) == 1 else "")


def _chosen_files(index: DicomIndex, choice: DicomChoice, warnings: list[str]) -> CaseFiles:
    return choose_files(
        index, choice.patient, choice.overrides, warnings, structure_set=choice.structure_set, plan=choice.plan
    )


def source_origin(folder: Path, choice: DicomChoice | None = None) -> Origin:
    """Whose record a result of ``read_patient`` goes back to, and what it refers to.

    Raises PatientDataError also where there is no plan of this structure set or no frame of reference, which a dose in
    DICOM must name.
    """
    choice = choice or DicomChoice()
    files = _chosen_files(index_folder(folder), choice, [])
    ct = files.ct[0]
    if files.plan is None:
        raise PatientDataError(
            "There is no plan that the dose could refer to.",
            where=files.structure_set.where,
            remedy="Add the RTPLAN, or leave the DICOM dose out.",
        )
    if files.structure_set.sop_uid not in files.plan.references:
        raise files.plan.header.error(
            "The plan does not refer to the structure set in use, so through it the dose would belong to another.",
            "Export plan and structure set together, or leave the DICOM dose out.",
        )
    if not ct.frame_uid:
        raise ct.header.error("The CT names no frame of reference that the dose could refer to.", "Export it anew.")
    return Origin(
        ct.identity.name,
        ct.identity.patient_id,
        ct.identity.birth_date,
        ct.header.text("PatientSex", ""),
        ct.study_uid,
        ct.frame_uid,
        ct.series_uid,
        tuple(file.sop_uid for file in files.ct),
        files.structure_set.sop_uid,
        files.plan.sop_uid,
        *(ct.header.text(keyword, "") for keyword in STUDY_KEYWORDS),
    )


def match_rois(
    rois: Sequence[Roi], drawn: Mapping[int, Structure], plan: DicomPlan | None, choice: DicomChoice
) -> list[Match]:
    """What each region is to the model, in their order. Raises PatientDataError for an unfit mapping."""
    levels = dict(plan.roi_dose_gy) if plan else {}
    candidates = [
        Candidate(
            roi.name,
            roi.interpreted_type,
            levels.get(roi.number),
            drawn[roi.number].volume_cc if roi.number in drawn else None,
            roi.is_empty,
        )
        for roi in rois
    ]
    names = {roi.name for roi in rois}
    shared = {source: name for source, name in choice.shared_names.items() if source in names}
    matches = match_structures(candidates, {**shared, **choice.names})
    for roi, match in zip(rois, matches, strict=True):
        told, planned = level_of(match.name), levels.get(roi.number)
        if match.counts and told is not None and planned is not None and abs(told - planned) > LEVEL_TOLERANCE_GY:
            raise PatientDataError(
                f"It counts as {match.name}, but the plan prescribes {planned:g} Gy to it.",
                where=roi.name,
                remedy="Correct the mapping or the plan.",
            )
    return matches


def require_confirmed(matches: Sequence[Match]) -> None:
    """Raise PatientDataError listing the proposals and targets that wait for the user."""
    waiting = [match for match in matches if match.waits]
    if not waiting:
        return
    proposed = "; ".join(
        f'--map "{match.source}={match.name}" (confidence {match.confidence:.2f}: {match.reason})'
        for match in waiting
        if match.name
    )
    unclear = "; ".join(f"{match.source} ({match.reason})" for match in waiting if not match.name)
    raise PatientDataError(
        f"{len(waiting)} names of structures wait to be confirmed."
        + (f" Proposed: {proposed}." if proposed else "")
        + (f" Of targets it is open what they are: {unclear}." if unclear else ""),
        remedy='Confirm, correct as in --map "PTV boost=PTV_7000", or leave out with --map "name=", or use a mapping '
        "file.",
    )


def _require_frames(rois: Sequence[Roi], files: CaseFiles, overrides: Overrides, warnings: list[str]) -> None:
    frame = files.ct[0].frame_uid
    strange = [roi for roi in rois if roi.frame_uid and frame and roi.frame_uid != frame and roi.contours]
    if strange and files.structure_set.frame_uid in ("", frame):  # else it is settled for the whole set
        overrides.settle(
            "frame",
            f"{counted(len(strange), 'structure has', 'structures have')} another frame of reference than the CT.",
            files.structure_set.where,
            warnings,
        )


def _kind(name: str) -> StructureKind:
    if level_of(name) is not None:
        return StructureKind.TARGET
    return StructureKind.REGION if name in (EXTERNAL, DOSE_MASK) else StructureKind.ORGAN


def _absent(structures: Mapping[str, Structure], matches: Sequence[Match]) -> list[str]:
    """What of the structure set is not used, and what the model knows and the set lacks; names stay in the file."""
    if not any(level_of(name) is not None for name in structures):
        raise PatientDataError(
            "There is no planning target volume of a known dose level.",
            remedy='Name it, as in --map "PTV high=PTV_7000".',
        )
    states = [match.state.value for match in matches if not match.counts]
    kinds = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    said = counted(len(states), "structure of the set is", "structures of the set are")
    unused = [f"{said} not used ({kinds}); rt-digital-twin inspect lists them."]
    empty = dict.fromkeys(match.name for match in matches if match.state is MatchState.EMPTY and match.name)
    return (
        (unused if states else [])
        + [f"{name} is absent: nothing of it is drawn." for name in empty if name not in structures]
        + [
            f"{name} is absent: no structure of this name was found."
            for name in ORGANS_AT_RISK
            if name not in structures and name not in empty
        ]
    )


def _plan_dose(files: CaseFiles, ct: Volume, warnings: list[str]) -> tuple[Volume | None, bool]:
    """The dose of the whole plan on the CT's grid, and whether it is an EFFECTIVE one.

    It is NaN beyond its own grid; None with a warning where there is none.
    """
    whole: list[tuple[IndexedFile, DicomDose]] = []
    if not files.doses:
        warnings.append("There is no dose (RTDOSE) of the plan to compare with.")
    for file in files.doses:
        try:
            dose = read_dose(file)
        except RTDigitalTwinError as error:
            warnings.append(f"A dose was left out: {error.what}")
            continue
        if dose.is_plan:
            whole.append((file, dose))
        elif dose.is_predicted:
            warnings.append("A dose that this software predicted was left out: it is no plan's dose.")
        else:
            warnings.append(f"A dose of summation {dose.summation} was left out: it is not the whole plan's.")
    if len(whole) != 1:
        if whole:
            warnings.append(f"{len(whole)} doses claim to be the whole plan's; none was taken.")
        return None, False
    file, dose = whole[0]
    warnings += dose.remarks
    # Settled before: the frames are the same, not known, or the user took them for the same.
    grid = replace(dose.dose.grid, frame_of_reference=ct.grid.frame_of_reference)
    return Volume(dose.dose.values, grid, Quantity.DOSE_GY).resampled(ct.grid), dose.is_effective


def _plan(
    plan: DicomPlan | None,
    choice: DicomChoice,
    structures: Mapping[str, Structure],
    rois: Sequence[Roi],
    matches: Sequence[Match],
    dose: Volume | None,
    warnings: list[str],
) -> Plan:
    levels = {name: gy for name in structures if (gy := level_of(name)) is not None}
    fractions = plan.fractions if plan else None
    if choice.fractions is not None:
        if fractions is not None and fractions != choice.fractions:
            raise PatientDataError(
                f"The plan has {counted(fractions, 'fraction')}, not {choice.fractions}.",
                remedy="Leave --fractions out.",
            )
        fractions = choice.fractions
        warnings.append(f"{counted(fractions, 'fraction was', 'fractions were')} stated by the user.")
    if fractions is None:
        raise PatientDataError(
            "In how many fractions the dose is given is not known: there is no plan that says it.",
            remedy="Add the RTPLAN, or state it with --fractions.",
        )
    highest = max(levels.values())
    planned = [gy for _, gy in plan.roi_dose_gy] + list(plan.site_doses_gy) if plan else []
    if planned and not any(abs(gy - highest) <= LEVEL_TOLERANCE_GY for gy in planned):
        warnings.append(
            f"The plan prescribes {', '.join(f'{gy:g}' for gy in sorted(set(planned)))} Gy, the highest target is "
            f"{highest:g} Gy by its name."
        )
    if dose is not None:
        _note_dose(dose, structures, levels, warnings)
    prescription = Prescription(tuple(sorted(levels.items(), key=lambda level: level[1])), fractions)
    return Plan(
        prescription,
        plan.gantry_angles_deg if plan else (),
        dose,
        plan.approval if plan else Approval.UNKNOWN,
        "DICOM plan" if plan is None or plan.is_clinical else "DICOM plan, no clinical plan",
        not_fixed_fields=plan.not_fixed_fields if plan else "",
    )


def _note_dose(
    dose: Volume, structures: Mapping[str, Structure], levels: Mapping[str, float], warnings: list[str]
) -> None:
    known = np.isfinite(dose.values)
    for name, structure in structures.items():
        inside = structure.box_occupancy >= 0.5
        covered = float(known[structure.box][inside].mean()) if inside.any() else 1.0
        if covered < 0.9995:
            warnings.append(f"The dose grid covers {100 * covered:.1f} % of {name}; beyond it the dose is not known.")
    highest = max(levels, key=lambda name: levels[name])
    box, inside = structures[highest].box, structures[highest].box_occupancy >= 0.5
    middle = float(np.nanmedian(np.where(inside, dose.values[box], np.nan)))
    if np.isfinite(middle) and abs(middle / levels[highest] - 1) > _ODD_DOSE_RATIO:
        warnings.append(
            f"The dose in {highest} is {middle:.1f} Gy in the middle, which does not fit its {levels[highest]:g} Gy: "
            "check units, scaling, and whether it is the whole plan's."
        )
