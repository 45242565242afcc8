"""The course: its chance, what is delivered, when the twin looks again, and what it then believes and does."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.calibration.change_fit import fit_change, moved_dose
from RTDigitalTwinLib.calibration.fraction_readings import FractionReadings, along_axes_mm, in_lps_mm
from RTDigitalTwinLib.course import Course, prepared
from RTDigitalTwinLib.course_projection import Part, endpoints_of, known_dose, summed
from RTDigitalTwinLib.course_record import RE_IMAGED, RECALIBRATED, REPLANNED, CourseResult, CourseSettings
from RTDigitalTwinLib.decision.action_file import COURSE_ACTIONS
from RTDigitalTwinLib.decision.actions import Action, ActionKind, Keep, Outcome, ReImage, Scale, Situation
from RTDigitalTwinLib.decision.policies import Decision, Policy, Scheduled, Static, Triggered, policy_named
from RTDigitalTwinLib.decision.protocol import load_decision
from RTDigitalTwinLib.decision.ranking_decider import RankingDecider
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.dosimetry.fraction_delivery import NOWHERE, Deliveries, SetupErrors, Treatment
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.biology import load_biology, models_for
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.network_patient import network_patient
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.solver.reading import Reading
from Testing.builders import hand_made_calibration, hand_made_ensemble, oblique_grid, small_patient

FRACTIONS = 12
TEN_MM = Change(shift_mm=(-10.0, 0.0, 0.0))  # the left parotid towards the target: along it the readings tell
STILL = SetupErrors(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Case:
    """Of a twin, all that its courses have in common."""

    belief: DoseBelief
    drawn: DoseEnsemble
    known: FractionReadings

    def live(self, settings: CourseSettings, **more: object) -> CourseResult:
        course = Course(self.belief, self.drawn, settings, self.known, **more)  # type: ignore[arg-type]
        return course.result(list(course.fractions()))


@pytest.fixture(scope="module")
def case() -> Case:
    patient = small_patient()
    torch.manual_seed(1)
    network = DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32), dropout_ratio=0.3)).eval()
    surrogate = DoseSurrogate(network, torch.device("cpu"), "0" * 64)
    bands = hand_made_calibration(samples=16)
    drawn = replace(hand_made_ensemble(patient, 16), calibration=bands)
    given, known = prepared(drawn, CourseSettings())
    return Case(DoseBelief(surrogate, network_patient(patient), bands), given, known)


def settings(
    policy: Policy | None = None, change: Change = TEN_MM, shift_at: int | None = 6, **more: object
) -> CourseSettings:
    asked = {"fractions": FRACTIONS, "samples": 16, "policy": policy or Triggered(), "change": change}
    return CourseSettings(**asked | {"shift_at": shift_at} | more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def triggered(case: Case) -> CourseResult:
    return case.live(settings())


@pytest.fixture(scope="module")
def static(case: Case) -> CourseResult:
    return case.live(settings(Static()))


def deliveries(case: Case, change: Change, setup: SetupErrors = STILL, seed: int = 0) -> Deliveries:
    return Deliveries(case.drawn.patient, case.drawn.crop.mask_indices, change, 2, setup, seed)


def test_a_fraction_is_what_the_simulator_of_whole_courses_says(case: Case) -> None:
    """Without errors of set-up, for all kinds of change at once."""
    change = Change((3.0, -2.0, 4.5), 0.2, 3.0, 0.05)
    expected = delivered_dose(case.drawn.patient, change).values.reshape(-1)[case.drawn.crop.mask_indices]
    given = deliveries(case, change).dose_gy(2, Treatment())
    assert np.abs(given - expected).max() < 1e-3  # single precision of 70 Gy, displacements added in another order
    planned = case.drawn.patient.plan.dose
    assert planned is not None
    before = deliveries(case, change).dose_gy(1, Treatment())
    assert np.array_equal(before, planned.values.reshape(-1)[case.drawn.crop.mask_indices])


def test_the_couch_and_a_new_plan_take_changes_back(case: Case) -> None:
    change = Change((3.0, -2.0, 4.5), 0.2)
    truth = deliveries(case, change)
    planned = truth.dose_gy(1, Treatment())
    seen = truth.seen_mm(2, Treatment())
    assert seen == pytest.approx(change.shift_mm)
    couch = truth.corrected(Treatment(), seen)
    assert couch.couch_mm == pytest.approx((-3.0, 2.0, -4.5))
    only_shrunk = deliveries(case, replace(change, shift_mm=NOWHERE)).dose_gy(2, Treatment())
    assert np.abs(truth.dose_gy(2, couch) - only_shrunk).max() < 1e-3
    assert np.abs(only_shrunk - planned).max() > 0.5
    replanned = truth.replanned(2, couch)
    assert np.abs(truth.dose_gy(2, replanned) - planned).max() < 1e-3


def test_chance_is_of_the_fraction_alone(case: Case) -> None:
    one, other = (deliveries(case, Change(), SetupErrors(), seed) for seed in (0, 1))
    late = one.dose_gy(5, Treatment())
    for fraction in (1, 2, 7):
        one.dose_gy(fraction, Treatment())
    assert np.array_equal(one.dose_gy(5, Treatment()), late)
    assert not np.array_equal(other.dose_gy(5, Treatment()), late)
    days = np.array([one.day(fraction)[0] for fraction in range(1, 2001)])
    assert days.std() == pytest.approx(1.5, rel=0.05) and abs(days.mean()) < 0.1  # 6000 draws: 0.02 mm


def test_without_a_change_the_course_gives_the_plan_but_for_blur(case: Case) -> None:
    """Mean doses within what a lasting error of 1 mm does in a fall-off of about 2 Gy a mm; exact without errors."""
    result = case.live(settings(Static(), shift_at=None, setup=STILL, fractions=35, project_every=35))
    planned = deliveries(case, Change()).dose_gy(1, Treatment())
    assert np.abs(result.true_gy - planned).max() < 1e-3
    moved = case.live(settings(Static(), shift_at=None, fractions=35, project_every=35))
    assert 0.1 < np.abs(moved.true_gy - planned).mean() < 3.0


def test_readings_are_linear_and_axes_turn_back(case: Case) -> None:
    known = case.known
    other = (known.mean_gy * 1.1 + 0.5).astype(np.float32)
    told = known.base_gy + known.slopes @ (other - known.mean_gy)
    assert known.of_dose(other) == pytest.approx(told, rel=0.002)  # a mean is taken inside voxels, its slope is not
    grid = oblique_grid()
    assert in_lps_mm(grid, along_axes_mm(grid, (1.0, -2.0, 3.0))) == pytest.approx((1.0, -2.0, 3.0))


def test_the_fit_finds_a_shift_and_keeps_before_apart(case: Case) -> None:
    known, rng = case.known, np.random.default_rng(0)
    change = np.array([0.0, 0.0, -6.0, 0.0])
    off = known.of_dose(moved_dose(known, known.mean_gy, change))
    noise = 0.01 * known.base_gy
    before = known.base_gy + noise * rng.standard_normal((5, known.count))
    after = off + noise * rng.standard_normal((4, known.count))
    fit = fit_change(known, before, after)
    assert fit.change[2] == pytest.approx(-6, abs=1.5) and np.abs(fit.change - change).max() < 3
    true = moved_dose(known, known.mean_gy, change)
    assert np.abs(known.mean_gy + fit.after.shift_gy - true).mean() < 0.35 * np.abs(true - known.mean_gy).mean()
    assert np.abs(fit.before.shift_gy).mean() < 0.2 * np.abs(fit.after.shift_gy).mean()
    alone = fit_change(known, before, after[:0])
    assert alone.before is alone.after and not alone.change.any()
    before_it = np.square(known.std_gy) + np.square(known.box.slopes(known.mean_gy)).sum(axis=0)  # 1 mm systematic
    assert (alone.after.variance <= before_it + 1e-3).all()


def test_the_alarm_comes_after_the_shift_and_not_before(triggered: CourseResult, case: Case) -> None:
    acted = triggered.fractions_with(RECALIBRATED)
    assert acted[0] == 5 and acted[1] >= 6 and triggered.delay_fractions is not None and triggered.delay_fractions <= 5
    assert triggered.false_alarms == 0 and triggered.fractions_with(RE_IMAGED)
    quiet = case.live(settings(shift_at=None))
    assert quiet.fractions_with(RECALIBRATED) == (5,) and quiet.delay_fractions is None
    (first,) = (r for r in triggered.records if r.fraction == acted[1])
    assert first.estimated_shift_mm is not None
    assert np.dot(first.estimated_shift_mm, TEN_MM.shift_mm) / 10 > 5  # mm along the shift
    assert np.linalg.norm(triggered.records[-1].true_shift_mm) < 0.5 * np.linalg.norm(first.true_shift_mm)


def test_static_does_nothing_and_is_wrong(static: CourseResult, triggered: CourseResult, case: Case) -> None:
    assert not any(r.events for r in static.records) and static.records[-1].images == 0
    off = [np.abs(mean_of(r.projection) - true_of(r, case)).mean() for r in (static, triggered)]
    assert off[1] < 0.7 * off[0]
    # Uncertainty rises with the shift and falls when the twin has looked.
    told = {r.fraction: r.uncertainty_gy for r in static.records}
    assert told[7] > 1.2 * told[5]
    assert triggered.records[-1].uncertainty_gy < 0.8 * told[7]


def test_scheduled_looks_when_it_is_time(case: Case) -> None:
    result = case.live(settings(Scheduled(every=4)))
    assert result.fractions_with(RECALIBRATED) == (4, 8, 12)


def test_endpoints_have_the_calibrated_bands() -> None:
    """Of so few samples the outermost stand for more than 2.5 % each; the dose's band is the calibrated one."""
    drawn = replace(hand_made_ensemble(small_patient(), 16), calibration=hand_made_calibration(16))
    found = {(e.structure, e.effect): e for e in endpoints_of(drawn, known_dose(drawn, drawn.deterministic_gy))}
    coverage, ntcp = found["PTV_7000", "D95"], found["Parotid_L", "NTCP"]
    assert (coverage.low, coverage.high) == pytest.approx(drawn.metric("PTV_7000", "D95").band(0.95))
    (model,) = models_for(load_biology(), "Parotid_L")
    likely = Reading(drawn).response("Parotid_L", model, 35).probability
    assert (ntcp.low, ntcp.high) == (likely.min(), likely.max())


