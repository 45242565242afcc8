"""The command accumulate: dose of fractions on several anatomies, mapped to the planning CT and summed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.cli_dicom import add_dicom_options, dicom_choice
from RTDigitalTwinLib.cli_options import PATIENT_HELP, require_folder, require_sources
from RTDigitalTwinLib.cli_tables import dose_file, number_text, read_patient, require_place, required_dose
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, print_notes, print_table, progress_bar
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.words import counted

if TYPE_CHECKING:
    from argparse import Namespace

    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
    from RTDigitalTwinLib.patient.patient import Patient
    from RTDigitalTwinLib.report.accumulation import Accumulation, FractionSet


@dataclass(frozen=True)
class _Given:
    """Fractions as the user gives them; ``of`` is how many their dose stands for, None where not said."""

    source: str
    count: int
    of: int | None

    @property
    def where(self) -> str:
        """As errors name it."""
        return Path(self.source).name


def add_accumulation_command(commands: Any) -> None:
    """Add ``accumulate`` to a parser's commands."""
    parser = commands.add_parser("accumulate", help="sum the dose of fractions on the planning CT, by registration")
    parser.set_defaults(command=_accumulate)
    parser.add_argument("patient", metavar="PATIENT", help=f"the planned one: {PATIENT_HELP}")
    parser.add_argument(
        "sets",
        nargs="+",
        metavar="FRACTION[=COUNT[/OF]]",
        help="a folder with CT and dose of a day, or a dose as a file on the planned anatomy: delivered COUNT times "
        "(default 1) of the OF fractions that the dose stands for. OF must be given where the files do not say it. "
        "Results call them set 1, set 2 and so on, in this order",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for volumes and tables; new or empty")
    parser.add_argument(
        "--register",
        choices=("none", "rigid", "deformable"),
        default="rigid",
        help="how to find the anatomy of a day's CT in the planning CT (default rigid)",
    )
    parser.add_argument("--eqd2", type=float, metavar="ALPHA_BETA", help="sum in EQD2 with this alpha/beta in Gy")
    parser.add_argument("--unit", choices=("Gy", "cGy"), help="of a dose file that does not say it")
    add_dicom_options(parser, sums=True)


def _accumulate(options: Namespace) -> int:
    require_folder(options.patient, dicom_choice(options))
    given = [_parsed(text) for text in options.sets]
    require_sources(*(one.source for one in given))
    from RTDigitalTwinLib.patient.image_registration import RegistrationSettings
    from RTDigitalTwinLib.report.accumulation import accumulate, require_prescribed

    if options.eqd2 is not None and not 0 < options.eqd2 <= 100:
        raise RTDigitalTwinError(
            f"{options.eqd2:g} has no meaning here.", where="--eqd2", remedy="Give more than 0, to 100."
        )
    require_place(options.out, options.patient, *(one.source for one in given))
    choice = dicom_choice(options)
    patient = read_patient(options.patient, choice)
    require_prescribed(patient, sum(one.count for one in given), choice.overrides, [])  # before what takes time
    sets = [
        _fraction_set(f"set {k}", one, patient, options.patient, choice, options.unit)
        for k, one in enumerate(given, start=1)
    ]
    settings = None if options.register == "none" else RegistrationSettings(options.register == "deformable")
    with progress_bar() as shown:
        found = accumulate(patient, sets, settings, options.eqd2, shown, choice.overrides)
    console = Console(highlight=False)
    _print(console, patient, found)
    _write(options.out, patient, found, options.register)
    console.print(f"{options.out}: written", markup=False)
    console.print(RESEARCH_USE)
    return 0


def _parsed(text: str) -> _Given:
    from RTDigitalTwinLib.patient.plan import MOST_FRACTIONS

    before, sign, after = text.rpartition("=")
    if Path(text).exists() or not sign:
        return _Given(text, 1, None)
    numbers = re.fullmatch(r"([0-9]{1,3})(?:/([0-9]{1,3}))?", after)
    found = [int(number) for number in numbers.groups() if number] if numbers else []
    if not found or not all(1 <= number <= MOST_FRACTIONS for number in found):
        raise RTDigitalTwinError(
            f"{after!r} is no number of fractions.",
            where=before,
            remedy=f"Write for example week2=5, or week2=5/35 where its dose stands for 35; at most {MOST_FRACTIONS}.",
        )
    return _Given(before, found[0], found[1] if len(found) > 1 else None)


def _fraction_set(
    name: str, given: _Given, patient: Patient, source: str, choice: DicomChoice, unit: str | None
) -> FractionSet:
    from RTDigitalTwinLib.patient.day import Day, read_day
    from RTDigitalTwinLib.patient.dicom_dose import ONE_FRACTION, WHOLE_PLAN
    from RTDigitalTwinLib.patient.identity import require_same_person
    from RTDigitalTwinLib.report.accumulation import FractionSet
    from RTDigitalTwinLib.source import SAMPLE, belonging_of_source

    path, where, is_sample = Path(given.source), given.where, given.source == SAMPLE
    if not is_sample and not path.is_dir():
        read = dose_file(path, patient, source, choice, unit, (WHOLE_PLAN, ONE_FRACTION))
        notes, own = list(read.remarks), 1 if read.summation == ONE_FRACTION else None
        return FractionSet(name, read.dose, given.count, _stands_for(given, own, choice, notes), None, _all_of(notes))
    is_planned = is_sample == (source == SAMPLE) and path.resolve() == Path(source).resolve()
    if is_sample:
        shown = patient if is_planned else read_patient(SAMPLE, choice)
        identity = belonging_of_source(SAMPLE).identity
        day = Day(shown.ct, required_dose(shown), shown.plan.prescription.fractions, identity, shown.warnings)
    else:  # fractions are stated for the planned one only
        day = read_day(path, choice if is_planned else replace(choice, fractions=None))
    notes = list(day.warnings)
    if not is_planned:
        require_same_person(belonging_of_source(source, choice).identity, day.identity, choice.overrides, where, notes)
    of_fractions = _stands_for(given, day.of_fractions, choice, notes)
    return FractionSet(name, day.dose, given.count, of_fractions, day.ct, _all_of(notes))


def _all_of(notes: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))


