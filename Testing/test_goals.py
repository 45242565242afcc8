"""Clinical goals: judged met, acceptable, violated or unsure, with their probability; and bad files of goals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.decision.chance import judge_chance
from RTDigitalTwinLib.decision.protocol import Constraint
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.goals import (
    Criterion,
    Goal,
    GoalResult,
    Status,
    available_goals,
    evaluate_goal,
    evaluate_goals,
    goals_for,
    least_probability,
    likely_status,
    load_goals,
    whole,
)
from RTDigitalTwinLib.dosimetry.metric_samples import Metrics, MetricSamples, kept_parts
from RTDigitalTwinLib.errors import PatientDataError, ProtocolError
from RTDigitalTwinLib.report.goal_table import GoalRow, goal_choice, goal_tables
from RTDigitalTwinLib.solver.bands import BandScale
from RTDigitalTwinLib.solver.ensemble import VOLUME_RATIOS, Ensemble, VolumeEnsemble
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

MEAN = DvhMetric.parse("mean")


def single(**values: float) -> Metrics:
    """Means of structures, of one dose."""
    return lambda name, metric: MetricSamples(values[name], np.array([values[name]]))


def judged(goal: Goal, **values: float) -> GoalResult:
    return evaluate_goal(goal, list(values), single(**values))


def upper(limit: float, acceptable: float | None = None, *structures: str) -> Goal:
    return Goal("g", 1, (Criterion(structures or ("Larynx",), MEAN, True, limit, acceptable),))


@pytest.mark.parametrize(
    ("mean_gy", "status"), [(43.9, Status.MET), (44.0, Status.MET), (46.0, Status.ACCEPTABLE), (50.1, Status.VIOLATED)]
)
def test_three_outcomes_of_an_upper_limit(mean_gy: float, status: Status) -> None:
    found = judged(upper(44, 50), Larynx=mean_gy)
    assert (found.status, found.value) == (status, mean_gy)
    assert found.probability_met is None and found.samples == 1  # one dose has no probability


def test_a_lower_limit() -> None:
    coverage = Goal("g", 1, (Criterion(("PTV",), DvhMetric.parse("V70"), False, 95, 93),))
    outcomes = {value: judged(coverage, PTV=value).status for value in (95.0, 94.0, 92.0)}
    assert list(outcomes.values()) == [Status.MET, Status.ACCEPTABLE, Status.VIOLATED]


def test_any_criterion_and_all_of_its_structures() -> None:
    """QUANTEC's parotid glands: both at most 25 Gy, or one at most 20 Gy."""
    goals = load_goals(available_goals()["quantec_head_and_neck"])
    (parotids,) = (goal for goal in goals.goals if "parotid" in goal.label)
    both = judged(parotids, Parotid_L=24.0, Parotid_R=25.0)
    assert (both.status, both.value) == (Status.MET, 25.0)
    one = judged(parotids, Parotid_L=40.0, Parotid_R=19.0)
    assert one.status is Status.MET and one.criterion is not None and one.criterion.structures == ("Parotid_R",)
    assert judged(parotids, Parotid_L=26.0, Parotid_R=21.0).status is Status.VIOLATED


