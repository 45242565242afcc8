"""Which curves a chart of dose-volume histograms shows: of which structures, and which beside the mean."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.outcome import (
    BAND_LEVEL,
    BAND_LEVELS,
    BEFORE_COLUMN,
    REFERENCE_COLUMN,
    VOLUME_COLUMN,
    band_columns,
)
from RTDigitalTwinLib.patient.structure_matching import level_of
from RTDigitalTwinLib.scene.table_nodes import words_of_column
from RTDigitalTwinLib.scene.twin_patient import name_of_segment

if TYPE_CHECKING:
    from RTDigitalTwinLib.scene.outcome_nodes import OutcomeNodes

WITH_GOALS, VISIBLE, ALL, CHOSEN = "goals", "visible", "all", "chosen"
MEAN, BAND, BEFORE, REFERENCE = "mean", "band", "before", "reference"  # kinds of curves
STRUCTURE_ATTRIBUTE = "RTDigitalTwin.Structure"
_WORDS_ATTRIBUTE = "RTDigitalTwin.Curves"  # of a chart: what each kind of curve in it is called
_LINES = {BAND: "dashed", BEFORE: "dash-dotted", REFERENCE: "dotted"}
_BANDS = {title: limit for level in BAND_LEVELS for limit, title in enumerate(band_columns(level))}
_KINDS = {VOLUME_COLUMN: MEAN, BEFORE_COLUMN: BEFORE, REFERENCE_COLUMN: REFERENCE} | dict.fromkeys(_BANDS, BAND)


@dataclass(frozen=True)
class CurveChoice:
    """What a chart shows: the mean of some structures, and what is chosen beside it.

    Attributes
    ----------
    of : ``WITH_GOALS``, which are targets and what a clinical goal is about; ``VISIBLE``, whose segment is shown;
        ``ALL``; or ``CHOSEN``, which are ``names``.
    band : limits of the band at ``level``, one of ``BAND_LEVELS``.
    before : the dose before observing, or without the action.
    reference : the reference plan.
    """

    of: str = WITH_GOALS
    names: tuple[str, ...] = ()
    band: bool = True
    before: bool = True
    reference: bool = False
    level: float = BAND_LEVEL

    def __post_init__(self) -> None:
        if self.of not in (known := (WITH_GOALS, VISIBLE, ALL, CHOSEN)):
            raise SceneError(f"There are no curves of {self.of!r}.", remedy=f"Choose one of {', '.join(known)}.")
        if self.level not in BAND_LEVELS:
            levels = ", ".join(f"{level:g}" for level in BAND_LEVELS)
            raise SceneError(f"There is no band at {self.level!r}.", remedy=f"Choose one of {levels}.")

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of curves to show."""
        chosen = {BAND: self.band, BEFORE: self.before, REFERENCE: self.reference}
        return frozenset({MEAN, *(kind for kind, is_chosen in chosen.items() if is_chosen)})


def structure_of_series(series: Any) -> str:
    """The structure whose curve a series is."""
    return series.GetAttribute(STRUCTURE_ATTRIBUTE) or ""


def kind_of_series(series: Any) -> str:
    """Which kind of curve a series is; "" for a stranger's."""
    return _KINDS.get(series.GetYColumnName(), "")


def structures_of(nodes: OutcomeNodes) -> list[str]:
    """The structures that have curves, in their order."""
    return list(dict.fromkeys(structure_of_series(series) for series in nodes.series))


def kinds_of(nodes: OutcomeNodes) -> set[str]:
    """The kinds of curves that there are."""
    return {kind_of_series(series) for series in nodes.series}


def chosen_structures(nodes: OutcomeNodes, choice: CurveChoice) -> list[str]:
    """The structures of a choice that have curves, in their order. Where no goals are known, all have some."""
    known = structures_of(nodes)
    if choice.of == CHOSEN:
        return [name for name in known if name in choice.names]
    if choice.of == VISIBLE and nodes.segmentation is not None:
        visible = visible_structures(nodes.segmentation)
        return [name for name in known if name in visible]
    if choice.of == WITH_GOALS and nodes.goals is not None:
        goals = words_of_column(nodes.goals, "Goal")
        return [name for name in known if level_of(name) is not None or _is_about(goals, name)] or known
    return known


