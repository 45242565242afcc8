"""Fluence that explains a dose, what of a change it can produce, bounds of a change, and optimisation over it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.decision.actions import added
from RTDigitalTwinLib.decision.beam_changes import ExplainedDose, PatientBeams, beam_consistent_ratio, explained_dose
from RTDigitalTwinLib.decision.bounds import ChangeBounds, steepest_gy_per_mm
from RTDigitalTwinLib.decision.fluence import FluenceSettings, optimised_fluence
from RTDigitalTwinLib.decision.objective import Part, kept_parts, mean_gy, penalty_parts
from RTDigitalTwinLib.decision.penalties import Penalty, tail_mean
from RTDigitalTwinLib.dosimetry.planning import planned
from RTDigitalTwinLib.errors import GeometryError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.crop import crop_around
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import OPENKBP_GANTRY_ANGLES_DEG
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from Testing.builders import hand_made_ensemble, oblique_grid, small_patient


@pytest.fixture(scope="module")
def patient() -> Patient:
    """A small patient with nine fields, and the dose that these can give it."""
    bare = small_patient(with_dose=False)
    return planned(replace(bare, plans=(replace(bare.plan, gantry_angles_deg=OPENKBP_GANTRY_ANGLES_DEG),)))


@pytest.fixture(scope="module")
def prediction(patient: Patient) -> DoseEnsemble:
    """Samples about the planned dose: all of it 3 % more or less, and smooth waves of some Gy."""
    crop = crop_around(patient)
    assert patient.plan.dose is not None
    gy = patient.plan.dose.values.reshape(-1)[crop.mask_indices].astype(np.float32)
    waves = hand_made_ensemble(patient, samples=16).deviations_gy.astype(np.float32)
    factors = np.random.default_rng(0).normal(0, 0.03, (16, 1))
    return DoseEnsemble(patient, crop, gy, (waves + factors * gy).astype(np.float16), 0, "0" * 64)


@pytest.fixture(scope="module")
def explained(prediction: DoseEnsemble) -> ExplainedDose:
    return explained_dose(prediction.patient, prediction.crop, mean_gy(prediction))


def test_the_adjoint_is_true_on_the_masks_voxels(prediction: DoseEnsemble) -> None:
    beams = PatientBeams(prediction.patient, prediction.crop)
    generator = torch.Generator().manual_seed(0)
    fluence = torch.rand(beams.beams.fluence_shape, generator=generator)
    values = torch.rand(beams.voxels, generator=generator)
    there, back = float((beams.dose(fluence) * values).sum()), float((beams.transposed(values) * fluence).sum())
    assert there == pytest.approx(back, rel=1e-4)


def test_the_matrix_is_the_beams_own_map(prediction: DoseEnsemble) -> None:
    beams = PatientBeams(prediction.patient, prediction.crop)
    generator = torch.Generator().manual_seed(0)
    fluence = torch.rand(beams.beams.fluence_shape, generator=generator)
    values = torch.rand(beams.voxels, generator=generator)
    whole = beams.spread(beams.dose(fluence))
    inside = whole > 0
    assert torch.allclose(whole[inside], beams.beams.dose(fluence)[inside], rtol=1e-4, atol=1e-5)
    assert inside.sum() > 0.9 * beams.voxels
    assert torch.allclose(beams.transposed(values), beams.beams.transposed(beams.spread(values)), rtol=1e-4, atol=1e-4)


def test_a_dose_that_beams_made_is_explained(explained: ExplainedDose, prediction: DoseEnsemble) -> None:
    assert explained.fluence.min() >= 0
    assert explained.correlation > 0.995  # the waves and the fit's end leave a little
    assert explained.mean_absolute_error_gy < 1.5
    off = np.abs(explained.dose_gy.numpy() - mean_gy(prediction)).mean()
    assert explained.mean_absolute_error_gy == pytest.approx(off, rel=1e-3)
    assert not explained.beams.are_assumed and "the plan's fields" in explained.words


def test_nine_fields_are_assumed_where_the_plan_names_none() -> None:
    prediction = hand_made_ensemble(small_patient(), samples=0)
    found = explained_dose(prediction.patient, prediction.crop, mean_gy(prediction), iterations=2)
    assert found.beams.are_assumed and "nine assumed fields" in found.words


def test_arcs_and_tilted_scans_are_refused(patient: Patient) -> None:
    arcs = replace(patient, plans=(replace(patient.plan, gantry_angles_deg=(), not_fixed_fields="2 beams are arcs."),))
    with pytest.raises(PatientDataError, match=r"projected on the plan's beams: 2 beams are arcs\."):
        PatientBeams(arcs, crop_around(arcs))
    tilted = small_patient(oblique_grid())
    with pytest.raises(GeometryError, match="posterior"):
        PatientBeams(tilted, crop_around(tilted))


def test_scaling_is_beam_consistent_and_a_hole_is_not(explained: ExplainedDose, prediction: DoseEnsemble) -> None:
    for factor in (-0.05, 0.05):
        asked = factor * explained.dose_gy.numpy()
        assert beam_consistent_ratio(asked, explained.projected(asked, 40).change_gy) > 0.995
    hole = np.zeros(explained.beams.voxels, np.float32)
    target = prediction.patient.structures["PTV_7000"].mask.reshape(-1)[prediction.crop.mask_indices]
    hole[np.flatnonzero(target)[target.sum() // 2]] = -20
    found = explained.projected(hole)
    assert found.fluence.min() >= 0
    assert beam_consistent_ratio(hole, found.change_gy) < 0.2
    # To less than no dose: fluence would have to be negative.
    too_much = -3 * mean_gy(prediction)
    assert beam_consistent_ratio(too_much, explained.projected(too_much).change_gy) < 0.6


def test_the_share_is_worked_out_by_hand() -> None:
    assert beam_consistent_ratio(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(1 - 1 / 25)
    assert beam_consistent_ratio(np.array([1.0]), np.array([-1.0])) == 0.0
    assert beam_consistent_ratio(np.zeros(2), np.zeros(2)) == 1.0


def test_projecting_longer_comes_nearer(explained: ExplainedDose) -> None:
    asked = np.where(np.arange(explained.beams.voxels) % 2, 1.0, 0.0) * explained.dose_gy.numpy() / 20
    ratios = [beam_consistent_ratio(asked, explained.projected(asked, n).change_gy) for n in (2, 5, 20)]
    assert ratios == sorted(ratios) and ratios[0] < ratios[-1]


def test_a_bounded_change_keeps_its_bounds(prediction: DoseEnsemble) -> None:
    crop, present = prediction.crop, mean_gy(prediction)
    wild = np.random.default_rng(1).normal(0, 20, present.size)
    for bounds in (ChangeBounds(), ChangeBounds(0.2, 3.0, 2.0), ChangeBounds(0.5, 50.0, 1.0)):
        found = bounds.bounded(wild, present, crop)
        assert np.all(np.abs(found) <= bounds.limits_gy(present) * (1 + 1e-6))
        field = np.zeros(crop.shape)
        field[crop.mask] = found
        assert 0 < steepest_gy_per_mm(field, crop) * 10 <= bounds.steepest_gy_per_cm * (1 + 1e-5)
        assert np.all(found * wild >= 0)  # nowhere the other way


def test_a_change_within_its_bounds_stays(prediction: DoseEnsemble) -> None:
    present = mean_gy(prediction)
    gentle = (0.01 * present).astype(np.float32)
    assert ChangeBounds(steepest_gy_per_cm=20.0).bounded(gentle, present, prediction.crop) == pytest.approx(gentle)
    # A step of 10 Gy becomes a ramp, whose steepest slope, at the mask's rim, is the bound.
    row = np.zeros(prediction.crop.shape)
    slices, rows = prediction.crop.shape[0] // 2, prediction.crop.shape[1] // 2
    inside = np.flatnonzero(prediction.crop.mask[slices, rows])
    row[:, :, inside[8] :] = 10.0
    bounds = ChangeBounds(0.5, 100.0, 5.0)
    found = np.zeros(prediction.crop.shape)
    found[prediction.crop.mask] = bounds.bounded(
        row[prediction.crop.mask], np.full(present.size, 100.0), prediction.crop
    )
    ramp = found[slices, rows, inside[6:12]]
    assert ramp == pytest.approx(ramp[2] * np.array([0, 0, 1, 2, 3, 4]), abs=1e-4)
    assert steepest_gy_per_mm(found, prediction.crop) * 10 == pytest.approx(5.0, rel=1e-4)


@pytest.mark.parametrize("wrong", [{"most_change_ratio": 0.0}, {"most_change_ratio": 1.0}, {"most_change_gy": np.nan}])
def test_bounds_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(RTDigitalTwinError, match="cannot be bounded"):
        ChangeBounds(**wrong)


def test_the_tail_is_rockafellars_and_uryasevs() -> None:
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 0.0, 0.0])
    assert float(tail_mean(values, 1.0)) == pytest.approx(15 / 8)
    assert float(tail_mean(values, 0.25)) == pytest.approx(4.5)
    assert float(tail_mean(values, 0.3)) == pytest.approx((5 + 4 + 0.4 * 3) / 2.4)
    assert float(tail_mean(values, 0.01)) == 5  # too few samples: the worst
    drawn = torch.randn(100, generator=torch.Generator().manual_seed(0))
    ts = torch.linspace(-3, 3, 60001)
    formula = min(float(t + (drawn - t).clamp(min=0).mean() / 0.07) for t in ts[::20])
    assert float(tail_mean(drawn, 0.07)) == pytest.approx(formula, abs=1e-3)


def test_the_worst_samples_ask_for_more_than_the_mean(prediction: DoseEnsemble, explained: ExplainedDose) -> None:
    """A chance constraint by its tail is the safer: the organ ends lower, and fewer samples exceed the limit."""
    mean = float(prediction.metric("Parotid_R", "mean").mean)
    limit = Penalty("Parotid_R", 0.97 * mean, True, True, 10.0)
    after, beyond = [], []
    for tail in (1.0, 0.1):
        found = optimised_fluence(prediction, explained, FluenceSettings(20, tail, 0.01), [limit])
        samples = added(prediction, found.change_gy).metric("Parotid_R", "mean").samples
        after.append(samples.mean())
        beyond.append((samples > limit.limit_gy).mean())
    assert after[1] < after[0] < mean
    assert beyond[1] < beyond[0]
    parts = [penalty_parts(prediction, [limit], tail)[0] for tail in (1.0, 0.5, 0.1)]
    none = torch.zeros(explained.beams.voxels)
    values = [float(part.value(none)) for part in parts]
    assert values == sorted(values) and values[0] < values[-1]


def test_the_search_lessens_its_objective_with_fluence_that_exists(
    prediction: DoseEnsemble, explained: ExplainedDose
) -> None:
    settings = FluenceSettings(steps=15)
    found = optimised_fluence(prediction, explained, settings, kept=kept_parts(prediction))
    assert len(found.objective) == 16 and min(found.objective) < 0.9 * found.objective[0]
    assert found.fluence.min() >= 0
    change = explained.change_gy(torch.from_numpy(found.fluence))
    assert found.change_gy == pytest.approx(change.numpy(), abs=1e-4)
    again = optimised_fluence(prediction, explained, settings, kept=kept_parts(prediction))
    assert np.array_equal(found.fluence, again.fluence) and found.objective == again.objective
    with pytest.raises(RTDigitalTwinError, match="Nothing is asked"):
        optimised_fluence(prediction, explained, penalties=[])
    for wrong in ({"steps": 0}, {"tail_ratio": 0.0}, {"change_scale_gy": 0.0}, {"change_weight": -1.0}):
        with pytest.raises(RTDigitalTwinError, match="No fluence"):
            FluenceSettings(**wrong)


def test_slopes_are_those_of_automatic_differentiation(prediction: DoseEnsemble) -> None:
    """Of every kind of part, also where a change takes samples below 0 Gy, and with a tail of them only."""
    penalties = [
        Penalty("PTV_7000", 70.0, False, False, 100.0),
        Penalty("PTV_7000", 60.0, True, False, 100.0),
        Penalty("Parotid_R", 5.0, True, True, 1.0),
        Penalty("SpinalCord", 4.0, False, False, 1.0),
    ]
    parts = [part for tail in (1.0, 0.3) for part in penalty_parts(prediction, penalties, tail)]
    present = torch.from_numpy(mean_gy(prediction))
    noise = torch.randn(len(present), generator=torch.Generator().manual_seed(0))
    change_gy = 0.8 * present * noise
    lowest = [float((part.samples_gy + change_gy[part.places]).min()) for part in parts if not part.penalty.of_mean]
    assert max(lowest) < 0
    every: list[Part] = [*parts, *kept_parts(prediction)]
    for part in every:
        free = change_gy.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(part.value(free), free)
        found = torch.zeros_like(present)
        for _ in range(2):  # it adds to what is there
            part.slope(change_gy, found)
        assert float(wanted.abs().max()) > 0, part.label
        assert float((found / 2 - wanted).abs().max()) < 1e-5 * float(wanted.abs().max()), part.label  # float32


def test_what_is_kept_is_penalised_where_it_changes(prediction: DoseEnsemble) -> None:
    kept = {part.label: part for part in kept_parts(prediction, "Parotid_L")}
    assert set(kept) == {"PTV_7000 kept", "SpinalCord kept", "Parotid_R kept"}
    present = torch.from_numpy(mean_gy(prediction))
    for label, part in kept.items():
        less, more = float(part.value(-0.1 * present)), float(part.value(0.1 * present))
        assert float(part.value(torch.zeros_like(present))) == 0
        assert less > 0 if label.startswith("PTV") else less == 0  # an organ may have less
        assert more > 0
