"""What a benchmark is, how it is measured, and how its line is written.

A benchmark compares ours with a plain way or a peer in one process: both run in turn (ours, theirs, ours, theirs), so
that a busy machine touches them alike, and the ratio of the medians is what to quote.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[], object]


class Skipped(Exception):
    """Something the line needs is not here; says what by name."""


@dataclass(frozen=True)
class Effort:
    """How much to measure: repeats of the whole bench, or the few of ``--quick``."""

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True)
class Case:
    """A benchmark that is set up.

    Attributes
    ----------
    ours, plain : the work; ``plain`` None where there is nothing to compare with.
    repeats : of both, after one untimed run of ours.
    plain_times : what a timed run of ``plain`` is multiplied by, where it is only a part of the work.
    warm_plain : whether plain gets an untimed run too.
    counts_flops : whether the convolutions and products of both are counted.
    facts : more to tell, found after the measurement.
    """

    ours: Work
    plain: Work | None
    repeats: int = 3
    plain_times: float = 1.0
    warm_plain: bool = True
    counts_flops: bool = False
    facts: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Values:
    """A comparison of something other than seconds that the setup has found itself."""

    ours: tuple[float, ...]
    plain: tuple[float, ...]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """One line of the table.

    Attributes
    ----------
    name : to ask for it by.
    ours, plain : what is compared, in words.
    setup : makes what is measured; raises Skipped where something is missing.
    unit : of both.
    processor_seconds : measure these (all threads together) instead of the clock's.
    target : the ratio asked for; None where none was.
    """

    name: str
    ours: str
    plain: str
    setup: Callable[[Effort], Case | Values]
    unit: str = "s"
    processor_seconds: bool = False
    target: float | None = None


def peak_memory_mib() -> float:
    """Of this process until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds_of(work: Work, processor: bool = False) -> float:
    clock = time.process_time if processor else time.perf_counter
    start = clock()
    work()
    return clock() - start


def flops_of(work: Work) -> float:
    """Of convolutions and matrix products; a multiplication with its addition counts as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def measured(benchmark: Benchmark, effort: Effort, peak_flops: float = math.nan) -> dict[str, Any]:
    """The line of a benchmark, as JSON holds it."""
    line: dict[str, Any] = {
        "name": benchmark.name, "ours_is": benchmark.ours, "plain_is": benchmark.plain, "unit": benchmark.unit,
        "target": benchmark.target,
    }  # fmt: skip
    try:
        case = benchmark.setup(effort)
        if isinstance(case, Values):
            ours, plain = list(case.ours), list(case.plain)
            line["peak_memory_mib"] = round(peak_memory_mib())
            facts = case.facts
        else:
            case.ours()
            line["peak_memory_mib"] = round(peak_memory_mib())  # plain has not run yet
            if case.plain is not None and case.warm_plain:
                case.plain()
            ours, plain = [], []
            for _ in range(case.repeats):
                ours.append(seconds_of(case.ours, benchmark.processor_seconds))
                if case.plain is not None:
                    plain.append(seconds_of(case.plain, benchmark.processor_seconds) * case.plain_times)
            line["peak_memory_with_plain_mib"] = round(peak_memory_mib())
            facts = case.facts()
            if case.counts_flops:
                facts |= _efficiency(case, statistics.median(ours), peak_flops)
    except Skipped as missing:
        return line | {"skipped": str(missing)}
    line |= {"ours": [_short(v) for v in ours], "plain": [_short(v) for v in plain]}
    if plain:
        line["ratio"] = round(statistics.median(plain) / statistics.median(ours), 2)
        line["ratio_range"] = [round(min(plain) / max(ours), 2), round(max(plain) / min(ours), 2)]
    return line | {"facts": facts}


def _efficiency(case: Case, seconds: float, peak_flops: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    flops = flops_of(case.ours)
    found["gflop"] = round(flops / 1e9, 1)
    found["gflop_per_s"] = round(flops / seconds / 1e9, 1)
    if math.isfinite(peak_flops):
        found["of_peak_percent"] = round(100 * flops / seconds / peak_flops)
    if case.plain is not None:
        found["plain_gflop"] = round(flops_of(case.plain) * case.plain_times / 1e9, 1)
    return found


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def table(lines: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The lines as Markdown."""
    rows = [
        "# Benchmark", "",
        "Every line is a ratio measured in one run: how many times as much the plain way or the peer takes. Medians, "
        "with the lowest and the highest pairing in brackets. Memory is the process's peak when ours had run.", "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in about.items()), "",
        "| line | ours | plain | ratio | target | ours, plain | peak MiB |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for line in lines:
        if "skipped" in line or "failed" in line:
            said = f"skipped: {line['skipped']}" if "skipped" in line else f"FAILED: {line['failed']}"
            rows.append(f"| {line['name']} | {line.get('ours_is', '')} | {line.get('plain_is', '')} | {said} | | | |")
            continue
        ratio = "-"
        if "ratio" in line:
            low, high = line["ratio_range"]
            ratio = f"**{line['ratio']:g}** ({low:g} to {high:g})"
        middles = [f"{statistics.median(line[k]):.3g}" for k in ("ours", "plain") if line[k]]
        target = "" if line["target"] is None else f"{line['target']:g}"
        rows.append(
            f"| {line['name']} | {line['ours_is']} | {line['plain_is']} | {ratio} | {target} | "
            f"{', '.join(middles)} {line['unit']} | {line['peak_memory_mib']} |"
        )
    rows.append("")
    for line in lines:
        if line.get("facts"):
            rows += [f"## {line['name']}", ""]
            rows += [f"- {name.replace('_', ' ')}: {_told(value)}" for name, value in line["facts"].items()]
            rows.append("")
    return "\n".join(rows)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(v)}" for name, v in value.items())
    if isinstance(value, list):
        return ", ".join(_told(v) for v in value)
    return str(value)
