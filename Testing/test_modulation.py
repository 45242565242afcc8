"""Decision: the penalties of goals, and a modulation that lessens them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.decision.actions import added
from RTDigitalTwinLib.decision.modulation import Modulation, ModulationSettings, modulate
from RTDigitalTwinLib.decision.penalties import Penalty, penalties_for
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.crop import crop_around
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from Testing.builders import small_patient

WEIGHTS = torch.tensor([0.5, 0.25, 0.25])
DOSES = torch.tensor([[60.0, 40.0, 20.0], [60.0, 60.0, 60.0]])


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (Penalty("a", 50.0, True, False, 1.0), (0.5 * 0.2**2 + 1.0 * 0.2**2) / 2),
        (Penalty("a", 50.0, False, False, 1.0), (0.25 * 0.2**2 + 0.25 * 0.6**2) / 2),
        (Penalty("a", 50.0, True, True, 1.0), (0 + 0.2**2) / 2),
        (Penalty("a", 50.0, False, True, 1.0), (0.1**2 + 0) / 2),
    ],
)
def test_penalties_are_those_worked_out_by_hand(penalty: Penalty, expected: float) -> None:
    assert float(penalty.of(DOSES, WEIGHTS)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def prediction() -> DoseEnsemble:
    """Doses that fall off from the target, spread by some random Gy."""
    patient = small_patient()
    crop = crop_around(patient)
    assert patient.plan.dose is not None
    gy = patient.plan.dose.values.reshape(-1)[crop.mask_indices].astype(np.float32)
    spread = np.random.default_rng(0).normal(0, 2, (8, gy.size)).astype(np.float16)
    return DoseEnsemble(patient, crop, np.maximum(gy, 30), spread, 0, "")


def test_goals_and_prescription_become_penalties(prediction: DoseEnsemble) -> None:
    found = {p.label: p.weight for p in penalties_for(prediction)}
    assert found["PTV_7000 dose ≥ 70 Gy"] == found["PTV_7000 dose ≤ 74.9 Gy"] == 100
    assert found["SpinalCord dose ≤ 50 Gy"] == 1  # D1cc below 50 Gy is nearer than the maximum below 45 Gy
    assert found["Parotid_L mean ≤ 25 Gy"] == pytest.approx(1 / 3)
    # Either parotid spared would do, by its mean or by its volume above 30 Gy: the nearest of the four is asked for.
    spared = [label for label in found if label.startswith("Parotid") and label.endswith(("26 Gy", "30 Gy"))]
    means = {name: float(prediction.metric(name, "mean").mean) for name in ("Parotid_L", "Parotid_R")}
    assert len(spared) == 1 and spared[0].startswith(min(means, key=lambda name: means[name]))
    assert not any("Brainstem" in label for label in found)  # the patient has none


def test_a_modulation_lessens_the_penalties_within_its_bounds(prediction: DoseEnsemble) -> None:
    found = modulate(prediction, ModulationSettings(steps=30))
    assert len(found.objective) == 31 and min(found.objective) < 0.9 * found.objective[0]
    change = found.change_ratio()
    assert change.shape == prediction.deterministic_gy.shape and np.abs(change).max() <= 0.1
    # Where the spinal cord gets 30 Gy nobody asks for less; the parotids' mean goes down, the target's does not.
    before, after = prediction, added(prediction, found.change_gy(prediction), calibrated=False)
    assert after.metric("Parotid_R", "mean").mean < before.metric("Parotid_R", "mean").mean - 0.5
    total_before = sum(b for _, b, _ in found.penalties)
    assert sum(a for _, _, a in found.penalties) < total_before
    assert not after.is_calibrated


def test_it_is_smooth_and_the_same_again(prediction: DoseEnsemble) -> None:
    one, other = modulate(prediction), modulate(prediction)
    assert np.array_equal(one.coefficients, other.coefficients) and one.objective == other.objective
    full = prediction.crop.spread(one.change_ratio(), prediction.mean.quantity).values
    inside = prediction.patient.dose_mask.mask
    both = inside[:, :, 1:] & inside[:, :, :-1]
    steepest = np.abs(np.diff(full, axis=2))[both].max() / prediction.crop.grid.spacing_mm[0]
    # A cubic B-spline's slope is at most the largest difference of neighbouring coefficients over the knots' distance.
    bound = 0.1 * np.abs(np.diff(one.coefficients, axis=2)).max() / one.settings.spacing_mm
    assert 0 < steepest <= bound


def test_the_gradient_is_that_of_the_objective(prediction: DoseEnsemble) -> None:
    """One small step of descent gains what the first order says: Adam's first step is the sign of the gradient."""
    settings = ModulationSettings(steps=1, step_size=1e-3, change_weight=0.0)
    found = modulate(prediction, settings)
    half = modulate(prediction, replace(settings, step_size=5e-4))
    gain, half_gain = found.objective[0] - found.objective[1], half.objective[0] - half.objective[1]
    assert gain > 0 and gain == pytest.approx(2 * half_gain, rel=0.02)


def test_without_anything_to_gain_nothing_changes(prediction: DoseEnsemble) -> None:
    found = modulate(prediction, penalties=[Penalty("SpinalCord", 200.0, True, False, 1.0)])
    assert not found.change_ratio().any() and set(found.objective) == {0.0}


def test_bad_settings_and_nothing_asked(prediction: DoseEnsemble) -> None:
    for wrong in ({"steps": 0}, {"most_change_ratio": 1.0}, {"spacing_mm": float("nan")}):
        with pytest.raises(RTDigitalTwinError, match="No modulation"):
            ModulationSettings(**wrong)
    with pytest.raises(RTDigitalTwinError, match="Nothing is asked"):
        modulate(prediction, penalties=[])
    assert isinstance(modulate(prediction, ModulationSettings(steps=1)), Modulation)
