"""What commands on doses share: reading a dose, choosing goals, numbers in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from RTDigitalTwinLib.cli_terminal import progress_bar
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.words import decimal

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from RTDigitalTwinLib.dosimetry.goals import GoalSet
    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
    from RTDigitalTwinLib.patient.dose_file import ReadDose
    from RTDigitalTwinLib.patient.patient import Patient
    from RTDigitalTwinLib.patient.volume import Volume


def with_error(value: float, error: float | None, unit: str) -> str:
    number = decimal(value, 1)
    return f"{number} {unit}" if error is None else f"{number} ± {decimal(error, 1)} {unit} (voxel size)"


def number_text(value: float | None, digits: int, *, signed: bool = False) -> str:
    return "–" if value is None else decimal(value, digits, signed=signed)


def percent_text(probability: float) -> str:
    return "below 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"


def range_text(low: float | None, high: float | None) -> str:
    """The limits of a probability, once where they read the same."""
    if low is None or high is None:
        return "–"
    limits = percent_text(low), percent_text(high)
    return limits[0] if limits[0] == limits[1] else f"{limits[0].removesuffix(' %')} to {limits[1]}"


def required_dose(patient: Patient) -> Volume:
    if not patient.plans or patient.plan.dose is None:
        raise PatientDataError(
            "The folder holds no dose.", where=patient.pseudonym, remedy="Add it, or name an image file of it."
        )
    return patient.plan.dose


def read_patient(source: str, choice: DicomChoice) -> Patient:
    """The patient in a folder, or the built-in one, whose planning shows its progress."""
    from RTDigitalTwinLib.source import SAMPLE, patient_of

    if source != SAMPLE:
        return patient_of(source, choice)
    with progress_bar() as shown:
        return patient_of(source, choice, shown)


def dose_file(
    path: Path,
    patient: Patient,
    source: str,
    choice: DicomChoice,
    unit: str | None,
    summations: Sequence[str] = ("PLAN",),
) -> ReadDose:
    """A dose from a file to use with a patient from ``source``; its remarks hold all that is to be told.

    Raises PatientDataError where it cannot be read, is no physical dose of these summations, or another person's.
    """
    from RTDigitalTwinLib.patient.dose_file import read_dose_image, require_belongs
    from RTDigitalTwinLib.source import belonging_of_source

    read = read_dose_image(path, patient.ct.grid.frame_of_reference, unit, summations=summations)
    if read.identity is None:
        return read
    remarks = require_belongs(read, belonging_of_source(source, choice), choice.overrides, path.name)
    return replace(read, remarks=(*remarks, *read.remarks))


def same_person(source: str, other: str, choice: DicomChoice) -> tuple[str, ...]:
    """What is to be told of two sources used together. Raises PatientDataError where they are of different persons."""
    from RTDigitalTwinLib.patient.identity import require_same_person
    from RTDigitalTwinLib.source import belonging_of_source

    remarks: list[str] = []
    one, two = (belonging_of_source(place, choice).identity for place in (source, other))
    require_same_person(one, two, choice.overrides, Path(other).name, remarks)
    return tuple(remarks)


def require_place(out: Path, *sources: str | Path) -> None:
    """Raises OutputError where an output would lie in a patient's folder, or in, around or over what is read."""
    from RTDigitalTwinLib.files import require_apart
    from RTDigitalTwinLib.patient.loading import require_outside_patients
    from RTDigitalTwinLib.source import SAMPLE

    require_outside_patients(out)
    for source in sources:
        if source != SAMPLE:
            require_apart(out, Path(source))


def add_goals_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--goals",
        action="append",
        metavar="WHICH",
        help="protocol by name or TOML file; may be repeated (default: those that fit the prescription)",
    )


def chosen_goals(chosen: list[str] | None) -> list[GoalSet] | None:
    """None where none are chosen, at once: what reads them takes seconds to import.

    Raises RTDigitalTwinError or ProtocolError.
    """
    if chosen is None:
        return None
    from RTDigitalTwinLib.dosimetry.goals import available_goals, load_goals

    known = available_goals()
    for word in chosen:
        if word not in known and not Path(word).is_file():
            raise RTDigitalTwinError(
                f"There are no goals of this name, and no such file; there are {', '.join(known)}.",
                where=word,
            )
    return [load_goals(known[word] if word in known else Path(word)) for word in chosen]
