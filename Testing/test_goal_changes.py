"""Clinical goals whose status an action changes, and which of a goal's alternatives is meant."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from RTDigitalTwinLib.decision.actions import Scale, Situation
from RTDigitalTwinLib.decision.ranking import Ranking, rank
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.goals import Criterion, Goal, GoalSet, Status
from RTDigitalTwinLib.report.deciding import Deciding
from RTDigitalTwinLib.report.goal_changes import goal_changes
from RTDigitalTwinLib.report.goal_table import ROUNDING
from RTDigitalTwinLib.report.tables import Findings
from Testing.test_ranking import LEVEL_GY, cord, offsets, protocol, uniform_ensemble
from Testing.test_report_deciding import text_of

MEAN = DvhMetric.parse("mean")


def limits(at_most_gy: float, right_gy: float = 50.0) -> GoalSet:
    """One that the action changes, one that it does not, and one with alternatives."""
    parotids = [Criterion((name,), MEAN, True, limit) for name, limit in (("Parotid_L", 20.0), ("Parotid_R", right_gy))]
    goals = (
        Goal("cord", 1, (Criterion(("SpinalCord",), MEAN, True, at_most_gy),)),
        Goal("target", 1, (Criterion(("PTV_7000",), MEAN, True, 200.0),)),
        Goal("one gland", 2, tuple(parotids)),
        Goal("absent", 3, (Criterion(("Larynx",), MEAN, True, 44.0),)),
    )
    return GoalSet("small", "for tests", "made up", goals)


def ranked(at_most_gy: float, calibrated: bool = True) -> Ranking:
    """Keeping 65 Gy everywhere, and 5 % more, which is 3.25 Gy."""
    situation = Situation(uniform_ensemble(offsets(spread_gy=0.2), calibrated))
    constraint = protocol(constraints=[cord(at_most=90.0)])
    return rank(situation, (Scale(1.05),), constraint, goals=(limits(at_most_gy),))


@pytest.fixture(scope="module")
def changing() -> Ranking:
    return ranked(LEVEL_GY + 2)


def test_a_goal_that_changes_its_status_is_told(changing: Ranking) -> None:
    deciding = Deciding(changing)
    (change,) = deciding.goal_changes
    assert change.keep.goal == "SpinalCord mean ≤ 67 Gy"
    assert (change.keep.status, change.action.status) == ("met", "violated")
    assert change.words == (
        "SpinalCord mean ≤ 67 Gy: ✓ met → ✗ violated; 65.0 Gy → 68.3 Gy, "
        f"met with probability {change.keep.probability_words} → {change.action.probability_words}"
    )
    told = json.loads(json.dumps(deciding.as_dict(), allow_nan=False))
    rows = {action["action"]: action["goal_changes"] for action in told["actions"]}
    assert rows["keep"] == []
    (row,) = rows["scale by 1.05"]
    assert row["keep"]["status"] == "met" and row["action"]["status"] == "violated" and row["action"]["unit"] == "Gy"
    assert row["keep"]["probability_met"] > 0.95 > 0.05 > row["action"]["probability_met"]
    assert row["keep"]["value"] == pytest.approx(65.0, abs=0.1) and row["action"]["value"] == pytest.approx(
        68.25, abs=0.1
    )


def test_the_report_tells_them_or_that_there_are_none(changing: Ranking) -> None:
    for ranking, among, absent in (
        (changing, "SpinalCord mean ≤ 67 Gy cord ✓ met 65.0 Gy", "None: every clinical goal"),
        (ranked(100.0), "None: every clinical goal has the status", "SpinalCord mean ≤ 100 Gy cord"),
    ):
        deciding = Deciding(ranking)
        text = text_of(Findings(deciding.shown.outcome.prediction, deciding=deciding))
        section = text.partition("Clinical goals that change their status")[2].partition("All actions")[0]
        assert among in section and absent not in section
    keep = Deciding(changing, chosen="keep")
    assert keep.goal_changes == ()
    text = text_of(Findings(keep.shown.outcome.prediction, deciding=keep))
    assert "Clinical goals that change" not in text


def test_what_can_no_longer_be_evaluated_is_a_change(changing: Ranking) -> None:
    keep = changing.keep.goals
    lost = replace(keep[3], goal=keep[0].goal, reason="The dose is not known in it.")
    (change,) = goal_changes(keep[:1], (lost,))
    assert change.words == "SpinalCord mean ≤ 67 Gy: ✓ met → – not evaluated. The dose is not known in it"


def test_a_value_that_reads_the_same_is_told_once(changing: Ranking) -> None:
    before = changing.keep.goals[0]
    (change,) = goal_changes((before,), (replace(before, status=Status.UNSURE, probability_met=0.94),))
    assert change.words.count("Gy") == 2 and "; 65.0 Gy, met with probability" in change.words


def test_probabilities_that_are_not_calibrated_are_marked() -> None:
    ranking = ranked(LEVEL_GY + 2, calibrated=False)
    (change,) = goal_changes(ranking.keep.goals, ranking.assessed[-1].goals + ranking.assessed[0].goals[4:])
    assert change.keep.probability_words.endswith("*") and change.action.probability_words.endswith("*")
    assert change.as_dict()["action"]["calibrated"] is False


def test_a_goal_with_alternatives_tells_all_of_them(changing: Ranking) -> None:
    findings = Findings(changing.prediction, chosen_goals=(limits(67.0, 64.6),))
    parotid = findings.goals[0].rows[2]
    assert parotid.status == "unsure" and parotid.criterion == "Parotid_R mean ≤ 64.6 Gy"
    assert parotid.other_words == "Parotid_L mean ≤ 20 Gy: 65.0 Gy" and findings.goals[0].rows[0].other_words == ""
    text = text_of(findings)
    assert "judged by this alternative, beside Parotid_L mean ≤ 20 Gy: 65.0 Gy" in text.partition("Prescription")[0]
    assert "Judged by Parotid_R mean ≤ 64.6 Gy, beside Parotid_L mean ≤ 20 Gy: 65.0 Gy" in text
    assert text.count(ROUNDING) == 1  # below the tables of goals
    (goal,) = [g for g in Deciding(changing).as_dict()["actions"][0]["goals"] if g["label"] == "one gland"]
    assert [one["criterion"] for one in goal["alternatives"]] == ["Parotid_L mean ≤ 20 Gy", "Parotid_R mean ≤ 50 Gy"]
