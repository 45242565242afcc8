"""Click through every panel of the module in the test host, in the order of work, on a small patient.

These tests follow one another in one application: each goes on from where the one before left the scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.outcome import BEFORE, CHANGE, DIFFERENCE, MEAN, STD
from RTDigitalTwinLib.scene.dvh_curves import shown_curves
from RTDigitalTwinLib.scene.table_nodes import words_of_column
from Testing.host.fixtures import skip_where_missing
from Testing.module_walk import (
    column,
    count_nodes,
    finish,
    foregrounds,
    predict,
    show_small_patient,
    texts,
)

skip_where_missing()

import slicer  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_goes_unseen")]
CSV = """patient,kind,structure,metric,value,unit,days,fraction,fractions,noise_ratio,noise_floor,source
small-patient,metric,SpinalCord,mean,2.0,Gy,0,1,1,0.02,0.02,film
"""


def chart_of(scene: Any) -> Any:
    return scene.GetFirstNodeByClass("vtkMRMLPlotViewNode").GetPlotChartNode()


def checked(module: Any) -> list[str]:
    box, is_checked = module.ui.dvhStructuresList, module.python.qt.Qt.Checked
    items = [box.item(row) for row in range(box.count)]
    return [item.text() for item in items if item.checkState() == is_checked]


def test_every_button_that_cannot_be_used_says_why(module: Any) -> None:
    ui = module.ui
    for button, reason in {
        ui.loadFolderButton: "Choose the patient's folder first.",
        ui.predictButton: "Choose the planning CT, or load a patient: structures and dose alone are not enough.",
        ui.observeButton: "Choose the planning CT, or load a patient: structures and dose alone are not enough.",
        ui.undoButton: "Nothing was observed yet.",
        ui.writeReportButton: "Predict the dose first.",
        ui.confirmButton: "There are no structures yet.",
    }.items():
        assert not button.enabled and button.toolTip == reason


def test_nodes_of_the_scene_are_a_patient(host: Any, module: Any) -> None:
    nodes = show_small_patient(host, module)
    ui = module.ui
    assert module.widget.parameters.ct is nodes.ct and module.widget.parameters.referenceDose is nodes.reference_dose
    rows = {ui.structureTable.item(r, 0).text(): ui.structureTable.item(r, 3).text() for r in range(5)}
    assert rows == dict.fromkeys((*nodes.patient.structures, "FeasibleDose"), "confirmed")
    assert not ui.fractionsSpinBox.enabled and "35 fractions" in ui.fractionsSpinBox.toolTip
    assert "small-patient" in ui.patientNotesLabel.text
    assert ui.predictButton.enabled


def test_a_prediction_lands_in_the_scene(host: Any, module: Any) -> None:
    ui, scene = module.ui, host.scene
    ui.samplesSpinBox.value = 4
    ui.predictButton.click()
    assert module.widget.task.isRunning and not ui.predictButton.enabled
    assert ui.predictButton.toolTip == "Wait for the computation under way, or cancel it."
    assert not ui.taskWidget.isHidden() and ui.cancelButton.enabled
    before = count_nodes(scene)
    host.wait_until(lambda: "sample" in ui.taskLabel.text or not module.widget.task.isRunning, 240)
    assert count_nodes(scene) == before or not module.widget.task.isRunning  # all at once
    finish(host, module)
    mean = module.widget.parameters.prediction
    assert host.dialogs.messages == [] and ui.taskWidget.isHidden() and "done in" in ui.taskLabel.text
    assert mean.GetAttribute("DicomRtImport.DoseVolume") == "1" and mean.GetAttribute("RTDigitalTwin.Samples") == "4"
    nodes = module.widget.twin.outcome
    assert set(nodes.volumes) == {MEAN, STD, DIFFERENCE, "absolute difference"}
    assert "unlike those the network was trained on" in ui.notesLabel.text
    assert "not calibrated" in ui.bandsLabel.text
    assert foregrounds(scene) == {"Predicted dose"}
    assert chart_of(scene) is nodes.chart
    assert scene.GetFirstNodeByClass("vtkMRMLTableViewNode").GetTableNode() is nodes.goals
    layout = slicer.app.layoutManager()
    assert layout.sliceViewNames() == ["Red", "Green", "Yellow"] or set(layout.sliceViewNames()) == {
        "Red",
        "Green",
        "Yellow",
    }
    assert (layout.threeDViewCount, layout.plotViewCount, layout.tableViewCount) == (1, 1, 1)


def test_overlays_are_switched_and_dressed(host: Any, module: Any) -> None:
    ui, scene, nodes = module.ui, host.scene, module.widget.twin.outcome
    offered = texts(ui.overlayComboBox)
    assert offered[0] == "Predicted dose (mean)" and "Reference dose" in offered and "Sampled spread" in offered[1]
    for index in range(ui.overlayComboBox.count):
        ui.overlayComboBox.setCurrentIndex(index)
        host.process_events()
        expected = [*nodes.volumes.values(), nodes.reference_dose][index]
        assert foregrounds(scene) == {expected.GetName()}
    ui.overlayComboBox.setCurrentIndex(0)
    ui.opacitySlider.value = 0.25
    host.process_events()
    assert scene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode").GetForegroundOpacity() == pytest.approx(0.25)
    ui.thresholdSlider.value = 50
    host.process_events()
    assert nodes.mean.GetDisplayNode().GetLowerThreshold() == pytest.approx(35)  # Gy of 70
    assert all(model.GetDisplayNode().GetVisibility() for model in nodes.models)
    ui.isodosesCheckBox.checked = False
    ui.legendCheckBox.checked = False
    host.process_events()
    assert not any(model.GetDisplayNode().GetVisibility() for model in nodes.models)
    assert not slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(nodes.mean).GetVisibility()
    ui.isodosesCheckBox.checked = ui.legendCheckBox.checked = True
    ui.thresholdSlider.value = 10


def test_the_chart_shows_what_is_checked(host: Any, module: Any) -> None:
    ui, nodes, chosen = module.ui, module.widget.twin.outcome, module.widget.parameters
    everyone = ["PTV_7000", "SpinalCord", "Parotid_R", "Parotid_L"]
    assert shown_curves(nodes) == dict.fromkeys(everyone, {"mean", "band"}) and checked(module) == everyone
    assert ui.curvesOfComboBox.currentText == "Targets, and organs with goals"
    assert not ui.beforeCurvesCheckBox.enabled and ui.referenceCurvesCheckBox.enabled
    assert ui.beforeCurvesCheckBox.toolTip == "Nothing was observed, and no action is in view."
    ui.dvhStructuresList.item(1).setCheckState(module.python.qt.Qt.Unchecked)
    host.process_events()
    assert list(shown_curves(nodes)) == ["PTV_7000", "Parotid_R", "Parotid_L"]
    assert chosen.chosenCurves == ["PTV_7000", "Parotid_R", "Parotid_L"]
    assert ui.curvesOfComboBox.currentText == "Those checked below"
    ui.curvesOfComboBox.setCurrentIndex(texts(ui.curvesOfComboBox).index("Those shown in the views"))
    nodes.segmentation.GetDisplayNode().SetSegmentVisibility("Parotid_L", False)
    host.process_events()
    assert list(shown_curves(nodes)) == checked(module) == ["PTV_7000", "SpinalCord", "Parotid_R"]
    nodes.segmentation.GetDisplayNode().SetSegmentVisibility("Parotid_L", True)
    host.process_events()
    assert checked(module) == everyone
    ui.curvesOfComboBox.setCurrentIndex(0)
    ui.bandCurvesCheckBox.checked, ui.referenceCurvesCheckBox.checked = False, True
    host.process_events()
    assert shown_curves(nodes) == dict.fromkeys(everyone, {"mean", "reference"})
    ui.bandCurvesCheckBox.checked, ui.referenceCurvesCheckBox.checked = True, False
    host.process_events()
    low = next(one for one in nodes.series if one.GetYColumnName() == "Volume band low")
    narrow = column(low.GetTableNode(), "Volume 50 % band low")
    wide = column(low.GetTableNode(), "Volume band low")
    assert (narrow >= wide - 1e-9).all() and narrow.max() > 0
    ui.bandLevelComboBox.setCurrentIndex(texts(ui.bandLevelComboBox).index("50 %"))
    host.process_events()
    assert low.GetYColumnName() == "Volume 50 % band low" and "50 % band" in nodes.chart.GetTitle()
    ui.bandLevelComboBox.setCurrentIndex(0)
    host.process_events()
    assert low.GetYColumnName() == "Volume band low" and "95 % band" in nodes.chart.GetTitle()


def test_the_console_chooses_curves_as_the_panel_does(host: Any, module: Any) -> None:
    ui, nodes, logic = module.ui, module.widget.twin.outcome, module.logic
    logic.showStructures(["Parotid_L", "PTV_7000"])
    logic.showCurves(band=False, reference=True)
    host.process_events()
    assert shown_curves(nodes) == dict.fromkeys(["PTV_7000", "Parotid_L"], {"mean", "reference"})
    assert checked(module) == ["PTV_7000", "Parotid_L"] and ui.curvesOfComboBox.currentText == "Those checked below"
    assert ui.referenceCurvesCheckBox.checked and not ui.bandCurvesCheckBox.checked
    with pytest.raises(SceneError, match="no curve of Parotid"):
        logic.showStructures(["Parotid"])
    with pytest.raises(SceneError, match="no band at"):
        logic.showCurves(level=0.7)
    logic.showBandLevel(0.8)
    assert ui.bandLevelComboBox.currentText == "80 %"
    logic.showCurves(band=True, reference=False, level=0.95)
    logic.showStructures("goals")
    host.process_events()
    assert len(shown_curves(nodes)) == 4 and ui.bandLevelComboBox.currentText == "95 %"


def test_goals_have_probabilities_and_tables_are_chosen(host: Any, module: Any) -> None:
    ui, nodes = module.ui, module.widget.twin.outcome
    outcomes = words_of_column(nodes.goals, "Outcome")
    assert len(words_of_column(nodes.goals, "Probability")) == len(outcomes) > 3
    assert f"{outcomes.count('✓ met')} ✓ met" in ui.goalsLabel.text
    assert texts(ui.tableComboBox) == ["Clinical goals", "Dose metrics"]
    ui.tableComboBox.setCurrentIndex(1)
    view = host.scene.GetFirstNodeByClass("vtkMRMLTableViewNode")
    assert view.GetTableNode() is nodes.metrics
    assert words_of_column(nodes.metrics, "Structure")[0] == "PTV_7000"


def test_measurements_are_entered_imported_and_removed(host: Any, module: Any, kept: Path) -> None:
    ui = module.ui
    ui.addMeasurementButton.click()
    mean_gy = column(module.widget.twin.outcome.metrics, "Mean dose (Gy)")[0]
    ui.measurementsTable.item(0, 2).setText(f"{1.02 * mean_gy / 35:.4f}")
    (kept / "film.csv").write_text(CSV)
    host.dialogs.paths.append(str(kept / "film.csv"))
    ui.importMeasurementsButton.click()
    ui.addMeasurementButton.click()
    assert ui.measurementsTable.rowCount == 3 and not ui.removeMeasurementsButton.enabled
    ui.measurementsTable.selectRow(2)
    ui.removeMeasurementsButton.click()
    assert [ui.measurementsTable.item(r, 0).text() for r in range(2)] == ["PTV_7000", "SpinalCord"]
    assert ui.measurementsTable.rowCount == 2
    assert "Absorb 2 measurements" in ui.observeButton.toolTip
    (kept / "strange.csv").write_text(CSV.replace("small-patient", "somebody"))
    host.dialogs.paths.append(str(kept / "strange.csv"))
    ui.importMeasurementsButton.click()
    (box,) = host.dialogs.errors
    assert "somebody" in box.text and ui.measurementsTable.rowCount == 2


def test_observing_changes_the_dose_and_flags_the_outlier(host: Any, module: Any) -> None:
    ui, scene = module.ui, host.scene
    first = module.widget.parameters.prediction
    metrics = column(module.widget.twin.outcome.metrics, "Mean dose (Gy)")
    ui.observeButton.click()
    finish(host, module)
    assert host.dialogs.messages == []
    nodes = module.widget.twin.outcome
    assert nodes.mean is not first and scene.IsNodePresent(first)
    assert {BEFORE, CHANGE} <= set(nodes.volumes)
    assert [ui.measurementsTable.item(r, 4).text() for r in range(2)] == ["absorbed", "outlier, left out"]
    assert ui.observedLabel.text == "1 absorbed, 1 outlier, left out"
    after = column(nodes.metrics, "Mean dose (Gy)")
    assert after[0] > metrics[0]  # 2 % more was measured
    ui.showChangeButton.click()
    host.process_events()
    assert foregrounds(scene) == {"Change by observing"}
    assert "Metrics before and after" in texts(ui.tableComboBox)
    assert ui.beforeCurvesCheckBox.enabled and ui.beforeCurvesCheckBox.text == "Before observing"
    assert shown_curves(nodes)["PTV_7000"] == {"mean", "band", "before"}
    curve = nodes.series[0].GetTableNode()
    assert (column(curve, "Volume before") <= column(curve, "Volume") + 1e-6).mean() > 0.9


def test_a_saved_scene_goes_on_where_it_was(host: Any, module: Any, kept: Path) -> None:
    ui, scene = module.ui, host.scene
    ui.outputFolderLineEdit.setCurrentPath(str(kept))
    assert not ui.exportDoseButton.enabled and "DICOM folder" in ui.exportDoseButton.toolTip
    module.logic.showStructures(["SpinalCord"])
    ui.beforeCurvesCheckBox.checked, ui.referenceCurvesCheckBox.checked = False, True
    ui.saveSceneButton.click()
    saved = kept / "small-patient-scene.mrb"
    assert saved.is_file() and saved.name in ui.exportedLabel.text
    shown = module.widget.twin.outcome
    values = np.array(slicer.util.arrayFromVolume(shown.mean))
    host.close_scene()
    assert not ui.predictButton.enabled and ui.measurementsTable.rowCount == 0 and ui.overlayComboBox.count == 0
    host.load_mrb(saved)
    nodes = module.widget.twin.outcome
    assert np.array_equal(slicer.util.arrayFromVolume(nodes.mean), values)
    assert ui.samplesSpinBox.value == 4 and ui.structureTable.rowCount == 5
    assert shown_curves(nodes) == {"SpinalCord": {"mean", "band", "reference"}} and checked(module) == ["SpinalCord"]
    assert ui.referenceCurvesCheckBox.checked and not ui.beforeCurvesCheckBox.checked
    assert [one.GetName() for one in nodes.series if one.GetName()] == [
        "PTV_7000",
        "SpinalCord",
        "Parotid_R",
        "Parotid_L",
    ]
    assert [ui.measurementsTable.item(r, 4).text() for r in range(2)] == ["absorbed", "outlier, left out"]
    again = predict(host, module, samples=4)  # of the belief in the scene
    assert host.dialogs.messages == []
    assert np.abs(slicer.util.arrayFromVolume(again) - values).max() < 1e-4
    assert shown_curves(module.widget.twin.outcome) == {"SpinalCord": {"mean", "band", "reference"}}  # as chosen
    assert scene.IsNodePresent(again) and ui.undoButton.enabled


def test_undoing_goes_back(host: Any, module: Any) -> None:
    ui = module.ui
    before = np.array(slicer.util.arrayFromVolume(module.widget.twin.outcome.mean))
    ui.undoButton.click()
    host.process_events()
    nodes = module.widget.twin.outcome
    assert nodes.mean.GetName() == "Predicted dose" and BEFORE not in nodes.volumes
    assert slicer.util.arrayFromVolume(nodes.mean).max() < before.max()
    assert [ui.measurementsTable.item(r, 4).text() for r in range(2)] == ["", ""]
    assert not ui.undoButton.enabled and ui.observeButton.enabled
    assert foregrounds(host.scene) == {"Predicted dose"}


def test_a_report_is_written(host: Any, module: Any, kept: Path) -> None:
    ui = module.ui
    ui.writeReportButton.click()
    finish(host, module)
    assert host.dialogs.messages == []
    report = kept / "small-patient-report"
    html = (report / "report.html").read_text(encoding="utf-8")
    assert "small-patient" in html and "research" in html.lower()
    assert {"metrics.csv", "dvh.csv", "goals.csv", "dose_mean.nrrd"} <= {path.name for path in report.iterdir()}
    assert report.name in ui.exportedLabel.text


def test_clearing_leaves_the_patient_alone(host: Any, module: Any) -> None:
    scene = host.scene
    module.logic.clear()
    host.process_events()
    assert module.widget.parameters.prediction is None and module.ui.overlayComboBox.count == 0
    names = [scene.GetNthNode(k).GetName() for k in range(count_nodes(scene))]
    left = [name for name in names if name.startswith(("Predicted", "DVH", "Clinical", "Belief", "Difference"))]
    assert left == []
    assert module.widget.parameters.ct is not None and module.ui.predictButton.enabled
