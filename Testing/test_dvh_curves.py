"""Which curves the chart of histograms shows, and what its legend lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from RTDigitalTwinLib.errors import SceneError
from Testing.builders import hand_made_ensemble, small_patient
from Testing.host.fixtures import skip_where_missing

skip_where_missing()

import slicer  # noqa: E402

from RTDigitalTwinLib.outcome import Outcome  # noqa: E402
from RTDigitalTwinLib.report.outcomes import outcome_of  # noqa: E402
from RTDigitalTwinLib.report.tables import Findings  # noqa: E402
from RTDigitalTwinLib.scene.bundle import load_mrb, save_mrb  # noqa: E402
from RTDigitalTwinLib.scene.dvh_curves import (  # noqa: E402
    ALL,
    CHOSEN,
    VISIBLE,
    WITH_GOALS,
    CurveChoice,
    chosen_structures,
    show_curves,
    shown_curves,
)
from RTDigitalTwinLib.scene.outcome_nodes import OutcomeNodes, add_outcome, find_outcome  # noqa: E402
from RTDigitalTwinLib.scene.session import headless_session  # noqa: E402
from RTDigitalTwinLib.scene.twin_in_view import TwinInView  # noqa: E402
from RTDigitalTwinLib.scene.twin_nodes import study_of  # noqa: E402
from RTDigitalTwinLib.scene.twin_patient import confirm_names, show_loaded  # noqa: E402

STRUCTURES = ("PTV_7000", "SpinalCord", "Parotid_R", "Parotid_L")


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    patient = small_patient()
    return outcome_of(Findings(hand_made_ensemble(patient)))


@pytest.fixture
def scene() -> Iterator[Any]:
    with headless_session() as session:
        yield session.scene


@pytest.fixture
def nodes(scene: Any, outcome: Outcome) -> OutcomeNodes:
    shown = show_loaded(scene, small_patient())
    return add_outcome(
        scene, outcome, shown.ct, shown.segmentation, shown.reference_dose, study_of(scene, shown.ct)
    ).nodes


def names_in(chart: Any) -> list[str]:
    return [chart.GetNthPlotSeriesNode(k).GetName() for k in range(chart.GetNumberOfPlotSeriesNodes())]


def legend_rows(chart: Any) -> int:
    """How many plots VTK's legend lists: it grows by as much with every one."""
    from vtkmodules.vtkRenderingContext2D import vtkContext2D  # noqa: F401 (the legend's painter)
    from vtkmodules.vtkViewsContext2D import vtkContextView

    from RTDigitalTwinLib.scene.rendering import offscreen_window
    from Testing.host.views import chart_of, pixels

    view, window = vtkContextView(), offscreen_window()
    window.SetSize(600, 500)
    view.SetRenderWindow(window)
    drawn = chart_of(chart)
    view.GetScene().AddItem(drawn)
    pixels(window)
    legend = drawn.GetLegend()
    height = legend.GetBoundingRect(view.GetContext()).GetHeight()
    window.Finalize()
    return int(height)


def test_a_chart_begins_with_what_goals_are_about(nodes: Any) -> None:
    assert shown_curves(nodes) == dict.fromkeys(STRUCTURES, {"mean", "band"})
    for row in range(nodes.goals.GetTable().GetNumberOfRows()):  # no goal is about the right parotid any more
        goal = nodes.goals.GetTable().GetValueByName(row, "Goal").ToString()
        nodes.goals.GetTable().SetValueByName(row, "Goal", goal.replace("Parotid_R", "Parotid_R2"))
    assert chosen_structures(nodes, CurveChoice()) == ["PTV_7000", "SpinalCord", "Parotid_L"]
    without = replace(nodes, goals=None)
    assert chosen_structures(without, CurveChoice()) == list(STRUCTURES)


def test_each_kind_comes_and_goes_and_the_title_says_so(nodes: Any) -> None:
    show_curves(nodes, CurveChoice(ALL, band=False, reference=True))
    assert shown_curves(nodes) == dict.fromkeys(STRUCTURES, {"mean", "reference"})
    assert nodes.chart.GetTitle() == "Cumulative DVH, mean of 8 samples\ndotted: reference plan"
    show_curves(nodes, CurveChoice(CHOSEN, ("Parotid_L", "nobody"), level=0.5))
    assert shown_curves(nodes) == {"Parotid_L": {"mean", "band"}}
    assert "dashed: sampled 50 % band (not calibrated)" in nodes.chart.GetTitle()
    columns = {nodes.chart.GetNthPlotSeriesNode(k).GetYColumnName() for k in range(3)}
    assert columns == {"Volume", "Volume 50 % band low", "Volume 50 % band high"}
    show_curves(nodes, CurveChoice(ALL))
    assert {one.GetYColumnName() for one in nodes.series} == {
        "Volume", "Volume band low", "Volume band high", "Volume reference",
    }  # fmt: skip