def test_the_end_of_the_projection_is_what_was_accumulated(case: Case) -> None:
    course = Course(case.belief, case.drawn, settings(fractions=35, project_every=35), case.known)
    records = list(course.fractions())
    assert course.remaining_ratio == pytest.approx(0, abs=1e-12)
    result = course.result(records)
    assert len(course.beliefs) > 1
    by_hand = np.mean([mean_of(course.beliefs[k]) for k in course.of_fraction], axis=0)
    assert np.abs(mean_of(result.projection) - by_hand).max() < 0.02  # half precision of deviations
    truth = known_dose(case.drawn, result.true_gy)
    assert endpoints_of(result.projection, truth) == records[-1].endpoints
    assert np.abs(result.daily_gy.astype(float).sum(axis=0) - result.true_gy).max() < 0.05
    sums = [sum(course.of_fraction.count(k) for k in set(course.of_fraction)), len(course.of_fraction)]
    assert sums == [35, 35]


def test_parts_share_their_samples(case: Case) -> None:
    half = summed([Part(case.drawn, 0.5), Part(case.drawn, 0.5)])
    assert np.allclose(half.sample_gy(3), case.drawn.sample_gy(3), atol=0.01)
    wide = summed([Part(case.drawn, 1.0, 2.0)])
    assert wide.std.values.max() == pytest.approx(2 * case.drawn.std.values.max(), rel=0.01)
    assert mean_of(wide) == pytest.approx(mean_of(case.drawn), abs=0.02)


