"""The command line: the only door to the shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from RTDigitalTwinLib import __version__, progress
from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.cli_dicom import add_dicom_commands, add_dicom_options, dicom_choice
from RTDigitalTwinLib.cli_dosimetry import add_dosimetry_commands
from RTDigitalTwinLib.cli_study import add_study_command
from RTDigitalTwinLib.errors import Cancelled, OutputError, RTDigitalTwinError
from RTDigitalTwinLib.train import (
    EXIT_CANCELLED,
    EXIT_ERROR,
    add_options as add_training_options,
    seed,
    train_network,
    whole_number,
)

MOST_SAMPLES = 10_000
OBSERVING_METHODS = ("scale", "offsets", "persistence", "decoder", "kalman", "gp")  # as calibration.choice
RESEARCH_USE = "Research use only. Not for clinical decisions."

console = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 well, 1 an error the user can mend, 130 cancelled)."""
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
        return options.command(options)
    except (KeyboardInterrupt, Cancelled):
        console.print("Cancelled. Nothing half-written was left behind.")
        return EXIT_CANCELLED
    except RTDigitalTwinError as error:
        return _failed(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error or type(error).__name__}.")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _failed("Not enough memory. Close other programs, take fewer samples, or try --device cpu.")


def _failed(message: str) -> int:
    console.print("[bold red]Error:[/]", end=" ")
    console.print(" ".join(message.split()), markup=False, soft_wrap=True)
    return EXIT_ERROR


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Also of torch: on a GPU an error of its own, on the CPU a plain one known by its text."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or of_torch


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rt-digital-twin", description=f"Digital twin of a patient under radiotherapy. {RESEARCH_USE}"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="predict one patient: scene, dose volumes, DVHs, metrics, report")
    run.set_defaults(command=_run)
    run.add_argument("patient", metavar="PATIENT", help="a patient's folder, or the word sample: the built-in one")
    run.add_argument("--out", type=Path, required=True, help="folder for the results")
    run.add_argument("--dose-dicom", type=Path, metavar="FILE", help="the mean as RTDOSE for the patient's record")
    add_dicom_options(run)
    run.add_argument("--samples", type=_count, default=32, help="Monte Carlo samples; 0 is deterministic (default 32)")
    run.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    _add_model_options(run)

    add_dicom_commands(commands, seed, _progress_bar)

    observe = commands.add_parser("observe", help="absorb measurements of a patient's dose: before, after, the belief")
    observe.set_defaults(command=_observe)
    observe.add_argument("patient", metavar="PATIENT", help="a patient's folder, or the word sample: the built-in one")
    observe.add_argument("--measurements", type=Path, required=True, metavar="FILE", help="CSV or JSON")
    observe.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_dicom_options(observe)
    observe.add_argument("--samples", type=_count, default=32, help="Monte Carlo samples (default 32)")
    observe.add_argument(
        "--method",
        choices=OBSERVING_METHODS,
        help="how to absorb (default: gp)",
    )
    observe.add_argument(
        "--absorb-outliers", action="store_true", help="absorb even what the prediction cannot explain"
    )
    observe.add_argument("--belief", type=Path, metavar="FILE", help="go on from an earlier belief.npz")
    observe.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    _add_model_options(observe)

    evaluate = commands.add_parser("evaluate", help="score a cohort with reference doses")
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of patients, or of splits")
    evaluate.add_argument("--out", type=Path, required=True, help="JSON file for the scores")
    evaluate.add_argument(
        "--samples", type=_count, default=0, help="score the mean of so many samples (default 0: deterministic)"
    )
    evaluate.add_argument("--patients", nargs="+", default=(), metavar="NAME", help="only these")
    evaluate.add_argument("--predictions", type=Path, metavar="DIR", help="write the benchmark's submission CSVs")
    _add_model_options(evaluate)

    calibrate = commands.add_parser(
        "calibrate", help="measure how wide the bands must be, on a cohort with known doses"
    )
    calibrate.set_defaults(command=_calibrate)
    calibrate.add_argument("data", type=Path, metavar="DATA_DIR", help="patients that the weights were not trained on")
    calibrate.add_argument("--samples", type=_count, default=32, help="Monte Carlo samples (default 32)")
    calibrate.add_argument("--out", type=Path, help="file to write (default: beside the weights, where it is found)")
    _add_model_options(calibrate)

    add_study_command(commands, OBSERVING_METHODS, _add_model_options, _progress_bar)

    train = commands.add_parser("train", help="train the dose network within a time budget")
    train.set_defaults(command=_train)
    add_training_options(train)

    pack = commands.add_parser("pack", help="pack a cohort for training into one small file")
    pack.set_defaults(command=_pack)
    pack.add_argument("data", type=Path, metavar="DATA", help="folder with train-pats and validation-pats, or patients")
    pack.add_argument("--out", type=Path, required=True, help="file to write, ending in .cohort")

    add_dosimetry_commands(commands)

    doctor = commands.add_parser("doctor", help="what is installed, GPU, weights, system libraries")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=seed, default=0, help="of the dropout samples (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--weights", type=Path, help="weights file (default: the one that comes with the software)")


