"""Replay: what a ledger tells, done again; equal to the last bit, or by how much it differs and why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief, load_belief, save_belief
from RTDigitalTwinLib.calibration.choice import METHODS, calibrator_named
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.kalman import EnsembleKalman
from RTDigitalTwinLib.calibration.measurements import write_measurements
from RTDigitalTwinLib.calibration.settings import calibrator_of, settings_of
from RTDigitalTwinLib.calibration.simulated_fractions import SimulatedFractions
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.cli_patient import EXIT_DIFFERENT
from RTDigitalTwinLib.decision.fluence import FluenceSettings
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.errors import LedgerError, RTDigitalTwinError
from RTDigitalTwinLib.ledger import FIRST, Ledger, canonical, read_ledger
from RTDigitalTwinLib.ledger_entries import belief_sha256
from RTDigitalTwinLib.loop import LoopSettings, loop_patient
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient.observation import MetricObservation, Moment, NoiseModel
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.replay import replay
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.twin import Twin

NOISE = NoiseModel(0.02, 0.02)


@pytest.fixture(scope="module")
def patient(target_folder: Path) -> Patient:
    return Patient.load(target_folder)


@pytest.fixture(scope="module")
def told(patient: Patient, narrow_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of everything a twin can do: predict, observe by several methods, undo, adopt."""
    path = tmp_path_factory.mktemp("told") / "ledger.jsonl"
    volume = SimulatedFractions(Change(output_error_ratio=0.05)).of(patient, 1)
    mean = MetricObservation("PTV_7000", "mean", 2.0, Moment(1.0, 2), NOISE, "Jane Doe's log")
    with Ledger(path) as ledger:
        twin = Twin(patient, narrow_weights, "cpu", ledger=ledger)
        twin.predict(3, seed=7)
        twin.predict(0)
        twin.observe(volume, DecoderMap(most_steps=3), absorb_outliers=True)
        twin.predict(3, seed=7)
        twin.undo()
        update = twin.observe([*volume, mean], EnsembleKalman(reach_mm=40.0), absorb_outliers=True)
        twin.predict(3)
        assert isinstance(update.after, RecalibratedBelief)
        save_belief(update.after, path.parent / "belief.npz")
        later = Twin(patient, narrow_weights, "cpu", ledger=ledger)
        prior = later.dose_belief
        assert isinstance(prior, DoseBelief)
        later.adopt(load_belief(path.parent / "belief.npz", prior))
        third = MetricObservation("PTV_7000", "D95", 1.9, Moment(2.0, 3), NOISE, "log")
        later.observe([third], absorb_outliers=True)
        later.predict(3)
    return path


def test_all_of_it_comes_out_the_same(told: Path, target_folder: Path, narrow_weights: Path) -> None:
    done = replay(told, target_folder, weights=narrow_weights, device="cpu")
    assert done.is_equal and not done.differences and not done.notes
    assert [row.kind for row in done.repeated] == [
        *("predicted", "predicted", "observed", "predicted", "observed", "predicted", "observed", "predicted")
    ]
    assert "Jane" not in told.read_text()


