"""The command recalibration-study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from RTDigitalTwinLib.cli_options import OBSERVING_METHODS, add_model_options, require_cohort
from RTDigitalTwinLib.cli_terminal import progress_bar, resumable
from RTDigitalTwinLib.words import counted

if TYPE_CHECKING:
    from argparse import Namespace


def add_study_command(commands: Any) -> None:
    """Add the command to a parser's commands."""
    study = commands.add_parser(
        "recalibration-study", help="what observing is worth: every method on a cohort, deliveries simulated"
    )
    study.set_defaults(command=_study)
    study.add_argument("data", type=Path, metavar="DATA", help="folder of patients not trained on, with their doses")
    study.add_argument("--out", type=Path, required=True, help="folder for the study; one that was begun goes on")
    study.add_argument("--patients", nargs="+", default=["8"], metavar="WHO", help="how many, or names (default 8)")
    study.add_argument(
        "--methods", nargs="+", choices=OBSERVING_METHODS, default=list(OBSERVING_METHODS), help="only these"
    )
    study.add_argument("--processes", type=int, default=1, help="patients at a time (default 1)")
    study.add_argument("--decoder-steps", type=int, default=30, help="of decoder and decoder-gp, at most (default 30)")
    add_model_options(study)


def _study(options: Namespace) -> int:
    require_cohort(options.data)
    from RTDigitalTwinLib.cohort import is_begun
    from RTDigitalTwinLib.study import StudySettings, run_study

    settings = StudySettings(
        tuple(options.methods),
        options.seed,
        options.decoder_steps,
        options.processes,
        options.device,
        options.weights,
    )
    count = options.patients[0]
    patients = int(count) if len(options.patients) == 1 and count.isdecimal() else options.patients
    with resumable(lambda: is_begun(options.out)), progress_bar() as shown:
        summary = run_study(options.data, options.out, patients, settings, shown)
    table = Table(
        title=f"Simulated deliveries, {counted(len(summary['patients']), 'patient')}: mean absolute errors in Gy"
    )
    columns = ("observed", "treatment", "method", "mask_gy", "elsewhere_gy", "structure_mean_gy", "coverage_ratio")
    for name in columns:
        table.add_column(name.removesuffix("_gy").removesuffix("_ratio").replace("_", " "))
    for mean in sorted(summary["means"], key=lambda m: (m["observed"], m["treatment"])):
        table.add_row(*(f"{v:.2f}" if isinstance(v := mean.get(name, ""), float) else str(v) for name in columns))
    Console(highlight=False).print(table)
    print(f"{options.out}: cases, errors.png, study.json, summary.json, summary.md")
    return 0
