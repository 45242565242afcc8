"""Utility in closed form, chance constraints, ranking, and abstaining where nothing can be certified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from RTDigitalTwinLib.decision.action_record import from_record, recorded
from RTDigitalTwinLib.decision.actions import ActionKind, Keep, Outcome, Scale, Situation, scaled
from RTDigitalTwinLib.decision.chance import fewest_samples, judge_chance, most_probability, most_violations, percent
from RTDigitalTwinLib.decision.protocol import Constraint, DecisionProtocol, decision_of
from RTDigitalTwinLib.decision.ranking import rank
from RTDigitalTwinLib.decision.utility import Gain, terms_for, unverified_notes, utility_of
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.goals import Criterion
from RTDigitalTwinLib.dosimetry.metric_samples import MetricSamples
from RTDigitalTwinLib.errors import Cancelled, LedgerError, PatientDataError, ProtocolError, RTDigitalTwinError
from RTDigitalTwinLib.model.biology import load_biology, models_for
from RTDigitalTwinLib.patient.plan import Prescription
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.reading import Reading
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

LEVEL_GY = 65.0
CORD = DvhMetric.parse("D0.1cc")
TARGET = "local control, as of carcinoma of the larynx T2"
PAROTID = "salivary flow below 25 % of that before treatment, at one year"


def uniform_ensemble(offsets_gy: np.ndarray, calibrated: bool = True, with_dose_gy: float = LEVEL_GY) -> DoseEnsemble:
    """The same dose wherever there is any, off by the same in every voxel of a sample."""
    drawn = hand_made_ensemble(small_patient(), offsets_gy.size)
    expected = np.full_like(drawn.deterministic_gy, with_dose_gy)
    deviations = np.repeat(offsets_gy[:, None], expected.size, axis=1).astype(np.float16)
    bands = replace(hand_made_calibration(), samples=offsets_gy.size) if calibrated else None
    return replace(drawn, deterministic_gy=expected, deviations_gy=deviations, calibration=bands)


def protocol(**changes: Any) -> DecisionProtocol:
    """A small one: control of the target, both parotids at 0.1, a limit for the cord."""
    content: dict[str, Any] = {
        "name": "small",
        "title": "for tests",
        "citation": "made up",
        "dose_unit": "Gy",
        "chance": {"risk": 0.05, "confidence": 0.95},
        "utility": {
            "uncertainty_weight": 0.5,
            "effort": {"scale": 0.002},
            "control": [{"structures": ["GTVp", "PTV_7000"], "endpoint": TARGET, "weight": 1.0}],
            "complications": [{"structures": ["Parotid_L", "Parotid_R"], "endpoint": PAROTID, "weight": 0.1}],
        },
        "constraints": [cord(at_most=72.0)],
    }
    return decision_of(content | changes, "test.toml")


def cord(**limits: float) -> dict[str, Any]:
    return {
        "label": "cord",
        "criteria": [{"structures": ["SpinalCord"], "metric": "D0.1cc", "unit": "Gy", **limits}],
    }


def offsets(count: int = 64, spread_gy: float = 1.0) -> np.ndarray:
    return spread_gy * np.random.default_rng(0).standard_normal(count)


@dataclass(frozen=True)
class Impossible:
    """An action that this patient does not allow."""

    name: str = "impossible"
    kind: ActionKind = ActionKind.SPARE

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        raise PatientDataError("There is no structure Lens_L.")


@dataclass(frozen=True)
class Boost:
    """So much more dose everywhere, with a remark."""

    factor: float
    name: str = "boost"
    kind: ActionKind = ActionKind.BOOST

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        return Outcome(scaled(situation.prediction, np.float32(self.factor)), 0.8, ("A remark.",))


@dataclass(frozen=True)
class Anew:
    """So much less dose everywhere, and nothing known of how sure it is."""

    factor: float
    name: str = "anew"
    kind: ActionKind = ActionKind.REPLAN

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        return Outcome(replace(scaled(situation.prediction, np.float32(self.factor)), calibration=None))


# Chances


def test_bound_of_clopper_and_pearson() -> None:
    # None of n: 1 - 0.05^(1/n).
    assert most_probability(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59), rel=1e-9)
    assert most_probability(0, 32, 0.95) == pytest.approx(0.0894, abs=1e-4)
    # Defined by P(at most 3 of 64 | p) = 0.05.
    bound = most_probability(3, 64, 0.95)
    from scipy.stats import binom

    assert binom.cdf(3, 64, bound) == pytest.approx(0.05, rel=1e-6)
    assert most_probability(64, 64, 0.95) == 1.0


def test_fewest_samples() -> None:
    assert fewest_samples(0.05, 0.95) == 59 and fewest_samples(0.1, 0.95) == 29 and fewest_samples(0.01, 0.95) == 299
    for risk in (0.02, 0.05, 0.3):
        n = fewest_samples(risk, 0.95)
        assert most_probability(0, n, 0.95) <= risk < most_probability(0, n - 1, 0.95)
    assert most_violations(64, 0.05, 0.95) == 0 and most_violations(58, 0.05, 0.95) == -1
    assert most_violations(93, 0.05, 0.95) == 1  # the well-known sequence 59, 93, 124
    for risk in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(RTDigitalTwinError, match="between 0 and 1"):
            fewest_samples(risk, 0.95)


def test_a_chance_counts_what_is_beyond_the_variation_accepted() -> None:
    values = np.linspace(40, 59, 20)  # 40, 41, ...
    one = Criterion(("SpinalCord",), CORD, True, 49.0, 55.0)
    found = judge_chance(
        Constraint("cord", (one,)), lambda *_: MetricSamples(49.5, values, True), risk=0.2, confidence=0.9
    )
    assert (found.samples, found.violated, found.beyond_limit) == (20, 4, 10)
    assert found.most_probability == pytest.approx(most_probability(4, 20, 0.9)) and not found.is_kept
    assert found.probability == pytest.approx(0.2)
    # Four samples lie beyond 55.5 Gy, between 55 and 56.
    assert found.value_at_risk == pytest.approx(55.5) and found.excess == pytest.approx(0.5)
    # P(at most 4 of 20 | 0.375) = 0.1, rounded up.
    assert "violated in 4 of 20 samples; below 37 % with 90 % confidence, where 20 % is allowed" in found.words
    assert "0.5 Gy above what is accepted" in found.words
    floor = Criterion(("PTV_7000",), DvhMetric.parse("D95"), False, 50.0, 45.0)
    cold = judge_chance(Constraint("cold", (floor,)), lambda *_: MetricSamples(49.5, values, True), 0.05, 0.9)
    assert cold.violated == 5 and cold.value_at_risk == pytest.approx(40.5)
    assert "4.5 Gy below what is accepted" in cold.words and "above" not in cold.words
    unmeasured = replace(found, is_calibrated=False)
    assert unmeasured.bound_words == "4 of 20 samples; spread not calibrated" and "below" not in unmeasured.words
    lax = replace(one, structures=("Brainstem",), acceptable=100.0)
    either = judge_chance(Constraint("or", (one, lax)), lambda *_: MetricSamples(49.5, values, True), 0.2, 0.9)
    assert either.violated == 0 and either.criterion is lax and either.is_kept
    raw = judge_chance(Constraint("or", (one, lax)), lambda *_: MetricSamples(49.5, values, False), 0.2, 0.9)
    assert raw.violated == 0 and not raw.is_kept and "not calibrated" in raw.words
    # With a confidence of 5 % the bound is 7 %: below a risk that the probability is above.
    lean = judge_chance(Constraint("cord", (one,)), lambda *_: MetricSamples(49.5, values, True), 0.15, 0.05)
    assert lean.most_probability < 0.15 and not lean.is_kept and lean.excess_ratio == pytest.approx(0.2 / 0.15)


def test_a_percentage_is_never_rounded_to_certainty() -> None:
    assert [percent(p) for p in (0, 0.0004, 0.0457, 0.05, 0.137, 0.996, 0.9999, 1)] == [
        "0 %", "below 0.1 %", "4.6 %", "5 %", "14 %", "99.6 %", "above 99.9 %", "100 %",
    ]  # fmt: skip


# Utility


def test_utility_in_closed_form() -> None:
    gy = uniform_ensemble(offsets())
    terms, notes = terms_for(protocol(), gy.patient)
    assert [t.structure for t in terms] == ["PTV_7000", "Parotid_L", "Parotid_R"] and not notes
    found = utility_of(Reading(gy), terms, 0.5, 0.003)
    scale = replace(hand_made_calibration(), samples=64).metric_scale
    tcp, ntcp = (models_for(load_biology(), name)[0] for name in ("PTV_7000", "Parotid_L"))
    wanted = np.zeros(64)
    for name, model, weight in (("PTV_7000", tcp, 1.0), ("Parotid_L", ntcp, -0.1), ("Parotid_R", ntcp, -0.1)):
        kind = gy.patient.structures[name].kind
        # Where the dose is uniform every equivalent dose is that dose.
        doses = scale(name, kind, "mean", "Gy").calibrated(  # type: ignore[union-attr]
            LEVEL_GY + offsets().astype(np.float16).astype(float)
        )
        wanted += weight * model.probability(doses)
    assert found.benefit == pytest.approx(wanted, abs=2e-4)  # float32 doses
    assert found.expected == pytest.approx(wanted.mean() - 0.003, abs=1e-4)
    assert found.value == pytest.approx(wanted.mean() - 0.003 - 0.5 * wanted.std(ddof=1), abs=1e-4)
    assert sum(t.contribution for t in found.terms) == pytest.approx(found.benefit.mean())
    low, high = found.band()
    assert low < found.expected < high


def test_the_gain_is_of_the_same_samples() -> None:
    gy = uniform_ensemble(offsets(spread_gy=3.0))
    terms, _ = terms_for(protocol(), gy.patient)
    keep = utility_of(Reading(gy), terms, 0.5, 0.0)
    more = utility_of(Reading(scaled(gy, np.float32(1.03))), terms, 0.5, 0.0)
    gain = Gain.over(more, keep)
    assert gain is not None and gain.expected == pytest.approx(more.expected - keep.expected)
    # Pairing tells what two bands side by side cannot.
    assert gain.probability_better > 0.95 and keep.band()[1] > more.band()[0]
    even = replace(more, benefit=(np.arange(40) + 0.5) / 40, effort=0.0)  # 95 % of a uniform distribution
    off = Gain.over(even, replace(even, benefit=np.zeros(40)))
    assert off is not None and (off.low, off.high) == even.band() == pytest.approx((0.025, 0.975))
    few = utility_of(Reading(uniform_ensemble(offsets(59))), terms, 0.5, 0.0)
    assert Gain.over(few, keep) is None


def test_without_tumour_control_there_is_no_utility() -> None:
    patient = small_patient()
    without = replace(patient, structures={n: s for n, s in patient.structures.items() if n != "PTV_7000"})
    with pytest.raises(PatientDataError, match="Tumour control cannot be modelled"):
        terms_for(protocol(), without)
    with pytest.raises(ProtocolError, match="no dose at all would be best"):
        protocol(utility={"uncertainty_weight": 0.0})
    organs = replace(patient, structures={n: s for n, s in patient.structures.items() if n != "Parotid_L"})
    terms, notes = terms_for(protocol(), organs)
    assert len(terms) == 2 and "Parotid_L" in notes[0]


# Ranking


def test_ranks_the_acceptable_by_utility() -> None:
    situation = Situation(uniform_ensemble(offsets()))
    ranking = rank(situation, (Scale(0.95), Scale(1.05), Impossible(), Boost(1.1)), protocol())
    names = [a.action.name for a in ranking.assessed]
    # 68 Gy in the cord and three times the spread above it are within 72 Gy; 71.5 Gy and that are not.
    assert names[0] == "scale by 1.05" and names[-1] == "boost"
    best = ranking.recommended
    assert best is not None and best.action.name == "scale by 1.05" and not ranking.abstains and not ranking.obstacles
    values = [a.utility.value for a in ranking.assessed if a.is_acceptable]
    assert values == sorted(values, reverse=True) and len(values) == 3
    assert ranking.keep.gain is None and ranking.keep.utility.effort == 0 and best.utility.effort == 0.002
    assert [(one.name, one.reason) for one in ranking.refused] == [("impossible", "There is no structure Lens_L.")]
    boost = ranking.assessed[-1]
    assert boost.standing_in_way and "Not certified" in boost.reasons[0] and "A remark." in boost.reasons
    assert boost.outcome.beam_consistency_ratio == 0.8
    assert any("TG-166" in note for note in ranking.notes)
    assert all(row.value == pytest.approx(1.05 * row.keep, rel=1e-4) for row in best.changes)
    assert any(best.changes[0].words == reason and " rises by 3.3 Gy (65." in reason for reason in best.reasons)
    assert any(r.startswith("TCP of PTV_7000") and "rises by" in r for r in best.reasons)


def test_the_ranking_changes_with_the_risk() -> None:
    situation = Situation(uniform_ensemble(offsets()))
    names = {}
    for risk in (0.05, 0.6):
        ranking = rank(situation, (Scale(1.05), Scale(1.1)), protocol(), risk)
        names[risk] = ranking.recommended and ranking.recommended.action.name
        assert ranking.protocol.risk == risk
    assert names == {0.05: "scale by 1.05", 0.6: "scale by 1.1"}


def test_the_penalty_on_uncertainty_can_change_the_order() -> None:
    gy = uniform_ensemble(offsets(spread_gy=2.0))
    small, large = (
        rank(Situation(gy), (Scale(0.99),), replace(protocol(), uncertainty_weight=w)).assessed for w in (0.0, 50.0)
    )
    assert small[0].utility.expected == pytest.approx(small[0].utility.value)
    assert large[0].utility.penalty == pytest.approx(50 * large[0].utility.uncertainty) and large[0].utility.value < 0


def test_abstains_and_says_what_stands_in_the_way() -> None:
    gy = uniform_ensemble(offsets())
    ranking = rank(Situation(gy), (Scale(0.95), Scale(1.05)), protocol(constraints=[cord(at_most=2.0)]))
    assert ranking.abstains and ranking.recommended is None and "No recommendation" in ranking.words
    assert ranking.assessed[0].action.name == "scale by 0.95"
    assert ranking.obstacles[0].startswith("The nearest is scale by 0.95. SpinalCord D0.1cc ≤ 2 Gy: violated in 64")
    assert "Gy above what is accepted" in ranking.obstacles[0]
    assert any("No action keeps it" in line for line in ranking.obstacles)
    # The plan's own dose falls to a few Gy at the cord.
    assert any("plan's own dose does not keep it either" in line for line in ranking.obstacles)
    # One violation among 64 is a share within 5 %, but they cannot certify it.
    highest = np.sort(gy.metric_samples("SpinalCord", CORD).samples)[-2:]
    near = rank(Situation(gy), (), protocol(constraints=[cord(at_most=float(highest.mean()))]))
    (chance,) = near.keep.chances
    assert near.abstains and chance.violated == 1 and 0.5 / 64 < chance.probability < 1.5 / 64
    assert any("64 samples certify it only with at most 0; more samples may tell" in line for line in near.obstacles)


def test_abstains_without_calibrated_samples() -> None:
    ranking = rank(Situation(uniform_ensemble(offsets(), calibrated=False)), (), protocol())
    assert ranking.abstains and "not calibrated" in ranking.obstacles[0]
    assert any("nothing is certified" in note for note in ranking.notes)


def test_what_has_no_calibrated_band_is_never_the_nearest() -> None:
    gy = uniform_ensemble(offsets())
    limit = float(np.sort(gy.metric_samples("SpinalCord", CORD).samples)[-2:].mean())  # beyond it is one of 64
    ranking = rank(Situation(gy), (Anew(0.9), Scale(1.1)), protocol(constraints=[cord(at_most=limit)]))
    keep, more, anew = ranking.assessed
    assert [a.action.name for a in ranking.assessed] == ["keep", "scale by 1.1", "anew"]
    assert anew.excess_ratio < keep.excess_ratio < more.excess_ratio  # of its samples none, which say nothing
    assert ranking.obstacles[0].startswith("The nearest is keep.")


def test_models_with_unverified_parameters_are_told() -> None:
    situation = Situation(uniform_ensemble(offsets()))
    ranking = rank(situation, (Scale(1.02),), protocol())
    (note,) = (note for note in ranking.notes if "not all verified" in note)
    models = load_biology()
    tcp, parotid = (models_for(models, name)[0] for name in ("PTV_7000", "Parotid_L"))
    assert tcp.unverified and not parotid.unverified
    assert f"TCP of PTV_7000: {TARGET}" in note and tcp.unverified in note and "Parotid" not in note
    reasons = next(a for a in ranking.assessed if a.gain is not None).reasons
    marked = {r.split(" (")[0]: "not all verified" in r for r in reasons if r.startswith(("TCP", "NTCP"))}
    assert marked["TCP of PTV_7000"] and not marked["NTCP of Parotid_L"]
    verified = [
        replace(term, model=replace(term.model, unverified="")) for term in terms_for(protocol(), small_patient())[0]
    ]
    assert unverified_notes(verified) == ()


def test_a_constraint_on_an_absent_structure_is_told() -> None:
    brainstem = cord(at_most=54.0)
    brainstem["criteria"][0]["structures"] = ["Brainstem"]
    situation = Situation(uniform_ensemble(offsets()))
    ranking = rank(situation, (), protocol(constraints=[cord(at_most=72.0), brainstem]))
    assert not ranking.abstains and any("There is no structure Brainstem" in note for note in ranking.notes)
    only = rank(situation, (), protocol(constraints=[brainstem]))
    assert only.abstains and "No constraint can be judged" in only.obstacles[0]


def test_a_target_that_is_not_drawn_is_told_and_not_replaced_by_a_lower_one() -> None:
    patient = small_patient()
    levels = Prescription((("PTV_7600", 76.0), ("PTV_7000", 70.0)), 35)
    asked = [
        {"label": "cover", "targets": "every", "metric": "D95", "at_least_ratio": 0.9},
        {"label": "hot", "targets": "highest", "metric": "D1", "at_most_ratio": 1.1},
    ]
    kept, notes = protocol(target_constraints=asked).for_patient(
        replace(patient, plans=(replace(patient.plan, prescription=levels),))
    )
    assert [str(constraint) for constraint in kept] == ["PTV_7000 D95 ≥ 63 Gy", "SpinalCord D0.1cc ≤ 72 Gy"]
    assert [note.split(". ")[0] for note in notes] == [
        "Not judged: PTV_7600 D95 ≥ 68.4 Gy",
        "Not judged: PTV_7600 D1 ≤ 83.6 Gy",
    ]


def test_a_risk_beyond_what_was_measured_is_told() -> None:
    prediction = uniform_ensemble(offsets(300, 0.5))
    assert prediction.calibration is not None
    short = {key: factors[:5] for key, factors in prediction.calibration.metrics.items()}  # up to 95 %
    situation = Situation(replace(prediction, calibration=replace(prediction.calibration, metrics=short)))
    for risk, told in ((0.025, False), (0.01, True)):
        notes = rank(situation, (), protocol(), risk=risk).notes
        assert any("a risk below 2.5 % rests on tails that are assumed" in note for note in notes) is told


def test_too_few_samples_and_bad_actions_are_refused() -> None:
    situation = Situation(uniform_ensemble(offsets(58)))
    with pytest.raises(RTDigitalTwinError, match="58 samples cannot certify a risk of 5 %.*at least 59"):
        rank(situation, (), protocol())
    assert rank(situation, (), protocol(), risk=0.1).assessed
    for risk in (0.0, 1.0, 5.0):
        with pytest.raises(RTDigitalTwinError, match="risk must lie between 0 and 1"):
            rank(situation, (), protocol(), risk=risk)
    strict = protocol(constraints=[cord(at_most=72.0) | {"risk": 0.01}])
    with pytest.raises(RTDigitalTwinError, match="at least 299"):
        rank(situation, (), strict, risk=0.1)
    with pytest.raises(RTDigitalTwinError, match="two actions|Two actions"):
        rank(situation, (Scale(1.05), Scale(1.05)), protocol(), risk=0.1)

    def stop(done_ratio: float, message: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        rank(situation, (), protocol(), risk=0.1, progress=stop)


def test_the_same_samples_give_the_same_ranking() -> None:
    situation = Situation(uniform_ensemble(offsets()))
    one, two = (rank(situation, (Scale(0.95), Scale(1.05)), protocol()) for _ in range(2))
    assert [a.utility.value for a in one.assessed] == [a.utility.value for a in two.assessed]
    assert [a.reasons for a in one.assessed] == [a.reasons for a in two.assessed]


# Records of actions


def test_actions_are_made_again_from_their_records() -> None:
    for action in (Keep(), Scale(1.03)):
        record = recorded(action)
        assert record is not None and from_record(record) == action
    assert recorded(Scale(1.03)) == {"module": "actions", "type": "Scale", "with": {"factor": 1.03}}
    assert recorded(Impossible()) is None  # not of the library
    for bad in (
        {"module": "os", "type": "system", "with": {}},
        {"module": "actions", "type": "Outcome", "with": {"prediction": 1}},
        {"module": "actions.x", "type": "Keep", "with": {}},
        {"module": "actions", "type": "Keep"},
    ):
        with pytest.raises(LedgerError, match="not known here"):
            from_record(bad)
