"""The commands that judge doses and need no network: dose and compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.allocation import lasting_imports
from RTDigitalTwinLib.cli_dicom import add_dicom_options, dicom_choice
from RTDigitalTwinLib.cli_options import PATIENT_HELP, require_folder, require_inputs, require_sources
from RTDigitalTwinLib.cli_tables import (
    add_goals_option,
    chosen_goals,
    dose_file,
    number_text,
    percent_text,
    range_text,
    read_patient,
    require_place,
    required_dose,
    same_person,
    with_error,
)
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, print_notes, print_table
from RTDigitalTwinLib.errors import RTDigitalTwinError, told_of
from RTDigitalTwinLib.words import decimal

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from RTDigitalTwinLib.patient.patient import Patient
    from RTDigitalTwinLib.patient.volume import Volume
    from RTDigitalTwinLib.report.dose_comparison import DoseComparison
    from RTDigitalTwinLib.report.dose_review import DoseReview
    from RTDigitalTwinLib.report.goal_table import GoalTable

PLAN_DOSE = "the plan's dose"
JOINED = (
    "The conformity of a lower dose level is of its target joined with those of the levels above, which its isodose "
    "must enclose too."
)
BIOLOGY_INTERVAL = (
    "95 % interval: what the published standard deviations of the model's parameters leave open. –: none were "
    "published or traced, so how far the probability may be off is not known."
)
STYLES = {"met": "green", "acceptable": "yellow", "violated": "bold red", "not evaluated": "dim"}


def add_dosimetry_commands(commands: Any) -> None:
    """Add ``dose`` and ``compare`` to a parser's commands."""
    dose = commands.add_parser("dose", help="judge a dose with structures: DVH metrics, plan quality, goals, biology")
    dose.set_defaults(command=_dose)
    dose.add_argument("patient", metavar="PATIENT", help=PATIENT_HELP)
    dose.add_argument("--dose", type=Path, metavar="FILE", help="another dose than the plan's: RTDOSE or an image file")
    dose.add_argument("--out", type=Path, metavar="DIR", help="write the tables and DVHs as CSV and JSON; new or empty")
    _add_shared(dose)

    compare = commands.add_parser("compare", help="two doses: difference, gamma, DVH metrics and goals side by side")
    compare.set_defaults(command=_compare)
    compare.add_argument("a", metavar="A", help=f"the reference: {PATIENT_HELP}; with a dose")
    compare.add_argument("b", metavar="B", help="another folder of the patient, or a dose file")
    compare.add_argument("--gamma", default="3/2", metavar="PERCENT/MM", help="criteria (default 3/2)")
    compare.add_argument("--cutoff", type=float, default=10.0, metavar="PERCENT", help="of gamma (default 10)")
    compare.add_argument("--local", action="store_true", help="gamma with the dose difference local, not global")
    compare.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    _add_shared(compare)


def _add_shared(parser: ArgumentParser) -> None:
    add_goals_option(parser)
    parser.add_argument("--unit", choices=("Gy", "cGy"), help="of a dose file that does not say it")
    add_dicom_options(parser)


def _dose(options: Namespace) -> int:
    require_folder(options.patient, dicom_choice(options))
    require_inputs(None, options.dose)
    goals = chosen_goals(options.goals)
    if options.out is not None:
        require_place(options.out, options.patient, *([options.dose] if options.dose else []))
    choice = dicom_choice(options)
    patient = read_patient(options.patient, choice)
    remarks: tuple[str, ...] = ()
    if options.dose is None:
        dose = required_dose(patient)
    else:
        read = dose_file(options.dose, patient, options.patient, choice, options.unit)
        dose, remarks = read.dose, read.remarks
    with lasting_imports():  # after what may be refused
        from RTDigitalTwinLib.report.dose_review import review_dose

    dose = dose.resampled(patient.ct.grid)
    review = review_dose(patient, dose, goals)
    review = replace(review, notes=(*remarks, *review.notes))
    console = Console(highlight=False)
    _print_review(console, patient, review)
    if options.out is not None:
        _write_review(options.out, patient, dose, review)
        console.print(f"{options.out}: written", markup=False)
    console.print(RESEARCH_USE)
    return 0