def test_as_many_threads_as_then_are_used_again(
    patient: Patient, target_folder: Path, narrow_weights: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with Ledger(tmp_path / "ledger.jsonl") as ledger:
            twin = Twin(patient, narrow_weights, "cpu", ledger=ledger)
            twin.observe(SimulatedFractions().of(patient, 1), DecoderMap(most_steps=2), absorb_outliers=True)
            twin.predict(3)
    finally:
        torch.set_num_threads(threads)
    done = replay(tmp_path / "ledger.jsonl", target_folder, weights=narrow_weights, device="cpu")
    assert done.is_equal and not done.differences and torch.get_num_threads() == threads


def test_also_in_another_process(told: Path, target_folder: Path, narrow_weights: Path) -> None:
    command = [sys.executable, "-m", "RTDigitalTwinLib", "replay", str(told), str(target_folder)]
    command += ["--weights", str(narrow_weights), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 results equal to the last bit" in done.stdout


def test_a_loop_comes_out_the_same(
    target_folder: Path, narrow_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = LoopSettings(
        samples=3,
        device="cpu",
        weights=narrow_weights,
        fractions=1,
        calibrator=DecoderMap(most_steps=3),
        optimisation=FluenceSettings(steps=3),
        absorb_outliers=True,
        views=False,
    )
    loop_patient(target_folder, tmp_path / "loop", settings)
    ledger = str(tmp_path / "loop" / "ledger.jsonl")
    assert main(["replay", ledger, str(target_folder), "--weights", str(narrow_weights), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for kind in ("measured", "observed", "predicted", "optimised"):
        assert f"{kind:10} equal to the last bit" in printed


def test_observing_in_two_commands_comes_out_the_same(
    patient: Patient, target_folder: Path, narrow_weights: Path, tmp_path: Path
) -> None:
    common = ["--weights", str(narrow_weights), "--device", "cpu", "--samples", "3", "--absorb-outliers"]
    for fraction, name in ((1, "first"), (2, "second")):
        file = tmp_path / f"{name}.csv"
        moment = Moment(fraction - 1.0, fraction)
        row = MetricObservation("PTV_7000", "mean", 1.5 + 0.1 * fraction, moment, NOISE, "log")
        write_measurements([row], patient.pseudonym, file)
        more = ["--belief", str(tmp_path / "first" / "belief.npz")] if fraction == 2 else []
        out = str(tmp_path / name)
        assert main(["observe", str(target_folder), "--measurements", str(file), "--out", out, *common, *more]) == 0
    done = replay(tmp_path / "second" / "ledger.jsonl", target_folder, weights=narrow_weights, device="cpu")
    assert done.is_equal and len(done.repeated) == 6


def test_other_weights_are_named_and_the_difference_sized(
    told: Path, target_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(4)
    other = tmp_path / "other.safetensors"
    save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32), dropout_ratio=0.3)), other, {})
    done = replay(told, target_folder, weights=other, device="cpu")
    assert not done.is_equal
    assert any(line.startswith("weights sha256: ") for line in done.differences)
    first = done.repeated[0]
    assert first.equal is False and "mean dose differs by up to" in first.words and "(PTV_7000" in first.words
    arguments = ["replay", str(told), str(target_folder), "--weights", str(other), "--device", "cpu"]
    assert main(arguments) == EXIT_DIFFERENT
    assert "weights sha256" in " ".join(capsys.readouterr().err.split())


def retold(path: Path, out: Path, number: int, change: dict) -> Path:
    """A ledger with the content of one entry changed and the chain made anew, as a forger with patience would."""
    shutil.copytree(path.parent, out)
    previous, lines = FIRST, []
    for entry in read_ledger(path):
        content = dict(entry.content) | (change if entry.number == number else {})
        body = {"number": entry.number, "kind": entry.kind, "time_utc": entry.time_utc}
        body |= {"previous": previous, "content": content}
        previous = sha256(canonical(body)).hexdigest()
        lines.append(canonical(body | {"sha256": previous}) + b"\n")
    (out / path.name).write_bytes(b"".join(lines))
    head = canonical({"entries": len(lines), "sha256": previous})
    (out / f"{path.name}.head").write_bytes(head)
    return out / path.name


def test_what_was_told_wrongly_shows(told: Path, target_folder: Path, narrow_weights: Path, tmp_path: Path) -> None:
    """A chain alone does not tell a forger's numbers; doing it again does."""
    entry = read_ledger(told)[1]
    metrics = {"PTV_7000": dict(entry.content["metrics"]["PTV_7000"])}
    metrics["PTV_7000"]["mean"] = np.nextafter(metrics["PTV_7000"]["mean"], np.inf)  # by the last bit
    path = retold(told, tmp_path / "metric", entry.number, {"metrics": metrics})
    done = replay(path, target_folder, weights=narrow_weights, device="cpu")
    assert [row.number for row in done.repeated if not row.equal] == [entry.number]
    assert "metrics differ by up to" in done.repeated[0].words
    path = retold(told, tmp_path / "seed", entry.number, {"seed": 8})
    done = replay(path, target_folder, weights=narrow_weights, device="cpu")
    assert [row.number for row in done.repeated if not row.equal] == [entry.number]
    assert "samples differ" in done.repeated[0].words
    calibrator = {"method": "", "name": "mine", "settings": {}}
    path = retold(told, tmp_path / "mine", 7, {"calibrator": calibrator})
    done = replay(path, target_folder, weights=narrow_weights, device="cpu")
    lost = {row.number: row.words for row in done.repeated if row.equal is None}
    assert lost.keys() == {7, 8, 11, 12} and not done.is_equal
    assert "none of this software's" in lost[7] and lost[12] == "it rests on entry 7"


def test_versions_that_differ_are_named(told: Path, target_folder: Path, narrow_weights: Path, tmp_path: Path) -> None:
    opened = read_ledger(told)[0].content
    change = {
        "code_sha256": "0" * 64,
        "library_versions": dict(opened["library_versions"]) | {"torch": "1.0"},
        "machine": dict(opened["machine"]) | {"processor": "abacus"},
    }
    path = retold(told, tmp_path / "old", 1, change)
    done = replay(path, target_folder, weights=narrow_weights, device="cpu")
    assert done.is_equal  # it says what differs, whether or not it matters
    assert any(line.startswith("library versions, torch: 1.0 then, ") for line in done.differences)
    assert any(line.startswith("code sha256: 000000000000 then, ") for line in done.differences)
    assert any(line.startswith("machine, processor: abacus then, ") for line in done.differences)


def test_bad_input(
    told: Path, target_folder: Path, narrow_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--weights", str(narrow_weights), "--device", "cpu"]
    renamed = Path(shutil.copytree(target_folder, tmp_path / "pt_2"))
    assert main(["replay", str(told), str(renamed), *common]) == 1
    assert "of patient pt_1, not pt_2" in " ".join(capsys.readouterr().err.split())
    broken = Path(shutil.copytree(told.parent, tmp_path / "broken")) / told.name
    broken.write_bytes(broken.read_bytes().replace(b'"seed":7', b'"seed":6', 1))
    assert main(["replay", str(broken), str(target_folder), *common]) == 1
    assert "Entry 2" in capsys.readouterr().err
    lost = Path(shutil.copytree(told.parent, tmp_path / "lost")) / told.name
    shutil.rmtree(lost.with_name("ledger.jsonl.arrays"))
    with pytest.raises(LedgerError, match="cannot be read"):
        replay(lost, target_folder, weights=narrow_weights, device="cpu")
    with Ledger(tmp_path / "empty.jsonl"):
        pass
    with pytest.raises(LedgerError, match="tells of no patient"):
        replay(tmp_path / "empty.jsonl", target_folder)


def test_a_belief_from_elsewhere_must_be_given(
    told: Path, patient: Patient, target_folder: Path, narrow_weights: Path, tmp_path: Path
) -> None:
    belief = told.parent / "belief.npz"
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        twin = Twin(patient, narrow_weights, "cpu", ledger=ledger)
        prior = twin.dose_belief
        assert isinstance(prior, DoseBelief)
        loaded = load_belief(belief, prior)
        twin.adopt(loaded)
        twin.predict(2)
    with pytest.raises(LedgerError, match="Give the belief's file"):
        replay(path, target_folder, weights=narrow_weights, device="cpu")
    assert replay(path, target_folder, weights=narrow_weights, device="cpu", belief=belief).is_equal
    other = tmp_path / "other.npz"
    again = Twin(patient, narrow_weights, "cpu")
    more = [MetricObservation("PTV_7000", "D50", 2.0, Moment(3.0, 4), NOISE, "log")]
    update = again.observe(more, absorb_outliers=True)
    assert isinstance(update.after, RecalibratedBelief) and belief_sha256(update.after) != belief_sha256(loaded)
    save_belief(update.after, other)
    with pytest.raises(LedgerError, match="not the belief that entry 2"):
        replay(path, target_folder, weights=narrow_weights, device="cpu", belief=other)


def test_calibrators_are_told_and_made_again() -> None:
    for method in METHODS:
        calibrator = calibrator_named(method)
        assert calibrator_of(json.loads(canonical(settings_of(calibrator)))) == calibrator
    changed = DecoderMap(most_steps=7, tolerance_ratio=0.1)
    assert calibrator_of(settings_of(changed)) == changed
    with pytest.raises(RTDigitalTwinError, match="other settings in this version"):
        calibrator_of({"method": "kalman", "name": "ensemble Kalman", "settings": {"reach_cm": 6}})
