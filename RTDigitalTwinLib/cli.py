"""The command line: the only door to the shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.allocation import keep_freed_memory, let_waiting_threads_sleep
from RTDigitalTwinLib.cli_accumulation import add_accumulation_command
from RTDigitalTwinLib.cli_course import add_course_commands
from RTDigitalTwinLib.cli_decision import add_decision_commands
from RTDigitalTwinLib.cli_dicom import add_dicom_commands
from RTDigitalTwinLib.cli_dosimetry import add_dosimetry_commands
from RTDigitalTwinLib.cli_options import add_model_options, require_weights, sample_count
from RTDigitalTwinLib.cli_patient import add_patient_commands
from RTDigitalTwinLib.cli_study import add_study_command
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, console, progress_bar, terminated_as_interrupted
from RTDigitalTwinLib.errors import Cancelled, OutputError, RTDigitalTwinError
from RTDigitalTwinLib.train import (
    EXIT_CANCELLED,
    EXIT_ERROR,
    add_options as add_training_options,
    seed,
    train_network,
)
from RTDigitalTwinLib.words import counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 well, 1 an error the user can mend, 130 cancelled)."""
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    let_waiting_threads_sleep()
    try:
        with terminated_as_interrupted():
            require_weights(getattr(options, "weights", None))
            return options.command(options)
    except (KeyboardInterrupt, Cancelled) as error:
        remedy = error.remedy if isinstance(error, Cancelled) else ""
        console.print(f"Cancelled. {remedy or 'Nothing half-written was left behind.'}", markup=False)
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

    add_patient_commands(commands)
    add_decision_commands(commands)
    add_dicom_commands(commands, seed, progress_bar)

    evaluate = commands.add_parser("evaluate", help="score a cohort with reference doses")
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of patients, or of splits")
    evaluate.add_argument("--out", type=Path, required=True, help="JSON file for the scores")
    evaluate.add_argument(
        "--samples", type=sample_count, default=0, help="score the mean of so many samples (default 0: deterministic)"
    )
    evaluate.add_argument("--patients", nargs="+", default=(), metavar="NAME", help="only these")
    evaluate.add_argument("--predictions", type=Path, metavar="DIR", help="write the benchmark's submission CSVs")
    add_model_options(evaluate)

    calibrate = commands.add_parser(
        "calibrate", help="measure how wide the bands must be, on a cohort with known doses"
    )
    calibrate.set_defaults(command=_calibrate)
    calibrate.add_argument("data", type=Path, metavar="DATA_DIR", help="patients that the weights were not trained on")
    calibrate.add_argument("--samples", type=sample_count, default=32, help="Monte Carlo samples (default 32)")
    calibrate.add_argument("--out", type=Path, help="file to write (default: beside the weights, where it is found)")
    add_model_options(calibrate)

    add_study_command(commands)
    add_course_commands(commands)

    train = commands.add_parser("train", help="train the dose network within a time budget")
    train.set_defaults(command=_train)
    add_training_options(train)

    join = commands.add_parser("join", help="put coarse networks beside a dose network, in one weights file")
    join.set_defaults(command=_join)
    join.add_argument("weights", type=Path, metavar="WEIGHTS", help="of the dose network")
    join.add_argument("coarse", type=Path, nargs="+", metavar="COARSE", help="weights of coarse networks")
    join.add_argument("--out", type=Path, required=True, help="weights file to write, ending in .safetensors")

    pack = commands.add_parser("pack", help="pack a cohort for training into one small file")
    pack.set_defaults(command=_pack)
    pack.add_argument("data", type=Path, metavar="DATA", help="folder with train-pats and validation-pats, or patients")
    pack.add_argument("--out", type=Path, required=True, help="file to write, ending in .cohort")

    add_dosimetry_commands(commands)
    add_accumulation_command(commands)

    doctor = commands.add_parser("doctor", help="what is installed, GPU, weights, system libraries")
    doctor.set_defaults(command=_doctor)
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.files import require_writable, whole_file
    from RTDigitalTwinLib.patient.loading import choose_folders, require_outside_patients

    require_outside_patients(options.out)
    folders = choose_folders(options.data, options.patients)  # before imports that take seconds
    from RTDigitalTwinLib.calibration.evaluation import evaluate
    from RTDigitalTwinLib.model.surrogate import DoseSurrogate
    from RTDigitalTwinLib.solver.calibration_file import load_calibration

    surrogate = DoseSurrogate.load(options.weights, options.device)
    calibration = None
    if options.samples > 1:
        calibration = load_calibration(options.weights, surrogate.weights_sha256)
    require_writable(options.out)  # before the hours that a cohort takes
    with progress_bar() as shown:
        evaluation = evaluate(
            surrogate, folders, options.samples, options.seed, options.predictions, shown, calibration
        )
    scores = evaluation.as_dict()
    with whole_file(options.out) as aside:
        aside.write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n")
    print(
        f"{counted(scores['patients'], 'patient')}: dose score {scores['dose_score_gy']:.3f} Gy, "
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
    from RTDigitalTwinLib.files import require_writable
    from RTDigitalTwinLib.patient.loading import choose_folders, require_outside_patients

    folders = choose_folders(options.data)  # before imports that take seconds
    from RTDigitalTwinLib.calibration.conformal import calibrate
    from RTDigitalTwinLib.model.surrogate import DoseSurrogate
    from RTDigitalTwinLib.solver.calibration_file import SUFFIX, calibration_path, save_calibration

    surrogate = DoseSurrogate.load(options.weights, options.device)
    beside = calibration_path(options.weights)
    out = options.out or beside
    require_outside_patients(out)
    if not out.name.endswith(SUFFIX):
        raise OutputError(f"The name must end in {SUFFIX}.", where=out.name)
    require_writable(out)
    with progress_bar() as shown:
        stored = calibrate(surrogate, folders, options.samples, options.seed, progress=shown)
    save_calibration(stored, out, surrogate.weights_sha256)
    patients, samples = counted(stored.whole.patients, "patient"), counted(options.samples, "sample")
    print(f"Calibrated on {patients} with {samples} each: {out}")
    if out != beside:
        print(f"Put it beside the weights as {beside.name} for predictions to use it.")
    return 0


def _train(options: argparse.Namespace) -> int:
    with progress_bar() as shown:
        return train_network(options, shown, lambda line: console.print(line, markup=False, soft_wrap=True))


def _join(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.model.weights import WEIGHTS_SUFFIX, join_weights, manifest_path
    from RTDigitalTwinLib.patient.loading import require_outside_patients

    require_outside_patients(options.out)
    if options.out.suffix != WEIGHTS_SUFFIX:
        raise OutputError(f"The name must end in {WEIGHTS_SUFFIX}.", where=options.out.name)
    for path in (options.out, manifest_path(options.out)):
        if path.exists():
            raise OutputError("There is such a file already.", where=path.name, remedy="Choose another name.")
    digest = join_weights(options.weights, options.coarse, options.out)
    print(f"{options.out}: SHA-256 {digest[:12]}, {options.out.stat().st_size / 1e6:.1f} MB")
    print("Its bands are not calibrated: run rt-digital-twin calibrate with these weights.")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from RTDigitalTwinLib.model.training_data import pack_cohort
    from RTDigitalTwinLib.patient.loading import require_outside_patients
    from RTDigitalTwinLib.patient.packed import SUFFIX

    require_outside_patients(options.out)
    if options.out.suffix != SUFFIX:
        raise OutputError(f"The name must end in {SUFFIX}.", where=options.out.name)
    with progress_bar() as shown:
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