def _compare(options: Namespace) -> int:
    with told_of(options.a):
        require_folder(options.a, dicom_choice(options))
    require_sources(options.b)
    import numpy as np

    from RTDigitalTwinLib.dosimetry.comparison import GammaCriteria
    from RTDigitalTwinLib.files import require_writable, whole_file
    from RTDigitalTwinLib.source import SAMPLE

    goals = chosen_goals(options.goals)
    percent, mm = _gamma_numbers(options.gamma)
    criteria = GammaCriteria(percent, mm, options.cutoff, options.local)
    if options.out is not None:
        require_place(options.out, options.a, options.b)
        require_writable(options.out)
    choice = dicom_choice(options)
    with told_of(options.a):
        patient = read_patient(options.a, choice)
        a = required_dose(patient)
    kinds = [PLAN_DOSE, PLAN_DOSE]
    if options.b == SAMPLE or Path(options.b).is_dir():
        with told_of(options.b):
            other = read_patient(options.b, choice)
            b = required_dose(other)
        remarks = same_person(options.a, options.b, choice)
        remarks += tuple(warning for warning in other.warnings if warning not in patient.warnings)
    else:
        read = dose_file(Path(options.b), patient, options.a, choice, options.unit)
        b, remarks = read.dose, read.remarks
        kinds[1] = "predicted dose in a file" if read.is_predicted else "dose in a file"
    with lasting_imports():  # after what may be refused
        from RTDigitalTwinLib.report.dose_comparison import compare_doses

    told = Console(stderr=True, highlight=False)
    told.print(
        f"Comparing, with gamma {percent:g} %/{mm:g} mm over the whole volume: seconds, or minutes on fine grids."
    )
    found = compare_doses(patient, a, b, criteria, goals)
    found = replace(found, notes=(*(f"B: {remark}" for remark in remarks), *found.notes))
    console = Console(highlight=False)
    # By their kind and highest dose: what the files are called may name a person.
    for name, place, kind, dose in zip("AB", ("first", "second"), kinds, (a, b), strict=True):
        highest = f"highest dose {decimal(np.nanmax(dose.values), 2)} Gy"
        console.print(f"{name}, the {place} named: {kind}, {highest}", markup=False, soft_wrap=True)
    _print_comparison(console, patient, found)
    if options.out is not None:
        with whole_file(options.out) as aside:
            aside.write_text(json.dumps(_comparison_dict(patient, found, kinds), indent=1, allow_nan=False) + "\n")
    console.print(RESEARCH_USE)
    return 0


def _gamma_numbers(text: str) -> tuple[float, float]:
    try:
        percent, mm = (float(part) for part in text.split("/"))
    except ValueError as error:
        raise RTDigitalTwinError(f"{text!r} are no gamma criteria.", remedy="Write 3/2 for 3 % and 2 mm.") from error
    return percent, mm


def _print_review(console: Console, patient: Patient, review: DoseReview) -> None:
    rows = [
        (r.structure, f"{r.volume_cc:.1f}", r.metric, with_error(r.value, r.discretisation, r.unit))
        for r in review.metrics
    ]
    print_table(console, f"{patient.pseudonym}: dose in structures", ("structure", "cc", "metric", "value"), rows)
    quality = [
        (
            q.structure,
            f"{q.prescribed_gy:g}",
            number_text(q.conformity, 2),
            number_text(q.homogeneity, 3),
            number_text(q.gradient, 1),
        )
        for q in review.quality
    ]
    if quality:
        headings = ("target", "prescribed (Gy)", "conformity (Paddick)", "homogeneity", "gradient index")
        print_table(console, "plan quality", headings, quality)
        levels = {q.structure: q.prescribed_gy for q in review.quality}
        if any(levels.get(name, 0) > q.prescribed_gy for q in review.quality for name in q.conformity_with):
            console.print(JOINED)
    if review.integral_dose_gy_l is not None:
        console.print(f"Integral dose: {review.integral_dose_gy_l:.1f} Gy l")
    for table in review.goals:
        _print_goals(console, table)
    biology = [
        (
            b.structure,
            b.effect,
            b.endpoint,
            f"{b.eud_gy:.1f} Gy",
            percent_text(b.probability),
            range_text(b.low, b.high),
        )
        for b in review.biology
    ]
    if biology:
        biology_headings = ("structure", "effect", "endpoint", "EUD", "probability", "95 % interval")
        print_table(console, "biology (to rank, not to predict)", biology_headings, biology)
        console.print(BIOLOGY_INTERVAL)
    print_notes(review.notes, console)


