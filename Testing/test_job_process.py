"""The process that does jobs: what it does with those that end, go wrong, are cancelled or left alone by all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from RTDigitalTwinLib import background, job_process
from RTDigitalTwinLib.errors import Cancelled, MemoryShortage, RTDigitalTwinError
from RTDigitalTwinLib.job_process import ENDED_FILE, EXIT_FAULT, PROGRESS_FILE, do, error_in
from RTDigitalTwinLib.job_twins import Twins

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0
# The process with other work: a job's file holds its name, and where it writes.
WORKS = """
import json, os, sys, time
from pathlib import Path
from RTDigitalTwinLib import job_process
from RTDigitalTwinLib.files import whole_folder

def work(folder, progress, twins):
    kind, out = json.loads((folder / "job.json").read_text())
    progress(0.1, "begun")
    if kind == "write":
        with whole_folder(Path(out)) as aside:
            (aside / "RTDOSE.dcm").write_text("a patient's name")
            progress(0.5, "writing")
            time.sleep(600)
    while kind == "listen":
        progress(0.5, "listening")
        time.sleep(0.05)
    if kind == "die":
        os.kill(os.getpid(), 9)
    if kind == "fault":
        raise KeyError
    (folder / "pid").write_text(str(os.getpid()))

job_process._PARENT_LOOKED_AT_S = 0.1
job_process._PAUSE_S = 0.1
job_process._IDLE_S = float(os.environ["IDLE_S"])
job_process.run_job = work
sys.exit(job_process.main(*map(Path, sys.argv[1:])))
"""
REAL = ["-m", "RTDigitalTwinLib.job_process"]
# An application that starts it and is gone.
LEAVES = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
from pathlib import Path
import time
told = Path(sys.argv[2]) / "progress.jsonl"
while not (told.is_file() and "writing" in told.read_text()):
    time.sleep(0.05)
"""
# One that has it beside itself and is killed.
DIES = """
import os, sys
from pathlib import Path
from RTDigitalTwinLib import background
start = background.subprocess.Popen
background.subprocess.Popen = lambda command, **how: start([command[0], sys.argv[1]], **how)
work = background.start(Path(sys.argv[2]))
while background.progress_of(work.folder)[1] != "writing":
    assert not work.poll()
os.kill(os.getpid(), 9)
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="there a process is ended without being asked")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The process's script, which ``background`` starts in place of the real one."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IDLE_S", "60")
    path, start = tmp_path / "works.py", subprocess.Popen
    path.write_text(WORKS)

    def start_script(command: list[str], **how: Any) -> Any:
        return start([command[0], str(path)] if command[1:] == REAL else command, **how)

    monkeypatch.setattr(background.subprocess, "Popen", start_script)
    monkeypatch.setattr(background, "_WORKERS", [])
    yield path
    background.end_process()
    for worker in background._WORKERS:
        wait_until(lambda worker=worker: worker.exit_code is not None)  # type: ignore[misc]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def room_for(kind: str, place: Path) -> Path:
    """A folder with a job of a kind; what it writes goes to ``results`` in the place."""
    room = place / f"room-{len(list(place.iterdir()))}"
    room.mkdir()
    (room / "job.json").write_text(json.dumps([kind, str(place / "results" / "record")]))
    (room / "patient.npz").write_bytes(b"a patient")
    return room


def begun(kind: str, place: Path, words: str) -> background.Work:
    work = background.start(room_for(kind, place))
    wait_until(lambda: background.progress_of(work.folder)[1] == words)
    return work


def pid_of_next(place: Path) -> int:
    """Of the process that does the next job."""
    room = room_for("tell", place)
    background.wait(background.start(room))
    return int((room / "pid").read_text())


def left_in_results(place: Path) -> list[Path]:
    return list((place / "results").iterdir())


def test_jobs_go_to_one_process(script: Path, tmp_path: Path) -> None:
    assert pid_of_next(tmp_path) == pid_of_next(tmp_path) != os.getpid()


def test_another_environment_asks_for_another_process(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, worker = pid_of_next(tmp_path), background._WORKERS[-1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pid_of_next(tmp_path) != first
    wait_until(lambda: worker.exit_code == 0)
    second = pid_of_next(tmp_path)
    monkeypatch.chdir(tmp_path)  # where relative places of results are
    assert pid_of_next(tmp_path) != second


def test_a_job_that_listens_is_cancelled_and_its_process_stays(script: Path, tmp_path: Path) -> None:
    pid = pid_of_next(tmp_path)
    work = begun("listen", tmp_path, "listening")
    start = time.monotonic()
    work.cancel()
    assert time.monotonic() - start < 0.5  # asking does not wait
    wait_until(work.poll)
    assert isinstance(error_in(work.folder), Cancelled) and pid_of_next(tmp_path) == pid


@posix
def test_a_job_that_does_not_listen_is_ended_with_its_process(script: Path, tmp_path: Path) -> None:
    pid, place = pid_of_next(tmp_path), tmp_path / "results"
    work = begun("write", tmp_path, "writing")
    (aside,) = place.iterdir()
    assert (aside / "RTDOSE.dcm").is_file()
    work.cancel()
    following = background.start(room_for("tell", tmp_path))  # waits behind it, and goes to a fresh process
    wait_until(work.poll)
    assert left_in_results(tmp_path) == []
    background.wait(following)
    assert int((following.folder / "pid").read_text()) != pid


def test_a_job_is_not_ended_for_one_cancelled_behind_it(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "_ASKED_S", 0.0)
    work = begun("listen", tmp_path, "listening")
    behind = background.start(room_for("tell", tmp_path))
    behind.cancel()
    time.sleep(0.2)
    assert not behind.poll() and not work.poll()
    monkeypatch.setattr(background, "_ASKED_S", PATIENCE_S)
    work.cancel()
    wait_until(work.poll)
    wait_until(behind.poll)
    assert isinstance(error_in(behind.folder), Cancelled)


@posix
def test_a_process_that_died_is_told_and_the_next_job_has_another(script: Path, tmp_path: Path) -> None:
    pid = pid_of_next(tmp_path)
    with pytest.raises(RTDigitalTwinError, match=r"ended by itself \(exit code -9\)"):
        background.wait(background.start(room_for("die", tmp_path)))
    again = pid_of_next(tmp_path)
    assert again != pid
    os.kill(again, signal.SIGKILL)  # between two jobs
    assert pid_of_next(tmp_path) not in (pid, again)


def test_after_a_fault_the_next_job_has_another_process(script: Path, tmp_path: Path) -> None:
    pid = pid_of_next(tmp_path)
    with pytest.raises(RTDigitalTwinError, match=r"The computation failed \(KeyError\)"):
        background.wait(background.start(room_for("fault", tmp_path)))
    assert pid_of_next(tmp_path) != pid


def test_an_idle_process_ends_and_the_next_job_does_not_notice(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDLE_S", "0.3")
    pid, worker = pid_of_next(tmp_path), background._WORKERS[-1]
    wait_until(lambda: worker.exit_code == 0)
    assert pid_of_next(tmp_path) != pid


def test_a_job_told_to_a_process_that_just_ended_goes_to_another(script: Path, tmp_path: Path) -> None:
    pid, worker = pid_of_next(tmp_path), background._WORKERS[-1]
    worker.end()
    worker.takes_jobs = True  # as if it had become idle in this moment
    assert pid_of_next(tmp_path) != pid


@posix
def test_work_whose_application_is_gone_takes_the_patient_s_files_away(script: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    room = room_for("write", tmp_path)
    subprocess.run([sys.executable, "-c", LEAVES, str(script), str(room)], check=True, timeout=PATIENCE_S)
    wait_until(lambda: not room.exists() and left_in_results(tmp_path) == [])


@posix
def test_so_does_the_process_that_stays(script: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    room = room_for("write", tmp_path)
    died = subprocess.run([sys.executable, "-c", DIES, str(script), str(room)], timeout=PATIENCE_S)
    assert died.returncode == -signal.SIGKILL
    wait_until(lambda: not room.exists() and left_in_results(tmp_path) == [])


@posix
def test_an_application_that_ends_ends_it_with_what_it_does(script: Path, tmp_path: Path) -> None:
    work, worker = begun("write", tmp_path, "writing"), background._WORKERS[-1]
    start = time.monotonic()
    background.end_process()
    assert time.monotonic() - start < 0.5
    wait_until(lambda: worker.exit_code is not None)
    assert not work.folder.exists() and left_in_results(tmp_path) == []


@posix
def test_a_process_asked_again_still_takes_all_away(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose job ends when its application does: it hears of both while it clears away."""
    slow = "\nremove = shutil.rmtree\ndef slow(path, **how):\n    (path / 'clearing').touch()\n    time.sleep(1)\n"
    slow += "    remove(path, **how)\njob_process.shutil.rmtree = slow\n"
    script.write_text(WORKS.replace("\njob_process.run_job", f"\nimport shutil{slow}job_process.run_job"))
    work, worker = begun("listen", tmp_path, "listening"), background._WORKERS[-1]
    background.end_process()
    wait_until((work.folder / "clearing").exists)
    worker.kill(at_once=False)
    wait_until(lambda: worker.exit_code is not None)
    assert not work.folder.exists()


