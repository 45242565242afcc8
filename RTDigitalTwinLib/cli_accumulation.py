"""The command accumulate: dose of fractions on several anatomies, mapped to the planning CT and summed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.cli_tables import (
    dose_file,
    number_text,
    require_place,
    required_dose,
    same_person,
)
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, print_notes, print_table, progress_bar
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError

if TYPE_CHECKING:
    from argparse import Namespace

    from RTDigitalTwinLib.patient.patient import Patient
    from RTDigitalTwinLib.patient.volume import Volume
    from RTDigitalTwinLib.report.accumulation import Accumulation, FractionSet

MOST_FRACTIONS = 100


def add_accumulation_command(commands: Any) -> None:
    """Add ``accumulate`` to a parser's commands."""
    parser = commands.add_parser("accumulate", help="sum the dose of fractions on the planning CT, by registration")
    parser.set_defaults(command=_accumulate)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the planned patient's folder")
    parser.add_argument(
        "fractions",
        nargs="+",
        metavar="FRACTION[=COUNT]",
        help="a folder with CT and dose of a day, or a dose as an image file on the planned anatomy; delivered COUNT "
        "times (default 1)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for volumes and tables; new or empty")
    parser.add_argument(
        "--register",
        choices=("none", "rigid", "deformable"),
        default="rigid",
        help="how to find the anatomy of a day's CT in the planning CT (default rigid)",
    )
    parser.add_argument(
        "--dose-of", type=int, metavar="N", help="fractions that each dose stands for (default: those of its plan)"
    )
    parser.add_argument("--eqd2", type=float, metavar="ALPHA_BETA", help="sum in EQD2 with this alpha/beta in Gy")
    parser.add_argument("--unit", choices=("Gy", "cGy"), help="of a dose file that does not say it")


def _accumulate(options: Namespace) -> int:
    from RTDigitalTwinLib.patient.image_registration import RegistrationSettings
    from RTDigitalTwinLib.patient.patient import Patient
    from RTDigitalTwinLib.report.accumulation import accumulate

    require_place(options.out, options.folder)
    for what, number in (("--dose-of", options.dose_of), ("--eqd2", options.eqd2)):
        if number is not None and not 0 < number <= MOST_FRACTIONS:
            raise RTDigitalTwinError(f"{number:g} has no meaning here.", where=what, remedy="Give more than 0, to 100.")
    patient = Patient.load(options.folder)
    sets = [_fraction_set(text, patient, options) for text in options.fractions]
    settings = None if options.register == "none" else RegistrationSettings(options.register == "deformable")
    with progress_bar() as shown:
        found = accumulate(patient, sets, settings, options.eqd2, shown)
    console = Console(highlight=False)
    _print(console, patient, found)
    _write(options.out, patient, found, options.register)
    console.print(f"{options.out}: written", markup=False)
    console.print(RESEARCH_USE)
    return 0


def _fraction_set(text: str, patient: Patient, options: Namespace) -> FractionSet:
    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
    from RTDigitalTwinLib.patient.patient import Patient
    from RTDigitalTwinLib.report.accumulation import FractionSet

    path, count = _path_and_count(text)
    ct: Volume | None = None
    source = patient
    if path.is_dir():
        same_person(options.folder, path, DicomChoice())
        source = Patient.load(path)
        dose, ct = required_dose(source), source.ct
    else:
        dose = dose_file(path, patient, options.folder, DicomChoice(), options.unit).dose
    return FractionSet(path.name, dose, count, options.dose_of or _fractions_of(source, path), ct)


def _path_and_count(text: str) -> tuple[Path, int]:
    before, sign, after = text.rpartition("=")
    if Path(text).exists() or not sign:
        return Path(text), 1
    if not (after.isdecimal() and 1 <= int(after) <= MOST_FRACTIONS):
        raise RTDigitalTwinError(
            f"{after!r} is no number of fractions.", where=before, remedy="Write for example week2=5."
        )
    return Path(before), int(after)


def _fractions_of(source: Patient, path: Path) -> int:
    if not source.plans:
        raise PatientDataError(
            "No plan says how many fractions the dose stands for.", where=path.name, remedy="Say it: --dose-of 35."
        )
    return source.plan.prescription.fractions


def _print(console: Console, patient: Patient, found: Accumulation) -> None:
    mappings = [
        (
            m.fractions,
            str(m.count),
            f"{m.moved_mean_mm:.1f} mm",
            _known(m.inconsistency_mean_mm, "mm"),
            _known(m.inconsistency_95_mm, "mm"),
            "–" if m.density_changed_ratio is None else f"{m.density_changed_ratio:.1%}",
        )
        for m in found.mappings
    ]
    headings = ("fractions", "number", "moved", "inconsistent", "95 % below", "density changed")
    title = f"{patient.pseudonym}: mapping over the dose mask (inconsistent: away after there and back)"
    print_table(console, title, headings, mappings)
    ratio = found.sum.alpha_beta_gy
    kind = "physical dose" if ratio is None else f"EQD2, alpha/beta {ratio:g} Gy"
    rows = [
        (
            m.structure,
            f"{m.metric} ({m.unit})",
            number_text(m.planned, 1),
            number_text(m.accumulated, 1),
            number_text(m.difference, 1, "+"),
            _known(m.dose_error_gy, "Gy"),
        )
        for m in found.metrics
    ]
    metric_headings = ("structure", "metric", "planned", "summed", "change", "by mapping")
    print_table(console, f"{found.sum.fractions} fractions, {kind}", metric_headings, rows)
    console.print("By mapping: how far doses in the structure may be off by the inconsistency, mean.")
    print_notes(found.notes, console)


def _known(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.1f} {unit}"


def _write(out: Path, patient: Patient, found: Accumulation, registered: str) -> None:
    from RTDigitalTwinLib.files import whole_folder
    from RTDigitalTwinLib.patient.volume import write_nrrd
    from RTDigitalTwinLib.report.accumulation import AccumulatedMetricRow, MappingRow
    from RTDigitalTwinLib.report.tables import write_rows

    total = found.sum
    with whole_folder(out) as folder:
        for name, volume in (
            ("dose_accumulated.nrrd", total.dose),
            ("mapping_inconsistency.nrrd", total.mapping_error),
            ("dose_mapping_error.nrrd", total.dose_error),
        ):
            write_nrrd(volume, str(folder / name))
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
