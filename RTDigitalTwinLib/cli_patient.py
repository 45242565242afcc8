"""The commands on one patient's twin: run and observe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from RTDigitalTwinLib.cli_dicom import dicom_choice
from RTDigitalTwinLib.cli_options import add_model_options, add_patient_options, sample_count
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, print_metrics, print_notes, progress_bar

if TYPE_CHECKING:
    from argparse import Namespace

OBSERVING_METHODS = (
    "scale",
    "offsets",
    "gp",
    "kalman",
    "persistence",
    "decoder",
)  # calibration.choice has torch in tow


def add_patient_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    run = commands.add_parser("run", help="predict one patient: scene, dose volumes, DVHs, metrics, report")
    run.set_defaults(command=_run)
    add_patient_options(run)
    run.add_argument("--dose-dicom", type=Path, metavar="FILE", help="the mean as RTDOSE for the patient's record")
    run.add_argument(
        "--samples", type=sample_count, default=32, help="Monte Carlo samples; 0 is deterministic (default 32)"
    )
    run.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    add_model_options(run)

    observe = commands.add_parser("observe", help="absorb measurements of a patient's dose: before, after, the belief")
    observe.set_defaults(command=_observe)
    add_patient_options(observe)
    observe.add_argument("--measurements", type=Path, required=True, metavar="FILE", help="CSV or JSON")
    observe.add_argument("--samples", type=sample_count, default=32, help="Monte Carlo samples (default 32)")
    observe.add_argument("--method", choices=OBSERVING_METHODS, help="how to absorb (default: gp)")
    observe.add_argument(
        "--absorb-outliers", action="store_true", help="absorb even what the prediction cannot explain"
    )
    observe.add_argument("--belief", type=Path, metavar="FILE", help="go on from an earlier belief.npz")
    observe.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    add_model_options(observe)


def _run(options: Namespace) -> int:
    from RTDigitalTwinLib.run import RunSettings, run_patient

    settings = RunSettings(options.samples, options.seed, options.device, options.weights)
    with progress_bar() as shown:
        summary = run_patient(
            options.patient,
            options.out,
            settings,
            choice=dicom_choice(options),
            dose_file=options.dose_dicom,
            overwrite=options.overwrite,
            progress=shown,
        )
    rows = summary["metrics"]
    columns = {"mean": "predicted"}
    title = f"{summary['patient']}: predicted dose, no band"
    if any(row["low"] is not None for row in rows):
        columns = {"mean": "mean", "low": "low", "high": "high"}
        title = f"{summary['patient']}: mean of {summary['provenance']['samples']} samples, {summary['bands']}"
    if any(row["reference"] is not None for row in rows):
        columns["reference"] = "reference"
    _print_summary(summary, options.out, title, columns)
    return 0


def _observe(options: Namespace) -> int:
    from RTDigitalTwinLib.observe import ObserveSettings, observe_patient

    settings = ObserveSettings(
        options.samples,
        options.seed,
        options.device,
        options.weights,
        options.method,
        options.absorb_outliers,
        options.belief,
    )
    with progress_bar() as shown:
        summary = observe_patient(
            options.patient,
            options.measurements,
            options.out,
            settings,
            choice=dicom_choice(options),
            overwrite=options.overwrite,
            progress=shown,
        )
    title = f"{summary['patient']}: {summary['method'] or 'nothing absorbed'}"
    _print_summary(summary, options.out, title, {name: name for name in ("before", "after", "reference")})
    return 0


def _print_summary(summary: dict[str, Any], out: Path, title: str, columns: dict[str, str]) -> None:
    """Notes, metrics and files of a folder of results. ``columns`` are headings by what a row calls the number."""
    print_notes(summary["warnings"])
    print_metrics(title, summary["metrics"], columns)
    print(f"{out}: {', '.join(summary['files'])}")
    print(RESEARCH_USE)
