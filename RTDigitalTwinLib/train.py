"""Training as a command: by itself for torchrun and machines that have little more than torch.

torchrun --nproc-per-node 4 -m RTDigitalTwinLib.train FILE.cohort --out DIR --minutes 20
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.errors import Cancelled, RTDigitalTwinError, TrainingError
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.words import counted

EXIT_ERROR, EXIT_CANCELLED = 1, 130
HIGHEST_SEED = 2**63 - 1
HIGHEST_NUMBER = 1e6


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a training."""
    parser.add_argument(
        "data", type=Path, metavar="DATA", help="folder with train-pats and validation-pats, or patients, or a .cohort"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log, plot and weights")
    parser.add_argument("--minutes", type=_positive, required=True, help="budget, over all resumed parts")
    parser.add_argument(
        "--configuration",
        choices=("default", "coarse", "paper"),
        default="default",
        help="network: ours, a coarse one to go beside it, or the prototype's",
    )
    parser.add_argument("--begin-from", type=Path, metavar="WEIGHTS", help="weights to begin from (default: random)")
    parser.add_argument("--learning-rate", type=_positive, default=1e-3, help="its peak (default 1e-3)")
    parser.add_argument("--no-turns", action="store_true", help="without patients turned by multiples of 40 degrees")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def seed(text: str) -> int:
    """Of the command line: a whole number that any generator takes."""
    return whole_number(text, HIGHEST_SEED)


def whole_number(text: str, highest: int) -> int:
    """Of the command line: from 0 to ``highest``."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= highest:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {highest}, not {text!r}")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < HIGHEST_NUMBER:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below {HIGHEST_NUMBER:g}, not {text!r}")
    return value


def train_network(options: argparse.Namespace, progress: Progress = silent, say: Callable[[str], None] = print) -> int:
    """Carry out the command and print its result; returns the exit code. ``say`` gets lines for the user on the way.

    Raises RTDigitalTwinErrors.
    """
    from RTDigitalTwinLib.model.network import CONFIGURATIONS
    from RTDigitalTwinLib.model.schedule import TrainingSettings
    from RTDigitalTwinLib.model.training import CHECKPOINT, Training, refuse_to_overwrite, train
    from RTDigitalTwinLib.model.training_data import load_cohort
    from RTDigitalTwinLib.model.weights import choose_device, load_network
    from RTDigitalTwinLib.model.workers import Workers
    from RTDigitalTwinLib.patient.loading import require_outside_patients

    require_outside_patients(options.out)
    if not options.resume:
        refuse_to_overwrite(options.out)
    settings = TrainingSettings(options.minutes, options.seed, options.learning_rate)
    if options.configuration == "paper":
        settings = replace(settings, dvh_weight=0.0, turned_ratio=0.0, hold_ratio=0.02, average_decay=0.998)
    elif options.configuration == "coarse":
        settings = replace(
            settings,
            dvh_weight=0.0,
            upended_ratio=0.5,
            deformed_ratio=0.7,
            settled_from_ratio=0.6,
            hold_ratio=0.6,
            weight_decay=5e-2,
            average_decay=0.9985,
        )
    if options.no_turns:
        settings = replace(settings, turned_ratio=0.0)
    begun_from = load_network(options.begin_from) if options.begin_from else None
    if begun_from:
        settings = replace(settings, begun_from=begun_from.sha256)
    workers, device = Workers.join(choose_device(options.device))
    training: Training | None = None
    try:
        training = Training(settings, options.out, device, CONFIGURATIONS[options.configuration], workers=workers)
        if options.resume:
            training.resume()
        elif begun_from:
            try:
                training.begin_from(begun_from.network)
            except ValueError as error:
                raise TrainingError(
                    "These weights are of a network that differs in more than its inputs.",
                    where=options.begin_from.name,
                    remedy="Choose their --configuration, or begin without them.",
                ) from error
        cohort = load_cohort(options.data, device, part(progress, 0.0, 1.0))
        precision = str(training.precision).removeprefix("torch.")
        if workers.rank == 0:
            alone = "" if workers.count == 1 else f", {workers.count} processes"
            say(
                f"{len(cohort.cases)} patients to train, {len(cohort.validation)} to validate, on {device} in "
                f"{precision}{alone}."
            )
        digest = train(training, cohort.cases, cohort.validation, progress, lambda entry: say(_in_words(entry)))
    except (KeyboardInterrupt, Cancelled):
        if workers.rank == 0:
            steps = training.steps if training else 0
            there = (options.out / CHECKPOINT).is_file()
            say(f"Cancelled after {counted(steps, 'step')}." + there * " Go on with the same command and --resume.")
        return EXIT_CANCELLED
    finally:
        workers.part()
    if workers.rank == 0:
        _plot(training.log, options.out, say)
        last = training.log[-1]
        print(
            f"{counted(training.steps, 'step')}: validation dose score {last['validation_dose_score_gy']:.3f} Gy, "
            f"DVH score {last['validation_dvh_score_gy']:.3f} Gy; weights SHA-256 {digest[:12]} in {options.out}"
        )
    return 0


def _in_words(entry: dict) -> str:
    return (
        f"{entry['minutes']:.1f} min, step {entry['steps']}: validation dose score "
        f"{entry['validation_dose_score_gy']:.3f} Gy, DVH score {entry['validation_dvh_score_gy']:.3f} Gy"
    )


def _plot(log: list[dict], out: Path, say: Callable[[str], None]) -> None:
    try:
        from RTDigitalTwinLib.report.training_plot import write_training_plot
    except ModuleNotFoundError as error:
        say(f"No plot: {error.name} is not installed here.")
        return
    write_training_plot(log, out / "log.png")


def main() -> int:
    """As ``rt-digital-twin train``, in plain lines."""
    parser = argparse.ArgumentParser(prog="python -m RTDigitalTwinLib.train", description="Train the dose network.")
    add_options(parser)
    options = parser.parse_args()
    keep_freed_memory()
    try:
        return train_network(options)
    except RTDigitalTwinError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(main())
