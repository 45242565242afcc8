"""Click through the Course panel in the test host: a short simulated course of the small patient.

These tests follow one another in one application: each goes on from where the one before left the scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from RTDigitalTwinLib.scene.table_nodes import words_of_column
from Testing.host.fixtures import skip_where_missing
from Testing.module_walk import column, count_nodes, finish, foregrounds, show_small_patient, texts

skip_where_missing()

import slicer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_goes_unseen")]
FRACTIONS, SHIFT_AT = 4, 3


def run_course(host: Any, module: Any) -> Any:
    """Click through a course; returns its nodes."""
    ui = module.ui
    ui.samplesSpinBox.value = 4
    ui.courseFractionsSpinBox.value = FRACTIONS
    ui.shiftAtSpinBox.value = SHIFT_AT
    ui.shiftPosteriorSpinBox.value = 8
    ui.policyComboBox.setCurrentIndex(texts(ui.policyComboBox).index("After every five fractions"))
    ui.runCourseButton.click()
    assert not ui.runCourseButton.enabled
    finish(host, module)
    return module.widget.twin.course


def test_a_course_needs_a_dose_to_deliver(host: Any, module: Any) -> None:
    ui = module.ui
    assert not ui.runCourseButton.enabled and not ui.fractionSlider.enabled
    assert ui.courseSimulatedLabel.text.startswith("Simulated:")
    nodes = show_small_patient(host, module)
    ui.doseSelector.setCurrentNode(None)
    host.process_events()
    assert not ui.runCourseButton.enabled and "Choose the reference dose" in ui.runCourseButton.toolTip
    ui.doseSelector.setCurrentNode(nodes.reference_dose)
    host.process_events()
    assert ui.runCourseButton.enabled


def test_a_course_lands_in_the_scene(host: Any, module: Any) -> None:
    ui, scene = module.ui, host.scene
    course = run_course(host, module)
    assert host.dialogs.messages == []
    assert column(course.trajectory, "Fraction").tolist() == [1, 2, 3, 4]
    assert column(course.trajectory, "Uncertainty (Gy)").min() > 0
    assert "simulated: shift 0, 8, -3 mm" in course.trajectory.GetDescription()
    assert "from fraction 3 on. 4 fractions: recalibrated 0 times" in ui.courseSummaryLabel.text
    assert scene.GetFirstNodeByClass("vtkMRMLTableViewNode").GetTableNode() is course.trajectory
    assert texts(ui.courseChartComboBox)[0] == "Uncertainty of the dose to come" and len(course.charts) == 2
    assert "Parotid_L NTCP at the end" in course.charts[1].GetTitle()
    view = scene.GetFirstNodeByClass("vtkMRMLPlotViewNode")
    assert view.GetPlotChartNode() is course.charts[1]
    ui.courseChartComboBox.setCurrentIndex(0)
    assert view.GetPlotChartNode() is course.charts[0]
    low, mean, high = (
        column(course.trajectory, f"Parotid_L NTCP{words}") for words in (", band low", "", ", band high")
    )
    assert (low <= mean).all() and (mean <= high).all()


def test_the_slider_plays_the_doses(host: Any, module: Any) -> None:
    ui, scene = module.ui, host.scene
    course = module.widget.twin.course
    assert course.fractions == (1, 2, 3, 4) and ui.fractionSlider.maximum == 3
    assert ui.fractionSlider.value == 3 and ui.fractionValueLabel.text == "4"
    accumulated, daily = course.shown
    assert foregrounds(scene) == {accumulated.GetName()}
    last = np.array(slicer.util.arrayFromVolume(accumulated))
    ui.fractionSlider.setValue(0)
    host.process_events()
    assert course.browser.GetSelectedItemNumber() == 0 and ui.fractionValueLabel.text == "1"
    first = np.array(slicer.util.arrayFromVolume(accumulated))
    # After one fraction what was accumulated is that fraction's dose, about a 35th of 70 Gy.
    assert np.array_equal(first, slicer.util.arrayFromVolume(daily)) and first.max() == pytest.approx(2, abs=0.2)
    assert last.max() == pytest.approx(4 * first.max(), rel=0.1)
    colours = accumulated.GetDisplayNode().GetColorNode()
    assert colours is not None and colours.GetName() != "Grey"  # painted as doses are
    ui.courseDoseComboBox.setCurrentIndex(2)
    assert foregrounds(scene) == {daily.GetName()}


def test_a_saved_course_is_found_again_and_triggers_are_listed(host: Any, module: Any, tmp_path: Path) -> None:
    ui = module.ui
    trajectory = words_of_column(module.widget.twin.course.trajectory, "Uncertainty (Gy)")
    module.logic.saveScene(tmp_path / "course.mrb")
    host.close_scene()
    assert ui.courseSummaryLabel.text == "" and not ui.fractionSlider.enabled
    host.load_mrb(tmp_path / "course.mrb")
    course = module.widget.twin.course
    assert words_of_column(course.trajectory, "Uncertainty (Gy)") == trajectory
    assert ui.fractionSlider.maximum == 3 and ui.courseFractionsSpinBox.value == FRACTIONS
    before, browser = count_nodes(host.scene), course.browser
    course = module.logic.simulateCourse(fractions=FRACTIONS, shift_at=0, policy="scheduled", every=2, samples=4)
    host.process_events()
    assert not host.scene.IsNodePresent(browser) and count_nodes(host.scene) <= before  # nothing of it is left
    assert words_of_column(course.triggers, "Fraction") == ["2", "4"]
    assert [ui.triggersTable.item(r, 0).text() for r in range(ui.triggersTable.rowCount)] == ["2", "4"]
    assert "recalibrated" in ui.triggersTable.item(0, 1).text()
    assert ui.triggersTable.item(0, 2).text().startswith("every 2 fractions")
    assert "no change came" in ui.courseSummaryLabel.text
