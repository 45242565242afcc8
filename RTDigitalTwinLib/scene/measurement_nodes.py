"""Measurements to observe as a table in the scene, with what became of each."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtkmodules.vtkCommonCore import vtkStringArray

from RTDigitalTwinLib.errors import PatientDataError, SceneError
from RTDigitalTwinLib.files import whole_file

TABLE_NAME = "Measurements"
# The names of measurement files, but for the patient and for files of dose volumes, whose paths no scene keeps.
COLUMNS = (
    "kind", "structure", "metric", "x_mm", "y_mm", "z_mm", "value", "unit", "days", "fraction", "fractions",
    "noise_ratio", "noise_floor", "source", "simulated",
)  # fmt: skip
OUTCOME, STEP = "outcome", "step"
WAITING = ""
# What was left out may be given again.
_OPEN_OUTCOMES = (WAITING, "outlier, left out")
DEFAULTS = {
    "kind": "metric",
    "metric": "mean",
    "unit": "Gy",
    "days": "0",
    "fraction": "1",
    "fractions": "1",
    "noise_ratio": "0.02",
    "noise_floor": "0.02",
    "source": "entered by hand",
    "simulated": "false",
}


def measurement_table(scene: Any) -> Any:
    """A new, empty table of measurements."""
    node = scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName(TABLE_NAME))
    for title in (*COLUMNS, OUTCOME, STEP):
        column = vtkStringArray()
        column.SetName(title)
        node.GetTable().AddColumn(column)
    node.SetUseColumnTitleAsColumnHeader(True)
    return node


def measurements(node: Any) -> list[dict[str, str]]:
    """The rows of a table. Raises SceneError where it is no table of measurements."""
    table = node.GetTable()
    columns = {title: table.GetColumnByName(title) for title in (*COLUMNS, OUTCOME, STEP)}
    lacking = [title for title, column in columns.items() if column is None]
    if lacking:
        raise SceneError(f"The table has no column {lacking[0]!r}.", where=node.GetName(),
                         remedy="Choose a table of measurements, or a new one.")  # fmt: skip
    return [
        {title: column.GetVariantValue(row).ToString() for title, column in columns.items()}
        for row in range(table.GetNumberOfRows())
    ]


def set_measurements(node: Any, rows: Iterable[Mapping[str, str]]) -> None:
    """Replace the rows of a table."""
    rows = list(rows)
    was = node.StartModify()
    for title in (*COLUMNS, OUTCOME, STEP):
        column = node.GetTable().GetColumnByName(title)
        column.SetNumberOfValues(len(rows))
        for at, row in enumerate(rows):
            column.SetValue(at, str(row.get(title, "")))
    node.GetTable().Modified()
    node.Modified()
    node.EndModify(was)


def add_measurement(node: Any, **values: str) -> None:
    """Add a row; what is not said is as in ``DEFAULTS``."""
    set_measurements(node, [*measurements(node), DEFAULTS | values])


def remove_measurements(node: Any, positions: Iterable[int]) -> None:
    """Take away rows that were not absorbed. Raises SceneError where one was."""
    gone = set(positions)
    rows = measurements(node)
    if any(rows[at][OUTCOME] not in _OPEN_OUTCOMES for at in gone):
        raise SceneError("A measurement that was absorbed cannot be removed.", remedy="Undo the observing first.")
    set_measurements(node, [row for at, row in enumerate(rows) if at not in gone])


def import_measurements(node: Any, path: Path, pseudonym: str) -> int:
    """Add the rows of a CSV file of this patient's measurements; returns how many. Raises PatientDataError."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            titles, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PatientDataError(
            "The measurements cannot be read.", where=path.name, remedy="Give a CSV file."
        ) from error
    unknown = [title for title in titles if title not in ("patient", "file", "blur_mm", *COLUMNS)]
    if unknown or "kind" not in titles or "patient" not in titles:
        raise PatientDataError(
            f"Nothing is known of the column {unknown[0]!r}."
            if unknown
            else "The columns kind or patient are missing.",
            where=path.name,
            remedy=f"The columns are patient, {', '.join(COLUMNS)}.",
        )
    for number, row in enumerate(rows, start=1):
        where = f"{path.name}, row {number}"
        if row["patient"] != pseudonym:
            raise PatientDataError(
                f"It is of patient {row['patient'] or '(none named)'}, not of {pseudonym}.", where=where
            )
        if row["kind"] not in ("metric", "point"):
            raise PatientDataError(
                "Only metrics and points can be imported here.", where=where, remedy="Use rt-digital-twin observe."
            )
    set_measurements(node, [*measurements(node), *({t: row.get(t) or "" for t in COLUMNS} for row in rows)])
    return len(rows)


def waiting_measurements(node: Any | None) -> list[int]:
    """Positions of the rows that were not absorbed."""
    if node is None:
        return []
    return [at for at, row in enumerate(measurements(node)) if row[OUTCOME] in _OPEN_OUTCOMES]


def write_waiting(node: Any, pseudonym: str, path: Path) -> list[int]:
    """Write the rows that were not absorbed, by time, as ``read_measurements`` takes them; returns their positions."""
    rows = measurements(node)
    positions = sorted(
        waiting_measurements(node), key=lambda at: (_number(rows[at]["fraction"]), _number(rows[at]["days"]))
    )
    if not positions:
        raise SceneError("There is no measurement that was not absorbed.", remedy="Add or import measurements.")
    with whole_file(path) as aside, aside.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, ("patient", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        for at in positions:
            writer.writerow({"patient": pseudonym} | {title: rows[at][title] for title in COLUMNS})
    return positions


def keep_outcomes(node: Any, positions: Sequence[int], outcomes: Sequence[str], step: int) -> None:
    """Say in the table what became of rows in the ``step``-th observing."""
    rows = measurements(node)
    for at, outcome in zip(positions, outcomes, strict=True):
        if at < len(rows):  # the table may have been edited meanwhile
            rows[at] |= {OUTCOME: outcome, STEP: str(step)}
    set_measurements(node, rows)


def forget_outcomes(node: Any, step: int) -> None:
    """Rows of the ``step``-th observing wait again."""
    rows = [row | {OUTCOME: WAITING, STEP: ""} if row[STEP] == str(step) else row for row in measurements(node)]
    set_measurements(node, rows)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
