"""The patient of a twin as the scene has it: what is predicted is what is seen, edits to segments included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import slicer
from vtkmodules.util import numpy_support
from vtkmodules.vtkCommonCore import reference

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.patient.anatomy_check import check_orientation
from RTDigitalTwinLib.patient.dose_region import BODY_NOTE, REGION_NOTE, as_mask, body_of, dose_region
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.naming import DOSE_MASK
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.patient_file import prescription_from_row, prescription_row
from RTDigitalTwinLib.patient.plan import Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.structure_matching import EXTERNAL, Candidate, Match, level_of, match_structures
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene.from_nodes import dose_on, structure_from_segment, volume_from_node
from RTDigitalTwinLib.scene.hierarchy import hierarchy
from RTDigitalTwinLib.scene.patient_nodes import PatientNodes, show_patient
from RTDigitalTwinLib.scene.slicerrt_names import ROI_NUMBER
from RTDigitalTwinLib.words import counted

NAME_TAG = "RTDigitalTwin.Name"  # of a segment: what the user confirmed it to be; LEFT_OUT for nothing
LEFT_OUT = "-"
SCENE_PATIENT = "scene-patient"
_PSEUDONYM, _PLAN, _NOTES = "RTDigitalTwin.Pseudonym", "RTDigitalTwin.Plan", "RTDigitalTwin.Notes"
_AIR_HU = -400.0
_MOST_AIR_RATIO = 0.5  # of a target or gland; the throat's air in a target is less
_LEAST_COVERED_RATIO = 0.5
_SOLID = ("Brainstem", "SpinalCord", "Parotid_L", "Parotid_R")


def show_loaded(scene: Any, patient: Patient, progress: Progress = silent) -> PatientNodes:
    """A patient that was read from files as nodes, which keep what is not seen of it: plan and pseudonym."""
    nodes = show_patient(scene, patient, progress)
    nodes.ct.SetAttribute(_PSEUDONYM, patient.pseudonym)
    nodes.ct.SetAttribute(_NOTES, json.dumps(list(patient.warnings)))
    if patient.plans:
        plan = patient.plan
        more = {
            "gantry_angles_deg": plan.gantry_angles_deg,
            "label": plan.label,
            "effective": plan.dose_is_effective,
            "not_fixed_fields": plan.not_fixed_fields,
        }
        nodes.ct.SetAttribute(_PLAN, json.dumps(prescription_row(plan.prescription) | more))
    segmentation = nodes.segmentation.GetSegmentation()
    segments = [segmentation.GetSegment(segment_id) for segment_id in segmentation.GetSegmentIDs()]
    if not any(_tag(segment, NAME_TAG) for segment in segments):  # else it was there before: what was confirmed stays
        for segment in segments:
            segment.SetTag(NAME_TAG, segment.GetName())
    return nodes


def pseudonym_of(ct_node: Any) -> str:
    """The pseudonym of a CT's patient."""
    return ct_node.GetAttribute(_PSEUDONYM) or SCENE_PATIENT


def notes_of(ct_node: Any) -> list[str]:
    """What was noticed when the patient was read."""
    return json.loads(ct_node.GetAttribute(_NOTES) or "[]")


def stored_plan(ct_node: Any) -> Plan | None:
    """The plan that a CT's patient was read with, without its dose; None of a CT from elsewhere."""
    told = json.loads(ct_node.GetAttribute(_PLAN) or "null")
    if told is None:
        return None
    return Plan(
        prescription_from_row(told),
        tuple(told["gantry_angles_deg"]),
        label=told["label"],
        dose_is_effective=told["effective"],
        not_fixed_fields=told.get("not_fixed_fields", ""),  # scenes of earlier versions do not tell
    )