@posix
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGCONT])
def test_abandoned_work_leaves_no_folder(script: Path, tmp_path: Path, sent: signal.Signals) -> None:
    """Neither where its process dies unheard, nor where it ends later than anyone looks."""
    work, worker = begun("listen", tmp_path, "listening"), background._WORKERS[-1]
    os.kill(worker._process.pid, signal.SIGSTOP)
    start = time.monotonic()
    background.end_process()
    background.abandon(work)
    assert time.monotonic() - start < 0.5 and work.folder.exists()
    os.kill(worker._process.pid, sent)
    wait_until(lambda: worker.exit_code is not None)
    wait_until(lambda: not work.folder.exists())


def test_work_that_ended_unseen_leaves_no_folder(script: Path, tmp_path: Path) -> None:
    work = background.start(room_for("tell", tmp_path))
    wait_until((work.folder / ENDED_FILE).exists)
    background.end_process()
    background.abandon(work)
    assert not work.folder.exists()


@posix
def test_an_application_that_ends_takes_abandoned_work_s_folder_along(tmp_path: Path) -> None:
    work = "from pathlib import Path; from RTDigitalTwinLib import background; import os, sys, signal\n"
    work += "work = background.start(Path(sys.argv[1])); pid = background._WORKERS[-1]._process.pid\n"
    work += "os.kill(pid, signal.SIGSTOP); background.end_process(); background.abandon(work); print(pid)"
    room = room_for("tell", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", work, str(room)], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=PATIENCE_S
    )
    os.kill(int(done.stdout), signal.SIGKILL)  # it never heard of anything
    assert not room.exists()


