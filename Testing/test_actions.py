"""Actions and what they make of the dose: kept, scaled, spared, boosted, planned anew, taken from a library."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from RTDigitalTwinLib.decision.actions import (
    Action,
    ActionKind,
    Keep,
    ReImage,
    Scale,
    ScaleWithin,
    Situation,
    added,
)
from RTDigitalTwinLib.decision.bounds import ChangeBounds
from RTDigitalTwinLib.decision.fluence import FluenceSettings
from RTDigitalTwinLib.decision.library_plan import LibraryPlan
from RTDigitalTwinLib.decision.objective import mean_gy
from RTDigitalTwinLib.decision.optimisation import optimised
from RTDigitalTwinLib.decision.spatial_actions import Boost, Replan, Spare
from RTDigitalTwinLib.dosimetry.planning import planned
from RTDigitalTwinLib.errors import Cancelled, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.crop import crop_around
from RTDigitalTwinLib.patient.plan import OPENKBP_GANTRY_ANGLES_DEG
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient


def made_prediction(scale: float = 1.0, samples: int = 16) -> DoseEnsemble:
    """Calibrated samples about a dose that the plan's nine fields made, times a factor."""
    bare = small_patient(with_dose=False)
    patient = planned(replace(bare, plans=(replace(bare.plan, gantry_angles_deg=OPENKBP_GANTRY_ANGLES_DEG),)))
    crop = crop_around(patient)
    assert patient.plan.dose is not None
    gy = np.float32(scale) * patient.plan.dose.values.reshape(-1)[crop.mask_indices]
    waves = hand_made_ensemble(patient, samples=samples).deviations_gy
    return DoseEnsemble(patient, crop, gy, waves, 0, "0" * 64, hand_made_calibration(samples))


@pytest.fixture(scope="module")
def situation() -> Situation:
    return Situation(made_prediction())


def mean_of(prediction: DoseEnsemble, name: str, metric: str = "mean") -> float:
    return float(prediction.metric(name, metric).mean)


def without_beams(prediction: DoseEnsemble) -> DoseEnsemble:
    plan = replace(prediction.patient.plan, gantry_angles_deg=(), not_fixed_fields="2 beams are arcs.")
    return replace(prediction, patient=replace(prediction.patient, plans=(plan,)))


def test_keeping_and_imaging_change_nothing(situation: Situation) -> None:
    for action in (Keep(), ReImage()):
        found = action.outcome(situation)
        assert found.prediction is situation.prediction and found.beam_consistency_ratio is None
    assert "lessens the uncertainty" in ReImage().outcome(situation).notes[0]


@pytest.mark.parametrize(("factor", "words"), [(1.025, "2.5 % more"), (0.95, "5 % less")])
def test_scaling_says_what_it_means(situation: Situation, factor: float, words: str) -> None:
    (note,) = Scale(factor).outcome(situation).notes
    assert note.startswith(f"It gives {words} dose everywhere, to organs as well as targets, as if {70 * factor:g} Gy")
    assert "for a physician to decide" in note and "no outcomes of patients" in note


def test_the_best_factor_within_bounds() -> None:
    low, high = (Situation(made_prediction(scale)) for scale in (0.94, 1.1))
    lifted, lessened = ScaleWithin().outcome(low), ScaleWithin(0.92, 1.05).outcome(high)
    assert mean_of(lifted.prediction, "PTV_7000") > mean_of(low.prediction, "PTV_7000")
    assert mean_of(lessened.prediction, "PTV_7000") < mean_of(high.prediction, "PTV_7000")
    ratio = mean_of(lifted.prediction, "PTV_7000") / mean_of(low.prediction, "PTV_7000")
    assert lifted.notes[0] == f"The best factor is {ratio:.3f}." and 1 < ratio <= 1.05 + 1e-3
    assert lifted.notes[1].startswith("It gives ") and "% more dose everywhere" in lifted.notes[1]
    for wrong in ((1.01, 1.05), (0.8, 1.0), (1.0, 1.0)):
        with pytest.raises(RTDigitalTwinError, match="cannot be scaled from"):
            ScaleWithin(*wrong)


