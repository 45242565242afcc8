"""DVHs of a prediction, or of two, a panel a structure: in one chart, their curves and bands would hide each other."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.report.charts import (
    BAND_OPACITY,
    BEFORE_DASHES,
    INK,
    PRESCRIBED_DASHES,
    REFERENCE_DASHES,
    dvh_key,
    readable_colour,
    soften_frame,
)
from RTDigitalTwinLib.report.tables import Findings, ordered_structures
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

PAGE_COLUMNS, PICTURE_COLUMNS = 4, 3  # a picture stays readable at half the width of a page
COLUMN_INCHES, ROW_INCHES, KEY_INCHES = 1.9, 1.85, 0.75
MARGINS_INCHES = (0.65, 0.12, 0.27, 0.5)  # left, right, top, bottom
DOSE_TICK_GY = 20
POINTS_EVERY = 4  # of the DVH's 0.1 Gy: finer than a line is wide
PANELS_OF_A_KEY = 2  # so many that are empty have room for it


def findings_dvh_figure(findings: Findings, *, legend: bool = True) -> Figure:
    """The DVHs of a prediction; where there is another beside it, of both."""
    words = (findings.words.now, findings.words.before)
    return dvh_figure(findings.prediction, findings.before, findings.level, legend=legend, words=words)


def dvh_figure(
    prediction: DoseEnsemble,
    before: DoseEnsemble | None = None,
    level: float = 0.95,
    *,
    legend: bool = True,
    words: tuple[str, str] = ("after", "before observing"),
) -> Figure:
    """Cumulative DVHs, a panel a structure: mean solid, its band at ``level`` filled, the plan's reference dashed.

    Panels bear the structures' names and numbers (from 1, in the order of ``ordered_structures``). ``before`` is
    thin and without a band; ``words`` say what the prediction and ``before`` are. With ``legend`` the figure is a
    picture by itself, which says what the lines mean; without, it is one for a page that does.
    """
    structures = ordered_structures(prediction.patient)
    levels = target_levels_gy(prediction.patient)
    plan_dose = prediction.patient.plan.dose if prediction.patient.plans else None
    columns = min(PICTURE_COLUMNS if legend else PAGE_COLUMNS, len(structures))
    rows = math.ceil(len(structures) / columns)
    free = rows * columns - len(structures)
    below = KEY_INCHES * (legend and free < PANELS_OF_A_KEY)
    left, right, top, bottom = MARGINS_INCHES  # set, for to find them takes as long as to draw
    width, height = left + columns * COLUMN_INCHES + right, rows * ROW_INCHES + below
    figure = Figure(figsize=(width, height), facecolor="none")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(left / width, (bottom + below) / height, 1 - right / width, 1 - top / height,
                           wspace=0.12, hspace=0.5)  # fmt: skip
    panels = list(grid.flat)
    for empty in panels[len(structures) :]:
        empty.axis("off")
    any_reference = False
    for number, (structure, axes) in enumerate(zip(structures, panels, strict=False), start=1):
        colour = readable_colour(structure.name)
        _frame(axes, f"{number}  {structure.name}", levels.get(structure.name))
        if number + columns > len(structures):
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.set_xlabel("Dose (Gy)", color=INK, fontsize=9)
        now = prediction.dvh(structure.name)
        dose_gy = now.dose_gy[::POINTS_EVERY]
        if prediction.has_spread:
            low, high = (100 * limit[::POINTS_EVERY] for limit in now.band(level))
            axes.fill_between(dose_gy, low, high, color=colour, alpha=BAND_OPACITY, linewidth=0, gid=f"band-{number}")
        if before is not None:
            then = before.dvh(structure.name)
            axes.plot(then.dose_gy[::POINTS_EVERY], 100 * then.mean[::POINTS_EVERY], color=colour, linewidth=1.1,
                      dashes=BEFORE_DASHES, gid=f"before-{number}")  # fmt: skip
        planned = covered_dose_of(plan_dose, structure)
        if planned is not None:
            share = planned.volume_at_dose_ratio(dose_gy)[0]
            axes.plot(dose_gy, 100 * share, color=INK, linewidth=0.9, dashes=REFERENCE_DASHES,
                      gid=f"reference-{number}")  # fmt: skip
            any_reference = True
        axes.plot(dose_gy, 100 * now.mean[::POINTS_EVERY], color=colour, linewidth=1.8, gid=f"mean-{number}")
    highest_gy = max(1.0, *(one.highest_gy for one in (prediction, before) if one is not None))
    panels[0].set(xlim=(0, 1.02 * highest_gy), ylim=(0, 104))
    what = "Volume receiving at least this dose (%)" if rows > 1 else "Volume (%)"  # one row is too low for all of it
    middle = (figure.subplotpars.bottom + figure.subplotpars.top) / 2
    figure.supylabel(what, x=0.012, y=middle, color=INK, fontsize=9.5)
    if legend:
        key = dvh_key(prediction, level, any_reference, None if before is None else words)
        style = {"frameon": False, "fontsize": 8.5, "labelcolor": INK}
        if free < PANELS_OF_A_KEY:
            figure.legend(handles=key, loc="lower center", ncols=3, **style)
        else:
            panels[len(structures)].legend(handles=key, loc="upper left", **style)
    return figure


def _frame(axes: Axes, title: str, level_gy: float | None) -> None:
    axes.set_facecolor("none")
    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=9, fontweight="bold", color=INK, pad=3)
    axes.set_yticks((0, 50, 100))
    axes.xaxis.set_major_locator(MultipleLocator(DOSE_TICK_GY))
    soften_frame(axes, labelsize=8.5)
    if level_gy is not None:
        axes.axvline(level_gy, ymax=100 / 104, color=INK, alpha=0.6, linewidth=0.9, linestyle=PRESCRIBED_DASHES)
