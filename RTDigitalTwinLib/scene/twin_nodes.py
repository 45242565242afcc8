"""A twin's life in the scene: its prediction now, the belief behind it, the one before; jobs told and answers shown.

The mean dose stands for a prediction. It refers to its volumes, chart and tables, to a text node with the belief it
was drawn from, and to the mean dose before observing, so that a scene that was saved and read again goes on.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

from RTDigitalTwinLib.errors import RTDigitalTwinError, SceneError
from RTDigitalTwinLib.jobs import (
    BELIEF_FILE,
    MEASUREMENTS_FILE,
    NEW_BELIEF_FILE,
    OUTCOME_FILE,
    PATIENT_FILE,
    Job,
    Observe,
    write_job,
)
from RTDigitalTwinLib.outcome import load_outcome
from RTDigitalTwinLib.patient.patient_file import save_patient
from RTDigitalTwinLib.scene.hierarchy import hierarchy, put_under, study_item
from RTDigitalTwinLib.scene.measurement_nodes import forget_outcomes, keep_outcomes, measurements, write_waiting
from RTDigitalTwinLib.scene.outcome_nodes import (
    MEASUREMENTS_REFERENCE,
    PREVIOUS_REFERENCE,
    add_outcome,
    find_outcome,
    remove_outcome,
)
from RTDigitalTwinLib.scene.twin_patient import patient_in_scene, pseudonym_of

_BELIEF = "RTDigitalTwin.belief"
_STEP = "RTDigitalTwin.Step"


@dataclass(frozen=True, eq=False)
class TwinNodes:
    """What a job is told of: nodes of the patient, the prediction now, measurements.

    Attributes
    ----------
    mean : mean dose of the prediction now; None before the first.
    fractions : of the course, where the patient was not read with a plan.
    """

    ct: Any | None
    segmentation: Any | None
    dose: Any | None = None
    mean: Any | None = None
    measurements: Any | None = None
    fractions: int | None = None


@dataclass(frozen=True, eq=False)
class Told:
    """A job that waits for its answer: for whom, and which measurements it was given."""

    twin: TwinNodes
    job: Job
    positions: tuple[int, ...] = ()


def tell(twin: TwinNodes, job: Job, folder: Path) -> Told:
    """Write a job and what it needs of the scene to a folder. Raises SceneError or PatientDataError."""
    patient = patient_in_scene(twin.ct, twin.segmentation, twin.dose, twin.fractions)
    save_patient(patient, folder / PATIENT_FILE)
    belief = None if twin.mean is None else twin.mean.GetNodeReference(_BELIEF)
    if belief is not None and twin.mean is not None:
        if find_outcome(twin.mean.GetScene(), twin.mean).ct is not twin.ct:
            raise SceneError(
                "What was observed is of another CT than the one chosen.",
                remedy="Choose that CT again, or clear the prediction first.",
            )
        (folder / BELIEF_FILE).write_bytes(base64.b64decode(belief.GetText()))
    positions: tuple[int, ...] = ()
    if isinstance(job, Observe):
        if twin.measurements is None:
            raise SceneError("There are no measurements.", remedy="Add or import measurements first.")
        positions = tuple(write_waiting(twin.measurements, patient.pseudonym, folder / MEASUREMENTS_FILE))
    write_job(job, folder)
    return Told(twin, job, positions)


def show_answer(scene: Any, told: Told, folder: Path) -> Any:
    """Show the answer of a prediction or an observing, all of it or nothing; returns the new mean dose.

    A prediction takes the place of the one before; after observing the one before stays for ``undo``. Raises
    SceneError where the patient is not in the scene any more, ModelError where the answer is damaged.
    """
    twin = told.twin
    require_present(scene, twin)
    outcome = load_outcome(folder / OUTCOME_FILE)
    observed = isinstance(told.job, Observe)
    earlier = twin.mean if twin.mean is not None and scene.IsNodePresent(twin.mean) else None
    study = study_of(scene, twin.ct)
    dose = twin.dose if twin.dose is not None and scene.IsNodePresent(twin.dose) else None
    added = add_outcome(scene, outcome, twin.ct, twin.segmentation, dose, study)
    mean = added.nodes.mean
    belief = None if earlier is None else earlier.GetNodeReference(_BELIEF)
    if observed:
        fresh = folder / NEW_BELIEF_FILE
        if fresh.is_file():
            belief = _keep_belief(scene, fresh, added.folder)
        if earlier is not None:
            mean.SetNodeReferenceID(PREVIOUS_REFERENCE, earlier.GetID())
        mean.SetAttribute(_STEP, str(step_of(earlier) + 1))
        if twin.measurements is not None and scene.IsNodePresent(twin.measurements):
            keep_outcomes(twin.measurements, told.positions, outcome.outcomes, step_of(mean))
    elif earlier is not None:
        _take_place(earlier, mean)
        remove_outcome(scene, earlier)
    if belief is not None:
        mean.SetNodeReferenceID(_BELIEF, belief.GetID())
    if twin.measurements is not None and scene.IsNodePresent(twin.measurements):
        mean.SetNodeReferenceID(MEASUREMENTS_REFERENCE, twin.measurements.GetID())
    return mean


def undo(scene: Any, mean: Any, measurement_node: Any | None = None) -> Any:
    """Go back to the prediction before the last observing; returns its mean dose. Raises RTDigitalTwinError."""
    previous = previous_of(mean)
    if previous is None:
        raise RTDigitalTwinError("There is nothing to undo: nothing was observed.")
    belief, step = mean.GetNodeReference(_BELIEF), step_of(mean)
    remove_outcome(scene, mean)
    if belief is not None and belief is not previous.GetNodeReference(_BELIEF):
        _remove_text(scene, belief)
    if measurement_node is not None and scene.IsNodePresent(measurement_node):
        forget_outcomes(measurement_node, step)
    return previous


def clear(scene: Any, mean: Any, measurement_node: Any | None = None) -> None:
    """Take away a prediction and those before it; the patient stays and its measurements wait again."""
    while mean is not None:
        previous, belief = previous_of(mean), mean.GetNodeReference(_BELIEF)
        remove_outcome(scene, mean)
        if belief is not None:
            _remove_text(scene, belief)
        mean = previous
    if measurement_node is not None:
        for step in {row["step"] for row in measurements(measurement_node)} - {""}:
            forget_outcomes(measurement_node, int(step))


def previous_of(mean: Any | None) -> Any | None:
    """The mean dose before the last observing; None where there was none."""
    return None if mean is None else mean.GetNodeReference(PREVIOUS_REFERENCE)


def step_of(mean: Any | None) -> int:
    """How many times was observed before this prediction."""
    return 0 if mean is None else int(mean.GetAttribute(_STEP) or 0)


def require_present(scene: Any, twin: TwinNodes) -> None:
    """Raise SceneError where the patient is not in the scene any more."""
    for node in (twin.ct, twin.segmentation):
        if node is None or not scene.IsNodePresent(node):
            raise SceneError(
                "The patient is not in the scene any more, so the result is not shown.",
                remedy="Load the patient and predict again.",
            )


def _take_place(earlier: Any, mean: Any) -> None:
    """A prediction drawn anew keeps its place in the order of observing."""
    previous = previous_of(earlier)
    if previous is not None:
        mean.SetNodeReferenceID(PREVIOUS_REFERENCE, previous.GetID())
        mean.SetName(earlier.GetName())
    if earlier.GetAttribute(_STEP):
        mean.SetAttribute(_STEP, earlier.GetAttribute(_STEP))


def _keep_belief(scene: Any, path: Path, folder: int) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLTextNode", scene.GenerateUniqueName("Belief"))
    node.SetForceCreateStorageNode(slicer.vtkMRMLTextNode.CreateStorageNodeAlways)
    node.SetText(base64.b64encode(path.read_bytes()).decode("ascii"))
    node.SetDescription("What the twin believes of the dose, as base64 of a NumPy archive.")
    put_under(scene, folder, [node])
    return node


def _remove_text(scene: Any, node: Any) -> None:
    storage = node.GetStorageNode()
    scene.RemoveNode(node)
    if storage is not None:
        scene.RemoveNode(storage)


def study_of(scene: Any, ct: Any) -> int:
    """Item of the study that a CT lies in."""
    tree = hierarchy(scene)
    item = tree.GetItemByDataNode(ct)
    study = tree.GetItemAncestorAtLevel(item, "Study") if item else 0
    return study or study_item(scene, pseudonym_of(ct))
