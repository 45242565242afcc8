"""``python -m Testing.Benchmarks [NAMES] [--out DIR] [--quick]``: each line in a process of its own, one table.

A process of its own, so that none warms up or burdens the next and its peak memory is its own. Writes ``bench.json``
and ``bench.md``; a line that needs a package or patients that are not here is skipped by name.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from Testing.Benchmarks.framework import Benchmark, Effort, measured, table

MODULES = (
    "sampling", "growth", "sampling_error", "sessions", "runs", "startup", "recalibration_step", "training_step",
    "dvh_goals", "dvh_accuracy", "dicom_reading", "resampling", "gpu",
)  # fmt: skip
PATIENCE_S = 600


def benchmarks() -> dict[str, Benchmark]:
    """All lines by name."""
    found = [b for m in MODULES for b in importlib.import_module(f"Testing.Benchmarks.{m}").BENCHMARKS]
    return {benchmark.name: benchmark for benchmark in found}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m Testing.Benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these lines")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and samples")
    parser.add_argument("--list", action="store_true", help="the lines' names")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--peak-flops", type=float, default=math.nan, help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = benchmarks()
    if options.list:
        print("\n".join(known))
        return 0
    if options.one:
        print(json.dumps(measured(known[options.one], Effort(options.quick), options.peak_flops)))
        return 0
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"no line {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    about = _machine(options.quick)
    start, lines = time.perf_counter(), []
    for name in options.names or known:
        line = _in_its_own_process(name, options.quick, 1e9 * about["measured_peak_gflop_per_s"])
        lines.append(line)
        said = line.get("skipped") or line.get("failed") or line.get("ratio", "done")
        print(f"{name}: {said}", flush=True)
        about["seconds_so_far"] = round(time.perf_counter() - start)
        _write(options.out, lines, about)
    print(f"{options.out / 'bench.md'}")
    return 1 if any("failed" in line for line in lines) else 0


def _machine(quick: bool) -> dict[str, Any]:
    """What it ran on, with the most arithmetic that this machine was seen to do."""
    code = "import json; from Testing.Benchmarks.peak import machine; print(json.dumps(machine()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout), "quick": quick}


def _in_its_own_process(name: str, quick: bool, peak_flops: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "Testing.Benchmarks", "--one", name, "--peak-flops", str(peak_flops)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command + ["--quick"] * quick, capture_output=True, text=True, timeout=PATIENCE_S, env=environment
        )
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        said = f"took more than {PATIENCE_S} s"
    except (ValueError, IndexError):
        said = "gave no line"
    return {"name": name, "failed": said}


def _write(folder: Path, lines: list[dict[str, Any]], about: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps({"about": about, "lines": lines}, indent=1) + "\n")
    (folder / "bench.md").write_text(table(lines, about))


if __name__ == "__main__":
    sys.exit(main())
