"""Progress of long work: a callable gets the share done (0..1) and a message, and may cancel by raising Cancelled."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]
Tell = Callable[[str], None]  # gets sentences for the user on the way


def silent(done_ratio: float, message: str) -> None:
    """Progress nobody watches."""


def untold(words: str) -> None:
    """Sentences nobody reads."""


def part(progress: Progress, start_ratio: float, end_ratio: float) -> Progress:
    """Progress of a part of the work, mapped into the whole's ``start_ratio``..``end_ratio``."""

    def mapped(done_ratio: float, message: str) -> None:
        progress(start_ratio + done_ratio * (end_ratio - start_ratio), message)

    return mapped
