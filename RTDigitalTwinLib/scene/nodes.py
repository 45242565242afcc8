"""A patient and a prediction as MRML nodes under one study."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.patient.isodoses import isodose_levels
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.scene import volume_nodes
from RTDigitalTwinLib.scene.dvh_nodes import BAND_LEVEL, DvhNodes, add_dvhs
from RTDigitalTwinLib.scene.hierarchy import folder_item, hierarchy, put_under, study_item
from RTDigitalTwinLib.scene.isodose_nodes import IsodoseNodes, add_isodoses, show_isodoses_of
from RTDigitalTwinLib.scene.structure_nodes import add_structures
from RTDigitalTwinLib.scene.table_nodes import add_goals, add_observed, add_ranking
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

_FINGERPRINT = "RTDigitalTwin.PatientSha256"
_SEGMENTATION_REFERENCE = "RTDigitalTwin.segmentation"
_REFERENCE_DOSE_REFERENCE = "RTDigitalTwin.referenceDose"
_PROVENANCE = {"seed": "RTDigitalTwin.Seed", "samples": "RTDigitalTwin.Samples", "weights": "RTDigitalTwin.Weights"}
_UNKNOWN_PRESCRIPTION_GY = 70.0
_OVERLAY_OPACITY = 0.5


@dataclass(frozen=True, eq=False)
class PatientNodes:
    """Nodes of a patient.

    Attributes
    ----------
    patient : as given.
    ct, segmentation : volume and segmentation node.
    reference_dose : volume node of the plan's dose; None where it is not known.
    study : item of the subject hierarchy.
    """

    patient: Patient
    ct: Any
    segmentation: Any
    reference_dose: Any | None
    study: int


@dataclass(frozen=True, eq=False)
class PredictionNodes:
    """Nodes of a prediction.

    Attributes
    ----------
    patient : nodes of its patient.
    findings : of the prediction: metrics, goals, notes for the user, what was observed.
    mean : volume node of the mean dose in Gy.
    std : of the sampled spread; None with fewer than two samples.
    width : half the width of the calibrated 95 % band; None where the prediction is not calibrated.
    difference, absolute_difference : predicted minus reference; None where no reference is known.
    before, change : the mean dose of the prediction beside it (before observing, or if nothing is changed), and the
        difference to that; None where there is none.
    observed : tables of the observations and of the metrics before and after; empty where nothing was observed.
    ranking : table of the actions; None where none were ranked.
    dvh : tables, metrics, series, chart.
    goals : table of the clinical goals.
    isodoses : surfaces of the mean dose.
    folder : item of the subject hierarchy that holds them.
    """

    patient: PatientNodes
    findings: Findings
    mean: Any
    std: Any | None
    width: Any | None
    difference: Any | None
    absolute_difference: Any | None
    before: Any | None
    change: Any | None
    observed: tuple[Any, ...]
    ranking: Any | None
    dvh: DvhNodes
    goals: Any
    isodoses: IsodoseNodes
    folder: int

    @property
    def prediction(self) -> DoseEnsemble:
        return self.findings.prediction

    @property
    def overlays(self) -> dict[str, Any]:
        """Volume nodes to lay over the CT, by their names: the prediction's and the reference."""
        reference = self.patient.reference_dose
        return {node.GetName(): node for node in (*self.volumes, *([] if reference is None else [reference]))}

    @property
    def highest_gy(self) -> float:
        """The prescribed dose that is 100 % of the isodoses."""
        return highest_prescription_gy(self.patient.patient)

    @property
    def volumes(self) -> tuple[Any, ...]:
        """Every volume node of the prediction itself."""
        listed = (self.mean, self.std, self.width, self.difference, self.absolute_difference, self.before, self.change)
        return tuple(node for node in listed if node is not None)


