"""A ranking as rows: what the report, the command line, the CSV file and the scene all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from RTDigitalTwinLib.decision.actions import Keep
from RTDigitalTwinLib.decision.ranking import Assessment, Ranking
from RTDigitalTwinLib.dosimetry.goals import GoalResult
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.report.goal_changes import GoalChange, goal_changes
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

RECOMMENDED, ACCEPTABLE, NOT_CERTIFIED = "recommended", "acceptable", "not certified"
# A sign beside every word, so that a row reads without its colour.
SIGNS = {RECOMMENDED: "★", ACCEPTABLE: "✓", NOT_CERTIFIED: "✗"}
# What tables of a ranking say below them.
GAIN = "Gain on keeping: before the penalty on uncertainty, which utilities are after."
NO_BAND = "no calibrated band: its penalty on uncertainty is too small, and its utility too high"
ORDER = (
    "What is not certified comes last whatever its utility: the nearest to keeping every limit first, and what has no "
    "calibrated band at the end."
)
NEAREST = "Nearest limit: the hard limit whose violation is bounded highest, beside the risk allowed."


@dataclass(frozen=True)
class RankedRow:
    """One action.

    Attributes
    ----------
    outcome : recommended, acceptable or not certified.
    utility : expected minus the uncertainty's penalty.
    expected : mean benefit minus effort; ``low`` and ``high`` are the central 95 % of it over the samples.
    uncertainty : standard deviation of the benefit over the calibrated samples.
    gain : expected against keeping the plan, on the same samples and so before the penalty; None of keeping.
    has_band : whether the spread of the action's dose was measured; else it is too small, and so is the penalty.
    worst_constraint : the one with the highest bound beside its risk, with its numbers; ``violated_words`` says how
        often it is violated and what that says of the probability, and ``calibrated`` whether its spread was measured.
    reasons : sentences.
    """

    place: int
    action: str
    kind: str
    outcome: str
    utility: float
    expected: float
    low: float
    high: float
    uncertainty: float
    penalty: float
    effort: float
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    probability_better: float | None
    worst_constraint: str
    violated: int | None
    samples: int | None
    most_probability: float | None
    calibrated: bool | None
    violated_words: str
    risk: float | None
    beam_consistency_ratio: float | None
    has_band: bool
    reasons: str

    @property
    def sign(self) -> str:
        return SIGNS[self.outcome]


@dataclass(frozen=True)
class ConstraintRow:
    """One constraint on one action; ``expected`` and ``value_at_risk`` in ``unit``.

    Attributes
    ----------
    probability : of a violation, and ``most_probability`` its bound that the samples support with ``confidence``.
    """

    action: str
    constraint: str
    label: str
    certified: bool
    violated: int
    beyond_limit: int
    samples: int
    probability: float
    most_probability: float
    confidence: float
    risk: float
    expected: float
    value_at_risk: float
    unit: str
    calibrated: bool
    words: str


@dataclass(frozen=True, eq=False)
class Deciding:
    """A ranking to be shown.

    Attributes
    ----------
    simulated : whether observations behind it stand in for measurements.
    chosen : name of the action to show in place of the recommended one; "" for that.
    """

    ranking: Ranking
    simulated: bool = False
    chosen: str = ""

    @property
    def shown(self) -> Assessment:
        """What all further numbers are of: the action chosen, or the recommended, or keeping where there is none.

        Raises RTDigitalTwinError where the chosen one is not among those judged.
        """
        if not self.chosen:
            return self.ranking.recommended or self.ranking.keep
        found = next((a for a in self.ranking.assessed if a.action.name == self.chosen), None)
        if found is None:
            reason = next((one.reason for one in self.ranking.refused if one.name == self.chosen), "")
            raise RTDigitalTwinError(
                f"This action was not judged. {reason}".strip(), where=self.chosen, remedy="Rank the actions again."
            )
        return found

    @property
    def words(self) -> str:
        """What is recommended, or what stands in the way, and which actions are not possible."""
        refused = (f"Not possible: {one.name}. {one.reason}" for one in self.ranking.refused)
        return " ".join((self.ranking.words, *self.ranking.obstacles, *refused))

    @property
    def before(self) -> DoseEnsemble | None:
        """The dose if nothing is changed; None where that is the one shown."""
        return None if isinstance(self.shown.action, Keep) else self.ranking.keep.outcome.prediction

    @property
    def goal_changes(self) -> tuple[GoalChange, ...]:
        """The goals whose status the action shown changes against keeping the plan."""
        return goal_changes(self.ranking.keep.goals, self.shown.goals)

    @property
    def rows(self) -> tuple[RankedRow, ...]:
        best = self.ranking.recommended
        return tuple(_row(k, a, a is best) for k, a in enumerate(self.ranking.assessed, start=1))

    @property
    def constraints(self) -> tuple[ConstraintRow, ...]:
        """Every constraint on every action, in the order of the ranking."""
        return tuple(
            ConstraintRow(
                a.action.name, str(c.constraint), c.constraint.label, c.is_kept, c.violated, c.beyond_limit, c.samples,
                c.probability, c.most_probability, c.confidence, c.risk, c.expected, c.value_at_risk,
                c.criterion.metric.unit, c.is_calibrated, c.words,
            )
            for a in self.ranking.assessed
            for c in a.chances
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        ranking = self.ranking
        protocol = ranking.protocol
        best = ranking.recommended
        rules: Mapping[str, Any] = {
            "name": protocol.name,
            "citation": protocol.citation,
            "risk": protocol.risk,
            "confidence": protocol.confidence,
            "uncertainty_weight": protocol.uncertainty_weight,
            "effort": {kind.value: effort for kind, effort in protocol.effort.items()},
        }
        by_action = [
            asdict(row) | {
                "reasons": list(a.reasons),
                "terms": [
                    {
                        "effect": t.term.model.effect.value,
                        "structure": t.term.structure,
                        "endpoint": t.term.model.endpoint,
                        "weight": t.term.weight,
                        "probability": t.probability,
                        "contribution": t.contribution,
                        "calibrated": t.is_calibrated,
                        "citation": t.term.model.source,
                    }
                    for t in a.utility.terms
                ],
                "constraints": [asdict(c) for c in self.constraints if c.action == a.action.name],
                "goals": [_goal(result) for result in a.goals],
                "goal_changes": [change.as_dict() for change in goal_changes(ranking.keep.goals, a.goals)],
                "changes": [asdict(change) for change in a.changes],
            }
            for row, a in zip(self.rows, ranking.assessed, strict=True)
        ]  # fmt: skip
        return {
            "patient": ranking.prediction.patient.pseudonym,
            "notice": "Research use only. Not for clinical decisions.",
            "simulated": self.simulated,
            "recommended": None if best is None else best.action.name,
            "words": ranking.words,
            "obstacles": list(ranking.obstacles),
            "samples": ranking.prediction.count,
            "seed": ranking.prediction.seed,
            "protocol": rules,
            "actions": by_action,
            "refused": [asdict(one) for one in ranking.refused],
            "notes": list(ranking.notes),
        }


def _row(place: int, a: Assessment, is_best: bool) -> RankedRow:
    worst = max(a.chances, key=lambda c: c.excess_ratio, default=None)
    low, high = a.utility.band()
    outcome = RECOMMENDED if is_best else ACCEPTABLE if a.is_acceptable else NOT_CERTIFIED
    return RankedRow(
        place,
        a.action.name,
        a.action.kind.value,
        outcome,
        a.utility.value,
        a.utility.expected,
        low,
        high,
        a.utility.uncertainty,
        a.utility.penalty,
        a.utility.effort,
        None if a.gain is None else a.gain.expected,
        None if a.gain is None else a.gain.low,
        None if a.gain is None else a.gain.high,
        None if a.gain is None else a.gain.probability_better,
        "" if worst is None else str(worst.constraint),
        None if worst is None else worst.violated,
        None if worst is None else worst.samples,
        None if worst is None else worst.most_probability,
        None if worst is None else worst.is_calibrated,
        "" if worst is None else worst.bound_words,
        None if worst is None else worst.risk,
        a.outcome.beam_consistency_ratio,
        a.outcome.prediction.is_calibrated,
        " ".join(a.reasons),
    )


def _goal(result: GoalResult) -> dict[str, Any]:
    return {
        "goal": str(result.goal),
        "label": result.goal.label,
        "status": result.status.value,
        "value": result.value,
        "criterion": None if result.criterion is None else str(result.criterion),
        "alternatives": [{"criterion": str(one.criterion), "value": one.value} for one in result.read],
        "probability_met": result.probability_met,
        "probability_acceptable": result.probability_acceptable,
        "least_probability_met": result.least_probability_met,
        "calibrated": result.is_calibrated,
        "note": result.reason,
    }
