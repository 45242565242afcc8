"""The bench itself: what its lines hold, and that all of them are there by name."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from Testing.Benchmarks.__main__ import benchmarks
from Testing.Benchmarks.framework import Benchmark, Case, Effort, Skipped, Values, flops_of, measured, spent_by, table


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def line_of(setup: Any, **more: Any) -> dict[str, Any]:
    return measured(Benchmark("a line", "ours", "plain", lambda effort: setup, **more), Effort(True))


def test_waiting_counts_for_the_clock_and_not_for_the_processor() -> None:
    line = line_of(Case(lambda: busy(0.02), lambda: time.sleep(0.2), repeats=3))
    assert len(line["ours"]) == len(line["plain"]) == 3
    assert min(line["plain"]) >= 0.2 and max(line["processor_s"]["plain"]) < 0.1
    assert min(line["processor_s"]["ours"]) >= 0.02 and line["processor_s"]["ratio"] < 1
    assert "of processor seconds" in table([line], {})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seen on Linux alone")
def test_a_process_that_goes_on_counts_too() -> None:
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert spent_by(process.stdout.readline).processor_s >= 0.1  # of 0.3, some of it before
        process.stdin.close()


def test_a_line_of_processor_seconds_has_one_ratio() -> None:
    line = line_of(Case(lambda: busy(0.02), lambda: time.sleep(0.1)), processor_seconds=True)
    assert line["ratio"] < 1 and "processor_s" not in line


def test_a_part_of_the_plain_work_stands_for_all_of_it() -> None:
    line = line_of(Case(lambda: busy(0.02), lambda: busy(0.02), plain_times=50.0))
    assert line["processor_s"]["ratio"] > 10


def test_arithmetic_is_counted_on_one_thread() -> None:
    threads, seen = torch.get_num_threads(), []
    product = torch.rand(8, 16) @ torch.rand(16, 4)  # another is counted below, this is not

    def work() -> None:
        seen.append(torch.get_num_threads())
        torch.rand(8, 16) @ torch.rand(16, 4)

    assert flops_of(work) == 2 * 16 * product.numel()
    assert seen == [1] and torch.get_num_threads() == threads


def test_values_and_what_is_missing_are_told() -> None:
    line = line_of(Values((2.0, 4.0, 3.0), (6.0,), {"samples": 3}), unit="Gy")
    assert line["ratio"] == 2.0 and line["ratio_range"] == [1.5, 3.0] and line["facts"] == {"samples": 3}

    def missing(effort: Effort) -> Values:
        raise Skipped("no GPU")

    skipped = measured(Benchmark("another", "", "", missing), Effort())
    assert skipped["skipped"] == "no GPU" and "skipped: no GPU" in table([line, skipped], {})


@pytest.mark.parametrize(
    "asked", ["variance reduction", "loop by stage", "peak memory of run", "arithmetic of a sample"]
)
def test_lines_have_names_of_their_own(asked: str) -> None:
    assert benchmarks()[asked].name == asked
