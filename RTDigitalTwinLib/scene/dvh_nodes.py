"""Dose-volume histograms as tables, plot series and one chart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer

from RTDigitalTwinLib.outcome import (
    BEFORE_COLUMN,
    DOSE_COLUMN,
    HIGH_COLUMN,
    LOW_COLUMN,
    REFERENCE_COLUMN,
    VOLUME_COLUMN,
    Outcome,
    Table,
)
from RTDigitalTwinLib.patient.colours import structure_colour
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene import slicerrt_names as names
from RTDigitalTwinLib.scene.dvh_curves import (
    BAND,
    BEFORE,
    MEAN,
    REFERENCE,
    STRUCTURE_ATTRIBUTE,
    keep_words,
    name_series,
)
from RTDigitalTwinLib.scene.table_nodes import add_table
from RTDigitalTwinLib.words import counted

_Plot = slicer.vtkMRMLPlotSeriesNode
# Column, line, width, opacity. All means first: they head the chart's legend.
_CURVES = (
    (VOLUME_COLUMN, _Plot.LineStyleSolid, 2.5, 1.0),
    (LOW_COLUMN, _Plot.LineStyleDash, 1.0, 0.6),
    (HIGH_COLUMN, _Plot.LineStyleDash, 1.0, 0.6),
    (REFERENCE_COLUMN, _Plot.LineStyleDot, 3.0, 1.0),
    (BEFORE_COLUMN, _Plot.LineStyleDashDot, 1.5, 1.0),
)
_LEGEND_ROOM = 1.45  # of the highest dose: right of it is the legend
_SEEN_PERCENT = 0.5  # of the volume


@dataclass(frozen=True, eq=False)
class DvhNodes:
    """Tables by structure, the table of metrics, every series, and the chart to show them in (``show_curves``)."""

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


def _chart(scene: Any, tables: dict[str, Any], outcome: Outcome) -> tuple[tuple[Any, ...], Any]:
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", scene.GenerateUniqueName("DVH"))
    words = {MEAN: "predicted", REFERENCE: "reference plan"}
    if outcome.band_words:
        words |= {MEAN: f"mean of {counted(outcome.samples, 'sample')}", BAND: outcome.band_words}
    if outcome.beside is not None:
        words[BEFORE] = outcome.beside.before
    keep_words(chart, words)
    chart.SetXAxisTitle("Dose [Gy]")
    chart.SetYAxisTitle("Volume [%]")
    chart.SetLegendVisibility(True)
    chart.SetTitleFontSize(12)
    chart.SetLegendFontSize(10)
    chart.SetXAxisRangeAuto(False)
    chart.SetXAxisRange(0, 10 * np.ceil(_LEGEND_ROOM * _highest_gy(outcome) / 10))
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0, 102)
    series = []
    for column, line, width, opacity in _CURVES:
        for name, table in tables.items():
            if table.GetTable().GetColumnByName(column) is None:
                continue
            node = slicer.vtkMRMLPlotSeriesNode()
            node.SetName(name)
            node.SetHideFromEditors(column != VOLUME_COLUMN)  # nor does it clutter the tree of data
            node.SetAttribute(STRUCTURE_ATTRIBUTE, name)
            node.SetXColumnName(DOSE_COLUMN)
            node.SetYColumnName(column)
            node.SetPlotType(_Plot.PlotTypeScatter)
            node.SetMarkerStyle(_Plot.MarkerStyleNone)
            node.SetLineStyle(line)
            node.SetLineWidth(width)
            node.SetOpacity(opacity)
            node.SetColor(*structure_colour(name))
            series.append(scene.AddNode(node))
            series[-1].SetAndObserveTableNodeID(table.GetID())
    name_series(series)
    return tuple(series), chart


def _highest_gy(outcome: Outcome) -> float:
    """The highest dose that a curve or a band shows volume at; 1 Gy where none does."""
    found = [1.0]
    for curve in outcome.curves.values():
        dose_gy = np.asarray(curve.columns[DOSE_COLUMN])
        volumes = [np.asarray(curve.columns[column]) for column, *_ in _CURVES if column in curve.columns]
        found += [float(dose_gy[volume > _SEEN_PERCENT].max(initial=0.0)) for volume in volumes]
    return max(found)
