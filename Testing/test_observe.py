"""The twin observes: adopted, flagged, undone; and the command from a file to a folder."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from RTDigitalTwinLib.calibration.belief import load_belief
from RTDigitalTwinLib.calibration.choice import METHODS, calibrator_named
from RTDigitalTwinLib.calibration.linear import GlobalScale
from RTDigitalTwinLib.calibration.measurements import write_measurements
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.cli_patient import OBSERVING_METHODS
from RTDigitalTwinLib.errors import LedgerError, ModelError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.ledger import Ledger, read_ledger
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient.observation import MetricObservation, Moment, NoiseModel, ScalarObservation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.twin import Twin
from Testing.builders import small_patient

NOISE = NoiseModel(0.02, 0.002)


@pytest.fixture(scope="module")
def weights(narrow_weights: Path) -> Path:
    return narrow_weights


def observed(twin: Twin, name: str, off_gy: float, fraction: int = 1) -> ScalarObservation:
    """A structure's mean as the twin expects it for one fraction, off by so much over the course."""
    expected = float(twin.predict(32).metric(name, "mean").mean)
    value = max((expected + off_gy) / 35, 0.0)
    return MetricObservation(name, "mean", value, Moment(fraction - 1.0, fraction), NOISE, "made up")


@pytest.fixture(scope="module")
def twin(weights: Path) -> Twin:
    return Twin(small_patient(), weights, "cpu")


def test_a_twin_adopts_and_undoes(twin: Twin) -> None:
    first = twin.dose_belief
    before = twin.predict(4)
    update = twin.observe([observed(twin, "PTV_7000", 1.0)], absorb_outliers=True)
    assert update.before is first and update.after is twin.dose_belief and len(update.absorbed) == 1
    moved = twin.predict(4)
    assert moved.metric("PTV_7000", "mean").mean > before.metric("PTV_7000", "mean").mean
    with pytest.raises(PatientDataError, match="not yet absorbed"):
        twin.observe(update.absorbed)
    twin.observe([observed(twin, "PTV_7000", 1.0, fraction=2)], GlobalScale(), absorb_outliers=True)
    assert twin.undo() is update.after and twin.undo() is first
    assert np.array_equal(twin.predict(4).deviations_gy, before.deviations_gy)
    with pytest.raises(RTDigitalTwinError, match="nothing to undo"):
        twin.undo()


def test_outliers_are_left_out_unless_told_to(twin: Twin) -> None:
    wild = [observed(twin, "PTV_7000", 40.0)]
    first = twin.dose_belief
    update = twin.observe(wild)
    assert update.left_out == tuple(wild) and not update.absorbed and twin.dose_belief is first
    told = twin.observe(wild, absorb_outliers=True)
    assert told.judgements[0].is_outlier and told.absorbed == tuple(wild)
    assert twin.undo() is first


def test_a_twin_adopts_only_its_own_beliefs(twin: Twin, weights: Path) -> None:
    update = twin.observe([observed(twin, "PTV_7000", 0.5)], absorb_outliers=True)
    twin.undo()
    other = Twin(replace(twin.patient, pseudonym="another"), weights, "cpu")
    with pytest.raises(ModelError, match="of patient small-patient, not another"):
        other.adopt(update.after)  # type: ignore[arg-type]
    same = Twin(twin.patient, weights, "cpu")
    same.adopt(update.after)  # type: ignore[arg-type]
    assert same.dose_belief is update.after


@pytest.fixture(scope="module")
def source(target_folder: Path) -> Path:
    return target_folder


@pytest.fixture(scope="module")
def measurements(weights: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    patient = Patient.load(source)
    drawn = Twin(patient, weights, "cpu").predict(4)
    moment, sure = Moment(0.0, 1), NoiseModel(0.001, 0.001)
    good = [
        MetricObservation(
            "PTV_7000", metric, float(drawn.metric("PTV_7000", metric).mean + 0.5) / 35, moment, sure, "made up", True
        )
        for metric in ("mean", "D95")
    ]
    wild = MetricObservation("PTV_7000", "D50", 9.0, moment, NOISE, "made up")
    path = tmp_path_factory.mktemp("measured") / "day.csv"
    write_measurements([*good, wild], patient.pseudonym, path)
    return path


def observe(source: Path, weights: Path, measurements: Path, out: Path, *more: str) -> int:
    common = ["--measurements", str(measurements), "--samples", "4", "--device", "cpu", "--weights", str(weights)]
    return main(["observe", str(source), "--out", str(out), *common, *more])


def test_observe_writes_before_and_after(
    source: Path, weights: Path, measurements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "observed"
    assert observe(source, weights, measurements, out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {path.name for path in out.iterdir()} == set(summary["files"])
    assert {"dose_mean.nrrd", "dose_change.nrrd", "metrics.csv", "dvh.csv", "belief.npz"} <= set(summary["files"])
    assert "What was observed" in (out / "report.html").read_text()
    if not any("no scene" in warning for warning in summary["warnings"]):
        assert "scene.mrb" in summary["files"]
    assert summary["simulated"] and any("simulated" in w for w in summary["warnings"])
    for volume in out.glob("*.nrrd"):
        assert sitk.ReadImage(str(volume)).GetMetaData("simulated") == "yes"
    assert [o["absorbed"] for o in summary["observations"]] == [True, True, False]
    assert any("PTV_7000 D50" in warning for warning in summary["warnings"])
    printed = capsys.readouterr()
    told = printed.out.index("2 of 3 observations absorbed.\nLeft out as an outlier: PTV_7000 D50")
    assert told < printed.out.index("before") and "Research use only" in printed.out  # ahead of the table
    assert " Gy expected" in printed.out.partition("Left out")[2].partition("\n")[0]  # why
    assert "Outlier, left out" not in printed.err  # nor twice
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    (target,) = (r for r in rows if (r["structure"], r["metric"]) == ("PTV_7000", "mean"))
    assert float(target["after"]) > float(target["before"])
    for when in ("before", "after"):
        assert float(target[f"low_{when}"]) < float(target[when]) < float(target[f"high_{when}"])
    band = f"({float(target['low_before']):.1f} to {float(target['high_before']):.1f})"
    assert band in printed.out
    change, mean = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(out / f))) for f in ("dose_change.nrrd", "dose_mean.nrrd")
    )
    assert change.shape == mean.shape and change.any()
    patient = Patient.load(source)
    prior = Twin(patient, weights, "cpu").dose_belief
    assert isinstance(prior, DoseBelief)
    again = load_belief(out / "belief.npz", prior).sample(4, 0)
    assert np.abs(again.mean.values - mean).max() < 1e-3
    assert observe(source, weights, measurements, out) == 1  # not over earlier results
    assert "earlier" in capsys.readouterr().err
    assert observe(source, weights, measurements, out, "--overwrite", "--method", "scale") == 0
    assert json.loads((out / "summary.json").read_text())["method"] == "global scale"


