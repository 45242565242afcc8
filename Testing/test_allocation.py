"""Memory that is freed stays with the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from RTDigitalTwinLib.allocation import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
COUNT_FAULTS = """
import resource, sys, torch
from RTDigitalTwinLib.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(6):
    torch.ones(2**24).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, mode], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    # 64 MB ten times over: 16,384 pages each time where they are given back, and next to none where they are kept.
    assert faults("kept") < 2000 < 20_000 < faults("as it is")
