"""Training in several processes, and on machines that have little installed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from RTDigitalTwinLib.model.network import NetworkConfiguration
from RTDigitalTwinLib.model.schedule import TrainingSettings
from RTDigitalTwinLib.model.training import CHECKPOINT, LOG, WEIGHTS, Training
from RTDigitalTwinLib.model.training_data import TrainingCase, pack_cohort
from RTDigitalTwinLib.model.weights import load_network
from RTDigitalTwinLib.model.workers import Workers
from RTDigitalTwinLib.train import main
from Testing.builders import small_patient

ROOT = Path(__file__).resolve().parent.parent
NOT_FOR_TRAINING = (
    "monai",
    "SimpleITK",
    "safetensors",
    "rich",
    "matplotlib",
    "vtk",
    "vtkmodules",
    "scipy",
    "pydicom",
    "jinja2",
)


def training_of_two(rank: int, count: int, out: Path) -> tuple[Training, list[TrainingCase]]:
    torch.set_num_threads(1)
    configuration = NetworkConfiguration(widths=(4, 4, 8, 8, 16), dropout_ratio=0.0)
    settings = TrainingSettings(1, mirrored_ratio=0.0, turned_ratio=0.0, warm_up_ratio=0.0)
    training = Training(settings, out, torch.device("cpu"), configuration, workers=Workers(rank, count))
    training.precision = torch.float32
    return training, [TrainingCase.of(small_patient()), TrainingCase.of(replace(small_patient(), pseudonym="again"))]


def work(rank: int, folder: str, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    workers, _ = Workers.join(torch.device("cpu"))
    training, cases = training_of_two(workers.rank, workers.count, Path(folder) / "out")
    assert workers == Workers(rank, 2)
    seen: list[str] = []
    step = training.step

    def noted(case: TrainingCase) -> float:
        seen.append(case.pseudonym)
        return step(case)

    training.step = noted  # type: ignore[method-assign]
    for _ in range(2):
        training.next_step(cases)
    assert workers.agreed(rank + 5.0, torch.device("cpu")) == 5.0
    values = [torch.full((2, 3), float(rank)), torch.tensor(10.0 * rank)]
    workers.mean(values)
    assert values[0].tolist() == [[0.5] * 3] * 2 and float(values[1]) == 5.0
    torch.save([training.network.state_dict(), training.seconds, seen], Path(folder) / f"{rank}.pt")
    workers.part()


def test_two_processes_keep_one_network(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (str(tmp_path), port), nprocs=2)
    (first, seconds, ours), (second, other_seconds, theirs) = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    assert seconds == other_seconds > 0
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # In every step each had another patient, and both learned from both.
    assert [{a, b} for a, b in zip(ours, theirs, strict=True)] == [{"small-patient", "again"}] * 2


def test_torchrun_trains(two_patients: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "RTDigitalTwinLib.train", str(two_patients), "--out", str(out), "--minutes", "0.0001"]
    done = subprocess.run(
        [*command, "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("1 step: validation dose score") == 1
    assert load_network(out / WEIGHTS).manifest["training"]["steps"] == 1
    assert torch.load(out / CHECKPOINT, weights_only=True)["steps"] == 1


def test_training_needs_only_torch_and_numpy(
    two_patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cohort, out = tmp_path / "two.cohort", tmp_path / "out"
    pack_cohort(two_patients, cohort)
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {NOT_FOR_TRAINING}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from RTDigitalTwinLib.train import main\n"
        "sys.exit(main())\n"
    )
    options = [str(cohort), "--out", str(out), "--minutes", "0.0001", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    bare = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300
    )
    assert bare.returncode == 1 and "safetensors is not installed here" in bare.stderr, bare.stderr
    assert "1 min" not in bare.stderr and (out / LOG).is_file() and not (out / WEIGHTS).exists()
    monkeypatch.setattr(sys, "argv", ["train", *options, "--resume"])
    assert main() == 0
    assert "1 step: validation dose score" in capsys.readouterr().out
    assert load_network(out / WEIGHTS).manifest["training"]["steps"] == 1
    assert (out / "log.png").stat().st_size > 5000
