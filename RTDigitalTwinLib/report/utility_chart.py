"""What makes up the utility of each action, and what each gains against keeping the plan."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from RTDigitalTwinLib.decision.ranking import Assessment, Ranking
from RTDigitalTwinLib.model.biology import Effect
from RTDigitalTwinLib.report.charts import INK, PAPER

CONTROL, COMPLICATIONS, PENALTY, EFFORT = "#2f7f5f", "#b5533c", "#c9a227", "#7a7f87"
ROW_INCHES, WIDTH_INCHES, EDGE_INCHES = 0.36, 8.4, 1.35
MOST_LETTERS = 30


def utility_figure(ranking: Ranking) -> Figure:
    """One row an action, the first on top: left the parts of its utility and the utility, right the gain with its band.

    What is not certified is drawn pale, with an open dot.
    """
    actions = ranking.assessed
    figure = Figure(
        figsize=(WIDTH_INCHES, EDGE_INCHES + ROW_INCHES * len(actions)), layout="constrained", facecolor="none"
    )
    FigureCanvasAgg(figure)
    parts, gains = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    _draw_parts(parts, actions)
    _draw_gains(gains, actions)
    parts.set_yticks(range(len(actions)), [_label(k, a) for k, a in enumerate(actions, start=1)])
    parts.tick_params(axis="y", pad=6)
    gains.xaxis.set_major_locator(MaxNLocator(5))
    parts.set_ylim(len(actions) - 0.4, -0.6)
    for axes in (parts, gains):
        axes.set_facecolor("none")
        axes.tick_params(colors=INK, labelsize=9, length=3)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.7)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set(color=INK, alpha=0.5)
    figure.legend(
        *parts.get_legend_handles_labels(), loc="outside upper left", ncols=5, frameon=False, fontsize=8.5,
        labelcolor=INK, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _draw_parts(axes: Axes, actions: Sequence[Assessment]) -> None:
    for k, action in enumerate(actions):
        pale = 1.0 if action.is_acceptable else 0.45
        terms = action.utility.terms
        control = sum(t.contribution for t in terms if t.term.model.effect is Effect.TCP)
        lost = sum(-t.contribution for t in terms if t.term.model.effect is Effect.NTCP)
        axes.barh(k, control, height=0.34, color=CONTROL, alpha=pale, align="edge", label=_once(k, "control"))
        left = control
        for size, colour, name in (
            (lost, COMPLICATIONS, "complications"),
            (action.utility.penalty, PENALTY, "penalty on uncertainty"),
            (action.utility.effort, EFFORT, "effort"),
        ):
            left -= size
            axes.barh(k, size, left=left, height=-0.34, color=colour, alpha=pale, align="edge", label=_once(k, name))
        face = INK if action.is_acceptable else PAPER
        axes.plot(action.utility.value, k, "o", markersize=6, color=INK, markerfacecolor=face, zorder=5,
                  linestyle="none", label=_once(k, "utility"))  # fmt: skip
    axes.set_xlabel("Utility, and what makes it up", color=INK, fontsize=9.5)
    axes.set_xlim(left=min(0.0, *(1.1 * a.utility.value for a in actions)))


def _draw_gains(axes: Axes, actions: Sequence[Assessment]) -> None:
    axes.axvline(0, color=INK, alpha=0.5, linewidth=0.9)
    for k, action in enumerate(actions):
        if action.gain is None:
            continue
        face = INK if action.is_acceptable else PAPER
        axes.plot([action.gain.low, action.gain.high], [k, k], color=INK, linewidth=1.6, alpha=0.6)
        axes.plot(action.gain.expected, k, "o", markersize=6, color=INK, markerfacecolor=face, zorder=5)
    axes.set_xlabel("Gain on keeping (95 % of samples)", color=INK, fontsize=9.5)


def _once(row: int, label: str) -> str:
    return label if row == 0 else "_"


def _label(place: int, action: Assessment) -> str:
    name = action.action.name
    short = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
    return f"{place}  {short}".replace("$", r"\$")
