"""Jobs in processes of their own that are ended or left alone: nothing of a patient stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from RTDigitalTwinLib import background
from RTDigitalTwinLib.job_process import PROGRESS_FILE, do, error_in

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0
# A job that writes a folder slowly, in a process started as those of an application are.
WRITES = """
import sys, time
from pathlib import Path
from RTDigitalTwinLib import job_process
from RTDigitalTwinLib.files import whole_folder

def write(folder, progress):
    with whole_folder(Path(sys.argv[2])) as out:
        (out / "RTDOSE.dcm").write_text("a patient's name")
        progress(0.5, "writing")
        time.sleep(600)

job_process._PARENT_LOOKED_AT_S = 0.1
job_process.run_job = write
sys.exit(job_process.main(Path(sys.argv[1])))
"""
# An application that starts it and is gone.
LEAVES = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]], start_new_session=True)
from pathlib import Path
import time
told = Path(sys.argv[2]) / "progress.jsonl"
while not (told.is_file() and told.read_text()):
    time.sleep(0.05)
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there a process is ended without being asked")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """The script, the job's folder and the place for results."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script, room, out = tmp_path / "writes.py", tmp_path / "room", tmp_path / "results" / "record"
    script.write_text(WRITES)
    room.mkdir()
    out.parent.mkdir()
    return script, room, out


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_cancelled_writing_leaves_no_half_written_folder(
    places: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, room, out = places
    start = subprocess.Popen
    monkeypatch.setattr(
        background.subprocess,
        "Popen",
        lambda command, **how: start([command[0], str(script), str(room), str(out)], **how),
    )
    work = background.start(room)
    wait_until(lambda: background.progress_of(room)[1] == "writing")
    (aside,) = out.parent.iterdir()
    assert (aside / "RTDOSE.dcm").is_file()
    work.cancel()
    assert work.poll() and list(out.parent.iterdir()) == []


def test_work_whose_application_is_gone_takes_the_patient_s_files_away(places: tuple[Path, Path, Path]) -> None:
    script, room, out = places
    (room / "patient.npz").write_bytes(b"a patient")
    subprocess.run([sys.executable, "-c", LEAVES, *map(str, places)], check=True, timeout=PATIENCE_S)
    wait_until(lambda: not room.exists())
    wait_until(lambda: list(out.parent.iterdir()) == [])


def test_a_fault_of_the_software_is_told_without_its_words(tmp_path: Path) -> None:
    def work() -> None:
        raise KeyError("/data/a patient's name")

    assert do(tmp_path, work) == 1
    assert str(error_in(tmp_path)) == "The computation failed (KeyError). Try again."
    assert not (tmp_path / PROGRESS_FILE).exists() and os.listdir(tmp_path) == ["error.json"]
