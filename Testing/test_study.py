"""The recalibration study: resumed, refused, counted; and its tables from numbers made by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.calibration.trial import OBSERVED, TREATMENTS, WIDTHS, customary_scalars, observable
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.errors import OutputError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.report.study_tables import BANDS, study_markdown, summarise
from RTDigitalTwinLib.solver.calibration_file import StoredCalibration, calibration_path, save_calibration
from RTDigitalTwinLib.study import StudySettings, cases_of, run_study
from Testing.builders import hand_made_calibration, small_patient
from Testing.conftest import blurred_target_dose


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    manifest = {"training": {"pseudonyms": ["pt_9"]}}
    network = DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32), dropout_ratio=0.3))
    sha = save_weights(network, path, manifest)
    save_calibration(StoredCalibration(hand_made_calibration(), {}), calibration_path(path), sha)
    return path


@pytest.fixture(scope="module")
def data(sample: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of the sample's target and a parotid with a mask around the target; and one trained on."""
    target, parotid = sample.structures["PTV_7000"], sample.structures["Parotid_L"]
    inside = np.zeros(target.mask.shape, bool)
    inside[target.box] = True
    mask = Structure.from_array(sample.dose_mask.name, inside, sample.ct.grid, StructureKind.REGION)
    folder = tmp_path_factory.mktemp("cohort")
    structures = {"PTV_7000": target, "Parotid_L": parotid}
    cut = replace(sample, structures=structures, dose_mask=mask)
    whole = blurred_target_dose(sample)
    dose = Volume(np.where(inside, whole.values, 0), whole.grid, whole.quantity)
    for name in ("pt_1", "pt_2", "pt_9"):
        openkbp.write_patient(replace(cut, pseudonym=name), folder / name)
        openkbp.write_dose(dose, folder / name / "dose.csv")
    return folder


def settings(weights: Path, *methods: str, processes: int = 1) -> StudySettings:
    return StudySettings(methods or ("scale",), weights=weights, device="cpu", processes=processes)


