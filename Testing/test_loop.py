"""The loop over the first fractions: its fixed work, going on after an interruption, and what it refuses."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

from RTDigitalTwinLib.calibration.belief import load_belief
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.measurements import write_measurements
from RTDigitalTwinLib.calibration.simulated_fractions import SimulatedFractions
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.decision.fluence import FluenceSettings
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import Cancelled, LedgerError, OutputError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.ledger import Entry, Ledger, read_ledger, verify
from RTDigitalTwinLib.loop import LoopSettings, loop_patient
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.dose_file import SIMULATION_REMARK, read_dose_image
from RTDigitalTwinLib.patient.observation import MetricObservation, Moment, NoiseModel
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.twin import Twin
from Testing.dicom_sets import PLANTED, set_identity, small_set


@pytest.fixture(scope="module")
def settings(narrow_weights: Path) -> LoopSettings:
    return LoopSettings(
        samples=4,
        device="cpu",
        weights=narrow_weights,
        fractions=2,
        simulation=SimulatedFractions(Change(output_error_ratio=0.05)),
        calibrator=DecoderMap(most_steps=4, fewest_steps=3),
        optimisation=FluenceSettings(steps=3),
        absorb_outliers=True,  # an untrained network explains nothing
        views=False,
    )


@pytest.fixture(scope="module")
def whole(settings: LoopSettings, target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop without interruption."""
    out = tmp_path_factory.mktemp("loop") / "whole"
    loop_patient(target_folder, out, settings)
    return out


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def test_the_work_is_done_and_told(whole: Path, target_folder: Path, narrow_weights: Path) -> None:
    summary = summary_of(whole)
    assert {path.name for path in whole.iterdir()} == set(summary["files"])
    assert set(summary["seconds"]) == {
        *("patient", "network", "features", "encoding", "prediction before"),
        *("observe", "recalibrate", "predict", "optimise", "total"),
    }
    for row in summary["fractions"]:
        assert row["observations"] == 1 and row["samples"] == 4 and row["optimisation"]["steps"] == 3
        assert 3 <= row["decoder"]["steps"] <= 5 and min(row["decoder"]["objective"]) < row["decoder"]["objective"][0]
        assert row["optimisation"]["after"] < row["optimisation"]["before"]
        assert set(row["seconds"]) == {"observe", "recalibrate", "predict", "optimise"}
    error = summary["truth_mean_absolute_error_gy"]
    assert error["after"] < error["before"]
    kinds = [entry.kind for entry in read_ledger(whole / "ledger.jsonl")]
    of_one = ["measured", "observed", "predicted", "optimised"]
    assert kinds == ["opened", "loop", "predicted", *of_one, *of_one]
    optimised, mean = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(whole / f"dose_{name}.nrrd"))) for name in ("optimised", "mean")
    )
    assert np.abs(optimised - mean).max() > 0 and optimised.min() >= 0
    told = [e.content for e in read_ledger(whole / "ledger.jsonl") if e.kind == "optimised"]
    assert all(c["method"] == "fluence" and 0 < c["explained_correlation"] <= 1 for c in told)


def test_what_is_simulated_says_so_everywhere(whole: Path, target_folder: Path, narrow_weights: Path) -> None:
    summary = summary_of(whole)
    assert summary["simulated"] and summary["simulation"] == "simulated: output +5.0%"
    assert "output +5.0%" in summary["warnings"][0] and "stand in for real ones" in summary["warnings"][0]
    assert all(row["simulated"] for row in summary["fractions"])
    assert any("not shown that a machine can deliver" in warning for warning in summary["warnings"])
    entries = read_ledger(whole / "ledger.jsonl")
    for name in ("dose_mean.nrrd", "dose_optimised.nrrd"):
        assert SIMULATION_REMARK in read_dose_image(whole / name).remarks
    rows = [row for e in entries for row in e.content.get("observations", [])]
    assert rows and all(row["simulated"] == "true" for row in rows)
    prior = Twin(Patient.load(target_folder), narrow_weights, "cpu").dose_belief
    assert isinstance(prior, DoseBelief)
    assert load_belief(whole / "fraction_2.belief.npz", prior).is_simulated


