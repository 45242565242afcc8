"""Files of utility and constraints: the one that comes with the software, contradictions, and bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from RTDigitalTwinLib.decision.actions import ActionKind, Situation
from RTDigitalTwinLib.decision.protocol import load_decision, never_above
from RTDigitalTwinLib.decision.ranking import rank
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.errors import ProtocolError
from Testing.builders import small_patient
from Testing.test_ranking import cord, offsets, protocol, uniform_ensemble


def test_the_protocol_that_comes_with_the_software() -> None:
    ours = load_decision()
    assert ours.risk == 0.05 and ours.confidence == 0.95 and set(ours.effort) == set(ActionKind)
    constraints, notes = ours.for_patient(small_patient())
    assert [str(c) for c in constraints] == [
        "PTV_7000 D95 ≥ 66.5 Gy (63 accepted)",
        "PTV_7000 D1 ≤ 77 Gy (80.5 accepted)",
        "SpinalCord D0.1cc ≤ 50 Gy (54 accepted)",
    ]
    assert len(notes) == 1 and "Brainstem" in notes[0] and ours.remark(small_patient()) == ""
    hypo = replace(ours, gy_per_fraction=(2.5, 3.0))
    assert "the plan has 2.00 Gy" in hypo.remark(small_patient())


@pytest.mark.parametrize(
    ("low", "high"), [("D95", "D95"), ("min", "mean"), ("mean", "max"), ("D95", "D2"), ("D1cc", "D0.1cc")]
)
def test_contradictory_constraints_are_refused(low: str, high: str) -> None:
    assert never_above(DvhMetric.parse(low), DvhMetric.parse(high))

    def pair(least: float, most: float) -> list[dict[str, Any]]:
        limits = [(low, {"at_least": least}), (high, {"at_most": most})]
        return [
            {"label": m, "criteria": [{"structures": ["PTV_7000"], "metric": m, "unit": "Gy", **limit}]}
            for m, limit in limits
        ]

    with pytest.raises(ProtocolError, match=r"test.toml: Two constraints contradict each other in PTV_7000: .*70.*60"):
        protocol(constraints=pair(70, 60))
    assert len(protocol(constraints=pair(60, 70)).constraints) == 2
    accepted = pair(70, 60)
    accepted[0]["criteria"][0]["acceptable"] = 55  # kept by 55 to 60 Gy
    assert protocol(constraints=accepted)


def test_constraints_that_contradict_each_other_for_a_patient() -> None:
    cold = {"label": "cold", "criteria": [{"structures": ["PTV_7000"], "metric": "max", "at_most": 60, "unit": "Gy"}]}
    warm = {"label": "warm", "targets": "every", "metric": "D95", "at_least_ratio": 0.95}
    contradictory = protocol(constraints=[cold], target_constraints=[warm])
    with pytest.raises(ProtocolError, match="small-patient: Two constraints contradict"):
        rank(Situation(uniform_ensemble(offsets())), (), contradictory)


def test_metrics_without_an_order_contradict_nothing() -> None:
    for one, other in (("D2", "D95"), ("mean", "D50"), ("V20", "mean"), ("max", "min"), ("V20", "V30")):
        assert not never_above(DvhMetric.parse(one), DvhMetric.parse(other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chance": {"risk": 0, "confidence": 0.95}}, "risk must lie between 0 and 1"),
        ({"chance": {"risk": 1.0, "confidence": 0.95}}, "risk must lie between 0 and 1"),
        ({"chance": {"risk": 0.05, "confidence": 95}}, "confidence must lie between 0 and 1"),
        ({"chance": {"risk": 0.05}}, "confidence is missing"),
        ({"chance": {"risk": "low", "confidence": 0.95}}, "no number"),
        ({"constraints": []}, "no constraints"),
        ({"constraints": {}}, "no list of entries"),
        ({"constraints": [{"label": "cord", "criteria": []}]}, "constraints 1: Cannot be understood: it has no crit"),
        ({"constraints": [cord(at_most=4500.0)]}, "in cGy"),
        ({"constraints": [cord(at_most=72.0) | {"risk": 2}]}, "risk must lie between 0 and 1"),
        ({"constraints": [cord(at_most=72.0) | {"epsilon": 0.1}]}, "unknown: epsilon"),
        ({"target_constraints": [{"label": "a", "targets": "some", "metric": "D95"}]}, "targets is 'some'"),
        (
            {"target_constraints": [{"label": "a", "targets": "every", "metric": "V60", "at_least_ratio": 1}]},
            "no share of a prescribed dose",
        ),
        (
            {"target_constraints": [{"label": "a", "targets": "every", "metric": "D95", "at_least_ratio": 95}]},
            "write 0.95 for 95 %",
        ),
        ({"gy_per_fraction": [3, 2]}, "gy_per_fraction"),
        ({"utility": {"uncertainty_weight": -1}}, "0 or more"),
        ({"utility": {"uncertainty_weight": 0, "effort": {"pray": 1}}}, "unknown: pray"),
        (
            {
                "utility": {
                    "uncertainty_weight": 0,
                    "control": [{"structures": ["Lens_L"], "endpoint": "x", "weight": 1}],
                }
            },
            "no TCP model of this endpoint for Lens_L",
        ),
    ],
)
def test_bad_protocols_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        protocol(**changes)
