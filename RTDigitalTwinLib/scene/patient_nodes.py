"""A patient as MRML nodes under one study."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from RTDigitalTwinLib.patient.isodoses import isodose_levels
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene import volume_nodes
from RTDigitalTwinLib.scene.hierarchy import hierarchy, put_under, study_item
from RTDigitalTwinLib.scene.isodose_nodes import IsodoseNodes, add_isodoses
from RTDigitalTwinLib.scene.structure_nodes import add_structures

_FINGERPRINT = "RTDigitalTwin.PatientSha256"
SEGMENTATION_REFERENCE = "RTDigitalTwin.segmentation"
REFERENCE_DOSE_REFERENCE = "RTDigitalTwin.referenceDose"
_UNKNOWN_PRESCRIPTION_GY = 70.0


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


def show_patient(scene: Any, patient: Patient, progress: Progress = silent) -> PatientNodes:
    """The patient's CT, structures and reference dose; found again where the scene already has this very patient."""
    sha = patient_sha256(patient)
    study = study_item(scene, patient.pseudonym)
    found = _find(scene, patient, sha, study)
    if found is not None:
        return found
    progress(0.0, "Showing the CT")
    ct = volume_nodes.add_ct(scene, patient.ct)
    ct.SetAttribute(_FINGERPRINT, sha)
    progress(0.2, "Showing the structures")
    segmentation = add_structures(
        scene, patient.structures.values(), [patient.dose_mask], main_target(patient), ct, "Structures",
        above=_rising_targets(patient),
    )  # fmt: skip
    ct.SetNodeReferenceID(SEGMENTATION_REFERENCE, segmentation.GetID())
    reference = None
    dose = reference_dose(patient)
    if dose is not None:
        reference = volume_nodes.add_dose(scene, dose, "Reference dose", highest_prescription_gy(patient))
        reference.SetDescription(patient.plan.label)
        ct.SetNodeReferenceID(REFERENCE_DOSE_REFERENCE, reference.GetID())
    put_under(scene, study, [node for node in (ct, segmentation, reference) if node is not None])
    if dose is not None:
        show_isodoses(scene, highest_prescription_gy(patient), dose, reference, shown=False)
    progress(1.0, "Patient shown")
    return PatientNodes(patient, ct, segmentation, reference, study)


def show_isodoses(scene: Any, highest_gy: float, dose: Volume, dose_node: Any, *, shown: bool) -> IsodoseNodes:
    """Isodoses as children of their dose, where SlicerRT puts its own."""
    nodes = add_isodoses(scene, dose, dose_node, isodose_levels(highest_gy), shown=shown)
    put_under(scene, hierarchy(scene).GetItemByDataNode(dose_node), nodes.models)
    return nodes


def highest_prescription_gy(patient: Patient) -> float:
    """The highest dose level prescribed; 70 Gy where none is known, for the range of colours only."""
    return patient.plan.prescription.highest_gy if patient.plans else _UNKNOWN_PRESCRIPTION_GY


def main_target(patient: Patient) -> Structure | None:
    """The target with the highest dose level; None where there is no target."""
    return next(reversed(_rising_targets(patient)), None)


def _rising_targets(patient: Patient) -> list[Structure]:
    """Targets from the lowest dose level to the highest."""
    levels = dict(patient.plan.prescription.target_dose_gy) if patient.plans else {}
    return sorted(patient.targets.values(), key=lambda target: (levels.get(target.name, 0.0), target.name))


def reference_dose(patient: Patient) -> Volume | None:
    """The dose of the plan in use, where known."""
    return patient.plan.dose if patient.plans else None


def _find(scene: Any, patient: Patient, sha: str, study: int) -> PatientNodes | None:
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        ct = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        if ct.GetAttribute(_FINGERPRINT) != sha:
            continue
        segmentation = ct.GetNodeReference(SEGMENTATION_REFERENCE)
        reference = ct.GetNodeReference(REFERENCE_DOSE_REFERENCE)
        if segmentation is not None and (reference is not None) == (reference_dose(patient) is not None):
            return PatientNodes(patient, ct, segmentation, reference, study)
    return None


def patient_sha256(patient: Patient) -> str:
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
