"""A course in the scene: its trajectory as table and charts, and the doses of its fractions as sequences to play.

The sequence browser stands for a course: it refers to its tables, charts and sequences, and to the CT it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import slicer

from RTDigitalTwinLib.course_outcome import BAND, FRACTION_COLUMN, LIMIT, TRUTH, TWIN, CourseChart, CourseOutcome
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.scene import volume_nodes
from RTDigitalTwinLib.scene.hierarchy import folder_item, hierarchy, put_under
from RTDigitalTwinLib.scene.isodose_nodes import show_isodoses_of
from RTDigitalTwinLib.scene.outcome_nodes import OVERLAY_OPACITY, show_over_ct
from RTDigitalTwinLib.scene.patient_nodes import show_patient
from RTDigitalTwinLib.scene.table_nodes import add_table

if TYPE_CHECKING:
    from RTDigitalTwinLib.course_record import CourseResult

COURSE_ATTRIBUTE, SUMMARY_ATTRIBUTE = "RTDigitalTwin.Course", "RTDigitalTwin.Summary"
INDEX = "fraction"
_CT, _TRAJECTORY, _TRIGGERS, _CHART, _SERIES, _ACCUMULATED, _DAILY = (
    f"RTDigitalTwin.{role}" for role in ("ct", "trajectory", "triggers", "chart", "series", "accumulated", "daily")
)
_Plot = slicer.vtkMRMLPlotSeriesNode
_STYLES = {
    TWIN: ((0.12, 0.44, 0.55), _Plot.LineStyleSolid),
    BAND: ((0.12, 0.44, 0.55), _Plot.LineStyleDash),
    TRUTH: ((0.71, 0.27, 0.17), _Plot.LineStyleDashDot),
    LIMIT: ((0.2, 0.2, 0.2), _Plot.LineStyleDot),
}


@dataclass(frozen=True, eq=False)
class CourseNodes:
    """Nodes of a course, any of which but the browser may have been deleted since.

    Attributes
    ----------
    browser : plays both sequences.
    trajectory, triggers : tables: a row a fraction; a row for each fraction after which something was done.
    charts : of the uncertainty, and of the NTCP where there is one.
    series : their curves.
    accumulated, daily : sequences of doses.
    """

    browser: Any
    ct: Any | None
    trajectory: Any | None
    triggers: Any | None
    charts: tuple[Any, ...]
    series: tuple[Any, ...]
    accumulated: Any | None
    daily: Any | None

    @property
    def shown(self) -> tuple[Any, ...]:
        """The proxy volumes that the browser moves: accumulated, then daily."""
        sequences = (node for node in (self.accumulated, self.daily) if node is not None)
        return tuple(self.browser.GetProxyNode(node) for node in sequences)

    @property
    def fractions(self) -> tuple[int, ...]:
        """That there are doses of."""
        if self.accumulated is None:
            return ()
        count = self.accumulated.GetNumberOfDataNodes()
        return tuple(int(self.accumulated.GetNthIndexValue(k)) for k in range(count))


def show_course(
    scene: Any, result: CourseResult, structure: str | None = None, progress: Progress = silent
) -> CourseNodes:
    """The patient, the trajectory and the simulated doses of a course; ``structure`` is whose NTCP is charted."""
    from RTDigitalTwinLib.report.course_outcomes import course_outcome_of

    patient = show_patient(scene, result.projection.patient, part(progress, 0.0, 0.4))
    progress(0.5, "doses of the fractions")
    return add_course(scene, course_outcome_of(result, structure), patient.ct, patient.study)


def add_course(scene: Any, outcome: CourseOutcome, ct: Any, study: int) -> CourseNodes:
    """Add everything of a course; what was added is taken away again where something goes wrong on the way."""
    before = {scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())}
    folder = folder_item(scene, study, "Course")
    try:
        return _added(scene, outcome, ct, folder)
    except BaseException:
        for node in [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]:
            if node not in before and node is not None:
                scene.RemoveNode(node)
        hierarchy(scene).RemoveItem(folder)
        raise


def _added(scene: Any, outcome: CourseOutcome, ct: Any, folder: int) -> CourseNodes:
    table = add_table(scene, "Trajectory of the course", outcome.trajectory)
    table.SetAttribute(COURSE_ATTRIBUTE, outcome.policy)
    triggers = add_table(scene, "Triggers of the course", outcome.triggers)
    charts, series = [], []
    for one in outcome.charts:
        chart, curves = _chart(scene, table, one)
        charts.append(chart)
        series += curves
    highest = outcome.highest_gy
    accumulated = _sequence(scene, "Accumulated dose (simulated)", outcome.accumulated, highest)
    daily = _sequence(scene, "Dose of the fraction (simulated)", outcome.daily, highest / outcome.prescribed)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", scene.GenerateUniqueName("Fractions"))
    browser.SetAndObserveMasterSequenceNodeID(accumulated.GetID())
    browser.AddSynchronizedSequenceNodeID(daily.GetID())
    browser.SetAttribute(COURSE_ATTRIBUTE, outcome.policy)
    browser.SetAttribute(SUMMARY_ATTRIBUTE, outcome.summary)
    referred = {_CT: ct, _TRAJECTORY: table, _TRIGGERS: triggers, _ACCUMULATED: accumulated, _DAILY: daily}
    for role, node in referred.items():
        browser.SetNodeReferenceID(role, node.GetID())
    for role, nodes in ((_CHART, charts), (_SERIES, series)):
        for node in nodes:
            browser.AddNodeReferenceID(role, node.GetID())
    logic = slicer.modules.sequences.logic()
    logic.UpdateProxyNodesFromSequences(browser)
    select_fraction(browser, len(outcome.accumulated) - 1)
    found = course_of(browser)
    for proxy, highest_gy in zip(found.shown, (highest, highest / outcome.prescribed), strict=True):
        volume_nodes.paint_dose(proxy, highest_gy)  # a browser dresses its volumes in grey
    put_under(scene, folder, [table, triggers, *charts, *series, accumulated, daily, browser, *found.shown])
    return found


def course_of(browser: Any) -> CourseNodes:
    """The nodes of a course, such as after a scene was read; deleted ones are None."""
    charts, series = (
        tuple(browser.GetNthNodeReference(role, k) for k in range(browser.GetNumberOfNodeReferences(role)))
        for role in (_CHART, _SERIES)
    )
    return CourseNodes(
        browser,
        browser.GetNodeReference(_CT),
        browser.GetNodeReference(_TRAJECTORY),
        browser.GetNodeReference(_TRIGGERS),
        tuple(node for node in charts if node is not None),
        tuple(node for node in series if node is not None),
        browser.GetNodeReference(_ACCUMULATED),
        browser.GetNodeReference(_DAILY),
    )


def find_course(scene: Any, ct: Any) -> CourseNodes | None:
    """The latest course of a CT's patient; None where there is none."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
    browsers = [scene.GetNthNodeByClass(k, "vtkMRMLSequenceBrowserNode") for k in range(count)]
    own = [node for node in browsers if node.GetAttribute(COURSE_ATTRIBUTE) and node.GetNodeReference(_CT) is ct]
    return course_of(own[-1]) if own else None