def segment_matches(segmentation_node: Any) -> list[Match]:
    """What each segment is to the model: proposed by its name, or as the user confirmed it.

    Raises PatientDataError where two segments have one name, or count as the same structure.
    """
    segmentation = segmentation_node.GetSegmentation()
    segments = [segmentation.GetSegment(segment_id) for segment_id in _segment_ids(segmentation_node)]
    confirmed = {}
    for segment in segments:
        name = _tag(segment, NAME_TAG)
        if name:
            confirmed[segment.GetName()] = "" if name == LEFT_OUT else name
    return match_structures([Candidate(s.GetName(), is_empty=_is_empty(s)) for s in segments], confirmed)


def confirm_names(segmentation_node: Any, names: Mapping[str, str]) -> None:
    """Keep what the user confirmed of segments, by their names; "" leaves one out.

    Raises PatientDataError for names that no structure of the model has, and for two segments of one.
    """
    segmentation = segmentation_node.GetSegmentation()
    segments = {segmentation.GetSegment(i).GetName(): segmentation.GetSegment(i) for i in segmentation.GetSegmentIDs()}
    candidates = [Candidate(name, is_empty=_is_empty(segment)) for name, segment in segments.items()]
    match_structures(candidates, names)
    for source, name in names.items():
        segments[source].SetTag(NAME_TAG, name or LEFT_OUT)


def name_of_segment(segment: Any) -> str:
    """What a segment was confirmed to be; else its own name, and "" where it was left out."""
    confirmed = _tag(segment, NAME_TAG)
    return "" if confirmed == LEFT_OUT else confirmed or segment.GetName()


def patient_in_scene(
    ct_node: Any | None, segmentation_node: Any | None, dose_node: Any | None = None, fractions: int | None = None
) -> Patient:
    """The patient that nodes show, by the confirmed names of its segments.

    Parameters
    ----------
    dose_node : reference dose in Gy; resampled onto the CT, not known beyond its own grid.
    fractions : of the course; those of the plan that was read are taken where there is one.

    Raises SceneError or PatientDataError that says what is missing or does not fit together.
    """
    if ct_node is None:
        raise SceneError("There is no CT.", remedy="Choose the planning CT: structures and dose are not enough.")
    if segmentation_node is None:
        raise SceneError("There is no segmentation.", remedy="Choose the segmentation with the structures of this CT.")
    _require_one_patient(ct_node, segmentation_node, dose_node)
    ct = volume_from_node(ct_node, Quantity.HU)
    matches = segment_matches(segmentation_node)
    _require_settled(matches)
    ids = {segmentation_node.GetSegmentation().GetSegment(i).GetName(): i for i in _segment_ids(segmentation_node)}
    structures: dict[str, Structure] = {}
    for match in matches:
        if match.counts:
            found = structure_from_segment(segmentation_node, ids[match.source], ct.grid)
            structures[match.name] = replace(found, name=match.name, kind=_kind(match.name))
    external, mask = structures.pop(EXTERNAL, None), structures.pop(DOSE_MASK, None)
    levels = [(name, gy) for name in structures if (gy := level_of(name)) is not None]
    if not levels:
        raise SceneError(
            "There is no planning target volume of a known dose level.",
            where=segmentation_node.GetName(),
            remedy="Confirm one in the table of structures, such as PTV_7000 for 70 Gy.",
        )
    _require_this_anatomy(ct, structures)
    warnings = [*notes_of(ct_node), *check_orientation(structures)]
    if mask is None:
        targets = [s for s in structures.values() if s.kind is StructureKind.TARGET]
        if external is None:
            warnings.append(BODY_NOTE)
        mask = dose_region(external or body_of(ct), targets)
        warnings.append(REGION_NOTE)
    plan = _plan(ct_node, levels, fractions)
    if dose_node is not None:
        plan = replace(plan, dose=_fitting_dose(dose_node, ct.grid, mask))
    return Patient(
        pseudonym_of(ct_node),
        (Image("CT", ct),),
        structures,
        replace(as_mask(mask), name=DOSE_MASK, kind=StructureKind.REGION),
        (plan,),
        tuple(dict.fromkeys(warnings)),
    )