def visible_structures(segmentation: Any) -> set[str]:
    """Names of the structures whose segments are shown in the views, as they were confirmed."""
    display, inner = segmentation.GetDisplayNode(), segmentation.GetSegmentation()
    if display is None or not display.GetVisibility():
        return set()
    shown = [one for one in inner.GetSegmentIDs() if display.GetSegmentVisibility(one)]
    return {name_of_segment(inner.GetSegment(one)) for one in shown}


def require_curves(nodes: OutcomeNodes | None, names: Iterable[str]) -> None:
    """Raise SceneError where there is no chart, or it has no curve of one of these structures."""
    if nodes is None or nodes.chart is None:
        raise SceneError("There is no chart.", remedy="Predict the dose first.")
    known = structures_of(nodes)
    strange = [name for name in names if name not in known]
    if strange:
        raise SceneError(f"There is no curve of {', '.join(strange)}.", remedy=f"There are {', '.join(known)}.")


def show_curves(nodes: OutcomeNodes, choice: CurveChoice) -> None:
    """Show the chosen curves in the chart and no others, all means first; its title says what the lines are."""
    chart = nodes.chart
    if chart is None:
        return
    wanted, kinds = chosen_structures(nodes, choice), choice.kinds
    for one in nodes.series:
        limit = _BANDS.get(one.GetYColumnName())
        if limit is not None:
            one.SetYColumnName(band_columns(choice.level)[limit])
    name_series(nodes.series)
    shown = [one for one in nodes.series if structure_of_series(one) in wanted and kind_of_series(one) in kinds]
    was = chart.StartModify()
    if [one.GetID() for one in shown] != [one.GetID() for one in _shown(chart)]:
        chart.RemoveAllPlotSeriesNodeIDs()
        for one in shown:
            chart.AddAndObservePlotSeriesNodeID(one.GetID())
    words = chart.GetAttribute(_WORDS_ATTRIBUTE)
    if words:  # scenes of earlier versions do not tell
        chart.SetTitle(_title(json.loads(words), {kind_of_series(one) for one in shown}, choice.level))
    chart.EndModify(was)


def shown_curves(nodes: OutcomeNodes) -> dict[str, set[str]]:
    """Which kinds of curves the chart shows, by structure."""
    found: dict[str, set[str]] = {}
    for one in _shown(nodes.chart):
        found.setdefault(structure_of_series(one), set()).add(kind_of_series(one))
    return found


def name_series(series: Iterable[Any]) -> None:
    """Let a chart's legend name each structure once: Slicer lists every series that has a name.

    A scene that is read gives a name to each that has none.
    """
    for one in series:
        name = structure_of_series(one)
        wanted = name if kind_of_series(one) == MEAN else ""
        if name and one.GetName() != wanted:
            one.SetName(wanted)


def keep_words(chart: Any, words: Mapping[str, str]) -> None:
    """Keep what each kind of curve of a chart is called, with the level of its band, for the title."""
    chart.SetAttribute(_WORDS_ATTRIBUTE, json.dumps(dict(words)))


def _title(words: Mapping[str, str], kinds: set[str], level: float) -> str:
    """What it is and what each of its lines is, one below the other: Slicer breaks no title."""
    beside = [f"{line}: {words[kind]}" for kind, line in _LINES.items() if kind in kinds and words.get(kind)]
    title = "\n".join([f"Cumulative DVH, {words[MEAN]}", *beside])
    return title.replace(_percent(BAND_LEVEL), _percent(level))


def _percent(level: float) -> str:
    return f"{100 * level:g} % band"


def _shown(chart: Any) -> list[Any]:
    found = (chart.GetNthPlotSeriesNode(k) for k in range(chart.GetNumberOfPlotSeriesNodes()))
    return [one for one in found if one is not None]


def _is_about(goals: Iterable[str], name: str) -> bool:
    """Whether one of some goals, in words, names a structure."""
    whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
    return any(whole.search(goal) for goal in goals)
