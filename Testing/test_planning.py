"""Inverse planning: a true gradient, plans that cover and spare, what is refused, the sample patient's plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.dosimetry.beams import CoplanarBeams
from RTDigitalTwinLib.dosimetry.distance import signed_distance_mm
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.dosimetry.planning import (
    LABEL,
    NOT_CLINICAL,
    DoseObjective,
    FallOff,
    ObjectiveKind,
    PlanningGoals,
    _Cost,
    head_and_neck_goals,
    optimised_plan,
    planned,
)
from RTDigitalTwinLib.errors import Cancelled, GeometryError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import Approval
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Volume
from Testing.builders import ball, oblique_grid, small_patient

ANGLES_DEG = tuple(float(angle) for angle in range(0, 360, 40))


@pytest.fixture(scope="module")
def patient() -> Patient:
    """One target between two parotids, with nine beams."""
    return with_angles(small_patient(with_dose=False))


@pytest.fixture(scope="module")
def planned_sample(sample: Patient) -> Patient:
    return planned(sample)


def with_angles(patient: Patient, angles_deg: tuple[float, ...] = ANGLES_DEG) -> Patient:
    return replace(patient, plans=(replace(patient.plan, gantry_angles_deg=angles_deg),))


def with_structure(patient: Patient, structure: Structure) -> Patient:
    return replace(patient, structures={**patient.structures, structure.name: structure})


def metric(dose: Volume, patient: Patient, structure: str, name: str) -> float:
    return float(structure_dose_of(dose, patient.structure(structure)).metric(DvhMetric.parse(name))[0])


def without_organs(patient: Patient) -> PlanningGoals:
    goals = head_and_neck_goals(patient)
    return replace(goals, objectives=tuple(o for o in goals.objectives if o.structure in patient.targets))


def plain_cost(patient: Patient, goals: PlanningGoals, beams: CoplanarBeams, fluence: torch.Tensor) -> torch.Tensor:
    """The cost as its description says it, on the whole grid; in double precision after the beams."""
    dose = torch.zeros(patient.ct.grid.shape, dtype=torch.float64)
    dose[patient.dose_mask.box] = beams.dose(fluence).double()
    mask = torch.from_numpy(patient.dose_mask.mask)
    dose = dose * mask
    target = torch.from_numpy(signed_distance_mm(patient.structure("PTV_7000").mask, patient.ct.grid.spacing_mm, 80.0))
    fall = goals.fall_off
    share = fall.far_ratio + (fall.edge_ratio - fall.far_ratio) * torch.exp(-target.clamp(min=0) / fall.length_mm)
    cost = fall.weight * ((dose - 70 * share).clamp(min=0) ** 2)[mask].mean()
    for objective in goals.objectives:
        occupancy = torch.from_numpy(patient.structure(objective.structure).occupancy).double()
        miss = dose - objective.dose_gy
        if objective.kind is ObjectiveKind.MEAN_AT_MOST:
            missed = ((occupancy * miss).sum() / occupancy.sum()).clamp(min=0) ** 2
        else:
            miss = -miss if objective.kind is ObjectiveKind.AT_LEAST else miss
            missed = (occupancy * miss.clamp(min=0) ** 2).sum() / occupancy.sum()
        cost = cost + objective.weight * missed
    steps = fluence.diff(dim=1).square().sum() + fluence.diff(dim=2).square().sum()
    return (cost + goals.smoothness * steps / fluence.numel()) / 2


def test_the_gradient_is_that_of_the_cost_and_its_bound_holds(patient: Patient) -> None:
    goals = head_and_neck_goals(patient)
    box = patient.dose_mask.box
    beams = CoplanarBeams(patient.ct.values, patient.ct.grid, ANGLES_DEG, window=box)
    cost = _Cost(patient, goals, beams, box)
    generator = torch.Generator().manual_seed(0)
    a, b = (20 * torch.rand(beams.fluence_shape, generator=generator) for _ in range(2))
    a.requires_grad_()
    (expected,) = torch.autograd.grad(plain_cost(patient, goals, beams, a), a)
    with torch.no_grad():
        found = cost.gradient(a, beams.dose(a))
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        curvature = ((found - cost.gradient(b, beams.dose(b))) * (a - b)).sum()
        assert 0 < curvature <= (cost.majoriser() * (a - b) ** 2).sum()


def test_a_plan_covers_its_target_and_nothing_outside_the_mask(patient: Patient) -> None:
    plan = optimised_plan(patient)
    assert float(plan.fluence.min()) >= 0 and float(plan.fluence.max()) > 0
    assert not plan.dose.values[~patient.dose_mask.mask].any()
    assert metric(plan.dose, patient, "PTV_7000", "D95") == pytest.approx(70, abs=0.01)
    assert metric(plan.dose, patient, "PTV_7000", "D99") > 0.97 * 70
    assert metric(plan.dose, patient, "PTV_7000", "D1") < 1.08 * 70
    beams = CoplanarBeams(patient.ct.values, patient.ct.grid, ANGLES_DEG, window=patient.dose_mask.box)
    again = np.where(patient.dose_mask.mask[patient.dose_mask.box], beams.dose(plan.fluence).numpy(), 0)
    assert again == pytest.approx(plan.dose.values[patient.dose_mask.box], abs=0.01)  # the fluence goes with the dose


def test_objectives_spare_what_they_name(patient: Patient) -> None:
    goals = without_organs(patient)
    cord = DoseObjective("SpinalCord", ObjectiveKind.AT_MOST, 10.0, 20.0)
    parotid = DoseObjective("Parotid_L", ObjectiveKind.MEAN_AT_MOST, 10.0, 3.0)
    plain = optimised_plan(patient, goals).dose
    for objective, name in ((cord, "D0.1cc"), (parotid, "mean")):
        spared = optimised_plan(patient, replace(goals, objectives=(*goals.objectives, objective))).dose
        organ = objective.structure
        assert metric(spared, patient, organ, name) < 0.85 * metric(plain, patient, organ, name)
        assert metric(spared, patient, "PTV_7000", "D99") > 0.96 * 70


def test_iterations_lower_the_cost_and_smoothness_the_steps(patient: Patient) -> None:
    goals = head_and_neck_goals(patient)
    beams = CoplanarBeams(patient.ct.values, patient.ct.grid, ANGLES_DEG, window=patient.dose_mask.box)

    def cost_after(iterations: int) -> float:
        plan = optimised_plan(patient, goals, iterations)
        return float(plain_cost(patient, goals, beams, plan.fluence / plan.scale_ratio))

    costs = [cost_after(iterations) for iterations in (0, 10, 50, 200)]
    assert costs == sorted(costs, reverse=True) and costs[2] < 1.3 * costs[3]

    def roughness(smoothness: float) -> float:
        fluence = optimised_plan(patient, replace(goals, smoothness=smoothness)).fluence
        return float(fluence.diff(dim=2).abs().sum() / fluence.sum())

    assert roughness(3000.0) < 0.8 * roughness(0.0)


def test_the_same_patient_gets_the_same_dose(patient: Patient) -> None:
    first, second = optimised_plan(patient), optimised_plan(patient)
    assert np.array_equal(first.dose.values, second.dose.values)


def test_several_levels_and_an_organ_beyond_the_mask(patient: Patient) -> None:
    """The lower target keeps its own level; an organ where no dose can be asks for nothing."""
    grid = patient.ct.grid
    lower = ball(grid, (18, -12, -38), (16, 16, 18)) & ~patient.structure("PTV_7000").mask
    more = with_structure(patient, Structure.from_array("PTV_5600", lower, grid, StructureKind.TARGET))
    outside = np.zeros(grid.shape)
    outside[3:6, 1:3, 1:3] = 1
    more = with_structure(more, Structure.from_array("Larynx", outside, grid))
    levels = (("PTV_7000", 70.0), ("PTV_5600", 56.0))
    prescription = replace(more.plan.prescription, target_dose_gy=levels)
    dose = optimised_plan(replace(more, plans=(replace(more.plan, prescription=prescription),))).dose
    assert metric(dose, more, "PTV_7000", "D95") == pytest.approx(70, abs=0.01)
    assert metric(dose, more, "PTV_5600", "D95") == pytest.approx(56, abs=2)
    assert metric(dose, more, "PTV_5600", "D50") < 62


def test_what_cannot_be_planned_is_said(patient: Patient) -> None:
    goals = without_organs(patient)
    absent = DoseObjective("Cochlea_L", ObjectiveKind.MEAN_AT_MOST, 35.0, 1.0)
    with pytest.raises(PatientDataError, match="Cochlea_L: The patient has no structure of this name; there are PTV"):
        optimised_plan(patient, replace(goals, objectives=(*goals.objectives, absent)))
    with pytest.raises(PatientDataError, match="small-patient: The patient has no target"):
        optimised_plan(replace(patient, structures=patient.organs))
    with pytest.raises(GeometryError, match="No beam angles"):
        optimised_plan(with_angles(patient, ()))
    with pytest.raises(PatientDataError, match="has no plan"):
        planned(replace(patient, plans=()))
    with pytest.raises(GeometryError, match="Resample the CT"):
        optimised_plan(with_angles(small_patient(oblique_grid(), with_dose=False)))
    air = replace(patient.ct, values=np.full_like(patient.ct.values, -1000))
    with pytest.raises(PatientDataError, match="PTV_7000: The beams cannot cover"):
        optimised_plan(replace(patient, images=(replace(patient.images[0], volume=air),)))


def test_a_target_needs_its_level_and_its_place(patient: Patient) -> None:
    grid = patient.ct.grid
    outside = np.zeros(grid.shape)
    outside[3:6, 1:3, 1:3] = 1
    more = with_structure(patient, Structure.from_array("PTV_5600", outside, grid, StructureKind.TARGET))
    with pytest.raises(PatientDataError, match="No dose is prescribed to PTV_5600"):
        optimised_plan(more)
    prescription = replace(more.plan.prescription, target_dose_gy=(("PTV_7000", 70.0), ("PTV_5600", 56.0)))
    with pytest.raises(PatientDataError, match="PTV_5600: The target lies outside the dose mask"):
        optimised_plan(replace(more, plans=(replace(more.plan, prescription=prescription),)))


@pytest.mark.parametrize(("dose_gy", "weight"), [(-1, 1), (np.nan, 1), (45, 0), (45, -1), (45, np.inf)])
def test_objectives_without_meaning_are_refused(dose_gy: float, weight: float) -> None:
    with pytest.raises(RTDigitalTwinError, match="SpinalCord: An objective of .* has no meaning"):
        DoseObjective("SpinalCord", ObjectiveKind.AT_MOST, dose_gy, weight)


def test_a_fall_off_and_a_smoothness_without_meaning_are_refused() -> None:
    for values in ({"length_mm": 0.0}, {"weight": -1.0}, {"far_ratio": 1.5}, {"length_mm": np.nan}):
        with pytest.raises(RTDigitalTwinError, match="cannot fall off"):
            FallOff(**values)
    with pytest.raises(RTDigitalTwinError, match="smoothness"):
        PlanningGoals((), smoothness=-1.0)


def test_planning_can_be_cancelled_and_says_how_far_it_is(patient: Patient) -> None:
    told: list[float] = []
    planned(patient, progress=lambda done, _: told.append(done))
    assert told == sorted(told) and told[0] == 0 and 0.9 < told[-1] <= 1

    def cancel(done_ratio: float, message: str) -> None:
        if done_ratio > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        planned(patient, progress=cancel)


def test_a_planned_patient_says_what_its_dose_is(sample: Patient, planned_sample: Patient) -> None:
    plan = planned_sample.plan
    assert plan.dose is not None and plan.approval is Approval.UNAPPROVED and plan.label == LABEL
    assert planned_sample.warnings == (NOT_CLINICAL,)
    assert plan.prescription == sample.plan.prescription and sample.plan.dose is None
    with pytest.raises(PatientDataError, match="has a dose already"):
        planned(planned_sample)


def test_the_samples_plan_resembles_planned_ones(planned_sample: Patient) -> None:
    """Within what the 33 public validation plans show at their 10th and 90th percentile, or better."""
    dose = planned_sample.plan.dose
    assert dose is not None

    def of(structure: str, name: str) -> float:
        return metric(dose, planned_sample, structure, name)

    assert of("PTV_7000", "D95") == pytest.approx(70, abs=0.01)
    for name, level_gy, hottest_gy in (("PTV_7000", 70, 75.5), ("PTV_6300", 63, 74), ("PTV_5600", 56, 70)):
        assert of(name, "D95") > 0.99 * level_gy and of(name, "D99") > 0.95 * level_gy
        assert of(name, "D1") < hottest_gy
    assert of("SpinalCord", "D0.1cc") < 43 and of("Brainstem", "D0.1cc") < 40
    assert 16 < of("Parotid_R", "mean") < 30 and 16 < of("Parotid_L", "mean") < 30
    assert of("Bone_Mandible", "D0.1cc") < 73 and of("Larynx", "mean") < 52 and of("Esophagus", "mean") < 34
    targets = np.any([target.mask for target in planned_sample.targets.values()], axis=0)
    away_mm = signed_distance_mm(targets, planned_sample.ct.grid.spacing_mm, 80.0)
    gy, mask = dose.values, planned_sample.dose_mask.mask
    assert not gy[~mask].any() and gy.max() < 1.1 * 70 and gy[targets].min() > 0.7 * 56
    for nearest_mm, farthest_mm, mean_gy, hot_gy in ((10, 20, 37, 61), (20, 30, 25, 52), (30, 40, 19, 46)):
        shell = gy[mask & (away_mm > nearest_mm) & (away_mm <= farthest_mm)]
        assert shell.mean() < mean_gy and np.percentile(shell, 99) < hot_gy
