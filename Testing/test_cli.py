"""The command line from end to end, with a narrow untrained network: files, errors, exit codes."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from RTDigitalTwinLib import cli, run as run_module
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.doctor import INSTALL_SCENE
from RTDigitalTwinLib.dosimetry.openkbp_score import score_patient
from RTDigitalTwinLib.dosimetry.planning import NOT_CLINICAL
from RTDigitalTwinLib.errors import Cancelled
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.report import tables
from RTDigitalTwinLib.run import RunSettings, run_patient
from RTDigitalTwinLib.train import HIGHEST_SEED

ROOT = Path(__file__).resolve().parent.parent
TABLES = {
    "biology.csv",
    "dose_mean.nrrd",
    "dvh.csv",
    "dvh.png",
    "goals.csv",
    "metrics.csv",
    "report.html",
    "summary.json",
}
TABLES |= {"ledger.jsonl", "ledger.jsonl.head", "ledger.jsonl.arrays"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32))), path, {})
    return path


@pytest.fixture(scope="module")
def results(sample_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``run`` writes for a patient whose folder bears a name."""
    source = tmp_path_factory.mktemp("chosen") / "Jane_Longstocking"
    shutil.copytree(sample_folder, source)
    out = tmp_path_factory.mktemp("out") / "results"
    assert (
        main(["run", str(source), "--out", str(out), "--samples", "4", "--device", "cpu", "--weights", str(weights)])
        == 0
    )
    return out


def test_run_writes_what_it_promises(results: Path) -> None:
    names = {path.name for path in results.iterdir()}
    assert names >= TABLES | {"dose_std.nrrd", "scene.mrb"}
    summary = json.loads((results / "summary.json").read_text())
    assert set(summary["files"]) == names
    assert summary["provenance"]["samples"] == 4 and summary["provenance"]["seed"] == 0
    for clock in ("stage_seconds", "stage_processor_seconds"):
        assert {"reading", "prediction", "scene", "report"} <= set(summary["provenance"][clock])
    assert summary["dose_error_gy"] > 0
    captions = re.findall(r'alt="([^"]+)"', (results / "report.html").read_text())
    if captions:  # drawn where EGL is there
        shown = [caption.partition(": ")[2] for caption in captions if caption.startswith("Axial: ")]
        isodoses = [words for words in shown if "isodose" in words]  # where untrained weights give dose enough
        # these weights are not calibrated
        expected = ["predicted dose", *isodoses, "sampled spread", "predicted minus reference dose"]
        assert shown == expected and "Structures in space" in captions


def test_dose_volumes_lie_where_the_patient_does(results: Path, sample: Patient) -> None:
    image = sitk.ReadImage(str(results / "dose_mean.nrrd"))
    assert image.GetMetaData("predicted") == "yes"
    assert image.GetSpacing() == pytest.approx(sample.ct.grid.spacing_mm)
    assert image.GetOrigin() == pytest.approx(sample.ct.grid.origin_mm)
    dose = sitk.GetArrayFromImage(image)
    assert dose.max() > 0 and not dose[~sample.dose_mask.mask].any()
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(results / "dose_std.nrrd"))).max() > 0


def test_tables_agree_with_the_volume(results: Path, sample: Patient) -> None:
    with (results / "metrics.csv").open(newline="") as file:
        rows = {(r["structure"], r["metric"]): r for r in csv.DictReader(file)}
    dose = sitk.GetArrayFromImage(sitk.ReadImage(str(results / "dose_mean.nrrd")))
    cord = sample.structures["SpinalCord"].mask
    row = rows["SpinalCord", "mean"]
    assert float(row["mean"]) == pytest.approx(dose[cord].mean(), abs=0.02)
    assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
    with (results / "dvh.csv").open(newline="") as file:
        curve = [r for r in csv.DictReader(file) if r["structure"] == "SpinalCord"]
    columns = ["structure", "dose_gy", "volume_mean", "volume_low", "volume_high", "whole_low", "whole_high"]
    assert list(curve[0]) == columns
    assert float(curve[0]["volume_mean"]) == 1.0
    low, mean, high = (np.array([float(r[k]) for r in curve]) for k in ("volume_low", "volume_mean", "volume_high"))
    assert ((low <= mean + 1e-6) & (mean <= high + 1e-6)).all()
    # the area under a cumulative DVH is the mean dose; 0.1 Gy bins
    assert np.trapezoid(mean, dx=0.1) == pytest.approx(float(row["mean"]), abs=0.06)


