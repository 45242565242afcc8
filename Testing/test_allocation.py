"""Memory that is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from RTDigitalTwinLib.allocation import keep_freed_memory, return_freed_memory

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