def test_a_value_says_which_alternative_and_structure_it_is_of() -> None:
    """One parotid gland spared, both or one, the maximum or D1cc: a number alone would not say of what."""
    patient = small_patient()
    gy = {"Parotid_L": 24.5, "Parotid_R": 24.6, "SpinalCord": 47.0, "PTV_7000": 66.0}

    def metrics(name: str, metric: DvhMetric) -> MetricSamples:
        return single(**gy)(name, metric)

    chosen = [load_goals(available_goals()[word]) for word in ("rtog0225", "quantec_head_and_neck")]
    rows = [row for table in goal_tables(patient, metrics, goal_choice(patient, chosen)) for row in table.rows]
    words = {row.goal: row.value_words for row in rows if row.value is not None}
    assert words[
        "Parotid_L mean ≤ 26 Gy or Parotid_R mean ≤ 26 Gy or Parotid_L V30 ≤ 50 % or Parotid_R V30 ≤ 50 %"
    ] == ("24.5 Gy (Parotid_L mean)")
    (both,) = (value for goal, value in words.items() if goal.startswith("Parotid_L and Parotid_R mean ≤ 25 Gy"))
    assert both == "24.6 Gy (Parotid_R, the worst of Parotid_L and Parotid_R)"
    assert words["SpinalCord max ≤ 45 Gy or SpinalCord D1cc ≤ 50 Gy"] == "47.0 Gy (D1cc)"  # 47 Gy is met by D1cc alone
    assert words["PTV_7000 V70 ≥ 95 %"] == "66.0 %"  # one criterion of one structure: nothing is open


def test_an_absent_structure_is_said_not_skipped() -> None:
    found = judged(upper(44), Brainstem=3.0)
    assert (found.status, found.reason) == (Status.NOT_EVALUATED, "There is no structure Larynx.")
    parotids = Goal("g", 1, (*upper(26, None, "Parotid_L").criteria, *upper(26, None, "Parotid_R").criteria))
    found = judged(parotids, Parotid_L=20.0)
    assert (found.status, found.reason) == (Status.MET, "There is no structure Parotid_R.")


def test_a_metric_that_is_refused_is_the_reason() -> None:
    def refused(name: str, metric: DvhMetric) -> MetricSamples:
        raise PatientDataError("The dose covers 40.0 % of the structure.", where=name)

    found = evaluate_goal(upper(44), ["Larynx"], refused)
    assert found.status is Status.NOT_EVALUATED and found.reason.startswith("Larynx: The dose covers 40.0 %")


def sampled(calibrated: bool, **values: list[float]) -> Callable[[str, DvhMetric], MetricSamples]:
    return lambda name, metric: MetricSamples(float(np.mean(values[name])), np.array(values[name]), calibrated)


def test_probabilities_are_shares_of_the_samples_taken_together() -> None:
    """Each gland is spared in half of the samples, and one of the two in all of them."""
    goal = Goal("g", 1, (*upper(26, None, "Parotid_L").criteria, *upper(26, None, "Parotid_R").criteria))
    metrics = sampled(True, Parotid_L=[20, 30] * 5, Parotid_R=[30, 20] * 5)
    found = evaluate_goal(goal, ["Parotid_L", "Parotid_R"], metrics)
    assert found.probability_met == 1.0 and found.is_calibrated
    assert found.least_probability_met == pytest.approx(0.05**0.1)
    same = evaluate_goal(goal, ["Parotid_L", "Parotid_R"], sampled(False, Parotid_L=[20, 30], Parotid_R=[20, 30]))
    assert same.probability_met == 0.5 and not same.is_calibrated


def test_the_accepted_variation_has_its_own_probability() -> None:
    found = evaluate_goal(upper(44, 50), ["Larynx"], sampled(True, Larynx=[40, 46, 48, 52]))
    assert (found.probability_met, found.probability_acceptable) == (0.25, 0.75)
    assert found.status is Status.UNSURE and found.value == 46.5  # 44 Gy is missed, and 50 Gy kept, with 75 % only


def calibrated(scale: BandScale, **values: np.ndarray) -> Callable[[str, DvhMetric], MetricSamples]:
    return lambda name, metric: Ensemble(values[name], "Gy", scale).metric_samples


def lower(limit: float, structure: str) -> Goal:
    return Goal("g", 1, (Criterion((structure,), MEAN, False, limit),))


