"""The commands on whole courses: course, and course-study on a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from RTDigitalTwinLib.allocation import lasting_imports
from RTDigitalTwinLib.cli_dicom import dicom_choice
from RTDigitalTwinLib.cli_options import (
    add_model_options,
    add_patient_options,
    require_cohort,
    require_folder,
    require_inputs,
    sample_count,
)
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, print_notes, print_table, progress_bar, resumable, tell
from RTDigitalTwinLib.train import whole_number
from RTDigitalTwinLib.words import counted

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

COURSE_POLICIES = ("static", "scheduled", "triggered")  # those of decision.policies, which has torch in tow
NO_ACTIONS = "none"
SHIFT_MM, SHRINKAGE_PERCENT = (0.0, 4.0, -3.0), 15.0


def add_course_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    course = commands.add_parser(
        "course", help="live through a whole course, simulated: a change comes, the twin watches, learns and decides"
    )
    course.set_defaults(command=_course)
    add_patient_options(course, fractions="--prescribed-fractions")
    course.add_argument("--fractions", type=_fractions, default=35, help="to live through (default 35)")
    _add_change_options(course)
    course.add_argument("--no-shift", action="store_true", help="a course without any change")
    course.add_argument(
        "--policy", choices=COURSE_POLICIES, default="triggered", help="when to recalibrate (default triggered)"
    )
    course.add_argument("--every", type=_fractions, default=5, help="fractions, of the scheduled policy (default 5)")
    course.add_argument(
        "--uncertainty-weight", type=float, default=0.0, metavar="W", help="0 is risk-neutral (default 0)"
    )
    course.add_argument("--ntcp", metavar="STRUCTURE", help="whose NTCP the figure follows (default: a parotid)")
    _add_decision_options(course)
    course.add_argument("--overwrite", action="store_true", help="replace the results of an earlier course")
    add_model_options(course)

    study = commands.add_parser(
        "course-study", help="what watching is worth: every policy on a cohort, with and without a change, simulated"
    )
    study.set_defaults(command=_study)
    study.add_argument("data", type=Path, metavar="DATA", help="folder of patients not trained on, with their doses")
    study.add_argument("--out", type=Path, required=True, help="folder for the study; one that was begun goes on")
    study.add_argument("--patients", nargs="+", default=["8"], metavar="WHO", help="how many, or names (default 8)")
    study.add_argument("--fractions", type=_fractions, default=35, help="of each course (default 35)")
    _add_change_options(study)
    study.add_argument("--policies", nargs="+", choices=COURSE_POLICIES, default=list(COURSE_POLICIES))
    study.add_argument("--processes", type=int, default=1, help="patients at a time (default 1)")
    study.add_argument("--dask", metavar="ADDRESS", help="of a Dask scheduler to hand the patients to")
    _add_decision_options(study)
    add_model_options(study)


def _add_decision_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--actions", metavar="FILE", help="TOML of actions to weigh, or none (default: keep, scale, re-image, replan)"
    )
    parser.add_argument(
        "--risk", type=float, metavar="EPSILON", help="allowed probability of a violation (default: the protocol's)"
    )
    parser.add_argument("--protocol", type=Path, metavar="FILE", help="TOML of utility and constraints (default: ours)")
    parser.add_argument(
        "--samples", type=sample_count,
        help="Monte Carlo samples (default 64, or as many as the risk needs; 32 without actions)",
    )  # fmt: skip


def _add_change_options(parser: ArgumentParser) -> None:
    parser.add_argument("--shift-at", type=_fractions, default=10, help="first fraction with the change (default 10)")
    parser.add_argument(
        "--shift-mm", type=float, nargs=3, default=SHIFT_MM, metavar=("L", "P", "S"),
        help="of the patient, left, posterior, superior (default 0 4 -3)",
    )  # fmt: skip
    parser.add_argument(
        "--shrinkage", type=float, default=SHRINKAGE_PERCENT, metavar="PERCENT", help="of the parotids (default 15)"
    )
    parser.add_argument("--output-error", type=float, default=0.0, metavar="PERCENT", help="of the machine (default 0)")


def _fractions(text: str) -> int:
    from RTDigitalTwinLib.patient.plan import MOST_FRACTIONS

    return whole_number(text, MOST_FRACTIONS)


def _course(options: Namespace) -> int:
    _require_inputs(options)
    require_folder(options.patient, dicom_choice(options))
    with lasting_imports():
        from RTDigitalTwinLib.course_record import CourseSettings
        from RTDigitalTwinLib.course_run import FRACTION, CourseRunSettings, live_course
        from RTDigitalTwinLib.decision.policies import policy_named
        from RTDigitalTwinLib.run import can_go_on

    decider, actions, samples = _deciding(options)
    course = CourseSettings(
        fractions=options.fractions,
        shift_at=None if options.no_shift else options.shift_at,
        change=_change(options),
        policy=policy_named(options.policy, options.uncertainty_weight, options.every),
        seed=options.seed,
        samples=samples,
    )
    settings = CourseRunSettings(
        samples, options.seed, options.device, options.weights, course=course, ntcp=options.ntcp, decider=decider,
        actions=actions,
    )  # fmt: skip
    with resumable(lambda: can_go_on(options.out, (FRACTION,))), progress_bar() as shown:
        summary = live_course(
            options.patient,
            options.out,
            settings,
            choice=dicom_choice(options),
            overwrite=options.overwrite,
            progress=shown,
            tell=tell,
        )
    print_notes(summary["warnings"])
    rows = [_row(endpoint) for endpoint in summary["endpoints"]]
    title = f"{summary['patient']}: end of treatment, {summary['policy']}, simulated; {summary['bands']}"
    print_table(Console(highlight=False), title, ("", "twin", "low", "high", "truth"), rows)
    for words, key in (("recalibrated after", "recalibrated"), ("re-imaged after", "re_imaged")):
        done = ", ".join(map(str, summary[key])) or "none"
        print(f"Fractions {words}: {done}")
    for made in summary["decisions"]:
        print(f"Decided after fraction {made['fraction']}: {made['action'] or 'abstains, goes on as planned'}")
    print(f"{options.out}: {', '.join(summary['files'])}")
    print(RESEARCH_USE)
    return 0


def _row(endpoint: dict[str, Any]) -> tuple[str, ...]:
    name = " ".join(endpoint[k] for k in ("structure", "effect", "endpoint") if endpoint[k])
    numbers = (endpoint[k] for k in ("mean", "low", "high", "true"))
    return name, *(f"{v:.1f} Gy" if endpoint["unit"] else f"{100 * v:.1f} %" for v in numbers)


def _require_inputs(options: Namespace) -> None:
    """Raises PatientDataError where a file that was named is not there."""
    actions = None if options.actions in (None, NO_ACTIONS) else Path(options.actions)
    require_inputs(None, actions, options.protocol)


def _deciding(options: Namespace) -> tuple[Any, Any, int]:
    """Decider, actions and number of samples; neither of the former where nothing is to be decided."""
    from RTDigitalTwinLib.calibration.calibrator import SAMPLES
    from RTDigitalTwinLib.decision.action_file import COURSE_ACTIONS
    from RTDigitalTwinLib.decision.protocol import load_decision
    from RTDigitalTwinLib.decision.ranking import FEWEST_SAMPLES, required_samples
    from RTDigitalTwinLib.decision.ranking_decider import RankingDecider

    if options.actions == NO_ACTIONS:
        return None, (), options.samples or SAMPLES
    protocol = load_decision(options.protocol).with_risk(options.risk)
    actions = COURSE_ACTIONS if options.actions is None else Path(options.actions)
    return RankingDecider(protocol), actions, options.samples or max(FEWEST_SAMPLES, required_samples(protocol))


def _change(options: Namespace) -> Any:
    from RTDigitalTwinLib.dosimetry.delivery import Change

    left, posterior, superior = options.shift_mm
    return Change((left, posterior, superior), options.shrinkage / 100, output_error_ratio=options.output_error / 100)


def _study(options: Namespace) -> int:
    _require_inputs(options)
    require_cohort(options.data)
    from RTDigitalTwinLib.cohort import is_begun
    from RTDigitalTwinLib.course_study import CourseStudySettings, run_course_study

    decider, actions, samples = _deciding(options)
    settings = CourseStudySettings(
        policies=tuple(options.policies),
        fractions=options.fractions,
        shift_at=options.shift_at,
        change=_change(options),
        seed=options.seed,
        samples=samples,
        processes=options.processes,
        dask=options.dask,
        device=options.device,
        weights=options.weights,
        decider=decider,
        actions=actions,
    )
    count = options.patients[0]
    patients = int(count) if len(options.patients) == 1 and count.isdecimal() else options.patients
    with resumable(lambda: is_begun(options.out)), progress_bar() as shown:
        summary = run_course_study(options.data, options.out, patients, settings, shown)
    headings = ("policy", "course", "true NTCP", "D95, Gy", "recalibrated", "images", "false alarms", "delay")
    rows = [
        (m["policy"], m["scenario"], f"{100 * m['ntcp_mean_ratio']:.1f} %", f"{m['target_d95_gy']:.1f}",
         f"{m['recalibrations']:.1f}", f"{m['images']:.1f}", f"{m['false_alarms']:.2f}",
         "" if m["delay_fractions"] is None else f"{m['delay_fractions']:.1f}")
        for m in summary["means"]
    ]  # fmt: skip
    title = f"Simulated courses, {counted(len(summary['patients']), 'patient')}: means"
    print_table(Console(highlight=False), title, headings, rows)
    print(f"{options.out}: cases, study.json, summary.json, summary.md, courses.png")
    print(RESEARCH_USE)
    return 0