def test_a_change_is_added_to_every_sample_and_none_is_below_nothing(situation: Situation) -> None:
    prediction = situation.prediction
    change = np.full(prediction.deterministic_gy.size, -5.0, np.float32)
    after = added(prediction, change)
    for k in range(prediction.count):
        before = prediction.sample_gy(k)
        much = prediction.deterministic_gy > 20
        assert (after.sample_gy(k) - before)[much] == pytest.approx(-5.0, abs=1e-3)
        assert after.sample_gy(k).min() >= 0
    assert after.is_calibrated and not added(prediction, change, calibrated=False).is_calibrated


def test_sparing_lowers_the_organ_within_bounds_and_keeps_the_target(situation: Situation) -> None:
    before = situation.prediction
    found = Spare("Parotid_R").outcome(situation)
    after = found.prediction
    share = mean_of(after, "Parotid_R") / mean_of(before, "Parotid_R")
    assert 0.89 < share < 0.98  # at most a tenth, and the projection's little
    # What a target has above its prescription is not kept, and 1 % of it weighs little against the organ.
    assert mean_of(after, "PTV_7000", "D95") > 0.99 * 70
    assert mean_of(after, "Parotid_L") < mean_of(before, "Parotid_L") + 0.1
    assert found.beam_consistency_ratio is not None and 0.9 < found.beam_consistency_ratio <= 1
    assert any("beam-consistent" in note for note in found.notes)
    change = mean_gy(after) - mean_gy(before)
    over = np.abs(change) - ChangeBounds().limits_gy(mean_gy(before))
    assert over.max() < 1.0 and (over > 0.2).mean() < 0.01
    assert np.array_equal(mean_gy(Spare("Parotid_R").outcome(situation).prediction), mean_gy(after))


def test_wider_bounds_spare_more(situation: Situation) -> None:
    means = [
        mean_of(Spare("Parotid_R", ChangeBounds(ratio, 20.0, steep)).outcome(situation).prediction, "Parotid_R")
        for ratio, steep in ((0.05, 2.0), (0.1, 5.0), (0.3, 10.0))
    ]
    assert means == sorted(means, reverse=True)


def test_an_organ_of_point_goals_is_spared_where_it_is_hottest(situation: Situation) -> None:
    after = Spare("SpinalCord").outcome(situation).prediction
    assert mean_of(after, "SpinalCord", "D0.1cc") < mean_of(situation.prediction, "SpinalCord", "D0.1cc") - 0.3


def test_boosting_lifts_what_is_too_little() -> None:
    situation = Situation(made_prediction(0.95))
    found = Boost("PTV_7000").outcome(situation)
    before, after = situation.prediction, found.prediction
    assert mean_of(after, "PTV_7000", "D95") > mean_of(before, "PTV_7000", "D95") + 1
    assert mean_of(after, "SpinalCord") < mean_of(before, "SpinalCord") + 0.5
    assert found.beam_consistency_ratio is not None and found.beam_consistency_ratio > 0.9


def test_planning_anew_lessens_what_the_goals_miss() -> None:
    situation = Situation(made_prediction(0.95))
    found = Replan().outcome(situation)
    assert found.beam_consistency_ratio == 1.0 and any("was not measured" in note for note in found.notes)
    assert mean_of(found.prediction, "PTV_7000", "D95") > mean_of(situation.prediction, "PTV_7000", "D95") + 1
    same = optimised(situation.prediction)
    assert same.method == "fluence" and min(same.objective) < 0.7 * same.objective[0]