def show_patient(scene: Any, patient: Patient, progress: Progress = silent) -> PatientNodes:
    """The patient's CT, structures and reference dose; found again where the scene already has this very patient."""
    fingerprint = _fingerprint(patient)
    study = study_item(scene, patient.pseudonym)
    found = _find(scene, patient, fingerprint, study)
    if found is not None:
        return found
    progress(0.0, "Showing the CT")
    ct = volume_nodes.add_ct(scene, patient.ct)
    ct.SetAttribute(_FINGERPRINT, fingerprint)
    progress(0.2, "Showing the structures")
    segmentation = add_structures(
        scene, patient.structures.values(), [patient.dose_mask], main_target(patient), ct, "Structures"
    )
    ct.SetNodeReferenceID(_SEGMENTATION_REFERENCE, segmentation.GetID())
    reference = None
    dose = reference_dose(patient)
    if dose is not None:
        reference = volume_nodes.add_dose(scene, dose, "Reference dose", highest_prescription_gy(patient))
        reference.SetDescription(patient.plan.label)
        ct.SetNodeReferenceID(_REFERENCE_DOSE_REFERENCE, reference.GetID())
    put_under(scene, study, [node for node in (ct, segmentation, reference) if node is not None])
    if dose is not None:
        _show_isodoses(scene, patient, dose, reference, shown=False)
    progress(1.0, "Patient shown")
    return PatientNodes(patient, ct, segmentation, reference, study)


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
    if prediction.patient is not patient and _fingerprint(prediction.patient) != _fingerprint(patient):
        raise SceneError("The prediction was made for another patient.", where=patient.pseudonym,
                         remedy="Predict for this patient.")  # fmt: skip
    beside = patient_nodes or show_patient(scene, patient, part(progress, 0.0, 0.4))
    progress(0.4, "Showing the dose")
    findings = findings or Findings(prediction)
    words = findings.words
    named = findings.before is not None or findings.observing is not None
    name = f"Dose {words.now}" if named else "Predicted dose"
    folder = folder_item(scene, beside.study, name)
    mean = volume_nodes.add_dose(scene, prediction.mean, name, highest_prescription_gy(patient))
    mean.SetDescription(_description(findings))
    mean.SetAttribute(_PROVENANCE["seed"], "" if prediction.seed is None else str(prediction.seed))
    mean.SetAttribute(_PROVENANCE["samples"], str(prediction.count))
    mean.SetAttribute(_PROVENANCE["weights"], prediction.weights_sha256)
    shown = patient.dose_mask.mask
    std = width = difference = absolute = None
    if prediction.has_spread:
        std = volume_nodes.add_spread(scene, prediction.std, "Sampled spread (std)", shown, "Sampled std [Gy]")
    if prediction.is_calibrated:
        half = prediction.half_width(BAND_LEVEL)
        width = volume_nodes.add_spread(scene, half, "Calibrated 95 % half width", shown, "Calibrated +- [Gy]")
    reference = reference_dose(patient)
    if reference is not None:
        signed = prediction.mean.minus(reference, Quantity.DOSE_DIFFERENCE_GY)
        unsigned = Volume(abs(signed.values), signed.grid, Quantity.DOSE_DIFFERENCE_GY)
        difference = volume_nodes.add_difference(scene, signed, "Difference to reference", shown)
        absolute = volume_nodes.add_absolute_difference(scene, unsigned, "Absolute difference to reference", shown)
    before = change = None
    if findings.before is not None:
        earlier = findings.before.mean
        before = volume_nodes.add_dose(scene, earlier, f"Dose {words.before}", highest_prescription_gy(patient))
        moved = prediction.mean.minus(earlier, Quantity.DOSE_DIFFERENCE_GY)
        change = volume_nodes.add_difference(scene, moved, words.change, shown)
    dvh = add_dvhs(
        scene, prediction, reference, mean, beside.segmentation, part(progress, 0.5, 1.0), findings.before, words.before
    )
    goals = add_goals(scene, findings.goals, mean)
    tables = add_observed(scene, findings, mean)
    ranking = add_ranking(scene, findings, mean)
    beside_goals = [*tables, *([] if ranking is None else [ranking])]
    volumes = [node for node in (mean, std, width, difference, absolute, before, change) if node is not None]
    put_under(
        scene, folder, [*volumes, goals, *beside_goals, *dvh.tables.values(), dvh.metrics, *dvh.series, dvh.chart]
    )
    isodoses = _show_isodoses(scene, patient, prediction.mean, mean, shown=True)
    nodes = PredictionNodes(
        beside,
        findings,
        mean,
        std,
        width,
        difference,
        absolute,
        before,
        change,
        tables,
        ranking,
        dvh,
        goals,
        isodoses,
        folder,
    )
    show_in_views(scene, nodes)
    progress(1.0, "Dose shown")
    return nodes


