"""Seconds spent in each stage of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Collects seconds by stage name, in the order the stages were entered.

    Attributes
    ----------
    seconds : of the clock on the wall.
    processor_seconds : of all threads of this process together: what a busy machine hardly changes.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start, processor_start = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            spent = self.processor_seconds.get(name, 0.0) + time.process_time() - processor_start
            self.processor_seconds[name] = spent

    def rounded(self) -> dict[str, float]:
        """Of the clock."""
        return _rounded(self.seconds)

    def rounded_processor(self) -> dict[str, float]:
        """Of the processor."""
        return _rounded(self.processor_seconds)


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
