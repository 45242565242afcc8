"""What makes up the utility of each action, and what each gains against keeping the plan."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from RTDigitalTwinLib.decision.ranking import Assessment, Ranking
from RTDigitalTwinLib.model.biology import Effect
from RTDigitalTwinLib.report.charts import INK, PAPER

CONTROL, COMPLICATIONS, PENALTY, EFFORT = "#2f7f5f", "#b5533c", "#c9a227", "#7a7f87"
ROW_INCHES, WIDTH_INCHES, EDGE_INCHES = 0.36, 8.4, 1.35
MOST_LETTERS = 38  # of a line; a name has two, or one and a remark
PALE_OPACITY = 0.45
HEADING_ROWS = 0.8
LAST = "Pale: not certified to keep every hard limit, so ranked last whatever the utility; nearest first"
NO_BAND_LABEL = "no calibrated band: penalty too small"
NONE = "Pale: none is certified to keep every hard limit; the nearest to it is first, whatever the utility"


def utility_figure(ranking: Ranking) -> Figure:
    """One row an action, the first on top: left the parts of its utility and the utility, right the gain with its band.

    What is not certified is drawn pale, with an open dot, under a line that says so.
    """
    actions = ranking.assessed
    certified = sum(action.is_acceptable for action in actions)
    rows = [k if k < certified else k + HEADING_ROWS for k in range(len(actions))]
    figure = Figure(
        figsize=(WIDTH_INCHES, EDGE_INCHES + ROW_INCHES * (rows[-1] + 1)), layout="constrained", facecolor="none"
    )
    FigureCanvasAgg(figure)
    parts, gains = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    _draw_parts(parts, rows, actions)
    _draw_gains(gains, rows, actions)
    parts.set_yticks(rows, [_label(k, a) for k, a in enumerate(actions, start=1)])
    parts.tick_params(axis="y", pad=6)
    gains.xaxis.set_major_locator(MaxNLocator(5))
    parts.set_ylim(rows[-1] + 0.6, -0.6)
    for axes in (parts, gains):
        axes.set_facecolor("none")
        axes.tick_params(colors=INK, labelsize=9, length=3)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.7)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set(color=INK, alpha=0.5)
    if certified < len(actions):
        _draw_heading(figure, parts, gains, certified)
    figure.legend(
        handles=_key(), loc="outside upper left", ncols=6, frameon=False, fontsize=8.5, labelcolor=INK,
        handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _key() -> list[Line2D | Patch]:
    """What the colours and dots mean, of any row."""
    dots = [
        Line2D([], [], marker="o", markersize=6, linestyle="none", color=INK, markerfacecolor=face, label=words)
        for face, words in ((INK, "utility"), (PAPER, "utility, not certified"))
    ]
    colours = {CONTROL: "control", COMPLICATIONS: "complications", PENALTY: "penalty on uncertainty", EFFORT: "effort"}
    return [*dots, *(Patch(color=colour, label=words) for colour, words in colours.items())]


def _draw_heading(figure: Figure, parts: Axes, gains: Axes, row: int) -> None:
    """A line over the row where what is not certified begins, and over it why that comes last."""
    for axes in (parts, gains):
        if row:
            axes.axhline(row - 0.45, color=INK, alpha=0.35, linewidth=0.9, linestyle=(0, (4, 3)))
    beside_labels = blended_transform_factory(figure.transFigure, parts.transData)
    heading = parts.text(
        0.006, row - 0.1, LAST if row else NONE, transform=beside_labels, color=INK, fontsize=8.5, fontstyle="italic",
        verticalalignment="center",
    )  # fmt: skip
    heading.set_in_layout(False)


def _draw_parts(axes: Axes, rows: Sequence[float], actions: Sequence[Assessment]) -> None:
    for row, action in zip(rows, actions, strict=True):
        pale = 1.0 if action.is_acceptable else PALE_OPACITY
        terms = action.utility.terms
        control = sum(t.contribution for t in terms if t.term.model.effect is Effect.TCP)
        lost = sum(-t.contribution for t in terms if t.term.model.effect is Effect.NTCP)
        axes.barh(row, control, height=0.34, color=CONTROL, alpha=pale, align="edge")
        left = control
        taken = ((lost, COMPLICATIONS), (action.utility.penalty, PENALTY), (action.utility.effort, EFFORT))
        for size, colour in taken:
            left -= size
            axes.barh(row, size, left=left, height=-0.34, color=colour, alpha=pale, align="edge")
        face = INK if action.is_acceptable else PAPER
        axes.plot(action.utility.value, row, "o", markersize=6, color=INK, markerfacecolor=face, zorder=5)
    axes.set_xlabel("Utility, and what makes it up", color=INK, fontsize=9.5)
    axes.set_xlim(left=min(0.0, *(1.1 * a.utility.value for a in actions)))


def _draw_gains(axes: Axes, rows: Sequence[float], actions: Sequence[Assessment]) -> None:
    axes.axvline(0, color=INK, alpha=0.5, linewidth=0.9)
    for row, action in zip(rows, actions, strict=True):
        if action.gain is None:
            continue
        face = INK if action.is_acceptable else PAPER
        axes.plot([action.gain.low, action.gain.high], [row, row], color=INK, linewidth=1.6, alpha=0.6)
        axes.plot(action.gain.expected, row, "o", markersize=6, color=INK, markerfacecolor=face, zorder=5)
    axes.set_xlabel("Gain on keeping, before the penalty\n(95 % of samples)", color=INK, fontsize=9.5)


def _label(place: int, action: Assessment) -> str:
    remark = () if action.outcome.prediction.is_calibrated else (NO_BAND_LABEL,)
    lines = wrap(f"{place}  {action.action.name}", MOST_LETTERS, max_lines=2 - len(remark), placeholder="…")
    return "\n".join((*lines, *remark)).replace("$", r"\$")