def select_fraction(browser: Any, item: int) -> None:
    """Let the browser's volumes be those of an item of its sequences, from 0."""
    browser.SetSelectedItemNumber(item)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)


def show_course_dose(scene: Any, nodes: CourseNodes, which: int, opacity: float = OVERLAY_OPACITY) -> None:
    """Lay the accumulated dose (0) or that of the fraction (1) over the CT."""
    if which < len(nodes.shown):
        show_isodoses_of(scene)  # they are of another dose
        show_over_ct(scene, nodes.ct, nodes.shown[which], opacity)


def show_course_chart(scene: Any, chart: Any) -> None:
    """A chart in every plot view."""
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLPlotViewNode")):
        scene.GetNthNodeByClass(index, "vtkMRMLPlotViewNode").SetPlotChartNodeID(chart.GetID())


def remove_course(scene: Any, nodes: CourseNodes) -> None:
    """Take away everything of a course; its patient stays."""
    tree = hierarchy(scene)
    folder = tree.GetItemParent(tree.GetItemByDataNode(nodes.browser))
    proxies, sequences = nodes.shown, (nodes.accumulated, nodes.daily)
    scene.RemoveNode(nodes.browser)  # first: it makes its volumes anew
    for node in (*nodes.charts, *nodes.series, nodes.trajectory, nodes.triggers, *sequences):
        if node is not None and scene.IsNodePresent(node):
            storage = node.GetStorageNode() if node.IsA("vtkMRMLStorableNode") else None
            scene.RemoveNode(node)
            if storage is not None:
                scene.RemoveNode(storage)
    for proxy in proxies:
        if proxy is not None and scene.IsNodePresent(proxy):
            _remove(scene, proxy)
    if folder and tree.GetItemLevel(folder) == "Folder" and not tree.GetNumberOfItemChildren(folder):
        tree.RemoveItem(folder)


def _chart(scene: Any, table: Any, told: CourseChart) -> tuple[Any, list[Any]]:
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", scene.GenerateUniqueName(told.title.split(":")[0]))
    chart.SetTitle(told.title)
    chart.SetXAxisTitle(FRACTION_COLUMN)
    chart.SetYAxisTitle(told.unit)
    chart.SetTitleFontSize(14)
    series = []
    for column, kind in told.curves:
        colour, line = _STYLES[kind]
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


def _sequence(scene: Any, name: str, doses: Mapping[int, Volume], highest_gy: float) -> Any:
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", scene.GenerateUniqueName(name))
    sequence.SetIndexName(INDEX)
    sequence.SetIndexUnit("")
    for fraction, volume in doses.items():
        node = volume_nodes.add_dose(scene, volume, name, highest_gy)
        sequence.SetDataNodeAtValue(node, str(fraction))
        _remove(scene, node)
    return sequence


def _remove(scene: Any, node: Any) -> None:
    """A volume with its display, colour legend and storage."""
    displays = [node.GetNthDisplayNode(k) for k in range(node.GetNumberOfDisplayNodes())]
    for display in displays:
        if display is not None:
            scene.RemoveNode(display)
    scene.RemoveNode(node)