def test_observe_refuses_bad_input(
    source: Path, weights: Path, measurements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.csv"
    foreign.write_text(measurements.read_text().replace("pt_1,", "pt_7,"))
    assert observe(source, weights, foreign, tmp_path / "out") == 1
    assert "of patient pt_7, not of pt_1" in " ".join(capsys.readouterr().err.split())
    assert observe(source, weights, measurements, measurements.parent) == 1
    assert measurements.is_file() and not (tmp_path / "out").exists()
    only_wild = tmp_path / "wild.csv"
    lines = measurements.read_text().splitlines()
    only_wild.write_text("\n".join([lines[0], lines[-1]]) + "\n")
    assert observe(source, weights, only_wild, tmp_path / "out") == 0
    assert "0 of 1 observation absorbed.\nLeft out as an outlier: PTV_7000 D50" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["method"] is None and "belief.npz" not in summary["files"]


def test_the_command_offers_every_calibrator() -> None:
    assert OBSERVING_METHODS == METHODS
    assert len({calibrator_named(method).name for method in METHODS}) == len(METHODS)
    with pytest.raises(RTDigitalTwinError, match="no calibrator 'guess'"):
        calibrator_named("guess")


def test_observe_keeps_a_ledger_and_goes_on_with_it(
    source: Path, weights: Path, measurements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert observe(source, weights, measurements, first) == 0
    entries = read_ledger(first / "ledger.jsonl")
    assert [e.kind for e in entries] == ["opened", "predicted", "observed", "predicted"]
    summary = json.loads((first / "summary.json").read_text())
    assert summary["ledger"] == {"entries": 4, "sha256": entries[-1].sha256}
    text = (first / "ledger.jsonl").read_text()
    assert str(tmp_path) not in text and "made up" not in text  # no path, no free text
    observed_entry = entries[2].content
    assert [j["absorbed"] for j in observed_entry["judgements"]] == [True, True, False]
    later = tmp_path / "later.csv"
    later.write_text("\n".join(measurements.read_text().replace(",1,1,", ",2,1,").splitlines()[:3]) + "\n")
    belief = str(first / "belief.npz")
    assert observe(source, weights, later, second, "--belief", belief) == 0
    going_on = read_ledger(second / "ledger.jsonl")
    assert going_on[:4] == entries
    assert [e.kind for e in going_on[4:]] == ["opened", "adopted", "predicted", "observed", "predicted"]
    assert going_on[5].content["belief_sha256"] == observed_entry["after_sha256"]
    capsys.readouterr()
    # A belief that the ledger beside it does not end with.
    (second / "belief.npz").write_bytes((first / "belief.npz").read_bytes())
    assert observe(source, weights, later, tmp_path / "third", "--belief", str(second / "belief.npz")) == 1
    assert "does not end with it" in capsys.readouterr().err and not (tmp_path / "third").exists()


def test_a_ledger_is_of_one_patient_and_one_network(twin: Twin, weights: Path, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        Twin(twin.patient, weights, "cpu", ledger=ledger).predict(2)
        other = replace(twin.patient, pseudonym="another")
        with pytest.raises(LedgerError, match="of patient small-patient, not another"):
            Twin(other, weights, "cpu", ledger=ledger).predict(2)
        less = {name: s for name, s in twin.patient.structures.items() if name != "Parotid_L"}
        with pytest.raises(LedgerError, match="not those the ledger tells of: structures"):
            Twin(replace(twin.patient, structures=less), weights, "cpu").tell(ledger)
        torch.manual_seed(4)
        path = tmp_path / "other.safetensors"
        save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32))), path, {})
        with pytest.raises(LedgerError, match="made with other weights"):
            Twin(twin.patient, path, "cpu").tell(ledger)
        assert len(ledger.entries) == 2 and not ledger.verify()
