"""What a job's twin worked out serves the next job, and changes none of its results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib import background, jobs
from RTDigitalTwinLib.calibration.measurements import write_measurements
from RTDigitalTwinLib.errors import ModelError, PatientDataError
from RTDigitalTwinLib.job_twins import Twins
from RTDigitalTwinLib.jobs import BELIEF_FILE, MEASUREMENTS_FILE, NEW_BELIEF_FILE, OUTCOME_FILE, PATIENT_FILE
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import manifest_path, save_weights
from RTDigitalTwinLib.patient.observation import MetricObservation, Moment, NoiseModel
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.patient_file import save_patient
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.solver.calibration_file import calibration_path
from RTDigitalTwinLib.twin import Twin
from Testing.builders import small_patient

ROOT = Path(__file__).resolve().parent.parent
MEASURED = MetricObservation("Parotid_L", "mean", 0.9, Moment(0.0, 1), NoiseModel(0.02, 0.002), "made up")


@pytest.fixture
def weights(narrow_weights: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    copy = tmp_path / "mine.safetensors"
    for path_of in (lambda path: path, manifest_path, calibration_path):
        shutil.copy(path_of(narrow_weights), path_of(copy))
    return copy


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Files of a patient and of a belief, of which there is none yet."""
    save_patient(small_patient(), tmp_path / PATIENT_FILE)
    return tmp_path / PATIENT_FILE, tmp_path / BELIEF_FILE


@pytest.fixture
def one_process() -> Iterator[None]:
    background.end_process()
    yield
    background.end_process()


def dose_of(twin: Twin) -> np.ndarray:
    return twin.predict(2, 0).mean.values


def of(twins: Twins, places: tuple[Path, Path], weights: Path, device: str = "cpu") -> Twin:
    return twins.of(*places, str(weights), device, lambda done, words: None)


def told(job: jobs.Job, place: Path, name: str, patient: Patient, belief: Path | None = None) -> Path:
    """A folder with a job and what it needs."""
    room = place / name
    room.mkdir()
    save_patient(patient, room / PATIENT_FILE)
    if isinstance(job, jobs.Observe):
        write_measurements([MEASURED], patient.pseudonym, room / MEASUREMENTS_FILE)
    if belief is not None:
        shutil.copy(belief, room / BELIEF_FILE)
    jobs.write_job(job, room)
    return room


def test_results_are_those_of_a_fresh_process_to_the_last_bit(
    narrow_weights: Path, tmp_path: Path, one_process: None
) -> None:
    patient, weights = small_patient(), str(narrow_weights)
    edited = replace(patient, structures={n: s for n, s in patient.structures.items() if n != "SpinalCord"})
    belief = tmp_path / "observe warm" / NEW_BELIEF_FILE
    rounds: list[tuple[str, jobs.Job, Patient, Path | None]] = [
        ("begin", jobs.Predict(2, 0, "cpu", weights), patient, None),
        ("predict", jobs.Predict(3, 1, "cpu", weights), patient, None),
        ("observe", jobs.Observe(2, 0, "cpu", weights, "decoder", True), patient, None),
        ("predict believed", jobs.Predict(3, 1, "cpu", weights), patient, belief),
        ("believed again", jobs.Predict(2, 1, "cpu", weights), patient, belief),
        ("rank", jobs.Recommend(2, 0, "cpu", weights, 0.4, customary=(), spare=("Parotid_L",)), patient, None),
        ("edited", jobs.Predict(2, 0, "cpu", weights), edited, None),
    ]
    processes = set()
    for name, job, of_patient, believed in rounds:
        warm = told(job, tmp_path, f"{name} warm", of_patient, believed)
        background.wait(background.start(warm))
        processes.add(background._WORKERS[-1])
        if name in ("begin", "believed again"):
            continue
        fresh = told(job, tmp_path, f"{name} fresh", of_patient, believed)
        command = [sys.executable, "-m", "RTDigitalTwinLib.job_process", str(fresh)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert (warm / OUTCOME_FILE).read_bytes() == (fresh / OUTCOME_FILE).read_bytes(), name
        assert (warm / NEW_BELIEF_FILE).is_file() == (name == "observe")
        if name == "observe":
            assert (warm / NEW_BELIEF_FILE).read_bytes() == (fresh / NEW_BELIEF_FILE).read_bytes()
    assert len(processes) == 1


def test_the_same_patient_s_work_serves_again(weights: Path, places: tuple[Path, Path]) -> None:
    twins = Twins()
    first = of(twins, places, weights)
    drawn = first.predict(2, 0)
    save_patient(small_patient(), places[0])  # written anew, the same
    again = of(twins, places, weights)
    assert again is not first and again.dose_model is first.dose_model
    assert again.predict(2, 0) is drawn and of(Twins(), places, weights).predict(2, 0) is not drawn


def test_another_patient_of_the_same_name_has_the_network_alone(weights: Path, places: tuple[Path, Path]) -> None:
    twins, patient = Twins(), small_patient()
    first = of(twins, places, weights)
    first_dose = dose_of(first)
    ct = patient.ct
    denser = replace(patient.images[0], volume=Volume(ct.values + np.int16(100), ct.grid, ct.quantity))
    save_patient(replace(patient, images=(denser,)), places[0])
    other = of(twins, places, weights)
    assert other.dose_model is first.dose_model and other.patient is not first.patient
    assert not np.array_equal(dose_of(other), first_dose)
    assert np.array_equal(dose_of(other), dose_of(of(Twins(), places, weights)))


def test_words_that_are_shown_are_of_the_patient_too(weights: Path, places: tuple[Path, Path]) -> None:
    twins = Twins()
    of(twins, places, weights)
    save_patient(replace(small_patient(), warnings=("a slice is missing",)), places[0])
    assert "a slice is missing" in of(twins, places, weights).patient.warnings


def test_other_weights_in_the_same_place_are_noticed(weights: Path, places: tuple[Path, Path]) -> None:
    twins = Twins()
    first = of(twins, places, weights)
    before = dose_of(first)
    torch.manual_seed(4)
    calibration_path(weights).unlink()
    save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32), dropout_ratio=0.3)), weights, {})
    other = of(twins, places, weights)
    assert other.dose_model.surrogate.weights_sha256 != first.dose_model.surrogate.weights_sha256
    assert not np.array_equal(dose_of(other), before) and not other.predict(2, 0).is_calibrated


