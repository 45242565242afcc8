"""Training: it learns, mirrors, resumes on the same curve, and refuses what it cannot use."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import Cancelled, OutputError, PatientDataError, TrainingError
from RTDigitalTwinLib.model.features import CHANNELS
from RTDigitalTwinLib.model.network import NetworkConfiguration
from RTDigitalTwinLib.model.training import (
    CHECKPOINT,
    LOG,
    MOST_SKIPPED_IN_A_ROW,
    WEIGHTS,
    Training,
    TrainingSettings,
    refuse_to_overwrite,
    train,
)
from RTDigitalTwinLib.model.training_data import TrainingCase, load_cohort, pack_cohort, split_folders
from RTDigitalTwinLib.model.weights import load_network
from RTDigitalTwinLib.model.workers import Workers
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.words import counted
from Testing.builders import small_patient

NARROW = NetworkConfiguration(widths=(8, 8, 16, 16, 32))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine the threads of small convolutions wait for each other ten times longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A job in the background of a shell is born deaf to Ctrl-C, and so would be its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def case(sample_folder: Path) -> TrainingCase:
    return TrainingCase.of(Patient.load(sample_folder))


def cube(case: TrainingCase, name: str, shift: int = 0) -> TrainingCase:
    """32 voxels a side around the target, ``shift`` voxels aside, with a mask that leaves the crop its margin."""
    target = case.structure("PTV_7000").nonzero().float().mean(dim=0).int().tolist()
    box = tuple(slice(c - 16 + shift, c + 16 + shift) for c in target)
    mask = torch.zeros((32, 32, 32), dtype=torch.bool)
    mask[2:-2, 2:-2, 2:-2] = case.mask[box][2:-2, 2:-2, 2:-2]
    return TrainingCase(
        name, case.ct[box], case.structures[box], case.derived[(slice(None), *box)], case.dose_gy[box], mask
    )


@pytest.fixture(scope="module")
def small_case(case: TrainingCase) -> TrainingCase:
    return cube(case, "cube")


@pytest.fixture(scope="module")
def small_cases(case: TrainingCase) -> list[TrainingCase]:
    return [cube(case, f"cube_{shift}", shift) for shift in (-6, 0, 6)]


def narrow_training(out: Path, steps: int, **settings: float) -> Training:
    """A training with a budget of so many steps, each a second on its clock: the same schedule in every run."""
    budget = TrainingSettings(steps / 60, **settings)  # type: ignore[arg-type]
    training = Training(budget, out, CPU, NARROW, clock=count().__next__)
    training.precision = torch.float32  # chosen by a timing otherwise
    return training


def test_packing_keeps_what_it_says(case: TrainingCase, sample_folder: Path) -> None:
    patient = Patient.load(sample_folder)
    assert patient.plan.dose is not None
    kept = case.dose_gy.double()
    assert float(kept[case.mask].sum()) == pytest.approx(patient.plan.dose.values.sum(dtype=float), rel=1e-4)
    channels, mask = case.example().channels, case.example().mask
    assert channels.shape[:2] == (1, len(CHANNELS))
    for name, structure in patient.structures.items():
        inside = structure.mask[patient.dose_mask.mask].sum()
        assert int(channels[0, CHANNELS.index(name)][mask[0]].sum()) == inside, name


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    settings = TrainingSettings(minutes=10, learning_rate=1e-3, warm_up_ratio=0.1, hold_ratio=0.1)
    assert settings.rate_at(0.05) == pytest.approx(5e-4)
    assert settings.rate_at(0.1) == pytest.approx(1e-3)
    assert settings.rate_at(0.55) == pytest.approx(5e-4)
    assert settings.rate_at(1.0) == pytest.approx(0, abs=1e-12)
    assert settings.rate_at(1.2) == pytest.approx(0, abs=1e-12)


def test_the_learning_rate_is_held_for_a_share_of_the_budget() -> None:
    settings = TrainingSettings(minutes=10, learning_rate=1e-3, warm_up_ratio=0.1, hold_ratio=0.6)
    assert [settings.rate_at(r) for r in (0.1, 0.3, 0.6, 0.8, 1.0)] == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 0])


def test_towards_the_end_patients_lie_as_they_do() -> None:
    settings = TrainingSettings(10, turned_ratio=0.5, upended_ratio=0.4, deformed_ratio=0.7, settled_from_ratio=0.6)
    assert settings.moves_at(0.59) == (0.5, 0.4, 0.7)
    assert settings.moves_at(0.6) == settings.moves_at(1.1) == pytest.approx((0.15, 0.12, 0.0))
    assert TrainingSettings(10, settled_from_ratio=1.0).moves_at(0.99) == (0.5, 0.0, 0.0)


def test_the_dvh_loss_comes_late() -> None:
    settings = TrainingSettings(minutes=10, dvh_weight=0.2, dvh_from_ratio=0.5)
    assert [settings.dvh_weight_at(r) for r in (0.0, 0.5, 0.6, 0.7, 1.0)] == pytest.approx([0, 0, 0.1, 0.2, 0.2])


def test_one_patient_is_learned(small_case: TrainingCase, tmp_path: Path) -> None:
    without_dropout = replace(NARROW, dropout_ratio=0.0)
    settings = TrainingSettings(minutes=1, learning_rate=5e-3)
    training = Training(settings, tmp_path, CPU, without_dropout, clock=count().__next__)
    losses = [training.step(small_case) for _ in range(60)]
    # Four seeds end at 0.058 to 0.066 of their start; predicting the median dose everywhere would stay at about 0.6.
    assert np.mean(losses[-5:]) < 0.15 * losses[0]


def test_two_deep_slices_are_never_trained_in_half_precision(small_case: TrainingCase, tmp_path: Path) -> None:
    losses = []
    for precision in (torch.float32, torch.bfloat16):
        training = narrow_training(tmp_path, 8)
        training.precision = precision
        losses.append([training.step(small_case) for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # bfloat16 differs by about 1e-3


def test_a_step_without_finite_numbers_changes_no_weight(small_cases: list[TrainingCase], tmp_path: Path) -> None:
    dose = small_cases[1].dose_gy.clone()
    dose[16, 16, 16] = np.nan
    broken = replace(small_cases[1], pseudonym="broken", dose_gy=dose)
    training = narrow_training(tmp_path, 6, validations=1)
    train(training, [small_cases[0], broken], [small_patient()])
    assert training.skipped == 3 and training.log[-1]["skipped"] == 3
    assert np.isfinite(training.log[-1]["training_l1_gy"])

    hopeless = narrow_training(tmp_path / "hopeless", 100)
    before = {name: value.clone() for name, value in hopeless.network.state_dict().items()}
    with pytest.raises(TrainingError, match="broken: .*20 steps in a row"):
        train(hopeless, [broken], [small_patient()])
    assert hopeless.steps == hopeless.skipped == MOST_SKIPPED_IN_A_ROW
    kept = narrow_training(tmp_path / "hopeless", 100)
    kept.resume()
    assert kept.skipped == MOST_SKIPPED_IN_A_ROW
    assert all(torch.equal(value, before[name]) for name, value in kept.network.state_dict().items())


@pytest.mark.parametrize("moment", ["between steps", "in a step", "before a validation"])
def test_an_interrupted_training_goes_on_with_the_same_curve(
    moment: str, small_cases: list[TrainingCase], tmp_path: Path
) -> None:
    patient = small_patient()
    whole = narrow_training(tmp_path / "whole", 8, validations=2)
    train(whole, small_cases, [patient])

    first = narrow_training(tmp_path / "parts", 8, validations=2)
    ticks = count()

    def interrupting_clock() -> float:
        now = next(ticks)
        if now == 6:  # the fourth step has its patient and begins
            signal.raise_signal(signal.SIGINT)
        return now

    def cancel(done_ratio: float, message: str) -> None:
        if first.steps == 4 and ("validating" in message) == (moment == "before a validation"):
            raise Cancelled

    if moment == "in a step":
        first.clock = interrupting_clock
        with pytest.raises(KeyboardInterrupt):
            train(first, small_cases, [patient])
    else:
        with pytest.raises(Cancelled):
            train(first, small_cases, [patient], cancel)
    second = narrow_training(tmp_path / "parts", 8, validations=2)
    second.resume()
    assert second.steps == 4 and second.log == []
    train(second, small_cases, [patient])
    assert second.steps == whole.steps == 8
    assert second.recent_gy == pytest.approx(whole.recent_gy, rel=1e-4)
    assert [entry["steps"] for entry in second.log] == [4, 8]
    for ours, theirs in zip(second.log, whole.log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_validations_follow_a_changed_budget(small_cases: list[TrainingCase], tmp_path: Path) -> None:
    patient = small_patient()
    first = narrow_training(tmp_path, 8, validations=4)

    def stop(done_ratio: float, message: str) -> None:
        if first.steps == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(first, small_cases, [patient], stop)
    assert [entry["steps"] for entry in first.log] == [2, 4]
    longer = narrow_training(tmp_path, 16, validations=4)
    longer.resume()
    with pytest.raises(Cancelled):
        train(longer, small_cases, [patient], lambda done, message: stop_at(longer, 9))
    assert [entry["steps"] for entry in longer.log] == [2, 4, 8]
    spent = narrow_training(tmp_path, 3, validations=4)
    spent.resume()
    shown: list[dict] = []
    digest = train(spent, small_cases, [patient], validated=shown.append)
    assert spent.steps == 9 and [entry["steps"] for entry in shown] == [9]
    assert json.loads((tmp_path / LOG).read_text())[-1] == shown[0]
    assert load_network(tmp_path / WEIGHTS).sha256 == digest


def stop_at(training: Training, steps: int) -> None:
    if training.steps == steps:
        raise Cancelled


def test_a_short_training_writes_weights_log_and_checkpoint(
    small_case: TrainingCase, sample_folder: Path, tmp_path: Path
) -> None:
    training = Training(TrainingSettings(minutes=0.02, validations=2), tmp_path, CPU, NARROW)
    shown: list[dict] = []
    digest = train(training, [small_case], [Patient.load(sample_folder)], validated=shown.append)
    assert load_network(tmp_path / WEIGHTS).sha256 == digest
    log = json.loads((tmp_path / LOG).read_text())
    assert log == training.log == shown and log[-1]["validation_dose_score_gy"] > 0
    assert log[-1]["steps"] == training.steps
    with pytest.raises(TrainingError, match="earlier training"):
        refuse_to_overwrite(tmp_path)


def test_another_number_of_processes_is_not_resumed(small_case: TrainingCase, tmp_path: Path) -> None:
    training = narrow_training(tmp_path, 4)
    training.save()
    training.workers = Workers(0, 4)
    with pytest.raises(TrainingError, match="began with 1 processes, not 4"):
        training.resume()


def test_a_checkpoint_from_before_blocks_goes_on(small_case: TrainingCase, tmp_path: Path) -> None:
    train(narrow_training(tmp_path, 2), [small_case], [small_patient()])
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["configuration"]["block"]
    for unknown in ("upended_ratio", "deformed_ratio", "settled_from_ratio"):
        del state["settings"][unknown]
    torch.save(state, tmp_path / CHECKPOINT)
    training = narrow_training(tmp_path, 4)
    training.resume()
    assert training.steps == state["steps"] > 0


def test_other_data_or_settings_are_not_resumed(small_cases: list[TrainingCase], tmp_path: Path) -> None:
    patient = small_patient()
    train(narrow_training(tmp_path, 2), small_cases, [patient])
    for others, difference in (
        (small_cases[:2], r"1 missing \(cube_6\)"),
        ([*small_cases[:2], replace(small_cases[2], pseudonym="pt_9")], r"1 missing \(cube_6\), 1 new \(pt_9\)"),
        (small_cases[::-1], "order"),
    ):
        training = narrow_training(tmp_path, 4)
        training.resume()
        with pytest.raises(TrainingError, match=f"{CHECKPOINT}: .*other patients: .*{difference}"):
            train(training, others, [patient])
    with pytest.raises(TrainingError, match=r"other settings: seed 0, not 3; learning_rate 0\.001, not 0\.01"):
        narrow_training(tmp_path, 4, seed=3, learning_rate=0.01).resume()
    with pytest.raises(TrainingError, match="another network configuration"):
        other = NetworkConfiguration(widths=(8, 8, 8, 8, 8))
        Training(TrainingSettings(1), tmp_path, CPU, other).resume()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / CHECKPOINT
    with pytest.raises(TrainingError, match="no checkpoint"):
        narrow_training(tmp_path, 4).resume()
    narrow_training(tmp_path, 4).save()
    content = checkpoint.read_bytes()
    state = torch.load(checkpoint, weights_only=True)
    for damaged in (content[:1000], content[:-1000], b"", b"a,b\n1,2\n", pickle.dumps(Path("x"), protocol=2)):
        checkpoint.write_bytes(damaged)
        with pytest.raises(TrainingError, match=f"{CHECKPOINT}: The checkpoint is damaged.*another folder"):
            narrow_training(tmp_path, 4).resume()
    foreign: list[object] = [{k: v for k, v in state.items() if k != name} for name in state]
    foreign += [state["network"], torch.zeros(3), [1, 2], None]
    foreign += [{**state, "network": {**state["network"], "more": torch.zeros(1)}}]
    foreign += [{**state, "optimiser": {}}, {**state, "settings": {}}]
    training = narrow_training(tmp_path, 4)
    for other in foreign:
        torch.save(other, checkpoint)
        with pytest.raises(TrainingError, match=f"{CHECKPOINT}: .*not written by this version.*another folder"):
            training.resume()


def test_a_place_that_cannot_be_written_is_known_before_the_first_step(
    small_case: TrainingCase, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    training = narrow_training(tmp_path / "file" / "out", 4)
    with pytest.raises(OutputError, match="Cannot write"):
        train(training, [small_case], [small_patient()])
    assert training.steps == 0


def test_a_full_disk_keeps_the_earlier_checkpoint(small_case: TrainingCase, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    training = narrow_training(tmp_path, 4)
    training.save()
    kept = (tmp_path / CHECKPOINT).read_bytes()
    training.next_step([small_case])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, hard))  # the kernel refuses as a full disk does
    try:
        with pytest.raises(OutputError, match=CHECKPOINT):
            train(training, [small_case], [small_patient()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert training.steps == 1 and (tmp_path / CHECKPOINT).read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CHECKPOINT, LOG])


def test_validation_patients_need_a_dose(small_case: TrainingCase, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="small-patient: .*no reference dose"):
        train(narrow_training(tmp_path, 4), [small_case], [small_patient(with_dose=False)])
    assert not (tmp_path / CHECKPOINT).exists()


def test_ctrl_c_saves_and_the_command_line_goes_on(
    two_patients: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    command = ["train", str(two_patients), "--out", str(out), "--device", "cpu", "--minutes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "RTDigitalTwinLib", *command, "60"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    timer = threading.Timer(240, process.kill)
    timer.start()
    try:
        while not (out / LOG).exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate()
    finally:
        timer.cancel()
        process.kill()
    assert process.returncode == 130, printed
    assert "Go on with the same command and --resume" in " ".join(printed.split())
    steps = torch.load(out / CHECKPOINT, weights_only=True)["steps"]
    assert main([*command, "0.0001", "--resume"]) == 0
    captured = capsys.readouterr()
    assert f"{counted(steps or 1, 'step')}: validation dose score" in captured.out
    assert f"step {steps or 1}: validation dose score" in " ".join(captured.err.split())
    assert main([*command, "0.0001"]) == 1
    assert "earlier training" in capsys.readouterr().err


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
    shutil.copytree(damaged_folder, damaged_folder.parent / "pt_2")
    with pytest.raises(TrainingError, match="pt_1.*no reference dose"):
        load_cohort(damaged_folder.parent)
    with pytest.raises(PatientDataError, match="pt_1.*no reference dose"):
        pack_cohort(damaged_folder.parent, damaged_folder.parent / "all.cohort")
    assert not (damaged_folder.parent / "all.cohort").exists()