def test_the_same_again(triggered: CourseResult, case: Case) -> None:
    assert case.live(settings()).records == triggered.records
    assert case.live(settings(seed=1)).records != triggered.records


@dataclass(frozen=True)
class Replan:
    """As it is offered to a decider."""

    name: str = "replan"
    kind: ActionKind = ActionKind.REPLAN

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        return Outcome(situation.prediction)


@dataclass(frozen=True)
class Choose:
    """Chooses an action by its name; None abstains. A dose is worth its mean, and one above a limit is violated."""

    wanted: str | None
    limit_gy: float = 1e3

    def require(self, prediction: DoseEnsemble) -> None:
        pass

    def decide(self, prediction: DoseEnsemble, actions: Sequence[Action], uncertainty_weight: float) -> Decision:
        outcomes = [action.outcome(Situation(prediction)).prediction for action in actions]
        assert all(outcome.count == prediction.count for outcome in outcomes)
        return Decision(next((a for a in actions if a.name == self.wanted), None), ("as told",))

    def utility(self, prediction: DoseEnsemble, kind: ActionKind) -> float:
        return float(prediction.mean.values.mean())

    def violated(self, prediction: DoseEnsemble) -> tuple[tuple[str, bool], ...]:
        return (("never", False), ("too hot", bool(prediction.mean.values.max() > self.limit_gy)))

    def as_dict(self) -> dict[str, Any]:
        return {"wanted": self.wanted}