SCALE = BandScale((1.0, 1.4, 1.9, 2.4, 2.8, 3.3), 0.25)
LIKELY_GY = np.random.default_rng(3).normal(40, 2, 16)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.98])
def test_a_limit_at_the_edge_of_a_band_is_kept_as_the_band_says(level: float) -> None:
    """Above the 95 % band lie 2.5 %, however few the samples."""
    low, high = Ensemble(LIKELY_GY, "Gy", SCALE).band(level)
    metrics = calibrated(SCALE, Larynx=LIKELY_GY)
    for edge, below in ((high, (1 + level) / 2), (low, (1 - level) / 2)):
        most = evaluate_goal(upper(float(edge)), ["Larynx"], metrics)
        least = evaluate_goal(lower(float(edge), "Larynx"), ["Larynx"], metrics)
        assert most.is_calibrated and most.probability_met == pytest.approx(below, abs=1e-9)
        assert least.probability_met == pytest.approx(1 - below, abs=1e-9)


def test_beyond_the_measured_levels_and_at_the_value_s_own_limits() -> None:
    spread = np.sqrt(LIKELY_GY.var(ddof=1) + SCALE.floor**2)
    far = LIKELY_GY.mean() + 2 * 3.3 * spread  # twice the 98 % band: a normal's 4.65 standard deviations
    assert SCALE.kept_ratio(LIKELY_GY, far, upper=False) == pytest.approx(1.64e-6, rel=0.02)
    volume = BandScale(SCALE.factors, 0.5, 100.0)
    full = np.linspace(97, 100, 8)
    assert volume.kept_ratio(full, 100.0, upper=True) == 1.0 and volume.kept_ratio(full, 0.0, upper=False) == 1.0
    assert 0 < volume.kept_ratio(full, 100.0, upper=False) < 0.5
    assert volume.kept_ratio(full, 100.5, upper=False) == 0.0


@pytest.mark.parametrize("factors", [(0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.4, 1.9)])
def test_a_limit_at_the_mean_is_kept_as_probably_as_not(factors: tuple[float, ...]) -> None:
    """Also where bands of the lower levels have no width; just beside it at most and at least add up to 1 as well."""
    scale, mean = BandScale(factors, 0.25), float(LIKELY_GY.mean())
    assert scale.kept_ratio(LIKELY_GY, mean, upper=True) == scale.kept_ratio(LIKELY_GY, mean, upper=False) == 0.5
    for limit in (mean - 1e-6, mean + 1e-6, mean + 1):
        both = [scale.kept_ratio(LIKELY_GY, limit, upper=upper) for upper in (True, False)]
        assert sum(both) == pytest.approx(1)


def test_the_probability_and_the_number_of_samples_agree() -> None:
    """Within half a sample, so that a table of goals and a chance constraint say the same."""
    moved = SCALE.calibrated(LIKELY_GY)
    for limit in np.linspace(30, 50, 81):
        found = SCALE.kept_ratio(LIKELY_GY, float(limit), upper=True)
        assert abs(found * 16 - (moved <= limit).sum()) <= 0.5 + 1e-9
    assert moved.mean() == pytest.approx(LIKELY_GY.mean())


def test_the_probability_and_the_number_of_samples_agree_of_several_structures() -> None:
    """Eight with 0.7 % each, of different samples: 5.6 % of 64 are 3.6, though no sample has half of it."""
    names = tuple(f"Organ_{k}" for k in range(8))
    gy = {name: np.roll(np.linspace(30.0, 50.0, 64), k) for k, name in enumerate(names)}

    def metrics(name: str, metric: DvhMetric) -> MetricSamples:
        return MetricSamples(40.0, gy[name], True, lambda limit, upper: kept_parts(gy[name], 1 - 0.007, upper=upper))

    all_of = Criterion(names, MEAN, True, 45.0)
    chance = judge_chance(Constraint("all", (all_of,)), metrics, 0.05, 0.95)
    assert chance.probability == pytest.approx(0.056)
    assert chance.violated == chance.beyond_limit == 4 and not chance.is_kept
    goal = evaluate_goal(Goal("g", 1, (all_of,)), names, metrics)
    assert goal.least_probability_met == pytest.approx(least_probability(60, 64))
    for violated in (0.0, 0.4, 0.6, 1.4):  # of one structure both counts are the same
        assert 64 - whole(kept_parts(gy[names[0]], 1 - violated / 64, upper=True)) == round(violated)


