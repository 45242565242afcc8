"""Dose-volume histograms as tables, plot series and one chart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import slicer

from RTDigitalTwinLib.outcome import (
    BAND_LEVEL,
    BAND_LEVELS,
    BEFORE_COLUMN,
    DOSE_COLUMN,
    HIGH_COLUMN,
    LOW_COLUMN,
    REFERENCE_COLUMN,
    VOLUME_COLUMN,
    Outcome,
    Table,
    band_columns,
)
from RTDigitalTwinLib.patient.colours import structure_colour
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene import slicerrt_names as names
from RTDigitalTwinLib.scene.table_nodes import add_table
from RTDigitalTwinLib.words import counted

_LEVEL_ATTRIBUTE = "RTDigitalTwin.BandLevel"
_STRUCTURE_ATTRIBUTE = "RTDigitalTwin.Structure"

_Plot = slicer.vtkMRMLPlotSeriesNode
# Column, what follows the structure's name, line, width.
_CURVES = (
    (VOLUME_COLUMN, "", _Plot.LineStyleSolid, 2.5),
    (LOW_COLUMN, " low", _Plot.LineStyleDash, 1.0),
    (HIGH_COLUMN, " high", _Plot.LineStyleDash, 1.0),
    (REFERENCE_COLUMN, " reference", _Plot.LineStyleDot, 2.0),
    (BEFORE_COLUMN, " before", _Plot.LineStyleDashDot, 1.5),
)


@dataclass(frozen=True, eq=False)
class DvhNodes:
    """Tables by structure, the table of metrics, every series, and the chart that shows them."""

    tables: dict[str, Any]
    metrics: Any
    series: tuple[Any, ...]
    chart: Any


def add_dvhs(
    scene: Any, outcome: Outcome, dose_node: Any, segmentation_node: Any, progress: Progress = silent
) -> DvhNodes:
    """One table a structure (dose in Gy; volume in %: mean over samples, bands, reference, before) and one chart."""
    count = outcome.metrics.row_count
    first, *others = outcome.metrics.columns.items()
    columns = dict([first, ("Dose volume", (dose_node.GetName(),) * count), *others])
    metrics = add_table(scene, "DVH metrics", Table(columns))
    tables: dict[str, Any] = {}
    for row, (name, curve) in enumerate(outcome.curves.items()):
        progress(row / len(outcome.curves), f"Dose-volume histogram of {name}")
        table = add_table(scene, f"DVH {name}", curve)
        table.SetAttribute(names.DVH, names.TRUE)
        table.SetAttribute(names.DVH_SEGMENT_ID, name)
        table.SetAttribute(names.DVH_PLOT_NAME, name)
        table.SetAttribute(names.DVH_TABLE_ROW, str(row))
        table.SetAttribute(names.DVH_VOLUME_CC, f"{outcome.volume_cc[name]:.6g}")
        table.SetNodeReferenceID(names.DVH_DOSE_VOLUME_REFERENCE, dose_node.GetID())
        table.SetNodeReferenceID(names.DVH_SEGMENTATION_REFERENCE, segmentation_node.GetID())
        table.SetNodeReferenceID(names.DVH_METRICS_TABLE_REFERENCE, metrics.GetID())
        tables[name] = table
    series, chart = _chart(scene, tables, outcome)
    return DvhNodes(tables, metrics, series, chart)


def structure_of_series(series: Any) -> str:
    """The structure whose curve a series is."""
    return series.GetAttribute(_STRUCTURE_ATTRIBUTE) or ""


def show_curves(chart: Any, series: Iterable[Any], structures: Iterable[str]) -> None:
    """Show the curves of these structures in a chart and no others, in the order of ``series``."""
    wanted = set(structures)
    was = chart.StartModify()
    chart.RemoveAllPlotSeriesNodeIDs()
    for one in series:
        if structure_of_series(one) in wanted:
            chart.AddAndObservePlotSeriesNodeID(one.GetID())
    chart.EndModify(was)


def show_band_level(chart: Any, series: Iterable[Any], level: float) -> None:
    """Let the dashed curves be the band at one of ``BAND_LEVELS``, and the chart's title say so."""
    columns = {title: band_columns(level) for known in BAND_LEVELS for title in band_columns(known)}
    for one in series:
        low_or_high = columns.get(one.GetYColumnName())
        if low_or_high is not None:
            one.SetYColumnName(low_or_high[one.GetName().rsplit("_", 1)[0].endswith(" high")])
    chart.SetTitle(chart.GetTitle().replace(_percent(band_level_of(chart)), _percent(level)))
    chart.SetAttribute(_LEVEL_ATTRIBUTE, f"{level:g}")


def band_level_of(chart: Any) -> float:
    """The level of the bands in a chart."""
    return float(chart.GetAttribute(_LEVEL_ATTRIBUTE) or BAND_LEVEL)


def _percent(level: float) -> str:
    return f"{100 * level:g} % band"


def _chart(scene: Any, tables: dict[str, Any], outcome: Outcome) -> tuple[tuple[Any, ...], Any]:
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", scene.GenerateUniqueName("DVH"))
    what = "predicted"
    if outcome.band_words:
        what = f"mean of {counted(outcome.samples, 'sample')}, dashed: {outcome.band_words}"
    said = {REFERENCE_COLUMN: ", dotted: reference plan"}
    if outcome.beside is not None:
        said[BEFORE_COLUMN] = f", dash-dotted: {outcome.beside.before}"
    for column, words in said.items():
        if any(table.GetTable().GetColumnByName(column) for table in tables.values()):
            what += words
    chart.SetTitle(f"Cumulative DVH: {what}")
    chart.SetXAxisTitle("Dose [Gy]")
    chart.SetYAxisTitle("Volume [%]")
    chart.SetLegendVisibility(True)
    chart.SetTitleFontSize(14)
    chart.SetLegendFontSize(10)
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0, 102)
    chart.SetAttribute(_LEVEL_ATTRIBUTE, f"{BAND_LEVEL:g}")
    series = []
    # All means first: they head the chart's legend.
    for column, suffix, line, width in _CURVES:
        for name, table in tables.items():
            if table.GetTable().GetColumnByName(column) is None:
                continue
            node = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", scene.GenerateUniqueName(name + suffix))
            node.SetAttribute(_STRUCTURE_ATTRIBUTE, name)
            node.SetAndObserveTableNodeID(table.GetID())
            node.SetXColumnName(DOSE_COLUMN)
            node.SetYColumnName(column)
            node.SetPlotType(_Plot.PlotTypeScatter)
            node.SetMarkerStyle(_Plot.MarkerStyleNone)
            node.SetLineStyle(line)
            node.SetLineWidth(width)
            node.SetColor(*structure_colour(name))
            chart.AddAndObservePlotSeriesNodeID(node.GetID())
            series.append(node)
    return tuple(series), chart