def show_in_views(scene: Any, nodes: PredictionNodes, overlay: Any | None = None) -> None:
    """The CT in every slice view with an overlay above (by default the mean dose); chart and table in their views.

    Isodoses are those of the overlay, or where it has none those of the mean dose.
    """
    overlay = overlay or nodes.mean
    show_isodoses_of(scene, overlay, nodes.mean)
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
        composite = scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode")
        composite.SetBackgroundVolumeID(nodes.patient.ct.GetID())
        composite.SetForegroundVolumeID(overlay.GetID())
        composite.SetForegroundOpacity(_OVERLAY_OPACITY)
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLPlotViewNode")):
        scene.GetNthNodeByClass(index, "vtkMRMLPlotViewNode").SetPlotChartNodeID(nodes.dvh.chart.GetID())
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLTableViewNode")):
        scene.GetNthNodeByClass(index, "vtkMRMLTableViewNode").SetTableNodeID((nodes.ranking or nodes.goals).GetID())


def _description(findings: Findings) -> str:
    """What must stay with the dose when the scene is saved."""
    prediction = findings.prediction
    bands = f"Bands: {prediction.band_words(BAND_LEVEL)}." if prediction.has_spread else "One dose, without bands."
    return " ".join(("Research use only.", bands, *findings.notes))


def _show_isodoses(scene: Any, patient: Patient, dose: Volume, dose_node: Any, *, shown: bool) -> IsodoseNodes:
    """Isodoses as children of their dose, where SlicerRT puts its own."""
    nodes = add_isodoses(scene, dose, dose_node, isodose_levels(highest_prescription_gy(patient)), shown=shown)
    put_under(scene, hierarchy(scene).GetItemByDataNode(dose_node), nodes.models)
    return nodes


def highest_prescription_gy(patient: Patient) -> float:
    """The highest dose level prescribed; 70 Gy where none is known, for the range of colours only."""
    return patient.plan.prescription.highest_gy if patient.plans else _UNKNOWN_PRESCRIPTION_GY


def main_target(patient: Patient) -> Structure | None:
    """The target with the highest dose level; None where there is no target."""
    levels = dict(patient.plan.prescription.target_dose_gy) if patient.plans else {}
    targets = list(patient.targets.values())
    return max(targets, key=lambda target: (levels.get(target.name, 0.0), target.name)) if targets else None


def reference_dose(patient: Patient) -> Volume | None:
    """The dose of the plan in use, where known."""
    return patient.plan.dose if patient.plans else None


def _find(scene: Any, patient: Patient, fingerprint: str, study: int) -> PatientNodes | None:
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        ct = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        if ct.GetAttribute(_FINGERPRINT) != fingerprint:
            continue
        segmentation = ct.GetNodeReference(_SEGMENTATION_REFERENCE)
        reference = ct.GetNodeReference(_REFERENCE_DOSE_REFERENCE)
        if segmentation is not None and (reference is not None) == (reference_dose(patient) is not None):
            return PatientNodes(patient, ct, segmentation, reference, study)
    return None


def _fingerprint(patient: Patient) -> str:
    """SHA-256 over what is shown of a patient: the same patient loaded twice is the same."""
    digest = sha256(repr((patient.pseudonym, patient.ct.grid)).encode())
    digest.update(patient.ct.values.tobytes())
    for structure in (*patient.structures.values(), patient.dose_mask):
        digest.update(repr((structure.name, structure.box)).encode())
        digest.update(structure.box_occupancy.tobytes())
    dose = reference_dose(patient)
    if dose is not None:
        digest.update(dose.values.tobytes())
    return digest.hexdigest()
