"""What the commands print, and how they show progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from RTDigitalTwinLib import progress
from RTDigitalTwinLib.errors import Cancelled
from RTDigitalTwinLib.words import decimal

GO_ON = "What is done is kept. Go on with the same command."
RESEARCH_USE = "Research use only. Not for clinical decisions."
ROOM_FOR_BANDS = 100  # characters
NOT_INFORMATIVE = "–"  # in place of a band's limits

console = Console(stderr=True, highlight=False)


@contextmanager
def progress_bar() -> Iterator[progress.Progress]:
    """A bar on a terminal; elsewhere a line whenever another tenth is done."""
    if not console.is_terminal:
        last = -1

        def lines(done_ratio: float, message: str) -> None:
            nonlocal last
            if int(done_ratio * 10) > last:
                last = int(done_ratio * 10)
                console.print(f"{done_ratio:4.0%} {message}", markup=False)

        yield lines
        return
    columns = (
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda done_ratio, message: bar.update(task, completed=done_ratio, description=message)


def tell(words: str) -> None:
    """A line for the user on the way, above a bar that is shown."""
    console.print(words, markup=False, soft_wrap=True)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, for a while, so that it too takes away what is half written and says how to go on.

    A handler that somebody else has set is left in place.
    """
    of_ours = threading.current_thread() is threading.main_thread()
    if not of_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> None:
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)  # whoever holds Ctrl-C up for a moment holds this up too
    else:
        raise KeyboardInterrupt  # in the background a shell has Ctrl-C ignored


@contextmanager
def resumable(can_go_on: Callable[[], bool]) -> Iterator[None]:
    """Work that can be gone on with where ``can_go_on`` says so: to be cancelled then says how."""
    try:
        yield
    except (KeyboardInterrupt, Cancelled) as error:
        if can_go_on():
            raise Cancelled(GO_ON) from error
        raise


def print_notes(notes: Iterable[str], to: Console = console) -> None:
    for note in notes:
        to.print("[yellow]Note:[/]", end=" ")
        to.print(note, markup=False, soft_wrap=True)


def print_table(to: Console, title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(title=Text(title))
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*map(Text, row))
    to.print(table)


@dataclass(frozen=True)
class Band:
    """What a row of metrics calls the limits of a band, and whether it says anything."""

    low: str
    high: str
    informative: str


def print_metrics(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    bands: Mapping[str, Band] | None = None,
) -> None:
    """DVH metrics with their unit, a row each.

    ``columns`` are headings by what a row calls the number, ``bands`` the limits to show beside one, below it on a
    narrow terminal.
    """
    bands = bands or {}
    shown = Console(highlight=False)
    gap = " " if shown.width >= ROOM_FOR_BANDS else "\n"
    table = Table(title=Text(title))
    for heading in ("structure", "metric", *columns.values()):
        table.add_column(heading, justify="left" if heading in ("structure", "metric") else "right")
    for row in rows:
        table.add_row(Text(row["structure"]), row["metric"], *(_cell(row, key, bands.get(key), gap) for key in columns))
    shown.print(table)
    flags = ("informative", *(band.informative for band in bands.values()))
    if any(row.get(flag) is False for row in rows for flag in flags):
        from RTDigitalTwinLib.report.goal_table import UNINFORMATIVE_RULE  # with numpy in tow

        shown.print(f"{NOT_INFORMATIVE}: {UNINFORMATIVE_RULE}.")


def _cell(row: Mapping[str, Any], key: str, band: Band | None, gap: str) -> Text:
    """A number with its unit and, after a ``gap``, its band; of a reference also whether it is outside the band."""
    if row.get("informative") is False and key in ("low", "high"):
        return Text(NOT_INFORMATIVE)
    number = "not known" if row[key] is None else f"{decimal(row[key], 1)} {row['unit']}"
    if key == "reference" and row.get("covers_reference") is False and row.get("informative"):
        return Text(f"{number} outside", "yellow")
    if band is None or row[band.low] is None:
        return Text(number)
    limits = f"{decimal(row[band.low], 1)} to {decimal(row[band.high], 1)}"
    return Text(f"{number}{gap}({limits if row[band.informative] else NOT_INFORMATIVE})")