def test_no_name_and_no_path_in_any_result(results: Path) -> None:
    for path in (p for p in results.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".mrb":
            unpacked = results.parent / "unpacked"
            shutil.unpack_archive(path, unpacked, "zip")
            content = b"".join(p.read_bytes() for p in unpacked.rglob("*") if p.is_file())
            content += "\n".join(str(p.relative_to(unpacked)) for p in unpacked.rglob("*")).encode()
        for planted in (b"Longstocking", str(results.parent).encode()):
            assert planted not in content, (path.name, planted)


def test_same_seed_same_numbers(results: Path, sample_folder: Path, weights: Path, tmp_path: Path) -> None:
    summary = run_patient(sample_folder, tmp_path / "again", RunSettings(4, 0, "cpu", weights))
    assert summary["metrics"] == json.loads((results / "summary.json").read_text())["metrics"]


def test_deterministic_run_claims_no_spread(
    sample_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(sample_folder), "--out", str(out), "--samples", "0", "--weights", str(weights)]) == 0
    assert not (out / "dose_std.nrrd").exists()
    assert (out / "scene.mrb").is_file()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["provenance"]["seed"] is None and "Bands" not in summary["notice"]
    printed = capsys.readouterr().out
    assert "Research use only" in printed and "predicted dose, no band" in printed
    assert "mean of" not in printed and "sampled" not in printed


def test_the_sample_is_compared_with_a_planned_dose(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["run", "sample", "--out", str(out), "--samples", "2", "--weights", str(weights)]) == 0
    summary, report = json.loads((out / "summary.json").read_text()), unescape((out / "report.html").read_text())
    assert all(row["reference"] is not None for row in summary["metrics"])
    references = {(row["structure"], row["metric"]): row["reference"] for row in summary["metrics"]}
    assert references["PTV_7000", "D95"] == pytest.approx(70, abs=0.1)
    assert summary["dose_error_gy"] > 0 and summary["provenance"]["stage_seconds"]["planning"] > 0
    said = capsys.readouterr()
    assert NOT_CLINICAL in summary["warnings"] and NOT_CLINICAL in report and NOT_CLINICAL in said.err
    assert "planning the sample patient" in said.err and "reference" in said.out
    assert 'id="reference-1"' in report  # its dashed line in the chart


