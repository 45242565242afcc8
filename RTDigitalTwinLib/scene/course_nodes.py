"""A course in the scene: its trajectory as table and charts, and the doses of its fractions as sequences to play."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from RTDigitalTwinLib.course_projection import Endpoint
from RTDigitalTwinLib.course_record import CourseResult
from RTDigitalTwinLib.outcome import Table, Values
from RTDigitalTwinLib.patient.volume import Quantity
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.report.course_figure import NTCP_LIMIT, chosen_ntcp
from RTDigitalTwinLib.scene import volume_nodes
from RTDigitalTwinLib.scene.hierarchy import folder_item, put_under
from RTDigitalTwinLib.scene.patient_nodes import PatientNodes, highest_prescription_gy, show_patient
from RTDigitalTwinLib.scene.table_nodes import add_table

COURSE_ATTRIBUTE = "RTDigitalTwin.Course"
INDEX = "fraction"
STEPS = 7  # doses of a sequence, at most: each is a volume
FRACTION_COLUMN, UNCERTAINTY_COLUMN, EVENTS_COLUMN = "Fraction", "Uncertainty (Gy)", "Events"
LIMIT_COLUMN = f"{NTCP_LIMIT:.0%} line"
_Plot = slicer.vtkMRMLPlotSeriesNode


@dataclass(frozen=True, eq=False)
class CourseNodes:
    """Nodes of a course.

    Attributes
    ----------
    trajectory : table, a row a fraction.
    charts : of the uncertainty, and of the NTCP where there is one.
    accumulated, daily : sequences of doses; ``browser`` plays both.
    shown : the proxy volumes that the browser moves.
    """

    patient: PatientNodes
    trajectory: Any
    charts: tuple[Any, ...]
    accumulated: Any
    daily: Any
    browser: Any
    shown: tuple[Any, ...]


def show_course(
    scene: Any, result: CourseResult, structure: str | None = None, progress: Progress = silent
) -> CourseNodes:
    """The patient, the trajectory and the simulated doses of a course; ``structure`` is whose NTCP is charted."""
    patient = show_patient(scene, result.projection.patient, part(progress, 0.0, 0.4))
    has_ntcp = any(e.effect == "NTCP" for e in result.records[-1].endpoints)
    shown = chosen_ntcp(result, structure) if has_ntcp else None
    table = _trajectory(scene, result, shown)
    charts, series = [], []
    columns = [(UNCERTAINTY_COLUMN, (0.12, 0.44, 0.55), _Plot.LineStyleSolid)]
    made = _chart(scene, table, "Uncertainty of the dose to come", "Gy", columns)
    charts.append(made[0])
    series += made[1]
    if shown is not None:
        title = f"{shown.structure} NTCP at the end: {shown.endpoint}"
        lines = [
            (_column(shown, "mean"), (0.12, 0.44, 0.55), _Plot.LineStyleSolid),
            (_column(shown, "low"), (0.12, 0.44, 0.55), _Plot.LineStyleDash),
            (_column(shown, "high"), (0.12, 0.44, 0.55), _Plot.LineStyleDash),
            (_column(shown, "true"), (0.71, 0.27, 0.17), _Plot.LineStyleDashDot),
            (LIMIT_COLUMN, (0.2, 0.2, 0.2), _Plot.LineStyleDot),
        ]
        made = _chart(scene, table, title, "%", lines)
        charts.append(made[0])
        series += made[1]
    progress(0.5, "doses of the fractions")
    at = _steps(len(result.daily_gy))
    prescribed = result.projection.patient.plan.prescription.fractions
    highest = highest_prescription_gy(result.projection.patient)
    sums = np.cumsum(result.daily_gy, axis=0, dtype=np.float32)
    accumulated = _sequence(scene, result, "Accumulated dose (simulated)", at, sums, highest)
    daily = _sequence(scene, result, "Dose of the fraction (simulated)", at, result.daily_gy, highest / prescribed)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", scene.GenerateUniqueName("Fractions"))
    browser.SetAndObserveMasterSequenceNodeID(accumulated.GetID())
    browser.AddSynchronizedSequenceNodeID(daily.GetID())
    logic = slicer.modules.sequences.logic()
    logic.UpdateProxyNodesFromSequences(browser)
    browser.SetSelectedItemNumber(len(at) - 1)
    logic.UpdateProxyNodesFromSequences(browser)
    proxies = tuple(browser.GetProxyNode(node) for node in (accumulated, daily))
    folder = folder_item(scene, patient.study, "Course")
    put_under(scene, folder, [table, *charts, *series, accumulated, daily, browser, *proxies])
    return CourseNodes(patient, table, tuple(charts), accumulated, daily, browser, proxies)


def _trajectory(scene: Any, result: CourseResult, shown: Endpoint | None) -> Any:
    records = result.records
    columns: dict[str, Values] = {
        FRACTION_COLUMN: np.array([r.fraction for r in records]),
        UNCERTAINTY_COLUMN: np.round([r.uncertainty_gy for r in records], 3),
        "Innovation (of expected)": np.round([r.innovation_ratio for r in records], 3),
        "Alarm value": np.round([r.alarm_value for r in records], 3),
        EVENTS_COLUMN: tuple("; ".join(r.events) for r in records),
        "Images so far": np.array([r.images for r in records]),
    }
    if shown is not None:
        of = [next((e for e in r.endpoints if e.name == shown.name), None) for r in records]
        for k in ("mean", "low", "high", "true"):
            columns[_column(shown, k)] = np.array([np.nan if e is None else 100 * getattr(e, k) for e in of])
        columns[LIMIT_COLUMN] = np.full(len(records), 100 * NTCP_LIMIT)
    said = f"{result.settings.change.words}. NTCP in %, projected to the end of treatment."
    node = add_table(scene, "Trajectory of the course", Table(columns, said))
    node.SetAttribute(COURSE_ATTRIBUTE, result.settings.policy.name)
    return node


def _column(shown: Endpoint, what: str) -> str:
    words = {"mean": "", "low": ", band low", "high": ", band high", "true": ", simulated truth"}[what]
    return f"{shown.structure} NTCP{words}"


def _chart(
    scene: Any, table: Any, title: str, unit: str, columns: list[tuple[str, tuple[float, float, float], int]]
) -> tuple[Any, list[Any]]:
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", scene.GenerateUniqueName(title.split(":")[0]))
    chart.SetTitle(title)
    chart.SetXAxisTitle(FRACTION_COLUMN)
    chart.SetYAxisTitle(unit)
    chart.SetTitleFontSize(14)
    series = []
    for column, colour, line in columns:
        node = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", scene.GenerateUniqueName(column))
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetXColumnName(FRACTION_COLUMN)
        node.SetYColumnName(column)
        node.SetPlotType(_Plot.PlotTypeScatter)
        node.SetMarkerStyle(_Plot.MarkerStyleNone)
        node.SetLineStyle(line)
        node.SetLineWidth(2)
        node.SetColor(*colour)
        chart.AddAndObservePlotSeriesNodeID(node.GetID())
        series.append(node)
    return chart, series


def _steps(fractions: int) -> list[int]:
    """Fractions to keep, evenly, with the first and the last."""
    return sorted({round(float(k)) for k in np.linspace(1, fractions, min(STEPS, fractions))})


def _sequence(scene: Any, result: CourseResult, name: str, at: list[int], doses: NDArray, highest_gy: float) -> Any:
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GenerateUniqueName(name))
    sequence.SetIndexName(INDEX)
    sequence.SetIndexUnit("")
    for fraction in at:
        volume = result.projection.crop.spread(doses[fraction - 1].astype(np.float32), Quantity.DOSE_GY)
        node = volume_nodes.add_dose(scene, volume, name, highest_gy)
        sequence.SetDataNodeAtValue(node, str(fraction))
        _remove(scene, node)
    return sequence


def _remove(scene: Any, node: Any) -> None:
    """A volume with its display, colour legend and storage."""
    while node.GetNumberOfDisplayNodes():
        scene.RemoveNode(node.GetNthDisplayNode(0))
    scene.RemoveNode(node)
