"""What the commands print, and how they show progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from RTDigitalTwinLib import progress

RESEARCH_USE = "Research use only. Not for clinical decisions."

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


def print_notes(warnings: Sequence[str]) -> None:
    for warning in warnings:
        console.print("[yellow]Note:[/]", end=" ")
        console.print(warning, markup=False, soft_wrap=True)


def print_metrics(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """DVH metrics with their unit, a row each; ``columns`` are headings by what a row calls the number."""
    table = Table(title=Text(title))
    for heading in ("structure", "metric", *columns.values()):
        table.add_column(heading, justify="left" if heading in ("structure", "metric") else "right")
    for row in rows:
        numbers = [row[key] for key in columns]
        cells = ["not known" if v is None else f"{v:.1f} {row['unit']}" for v in numbers]
        table.add_row(Text(row["structure"]), row["metric"], *cells)
    Console(highlight=False).print(table)