def test_an_existing_output_is_kept_unless_told(
    sample_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    command = ["run", str(sample_folder), "--out", str(out), "--samples", "0", "--weights", str(weights)]
    assert main(command) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (out / "mine.txt").read_text() == "keep"
    assert main([*command, "--overwrite"]) == 1
    assert "holds more than the results" in capsys.readouterr().err and (out / "mine.txt").exists()
    (out / "mine.txt").unlink()
    assert main(command) == 0
    first = (out / "summary.json").read_text()
    assert main([*command, "--overwrite"]) == 0
    assert (out / "summary.json").read_text() != first  # times differ
    assert main(command) == 1
    assert "results of an earlier run" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_output_that_cannot_be_written_is_said(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert main(["run", "sample", "--out", str(out), "--weights", str(weights)]) == 1
        assert "Error:" in capsys.readouterr().err


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("place", ["cohort/pt_1", "cohort/pt_1/out", "link", "link/out", "cohort", "x/../cohort"])
def test_results_never_mix_with_the_patient(
    place: str, damaged_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "cohort").mkdir()
    source = damaged_folder.rename(tmp_path / "cohort" / "pt_1")
    (tmp_path / "link").symlink_to(source)
    before = listing(source)
    command = ["run", str(source), "--out", str(tmp_path / place), "--samples", "0", "--weights", str(weights)]
    assert main([*command, "--overwrite"]) == 1
    assert re.search("lie in the patient's folder|around the data", capsys.readouterr().err)
    assert listing(source) == before


def test_results_never_replace_a_folder_that_is_no_patient(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "unknown").mkdir()
    for out in ("unknown", "unknown/out"):
        assert main(["run", str(tmp_path / "unknown"), "--out", str(tmp_path / out)]) == 1
        assert "The folder holds nothing known" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "unknown"]


def test_scores_and_submissions_stay_out_of_patients(
    damaged_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = listing(damaged_folder)
    scores, inside = str(tmp_path / "scores.json"), str(damaged_folder / "dose.csv")
    command = ["evaluate", str(damaged_folder), "--weights", str(weights)]
    for options in (["--out", inside], ["--out", scores, "--predictions", str(damaged_folder)]):
        assert main([*command, *options]) == 1
        assert "lie in the patient's folder pt_1" in capsys.readouterr().err
    assert listing(damaged_folder) == before and not Path(scores).exists()


def test_the_word_sample_must_be_clear(
    sample_folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").symlink_to(sample_folder)
    command = ["--out", "out", "--samples", "0", "--weights", str(weights)]
    assert main(["run", "sample", *command]) == 1
    assert "./sample for the folder" in capsys.readouterr().err and not Path("out").exists()
    assert main(["run", "./sample", *command]) == 0
    assert "dose_error_gy" in json.loads(Path("out/summary.json").read_text())  # the folder's patient has a dose


def test_a_dot_names_the_folder(
    damaged_folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(damaged_folder)
    assert main(["evaluate", ".", "--patients", "pt_1", "--out", "../s.json", "--weights", str(weights)]) == 0
    assert json.loads(Path("../s.json").read_text())["per_patient"][0]["patient"] == "pt_1"
    Path("ct.csv").unlink()
    assert main(["evaluate", ".", "--out", "../s.json", "--weights", str(weights)]) == 1
    assert "pt_1/ct.csv: The file is missing" in capsys.readouterr().err


def test_each_number_is_worked_out_once(
    sample_folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable:
        real = getattr(tables, name)

        def call(*arguments: object) -> object:
            calls.append(name)
            return real(*arguments)

        return call

    for name in ("metric_rows", "score_patient"):
        monkeypatch.setattr(tables, name, counted(name))
    run_patient(sample_folder, tmp_path / "out", RunSettings(0, 0, "cpu", weights))
    assert sorted(calls) == ["metric_rows", "score_patient"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error", "ct.csv"), "Error: ct.csv: Input/output error."),
        (OSError("odd\nand long"), "Error: odd and long."),
        (MemoryError(), "Not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), "Not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "Not enough memory"),
    ],
)
def test_the_machines_errors_are_one_line(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*unused: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(run_module.Patient, "sample", fail)
    assert main(["run", "sample", "--out", str(tmp_path / "out")]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "Error" in line)
    assert said in line and list(tmp_path.iterdir()) == []


def test_a_failure_of_torch_for_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    assert cli._out_of_memory(failure.value)
    assert not cli._out_of_memory(RuntimeError("a mistake of ours"))


@pytest.mark.parametrize(
    "option", ["--seed=-1", f"--seed={HIGHEST_SEED + 1}", "--seed=x", "--samples=-1", "--samples=9e9"]
)
def test_numbers_out_of_range_are_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for command in (["run", "sample"], ["evaluate", str(tmp_path)]):
        with pytest.raises(SystemExit):
            main([*command, "--out", str(tmp_path / "out"), option])
        assert "must be a whole number from 0 to" in capsys.readouterr().err
    torch.Generator().manual_seed(HIGHEST_SEED)


def test_a_cancelled_run_leaves_nothing(sample_folder: Path, weights: Path, tmp_path: Path) -> None:
    for moment in (0.3, 0.62, 0.9):

        def cancel(done_ratio: float, message: str, moment: float = moment) -> None:
            if done_ratio >= moment:
                raise Cancelled

        with pytest.raises(Cancelled):
            run_patient(sample_folder, tmp_path / "out", RunSettings(2, 0, "cpu", weights), progress=cancel)
        assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_a_cancel(
    sample_folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*unused: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_nrrd", interrupted)
    command = ["run", str(sample_folder), "--out", str(tmp_path / "out"), "--samples", "0", "--weights", str(weights)]
    assert main(command) == 130
    assert "Cancelled" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("", "not 3D Slicer's"),  # PyPI's other package of this name
        ("raise ImportError('libGL.so.1 is missing', path='/home/jane/slicer.so')", "libGL.so.1 is missing"),
        ("vtkMRMLScene = None", "do not work here"),
    ],
    ids=["another slicer", "missing library", "broken"],
)
def test_a_run_finishes_where_slicer_core_does_not_work(
    package: str, reason: str, sample_folder: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "slicer").mkdir()
    (tmp_path / "slicer" / "__init__.py").write_text(package)
    out = tmp_path / "out"
    command = ["run", str(sample_folder), "--out", str(out), "--samples", "2", "--weights", str(weights)]
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from RTDigitalTwinLib.cli import main; main({command})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    summary, report = json.loads((out / "summary.json").read_text()), unescape((out / "report.html").read_text())
    assert set(summary["files"]) == TABLES | {"dose_std.nrrd"}
    for said in (" ".join(summary["warnings"]), report, done.stderr):
        assert "There is no scene and no picture." in said and reason in said and INSTALL_SCENE in said
        assert "/home/jane" not in said


def test_a_run_finishes_where_nothing_can_be_drawn(
    sample_folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from RTDigitalTwinLib.scene import snapshot

    monkeypatch.setattr(snapshot, "rendering_problem", lambda: "apt install libegl1")
    summary = run_patient(sample_folder, tmp_path / "out", RunSettings(2, 0, "cpu", weights))
    assert any("libegl1" in warning for warning in summary["warnings"])
    assert "scene.mrb" in summary["files"] and "view3d.png" not in summary["files"]


def test_evaluate_scores_and_writes_submissions(
    sample_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, predictions = tmp_path / "scores.json", tmp_path / "predictions"
    command = ["evaluate", str(sample_folder.parent), "--out", str(out), "--weights", str(weights)]
    assert main([*command, "--predictions", str(predictions), "--samples", "2"]) == 0
    scores = json.loads(out.read_text())
    assert scores["patients"] == 1 and scores["per_patient"][0]["patient"] == "pt_1"
    assert scores["seconds_per_patient"] > 0
    patient = Patient.load(sample_folder)
    rows = np.loadtxt(predictions / "pt_1.csv", delimiter=",", skiprows=1)
    flat = np.zeros(openkbp.VOXELS)
    flat[rows[:, 0].astype(int)] = rows[:, 1]
    score = score_patient(patient, openkbp.from_file_order(flat.reshape((openkbp.SIDE,) * 3)))
    assert score.dose_error_gy == pytest.approx(scores["dose_score_gy"], abs=1e-4)
    assert score.dvh_error_gy == pytest.approx(scores["dvh_score_gy"], abs=1e-4)
    assert "1 patient: dose score" in capsys.readouterr().out


def test_evaluate_agrees_with_an_independent_score(
    shared_patients: Path, independent_scores: Path, weights: Path, tmp_path: Path
) -> None:
    truth = independent_scores / "validation-pats"
    out, predictions = tmp_path / "scores.json", tmp_path / "predictions"
    command = ["evaluate", str(shared_patients), "--out", str(out), "--predictions", str(predictions)]
    assert main([*command, "--weights", str(weights)]) == 0
    judge = [sys.executable, str(independent_scores / "score.py"), str(predictions), str(truth)]
    theirs = json.loads(subprocess.run(judge, check=True, capture_output=True, text=True).stdout)
    ours = json.loads(out.read_text())
    assert ours["patients"] == theirs["patients"]
    assert ours["dose_score_gy"] == pytest.approx(theirs["dose_score_gy"], abs=1e-3)
    assert ours["dvh_score_gy"] == pytest.approx(theirs["dvh_score_gy"], abs=1e-3)


def test_evaluate_names_what_is_missing(
    sample_folder: Path, damaged_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["evaluate", str(sample_folder.parent), "--out", str(tmp_path / "s.json"), "--weights", str(weights)]
    assert main([*command, "--patients", "pt_9"]) == 1
    assert "Not among the folder's 1 patient: pt_9" in capsys.readouterr().err
    (damaged_folder / "dose.csv").unlink()
    command[1] = str(damaged_folder)
    assert main(command) == 1
    assert "pt_1: There is no reference dose" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_altered_weights_stop_a_run(
    sample_folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    altered = tmp_path / "narrow.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    shutil.copy(weights.with_suffix(".json"), tmp_path)
    assert main(["run", str(sample_folder), "--out", str(tmp_path / "out"), "--weights", str(altered)]) == 1
    assert "SHA-256" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_train_refuses_what_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "out"), "--minutes", "1"]) == 1
    assert "at least two patients" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path), "--out", str(tmp_path / "out"), "--minutes", "-1"])
