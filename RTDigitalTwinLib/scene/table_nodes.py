"""Tables as MRML nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from vtkmodules.util import numpy_support
from vtkmodules.vtkCommonCore import vtkStringArray

from RTDigitalTwinLib.outcome import Table, Values

GOALS_ATTRIBUTE = "RTDigitalTwin.Goals"
RANKING_ATTRIBUTE = "RTDigitalTwin.Ranking"


def add_table(scene: Any, name: str, table: Table) -> Any:
    """A table node; a column of words stays words, any other becomes numbers."""
    node = scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName(name))
    for title, values in table.columns.items():
        node.GetTable().AddColumn(_column(title, values))
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetLocked(True)
    node.SetDescription(table.description)
    node.Modified()
    return node


def words_of_column(node: Any, title: str) -> list[str]:
    """A column of a table node as words; none where it has no such column."""
    column = node.GetTable().GetColumnByName(title)
    if column is None:
        return []
    return [column.GetVariantValue(row).ToString() for row in range(column.GetNumberOfValues())]


def _column(title: str, values: Values) -> Any:
    column: Any
    if isinstance(values, np.ndarray):
        column = numpy_support.numpy_to_vtk(np.ascontiguousarray(values, dtype=float), deep=True)
    else:
        column = vtkStringArray()
        for value in values:
            column.InsertNextValue(value)
    column.SetName(title)
    return column
