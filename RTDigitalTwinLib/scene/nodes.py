"""A prediction as MRML nodes beside its patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.outcome import ABSOLUTE, BEFORE, CHANGE, DIFFERENCE, STD, WIDTH
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.report.outcomes import outcome_of
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.scene.dvh_nodes import DvhNodes
from RTDigitalTwinLib.scene.isodose_nodes import IsodoseNodes
from RTDigitalTwinLib.scene.outcome_nodes import AddedOutcome, add_outcome, show_chart_and_goals, show_overlay
from RTDigitalTwinLib.scene.patient_nodes import PatientNodes, highest_prescription_gy, patient_sha256, show_patient
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble


@dataclass(frozen=True, eq=False)
class PredictionNodes:
    """Nodes of a prediction.

    Attributes
    ----------
    patient : nodes of its patient.
    findings : of the prediction: metrics, goals, notes for the user, what was observed.
    added : all its nodes, with the folder of the subject hierarchy that holds them.
    """

    patient: PatientNodes
    findings: Findings
    added: AddedOutcome

    @property
    def prediction(self) -> DoseEnsemble:
        return self.findings.prediction

    @property
    def mean(self) -> Any:
        """Volume node of the mean dose in Gy."""
        return self.added.nodes.mean

    @property
    def std(self) -> Any | None:
        """Of the sampled spread; None with fewer than two samples."""
        return self.added.nodes.volumes.get(STD)

    @property
    def width(self) -> Any | None:
        """Half the width of the calibrated 95 % band; None where the prediction is not calibrated."""
        return self.added.nodes.volumes.get(WIDTH)

    @property
    def difference(self) -> Any | None:
        """Predicted minus reference; None where no reference is known."""
        return self.added.nodes.volumes.get(DIFFERENCE)

    @property
    def absolute_difference(self) -> Any | None:
        """The same without its sign."""
        return self.added.nodes.volumes.get(ABSOLUTE)

    @property
    def before(self) -> Any | None:
        """The mean dose of the prediction beside it: before observing, or if nothing is changed; None without one."""
        return self.added.nodes.volumes.get(BEFORE)

    @property
    def change(self) -> Any | None:
        """The difference to that; None without one."""
        return self.added.nodes.volumes.get(CHANGE)

    @property
    def observed(self) -> tuple[Any, ...]:
        """Tables of the observations and of the metrics before and after; empty where nothing was observed."""
        tables = (self.added.nodes.observations, self.added.nodes.compared)
        return tuple(table for table in tables if table is not None)

    @property
    def ranking(self) -> Any | None:
        """Table of the actions; None where none were ranked."""
        return self.added.nodes.ranking

    @property
    def dvh(self) -> DvhNodes:
        """Tables, metrics, series, chart."""
        return self.added.dvh

    @property
    def goals(self) -> Any:
        """Table of the clinical goals."""
        return self.added.nodes.goals

    @property
    def isodoses(self) -> IsodoseNodes:
        """Surfaces of the mean dose."""
        return self.added.isodoses

    @property
    def folder(self) -> int:
        """Item of the subject hierarchy that holds them."""
        return self.added.folder

    @property
    def highest_gy(self) -> float:
        """The prescribed dose that is 100 % of the isodoses."""
        return highest_prescription_gy(self.patient.patient)

    @property
    def volumes(self) -> tuple[Any, ...]:
        """Every volume node of the prediction itself."""
        return tuple(self.added.nodes.volumes.values())


def show_prediction(
    scene: Any,
    patient: Patient,
    prediction: DoseEnsemble,
    patient_nodes: PatientNodes | None = None,
    progress: Progress = silent,
    *,
    findings: Findings | None = None,
) -> PredictionNodes:
    """The prediction beside its patient, and the views set on it; ``findings`` of it, where they are at hand.

    Findings after observing bring the dose before it, the change, and the observations; those of a ranking bring the
    dose if nothing is changed, the change, and the ranking.

    Raises SceneError where the prediction is another patient's, and GeometryError where grids differ.
    """
    if prediction.patient is not patient and patient_sha256(prediction.patient) != patient_sha256(patient):
        raise SceneError("The prediction was made for another patient.", where=patient.pseudonym,
                         remedy="Predict for this patient.")  # fmt: skip
    beside = patient_nodes or show_patient(scene, patient, part(progress, 0.0, 0.4))
    findings = findings or Findings(prediction)
    outcome = outcome_of(findings, part(progress, 0.4, 0.6))
    added = add_outcome(
        scene,
        outcome,
        beside.ct,
        beside.segmentation,
        beside.reference_dose,
        beside.study,
        part(progress, 0.6, 1.0),
    )
    nodes = PredictionNodes(beside, findings, added)
    show_in_views(scene, nodes)
    return nodes


def show_in_views(scene: Any, nodes: PredictionNodes, overlay: Any | None = None) -> None:
    """The CT in every slice view with an overlay above (by default the mean dose); chart and table in their views.

    Isodoses are those of the overlay, or where it has none those of the mean dose.
    """
    show_overlay(scene, nodes.added.nodes, overlay)
    show_chart_and_goals(scene, nodes.added.nodes)