def test_several_structures_are_judged_together() -> None:
    """Both below a limit of 75 %: with 75 % where they go together, 50 % where one is high as the other is low."""
    limit = float(Ensemble(LIKELY_GY, "Gy", SCALE).band(0.5)[1])
    both = Goal("g", 1, (Criterion(("Parotid_L", "Parotid_R"), MEAN, True, limit),))
    either = Goal("g", 1, (*upper(limit, None, "Parotid_L").criteria, *upper(limit, None, "Parotid_R").criteria))
    same, mirrored = LIKELY_GY, 2 * LIKELY_GY.mean() - LIKELY_GY
    for other, all_of, one_of in ((same, 0.75, 0.75), (mirrored, 0.5, 1.0)):
        metrics = calibrated(SCALE, Parotid_L=LIKELY_GY, Parotid_R=other)
        names = ["Parotid_L", "Parotid_R"]
        assert evaluate_goal(both, names, metrics).probability_met == pytest.approx(all_of)
        assert evaluate_goal(either, names, metrics).probability_met == pytest.approx(one_of)


def test_a_volume_that_was_not_measured_is_as_sure_as_the_dose_at_it() -> None:
    """V44 is at most 20 % just where D20 is at most 44 Gy; at the edges of its band with 97.5 and 2.5 %."""
    curves = LIKELY_GY[:, None] + np.linspace(6, -6, VOLUME_RATIOS.size)
    doses = Ensemble(curves, "Gy", SCALE)
    d20 = np.array([np.interp(0.2, VOLUME_RATIOS, row) for row in curves])
    sampled = np.array([100 * np.interp(44.0, row[::-1], VOLUME_RATIOS[::-1], 1.0, 0.0) for row in curves])
    volume = VolumeEnsemble(sampled, "%", SCALE, doses, 44.0, 100.0)
    found = volume.metric_samples
    wanted = SCALE.kept_ratio(d20, 44.0, upper=True)
    assert 0.5 < wanted < 0.95 and found.is_calibrated
    assert found.kept(20.0, upper=True).mean() == pytest.approx(wanted)
    assert found.kept(20.0, upper=False).mean() == pytest.approx(1 - wanted)
    assert abs((found.samples <= 20).sum() - 16 * wanted) <= 0.5 + 1e-9
    low, high = volume.band(0.95)
    assert low < sampled.mean() < high < 100
    assert found.kept(float(high), upper=True).mean() == pytest.approx(0.975, abs=0.002)
    assert found.kept(100.0, upper=True).min() == 1.0 and found.kept(0.0, upper=False).min() == 1.0
    # No sample has a voxel of 56 Gy, and none says so for sure: D5 is 45.4 Gy on average.
    hot = VolumeEnsemble(np.zeros(16), "%", SCALE, doses, 56.0, 100.0).metric_samples.kept(5.0, upper=True).mean()
    assert hot == pytest.approx(SCALE.kept_ratio(curves[:, 6], 56.0, upper=True), abs=0.01) and 0.95 < hot < 1


def test_of_several_alternatives_the_most_probable_is_shown() -> None:
    """The mean of the left gland meets its limit, and that of the right one does so more surely."""
    goal = Goal("g", 1, (*upper(42, None, "Parotid_L").criteria, *upper(42, None, "Parotid_R").criteria))
    metrics = calibrated(SCALE, Parotid_L=LIKELY_GY, Parotid_R=LIKELY_GY - 20)
    found = evaluate_goal(goal, ["Parotid_L", "Parotid_R"], metrics)
    assert found.status is Status.MET and found.value == pytest.approx(LIKELY_GY.mean() - 20)


