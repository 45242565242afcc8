"""One day of a treatment: its CT and dose, from a folder of any layout. Structures and plan are not needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.dicom_case import (
    require_frame,
    require_one_person,
    require_study,
    require_undisputed,
    with_strays,
)
from RTDigitalTwinLib.patient.dicom_ct import read_ct
from RTDigitalTwinLib.patient.dicom_dose import ONE_FRACTION, WHOLE_PLAN, DicomDose, read_dose
from RTDigitalTwinLib.patient.dicom_index import (
    CT,
    HAVE_PROBLEMS,
    RTDOSE,
    RTPLAN,
    IndexedFile,
    PatientFiles,
    index_folder,
)
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.dicom_plan import read_plan
from RTDigitalTwinLib.patient.identity import Identity
from RTDigitalTwinLib.patient.loading import belonging_of
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.words import counted


@dataclass(frozen=True, eq=False)
class Day:
    """What was imaged and given on a day.

    Attributes
    ----------
    ct : in HU.
    dose : physical, in Gy, on its own grid in the frame of the CT.
    of_fractions : how many the dose stands for by its own files; None where they do not say.
    identity : whose the files say they are.
    warnings : what the user must see.
    """

    ct: Volume
    dose: Volume
    of_fractions: int | None
    identity: Identity
    warnings: tuple[str, ...]


def read_day(folder: Path, choice: DicomChoice | None = None) -> Day:
    """Read a day.

    Parameters
    ----------
    choice : of DICOM, which patient and plan are meant, and which checks are passed over.

    Raises
    ------
    PatientDataError : the folder has no CT or not one dose of a plan or a fraction, the dose is an EFFECTIVE one, or
        files are damaged or contradict each other.
    """
    if openkbp.recognises(folder):
        patient = openkbp.read_patient(folder)
        dose = patient.plan.dose
        if dose is None:
            raise PatientDataError("The folder holds no dose.", where=folder.name, remedy="Add dose.csv.")
        fractions = patient.plan.prescription.fractions
        return Day(patient.ct, dose, fractions, belonging_of(folder).identity, patient.warnings)
    return _dicom_day(folder, choice or DicomChoice())


def _dicom_day(folder: Path, choice: DicomChoice) -> Day:
    index = index_folder(folder)
    chosen = index.patient(_known(choice.patient, index.patients.values()))
    warnings: list[str] = []
    if index.problems:
        warnings.append(f"{counted(len(index.problems), *HAVE_PROBLEMS)}; rt-digital-twin inspect shows them.")
    files = with_strays(index, chosen, choice.overrides, warnings)
    require_one_person(chosen, choice.overrides, warnings)
    every = [file for file in files if file.kind == RTPLAN]
    meant = [file for file in every if choice.plan == file.label]  # other folders than the plan's may lack the label
    plans = meant or every
    dose_file, dose = _dose(files, meant, folder, warnings)
    plan = next((plan for plan in plans if plan.sop_uid in dose_file.references), None)
    slices = _ct_of(files, dose_file, folder)
    require_frame(dose_file, slices[0], "dose", choice.overrides, warnings)
    require_study(dose_file, slices[0], "dose", plan is not None, choice.overrides, warnings)
    require_undisputed((*slices, dose_file, *([plan] if plan else [])), choice.overrides, warnings)
    ct = read_ct(slices, choice.overrides, warnings)
    of_fractions = choice.fractions if plan is None else read_plan(plan).fractions
    if dose.summation == ONE_FRACTION:
        of_fractions = 1
    # Settled before: the frames are the same, not known, or the user took them for the same.
    grid = replace(dose.dose.grid, frame_of_reference=ct.grid.frame_of_reference)
    return Day(ct, replace(dose.dose, grid=grid), of_fractions, chosen.identity, tuple(dict.fromkeys(warnings)))


def _known(wanted: str, patients: Iterable[PatientFiles]) -> str:
    """The choice where it names a patient of the folder; pseudonyms of the plan's folder mean nothing in others."""
    return wanted if any(wanted in (one.pseudonym, one.identity.patient_id) for one in patients) else ""


def _dose(
    files: Sequence[IndexedFile], plans: Sequence[IndexedFile], folder: Path, warnings: list[str]
) -> tuple[IndexedFile, DicomDose]:
    """The only dose of a plan or of a fraction; of certain plans where any are given."""
    found: list[tuple[IndexedFile, DicomDose]] = []
    for file in files:
        of_others = plans and file.references and not any(plan.sop_uid in file.references for plan in plans)
        if file.kind != RTDOSE or of_others:
            continue
        try:
            dose = read_dose(file)
        except RTDigitalTwinError as error:
            warnings.append(f"A dose was left out: {error.what}")
            continue
        if dose.is_predicted:
            warnings.append("A dose that this software predicted was left out: it was not delivered.")
        elif dose.summation not in (WHOLE_PLAN, ONE_FRACTION):
            warnings.append(f"A dose of summation {dose.summation} was left out.")
        else:
            found.append((file, dose))
    if len(found) != 1:
        raise PatientDataError(
            f"The folder holds {len(found) or 'no'} dose{'' if len(found) == 1 else 's'} (RTDOSE) of a plan or a "
            f"fraction; one is expected. {' '.join(warnings)}".strip(),
            where=folder.name,
            remedy="Give a folder with the day's CT and its one dose, or choose among plans with --plan.",
        )
    file, dose = found[0]
    if dose.is_effective:
        raise PatientDataError(
            "The dose is an EFFECTIVE one, which cannot be summed with physical ones.",
            where=file.where,
            remedy="Export the PHYSICAL dose.",
        )
    warnings += dose.remarks
    return file, dose


def _ct_of(files: Sequence[IndexedFile], dose: IndexedFile, folder: Path) -> list[IndexedFile]:
    series: dict[str, list[IndexedFile]] = {}
    for file in files:
        if file.kind == CT:
            series.setdefault(file.series_uid, []).append(file)
    if not series:
        raise PatientDataError("There is no CT.", where=folder.name, remedy="Export the day's CT with its dose.")
    fitting = [one for one in series.values() if dose.frame_uid and one[0].frame_uid == dose.frame_uid]
    if len(series) == 1:
        fitting = list(series.values())  # whether it fits is judged by frame and study
    if len(fitting) != 1:
        raise PatientDataError(
            f"Of {len(series)} CT series, {len(fitting)} have the dose's frame of reference.",
            where=folder.name,
            remedy="Give a folder with the one series that the dose was calculated on.",
        )
    return fitting[0]
