"""The commands on one patient's twin: run, observe, loop, and replay of its ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from RTDigitalTwinLib.allocation import lasting_imports
from RTDigitalTwinLib.cli_dicom import add_dicom_options, dicom_choice
from RTDigitalTwinLib.cli_options import (
    OBSERVING_METHODS,
    add_model_options,
    add_patient_options,
    add_precision_option,
    require_folder,
    require_inputs,
    sample_count,
)
from RTDigitalTwinLib.cli_tables import add_goals_option, chosen_goals
from RTDigitalTwinLib.cli_terminal import RESEARCH_USE, Band, print_metrics, print_notes, progress_bar, resumable, tell
from RTDigitalTwinLib.train import whole_number
from RTDigitalTwinLib.words import counted

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

BANDS_BESIDE = {
    "before": Band("low_before", "high_before", "informative_before"),
    "after": Band("low_after", "high_after", "informative"),
}
EXIT_DIFFERENT = 3  # 1 is an error, 2 a wrong command line


def add_patient_commands(commands: Any) -> None:
    """Add them to a parser's commands."""
    run = commands.add_parser("run", help="predict one patient: scene, dose volumes, DVHs, metrics, report")
    run.set_defaults(command=_run)
    add_patient_options(run)
    _add_record_option(run)
    run.add_argument(
        "--samples", type=sample_count, default=32, help="Monte Carlo samples; 0 is deterministic (default 32)"
    )
    add_goals_option(run)
    run.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    add_model_options(run)
    add_precision_option(run)

    observe = commands.add_parser("observe", help="absorb measurements of a patient's dose: before, after, the belief")
    observe.set_defaults(command=_observe)
    add_patient_options(observe)
    observe.add_argument("--measurements", type=Path, metavar="FILE", help="CSV or JSON")
    observe.add_argument(
        "--new-ct",
        type=_new_ct,
        action="append",
        default=[],
        metavar="FOLDER[=FRACTION]",
        help="CT taken at the machine, from a fraction on (default 1): the patient's shift is found by registration; "
        "a folder or an image file in HU, given as often as there are CTs",
    )
    observe.add_argument("--samples", type=sample_count, default=32, help="Monte Carlo samples (default 32)")
    observe.add_argument("--method", choices=OBSERVING_METHODS, help="how to absorb (default: gp)")
    observe.add_argument(
        "--absorb-outliers", action="store_true", help="absorb even what the prediction cannot explain"
    )
    observe.add_argument("--allow-overlap", action="store_true", help="absorb one thing of overlapping fractions twice")
    observe.add_argument("--belief", type=Path, metavar="FILE", help="go on from an earlier belief.npz")
    observe.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    add_model_options(observe)
    add_precision_option(observe)

    loop = commands.add_parser("loop", help="the first fractions: observe, recalibrate the decoder, predict, optimise")
    loop.set_defaults(command=_loop)
    add_patient_options(loop, fractions="--prescribed-fractions")
    loop.add_argument("--fractions", type=_fractions, default=3, help="to go through (default 3)")
    loop.add_argument("--measurements", type=Path, metavar="FILE", help="of each fraction (default: simulated)")
    loop.add_argument("--samples", type=sample_count, default=32, help="Monte Carlo samples (default 32)")
    loop.add_argument(
        "--shift", type=float, nargs=3, default=(0.0, 0.0, 0.0), metavar=("L", "P", "S"), help="simulated, in mm"
    )
    loop.add_argument("--output-error", type=float, default=0.0, metavar="PERCENT", help="of the machine, simulated")
    _add_record_option(loop)
    loop.add_argument("--absorb-outliers", action="store_true", help="absorb even what the prediction cannot explain")
    loop.add_argument("--overwrite", action="store_true", help="replace the results of an earlier loop")
    add_model_options(loop)
    add_precision_option(loop)

    replay = commands.add_parser("replay", help="do again what a ledger tells of a patient, and compare")
    replay.set_defaults(command=_replay)
    replay.add_argument("ledger", type=Path, metavar="LEDGER", help="ledger.jsonl")
    replay.add_argument("patient", metavar="PATIENT", help="the patient's folder, or the word sample")
    replay.add_argument("--belief", type=Path, metavar="FILE", help="that the ledger began from")
    add_dicom_options(replay)
    replay.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    replay.add_argument("--weights", type=Path, help="weights file (default: the one that comes with the software)")


def _add_record_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dicom-out",
        type=Path,
        metavar="DIR",
        help="doses and their spread as RTDOSE, structures as used as RTSTRUCT, for the record of a patient read from "
        "DICOM; new or empty",
    )


def _fractions(text: str) -> int:
    from RTDigitalTwinLib.patient.plan import MOST_FRACTIONS

    return whole_number(text, MOST_FRACTIONS)


def _new_ct(text: str) -> tuple[Path, int]:
    before, sign, after = text.rpartition("=")
    return (Path(before), _fractions(after)) if sign and not Path(text).exists() else (Path(text), 1)


def _run(options: Namespace) -> int:
    require_folder(options.patient, dicom_choice(options))
    with lasting_imports():
        from RTDigitalTwinLib.run import RunSettings, run_patient

    goals = chosen_goals(options.goals)
    settings = RunSettings(
        options.samples,
        options.seed,
        options.device,
        options.weights,
        goals=None if goals is None else tuple(goals),
        precision=options.precision,
    )
    with progress_bar() as shown:
        summary = run_patient(
            options.patient,
            options.out,
            settings,
            choice=dicom_choice(options),
            record=options.dicom_out,
            overwrite=options.overwrite,
            progress=shown,
        )
    rows = summary["metrics"]
    columns = {"mean": "predicted"}
    title = f"{summary['patient']}: predicted dose, no band"
    if any(row["low"] is not None for row in rows):
        columns = {"mean": "mean", "low": "low", "high": "high"}
        title = (
            f"{summary['patient']}: mean of {counted(summary['provenance']['samples'], 'sample')}, {summary['bands']}"
        )
    if any(row["reference"] is not None for row in rows):
        columns["reference"] = "reference"
    _print_summary(summary, options.out, title, columns)
    return 0