def test_the_alternative_shown_is_the_one_most_probably_met() -> None:
    """Of each gland the number of 20 samples that meet its limit, and that keep the variation accepted."""

    def shown(left: tuple[int, int], right: tuple[int, int]) -> tuple[Status, str]:
        values = {}
        for name, (met, accepted) in (("Parotid_L", left), ("Parotid_R", right)):
            values[name] = [20.0] * met + [28.0] * (accepted - met) + [40.0] * (20 - accepted)
        criteria = [upper(26, 30, name).criteria[0] for name in values]
        found = evaluate_goal(Goal("g", 1, tuple(criteria)), list(values), sampled(True, **values))
        assert found.criterion is not None
        return found.status, found.criterion.structures[0]

    assert shown((8, 9), (6, 18)) == (Status.UNSURE, "Parotid_L")
    assert shown((6, 9), (6, 18)) == (Status.UNSURE, "Parotid_R")
    assert shown((0, 0), (0, 1)) == (Status.VIOLATED, "Parotid_R")
    assert shown((8, 9), (6, 20)) == (Status.ACCEPTABLE, "Parotid_R")  # the left gland alone would not be
    assert shown((20, 20), (19, 20)) == (Status.MET, "Parotid_L")


@pytest.mark.parametrize(
    ("met", "acceptable", "word"),
    [
        (0.95, 0.95, Status.MET), (0.949, 0.949, Status.UNSURE), (0.47, 0.47, Status.UNSURE),
        (0.05, 0.05, Status.VIOLATED), (0.0, 0.06, Status.UNSURE), (0.6, 0.96, Status.ACCEPTABLE),
        (0.0, 0.05, Status.VIOLATED),
    ],
)  # fmt: skip
def test_the_word_agrees_with_the_probabilities(met: float, acceptable: float, word: Status) -> None:
    assert likely_status(met, acceptable) is word


def test_no_word_is_beside_a_number_that_contradicts_it() -> None:
    """Met beside 95 % or more, violated beside 5 % or less, unsure beside neither, to the digit that is shown."""
    for met in np.linspace(0, 1, 2001):
        status = likely_status(met, met)
        shown = row(status, met, met).probability_words
        number = float(shown.removeprefix("above ").removeprefix("below ").removesuffix(" %"))
        assert (number >= 95) is (status is Status.MET) and (number <= 5) is (status is Status.VIOLATED), met
    assert row(Status.ACCEPTABLE, 0.6, 0.961).probability_words == "60 % (96 % accepted)"
    assert row(Status.MET, 0.96, 0.985).probability_words == "96 %"
    assert row(Status.MET, 1.0, 1.0).probability_words == "above 99 %"  # a spread is never certainty
    assert row(Status.MET, 1.0, 1.0, calibrated=False).probability_words == "100 % *"  # of the samples, all


def row(status: Status, met: float, acceptable: float, *, calibrated: bool = True) -> GoalRow:
    return GoalRow(
        "p", 1, "l", "g", "c", "", 1.0, 0.0, 2.0, "Gy", status.value, "", met, 0.0, acceptable, calibrated, ""
    )


@pytest.mark.parametrize(("kept", "count", "expected"), [(59, 59, 0.95), (32, 32, 0.911), (0, 10, 0.0), (9, 10, 0.606)])
def test_bounds_that_samples_support(kept: int, count: int, expected: float) -> None:
    """59 of 59 support 95 %; 32 leave 8.9 % open; 9 of 10: the tabulated one-sided 95 % bound of 0.606."""
    assert least_probability(kept, count) == pytest.approx(expected, abs=0.0006)


