"""How soon a command answers, against what importing torch alone takes."""

from __future__ import annotations

import subprocess
import sys

from Testing.Benchmarks.framework import Benchmark, Case


def start(name: str, *arguments: str) -> Benchmark:
    def run(*command: str) -> None:
        subprocess.run([sys.executable, *command], check=False, capture_output=True)

    return Benchmark(
        f"start, {name}",
        f"`{name}`",
        "`import torch` in a new interpreter",
        lambda effort: Case(lambda: run(*arguments), lambda: run("-c", "import torch"), effort.of(5, 1)),
    )


BENCHMARKS = (
    start("import RTDigitalTwinLib", "-c", "import RTDigitalTwinLib"),
    start("rt-digital-twin --help", "-m", "RTDigitalTwinLib", "--help"),
    start("import RTDigitalTwinLib.run", "-c", "import RTDigitalTwinLib.run"),
    start("rt-digital-twin doctor", "-m", "RTDigitalTwinLib", "doctor"),
)