def test_actions_change_what_is_delivered_and_are_judged(case: Case) -> None:
    asked = settings(Scheduled(every=6), shift_at=None, setup=STILL)
    actions = (Keep(), Scale(1.05), Replan())
    kept, scaled = (case.live(asked, decider=Choose(name), actions=actions) for name in ("keep", "scale by 1.05"))
    ratio = scaled.daily_gy[6].astype(float) / np.maximum(kept.daily_gy[6].astype(float), 0.01)
    hot = kept.daily_gy[6] > 1
    assert ratio[hot] == pytest.approx(1.05, abs=0.002) and np.array_equal(scaled.daily_gy[5], kept.daily_gy[5])
    first = scaled.decisions[0]
    assert first.action == first.best_action == "scale by 1.05" and first.regret == 0
    told = kept.decisions[0]
    assert (told.regret or 0) > 0 and told.gain == 0 and (told.violated, told.constraints, told.possible) == (0, 2, 3)
    hottest = float(true_of(kept, case).max())
    held, broken = (
        case.live(asked, decider=Choose(name, 1.01 * hottest), actions=actions).decisions[0]
        for name in ("keep", "scale by 1.05")
    )
    assert held.best_action != "scale by 1.05" and (held.regret or 0) < 1e-4 and held.possible == 2
    assert (broken.violated, broken.regret) == (1, None) and broken.gain > 0
    idle = case.live(asked, decider=Choose(None, 0.5 * hottest), actions=actions)
    abstained = idle.decisions[0]
    assert (abstained.action, abstained.regret, abstained.possible) == (None, None, 0)
    assert np.array_equal(idle.true_gy, kept.true_gy)
    moved = settings(Scheduled(every=6), setup=STILL, shift_at=6, action_level_mm=50.0, most_unexplained_ratio=1e9)
    replanned = case.live(moved, decider=Choose("replan"), actions=actions)
    assert replanned.fractions_with(REPLANNED) == (6, 12) and replanned.records[-1].images == 0
    assert np.abs(replanned.daily_gy[6].astype(float) - replanned.daily_gy[0].astype(float)).max() < 0.01