def test_a_fault_of_the_software_is_told_without_its_words(tmp_path: Path) -> None:
    def work() -> None:
        raise KeyError("/data/a patient's name")

    assert do(tmp_path, work) == EXIT_FAULT
    assert str(error_in(tmp_path)) == "The computation failed (KeyError). Try again."
    assert not (tmp_path / PROGRESS_FILE).exists() and os.listdir(tmp_path) == ["error.json"]


def test_a_shortage_of_memory_is_a_fault(tmp_path: Path) -> None:
    def work() -> None:
        raise MemoryShortage("Not enough memory to predict.")

    assert do(tmp_path, work) == EXIT_FAULT and isinstance(error_in(tmp_path), MemoryShortage)


def test_what_one_job_needs_more_is_given_back_before_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"free": 1000.0, "twin": 700.0, "rest": 800.0}
    forgotten = Twins()
    monkeypatch.setattr(job_process, "own_memory_mib", lambda: sum(held.values()))
    monkeypatch.setattr(job_process, "return_freed_memory", lambda: held.update(free=0.0))
    monkeypatch.setattr(forgotten, "forget", lambda: held.update(twin=0.0))
    assert job_process._has_room(forgotten) and held["twin"] == 700 and held["free"] == 0
    held["rest"] = 1500.0
    assert job_process._has_room(forgotten) and held["twin"] == 0
    held["rest"] = job_process.HELD_MIB + 1.0
    assert not job_process._has_room(forgotten)


def test_one_folder_s_job_is_done_as_ever(tmp_path: Path, script: Path) -> None:
    room = room_for("tell", tmp_path)
    subprocess.run([sys.executable, str(script), str(room)], check=True, timeout=PATIENCE_S)
    assert json.loads((room / ENDED_FILE).read_text()) == 0 and (room / "pid").is_file()
    failed = subprocess.run([sys.executable, str(script), str(room_for("fault", tmp_path))], timeout=PATIENCE_S)
    assert failed.returncode == EXIT_FAULT
