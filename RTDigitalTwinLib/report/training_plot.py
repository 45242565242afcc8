"""Picture of a training's log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from RTDigitalTwinLib.files import whole_file


def write_training_plot(log: Sequence[dict], path: Path) -> None:
    """Masked L1 and what the log has of validation, in Gy over the minutes of training, as PNG. Raises OutputError."""
    minutes = [entry["minutes"] for entry in log]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (
        ("training_l1_gy", "training: masked L1, augmented, with dropout", "--"),
        ("validation_dose_score_gy", "validation: dose score", "-"),
        ("validation_dvh_score_gy", "validation: DVH score", "-"),
        ("validation_error_of_blocks_gy", "validation: error of blocks' means", "-"),
    ):
        known = [(m, entry[key]) for m, entry in zip(minutes, log, strict=True) if entry.get(key) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), style, marker="o", markersize=3, label=label)
    axes.set(xlabel="minutes of training", ylabel="Gy", xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with whole_file(path) as aside:
        figure.savefig(aside, format="png")
