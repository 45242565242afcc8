"""A ranking of actions in the scene: its table beside the prediction, and the dose of each action that was shown.

The prediction's mean dose refers to the table and to the mean dose of every such action, so that they go with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.jobs import OUTCOME_FILE, Recommend
from RTDigitalTwinLib.outcome import Table, load_outcome
from RTDigitalTwinLib.scene.hierarchy import hierarchy, put_under
from RTDigitalTwinLib.scene.outcome_nodes import (
    ACTION_ATTRIBUTE,
    ACTION_REFERENCE,
    RANKING_REFERENCE,
    OutcomeNodes,
    action_means,
    add_outcome,
    find_outcome,
    remove_actions,
)
from RTDigitalTwinLib.scene.table_nodes import RANKING_ATTRIBUTE, add_table, words_of_column
from RTDigitalTwinLib.scene.twin_nodes import Told, require_present, study_of

KEEP = "keep"
DECIDED_ATTRIBUTE, _JOB = "RTDigitalTwin.Decided", "RTDigitalTwin.RankedBy"
ACTION_COLUMN, OUTCOME_COLUMN = "Action", "Outcome"


def show_ranking(scene: Any, told: Told, folder: Path) -> str:
    """Show the answer of a ranking, all of it or nothing; returns the action whose dose came with it.

    A ranking takes the place of the one before; a job of one action adds its dose to the ranking there is. The plan
    kept is the prediction itself, and adds no dose. Raises SceneError where patient or prediction are not in the
    scene any more, ModelError where the answer is damaged.
    """
    twin, job = told.twin, told.job
    assert isinstance(job, Recommend)
    require_present(scene, twin)
    mean = twin.mean
    if mean is None or not scene.IsNodePresent(mean):
        raise SceneError(
            "The prediction is not in the scene any more, so the ranking is not shown.", remedy="Predict again."
        )
    outcome = load_outcome(folder / OUTCOME_FILE)
    added = None
    if outcome.action != KEEP:
        dose = twin.dose if twin.dose is not None and scene.IsNodePresent(twin.dose) else None
        alone = replace(outcome, ranking=None)
        added = add_outcome(scene, alone, twin.ct, twin.segmentation, dose, study_of(scene, twin.ct))
    if job.shown:
        remove_actions(scene, mean, outcome.action)
    else:
        remove_actions(scene, mean)
        assert outcome.ranking is not None, "a ranking was asked for"
        _add_ranking(scene, mean, outcome.ranking, outcome.decided, job)
    if added is not None:
        added.nodes.mean.SetAttribute(ACTION_ATTRIBUTE, outcome.action)
        mean.AddNodeReferenceID(ACTION_REFERENCE, added.nodes.mean.GetID())
    return outcome.action


def ranking_of(mean: Any | None) -> Any | None:
    """The table of the ranking that was made of a prediction; None where there is none."""
    return None if mean is None else mean.GetNodeReference(RANKING_REFERENCE)


def ranked_actions(table: Any) -> list[str]:
    """Names of the actions in a ranking, in its order."""
    return words_of_column(table, ACTION_COLUMN)


def action_nodes(scene: Any, mean: Any, action: str) -> OutcomeNodes | None:
    """The nodes of an action's dose; None where it is not in the scene. Of keeping, those of the prediction."""
    if action == KEEP:
        return find_outcome(scene, mean)
    found = next((one for one in action_means(mean) if one.GetAttribute(ACTION_ATTRIBUTE) == action), None)
    return None if found is None else find_outcome(scene, found)


def job_of_action(table: Any, action: str, actions: str, protocol: str) -> Recommend:
    """The job that computes an action of a ranking, by which files; the scene keeps no path of them.

    Raises SceneError where a file that the ranking was made by is not given, or the ranking has no such action.
    """
    if action not in ranked_actions(table):
        raise SceneError(f"The ranking has no action {action!r}.", remedy="Choose one of its table.")
    told = json.loads(table.GetAttribute(_JOB))
    for path, what, was in ((actions, "actions", told["actions"]), (protocol, "the protocol", told["protocol"])):
        if was and not path:
            raise SceneError(f"The ranking was made by a file of {what}.", remedy="Choose that file again, or rank.")
    files = {"actions": actions if told["actions"] else "", "protocol": protocol if told["protocol"] else ""}
    return Recommend(**told | files | {"shown": action})


def _add_ranking(scene: Any, mean: Any, ranking: Table, decided: str, job: Recommend) -> None:
    table = add_table(scene, "Ranking of actions", ranking)
    table.SetAttribute(RANKING_ATTRIBUTE, "1")
    table.SetAttribute(DECIDED_ATTRIBUTE, decided)
    table.SetAttribute(_JOB, json.dumps(_without_paths(asdict(job))))
    mean.SetNodeReferenceID(RANKING_REFERENCE, table.GetID())
    tree = hierarchy(scene)
    put_under(scene, tree.GetItemParent(tree.GetItemByDataNode(mean)), [table])


def _without_paths(job: Mapping[str, Any]) -> dict[str, Any]:
    """Of files that something was asked by, only that there were such."""
    return dict(job) | {"actions": bool(job["actions"]), "protocol": bool(job["protocol"]), "weights": ""}