def test_curves_follow_the_segments_in_view(nodes: Any) -> None:
    visible = CurveChoice(VISIBLE)
    assert chosen_structures(nodes, visible) == list(STRUCTURES)
    display, segmentation = nodes.segmentation.GetDisplayNode(), nodes.segmentation.GetSegmentation()
    display.SetSegmentVisibility("SpinalCord", False)
    assert chosen_structures(nodes, visible) == ["PTV_7000", "Parotid_R", "Parotid_L"]
    segmentation.GetSegment("Parotid_L").SetName("Parotide gauche")
    confirm_names(nodes.segmentation, {"Parotide gauche": "Parotid_L"})
    assert chosen_structures(nodes, visible) == ["PTV_7000", "Parotid_R", "Parotid_L"]
    display.SetVisibility(False)
    assert chosen_structures(nodes, visible) == []


def test_the_legend_lists_a_structure_once(nodes: Any) -> None:
    show_curves(nodes, CurveChoice(CHOSEN, ("PTV_7000",), band=False))
    one = legend_rows(nodes.chart)
    show_curves(nodes, CurveChoice(CHOSEN, ("PTV_7000",), reference=True))
    assert nodes.chart.GetNumberOfPlotSeriesNodes() == 4 and legend_rows(nodes.chart) == one
    nodes.chart.GetNthPlotSeriesNode(1).SetName("PTV_7000 low")  # that a name would have made a row
    assert legend_rows(nodes.chart) > one
    show_curves(nodes, CurveChoice(ALL))
    assert names_in(nodes.chart) == [*STRUCTURES, *[""] * 8]


def test_names_are_mended_where_reading_a_scene_gave_some(nodes: Any, tmp_path: Path) -> None:
    show_curves(nodes, CurveChoice(CHOSEN, ("SpinalCord",), reference=True))
    scene = nodes.mean.GetScene()
    path = save_mrb(scene, tmp_path / "one.mrb")
    assert scene.ReadFromMRB(str(path), True, slicer.vtkMRMLMessageCollection())
    read = find_outcome(scene, scene.GetFirstNode("Predicted dose"))
    assert "" not in names_in(read.chart)  # Slicer's own way, which the next line mends
    show_curves(read, CurveChoice(CHOSEN, ("SpinalCord",), reference=True))
    assert names_in(read.chart) == ["SpinalCord", "", "", ""]
    load_mrb(path, scene)
    read = find_outcome(scene, scene.GetFirstNode("Predicted dose"))
    assert names_in(read.chart) == ["SpinalCord", "", "", ""] and shown_curves(read) == {
        "SpinalCord": {"mean", "band", "reference"}
    }


def test_a_chart_with_nothing_new_is_left_alone(nodes: Any) -> None:
    before = nodes.chart.GetMTime()
    show_curves(nodes, CurveChoice())
    assert nodes.chart.GetMTime() == before


def test_what_there_is_not_is_refused(scene: Any, nodes: Any) -> None:
    with pytest.raises(SceneError, match="no curves of 'some'"):
        CurveChoice("some")
    with pytest.raises(SceneError, match=r"no band at 0\.7"):
        CurveChoice(level=0.7)
    twin = TwinInView(scene)
    with pytest.raises(SceneError, match="no curve of Parotid") as refused:
        twin.show_curves(CurveChoice(CHOSEN, ("PTV_7000", "Parotid")))
    assert "SpinalCord" in refused.value.remedy and twin.curves == CurveChoice()
    twin.show_curves(CurveChoice(CHOSEN, ("PTV_7000",), band=False))
    twin.show()
    assert shown_curves(nodes) == {"PTV_7000": {"mean"}}
    nodes.mean.GetScene().RemoveNode(nodes.chart)
    with pytest.raises(SceneError, match="no chart"):
        twin.show_curves(CurveChoice(WITH_GOALS))