def test_an_image_and_a_new_plan_are_what_they_are(case: Case) -> None:
    """The oracle corrects the couch by an image, and puts the plan back by a new plan; the twin offers the like."""
    still = settings(
        Scheduled(every=3), shift_at=4, setup=SetupErrors(0.1, 0.1, 0.0, 0.1), action_level_mm=50.0,
        most_unexplained_ratio=1e9,
    )  # fmt: skip
    actions = (Keep(), ReImage(), Replan())
    course = Course(case.belief, case.drawn, still, case.known, Choose("keep"), actions)
    for record in course.fractions():
        if record.fraction == 6:
            break
    offered = [course._offered(action, Situation(course.present)) for action in actions]
    worth = {name: mean_of(dose) for name, (_, dose) in course._true_outcomes(6, offered).items()}
    assert np.abs(worth["replan"] - worth["keep"]).max() > 5
    off = [np.abs(worth[name] - worth["replan"]).mean() for name in ("re-image", "keep")]
    assert 0 < off[0] < 0.7 * off[1]
    believed = [mean_of(offer.outcome(Situation(course.projection)).prediction) for offer in offered]
    planned = deliveries(case, Change()).dose_gy(1, Treatment())
    assert all(np.abs(b - planned).mean() < np.abs(believed[0] - planned).mean() for b in believed[1:])


def test_the_ranking_decides(case: Case) -> None:
    """By the protocol: abstains where it can certify nothing, and else does what is recommended."""
    drawn = replace(hand_made_ensemble(case.drawn.patient, 64), calibration=hand_made_calibration(samples=16))
    given, known = prepared(drawn, CourseSettings())
    asked = settings(Triggered(1.0), fractions=6, shift_at=None, project_every=10, samples=64)
    decider = pickle.loads(pickle.dumps(RankingDecider()))
    course = Course(case.belief, given, asked, known, decider, COURSE_ACTIONS)
    records = list(course.fractions())
    (made,) = course.decisions
    assert made.fraction == 5 and made.constraints > 0 and made.reasons[0] in records[4].reasons
    offered = [course._offered(action, Situation(course.present)) for action in COURSE_ACTIONS]
    assert {offer.name for offer in offered} >= {"keep", "re-image", "replan"}
    assert (made.action is None) == made.reasons[0].startswith("No recommendation")
    lax = replace(load_decision(), target_constraints=(), constraints=load_decision().constraints[:1])
    free = Course(case.belief, given, asked, known, RankingDecider(lax), COURSE_ACTIONS)
    list(free.fractions())
    assert free.decisions[0].action is not None or free.decisions[0].constraints == 0
    with pytest.raises(RTDigitalTwinError, match="16 samples cannot certify"):
        case.live(asked, decider=RankingDecider(), actions=COURSE_ACTIONS)


def test_bad_courses_are_refused(case: Case) -> None:
    for wrong, what in (
        ({"shift_at": 1}, "fraction 1 of 12"),
        ({"shift_at": 13}, "fraction 13 of 12"),
        ({"samples": 1}, "two samples"),
        ({"fractions": 1, "shift_at": None}, "two fractions"),
        ({"action_level_mm": 0.0}, "above 0"),
    ):
        with pytest.raises(RTDigitalTwinError, match=what):
            settings(**wrong)
    with pytest.raises(RTDigitalTwinError, match="40 fractions are more than the 35 prescribed"):
        case.live(settings(fractions=40))
    with pytest.raises(RTDigitalTwinError, match="no policy 'guess'"):
        policy_named("guess")
    with pytest.raises(RTDigitalTwinError, match="weight of uncertainty"):
        policy_named("static", -1.0)
    with pytest.raises(RTDigitalTwinError, match="set-up"):
        SetupErrors(random_mm=-1.0)
    without = hand_made_ensemble(small_patient(with_dose=False), 16)
    with pytest.raises(PatientDataError, match="no reference dose"):
        prepared(without, CourseSettings())


def mean_of(prediction: DoseEnsemble) -> np.ndarray:
    return prediction.mean.values.reshape(-1)[prediction.crop.mask_indices]


def true_of(result: CourseResult, case: Case) -> np.ndarray:
    """The true dose of the whole course where the fractions that were not gone through are like the last."""
    return result.true_gy + (35 - FRACTIONS) * result.daily_gy[-1].astype(np.float32)