def test_so_are_a_manifest_and_a_calibration(weights: Path, places: tuple[Path, Path]) -> None:
    twins = Twins()
    first = of(twins, places, weights)
    manifest = json.loads(manifest_path(weights).read_text())
    manifest_path(weights).write_text(json.dumps(manifest | {"training": {"pseudonyms": ["small-patient"]}}))
    second = of(twins, places, weights)
    assert second.dose_model is not first.dose_model and second.dose_model.surrogate.trained_on == {"small-patient"}
    calibration_path(weights).unlink()
    assert of(twins, places, weights).dose_model.calibration is None
    weights.unlink()
    with pytest.raises(ModelError, match="no such weights file"):
        of(twins, places, weights)


def test_another_device_has_a_network_of_its_own(
    weights: Path, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = Twins()
    first = of(twins, places, weights, "cpu")
    if not torch.cuda.is_available():
        assert of(twins, places, weights, "auto").dose_model is first.dose_model  # the same device by another name
        with pytest.raises(ModelError, match="torch finds no CUDA GPU"):
            of(twins, places, weights, "cuda")
        return
    assert of(twins, places, weights, "cuda").dose_model.surrogate.device.type == "cuda"


def test_a_damaged_patient_is_told_and_what_was_held_is_gone(weights: Path, places: tuple[Path, Path]) -> None:
    twins = Twins()
    first = of(twins, places, weights)
    whole = places[0].read_bytes()
    places[0].write_bytes(whole[:1000])
    with pytest.raises(PatientDataError, match="cannot be read"):
        of(twins, places, weights)
    places[0].write_bytes(whole)
    assert of(twins, places, weights).patient is not first.patient


def test_a_twin_begins_anew_from_the_network_s_belief(weights: Path) -> None:
    twin = Twin(small_patient(), weights, "cpu")
    prior, drawn = twin.dose_belief, twin.predict(2, 0)
    twin.observe([MEASURED], absorb_outliers=True)
    assert twin.dose_belief is not prior
    again = twin.anew()
    assert again.dose_belief is prior and again.predict(2, 0) is drawn
    assert twin.dose_belief is not prior  # the other stays as it is


@pytest.mark.parametrize(("doing", "lasts"), [("job_process.main(folder)", True), ("jobs.run_job(folder)", False)])
def test_what_the_process_imports_is_not_searched_for_garbage(
    doing: str, lasts: bool, weights: Path, places: tuple[Path, Path]
) -> None:
    """In the process of jobs alone: inside an application its own objects would stay as well."""
    jobs.write_job(jobs.Predict(2, 0, "cpu", str(weights)), places[0].parent)
    code = "import gc, sys; from pathlib import Path; from RTDigitalTwinLib import job_process, jobs\n"
    code += f"folder = Path(sys.argv[1]); {doing}; print(gc.get_freeze_count(), gc.isenabled())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(places[0].parent)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    frozen, enabled = done.stdout.split()
    assert enabled == "True" and (int(frozen) > 100_000 if lasts else int(frozen) < 1000)
    assert (places[0].parent / OUTCOME_FILE).is_file()