def test_calibrated_samples_have_the_calibrated_bands() -> None:
    """Their central bands at every measured level are mean +- factor times spread."""
    scale = BandScale((1.0, 1.4, 1.9, 2.4, 2.8, 3.3), 0.25)
    raw = np.random.default_rng(0).normal(30, 2, 4001)
    moved = scale.calibrated(raw)
    spread = np.sqrt(raw.var(ddof=1) + 0.25**2)
    for level, factor in zip((0.5, 0.68, 0.8, 0.9, 0.95, 0.98), scale.factors, strict=True):
        assert np.quantile(np.abs(moved - raw.mean()), level) == pytest.approx(factor * spread, rel=0.01)
    assert np.array_equal(np.argsort(moved), np.argsort(raw)) and moved.mean() == pytest.approx(raw.mean())
    assert np.abs(moved - raw.mean()).max() > 3.3 * spread  # goes on beyond the highest level
    assert scale.calibrated(np.full(8, 20.0)).std() > 0  # equal samples still have the floor
    assert BandScale(scale.factors, 0.5, 100.0).calibrated(np.linspace(95, 100, 50)).max() == 100


def test_an_ensemble_says_whether_its_samples_are_calibrated() -> None:
    patient = small_patient()
    goal = upper(30, None, "Parotid_L")
    raw = hand_made_ensemble(patient, samples=16)
    fitted = replace(raw, calibration=hand_made_calibration(samples=16))
    results = [evaluate_goal(goal, list(patient.structures), e.metric_samples) for e in (raw, fitted)]
    assert [r.is_calibrated for r in results] == [False, True]
    assert results[0].value == results[1].value == pytest.approx(float(raw.metric("Parotid_L", "mean").mean))
    deterministic = evaluate_goal(goal, list(patient.structures), hand_made_ensemble(patient, 0).metric_samples)
    assert deterministic.probability_met is None


def test_protocols_that_come_with_the_software() -> None:
    """Their numbers as published."""
    rtog, quantec = (load_goals(available_goals()[name]) for name in ("rtog0225", "quantec_head_and_neck"))
    assert rtog.fractions == 33
    assert [str(goal) for goal in rtog.goals] == [
        "PTV_7000 V70 ≥ 95 %",
        "PTV_7000 V65.1 ≥ 99 %",
        "PTV_7000 V77 ≤ 20 %",
        "PTV_7000 V80.5 ≤ 5 %",
        "Brainstem max ≤ 54 Gy or Brainstem D1 ≤ 60 Gy",
        "SpinalCord max ≤ 45 Gy or SpinalCord D1cc ≤ 50 Gy",
        "Bone_Mandible max ≤ 70 Gy or Bone_Mandible D1cc ≤ 75 Gy",
        "Parotid_L mean ≤ 26 Gy or Parotid_R mean ≤ 26 Gy or Parotid_L V30 ≤ 50 % or Parotid_R V30 ≤ 50 %",
    ]
    assert (rtog.prescribed_gy, rtog.site, quantec.prescribed_gy) == (70, "nasopharyngeal carcinoma", None)
    accepted = [c.acceptable for goal in rtog.goals for c in goal.criteria if c.acceptable is not None]
    assert accepted == [95, 60, 60]
    assert [str(goal).split(" or ")[0] for goal in quantec.goals] == [
        "Brainstem max ≤ 54 Gy",
        "SpinalCord max ≤ 50 Gy",
        "Larynx max ≤ 66 Gy",
        "Larynx mean ≤ 44 Gy",
        "Parotid_L and Parotid_R mean ≤ 25 Gy",
        "Esophagus mean ≤ 34 Gy",
    ]