def without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        left_out = {"seconds", "stage_seconds", "created_utc", "sessions", "ledger"}
        return {key: without_times(inner) for key, inner in value.items() if key not in left_out}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def test_interrupted_after_every_stage_it_comes_out_the_same(
    whole: Path, settings: LoopSettings, target_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, append = tmp_path / "interrupted", Ledger.append
    sessions, said = 0, list[str]()

    def one_result(self: Ledger, kind: str, *content: Any) -> Entry:
        entry = append(self, kind, *content)
        if kind not in ("opened", "loop", "repaired"):
            raise KeyboardInterrupt
        return entry

    monkeypatch.setattr(Ledger, "append", one_result)
    while True:
        sessions += 1
        try:
            summary = loop_patient(target_folder, out, settings, tell=said.append)
            break
        except KeyboardInterrupt:
            if sessions == 4:  # as a crash in the middle of a line leaves it
                with (out / "ledger.jsonl").open("ab") as ledger:
                    ledger.write(b'{"content":{"after_sha')
            if sessions == 5:  # or a crash between ledger and belief
                (out / "fraction_1.belief.npz").unlink(missing_ok=True)
    assert sessions == summary["sessions"] == 10  # nine results and the end
    stages = ("observed", "recalibrated", "predicted", "optimised")
    behind = ["the first prediction", *(f"fraction {fraction}, {stage}" for fraction in (1, 2) for stage in stages)]
    assert said == [f"Going on behind {words}." for words in behind]
    assert not verify(out / "ledger.jsonl")
    told = [e for e in read_ledger(out / "ledger.jsonl") if e.kind not in ("opened", "repaired")]
    expected = [e for e in read_ledger(whole / "ledger.jsonl") if e.kind != "opened"]
    assert [(e.kind, without_times(e.content)) for e in told] == [(e.kind, without_times(e.content)) for e in expected]
    assert any(e.kind == "repaired" for e in read_ledger(out / "ledger.jsonl"))
    assert without_times(summary_of(out)) == without_times(summary_of(whole))
    for name in ("dose_mean.nrrd", "dose_optimised.nrrd"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
        assert b"predicted:=yes" in (out / name).read_bytes()


def test_the_command_says_where_it_goes_on_and_how(
    target_folder: Path, narrow_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    append = Ledger.append
    out, cancelled_at = tmp_path / "loop", ["loop"]

    def cancelling(self: Ledger, kind: str, *content: Any) -> Entry:
        entry = append(self, kind, *content)
        if kind in cancelled_at:
            raise KeyboardInterrupt
        return entry

    monkeypatch.setattr(Ledger, "append", cancelling)
    command = ["loop", str(target_folder), "--out", str(out), "--samples", "2", "--fractions", "1"]
    command += ["--device", "cpu", "--weights", str(narrow_weights)]

    def said() -> str:
        assert main(command) == 130
        return " ".join(capsys.readouterr().err.split())

    assert said().endswith("Cancelled. Nothing half-written was left behind.")  # nothing was computed yet
    cancelled_at[0] = "predicted"
    first = said()
    assert first.endswith("Cancelled. What is done is kept. Go on with the same command.") and "Going on" not in first
    cancelled_at[0] = "measured"
    second = said()
    assert "Going on behind the first prediction." in second and second.endswith("Go on with the same command.")


def cancel_at(word: str) -> Any:
    def progress(done_ratio: float, message: str) -> None:
        if word in message:
            raise Cancelled

    return progress


@pytest.fixture
def begun(settings: LoopSettings, target_folder: Path, tmp_path: Path) -> Path:
    """A loop interrupted within the second fraction."""
    out = tmp_path / "begun"
    with pytest.raises(Cancelled):
        loop_patient(target_folder, out, settings, progress=cancel_at("fraction 2"))
    return out


def test_going_on_with_something_else_is_refused(
    begun: Path, settings: LoopSettings, target_folder: Path, tmp_path: Path
) -> None:
    before = (begun / "ledger.jsonl").read_bytes()
    with pytest.raises(LedgerError, match="other settings: samples"):
        loop_patient(target_folder, begun, replace(settings, samples=5))
    torch.manual_seed(4)
    other = tmp_path / "other.safetensors"
    save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32))), other, {})
    with pytest.raises(LedgerError, match="made with other weights"):
        loop_patient(target_folder, begun, replace(settings, weights=other))
    renamed = Path(shutil.copytree(target_folder, tmp_path / "pt_2"))
    with pytest.raises(LedgerError, match="of patient pt_1, not pt_2"):
        loop_patient(renamed, begun, settings)
    changed = Path(shutil.copytree(target_folder, tmp_path / "changed" / "pt_1"))
    patient = Patient.load(changed)
    assert patient.plan.dose is not None
    openkbp.write_dose(replace(patient.plan.dose, values=patient.plan.dose.values * 1.01), changed / "dose.csv")
    with pytest.raises(LedgerError, match="not those the ledger tells of: dose"):
        loop_patient(changed, begun, settings)
    assert (begun / "ledger.jsonl").read_bytes() == before  # nothing lost


