"""Picture of the course study: what watching changed for every patient, and what became of the decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.words import counted

STATIC = "static, risk-neutral"
_OUTCOMES = (
    ("recommended, all constraints kept", "#2a7f62"),
    ("recommended, one violated", "#b5452c"),
    ("abstained, rightly", "#8fa3ad"),
    ("abstained, though something would do", "#d9a441"),
)


def write_course_plot(summary: Mapping[str, Any], path: Path) -> None:
    """NTCP and coverage against the static policy, a dot a patient; decisions by how they turned out. As PNG.

    Raises OutputError.
    """
    scenarios = list(dict.fromkeys(c["scenario"] for c in summary["cases"]))
    policies = list(dict.fromkeys(c["policy"] for c in summary["cases"]))
    decided = any(c["decisions"] for c in summary["cases"])
    figure = Figure(figsize=(11.5 if decided else 8.5, 2.4 * len(scenarios) + 0.8), dpi=110, layout="constrained")
    grid = figure.subplots(len(scenarios), 3 if decided else 2, squeeze=False, sharex="col", sharey=True)
    for row, scenario in enumerate(scenarios):
        cases = [c for c in summary["cases"] if c["scenario"] == scenario]
        _draw_against_static(grid[row, 0], cases, policies, lambda c: 100 * float(np.mean([*c["true_ntcp"].values()])))
        _draw_against_static(grid[row, 1], cases, policies, lambda c: c["target_d95_gy"])
        if decided:
            _draw_decisions(grid[row, 2], cases, policies)
        grid[row, 0].set_yticks(range(len(policies)), policies)
        grid[row, 0].set_ylabel(f"courses with\n{scenario}", fontweight="bold")
    grid[0, 0].invert_yaxis()
    titles = ("true NTCP against static", "true D95 of the main target against static", "decisions, on the true dose")
    units = ("percentage points, mean of endpoints", "Gy", "number")
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=10)
    for axes, unit in zip(grid[-1], units, strict=False):
        axes.set_xlabel(unit)
    if decided:
        handles, labels = grid[0, 2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(_OUTCOMES), frameon=False, fontsize=8)
    figure.suptitle(
        f"Simulated courses, {counted(len(summary['patients']), 'patient')} (dots; bars are means)", fontsize=11
    )
    with whole_file(path) as aside:
        figure.savefig(aside, format="png")


def _draw_against_static(axes: Axes, cases: Sequence[Mapping[str, Any]], policies: Sequence[str], value: Any) -> None:
    static = {c["patient"]: value(c) for c in cases if c["policy"] == STATIC}
    for place, policy in enumerate(policies):
        pairs = [(value(c), static.get(c["patient"])) for c in cases if c["policy"] == policy and c["true_ntcp"]]
        off = [one - other for one, other in pairs if one is not None and other is not None]
        if off:
            axes.barh(place, sum(off) / len(off), color="#1f6f8b", alpha=0.35)
            axes.plot(off, [place] * len(off), "o", color="#1f6f8b", markersize=3)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)


def _draw_decisions(axes: Axes, cases: Sequence[Mapping[str, Any]], policies: Sequence[str]) -> None:
    for place, policy in enumerate(policies):
        made = [d for c in cases if c["policy"] == policy for d in c["decisions"]]
        counts = (
            sum(d["action"] is not None and not d["violated"] for d in made),
            sum(d["action"] is not None and d["violated"] > 0 for d in made),
            sum(d["action"] is None and not d["possible"] for d in made),
            sum(d["action"] is None and d["possible"] > 0 for d in made),
        )
        left = 0
        for count, (words, colour) in zip(counts, _OUTCOMES, strict=True):
            axes.barh(place, count, left=left, color=colour, label=words if place == 0 else None)
            left += count
    axes.grid(axis="x", alpha=0.3)
