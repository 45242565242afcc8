"""Click through the Decide panel in the test host, on the small patient with few samples and a high allowed risk.

These tests follow one another in one application: each goes on from where the one before left the scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.outcome import BEFORE, CHANGE
from RTDigitalTwinLib.resources import resource_path
from RTDigitalTwinLib.scene.action_nodes import action_nodes
from RTDigitalTwinLib.scene.table_nodes import words_of_column
from Testing.host.fixtures import skip_where_missing
from Testing.module_walk import column, count_nodes, finish, foregrounds, predict, show_small_patient, texts

skip_where_missing()

import slicer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_goes_unseen")]
CALIBRATED = 16  # the fewest samples whose spread is calibrated


def check_only(module: Any, *candidates: str) -> None:
    """Check these candidates with the mouse and uncheck the others."""
    qt, box = module.python.qt, module.ui.candidatesList
    for row in range(box.count):
        checked = any(words in box.item(row).text() for words in candidates)
        box.item(row).setCheckState(qt.Qt.Checked if checked else qt.Qt.Unchecked)


def lenient_protocol() -> str:
    """The software's own, with one limit far above the cord's dose in place of all, and 50 % of risk."""
    own = resource_path("Protocols", "decision.toml").read_text(encoding="utf-8")
    head = own[: min(own.index("[[target_constraints]]"), own.index("[[constraints]]"))]
    criterion = '{ structures = ["SpinalCord"], metric = "D0.1cc", at_most = 60, unit = "Gy" }'
    limit = f'[[constraints]]\nlabel = "cord"\ncriteria = [{criterion}]\n'
    return head.replace("risk = 0.05 ", "risk = 0.5 ") + limit


def rows(module: Any) -> list[str]:
    table = module.ui.rankingTable
    return [table.item(row, 1).text() for row in range(table.rowCount)]


def table_in_view(scene: Any) -> Any:
    return scene.GetFirstNodeByClass("vtkMRMLTableViewNode").GetTableNode()


def shown_curves(scene: Any) -> Any:
    return scene.GetFirstNodeByClass("vtkMRMLPlotViewNode").GetPlotChartNode()


def test_ranking_waits_for_a_prediction(host: Any, module: Any) -> None:
    ui = module.ui
    show_small_patient(host, module)
    assert not ui.rankButton.enabled and ui.rankButton.toolTip == "Predict the dose first."
    assert not ui.computeActionButton.enabled and ui.computeActionButton.toolTip == "Rank the actions first."
    with pytest.raises(SceneError, match="no prediction"):
        module.logic.recommend()
    predict(host, module, samples=2)
    assert ui.rankButton.enabled
    check_only(module)
    assert not ui.rankButton.enabled and "at least one action" in ui.rankButton.toolTip


def test_abstention_is_shown_with_what_stands_in_the_way(host: Any, module: Any) -> None:
    ui, scene = module.ui, host.scene
    check_only(module, "0.95", "1.05")
    present = module.widget.parameters.prediction
    ui.riskSpinBox.value = 50
    ui.decideSamplesSpinBox.value = 2
    before = count_nodes(scene)
    ui.rankButton.click()
    assert not ui.rankButton.enabled and "Wait for the computation" in ui.rankButton.toolTip
    finish(host, module)
    assert host.dialogs.messages == []
    assert count_nodes(scene) == before + 1  # the table alone
    assert ui.decidedLabel.text.startswith("No recommendation: none of 3 actions is acceptable. The nearest is ")
    assert "so nothing can be certified" in ui.decidedLabel.text
    ranking = module.widget.twin.ranking
    assert (
        sorted(rows(module)) == ["keep", "scale by 0.95", "scale by 1.05"] == sorted(words_of_column(ranking, "Action"))
    )
    assert set(words_of_column(ranking, "Outcome")) == {"✗ not certified"}
    assert "violated in" in ranking.GetTable().GetColumnByName("Reasons").GetValue(0)
    assert table_in_view(scene) is ranking and foregrounds(scene) == {"Predicted dose"}
    assert module.widget.twin.outcome.mean is present and ui.shownActionLabel.text == "In view: the present dose"
    assert "0 of 5 samples; spread not calibrated" in words_of_column(ranking, "Violated in")


def test_the_recommended_action_comes_with_its_dose(host: Any, module: Any, kept: Path) -> None:
    ui, scene = module.ui, host.scene
    present = module.widget.twin.outcome
    check_only(module, "0.95", "1.05", "Plan anew")
    ui.actionKindComboBox.setCurrentIndex(0)
    assert "PTV_7000" not in texts(ui.actionStructureComboBox)
    ui.actionStructureComboBox.setCurrentIndex(texts(ui.actionStructureComboBox).index("Parotid_L"))
    ui.addActionButton.click()
    assert ui.candidatesList.item(ui.candidatesList.count - 1).text() == "Spare Parotid_L"
    ui.decideSamplesSpinBox.value = CALIBRATED
    (kept / "protocol.toml").write_text(lenient_protocol())
    ui.protocolFileLineEdit.setCurrentPath(str(kept / "protocol.toml"))
    assert not ui.riskSpinBox.enabled and ui.riskSpinBox.toolTip == "The protocol file says it."
    ui.rankButton.click()
    finish(host, module)
    assert host.dialogs.messages == []
    ranking, shown = module.widget.twin.ranking, module.widget.twin.shown
    best = rows(module)[0]
    assert words_of_column(ranking, "Outcome")[0] == "★ recommended"
    assert ui.decidedLabel.text.startswith(f"Recommended: {best}")
    assert set(rows(module)) == {
        "keep", "scale by 0.95", "scale by 1.05", "replan", "spare Parotid_L by at most 10 %",
    }  # fmt: skip
    utility = column(ranking, "Utility")
    acceptable = [not words.startswith("✗") for words in words_of_column(ranking, "Outcome")]
    assert (np.diff(utility[: sum(acceptable)]) <= 0).all() and acceptable == sorted(acceptable, reverse=True)
    assert shown.mean is not present.mean and shown.mean.GetAttribute("RTDigitalTwin.Action") == best
    assert {BEFORE, CHANGE} <= set(shown.volumes) and foregrounds(scene) == {f"Dose with action {best}"}
    assert "Dose if nothing is changed" in texts(ui.overlayComboBox)
    assert shown_curves(scene) is shown.chart and "if nothing is changed" in shown.chart.GetTitle()
    assert shown.goals is not None and table_in_view(scene) is ranking
    assert ui.rankingTable.item(0, 7).text() == words_of_column(ranking, "Reasons")[0]
    change, before, now = (slicer.util.arrayFromVolume(shown.volumes[role]) for role in (CHANGE, BEFORE, "mean"))
    assert np.abs(now - before - change).max() < 1e-3 and np.abs(change).max() > 0.5


def test_another_action_is_computed_and_shown_by_its_row(host: Any, module: Any) -> None:
    ui, scene, twin = module.ui, host.scene, module.widget.twin
    at = rows(module).index("scale by 0.95")
    ui.rankingTable.selectRow(at)
    host.process_events()
    assert ui.computeActionButton.enabled
    ui.computeActionButton.click()
    finish(host, module)
    assert host.dialogs.messages == []
    shown = twin.shown
    assert foregrounds(scene) == {"Dose with action scale by 0.95"} and twin.ranking.GetNumberOfRows() == 5
    now, before = (slicer.util.arrayFromVolume(shown.volumes[role]) for role in ("mean", BEFORE))
    assert np.abs(now - 0.95 * before).max() < 0.05  # half precision of the samples
    first = column(shown.series[0].GetTableNode(), "Volume"), column(shown.series[0].GetTableNode(), "Volume before")
    assert (first[0] <= first[1] + 1e-6).mean() > 0.9  # less dose
    best = rows(module)[0]
    ui.rankingTable.selectRow(0)
    host.process_events()
    assert foregrounds(scene) == {f"Dose with action {best}"}  # at once: it is in the scene
    assert not ui.computeActionButton.enabled and "selecting its row" in ui.computeActionButton.toolTip
    ui.presentDoseButton.click()
    host.process_events()
    assert foregrounds(scene) == {"Predicted dose"} and not ui.presentDoseButton.enabled


def test_a_saved_ranking_goes_on(host: Any, module: Any, kept: Path) -> None:
    ui, scene = module.ui, host.scene
    ranked, decided = rows(module), ui.decidedLabel.text
    module.logic.saveScene(kept / "decided.mrb")
    host.close_scene()
    assert ui.rankingTable.rowCount == 0 and ui.decidedLabel.text == ""
    host.load_mrb(kept / "decided.mrb")
    assert rows(module) == ranked and ui.decidedLabel.text == decided
    assert ui.candidatesList.item(ui.candidatesList.count - 1).text() == "Spare Parotid_L"
    mean = module.widget.parameters.prediction
    assert mean.GetName() == "Predicted dose"
    assert action_nodes(scene, mean, "scale by 0.95") is not None
    ui.rankingTable.selectRow(ranked.index("scale by 0.95"))
    host.process_events()
    assert foregrounds(scene) == {"Dose with action scale by 0.95"}


def test_files_stand_in_for_the_choices(host: Any, module: Any, kept: Path) -> None:
    ui = module.ui
    (kept / "actions.toml").write_text('[[action]]\nkind = "spare"\nstructure = "PTV_7000"\n')
    ui.actionsFileLineEdit.setCurrentPath(str(kept / "nowhere.toml"))
    assert not ui.rankButton.enabled and ui.rankButton.toolTip == "There is no file nowhere.toml."
    ui.actionsFileLineEdit.setCurrentPath(str(kept / "actions.toml"))
    assert not ui.candidatesList.enabled and ui.candidatesList.toolTip == "The file of actions says it."
    ranked = rows(module)
    ui.rankButton.click()
    finish(host, module)
    (box,) = host.dialogs.errors
    assert "PTV_7000 is a target, which cannot be spared" in box.text and str(kept) not in box.text
    assert rows(module) == ranked  # the scene is as it was
    ui.actionsFileLineEdit.setCurrentPath("")
    assert ui.candidatesList.enabled


def test_a_new_prediction_ends_the_ranking(host: Any, module: Any) -> None:
    scene = host.scene
    predict(host, module, samples=2)
    assert host.dialogs.messages == []
    assert rows(module) == [] and module.widget.parameters.shownAction == ""
    names = [scene.GetNthNode(k).GetName() for k in range(count_nodes(scene))]
    assert not any(name.startswith(("Dose with action", "Ranking")) for name in names)
    assert sum(name.startswith("Clinical goals") for name in names) == 1  # the new prediction's own
    assert foregrounds(scene) == {module.widget.parameters.prediction.GetName()}
