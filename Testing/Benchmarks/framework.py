"""What a benchmark is, how it is measured, and how its line is written.

A benchmark compares ours with a plain way or a peer in one process: both run in turn (ours, theirs, ours, theirs), so
that a busy machine touches them alike, and the ratio of the medians is what to quote. Beside the clock's seconds stand
those of the processor, which a busy machine changes least.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
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
class Spent:
    """On a piece of work: seconds of the clock, and of the processor (all threads, and processes that it started)."""

    seconds: float
    processor_s: float


@dataclass(frozen=True)
class Values:
    """A comparison that the setup has found itself.

    Attributes
    ----------
    ours, plain : in the line's unit.
    facts : more to tell.
    ours_processor_s, plain_processor_s : processor seconds, where the values are seconds of the clock.
    """

    ours: tuple[float, ...]
    plain: tuple[float, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    ours_processor_s: tuple[float, ...] = ()
    plain_processor_s: tuple[float, ...] = ()

    @classmethod
    def of_seconds(cls, ours: Sequence[Spent], plain: Sequence[Spent], facts: dict[str, Any] | None = None) -> Values:
        """Both clocks of what was timed."""
        return cls(
            tuple(spent.seconds for spent in ours),
            tuple(spent.seconds for spent in plain),
            facts or {},
            tuple(spent.processor_s for spent in ours),
            tuple(spent.processor_s for spent in plain),
        )


@dataclass(frozen=True)
class Benchmark:
    """One line of the table.

    Attributes
    ----------
    name : to ask for it by.
    ours, plain : what is compared, in words.
    setup : makes what is measured; raises Skipped where something is missing.
    unit : of both.
    processor_seconds : the ratio is of these (all threads together) instead of the clock's.
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


def spent_by(work: Work) -> Spent:
    """Runs it once."""
    start, processor_start = time.perf_counter(), _processor_s()
    work()
    return Spent(time.perf_counter() - start, _processor_s() - processor_start)


def seconds_of(work: Work, processor: bool = False) -> float:
    """Runs it once; seconds of the clock, or of the processor."""
    spent = spent_by(work)
    return spent.processor_s if processor else spent.seconds


def _processor_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + _living_children_s()


def _living_children_s() -> float:
    """Of the processes that this one started and that are there, with those that ended of theirs; 0 but on Linux."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            told = path.read_text().rpartition(")")[2].split()
            if int(told[1]) == os.getpid():
                ticks += sum(map(int, told[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def flops_of(work: Work) -> float:
    """Of convolutions and matrix products; a multiplication with its addition counts as two.

    On one thread: the counter sees only the thread that it was made in.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.set_num_threads(threads)
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
            values = case
            line["peak_memory_mib"] = round(peak_memory_mib())
        else:
            values = _values_of(case, line)
    except Skipped as missing:
        return line | {"skipped": str(missing)}
    by_processor = Values(values.ours_processor_s, values.plain_processor_s)
    if benchmark.processor_seconds and by_processor.ours:
        values, by_processor = replace(by_processor, facts=values.facts), Values((), ())
    line |= {"ours": _short(values.ours), "plain": _short(values.plain), **_ratio(values)}
    if by_processor.ours:
        line["processor_s"] = {
            "ours": _short(by_processor.ours), "plain": _short(by_processor.plain), **_ratio(by_processor)
        }  # fmt: skip
    facts = values.facts
    if isinstance(case, Case) and case.counts_flops:
        seconds = (by_processor if by_processor.ours else values).ours
        facts = facts | _efficiency(case, statistics.median(seconds), peak_flops)
    return line | {"facts": facts}


def _values_of(case: Case, line: dict[str, Any]) -> Values:
    """Both ways in turn, after one untimed run of each; writes the process's peaks of memory into the line."""
    case.ours()
    line["peak_memory_mib"] = round(peak_memory_mib())  # plain has not run yet
    if case.plain is not None and case.warm_plain:
        case.plain()
    ours, plain = [], []
    for _ in range(case.repeats):
        ours.append(spent_by(case.ours))
        if case.plain is not None:
            part = spent_by(case.plain)
            plain.append(Spent(part.seconds * case.plain_times, part.processor_s * case.plain_times))
    line["peak_memory_with_plain_mib"] = round(peak_memory_mib())
    return Values.of_seconds(ours, plain, case.facts())


def _ratio(values: Values) -> dict[str, Any]:
    """Plain to ours: of the medians, and from the lowest to the highest pairing; nothing without both."""
    ours, plain = values.ours, values.plain
    if not (ours and plain):
        return {}
    return {
        "ratio": round(statistics.median(plain) / statistics.median(ours), 2),
        "ratio_range": [round(min(plain) / max(ours), 2), round(max(plain) / min(ours), 2)],
    }


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


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def table(lines: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The lines as Markdown."""
    rows = [
        "# Benchmark", "",
        "Every line is a ratio measured in one run: how many times as much the plain way or the peer takes. Medians, "
        "with the lowest and the highest pairing in brackets; beside them the ratio of processor seconds, where ratios "
        "are of seconds. Memory is the process's peak when ours had run.", "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in about.items()), "",
        "| line | ours | plain | ratio | of processor seconds | target | ours, plain | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for line in lines:
        if "skipped" in line or "failed" in line:
            said = f"skipped: {line['skipped']}" if "skipped" in line else f"FAILED: {line['failed']}"
            rows.append(f"| {line['name']} | {line.get('ours_is', '')} | {line.get('plain_is', '')} | {said} | | | | |")
            continue
        ratio, by_processor = _ratio_words(line, "**"), _ratio_words(line.get("processor_s", {}))
        middles = [f"{statistics.median(line[k]):.3g}" for k in ("ours", "plain") if line[k]]
        target = "" if line["target"] is None else f"{line['target']:g}"
        rows.append(
            f"| {line['name']} | {line['ours_is']} | {line['plain_is']} | {ratio} | {by_processor} | {target} | "
            f"{', '.join(middles)} {line['unit']} | {line['peak_memory_mib']} |"
        )
    rows.append("")
    for line in lines:
        if line.get("facts"):
            rows += [f"## {line['name']}", ""]
            rows += [f"- {name.replace('_', ' ')}: {_told(value)}" for name, value in line["facts"].items()]
            rows.append("")
    return "\n".join(rows)


def _ratio_words(found: dict[str, Any], bold: str = "") -> str:
    if "ratio" not in found:
        return "-"
    low, high = found["ratio_range"]
    return f"{bold}{found['ratio']:g}{bold} ({low:g} to {high:g})"


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(v)}" for name, v in value.items())
    if isinstance(value, list):
        return ", ".join(_told(v) for v in value)
    return str(value)
