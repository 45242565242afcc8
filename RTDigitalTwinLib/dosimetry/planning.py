"""Inverse planning by beam fluence: what coplanar beams could give a patient, by objectives for its structures.

It gives a patient without a dose one to compare with. Not a clinical plan and no claim that a machine can deliver it:
the fluence is free (no multileaf collimator, segments or leaf travel), beams are parallel and scatter does not depend
on density (see ``beams``), nothing is robust to set-up errors, and the objectives' weights were set by hand so that
head-and-neck plans resemble planned ones in their dose-volume metrics, not by a physician.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from RTDigitalTwinLib.dosimetry.beams import CoplanarBeams, non_negative_minimum, prescribed_fluence
from RTDigitalTwinLib.dosimetry.customary import prescribed_dose, required_levels_gy
from RTDigitalTwinLib.dosimetry.distance import signed_distance_mm
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.grid import Box
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import Approval
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, part, silent

LABEL = "Fluence optimised by RTDigitalTwin, no clinical plan"
NOT_CLINICAL = (
    "The reference dose is no clinical plan: RTDigitalTwin made it, by optimising the fluence of the plan's beams for "
    "objectives of its own. It shows how a comparison looks, not how good the prediction is."
)
ITERATIONS = 50  # about as far as planners go; more spares a little more, at fluences ever rougher
FALL_OFF_REACH_MM = 80.0
COVERED_RATIO = 0.95  # of the highest target's volume gets its dose level


class ObjectiveKind(Enum):
    """What an objective asks of the dose in a structure."""

    AT_LEAST = "at least"
    AT_MOST = "at most"
    MEAN_AT_MOST = "mean at most"


@dataclass(frozen=True)
class DoseObjective:
    """A wish for one structure; what is missed costs its square.

    Attributes
    ----------
    structure : its name.
    dose_gy : wanted at least or at most, by every voxel or their mean.
    weight : of the squared miss in Gy, averaged over the structure's volume; above 0.
    """

    structure: str
    kind: ObjectiveKind
    dose_gy: float
    weight: float

    def __post_init__(self) -> None:
        if not (0 <= self.dose_gy < math.inf and 0 < self.weight < math.inf):  # NaN fails as well
            raise RTDigitalTwinError(
                f"An objective of {self.dose_gy} Gy with weight {self.weight} has no meaning.",
                where=self.structure,
                remedy="Give a dose of 0 Gy or more and a weight above 0.",
            )


@dataclass(frozen=True)
class FallOff:
    """The most dose wanted with the distance from targets; more costs its square, averaged over the dose mask.

    From ``edge_ratio`` of a target's dose level inside it down to ``far_ratio``, by 1/e in every ``length_mm``; of
    several targets the highest holds.
    """

    weight: float = 5.0
    edge_ratio: float = 1.02
    far_ratio: float = 0.15
    length_mm: float = 18.0

    def __post_init__(self) -> None:
        if not (0 <= self.weight < math.inf and 0 <= self.far_ratio <= self.edge_ratio and self.length_mm > 0):
            raise RTDigitalTwinError(
                f"The dose cannot fall off like {self}.",
                remedy="Give a length above 0 mm, a weight of 0 or more, and no more dose far away than in the target.",
            )


@dataclass(frozen=True)
class PlanningGoals:
    """What a plan is optimised for.

    Attributes
    ----------
    objectives : of structures that the patient has.
    fall_off : of dose around the targets.
    smoothness : weight of the squared steps of the fluence between neighbouring rays and slices, averaged over rays.
    """

    objectives: tuple[DoseObjective, ...]
    fall_off: FallOff = FallOff()
    smoothness: float = 300.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothness < math.inf:
            raise RTDigitalTwinError(f"A smoothness of {self.smoothness} has no meaning.", remedy="Give 0 or more.")


# Below the limits of RTOG 0225 and QUANTEC, as planners go as low as targets allow. Doses and weights were set by hand
# until the sample patient's plan had dose-volume metrics like those of the validation plans of OpenKBP.
HEAD_AND_NECK_ORGANS = (
    DoseObjective("SpinalCord", ObjectiveKind.AT_MOST, 34.0, 20.0),
    DoseObjective("Brainstem", ObjectiveKind.AT_MOST, 36.0, 10.0),
    DoseObjective("Parotid_R", ObjectiveKind.MEAN_AT_MOST, 20.0, 3.0),
    DoseObjective("Parotid_L", ObjectiveKind.MEAN_AT_MOST, 20.0, 3.0),
    DoseObjective("Bone_Mandible", ObjectiveKind.AT_MOST, 68.0, 10.0),
    DoseObjective("Bone_Mandible", ObjectiveKind.MEAN_AT_MOST, 35.0, 1.0),
    DoseObjective("Larynx", ObjectiveKind.MEAN_AT_MOST, 40.0, 2.0),
    DoseObjective("Esophagus", ObjectiveKind.MEAN_AT_MOST, 30.0, 2.0),
)
TARGET_WEIGHT, LOWER_TARGET_CEILING_WEIGHT = 100.0, 20.0
FLOOR_RATIO, CEILING_RATIO = 1.01, 1.04  # of a target's dose level, before the dose is scaled


def head_and_neck_goals(patient: Patient) -> PlanningGoals:
    """The prescription for every target, and the organs at risk that the patient has.

    Raises PatientDataError where there is no target or one without a dose level.
    """
    levels = _target_levels(patient)
    highest = max(levels.values())
    objectives = []
    for name, level_gy in levels.items():
        ceiling_weight = TARGET_WEIGHT if level_gy == highest else LOWER_TARGET_CEILING_WEIGHT
        objectives += [
            DoseObjective(name, ObjectiveKind.AT_LEAST, FLOOR_RATIO * level_gy, TARGET_WEIGHT),
            DoseObjective(name, ObjectiveKind.AT_MOST, CEILING_RATIO * level_gy, ceiling_weight),
        ]
    objectives += [objective for objective in HEAD_AND_NECK_ORGANS if objective.structure in patient.structures]
    return PlanningGoals(tuple(objectives))


@dataclass(frozen=True, eq=False)
class FluencePlan:
    """An optimised fluence and its dose.

    Attributes
    ----------
    fluence : (beams, slices, rays), scaled as the dose.
    dose : Gy on the patient's CT; 0 outside the dose mask.
    scale_ratio : by which both were multiplied in the end, for the coverage of the highest target.
    """

    fluence: Tensor
    dose: Volume
    scale_ratio: float


def optimised_plan(
    patient: Patient, goals: PlanningGoals | None = None, iterations: int = ITERATIONS, progress: Progress = silent
) -> FluencePlan:
    """Fluence of the plan's coplanar beams for ``goals``, scaled so that the highest target's D95 is its dose level.

    A convex cost and a fixed number of iterations from the prescription as fluence: the same patient gives the same
    dose, to rounding across machines. ``goals`` are ``head_and_neck_goals`` by default.

    Raises PatientDataError where there is no target, one without a dose level or outside the dose mask, or an objective
    for a structure that the patient lacks; GeometryError where the plan names no beams or the CT is not axial.
    """
    levels = _target_levels(patient)
    goals = goals or head_and_neck_goals(patient)
    box = patient.dose_mask.box
    progress(0.0, "following the beams")
    beams = CoplanarBeams(patient.ct.values, patient.ct.grid, patient.plan.gantry_angles_deg, window=box)
    with torch.no_grad():
        cost = _Cost(patient, goals, beams, box)
        prescribed_gy = torch.from_numpy(prescribed_dose(patient, levels, box))
        start = prescribed_fluence(beams, prescribed_gy)
        searching = part(progress, 0.05, 1.0)
        fluence = non_negative_minimum(start, beams.dose, cost.gradient, cost.majoriser(), iterations, searching)
        gy = np.zeros(patient.ct.grid.shape, np.float32)
        gy[box] = (beams.dose(fluence) * cost.mask).numpy()
    highest = max(levels, key=lambda name: levels[name])
    covered = structure_dose_of(Volume(gy, patient.ct.grid, Quantity.DOSE_GY), patient.structure(highest))
    reached_gy = float(covered.dose_at_volume_gy(COVERED_RATIO)[0])
    if reached_gy <= 0:
        raise PatientDataError(
            "The beams cannot cover the target: there is no tissue in it, or it leaves the dose mask.",
            where=highest,
            remedy="Check the CT and the dose mask.",
        )
    scale = levels[highest] / reached_gy
    return FluencePlan(scale * fluence, Volume(np.float32(scale) * gy, patient.ct.grid, Quantity.DOSE_GY), scale)


def planned(patient: Patient, goals: PlanningGoals | None = None, progress: Progress = silent) -> Patient:
    """The patient with the dose of an ``optimised_plan`` in the plan in use, and a warning that says so.

    Raises PatientDataError also where the plan has a dose already.
    """
    if patient.plan.dose is not None:
        raise PatientDataError("The plan has a dose already.", where=patient.plan.label or patient.pseudonym)
    dose = optimised_plan(patient, goals, progress=progress).dose
    return replace(
        patient,
        plans=(replace(patient.plan, dose=dose, approval=Approval.UNAPPROVED, label=LABEL), *patient.plans[1:]),
        warnings=(*patient.warnings, NOT_CLINICAL),
    )


def _target_levels(patient: Patient) -> dict[str, float]:
    """Prescribed dose in Gy of every target the patient has."""
    if not patient.targets:
        raise PatientDataError("The patient has no target.", where=patient.pseudonym, remedy="A plan needs one.")
    return required_levels_gy(patient, patient.targets)


class _Cost:
    """The cost of a fluence: half the weighted squares of all that the goals miss."""

    def __init__(self, patient: Patient, goals: PlanningGoals, beams: CoplanarBeams, box: Box) -> None:
        self.beams, self.goals = beams, goals
        self.mask = torch.from_numpy(patient.dose_mask.mask[box])
        self.ceiling_gy = torch.from_numpy(_fall_off_gy(patient, goals.fall_off, box)).flatten()
        self.ceiling_weight = goals.fall_off.weight * self.mask.flatten() / self.mask.sum()
        self.terms = [(objective, *self._inside(patient, objective, box)) for objective in goals.objectives]

    def _inside(self, patient: Patient, objective: DoseObjective, box: Box) -> tuple[Tensor, Tensor]:
        """Flat indices of a structure's voxels in the dose mask, and the share of its volume in each."""
        structure = patient.structure(objective.structure)
        occupancy = (torch.from_numpy(structure.occupancy[box]) * self.mask).flatten()
        voxels = occupancy.nonzero()[:, 0]
        if objective.kind is ObjectiveKind.AT_LEAST and not len(voxels):
            raise PatientDataError("The target lies outside the dose mask.", where=structure.name,
                                   remedy="Give a mask that holds it.")  # fmt: skip
        return voxels, occupancy[voxels] / float(structure.box_occupancy.sum(dtype=float))

    def gradient(self, fluence: Tensor, dose_gy: Tensor) -> Tensor:
        dose = dose_gy.flatten()
        slope = self.ceiling_weight * (dose - self.ceiling_gy).clamp(min=0)
        for objective, voxels, share in self.terms:
            inside = dose[voxels]
            if objective.kind is ObjectiveKind.MEAN_AT_MOST:
                missed = ((share * inside).sum() - objective.dose_gy).clamp(min=0)
            elif objective.kind is ObjectiveKind.AT_MOST:
                missed = (inside - objective.dose_gy).clamp(min=0)
            else:
                missed = (inside - objective.dose_gy).clamp(max=0)
            slope[voxels] += objective.weight * share * missed
        return self.beams.transposed(slope.view(self.beams.shape)) + self._roughness_slope(fluence)

    def _roughness_slope(self, fluence: Tensor) -> Tensor:
        """Of half the mean squared step between neighbours, in slices and rays."""
        padded = functional.pad(fluence[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
        return self.goals.smoothness / fluence.numel() * (4 * fluence - around)

    def majoriser(self) -> Tensor:
        """Diagonal that bounds the curvature: of non-negative A and squares, A^T (w A 1)."""
        open_dose = self.beams.dose(torch.ones(self.beams.fluence_shape)).flatten()
        bound = self.ceiling_weight * open_dose
        for objective, voxels, share in self.terms:
            if objective.kind is ObjectiveKind.MEAN_AT_MOST:
                bound[voxels] += objective.weight * share * (share * open_dose[voxels]).sum()
            else:
                bound[voxels] += objective.weight * share * open_dose[voxels]
        smoothness = 8 * self.goals.smoothness / math.prod(self.beams.fluence_shape)
        return self.beams.transposed(bound.view(self.beams.shape)) + smoothness


def _fall_off_gy(patient: Patient, fall_off: FallOff, box: Box) -> NDArray[np.float32]:
    """The most dose wanted at each voxel of the box."""
    ceiling = np.zeros(patient.ct.grid.cropped(box).shape, np.float32)
    for name, level_gy in _target_levels(patient).items():
        inside = patient.structures[name].mask[box]
        if inside.any():
            away_mm = np.maximum(signed_distance_mm(inside, patient.ct.grid.spacing_mm, FALL_OFF_REACH_MM), 0)
            falling = (fall_off.edge_ratio - fall_off.far_ratio) * np.exp(-away_mm / fall_off.length_mm)
            ceiling = np.maximum(ceiling, np.float32(level_gy) * (fall_off.far_ratio + falling))
    return ceiling