def test_a_belief_of_something_else_is_refused(
    begun: Path, whole: Path, settings: LoopSettings, target_folder: Path
) -> None:
    shutil.copy(whole / "fraction_2.belief.npz", begun / "fraction_1.belief.npz")
    with pytest.raises(LedgerError, match="belief of fraction 1 is not the one"):
        loop_patient(target_folder, begun, settings)
    (begun / "fraction_1.belief.npz").unlink()
    summary = loop_patient(target_folder, begun, settings)
    assert without_times(summary) == without_times(summary_of(whole))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_overwriting_loses_nothing_until_there_is_something_new(
    whole: Path, settings: LoopSettings, target_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    before, other = contents(out), replace(settings, seed=7)
    with pytest.raises(Cancelled):  # in the first prediction
        loop_patient(target_folder, out, other, overwrite=True, progress=cancel_at("sampl"))
    assert contents(out) == before and list(tmp_path.iterdir()) == [out]
    with monkeypatch.context() as patch:  # the process ends before there is a ledger
        patch.setattr("RTDigitalTwinLib.loop.Ledger.__init__", Mock(side_effect=SystemExit))
        patch.setattr("RTDigitalTwinLib.loop.put_back", Mock())
        with pytest.raises(SystemExit):
            loop_patient(target_folder, out, other, overwrite=True)
    assert not out.exists()
    with pytest.raises(OutputError, match="earlier run"):
        loop_patient(target_folder, out, other)
    assert contents(out) == before and list(tmp_path.iterdir()) == [out]
    with pytest.raises(Cancelled):
        loop_patient(target_folder, out, other, overwrite=True, progress=cancel_at("fraction 1"))
    (aside,) = set(tmp_path.iterdir()) - {out}
    assert contents(aside) == before and (out / "ledger.jsonl").is_file()
    summary = loop_patient(target_folder, out, other, overwrite=True)
    assert summary["sessions"] == 2 and list(tmp_path.iterdir()) == [out]
    assert read_ledger(out / "ledger.jsonl")[1].content["seed"] == 7


def test_places_that_hold_something_else(
    whole: Path, settings: LoopSettings, target_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="earlier run"):
        loop_patient(target_folder, whole, settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="something else"):
        loop_patient(target_folder, tmp_path / "mine", settings, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    with Ledger(tmp_path / "other" / "ledger.jsonl") as ledger:
        ledger.append("predicted", {})
    with pytest.raises(OutputError, match="of no loop"):
        loop_patient(target_folder, tmp_path / "other", settings)
    without_dose = Path(shutil.copytree(target_folder, tmp_path / "pt_1"))
    (without_dose / "dose.csv").unlink()
    with pytest.raises(PatientDataError, match="no reference dose to deliver"):
        loop_patient(without_dose, tmp_path / "new", settings)
    assert not (tmp_path / "new").exists()
    for wrong in (replace(settings, samples=1), replace(settings, fractions=0)):
        with pytest.raises(RTDigitalTwinError, match="A loop needs"):
            loop_patient(target_folder, tmp_path / "new", wrong)


def test_fractions_that_were_measured(
    settings: LoopSettings, target_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = NoiseModel(0.02, 0.02)
    rows = [
        MetricObservation("PTV_7000", "mean", 2.0, Moment(f - 1.0, f), noise, f"log of fraction {f}") for f in (1, 3)
    ]
    file = tmp_path / "measured.csv"
    write_measurements(rows, "pt_1", file)
    measured = replace(settings, measurements=file)
    with pytest.raises(PatientDataError, match="measurements of 2 fractions, not 3"):
        loop_patient(target_folder, tmp_path / "three", replace(measured, fractions=3))
    assert not (tmp_path / "three").exists()
    summary = loop_patient(target_folder, tmp_path / "two", measured)
    assert not summary["simulated"] and summary["simulation"] == "" and "stand in" not in str(summary["warnings"])
    assert [row["observations"] for row in summary["fractions"]] == [1, 1]
    assert not any("delivered" in row for row in summary["metrics"])
    assert SIMULATION_REMARK not in read_dose_image(tmp_path / "two" / "dose_mean.nrrd").remarks
    common = ["--weights", str(settings.weights), "--device", "cpu", "--measurements", str(file)]
    assert main(["loop", str(target_folder), "--out", str(tmp_path / "x"), *common, "--shift", "1", "0", "0"]) == 1
    assert "either measured or simulated" in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_times_and_metrics(
    narrow_weights: Path, target_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "loop"
    common = ["--weights", str(narrow_weights), "--device", "cpu", "--samples", "2", "--absorb-outliers"]
    assert main(["loop", str(target_folder), "--out", str(out), "--fractions", "1", *common]) == 0
    printed = capsys.readouterr().out
    assert "recalibrate" in printed and "after 1" in printed and "simulated" in printed
    patient = Patient.load(target_folder)
    shown = {(row["structure"], row["metric"]): row["delivered"] for row in summary_of(out)["metrics"]}
    true = structure_dose_of(delivered_dose(patient, Change()), patient.structures["PTV_7000"])
    assert shown["PTV_7000", "D95"] == pytest.approx(true.metric(DvhMetric.parse("D95"))[0])
    assert "delivered" in printed and f"{shown['PTV_7000', 'D95']:.1f} Gy" in printed
    (row,) = summary_of(out)["fractions"]
    assert row["decoder"]["steps"] >= 20 and row["optimisation"]["steps"] == 30  # the work that is fixed
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "Absorbed by decoder MAP" in report and "Observations in this are simulated" in report
    before, after = (sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"dose_{n}.nrrd"))) for n in ("change", "mean"))
    earlier = Twin(Patient.load(target_folder), narrow_weights, "cpu").predict(2, 0)
    np.testing.assert_allclose(np.nan_to_num(after - before), np.nan_to_num(earlier.mean.values), atol=1e-3)
    with zipfile.ZipFile(out / "scene.mrb") as scene:
        (mrml,) = (scene.read(name).decode() for name in scene.namelist() if name.endswith(".mrml"))
    for name in ("Dose after observing", "Dose before observing", "Change by observing", "Metrics before and after"):
        assert f'name="{name}"' in mrml
    assert {"dvh.csv", "dvh.png", "metrics.csv", "report.html", "scene.mrb"} <= set(summary_of(out)["files"])


def test_the_doses_of_a_dicom_patient_go_back_to_its_record(settings: LoopSettings, tmp_path: Path) -> None:
    written = small_set(tmp_path / "set")
    set_identity(tmp_path / "set", PLANTED)
    out, record = tmp_path / "out", tmp_path / "record"
    loop_patient(tmp_path / "set", out, replace(settings, fractions=1), record=record)
    names = ["RTDOSE.optimised.mean", "RTDOSE.optimised.std"]  # an optimised dose has no calibration
    names += ["RTDOSE.recalibrated.half_width_95", "RTDOSE.recalibrated.mean"]
    assert sorted(path.stem for path in record.iterdir()) == [*names, "RTSTRUCT"]
    plan = pydicom.dcmread(tmp_path / "set" / "RTPLAN.dcm").SOPInstanceUID
    for name, image in (("optimised", "dose_optimised.nrrd"), ("recalibrated", "dose_mean.nrrd")):
        path = record / f"RTDOSE.{name}.mean.dcm"
        ds = pydicom.dcmread(path)
        assert str(ds.PatientName) == PLANTED["PatientName"] and ds.PatientID == PLANTED["PatientID"]
        assert ds.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan
        assert ds.SeriesDescription == f"Simulated: Loop, {name}, mean (RTDigitalTwin, research)"
        read = read_dose_image(path)
        assert read.is_predicted and SIMULATION_REMARK in read.remarks
        gy = sitk.GetArrayFromImage(sitk.ReadImage(str(out / image)))
        step = float(ds.DoseGridScaling)
        np.testing.assert_allclose(read.dose.values, np.nan_to_num(gy), atol=0.51 * step + 1e-5)
    assert written.pseudonym not in (out / "summary.json").read_text()
    for path in (p for p in out.iterdir() if p.is_file()):
        assert not any(text.encode() in path.read_bytes() for text in PLANTED.values()), path.name


def test_a_record_of_no_dicom_patient_is_refused_before_the_work(
    settings: LoopSettings, target_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(PatientDataError, match="Only the dose of a DICOM patient"):
        loop_patient(target_folder, tmp_path / "out", settings, record=tmp_path / "record")
    assert not (tmp_path / "out").exists() and not (tmp_path / "record").exists()
