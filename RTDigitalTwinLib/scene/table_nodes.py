"""Tables as MRML nodes, the clinical goals among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import vtk
from numpy.typing import ArrayLike
from vtk.util import numpy_support

from RTDigitalTwinLib.report.goal_table import UNCALIBRATED, GoalRow, GoalTable
from RTDigitalTwinLib.scene import slicerrt_names as names

GOALS_ATTRIBUTE = "RTDigitalTwin.Goals"


def add_table(scene: Any, name: str, columns: Sequence[tuple[str, ArrayLike | list[str]]]) -> Any:
    """A table node; a column of words stays words, any other becomes numbers."""
    node = scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName(name))
    for title, values in columns:
        column: Any
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            column = vtk.vtkStringArray()
            for value in values:
                column.InsertNextValue(value)
        else:
            column = numpy_support.numpy_to_vtk(np.ascontiguousarray(values, dtype=float), deep=True)
        column.SetName(title)
        node.GetTable().AddColumn(column)
    node.SetUseColumnTitleAsColumnHeader(True)
    node.Modified()
    return node


def add_goals(scene: Any, tables: Sequence[GoalTable], dose_node: Any) -> Any:
    """Every goal of every protocol as a row of words, as the report has them; its description says how to read it."""
    rows = [row for table in tables for row in table.rows]

    def words(of: str) -> list[str]:
        return [str(getattr(row, of)) for row in rows]

    columns: list[tuple[str, ArrayLike | list[str]]] = [
        ("Outcome", words("outcome")),
        ("Goal", words("goal")),
        ("Limit", words("limit")),
        ("Value", words("value_words")),
    ]
    if any(row.band_words for row in rows):
        columns.append(("95 % band", words("band_words")))
    if any(row.probability_met is not None for row in rows):
        columns += [("Probability", words("probability_words")), ("Supported by the samples", words("support_words"))]
    columns += [("Priority", words("priority")), ("Protocol", words("protocol")), ("Remark", words("note"))]
    node = add_table(scene, "Clinical goals", columns)
    node.SetAttribute(GOALS_ATTRIBUTE, names.TRUE)
    node.SetNodeReferenceID(names.DVH_DOSE_VOLUME_REFERENCE, dose_node.GetID())
    node.SetDescription(_description(tables, rows))
    return node


def _description(tables: Sequence[GoalTable], rows: Sequence[GoalRow]) -> str:
    said = [f"{table.title}: {table.words}. {' '.join(table.notes)}".strip() for table in tables]
    if any(row.calibrated is False for row in rows):
        said.append(f"{UNCALIBRATED} The spread is not calibrated here and the probability too sure.")
    return " ".join(said)