def _observe(options: Namespace) -> int:
    require_folder(options.patient, dicom_choice(options))
    require_inputs(options.measurements, options.belief, *(path for path, _ in options.new_ct))
    with lasting_imports():
        from RTDigitalTwinLib.observe import ObserveSettings, observe_patient

    settings = ObserveSettings(
        options.samples,
        options.seed,
        options.device,
        options.weights,
        options.method,
        options.absorb_outliers,
        options.belief,
        options.allow_overlap,
        tuple(options.new_ct),
        precision=options.precision,
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
    left_out = [o["words"] for o in summary["observations"] if not o["absorbed"]]
    others = [note for note in summary["warnings"] if not any(words in note for words in left_out)]
    columns = {name: name for name in ("before", "after", "reference")}
    title += f", means and {summary['bands']}"
    _print_summary(summary | {"warnings": others}, options.out, title, columns, absorbed_words(summary), BANDS_BESIDE)
    return 0


def absorbed_words(summary: dict[str, Any]) -> list[str]:
    """How many observations were absorbed, and of those left out which and why."""
    observations = summary["observations"]
    left_out = [o for o in observations if not o["absorbed"]]
    absorbed = len(observations) - len(left_out)
    earlier = summary["absorbed_in_all"] - absorbed
    more = f", {summary['absorbed_in_all']} with those before" if earlier > 0 else ""
    words = [f"{absorbed} of {counted(len(observations), 'observation')} absorbed{more}."]
    return words + [f"Left out as an outlier: {o['words']}." for o in left_out]


def _loop(options: Namespace) -> int:
    require_folder(options.patient, dicom_choice(options))
    require_inputs(options.measurements)
    with lasting_imports():
        from RTDigitalTwinLib.calibration.simulated_fractions import SimulatedFractions
        from RTDigitalTwinLib.dosimetry.delivery import Change
        from RTDigitalTwinLib.errors import RTDigitalTwinError
        from RTDigitalTwinLib.loop import LoopSettings, loop_patient
        from RTDigitalTwinLib.loop_summary import STAGES
        from RTDigitalTwinLib.run import can_go_on

    change = Change(tuple(options.shift), output_error_ratio=options.output_error / 100)
    if options.measurements is not None and change != Change():
        raise RTDigitalTwinError(
            "Fractions are either measured or simulated.", remedy="Leave --shift and --output-error out."
        )
    settings = LoopSettings(
        options.samples,
        options.seed,
        options.device,
        options.weights,
        options.fractions,
        options.measurements,
        SimulatedFractions(change, seed=options.seed),
        absorb_outliers=options.absorb_outliers,
        precision=options.precision,
    )
    with resumable(lambda: can_go_on(options.out, STAGES)), progress_bar() as shown:
        summary = loop_patient(
            options.patient,
            options.out,
            settings,
            choice=dicom_choice(options),
            record=options.dicom_out,
            overwrite=options.overwrite,
            progress=shown,
            tell=tell,
        )
    columns = {"before": "before"} | {f"fraction {k}": f"after {k}" for k in range(1, options.fractions + 1)}
    if any("delivered" in row for row in summary["metrics"]):
        columns["delivered"] = "delivered"
    for stage, seconds in summary["seconds"].items():
        print(f"{stage:>18} {seconds:8.1f} s")
    title = f"{summary['patient']}: recalibrated, {counted(options.samples, 'sample')}"
    _print_summary(summary, options.out, f"{title}{', simulated' if summary['simulated'] else ''}", columns)
    return 0


def _replay(options: Namespace) -> int:
    require_folder(options.patient, dicom_choice(options))
    require_inputs(None, options.ledger, options.belief)
    from RTDigitalTwinLib.replay import replay

    with progress_bar() as shown:
        done = replay(
            options.ledger,
            options.patient,
            weights=options.weights,
            device=options.device,
            belief=options.belief,
            choice=dicom_choice(options),
            progress=shown,
        )
    print_notes([*done.notes, *done.differences])
    words = {True: "equal to the last bit", False: "differs", None: "not done again"}
    for row in done.repeated:
        print(f"entry {row.number:3} {row.kind:10} {words[row.equal]}{': ' if row.words else ''}{row.words}")
    count = sum(row.equal is True for row in done.repeated)
    print(f"{done.patient}: {count} of {len(done.repeated)} results equal to the last bit.")
    print(RESEARCH_USE)
    return 0 if done.is_equal else EXIT_DIFFERENT


def _print_summary(
    summary: dict[str, Any],
    out: Path,
    title: str,
    columns: dict[str, str],
    told: Sequence[str] = (),
    bands: Mapping[str, Band] | None = None,
) -> None:
    """Notes, what is ``told`` first, metrics and files of a folder of results.

    ``columns`` are headings by what a row calls the number, ``bands`` what stands beside it.
    """
    print_notes(summary["warnings"])
    for words in told:
        print(words)
    print_metrics(title, summary["metrics"], columns, bands)
    print(f"{out}: {', '.join(summary['files'])}")
    print(RESEARCH_USE)
