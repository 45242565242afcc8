"""What the commands print, and how they show progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from RTDigitalTwinLib import progress

RESEARCH_USE = "Research use only. Not for clinical decisions."
NOT_INFORMATIVE = "says nothing"  # a band that leaves nearly all of 0 to 100 % open

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


def print_metrics(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """DVH metrics with their unit, a row each; ``columns`` are headings by what a row calls the number."""
    table = Table(title=Text(title))
    for heading in ("structure", "metric", *columns.values()):
        table.add_column(heading, justify="left" if heading in ("structure", "metric") else "right")
    judged = any(row.get("covers_reference") is not None for row in rows)
    if judged:
        table.add_column("reference is")
    for row in rows:
        cells = {key: "not known" if row[key] is None else f"{row[key]:.1f} {row['unit']}" for key in columns}
        if row.get("informative") is False:
            cells |= dict.fromkeys(("low", "high"), NOT_INFORMATIVE)
        where = [_where_the_reference_is(row)] if judged else []
        table.add_row(Text(row["structure"]), row["metric"], *cells.values(), *where)
    Console(highlight=False).print(table)


def _where_the_reference_is(row: Mapping[str, Any]) -> Text:
    """In words; nothing where the band does not tell."""
    if row["covers_reference"] is None or row["informative"] is False:
        return Text("")
    return Text("inside") if row["covers_reference"] else Text("outside", "yellow")
