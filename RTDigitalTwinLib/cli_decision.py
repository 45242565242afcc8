"""The commands that decide: recommend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from RTDigitalTwinLib.allocation import lasting_imports
from RTDigitalTwinLib.cli_dicom import dicom_choice
from RTDigitalTwinLib.cli_options import (
    OBSERVING_METHODS,
    add_model_options,
    add_patient_options,
    require_folder,
    require_inputs,
    sample_count,
)
from RTDigitalTwinLib.cli_tables import add_goals_option, chosen_goals
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, print_notes, print_table, progress_bar
from RTDigitalTwinLib.words import counted, decimal

if TYPE_CHECKING:
    from argparse import Namespace


def add_decision_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    recommend = commands.add_parser("recommend", help="rank what could be done next under chance constraints")
    recommend.set_defaults(command=_recommend)
    add_patient_options(recommend)
    recommend.add_argument(
        "--risk",
        type=float,
        metavar="EPSILON",
        help="allowed probability of a violation (default: the protocol's, 0.05)",
    )
    recommend.add_argument("--actions", type=Path, metavar="FILE", help="TOML of actions (default: the customary ones)")
    recommend.add_argument(
        "--protocol", type=Path, metavar="FILE", help="TOML of utility and constraints (default: ours)"
    )
    recommend.add_argument(
        "--samples", type=sample_count, help="Monte Carlo samples (default 64, or as many as the risk needs)"
    )
    recommend.add_argument("--measurements", type=Path, metavar="FILE", help="CSV or JSON to absorb before")
    recommend.add_argument("--method", choices=OBSERVING_METHODS, help="how to absorb (default: gp)")
    recommend.add_argument(
        "--absorb-outliers", action="store_true", help="absorb even what the prediction cannot explain"
    )
    recommend.add_argument("--belief", type=Path, metavar="FILE", help="go on from an earlier belief.npz")
    recommend.add_argument(
        "--dicom-out",
        type=Path,
        metavar="DIR",
        help="recommended dose as RTDOSE, for the patient's record; new or empty",
    )
    add_goals_option(recommend)
    recommend.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    add_model_options(recommend)


def _recommend(options: Namespace) -> int:
    require_folder(options.patient, dicom_choice(options))
    require_inputs(options.measurements, options.belief, options.actions, options.protocol)
    from rich.console import Console

    with lasting_imports():
        from RTDigitalTwinLib.recommend import RecommendSettings, recommend_patient

    goals = chosen_goals(options.goals)
    settings = RecommendSettings(
        options.samples,
        options.seed,
        options.device,
        options.weights,
        options.risk,
        options.actions,
        options.protocol,
        options.belief,
        options.measurements,
        options.method,
        options.absorb_outliers,
        goals=None if goals is None else tuple(goals),
    )
    with progress_bar() as shown:
        summary = recommend_patient(
            options.patient,
            options.out,
            settings,
            choice=dicom_choice(options),
            record=options.dicom_out,
            overwrite=options.overwrite,
            progress=shown,
        )
    print_notes(summary["warnings"])
    to = Console(highlight=False)
    headings = ("", "action", "outcome", "utility", "gain\nbefore\npenalty", "violated in", "allowed")
    title = f"{summary['patient']}: {counted(summary['samples'], 'sample')}, utility by {summary['protocol']['name']}"
    print_table(to, title, headings, [_cells(row) for row in summary["actions"]])
    for line in _below(summary):
        to.print(line, markup=False, soft_wrap=True)
    for one in summary["refused"]:
        to.print(f"Not possible: {one['name']}. {one['reason']}", markup=False)
    to.print(summary["words"], markup=False, soft_wrap=True)
    for line in summary["obstacles"] or summary["actions"][0]["reasons"]:
        to.print(f"- {line}", markup=False, soft_wrap=True)
    if not summary["abstains"]:
        for line in _changed_goals(summary["actions"][0]):
            to.print(line, markup=False, soft_wrap=True)
    print(f"{options.out}: {', '.join(summary['files'])}")
    print(f"Doses and tables in it are of the dose {summary['dose']}.")
    print(RESEARCH_USE)
    return 0


def _below(summary: dict[str, Any]) -> list[str]:
    """How to read the table."""
    from RTDigitalTwinLib.decision.chance import percent
    from RTDigitalTwinLib.report.deciding import GAIN, NEAREST, NO_BAND, NOT_CERTIFIED, ORDER
    from RTDigitalTwinLib.report.goal_table import UNCALIBRATED

    confidence = percent(summary["protocol"]["confidence"])
    said = "Violated: in how many samples the nearest limit is not kept, nor the variation it accepts, and what the"
    said = f"{said} probability of that stays below with {confidence} confidence, as far as so many samples can tell."
    places: dict[str, list[str]] = {}
    for row in summary["actions"]:
        if row["worst_constraint"]:
            places.setdefault(row["worst_constraint"], []).append(str(row["place"]))
    nearest = [f"- {limit}: of actions {', '.join(of)}" for limit, of in places.items()]
    lines = [GAIN, said, NEAREST, *nearest] if nearest else [GAIN]
    if any(row["outcome"] == NOT_CERTIFIED for row in summary["actions"]):
        lines.append(ORDER)
    if not all(row["has_band"] for row in summary["actions"]):
        lines.append(f"{UNCALIBRATED} {NO_BAND}.")
    return lines


def _changed_goals(recommended: dict[str, Any]) -> list[str]:
    """The clinical goals whose status the recommended action changes, or that there are none."""
    from RTDigitalTwinLib.report.goal_table import ROUNDING, UNCALIBRATED_NOTE

    changes = recommended["goal_changes"]
    if not changes:
        return ["No clinical goal changes its status by it."]
    lines = [f"Clinical goals that change their status by it, from keeping the plan to {recommended['action']}:"]
    lines += [f"- {change['words']}." for change in changes]
    if any(change[side]["calibrated"] is False for change in changes for side in ("keep", "action")):
        lines.append(UNCALIBRATED_NOTE)
    return [*lines, ROUNDING]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from RTDigitalTwinLib.decision.chance import bound_percent, percent
    from RTDigitalTwinLib.report.goal_table import UNCALIBRATED

    known = row["violated"] is not None
    violated = f"{row['violated']} of {row['samples']}" if known else ""
    if known and not row["calibrated"]:
        violated += ", not calibrated"
    elif known and row["most_probability"] < 1:
        violated += f", below {bound_percent(row['most_probability'])}"
    return (
        str(row["place"]),
        row["action"],
        row["outcome"],
        decimal(row["utility"], 3) + ("" if row["has_band"] else f" {UNCALIBRATED}"),
        "" if row["gain"] is None else decimal(row["gain"], 3, signed=True),
        violated,
        percent(row["risk"]) if known else "",
    )
