"""What charts share: colours, dashes, the key of a DVH chart, and SVG that takes a page's colours of ink and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.patient.colours import Colour, structure_colour
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.words import counted

BAND_OPACITY = 0.28
REFERENCE_DASHES, BEFORE_DASHES = (4, 2.2), (6, 1.8, 1.2, 1.8)
PRESCRIBED_DASHES = (0, (1, 2))
INK, PAPER = "#1d2529", "#fdfdfb"
DARK_PAPER = "#14191c"
LEAST_CONTRAST = 3.0  # of lines and signs against their background, WCAG 2.2, 1.4.11


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
