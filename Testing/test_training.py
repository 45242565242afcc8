"""Training: it learns, mirrors, resumes on the same curve, and refuses what it cannot use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.errors import Cancelled, TrainingError
from RTDigitalTwinLib.model.features import CHANNELS
from RTDigitalTwinLib.model.network import NetworkConfiguration
from RTDigitalTwinLib.model.training import (
    CHECKPOINT,
    LOG,
    WEIGHTS,
    Training,
    TrainingSettings,
    refuse_to_overwrite,
    train,
)
from RTDigitalTwinLib.model.training_data import TrainingCase, load_cases, split_folders
from RTDigitalTwinLib.model.weights import load_network
from RTDigitalTwinLib.patient.patient import Patient

NARROW = NetworkConfiguration(widths=(8, 8, 16, 16, 32))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def case(sample_folder: Path) -> TrainingCase:
    return load_cases([sample_folder])[0]


@pytest.fixture(scope="module")
def small_case(case: TrainingCase) -> TrainingCase:
    """A 32-voxel cube of the case around its target, for tests of the loop rather than of learning."""
    target = np.argwhere(case.structures >> (CHANNELS.index("PTV_7000") - 1) & 1).mean(axis=0).astype(int)
    box = tuple(slice(c - 16, c + 16) for c in target)
    return TrainingCase("cube", case.ct[box], case.structures[box], case.dose_gy[box], case.mask[box])


def test_packing_keeps_what_it_says(case: TrainingCase, sample_folder: Path) -> None:
    patient = Patient.load(sample_folder)
    assert patient.plan.dose is not None
    kept = case.dose_gy.astype(np.float32)
    assert kept[case.mask].sum() == pytest.approx(patient.plan.dose.values.sum(dtype=float), rel=1e-4)
    channels, dose, mask = case.tensors(mirrored=False)
    assert channels.shape[:2] == (1, 11)
    for name, structure in patient.structures.items():
        inside = structure.mask[patient.dose_mask.mask].sum()
        assert int(channels[0, CHANNELS.index(name)][mask[0]].sum()) == inside, name


def test_mirroring_swaps_the_parotids(case: TrainingCase) -> None:
    plain, dose, mask = case.tensors(mirrored=False)
    mirrored, mirrored_dose, mirrored_mask = case.tensors(mirrored=True)
    left, right = CHANNELS.index("Parotid_L"), CHANNELS.index("Parotid_R")
    assert torch.equal(mirrored[0, left], plain[0, right].flip(-1))
    assert torch.equal(mirrored[0, right], plain[0, left].flip(-1))
    assert torch.equal(mirrored[0, 0], plain[0, 0].flip(-1))
    assert torch.equal(mirrored_dose, dose.flip(-1)) and torch.equal(mirrored_mask, mask.flip(-1))


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    settings = TrainingSettings(minutes=10, learning_rate=1e-3, warm_up_ratio=0.1)
    assert settings.rate_at(0.05) == pytest.approx(5e-4)
    assert settings.rate_at(0.1) == pytest.approx(1e-3)
    assert settings.rate_at(0.55) == pytest.approx(5e-4)
    assert settings.rate_at(1.0) == pytest.approx(0, abs=1e-12)
    assert settings.rate_at(1.2) == pytest.approx(0, abs=1e-12)


def test_one_patient_is_learned(small_case: TrainingCase, tmp_path: Path) -> None:
    training = Training(TrainingSettings(minutes=60), tmp_path, CPU, NetworkConfiguration(dropout_ratio=0.0))
    losses = [training.step(small_case) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.25 * losses[0]


def run_steps(training: Training, case: TrainingCase, count: int) -> list[float]:
    losses = []
    training.precision = torch.float32  # chosen by a timing, which differs from run to run
    for _ in range(count):
        training.seconds = 60.0 * training.steps  # the schedule follows the clock: make it the same in every run
        losses.append(training.step(case))
    return losses


def test_resuming_goes_on_with_the_same_curve(small_case: TrainingCase, tmp_path: Path) -> None:
    settings = TrainingSettings(minutes=30)
    whole = run_steps(Training(settings, tmp_path / "whole", CPU, NARROW), small_case, 8)
    first = Training(settings, tmp_path / "parts", CPU, NARROW)
    begun = run_steps(first, small_case, 4)
    first.save()
    second = Training(settings, tmp_path / "parts", CPU, NARROW)
    second.resume()
    assert begun + run_steps(second, small_case, 4) == pytest.approx(whole, rel=1e-4)


def test_a_short_training_writes_weights_log_and_checkpoint(
    small_case: TrainingCase, sample_folder: Path, tmp_path: Path
) -> None:
    training = Training(TrainingSettings(minutes=0.02, validations=2), tmp_path, CPU, NARROW)
    messages: list[str] = []
    digest = train(
        training, [small_case], [Patient.load(sample_folder)], lambda done, message: messages.append(message)
    )
    assert load_network(tmp_path / WEIGHTS).sha256 == digest
    log = json.loads((tmp_path / LOG).read_text())
    assert log == training.log and log[-1]["validation_dose_score_gy"] > 0
    assert any("validation" in message for message in messages)
    with pytest.raises(TrainingError, match="earlier training"):
        refuse_to_overwrite(tmp_path)


def test_an_interrupted_training_leaves_its_checkpoint(
    small_case: TrainingCase, sample_folder: Path, tmp_path: Path
) -> None:
    training = Training(TrainingSettings(minutes=5), tmp_path, CPU, NARROW)

    def stop(done_ratio: float, message: str) -> None:
        if training.steps == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(training, [small_case], [], stop)
    resumed = Training(TrainingSettings(minutes=5), tmp_path, CPU, NARROW)
    resumed.resume()
    assert resumed.steps == 3


def test_checkpoints_that_do_not_fit_are_refused(small_case: TrainingCase, tmp_path: Path) -> None:
    settings = TrainingSettings(minutes=5)
    with pytest.raises(TrainingError, match="no checkpoint"):
        Training(settings, tmp_path, CPU, NARROW).resume()
    Training(settings, tmp_path, CPU, NARROW).save()
    other = NetworkConfiguration(widths=(8, 8, 8, 8, 8))
    with pytest.raises(TrainingError, match="another network configuration"):
        Training(settings, tmp_path, CPU, other).resume()
    checkpoint = tmp_path / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        Training(settings, tmp_path, CPU, NARROW).resume()


def test_folders_are_split_and_too_few_refused(sample_folder: Path, tmp_path: Path) -> None:
    for split, name in (("train-pats", "pt_1"), ("train-pats", "pt_2"), ("validation-pats", "pt_3")):
        (tmp_path / split / name).mkdir(parents=True)
        shutil.copy(sample_folder / "voxel_dimensions.csv", tmp_path / split / name)
    training, validation = split_folders(tmp_path)
    assert [f.name for f in training] == ["pt_1", "pt_2"] and [f.name for f in validation] == ["pt_3"]
    training, validation = split_folders(tmp_path / "train-pats")
    assert [f.name for f in training] == ["pt_1"] and [f.name for f in validation] == ["pt_2"]
    with pytest.raises(TrainingError, match="at least two"):
        split_folders(sample_folder.parent)
    with pytest.raises(TrainingError, match="no such folder"):
        split_folders(tmp_path / "nowhere")


def test_a_patient_without_dose_cannot_be_trained_on(damaged_folder: Path) -> None:
    (damaged_folder / "dose.csv").unlink()
    with pytest.raises(TrainingError, match="pt_1.*no reference dose"):
        load_cases([damaged_folder])
