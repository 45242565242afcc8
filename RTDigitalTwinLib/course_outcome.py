"""What is shown of a course: its trajectory, charts, what triggered what, and the doses of some of its fractions.

Such an outcome goes from the process that lives through a course to the one that shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import ModelError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.outcome import Table, table_from, table_told
from RTDigitalTwinLib.patient.patient_file import grid_from_row, grid_row
from RTDigitalTwinLib.patient.volume import Quantity, Volume

FORMAT = 1
FRACTION_COLUMN, UNCERTAINTY_COLUMN, EVENTS_COLUMN = "Fraction", "Uncertainty (Gy)", "Events"
TWIN, BAND, TRUTH, LIMIT = "twin", "band", "truth", "limit"  # what a curve is, by which it is drawn


@dataclass(frozen=True)
class CourseChart:
    """Columns of the trajectory over its fractions: (title, what it is)."""

    title: str
    unit: str
    curves: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class CourseOutcome:
    """A course as it is shown; all of it is simulated.

    Attributes
    ----------
    policy : by which it was watched, in words.
    trajectory : a row a fraction; its description says what is simulated.
    triggers : a row for each fraction after which something was done: what, and why.
    charts : of the trajectory's columns.
    accumulated, daily : in Gy, by fraction, on one grid.
    highest_gy : the prescribed dose that is 100 %.
    prescribed : fractions.
    summary : for the user to read.
    """

    policy: str
    trajectory: Table
    triggers: Table
    charts: tuple[CourseChart, ...]
    accumulated: Mapping[int, Volume]
    daily: Mapping[int, Volume]
    highest_gy: float
    prescribed: int
    summary: str


def save_course(outcome: CourseOutcome, path: Path) -> None:
    """Write it, uncompressed. Raises OutputError."""
    arrays: dict[str, NDArray] = {}
    for of, volumes in (("accumulated", outcome.accumulated), ("daily", outcome.daily)):
        arrays |= {f"{of} {fraction}": volume.values for fraction, volume in volumes.items()}
    about: dict[str, Any] = {
        "format": FORMAT,
        "grid": grid_row(next(iter(outcome.accumulated.values())).grid),
        "fractions": list(outcome.accumulated),
        "charts": [asdict(chart) for chart in outcome.charts],
        "trajectory": table_told(outcome.trajectory, "trajectory", arrays),
        "triggers": table_told(outcome.triggers, "triggers", arrays),
    } | {name: getattr(outcome, name) for name in ("policy", "highest_gy", "prescribed", "summary")}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with whole_file(path) as aside, aside.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def load_course(path: Path) -> CourseOutcome:
    """What ``save_course`` wrote. Raises ModelError where the file is none or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about.pop("format") != FORMAT:
            raise ValueError("another format")
        grid = grid_from_row(about["grid"])
        doses = {
            of: {f: Volume(arrays[f"{of} {f}"], grid, Quantity.DOSE_GY) for f in about["fractions"]}
            for of in ("accumulated", "daily")
        }
        charts = tuple(CourseChart(c["title"], c["unit"], tuple(map(tuple, c["curves"]))) for c in about["charts"])
        return CourseOutcome(
            about["policy"],
            table_from(about["trajectory"], "trajectory", arrays),
            table_from(about["triggers"], "triggers", arrays),
            charts,
            doses["accumulated"],
            doses["daily"],
            about["highest_gy"],
            about["prescribed"],
            about["summary"],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, RTDigitalTwinError) as error:
        raise ModelError("The course cannot be read.", where=path.name, remedy="Run it again.") from error