def _print_goals(console: Console, goals: GoalTable) -> None:
    table = Table(title=Text(f"{goals.title}: {goals.words}"))
    for heading in ("", "outcome", "priority", "goal", "value", "note"):
        table.add_column(heading)
    for row in goals.rows:
        style = STYLES[row.status]
        table.add_row(
            Text(row.sign, style),
            Text(row.status, style),
            str(row.priority),
            Text(row.goal),
            Text(row.value_words),
            row.note,
        )
    console.print(table)
    print_notes(goals.notes, console)


def _print_comparison(console: Console, patient: Patient, found: DoseComparison) -> None:
    rows = [
        (
            m.structure,
            m.metric,
            m.unit,
            number_text(m.a, 1),
            number_text(m.b, 1),
            number_text(m.difference, 1, signed=True),
        )
        for m in found.metrics
    ]
    print_table(console, f"{patient.pseudonym}: B against A", ("structure", "metric", "unit", "A", "B", "B - A"), rows)
    table = Table(title="goals")
    for heading in ("goal", "A", "", "B", ""):
        table.add_column(heading)
    for g in found.goals:
        sides = []
        for side, status in (("a", g.a_status), ("b", g.b_status)):
            values = "\n".join("–" if (v := getattr(both, side)) is None else str(v) for both in g.values)
            sides += [Text(values or "–"), Text(status, STYLES[status])]
        table.add_row(Text(f"{g.protocol}: {g.goal}"), *sides)
    console.print(table)
    if any(len(g.values) > 1 for g in found.goals):
        console.print("Where a goal has two values, the upper decides the outcome of A, the lower that of B.")
    difference, gamma = found.difference, found.gamma
    mean, largest = (decimal(gy, 2, signed=True) for gy in (difference.mean_gy, difference.largest_gy))
    console.print(
        f"Difference above 10 % of the highest dose: mean {mean} Gy, mean absolute "
        f"{difference.mean_absolute_gy:.2f} Gy, largest {largest} Gy"
    )
    console.print(f"Gamma {gamma.criteria}: {gamma.pass_ratio:.1%} of {gamma.judged_voxels} voxels at or below 1")
    print_notes(found.notes, console)


def _write_review(out: Path, patient: Patient, dose: Volume, review: DoseReview) -> None:
    from RTDigitalTwinLib.files import whole_folder
    from RTDigitalTwinLib.report.dose_review import BiologyRow, DoseMetricRow, QualityRow, SingleDvhRow, single_dvh_rows
    from RTDigitalTwinLib.report.goal_table import GoalRow
    from RTDigitalTwinLib.report.tables import write_rows

    write: Callable[[Path, type, Iterable[Any]], None] = write_rows
    with whole_folder(out) as folder:
        write(folder / "metrics.csv", DoseMetricRow, review.metrics)
        write(folder / "plan_quality.csv", QualityRow, review.quality)
        write(folder / "goals.csv", GoalRow, [row for table in review.goals for row in table.rows])
        write(folder / "biology.csv", BiologyRow, review.biology)
        write(folder / "dvh.csv", SingleDvhRow, single_dvh_rows(patient, dose))
        summary = {"patient": patient.pseudonym, "notice": RESEARCH_USE, "software_version": __version__}
        (folder / "summary.json").write_text(json.dumps(summary | asdict(review), indent=1, allow_nan=False) + "\n")


def _comparison_dict(patient: Patient, found: DoseComparison, kinds: list[str]) -> dict[str, Any]:
    """``kinds`` say what A and B are; what their files are called may name a person."""
    difference, gamma = found.difference, found.gamma
    return {
        "patient": patient.pseudonym,
        "a": kinds[0],
        "b": kinds[1],
        "notice": RESEARCH_USE,
        "software_version": __version__,
        "mean_difference_gy": difference.mean_gy,
        "mean_absolute_difference_gy": difference.mean_absolute_gy,
        "largest_difference_gy": difference.largest_gy,
        "gamma": {"criteria": str(gamma.criteria), "pass_ratio": gamma.pass_ratio, "voxels": gamma.judged_voxels},
        "metrics": [asdict(m) | {"difference": m.difference} for m in found.metrics],
        "goals": [asdict(g) for g in found.goals],
        "notes": list(found.notes),
    }