def test_a_library_plan_adds_its_difference_from_the_present_plan(situation: Situation) -> None:
    prediction = situation.prediction
    dose = prediction.patient.plan.dose
    assert dose is not None
    found = LibraryPlan("larger", replace(dose, values=1.05 * dose.values)).outcome(situation)
    assert mean_gy(found.prediction) - mean_gy(prediction) == pytest.approx(
        0.05 * dose.values.reshape(-1)[prediction.crop.mask_indices], abs=0.1
    )
    assert found.beam_consistency_ratio is not None and found.beam_consistency_ratio > 0.98
    assert any("is not its own" in note for note in found.notes)
    assert np.array_equal(found.prediction.deviations_gy, prediction.deviations_gy)
    plan = replace(prediction.patient.plan, dose=None)
    bare = replace(prediction, patient=replace(prediction.patient, plans=(plan,)))
    instead = LibraryPlan("known", dose).outcome(Situation(bare))
    assert mean_gy(instead.prediction) == pytest.approx(dose.values.reshape(-1)[prediction.crop.mask_indices], abs=0.5)
    assert any("takes the place of the predicted mean" in note for note in instead.notes)


def test_a_library_plan_must_cover_the_structures(situation: Situation) -> None:
    dose = situation.patient.plan.dose
    assert dose is not None
    lower = dose.values.copy()
    lower[: lower.shape[0] // 2] = np.nan
    with pytest.raises(PatientDataError, match="not known in all of"):
        LibraryPlan("half", Volume(lower, dose.grid, Quantity.DOSE_GY)).outcome(situation)


def test_with_arcs_nothing_is_projected(situation: Situation) -> None:
    arcs = Situation(without_beams(situation.prediction))
    for action in (Spare("Parotid_R"), Boost("PTV_7000"), Replan()):
        with pytest.raises(PatientDataError, match="2 beams are arcs"):
            action.outcome(arcs)
    dose = situation.patient.plan.dose
    assert dose is not None
    found = LibraryPlan("known", dose).outcome(arcs)
    assert found.beam_consistency_ratio is None and any("2 beams are arcs" in note for note in found.notes)
    instead = optimised(arcs.prediction, FluenceSettings(steps=3))
    assert instead.method == "modulation" and "knows no beams" in instead.notice and instead.explained is None
    assert instead.change_gy.shape == arcs.prediction.deterministic_gy.shape


def test_what_cannot_be_done_is_refused(situation: Situation) -> None:
    with pytest.raises(RTDigitalTwinError, match="A target cannot be spared"):
        Spare("PTV_7000").outcome(situation)
    with pytest.raises(PatientDataError, match="Larynx"):
        Spare("Larynx").outcome(situation)
    with pytest.raises(RTDigitalTwinError, match="none to boost it to"):
        Boost("Parotid_R").outcome(situation)
    for wrong in ({"risk": 0.0}, {"risk": 1.5}, {"steps": 0}, {"aim_gy": -1.0}, {"aim_gy": float("nan")}):
        with pytest.raises(RTDigitalTwinError):
            Spare("Parotid_R", **wrong)


def test_the_present_dose_is_explained_once(situation: Situation) -> None:
    assert situation.explained() is situation.explained()


@pytest.mark.parametrize("action", [Spare("Parotid_R"), Replan(), ScaleWithin()], ids=lambda a: a.name)
def test_actions_can_be_cancelled_and_say_how_far_they_are(action: Action) -> None:
    done: list[float] = []

    def watched(done_ratio: float, message: str) -> None:
        done.append(done_ratio)
        if len(done) == 12:
            raise Cancelled

    with pytest.raises(Cancelled):
        action.outcome(Situation(made_prediction(samples=4)), watched)
    assert done == sorted(done) and 0 <= done[0] and done[-1] < 1


def test_kinds_and_names_tell_actions_apart() -> None:
    actions: tuple[Action, ...] = (
        *(Keep(), Scale(0.95), ScaleWithin(), ReImage(), Replan(), Spare("A"), Boost("A")),
        *(Spare("B"), Spare("A", ChangeBounds(0.2)), Spare("A", ChangeBounds(0.1, 2.0)), Spare("A", aim_gy=20.0)),
    )
    assert len({action.name for action in actions}) == len(actions)
    assert {action.kind for action in actions} == set(ActionKind) - {ActionKind.LIBRARY_PLAN}