def _stands_for(given: _Given, own: int | None, choice: DicomChoice, notes: list[str]) -> int:
    """How many fractions a dose stands for, by its files and the user."""
    said, where = given.of, given.where
    if said is None and own is None:
        raise PatientDataError(
            "Nothing says how many fractions the dose stands for.",
            where=where,
            remedy=f"Say it after the count: {where}={given.count}/35 for the dose of a course of 35, "
            f"{where}={given.count}/1 for that of a single fraction.",
        )
    if said is not None and own is not None and said != own:
        what = f"It is said to be a dose of {counted(said, 'fraction')}, but its files make it one of {own}."
        choice.overrides.settle("fractions", what, where, notes)
    return said or own or 1


def _print(console: Console, patient: Patient, found: Accumulation) -> None:
    mappings = [
        (
            m.fractions,
            str(m.count),
            _known(m.moved_mean_mm, "mm"),
            _known(m.inconsistency_mean_mm, "mm"),
            _known(m.inconsistency_95_mm, "mm"),
            "–" if m.density_changed_ratio is None else f"{m.density_changed_ratio:.1%}",
        )
        for m in found.mappings
    ]
    headings = ("set", "fractions", "moved", "inconsistent", "95 % below", "density changed")
    title = f"{patient.pseudonym}: mapping over the dose mask (inconsistent: away after there and back)"
    print_table(console, title, headings, mappings)
    for m in found.mappings:
        console.print(
            f"{m.fractions}: {counted(m.count, 'fraction')} delivered, counted as a dose of "
            f"{counted(m.of_fractions, 'fraction')}: {m.highest_gy:.1f} Gy at most"
        )
    ratio = found.sum.alpha_beta_gy
    kind = "physical dose" if ratio is None else f"EQD2, alpha/beta {ratio:g} Gy"
    rows = [
        (
            m.structure,
            f"{m.metric} ({m.unit})",
            number_text(m.planned, 1),
            number_text(m.accumulated, 1),
            number_text(m.difference, 1, signed=True),
            _known(m.dose_error_gy, "Gy"),
        )
        for m in found.metrics
    ]
    metric_headings = ("structure", "metric", "planned", "summed", "change", "by mapping")
    print_table(console, f"{counted(found.sum.fractions, 'fraction')}, {kind}", metric_headings, rows)
    if found.sum.dose_error is not None:
        console.print("By mapping: how far doses in the structure may be off by the inconsistency, mean.")
    print_notes(found.notes, console)


def _known(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.1f} {unit}"


def _write(out: Path, patient: Patient, found: Accumulation, registered: str) -> None:
    from RTDigitalTwinLib.files import whole_folder
    from RTDigitalTwinLib.patient.volume import Quantity, write_nrrd
    from RTDigitalTwinLib.report.accumulation import AccumulatedMetricRow, MappingRow
    from RTDigitalTwinLib.report.tables import write_rows

    total = found.sum
    with whole_folder(out) as folder:
        for name, volume in (
            ("dose_accumulated.nrrd", total.dose),
            ("mapping_inconsistency.nrrd", total.mapping_error),
            ("dose_mapping_error.nrrd", total.dose_error),
        ):
            if volume is not None:
                ratio = total.alpha_beta_gy if volume.quantity is Quantity.EQD2_GY else None
                write_nrrd(volume, str(folder / name), alpha_beta_gy=ratio)
        write_rows(folder / "metrics.csv", AccumulatedMetricRow, found.metrics)
        write_rows(folder / "mapping.csv", MappingRow, found.mappings)
        summary = {
            "patient": patient.pseudonym,
            "notice": RESEARCH_USE,
            "software_version": __version__,
            "registration": registered,
            "fractions": total.fractions,
            "eqd2_alpha_beta_gy": total.alpha_beta_gy,
            "mappings": [asdict(m) for m in found.mappings],
            "metrics": [asdict(m) | {"difference": m.difference} for m in found.metrics],
            "notes": list(found.notes),
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
