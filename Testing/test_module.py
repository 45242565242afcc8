"""The module in an application: what it says of itself, its panel and its parameter node.

Runs under the stand-ins of ``Testing/host``, and in desktop Slicer where ``SLICER_EXECUTABLE`` names one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from Testing.host.fixtures import in_desktop, running_application, skip_where_missing

skip_where_missing()

ROOT = Path(__file__).resolve().parent.parent
SLOWEST_OPENING_SECONDS = 2.0


@pytest.fixture
def host() -> Iterator[Any]:
    with running_application() as running:
        yield running
        assert running.uncaught == [], "an exception left a slot"


@pytest.fixture
def module(host: Any) -> Any:
    return host.load_module()


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
    module.ui.absorbOutliersCheckBox.click()
    assert node.absorbOutliers is True
    module.ui.deviceComboBox.setCurrentIndex(1)
    assert node.device.value == "cpu"


def test_measurements_are_absorbed_by_any_method_of_the_library(module: Any) -> None:
    from RTDigitalTwinLib.cli_options import OBSERVING_METHODS  # here, for an application need not have rich

    box, node = module.ui.methodComboBox, module.logic.getParameterNode()
    found = {}
    for index in range(box.count):
        box.setCurrentIndex(index)
        found[node.method.value] = box.currentText
    assert sorted(found) == sorted(OBSERVING_METHODS)
    assert found["decoder-gp"] == "Decoder, and the rest by a Gaussian process"
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(("name", "value", "error"), [
    ("samples", "many", TypeError), ("samples", 1, ValueError), ("samples", 2.5, TypeError),
    ("isodoses", 1, TypeError), ("device", "abacus", TypeError),
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
    print(module.ui.loadSampleButton.enabled, "torch" in sys.modules, module.seconds_to_open, host.uncaught)
"""


def test_the_module_opens_without_torch_and_at_once() -> None:
    if in_desktop():
        pytest.skip("blocks imports in a process of its own, under the stand-ins only")
    command = [sys.executable, "-c", WITHOUT_TORCH]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    enabled, imported, seconds, uncaught = done.stdout.split(maxsplit=3)
    assert (enabled, imported, uncaught.strip()) == ("False", "False", "[]")
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