@pytest.mark.parametrize(
    ("highest_gy", "names", "said"),
    [
        (
            70.0,
            ["QUANTEC head and neck", "RTOG 0225"],
            "dose is 70 Gy. It is a protocol for nasopharyngeal carcinoma",
        ),
        (69.3, ["QUANTEC head and neck", "RTOG 0225"], "the highest prescribed dose is 69.3 Gy"),
        (60.0, ["QUANTEC head and neck"], "RTOG 0225 is not applied: it is for 70 Gy, and 60 Gy are prescribed."),
        (None, ["QUANTEC head and neck"], "it is for 70 Gy, and no dose is prescribed."),
    ],
)
def test_protocols_are_chosen_by_the_prescription(highest_gy: float | None, names: list[str], said: str) -> None:
    choice = goals_for([load_goals(path) for path in available_goals().values()], highest_gy)
    assert [one.name for one in choice.sets] == names and set(choice.reasons) == set(names)
    assert any(said in text for text in (*choice.reasons.values(), *choice.left_out))


def test_a_user_may_choose_any_protocol() -> None:
    patient = small_patient()
    rtog = load_goals(available_goals()["rtog0225"])
    choice = goal_choice(replace(patient, plans=()), [rtog])
    assert choice.sets == (rtog,) and choice.reasons == {"RTOG 0225": "Applied because it was asked for."}
    tables = goal_tables(patient, single(**dict.fromkeys(patient.structures, 20.0)), goal_choice(patient))
    assert [table.notes[0].partition(" because ")[0] for table in tables] == ["Applied", "Applied"]


def test_every_goal_of_a_set_is_judged_by_priority() -> None:
    rtog = load_goals(available_goals()["rtog0225"])
    results = evaluate_goals(rtog, ["SpinalCord"], single(SpinalCord=46.0))
    assert len(results) == len(rtog.goals)
    assert [r.goal.priority for r in results] == sorted(goal.priority for goal in rtog.goals)
    (cord,) = (r for r in results if r.status is not Status.NOT_EVALUATED)
    assert cord.status is Status.MET and str(cord.criterion) == "SpinalCord D1cc ≤ 50 Gy"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('dose_unit = "Gy"', 'dose_unit = "cGy"', "mine.toml: dose_unit must be \"Gy\", not 'cGy'"),
        ('unit = "%"', 'unit = "Gy"', "goal 1: V70 is in %, but its limit is given in 'Gy'"),
        ("at_most = 54", "at_most = 5400", "goal 5: max 5400 Gy is no limit in Gy. Is it in cGy"),
        ("at_least = 95", "at_least = 950", "goal 1: V70 950 %: a volume cannot exceed"),
        ("at_least = 95", "at_least = -5", "goal 1: Cannot be understood: -5 is no limit"),
        ("at_least = 95", "at_least = 95, at_most = 99", "either at_most or at_least"),
        ("at_least = 95", "acceptable = 93", "either at_most or at_least"),
        ("at_least = 95", "at_least = 95, acceptable = 97", "97 is stricter than the limit 95"),
        ("at_least = 95", "at_least = true", "True is no limit"),
        ('metric = "V70"', 'metric = "V70cc"', "goal 1: 'V70cc' is no DVH metric"),
        ('metric = "V70"', "metrik = 1", "unknown: metrik"),
        ('structures = ["PTV_7000"]', 'structures = "PTV_7000"', "no list of names"),
        ("priority = 1", "priority = 0", "priority is 0"),
        ("priority = 1\n", "", "goal 1: priority is missing"),
        ("fractions = 33", "fractions = 0", "fractions is 0"),
        ("prescribed_gy = 70", "prescribed_gy = 7000", "prescribed_gy is 7000, which is no dose in Gy"),
        ("prescribed_gy = 70", "prescription = 70", "unknown: prescription"),
        ('site = "nasopharyngeal carcinoma"', "site = 3", "3 is no text"),
        ("[[goals]]", "[[gaols]]", "mine.toml: There are no goals"),
    ],
)  # fmt: skip
def test_wrong_files_say_what_is_wrong(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = available_goals()["rtog0225"].read_text(encoding="utf-8")
    assert old in text
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace(old, new, -1 if new == "[[gaols]]" else 1), encoding="utf-8")
    with pytest.raises(ProtocolError, match=message):
        load_goals(mine)
