"""The module in an application: its panel, its parameter node, a prediction into the scene, what goes wrong.

Runs under the stand-ins of ``Testing/host``, and in desktop Slicer where ``SLICER_EXECUTABLE`` names one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from Testing.host.fixtures import in_desktop, running_application, skip_where_missing

skip_where_missing()

import slicer  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SLOWEST_OPENING_SECONDS = 2.0
SLOWEST_SWITCH_SECONDS = 0.2


@pytest.fixture
def host() -> Iterator[Any]:
    with running_application() as running:
        yield running
        assert running.uncaught == [], "an exception left a slot"


@pytest.fixture
def module(host: Any) -> Any:
    return host.load_module()


@pytest.fixture
def predicted(module: Any, target_folder: Path) -> Any:
    module.ui.useSampleCheckBox.checked = False
    module.ui.patientFolderLineEdit.currentPath = str(target_folder)
    module.ui.samplesSpinBox.value = 2
    module.ui.applyButton.click()
    return module


def volumes() -> list[str]:
    return [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]


def foregrounds() -> set[str]:
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = (slicer.mrmlScene.GetNodeByID(node.GetForegroundVolumeID() or "") for node in nodes)
    return {volume.GetName() for volume in shown if volume is not None}


def test_the_module_says_what_it_is(module: Any) -> None:
    record = module.record
    assert record.title == "RT Digital Twin" and record.categories == ["Radiotherapy"]
    assert "research use only" in record.helpText.lower() and record.acknowledgementText
    assert not record.icon.isNull()


def test_the_panel_and_its_parameter_node_follow_each_other(module: Any) -> None:
    node = module.logic.getParameterNode()
    module.ui.samplesSpinBox.value = 7
    assert node.samples == 7
    node.samples, node.seed = 9, 4
    assert (module.ui.samplesSpinBox.value, module.ui.seedSpinBox.value) == (9, 4)
    module.ui.useSampleCheckBox.click()
    assert node.useSample is False


@pytest.mark.parametrize(("name", "value", "error"), [
    ("samples", "many", TypeError), ("samples", 1, ValueError), ("samples", 2.5, TypeError),
    ("useSample", 1, TypeError),
])  # fmt: skip
def test_a_parameter_refuses_what_it_cannot_be(module: Any, name: str, value: object, error: type) -> None:
    node = module.logic.getParameterNode()
    before = getattr(node, name)
    with pytest.raises(error):
        setattr(node, name, value)
    assert getattr(node, name) == before


def test_a_left_panel_changes_nothing_and_shows_the_node_again_when_entered(module: Any) -> None:
    node = module.logic.getParameterNode()
    module.exit()
    module.ui.samplesSpinBox.value = 50
    assert node.samples == 32
    module.enter()
    assert module.ui.samplesSpinBox.value == 32


def test_the_button_says_what_is_missing(module: Any, tmp_path: Path) -> None:
    assert module.ui.applyButton.enabled
    module.ui.useSampleCheckBox.click()
    assert not module.ui.applyButton.enabled
    assert "folder" in module.ui.applyButton.toolTip
    module.ui.patientFolderLineEdit.currentPath = str(tmp_path)
    assert module.ui.applyButton.enabled


def test_a_click_predicts_into_the_scene_and_overlays_switch_at_once(predicted: Any) -> None:
    box = predicted.ui.overlayComboBox
    names = [box.itemText(index) for index in range(box.count)]
    assert predicted.ui.overlayComboBox.enabled and len(names) >= 3 and set(names) <= set(volumes())
    for name in reversed(names):
        start = time.perf_counter()
        box.currentText = name
        assert time.perf_counter() - start < SLOWEST_SWITCH_SECONDS
        assert foregrounds() == {name}


def test_an_error_is_a_message_and_leaves_the_scene_as_it_was(host: Any, module: Any, tmp_path: Path) -> None:
    module.ui.useSampleCheckBox.checked = False
    module.ui.patientFolderLineEdit.currentPath = str(tmp_path)
    before = host.scene.GetNumberOfNodes()
    module.ui.applyButton.click()
    (shown,) = host.dialogs.errors
    assert shown.text.startswith("The dose was not predicted.") and "Traceback" not in shown.text
    assert host.scene.GetNumberOfNodes() == before
    host.uncaught.clear()  # slicer.util shows the message and raises on, to the console


def test_closing_the_scene_empties_the_panel_and_keeps_it_usable(host: Any, predicted: Any) -> None:
    host.close_scene()
    assert volumes() == [] and predicted.ui.overlayComboBox.count == 0
    predicted.ui.samplesSpinBox.value = 3
    assert predicted.logic.getParameterNode().samples == 3


def test_a_deleted_overlay_is_survived(host: Any, predicted: Any) -> None:
    box = predicted.ui.overlayComboBox
    doomed = box.itemText(1)
    host.scene.RemoveNode(slicer.util.getFirstNodeByClassByName("vtkMRMLScalarVolumeNode", doomed))
    box.currentText = doomed
    assert doomed not in volumes() and doomed not in foregrounds()


def test_choices_and_results_survive_the_scenes_file(host: Any, predicted: Any, tmp_path: Path) -> None:
    before = sorted(volumes())
    host.save_mrb(tmp_path / "twin.mrb")
    host.load_mrb(tmp_path / "twin.mrb")
    assert sorted(volumes()) == before
    assert predicted.logic.getParameterNode().samples == 2
    assert predicted.ui.samplesSpinBox.value == 2


WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "monai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from Testing.host.session import slicer_application
with slicer_application() as host:
    module = host.load_module()
    print(module.ui.applyButton.enabled, "torch" in sys.modules, module.seconds_to_open, host.uncaught)
"""


def test_the_module_opens_without_torch_and_at_once() -> None:
    if in_desktop():
        pytest.skip("blocks imports in a process of its own, under the stand-ins only")
    command = [sys.executable, "-c", WITHOUT_TORCH]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    enabled, imported, seconds, uncaught = done.stdout.split(maxsplit=3)
    assert (enabled, imported, uncaught.strip()) == ("True", "False", "[]")
    assert float(seconds) < SLOWEST_OPENING_SECONDS


def test_the_same_in_desktop_slicer(tmp_path: Path) -> None:
    executable = os.environ.get("SLICER_EXECUTABLE")
    if in_desktop():
        pytest.skip("this is desktop Slicer")
    if not executable:
        pytest.skip("SLICER_EXECUTABLE names no desktop Slicer: the module was tested under stand-ins ONLY")
    report = tmp_path / "report.xml"
    script = ROOT / "Testing" / "host" / "desktop.py"
    command = [executable, "--no-splash", "--no-main-window", "--testing", "--ignore-slicerrc"]
    done = subprocess.run(
        [*command, "--python-script", str(script), str(report)], capture_output=True, text=True, timeout=1800
    )
    assert report.is_file() and done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
