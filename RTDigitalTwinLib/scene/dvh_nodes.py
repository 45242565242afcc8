"""Dose-volume histograms as tables, plot series and one chart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from numpy.typing import ArrayLike

from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.patient.colours import structure_colour
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene import slicerrt_names as names
from RTDigitalTwinLib.scene.table_nodes import add_table
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.words import counted

BAND_LEVEL = 0.95
LOW_COLUMN, HIGH_COLUMN, REFERENCE_COLUMN = "Volume band low", "Volume band high", "Volume reference"
BEFORE_COLUMN = "Volume before"

_Plot = slicer.vtkMRMLPlotSeriesNode
# Column, what follows the structure's name, line, width.
_CURVES = (
    (names.DVH_VOLUME_COLUMN, "", _Plot.LineStyleSolid, 2.5),
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
    scene: Any,
    prediction: DoseEnsemble,
    reference: Volume | None,
    dose_node: Any,
    segmentation_node: Any,
    progress: Progress = silent,
    before: DoseEnsemble | None = None,
    before_words: str = "before observing",
) -> DvhNodes:
    """One table a structure (dose in Gy; volume in %: mean over the samples, band, reference) and one chart.

    ``before`` is the prediction beside it, which then has a column and a curve of its own; ``before_words`` what it is.
    """
    metrics = _metrics_table(scene, prediction, dose_node)
    tables: dict[str, Any] = {}
    structures = prediction.patient.structures
    for row, name in enumerate(structures):
        progress(row / len(structures), f"Dose-volume histogram of {name}")
        table = _dvh_table(scene, prediction, reference, before, name)
        table.SetAttribute(names.DVH, names.TRUE)
        table.SetAttribute(names.DVH_SEGMENT_ID, name)
        table.SetAttribute(names.DVH_PLOT_NAME, name)
        table.SetAttribute(names.DVH_TABLE_ROW, str(row))
        table.SetAttribute(names.DVH_VOLUME_CC, f"{structures[name].volume_cc:.6g}")
        table.SetNodeReferenceID(names.DVH_DOSE_VOLUME_REFERENCE, dose_node.GetID())
        table.SetNodeReferenceID(names.DVH_SEGMENTATION_REFERENCE, segmentation_node.GetID())
        table.SetNodeReferenceID(names.DVH_METRICS_TABLE_REFERENCE, metrics.GetID())
        tables[name] = table
    series, chart = _chart(scene, tables, prediction, before_words)
    return DvhNodes(tables, metrics, series, chart)


def _dvh_table(
    scene: Any, prediction: DoseEnsemble, reference: Volume | None, before: DoseEnsemble | None, name: str
) -> Any:
    dvh = prediction.dvh(name)
    columns = [(names.DVH_DOSE_COLUMN, dvh.dose_gy), (names.DVH_VOLUME_COLUMN, 100 * dvh.mean)]
    if prediction.has_spread:
        low, high = dvh.band(BAND_LEVEL)
        columns += [(LOW_COLUMN, 100 * low), (HIGH_COLUMN, 100 * high)]
    dose = covered_dose_of(reference, prediction.patient.structures[name])
    if dose is not None:
        columns.append((REFERENCE_COLUMN, 100 * dose.volume_at_dose_ratio(dvh.dose_gy)[0]))
    if before is not None:
        earlier = before.dvh(name)
        columns.append((BEFORE_COLUMN, 100 * np.interp(dvh.dose_gy, earlier.dose_gy, earlier.mean, right=0.0)))
    return add_table(scene, f"DVH {name}", columns)


def _metrics_table(scene: Any, prediction: DoseEnsemble, dose_node: Any) -> Any:
    structures = prediction.patient.structures
    dose = {name: prediction.structure_dose(name) for name in structures}
    mean = {name: prediction.metric(name, "mean", dose[name]) for name in structures}
    columns: list[tuple[str, ArrayLike | list[str]]] = [
        (names.METRIC_STRUCTURE, list(structures)),
        ("Dose volume", [dose_node.GetName()] * len(structures)),
        (names.METRIC_VOLUME_CC, [s.volume_cc for s in structures.values()]),
        ("Mean dose (Gy)", [float(m.mean) for m in mean.values()]),
        ("Min dose (Gy)", [float(d.min_gy().mean()) for d in dose.values()]),
        ("Max dose (Gy)", [float(d.max_gy().mean()) for d in dose.values()]),
    ]
    for metric in ("D95", "D2"):
        columns.append(
            (f"{metric} (Gy)", [float(prediction.metric(name, metric, dose[name]).mean) for name in structures])
        )
    if prediction.has_spread:
        bands = np.array([m.band(BAND_LEVEL) for m in mean.values()])
        columns += [("Mean dose band low (Gy)", bands[:, 0]), ("Mean dose band high (Gy)", bands[:, 1])]
    return add_table(scene, "DVH metrics", columns)


def _chart(
    scene: Any, tables: dict[str, Any], prediction: DoseEnsemble, before_words: str
) -> tuple[tuple[Any, ...], Any]:
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", scene.GenerateUniqueName("DVH"))
    what = (
        f"mean of {counted(prediction.count, 'sample')}, dashed: {prediction.band_words(BAND_LEVEL)}"
        if prediction.has_spread
        else "predicted"
    )
    said = {REFERENCE_COLUMN: ", dotted: reference plan", BEFORE_COLUMN: f", dash-dotted: {before_words}"}
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
    series = []
    # All means first: they head the chart's legend.
    for column, suffix, line, width in _CURVES:
        for name, table in tables.items():
            if table.GetTable().GetColumnByName(column) is None:
                continue
            node = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", scene.GenerateUniqueName(name + suffix))
            node.SetAndObserveTableNodeID(table.GetID())
            node.SetXColumnName(names.DVH_DOSE_COLUMN)
            node.SetYColumnName(column)
            node.SetPlotType(_Plot.PlotTypeScatter)
            node.SetMarkerStyle(_Plot.MarkerStyleNone)
            node.SetLineStyle(line)
            node.SetLineWidth(width)
            node.SetColor(*structure_colour(name))
            chart.AddAndObservePlotSeriesNodeID(node.GetID())
            series.append(node)
    return tuple(series), chart
