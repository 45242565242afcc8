"""Which nodes of a scene make a twin, and which of them are in view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.scene.action_nodes import KEEP, action_nodes
from RTDigitalTwinLib.scene.course_nodes import CourseNodes, find_course
from RTDigitalTwinLib.scene.dvh_curves import CurveChoice, require_curves, show_curves
from RTDigitalTwinLib.scene.outcome_nodes import (
    OVERLAY_OPACITY,
    OutcomeNodes,
    find_outcome,
    is_latest_outcome,
    show_chart_and_goals,
    show_overlay,
    show_table,
)
from RTDigitalTwinLib.scene.twin_nodes import TwinNodes
from RTDigitalTwinLib.scene.twin_patient import pseudonym_of


@dataclass
class TwinState:
    """Which nodes make the twin; a module's parameter node has the same fields.

    Attributes
    ----------
    ct, segmentation, referenceDose : of the patient.
    prediction : mean dose of the prediction now.
    measurements : table.
    shownAction : whose dose is in view; "" for that of the prediction.
    fractions : of the course, where the patient was not read with a plan.
    """

    ct: Any = None
    segmentation: Any = None
    referenceDose: Any = None  # noqa: N815 (the parameter node's names are Slicer's way)
    prediction: Any = None
    measurements: Any = None
    shownAction: str = ""  # noqa: N815
    fractions: int = 35


class TwinInView:
    """A twin's nodes in a scene.

    Parameters
    ----------
    scene : by default ``slicer.mrmlScene``.
    state : which nodes it is of; by default those of the scene's latest prediction, if there is any.
    curves : tells what its charts show of the histograms, when it is asked.
    """

    def __init__(self, scene: Any = None, state: Any = None, curves: Callable[[], CurveChoice] = CurveChoice) -> None:
        import slicer

        self.scene = slicer.mrmlScene if scene is None else scene
        self.state = state_of(self.scene) if state is None else state
        self._curves = curves

    @property
    def nodes(self) -> TwinNodes:
        state = self.state
        known = (state.ct, state.segmentation, state.referenceDose, state.prediction, state.measurements)
        return TwinNodes(*known, fractions=state.fractions)

    @property
    def outcome(self) -> OutcomeNodes | None:
        """The nodes of the prediction now; None before the first."""
        mean = self.state.prediction
        return None if mean is None or not self.scene.IsNodePresent(mean) else find_outcome(self.scene, mean)

    @property
    def ranking(self) -> Any | None:
        """Table of the actions that were ranked on the prediction now; None where none were."""
        nodes = self.outcome
        return None if nodes is None else nodes.ranking

    @property
    def shown(self) -> OutcomeNodes | None:
        """The nodes in view: those of the action to be shown, or else of the prediction now."""
        nodes, action = self.outcome, self.state.shownAction
        if nodes is None or not action:
            return nodes
        return action_nodes(self.scene, nodes.mean, action) or nodes

    @property
    def course(self) -> CourseNodes | None:
        """The nodes of the patient's simulated course; None where none was lived through."""
        return None if self.state.ct is None else find_course(self.scene, self.state.ct)

    @property
    def pseudonym(self) -> str:
        """Of the patient. Raises SceneError without one."""
        if self.state.ct is None:
            raise SceneError("There is no patient.", remedy="Load one first.")
        return pseudonym_of(self.state.ct)

    @property
    def curves(self) -> CurveChoice:
        """What its charts show of the histograms."""
        return self._curves()

    def use(self, ct: Any, segmentation: Any, dose: Any = None) -> None:
        """Take nodes of the scene as the patient; a prediction of another CT is left."""
        if self.state.ct is not ct:
            self.state.prediction, self.state.shownAction = None, ""
        self.state.ct, self.state.segmentation, self.state.referenceDose = ct, segmentation, dose

    def show(self, role: str = "mean", *, opacity: float = OVERLAY_OPACITY, isodoses: bool = True) -> None:
        """Lay a volume of the prediction over the CT, by its role, or ``reference``; chart and goals in their views.

        Raises SceneError where the prediction has no such volume.
        """
        nodes = self.shown
        if nodes is None:
            raise SceneError("There is no prediction.", remedy="Predict the dose first.")
        known = overlays(nodes)
        if role not in known:
            raise SceneError(f"The prediction has no {role!r}.", remedy=f"There are {', '.join(known)}.")
        show_overlay(self.scene, nodes, known[role], opacity=opacity, isodoses=isodoses)
        show_curves(nodes, self.curves)
        show_chart_and_goals(self.scene, nodes)
        show_table(self.scene, self.ranking)

    def show_curves(self, choice: CurveChoice) -> None:
        """Let the chart in view, and those to come, show these curves. Raises SceneError for what it has not."""
        require_curves(self.shown, choice.names)
        self._curves = lambda: choice
        if self.shown is not None:
            show_curves(self.shown, choice)

    def view_action(self, action: str) -> None:
        """Bring an action's dose that is in the scene into view; ``keep`` or "" brings back the prediction."""
        self.state.shownAction = "" if action == KEEP else action
        self.show()


def overlays(nodes: OutcomeNodes) -> dict[str, Any]:
    """Volumes to lay over the CT by role, the reference dose among them."""
    reference = {} if nodes.reference_dose is None else {"reference": nodes.reference_dose}
    return nodes.volumes | reference


def state_of(scene: Any) -> TwinState:
    """The state that the scene's latest prediction tells; an empty one where there is none."""
    state = TwinState()
    volumes = [
        scene.GetNthNodeByClass(k, "vtkMRMLScalarVolumeNode")
        for k in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))
    ]
    latest = [node for node in volumes if is_latest_outcome(scene, node)]
    if not latest:
        return state
    nodes = find_outcome(scene, latest[-1])
    state.prediction, state.ct, state.referenceDose = latest[-1], nodes.ct, nodes.reference_dose
    state.segmentation, state.measurements = nodes.segmentation, nodes.measurements
    return state
