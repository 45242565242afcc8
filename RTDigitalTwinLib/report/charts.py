"""The DVH chart, as SVG that fits into a page and takes the page's colours of ink and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.patient.colours import Colour, structure_colour
from RTDigitalTwinLib.report.tables import ordered_structures
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.words import counted

SIZE_INCHES = (8.4, 4.7)
POINTS_EVERY = 4  # of the DVH's 0.1 Gy: finer than a line is wide
BAND_OPACITY = 0.28
TAG_POINTS = 13.0
REFERENCE_DASHES, BEFORE_DASHES = (4, 2.2), (6, 1.8, 1.2, 1.8)
PRESCRIBED_DASHES = (0, (1, 2))
INK, PAPER = "#1d2529", "#fdfdfb"
DARK_PAPER = "#14191c"
LEAST_CONTRAST = 3.0  # of lines and signs against their background, WCAG 2.2, 1.4.11


def dvh_figure(prediction: DoseEnsemble, level: float = 0.95, *, legend: bool = True) -> Figure:
    """Cumulative DVHs: mean solid, band at ``level`` filled, the plan's reference dashed.

    Every curve carries the number of its structure (from 1, in the order of ``ordered_structures``), so that it can
    be told without its colour. ``legend`` adds numbers and names beside the axes, and what the lines mean.
    """
    structures = ordered_structures(prediction.patient)
    patient = prediction.patient
    plan_dose = patient.plan.dose if patient.plans else None
    figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="none")
    _draw_frame(axes, prediction)
    curves = []
    any_reference = False
    for number, structure in enumerate(structures, start=1):
        colour = readable_colour(structure.name)
        dvh = prediction.dvh(structure.name)
        dose_gy = dvh.dose_gy[::POINTS_EVERY]
        if prediction.has_spread:
            low, high = (100 * limit[::POINTS_EVERY] for limit in dvh.band(level))
            axes.fill_between(dose_gy, low, high, color=colour, alpha=BAND_OPACITY, linewidth=0, gid=f"band-{number}")
        planned = covered_dose_of(plan_dose, structure)
        if planned is not None:
            share = planned.volume_at_dose_ratio(dose_gy)[0]
            axes.plot(dose_gy, 100 * share, color=colour, linewidth=1.3, dashes=REFERENCE_DASHES,
                      gid=f"reference-{number}")  # fmt: skip
            any_reference = True
        mean = 100 * dvh.mean[::POINTS_EVERY]
        axes.plot(dose_gy, mean, color=colour, linewidth=1.9, gid=f"mean-{number}",
                  label=f"{number}  {structure.name}".replace("$", r"\$"))  # fmt: skip
        curves.append((dose_gy, mean))
    for number, (structure, (x, y)) in enumerate(zip(structures, tag_places(curves, _limits(axes)), strict=True), 1):
        axes.plot(x, y, "o", markersize=TAG_POINTS, markerfacecolor=PAPER, markeredgewidth=1.7,
                  markeredgecolor=readable_colour(structure.name), zorder=5, gid=f"tag-{number}")  # fmt: skip
        axes.annotate(str(number), (x, y), ha="center", va="center_baseline", fontsize=8, fontweight="bold",
                      color=INK, zorder=6)  # fmt: skip
    if legend:
        names = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9.5, labelcolor=INK)
        axes.add_artist(names)
        axes.legend(handles=dvh_key(prediction, level, any_reference), loc="lower left", bbox_to_anchor=(1.01, 0.0),
                    frameon=False, fontsize=8.5, labelcolor=INK)  # fmt: skip
    return figure


def dvh_key(
    prediction: DoseEnsemble, level: float, reference: bool, words: tuple[str, str] | None = None
) -> list[Line2D | Patch]:
    """What the lines mean, whatever their colour; ``words`` say what a prediction and the one beside it are."""
    mean = f"mean of {counted(prediction.count, 'sample')}" if prediction.count else "predicted dose"
    key: list[Line2D | Patch] = [
        Line2D([], [], color=INK, linewidth=1.9, label=f"{mean},\n{words[0]}" if words else mean)
    ]
    if words:
        key.append(Line2D([], [], color=INK, linewidth=1.3, dashes=BEFORE_DASHES, label=words[1]))
    if prediction.has_spread:
        band = prediction.band_words(level).replace(" (", "\n(").replace(", ", ",\n")
        key.append(Patch(color=INK, alpha=BAND_OPACITY, linewidth=0, label=band))
    if reference:
        key.append(Line2D([], [], color=INK, linewidth=1.3, dashes=REFERENCE_DASHES, label="reference dose"))
    if target_levels_gy(prediction.patient):
        key.append(
            Line2D([], [], color=INK, alpha=0.45, linewidth=0.9, linestyle=PRESCRIBED_DASHES, label="prescribed dose")
        )
    return key


def readable_colour(structure: str, paper: str = PAPER) -> Colour:
    """A structure's colour, darkened (on a dark paper lightened) until it stands out: they are made for dark views."""
    colour, background = np.array(structure_colour(structure)), _luminance(to_rgb(paper))
    end = 0.0 if background > 0.5 else 1.0
    for share in np.linspace(0, 1, 101):
        mixed = (1 - share) * colour + share * end
        low, high = sorted((_luminance(mixed), background))
        if (high + 0.05) / (low + 0.05) >= LEAST_CONTRAST:
            break
    return float(mixed[0]), float(mixed[1]), float(mixed[2])