def _count(text: str) -> int:
    return whole_number(text, MOST_SAMPLES)


@contextmanager
def _progress_bar() -> Iterator[progress.Progress]:
    """A bar on a terminal; elsewhere a line whenever another tenth is done."""
    if not console.is_terminal:
        last = -1

        def lines(done_ratio: float, message: str) -> None:
            nonlocal last
            if int(done_ratio * 10) > last:
                last = int(done_ratio * 10)
                console.print(f"{done_ratio:4.0%} {message}", markup=False)

        yield lines
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda done_ratio, message: bar.update(task, completed=done_ratio, description=message)


def _run(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.run import RunSettings, run_patient

    settings = RunSettings(options.samples, options.seed, options.device, options.weights)
    with _progress_bar() as shown:
        summary = run_patient(
            options.patient,
            options.out,
            settings,
            choice=dicom_choice(options),
            dose_file=options.dose_dicom,
            overwrite=options.overwrite,
            progress=shown,
        )
    _print_notes(summary["warnings"])
    _print_metrics(summary)
    print(f"{options.out}: {', '.join(summary['files'])}")
    print(RESEARCH_USE)
    return 0


def _observe(options: argparse.Namespace) -> int:
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
    with _progress_bar() as shown:
        summary = observe_patient(
            options.patient,
            options.measurements,
            options.out,
            settings,
            choice=dicom_choice(options),
            overwrite=options.overwrite,
            progress=shown,
        )
    _print_notes(summary["warnings"])
    table = Table(title=Text(f"{summary['patient']}: {summary['method'] or 'nothing absorbed'}"))
    for heading in ("structure", "metric", "before", "after", "reference"):
        table.add_column(heading, justify="left" if heading in ("structure", "metric") else "right")
    for row in summary["metrics"]:
        numbers = [row["before"], row["after"], row["reference"]]
        cells = ["" if v is None else f"{v:.1f} {row['unit']}" for v in numbers]
        table.add_row(Text(row["structure"]), row["metric"], *cells)
    Console(highlight=False).print(table)
    print(f"{options.out}: {', '.join(summary['files'])}")
    print(RESEARCH_USE)
    return 0


def _print_notes(warnings: Sequence[str]) -> None:
    for warning in warnings:
        console.print("[yellow]Note:[/]", end=" ")
        console.print(warning, markup=False, soft_wrap=True)


def _print_metrics(summary: dict) -> None:
    rows = summary["metrics"]
    samples = summary["provenance"]["samples"]
    columns = {"predicted": "mean"}
    title = f"{summary['patient']}: predicted dose, no band"
    if any(row["low"] is not None for row in rows):
        columns = {"mean": "mean", "low": "low", "high": "high"}
        title = f"{summary['patient']}: mean of {samples} samples, {summary['bands']}"
    if any(row["reference"] is not None for row in rows):
        columns["reference"] = "reference"
    table = Table(title=Text(title))
    for heading in ("structure", "metric", *columns):
        table.add_column(heading, justify="left" if heading in ("structure", "metric") else "right")
    for row in rows:
        numbers = [row[key] for key in columns.values()]
        cells = ["not known" if v is None else f"{v:.1f} {row['unit']}" for v in numbers]
        table.add_row(Text(row["structure"]), row["metric"], *cells)
    Console(highlight=False).print(table)


def _evaluate(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.calibration.evaluation import choose_folders, evaluate
    from RTDigitalTwinLib.files import require_writable, whole_file
    from RTDigitalTwinLib.model.surrogate import DoseSurrogate
    from RTDigitalTwinLib.patient.loading import require_outside_patients
    from RTDigitalTwinLib.solver.calibration_file import load_calibration

    require_outside_patients(options.out)
    folders = choose_folders(options.data, options.patients)
    surrogate = DoseSurrogate.load(options.weights, options.device)
    calibration = None
    if options.samples > 1:
        calibration = load_calibration(options.weights, surrogate.weights_sha256)
    require_writable(options.out)  # before the hours that a cohort takes
    with _progress_bar() as shown:
        evaluation = evaluate(
            surrogate, folders, options.samples, options.seed, options.predictions, shown, calibration
        )
    scores = evaluation.as_dict()
    with whole_file(options.out) as aside:
        aside.write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n")
    print(
        f"{scores['patients']} patients: dose score {scores['dose_score_gy']:.3f} Gy, "
        f"DVH score {scores['dvh_score_gy']:.3f} Gy, {scores['seconds_per_patient']:.2f} s a patient"
    )
    if "coverage_voxel_95" in scores:
        print(
            f"95 % bands ({scores['bands']}): {scores['coverage_voxel_95']:.1%} of voxels, "
            f"{scores['coverage_dvh_95']:.1%} of DVH points, {scores['coverage_metric_95']:.1%} of metrics inside; "
            f"rank correlation {scores['rank_correlation']:.2f}"
        )
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.calibration.conformal import calibrate
    from RTDigitalTwinLib.calibration.evaluation import choose_folders
    from RTDigitalTwinLib.files import require_writable
    from RTDigitalTwinLib.model.surrogate import DoseSurrogate
    from RTDigitalTwinLib.patient.loading import require_outside_patients
    from RTDigitalTwinLib.solver.calibration_file import SUFFIX, calibration_path, save_calibration

    folders = choose_folders(options.data)
    surrogate = DoseSurrogate.load(options.weights, options.device)
    beside = calibration_path(options.weights)
    out = options.out or beside
    require_outside_patients(out)
    if not out.name.endswith(SUFFIX):
        raise OutputError(f"The name must end in {SUFFIX}.", where=out.name)
    require_writable(out)
    with _progress_bar() as shown:
        stored = calibrate(surrogate, folders, options.samples, options.seed, progress=shown)
    save_calibration(stored, out, surrogate.weights_sha256)
    print(f"Calibrated on {stored.whole.patients} patients with {options.samples} samples each: {out}")
    if out != beside:
        print(f"Put it beside the weights as {beside.name} for predictions to use it.")
    return 0


def _train(options: argparse.Namespace) -> int:
    with _progress_bar() as shown:
        return train_network(options, shown, lambda line: console.print(line, markup=False, soft_wrap=True))


def _pack(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.model.training_data import pack_cohort
    from RTDigitalTwinLib.patient.loading import require_outside_patients
    from RTDigitalTwinLib.patient.packed import SUFFIX

    require_outside_patients(options.out)
    if options.out.suffix != SUFFIX:
        raise OutputError(f"The name must end in {SUFFIX}.", where=options.out.name)
    with _progress_bar() as shown:
        size = pack_cohort(options.data, options.out, shown)
    print(f"{options.out}: {size / 1e6:.1f} MB")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.doctor import State, examine

    colours = {State.OK: "green", State.LIMITED: "yellow", State.BROKEN: "red"}
    checks = examine()
    table = Table(show_header=False, box=None)
    for check in checks:
        said = f"{check.found}\n{check.remedy}" if check.remedy else check.found
        table.add_row(Text(check.state.value, colours[check.state]), check.name, Text(said))
    Console(highlight=False).print(table)
    return EXIT_ERROR if any(check.state is State.BROKEN for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
