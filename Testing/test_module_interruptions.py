"""The module where things go wrong: cancelled, closed, deleted, damaged, missing; the scene stays intact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from RTDigitalTwinLib import background
from RTDigitalTwinLib.job_process import ENDED_FILE
from RTDigitalTwinLib.jobs import OUTCOME_FILE
from RTDigitalTwinLib.scene.patient_nodes import show_patient
from Testing.builders import small_patient
from Testing.host.fixtures import in_desktop, running_application, skip_where_missing
from Testing.module_walk import PATIENCE_S, count_nodes, finish, predict, show_small_patient

skip_where_missing()

ROOT = Path(__file__).resolve().parent.parent
OPEN_WITHOUT = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in ("torch", "monai") else found(name, *more)
sys.modules["torch"] = None
from Testing.host.session import slicer_application
with slicer_application() as host:
    module = host.load_module()
    print(module.ui.missingLabel.text)
    print(module.ui.loadSampleButton.enabled, module.ui.loadSampleButton.toolTip == module.ui.missingLabel.text)
    print(module.ui.installButton.isHidden())
    print(f"{module.seconds_to_open:.2f}")
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of others on this machine have folders too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def host() -> Iterator[Any]:
    with running_application() as running:
        yield running


@pytest.fixture
def module(host: Any) -> Any:
    return host.load_module()


def job_folders() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("rt-digital-twin-")}


@pytest.mark.skipif(in_desktop(), reason="imports are blocked in a process of its own, under the stand-ins only")
def test_it_opens_without_torch_and_says_what_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", OPEN_WITHOUT], cwd=ROOT, capture_output=True, text=True, check=True)
    missing, sample, hidden, seconds = done.stdout.strip().splitlines()[-4:]
    assert missing.startswith("Missing: torch, monai.") and "PyTorch extension" in missing
    assert (sample, hidden) == ("False True", "False")
    assert float(seconds) > 0


@pytest.mark.skipif(in_desktop(), reason="looks at a process of its own, under the stand-ins only")
def test_opening_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom Testing.host.session import slicer_application\n"
        "with slicer_application() as host:\n    host.load_module()\n"
        "    print(*(set(sys.modules) & {'torch', 'monai', 'matplotlib', 'pydicom'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_cancel_ends_the_process_and_leaves_the_scene(host: Any, module: Any) -> None:
    show_small_patient(host, module)
    before, folders = count_nodes(host.scene), job_folders()
    module.ui.predictButton.click()
    work = module.widget.task._work
    assert work is not None and not work.poll()
    module.ui.cancelButton.click()
    assert not module.widget.task.isRunning  # without waiting for the process
    host.wait_until(lambda: job_folders() == folders, PATIENCE_S, "for the process")
    assert work.poll() and count_nodes(host.scene) == before
    assert "Cancelled" in module.ui.taskLabel.text and module.ui.predictButton.enabled
    assert host.dialogs.messages == [] and host.uncaught == []


def test_what_is_begun_after_a_cancel_is_done(host: Any, module: Any) -> None:
    show_small_patient(host, module)
    folders = job_folders()
    module.ui.samplesSpinBox.value = 64
    module.ui.predictButton.click()
    module.ui.cancelButton.click()
    mean = predict(host, module)
    assert mean.GetAttribute("RTDigitalTwin.Samples") == "2" and host.dialogs.messages == []
    host.wait_until(lambda: job_folders() == folders, PATIENCE_S, "for the cancelled one's folder")


def test_a_closed_module_ends_its_process(host: Any, module: Any) -> None:
    show_small_patient(host, module)
    folders = job_folders()
    module.ui.predictButton.click()
    worker = background._WORKERS[-1]
    host.unload(module)
    host.wait_until(lambda: worker.exit_code is not None, PATIENCE_S, "for the process")
    assert job_folders() == folders and host.uncaught == []


@pytest.mark.skipif(sys.platform == "win32", reason="there no process is halted")
def test_a_closed_module_leaves_no_folder_of_a_process_that_dies(host: Any, module: Any) -> None:
    show_small_patient(host, module)
    folders = job_folders()
    module.ui.predictButton.click()
    worker = background._WORKERS[-1]
    os.kill(worker._process.pid, signal.SIGSTOP)
    host.unload(module)
    assert len(job_folders() - folders) == 1
    os.kill(worker._process.pid, signal.SIGKILL)
    host.wait_until(lambda: job_folders() == folders, PATIENCE_S, "for the folder")


def test_a_module_closed_when_its_job_has_just_ended_leaves_no_folder(host: Any, module: Any) -> None:
    show_small_patient(host, module)
    folders = job_folders()
    module.ui.samplesSpinBox.value = 2
    module.ui.predictButton.click()
    work = module.widget.task._work
    end = time.monotonic() + PATIENCE_S
    while not (work.folder / ENDED_FILE).exists():  # no event is let through that would see it
        assert time.monotonic() < end
    host.unload(module)
    assert job_folders() == folders and host.uncaught == []


def test_a_scene_closed_meanwhile_is_survived(host: Any, module: Any) -> None:
    show_small_patient(host, module)
    module.ui.predictButton.click()
    work = module.widget.task._work
    host.close_scene()
    assert not module.widget.task.isRunning
    host.wait_until(work.poll, PATIENCE_S, "for the process")
    assert host.dialogs.messages == [] and host.uncaught == []
    assert not module.ui.predictButton.enabled
    show_small_patient(host, module)
    assert module.ui.predictButton.enabled


@pytest.mark.slow
def test_a_patient_deleted_meanwhile_gets_no_result(host: Any, module: Any) -> None:
    nodes = show_small_patient(host, module)
    module.ui.samplesSpinBox.value = 2
    module.ui.predictButton.click()
    host.scene.RemoveNode(nodes.ct)
    left = count_nodes(host.scene)
    finish(host, module)
    (box,) = host.dialogs.errors
    assert "not in the scene any more" in box.text and count_nodes(host.scene) == left
    assert host.uncaught == []


def test_a_damaged_answer_is_told_and_nothing_lands(host: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        exit_code = 0

        def __init__(self, folder: Path) -> None:
            self.folder = folder
            (folder / OUTCOME_FILE).write_bytes(b"cut off")

        def poll(self) -> bool:
            return True

        def cancel(self) -> None:
            pass

    monkeypatch.setattr(background, "start", Done)
    show_small_patient(host, module)
    before = count_nodes(host.scene)
    module.ui.predictButton.click()
    finish(host, module)
    (box,) = host.dialogs.errors
    assert "cannot be read" in box.text and count_nodes(host.scene) == before and host.uncaught == []


def test_names_are_confirmed_in_the_table(host: Any, module: Any) -> None:
    patient = small_patient()
    renamed = {name: s for name, s in patient.structures.items() if name != "Parotid_L"}
    strange = replace(patient.structures["Parotid_L"], name="Parotide gauche")
    nodes = show_patient(host.scene, replace(patient, structures=renamed | {"Parotide gauche": strange}))
    ui = module.ui
    ui.ctSelector.setCurrentNode(nodes.ct)
    ui.segmentationSelector.setCurrentNode(nodes.segmentation)
    host.process_events()
    rows = {ui.structureTable.item(r, 0).text(): r for r in range(ui.structureTable.rowCount)}
    row = rows["Parotide gauche"]
    assert ui.structureTable.item(row, 3).text() == "proposed"
    assert ui.structureTable.cellWidget(row, 1).currentText == "Parotid_L"
    ui.predictButton.click()
    assert "1 structure waits to be confirmed: Parotide gauche" in host.dialogs.errors[-1].text
    ui.confirmButton.click()
    host.process_events()
    assert {ui.structureTable.item(r, 3).text() for r in range(ui.structureTable.rowCount)} == {"confirmed"}
    assert host.uncaught == []


def test_a_folder_that_is_none_is_told(host: Any, module: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    module.ui.sourceFolderLineEdit.setCurrentPath(str(tmp_path))
    assert module.ui.loadFolderButton.enabled
    module.ui.loadFolderButton.click()
    finish(host, module)
    (box,) = host.dialogs.errors
    assert "holds nothing known" in box.text and "DICOM" in box.text and host.uncaught == []


def test_a_folder_is_loaded_by_clicks(host: Any, module: Any, target_folder: Path) -> None:
    module.ui.sourceFolderLineEdit.setCurrentPath(str(target_folder))
    module.ui.loadFolderButton.click()
    host.wait_until(lambda: module.widget.parameters.ct is not None, 120, "for the patient")
    finish(host, module)
    assert host.dialogs.messages == [] and host.uncaught == []
    assert module.ui.patientNotesLabel.text.startswith("Patient pt_1")
    assert module.widget.parameters.referenceDose is not None and module.ui.predictButton.enabled
    host.scene.SetSaveToXMLString(1)
    host.scene.Commit()
    assert str(target_folder) not in host.scene.GetSceneXMLString()


def test_dicom_names_are_confirmed_before_reading(host: Any, module: Any, clinical_set: Path) -> None:
    ui = module.ui
    ui.sourceFolderLineEdit.setCurrentPath(str(clinical_set))
    ui.loadFolderButton.click()
    finish(host, module)
    states = {ui.structureTable.item(r, 3).text() for r in range(ui.structureTable.rowCount)}
    assert "proposed" in states and module.widget.parameters.ct is None
    ui.confirmButton.click()
    finish(host, module)
    assert host.dialogs.messages == [] and host.uncaught == []
    assert module.widget.parameters.ct is not None
    assert "Longstocking" not in ui.patientNotesLabel.text
    ui.outputFolderLineEdit.setCurrentPath(str(clinical_set.parent))
    assert "Predict the dose first." == ui.exportDoseButton.toolTip and module.widget.source == clinical_set
