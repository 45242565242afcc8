"""Picture of the recalibration study: error before and after, by method, of every patient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from RTDigitalTwinLib.calibration.trial import PLACED, SCALARS, VOLUME
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.words import counted

PANELS = (
    (VOLUME, "mask_gy", "from one fraction's dose volume:\nwhole mask"),
    (SCALARS, "structure_mean_gy", "from means and points:\nmeans of the observed structures"),
    (SCALARS, "elsewhere_gy", "from means and points:\nvoxels of no structure"),
    (PLACED, "elsewhere_gy", "and the position, to 1 mm:\nvoxels of no structure"),
)


def write_study_plot(summary: Mapping[str, Any], path: Path) -> None:
    """Mean absolute errors in Gy: a row a treatment, a dot a patient, a bar their mean, as PNG. Raises OutputError."""
    cases = summary["cases"]
    treatments = list(dict.fromkeys(c["treatment"] for c in cases))
    figure = Figure(figsize=(14, 2.6 * max(len(treatments), 1) + 0.6), dpi=110, layout="constrained")
    grid = figure.subplots(max(len(treatments), 1), len(PANELS), squeeze=False, sharex="col")
    for row, treatment in enumerate(treatments):
        for axes, (observed, key, title) in zip(grid[row], PANELS, strict=True):
            here = [c for c in cases if (c["treatment"], c["observed"]) == (treatment, observed)]
            if key != "elsewhere_gy":  # least error over the whole mask, not of the means
                here = [c for c in here if c["method"] != "best possible"]
            methods = list(dict.fromkeys(c["method"] for c in here))
            for place, method in enumerate(methods):
                values = [c[key] for c in here if c["method"] == method]
                colour = {"before": "0.55", "best possible": "tab:green"}.get(method, "tab:blue")
                axes.barh(place, sum(values) / len(values), color=colour, alpha=0.35)
                axes.plot(values, [place] * len(values), "o", color=colour, markersize=3)
            axes.set_yticks(range(len(methods)), methods)
            axes.invert_yaxis()
            axes.grid(axis="x", alpha=0.3)
            if axes is grid[row, 0]:
                axes.set_ylabel(treatment, fontweight="bold")
            if row == 0:
                axes.set_title(title, fontsize=10)
            if row == len(treatments) - 1:
                axes.set_xlabel("mean absolute error (Gy)")
    figure.suptitle(
        f"Recalibration on simulated deliveries, {counted(len(summary['patients']), 'patient')} (dots)", fontsize=11
    )
    with whole_file(path) as aside:
        figure.savefig(aside, format="png")