def test_a_study_goes_on_where_it_stopped(data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    summary = run_study(data, out, ["pt_1"], settings(weights))
    files = sorted((out / "cases" / "pt_1").iterdir())
    assert len(files) == len(cases_of(["scale"])) == len(TREATMENTS) * (2 * len(OBSERVED) + 3)
    assert summary["simulated"] and len(summary["cases"]) == len(files)
    assert {path.name for path in out.iterdir()} == {"cases", "study.json", "summary.json", "summary.md", "errors.png"}
    kept = {path.name: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    files[1].write_text(files[1].read_text()[:40])  # as an older machine might leave it
    again = run_study(data, out, ["pt_1"], settings(weights))
    now = {path.name: path.stat().st_mtime_ns for path in (out / "cases" / "pt_1").iterdir()}
    assert {name for name in kept if now[name] != kept[name]} == {files[0].name, files[1].name}

    def errors(found: dict) -> list[dict]:
        return [{k: v for k, v in case.items() if k != "seconds"} for case in found["cases"]]

    assert errors(again) == errors(summary)
    grown = run_study(data, out, ["pt_1"], settings(weights, "persistence"))
    assert {c["method"] for c in grown["cases"]} == {
        "before",
        "position alone",
        "scale",
        "persistence",
        "best possible",
    }
    assert len(cases_of(["decoder"])) == len(cases_of(["scale"])) - len(TREATMENTS)  # not where the patient moved


def test_processes_give_the_same(data: Path, weights: Path, tmp_path: Path) -> None:
    one = run_study(data, tmp_path / "one", 2, settings(weights))
    two = run_study(data, tmp_path / "two", 2, settings(weights, processes=2))
    assert one["patients"] == two["patients"] == ["pt_1", "pt_2"]  # pt_9 was trained on
    for a, b in zip(one["cases"], two["cases"], strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}


def test_bad_studies_are_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    with pytest.raises(PatientDataError, match="trained on pt_9"):
        run_study(data, out, ["pt_9"], settings(weights))
    with pytest.raises(PatientDataError, match="3 patients; 2 of the folder's 3"):
        run_study(data, out, 3, settings(weights))
    with pytest.raises(RTDigitalTwinError, match="no calibrator 'guess'"):
        settings(weights, "guess")
    assert not out.exists()
    out.mkdir()
    (out / "study.json").write_text(json.dumps({"seed": 5}))
    with pytest.raises(OutputError, match=r"other settings \(bands_sha256, .*seed"):
        run_study(data, out, ["pt_1"], settings(weights))
    (out / "study.json").unlink()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no study"):
        run_study(data, out, ["pt_1"], settings(weights))
    assert [path.name for path in out.iterdir()] == ["letter.txt"]


def test_cases_of_something_else_are_not_mixed_in(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, mine = tmp_path / "study", tmp_path / "data" / "pt_1"
    shutil.copytree(data / "pt_1", mine)
    one = settings(weights)
    summary = run_study(mine.parent, out, ["pt_1"], one)
    assert all("patient_sha256" not in case for case in summary["cases"])

    def refused(what: str, changed: StudySettings = one) -> None:
        before = {path: path.read_bytes() for path in out.rglob("*.json")}
        with pytest.raises(OutputError, match=what) as error:
            run_study(mine.parent, out, ["pt_1"], changed)
        assert "another folder" in str(error.value)
        assert {path: path.read_bytes() for path in out.rglob("*.json")} == before

    other = Path(shutil.copytree(weights.parent, tmp_path / "weights")) / weights.name
    wider = replace(hand_made_calibration(), patients=39)
    sha = DoseSurrogate.load(weights, "cpu").weights_sha256
    for stored in (StoredCalibration(wider, {}), StoredCalibration(hand_made_calibration(), {"pt_1": wider})):
        save_calibration(stored, calibration_path(other), sha)
        refused(r"\(bands_sha256\)", settings(other))
    refused(r"\(calibrators: decoder, decoder-gp, decoder_steps\)", replace(one, decoder_steps=7))
    with monkeypatch.context() as patch:
        patch.setitem(TREATMENTS, "as planned", Change(output_error_ratio=0.01))
        refused(r"\(treatments: as planned\)")
    with monkeypatch.context() as patch:
        patch.setattr("RTDigitalTwinLib.study.POINTS", 4)
        refused(r"\(points\)")
    with monkeypatch.context() as patch:
        patch.setattr("RTDigitalTwinLib.study.code_sha256", lambda: "f" * 64)
        refused(r"\(code_sha256\)")
    dose = load_patient(mine).plan.dose
    assert dose is not None
    openkbp.write_dose(replace(dose, values=dose.values * 1.01), mine / "dose.csv")
    refused("cases of pt_1 with other data of it: dose")
    refused("cases of pt_1 with other data of it: dose", settings(weights, "persistence"))
    shutil.copy(data / "pt_1" / "dose.csv", mine)
    again = run_study(mine.parent, out, ["pt_1"], one)
    assert again == summary


def test_the_command(data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--methods", "scale", "--weights", str(weights), "--device", "cpu", "--patients"]
    assert main(["recalibration-study", str(data), "--out", str(tmp_path / "s"), *common, "pt_1"]) == 0
    assert "Simulated deliveries, 1 patient" in capsys.readouterr().out
    assert main(["recalibration-study", str(data), "--out", str(tmp_path / "t"), *common, "pt_5"]) == 1
    assert "pt_5" in capsys.readouterr().err


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_study_that_is_ended_says_how_to_go_on(data: Path, weights: Path, tmp_path: Path, processes: str) -> None:
    out = tmp_path / "study"
    command = ["recalibration-study", str(data), "--out", str(out), "--patients", "2", "--processes", processes]
    command += ["--weights", str(weights), "--device", "cpu", "--methods", "scale"]
    process = subprocess.Popen(
        [sys.executable, "-m", "RTDigitalTwinLib", *command],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    timer = threading.Timer(240, process.kill)
    timer.start()
    try:
        while not list(out.glob("cases/*/*.json")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate()
    finally:
        timer.cancel()
        process.kill()
    assert process.returncode == 130 and "Traceback" not in printed, printed
    assert printed.endswith("Cancelled. What is done is kept. Go on with the same command.\n"), printed
    cases = [path for path in out.rglob("*") if path.is_file() and path.parent.parent.name == "cases"]
    assert 0 < len(cases) < 2 * len(cases_of(["scale"]))
    assert all(path.name[0] != "." and json.loads(path.read_text())["simulated"] for path in cases)


def test_points_lie_where_dose_is_predicted() -> None:
    patient = small_patient()
    wanted = customary_scalars(patient)
    points = [one for one in wanted if len(one) == 3]
    assert len(points) == 3 and len(wanted) == len(observable(patient)) + 3
    for point in points:
        index = np.round(patient.ct.grid.to_index(point)).astype(int)
        assert patient.dose_mask.mask[tuple(index)]


def row(patient: str, method: str, mask_gy: float, narrow: float = 1.0) -> dict:
    """Made-up numbers of a case; coverage reaches 95 % at ``narrow`` times the band's width."""
    coverage = [min(1.0, 0.95 * width / narrow) for width in WIDTHS]
    errors = {"mask_gy": mask_gy, "inside_gy": 1.0, "elsewhere_gy": 2 * mask_gy, "structure_mean_gy": mask_gy / 2}
    case = {"patient": patient, "treatment": "as planned", "observed": "volume", "method": method}
    more = {"coverage_ratio": 0.95 / narrow, "width_gy": 3.0, "seconds": 1.0, "left_out": 0}
    return case | errors | more | dict.fromkeys(BANDS, 1.0) | {"coverage_by_width": coverage}


def test_tables_by_hand() -> None:
    """Means, the worst patient, and bands refitted on the others: a needs 2, b and c together 1.5."""
    rows = [row(p, "before", e) for p, e in (("a", 4.0), ("b", 2.0), ("c", 3.0))]
    rows += [row("a", "x", 1.0, 2.0), row("b", "x", 2.2, 1.5), row("c", "x", 1.3, 1.5)]
    summary = {"patients": ["a", "b", "c"]} | summarise(rows)
    (mean,) = (m for m in summary["means"] if m["method"] == "x")
    assert mean["mask_gy"] == pytest.approx(1.5) and mean["mask_change_percent"] == pytest.approx(-50)
    assert mean["worst_patient_mask_change_percent"] == pytest.approx(10)
    both = 0.95 / np.mean([1 / 2.0, 1 / 1.5]) / 0.95  # the width at which a and b (or c) together have 95 %
    expected = np.mean([0.95 * 1.5 / 2.0, *[min(1.0, 0.95 * both / 1.5)] * 2])
    assert mean["coverage_refitted_ratio"] == pytest.approx(expected, abs=0.01)  # widths are a tenth apart
    text = study_markdown(summary)
    assert "| 100.0 %, 1.0 Gy |" in text
    assert "| x | 3 | 1.50 (-50 %) |" in text and "+10.0 %" in text