def figure_svg(figure: Figure, label: str, css_colours: Mapping[str, str] | None = None) -> str:
    """A figure as an SVG element for HTML: no prolog, no metadata, no namespaces.

    ``label`` is what a screen reader says; ``css_colours`` gives what stands for a colour (#rrggbb) on the page, such
    as ``var(--paper)``.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    opening, body = svg[: svg.index(">") + 1], svg[svg.index(">") + 1 :]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    body = body.replace("xlink:href", "href")
    for colour, css in (css_colours or {}).items():
        body = body.replace(colour, css)
    return f'<svg {box[0]} role="img" aria-label="{escape(label)}">{body}'


def tag_places(
    curves: Sequence[tuple[NDArray, NDArray]], limits: tuple[float, float], room: float = 0.045
) -> list[tuple[float, float]]:
    """A point on each curve for its number, as far as possible from the other curves and the numbers placed before.

    Parameters
    ----------
    curves : (x, y) of each.
    limits : the largest x and y shown.
    room : half the space a number needs, in units of the chart's height.
    """
    aspect = SIZE_INCHES[0] / SIZE_INCHES[1]
    scale = np.array([aspect / limits[0], 1 / limits[1]])
    paths = [_even_points(np.stack([x, y], axis=1) * scale) for x, y in curves]
    placed: list[NDArray] = []
    for index, path in enumerate(paths):
        inside = path[(path[:, 1] > 0.07) & (path[:, 1] < 0.9) & (path[:, 0] > room)]
        candidates = inside if len(inside) else path
        others = [p for i, p in enumerate(paths) if i != index]
        free = np.min([_nearest(candidates, p) for p in others], axis=0) if others else np.full(len(candidates), room)
        worth = np.minimum(free, 2 * room)
        if placed:
            # Two numbers must never cover each other; beyond that more distance gains nothing.
            worth += 4 * np.minimum(_nearest(candidates, np.array(placed)), 2 * room)
        placed.append(candidates[int(np.argmax(worth))])
    return [(float(x), float(y)) for x, y in np.array(placed).reshape(-1, 2) / scale]


def _draw_frame(axes: Axes, prediction: DoseEnsemble) -> None:
    highest = max(prediction.highest_gy, 1.0)
    axes.set(xlim=(0, 1.02 * highest), ylim=(0, 102))
    axes.set_xlabel("Dose (Gy)", color=INK, fontsize=10)
    axes.set_ylabel("Volume receiving at least this dose (%)", color=INK, fontsize=10)
    soften_frame(axes, labelsize=9.5)
    for level_gy in sorted(set(target_levels_gy(prediction.patient).values())):
        axes.axvline(level_gy, ymax=1 / 1.02, color=INK, alpha=0.45, linewidth=0.9, linestyle=PRESCRIBED_DASHES)
        axes.annotate(f"{level_gy:g} Gy", (level_gy, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                      textcoords="offset points", ha="center", va="bottom", fontsize=8, color=INK)  # fmt: skip


def soften_frame(axes: Axes, labelsize: float) -> None:
    """A light grid behind what is drawn, and no more of a frame than left and bottom."""
    axes.tick_params(colors=INK, labelsize=labelsize, length=3)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=INK, alpha=0.5)


def _luminance(colour: ArrayLike) -> float:
    """Relative luminance of an sRGB colour in 0..1 (WCAG 2.2)."""
    part = np.asarray(colour, dtype=float)
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _limits(axes: Axes) -> tuple[float, float]:
    return axes.get_xlim()[1], axes.get_ylim()[1]


def _even_points(path: NDArray, count: int = 240) -> NDArray:
    """Points along a polyline, evenly by its length, so that steep falls get their share."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    wanted = np.linspace(0, along[-1], count)
    return np.stack([np.interp(wanted, along, path[:, k]) for k in (0, 1)], axis=1)


def _nearest(points: NDArray, others: NDArray) -> NDArray:
    """Distance of each point to the nearest of the others."""
    return np.sqrt(((points[:, None] - others[None]) ** 2).sum(axis=2)).min(axis=1)