def _plan(ct_node: Any, levels: Sequence[tuple[str, float]], fractions: int | None) -> Plan:
    known = stored_plan(ct_node)
    prescribed = tuple(sorted(levels, key=lambda level: level[1]))
    if known is not None:
        return replace(known, prescription=Prescription(prescribed, known.prescription.fractions))
    if fractions is None:
        raise SceneError("In how many fractions the dose is given is not known.", remedy="Say the number of fractions.")
    return Plan(Prescription(prescribed, fractions), label="plan in the scene")


def _fitting_dose(dose_node: Any, grid: Grid, mask: Structure) -> Volume:
    dose = dose_on(dose_node, grid)
    known = np.isfinite(dose.values[mask.mask])
    if known.mean() < _LEAST_COVERED_RATIO:
        raise SceneError(
            f"The reference dose covers {100 * known.mean():.0f} % of where dose can be.",
            where=dose_node.GetName(),
            remedy="Choose the dose of this patient's plan, or none.",
        )
    return dose


def _require_settled(matches: Sequence[Match]) -> None:
    waiting = [match.source for match in matches if match.waits]
    if waiting:
        raise SceneError(
            f"{counted(len(waiting), 'structure waits', 'structures wait')} to be confirmed: {', '.join(waiting[:5])}.",
            remedy="Confirm or correct their names in the table of structures, or leave them out.",
        )


def _require_one_patient(ct_node: Any, *others: Any | None) -> None:
    """Raise SceneError where the subject hierarchy has nodes under different patients."""
    tree = hierarchy(ct_node.GetScene())

    def owner(node: Any) -> int:
        item = tree.GetItemByDataNode(node)
        return tree.GetItemAncestorAtLevel(item, "Patient") if item else 0

    for node in others:
        if node is not None and owner(node) and owner(ct_node) and owner(node) != owner(ct_node):
            raise SceneError(
                "It is another patient's than the CT.", where=node.GetName(), remedy="Choose nodes of one patient."
            )


def _require_this_anatomy(ct: Volume, structures: Mapping[str, Structure]) -> None:
    """Raise SceneError where structures that are flesh lie in the air of this CT."""
    for name, structure in structures.items():
        if name not in _SOLID and structure.kind is not StructureKind.TARGET:
            continue
        inside = structure.box_occupancy >= 0.5
        values = ct.values[structure.box][inside]
        if values.size and float((values < _AIR_HU).mean()) > _MOST_AIR_RATIO:
            raise SceneError(
                "It lies in the air of this CT: the structures seem to be another patient's.",
                where=name,
                remedy="Choose the segmentation that was drawn on this CT, or register it.",
            )


def _kind(name: str) -> StructureKind:
    if level_of(name) is not None:
        return StructureKind.TARGET
    return StructureKind.REGION if name in (EXTERNAL, DOSE_MASK) else StructureKind.ORGAN


def _segment_ids(segmentation_node: Any) -> list[str]:
    """By their numbers, which are a patient's order: that of segments says what is drawn on top."""
    segmentation = segmentation_node.GetSegmentation()

    def number(segment_id: str) -> float:
        told = _tag(segmentation.GetSegment(segment_id), ROI_NUMBER)
        return int(told) if told.isdecimal() else float("inf")

    return sorted(segmentation.GetSegmentIDs(), key=number)


def _is_empty(segment: Any) -> bool:
    names: list[str] = []
    segment.GetContainedRepresentationNames(names)
    if not names:
        return True
    converter = slicer.vtkSegmentationConverter
    labelmap = segment.GetRepresentation(converter.GetBinaryLabelmapRepresentationName())
    if labelmap is None:
        surface = segment.GetRepresentation(converter.GetClosedSurfaceRepresentationName())
        return surface is not None and not surface.GetNumberOfPoints()
    if min(labelmap.GetDimensions()) < 1:
        return True
    values = numpy_support.vtk_to_numpy(labelmap.GetPointData().GetScalars())
    return not bool((values == segment.GetLabelValue()).any())


def _tag(segment: Any, name: str) -> str:
    value = reference("")
    return str(value) if segment.GetTag(name, value) else ""
