"""Tables as MRML nodes, the clinical goals among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import vtk
from numpy.typing import ArrayLike
from vtk.util import numpy_support

from RTDigitalTwinLib.report.goal_table import UNCALIBRATED, GoalRow, GoalTable
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.scene import slicerrt_names as names

GOALS_ATTRIBUTE = "RTDigitalTwin.Goals"
RANKING_ATTRIBUTE = "RTDigitalTwin.Ranking"


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


def add_observed(scene: Any, findings: Findings, dose_node: Any) -> tuple[Any, ...]:
    """The observations beside what was expected, and every metric before and after; none without observations."""
    if findings.observing is None:
        return ()
    rows = findings.observing.rows
    observations = add_table(
        scene,
        "Observations",
        [
            ("Observation", [row.label for row in rows]),
            ("When", [row.when for row in rows]),
            ("Unit, whole course", [row.unit for row in rows]),
            *((title, [round(getattr(row, of), 2) for row in rows]) for title, of in _OBSERVED),
            ("Outcome", [row.outcome for row in rows]),
            ("Source", [row.source for row in rows]),
        ],
    )
    now, then = findings.rows, findings.rows_before
    known = [np.nan if row.reference is None else row.reference for row in now]
    metrics = add_table(
        scene,
        "Metrics before and after",
        [
            ("Structure", [row.structure for row in now]),
            ("Metric", [f"{row.metric} ({row.unit})" for row in now]),
            ("Before", np.round([row.mean for row in then], 2)),
            ("After", np.round([row.mean for row in now], 2)),
            ("Change", np.round([a.mean - b.mean for a, b in zip(now, then, strict=True)], 2)),
            ("Reference", np.round(known, 2)),
        ],
    )
    for node in (observations, metrics):
        node.SetNodeReferenceID(names.DVH_DOSE_VOLUME_REFERENCE, dose_node.GetID())
    return observations, metrics


def add_ranking(scene: Any, findings: Findings, dose_node: Any) -> Any | None:
    """Every action as a row, as the report has them; its description says the outcome. None where none were ranked."""
    if findings.deciding is None:
        return None
    ranking, rows = findings.deciding.ranking, findings.deciding.rows
    percent = [np.nan if row.most_probability is None else 100 * row.most_probability for row in rows]
    gains = [np.nan if row.gain is None else row.gain for row in rows]
    better = [np.nan if row.probability_better is None else 100 * row.probability_better for row in rows]
    node = add_table(
        scene,
        "Ranking of actions",
        [
            ("Place", [str(row.place) for row in rows]),
            ("Action", [row.action for row in rows]),
            ("Outcome", [f"{row.sign} {row.outcome}" for row in rows]),
            ("Utility", np.round([row.utility for row in rows], 4)),
            ("Expected", np.round([row.expected for row in rows], 4)),
            ("Uncertainty", np.round([row.uncertainty for row in rows], 4)),
            ("Gain on keeping", np.round(gains, 4)),
            ("Better than keeping (%)", np.round(better, 1)),
            ("Nearest limit", [row.worst_constraint for row in rows]),
            ("Violated with at most (%)", np.round(percent, 1)),
            ("Reasons", [row.reasons for row in rows]),
        ],
    )
    node.SetAttribute(RANKING_ATTRIBUTE, names.TRUE)
    node.SetNodeReferenceID(names.DVH_DOSE_VOLUME_REFERENCE, dose_node.GetID())
    node.SetDescription(" ".join(("Research use only.", ranking.words, *ranking.obstacles, *ranking.notes)))
    return node


_OBSERVED = (("Observed", "observed"), ("Expected before", "before"), ("Expected after", "after"))


def _description(tables: Sequence[GoalTable], rows: Sequence[GoalRow]) -> str:
    said = [f"{table.title}: {table.words}. {' '.join(table.notes)}".strip() for table in tables]
    if any(row.calibrated is False for row in rows):
        said.append(f"{UNCALIBRATED} The spread is not calibrated here and the probability too sure.")
    return " ".join(said)
