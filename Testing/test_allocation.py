"""Memory that is freed stays with the process; threads that wait leave the core to others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from RTDigitalTwinLib.allocation import (
    COUNTS,
    WAIT_POLICY,
    keep_freed_memory,
    let_waiting_threads_sleep,
    return_freed_memory,
)

ROOT = Path(__file__).resolve().parent.parent
COUNT_FAULTS = """
import resource, sys, torch
from RTDigitalTwinLib.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).sum()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults)[10])
"""


LEAVE_GAPS = """
import torch
from RTDigitalTwinLib.allocation import keep_freed_memory, own_memory_mib, return_freed_memory
keep_freed_memory()
blocks = [torch.ones(2**20) for _ in range(200)]  # 4 MiB each
blocks = blocks[::20]
before = own_memory_mib()
assert return_freed_memory()
print(before - own_memory_mib())
"""


SHORT_LOOPS = """
import os, sys, time
from RTDigitalTwinLib.allocation import let_waiting_threads_sleep
if sys.argv[1] == "asleep":
    assert let_waiting_threads_sleep()
import torch
assert not let_waiting_threads_sleep()  # too late
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # two threads on one core, which OpenMP does not know
torch.set_num_threads(2)
some = torch.ones(2**17)
some + 1
began = time.process_time()
for _ in range(100):
    some + 1
print(time.process_time() - began)
"""


def faults(mode: str) -> int:
    """Page faults of a 64 MB tensor, in the median of twenty: a fresh block now and then is no matter."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, mode], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    given_back = faults("as it is")
    if given_back < 1000:
        pytest.skip("this machine's pages are too large to count by")
    assert faults("kept") < given_back / 10


def test_gaps_go_back_to_the_system() -> None:
    if not return_freed_memory():
        pytest.skip("the C library is not glibc")
    done = subprocess.run([sys.executable, "-c", LEAVE_GAPS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > 500  # of 760 MiB between the blocks that are left


LASTING = """
import gc, sys
from RTDigitalTwinLib.allocation import lasting_imports
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
with lasting_imports():
    collections.clear()  # of the one at the beginning
    import torch
    print(len(collections))
print(gc.isenabled(), gc.get_freeze_count())
with lasting_imports():
    kept = gc.get_freeze_count()
    more = [[] for _ in range(10_000)]
    print(len(collections) > 0)
print(gc.get_freeze_count() <= kept)
"""


def test_what_a_command_imports_is_not_searched_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", LASTING], cwd=ROOT, capture_output=True, text=True, check=True)
    during, enabled, frozen, later, unchanged = done.stdout.split()
    assert (during, enabled, later, unchanged) == ("0", "True", "True", "True")
    assert int(frozen) > 100_000  # torch alone


COMMAND = """
import gc, sys
from RTDigitalTwinLib.cli import main
code = main(sys.argv[1:])
print(code, gc.get_freeze_count(), "torch" in sys.modules)
"""
MEASURED = (
    "patient,kind,structure,metric,value,unit,days,fraction,fractions,noise_ratio,noise_floor,source\n"
    "pt_1,metric,PTV_7000,mean,{value},Gy,0,1,1,0.02,0.1,film\n"
)


def after(*arguments: str) -> tuple[int, int, bool]:
    """Exit code of a command that has a process to itself, objects frozen at its end, and whether torch is there."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, frozen, torch = done.stdout.splitlines()[-1].split()
    return int(code), int(frozen), torch == "True"


@pytest.mark.parametrize("goals", [[], ["--goals", "rtog0225"]])
def test_what_run_imports_lasts(goals: list[str], target_folder: Path, narrow_weights: Path, tmp_path: Path) -> None:
    command = ["run", str(target_folder), "--out", str(tmp_path / "out"), "--weights", str(narrow_weights)]
    code, frozen, _ = after(*command, "--device", "cpu", "--samples", "0", *goals)
    assert code == 0 and frozen > 100_000


@pytest.mark.parametrize("command", ["observe", "loop", "recommend"])
def test_measurements_are_checked_before_the_imports_that_last(
    command: str, target_folder: Path, tmp_path: Path
) -> None:
    measurements = tmp_path / "day.csv"
    arguments = [command, str(target_folder), "--out", str(tmp_path / "out"), "--measurements", str(measurements)]
    measurements.write_text(MEASURED.format(value="seventy"))
    assert after(*arguments) == (1, 0, False)
    measurements.write_text(MEASURED.format(value="70"))
    code, frozen, _ = after(*arguments, "--device", "abacus")  # refused after all is imported
    assert code == 1 and frozen > 100_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cores are told and chosen by Linux alone")
def test_threads_that_wait_leave_the_core_to_others() -> None:
    """Two threads on one core: the one that has ended its part of a loop does not count until the other has."""

    def seconds(mode: str) -> float:
        told = {k: v for k, v in os.environ.items() if k not in (WAIT_POLICY, COUNTS)}
        done = subprocess.run(
            [sys.executable, "-c", SHORT_LOOPS, mode], cwd=ROOT, capture_output=True, text=True, check=True, env=told
        )
        return float(done.stdout)

    counting = seconds("as it is")
    if counting < 0.2:
        pytest.skip("this OpenMP does not wait by counting")
    assert seconds("asleep") < counting / 4


def test_what_the_user_says_of_waiting_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name, other in ((WAIT_POLICY, COUNTS), (COUNTS, WAIT_POLICY)):
        with monkeypatch.context() as told:
            told.delenv(other, raising=False)
            told.setenv(name, "active" if name == WAIT_POLICY else "7")
            before = dict(os.environ)
            assert not let_waiting_threads_sleep() and dict(os.environ) == before
