"""Chance constraints: how likely an action violates a limit, and what so many samples can certify of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from RTDigitalTwinLib.decision.protocol import Constraint, required_ratio
from RTDigitalTwinLib.dosimetry.goals import Criterion, least_probability, read_criteria, whole
from RTDigitalTwinLib.dosimetry.metric_samples import Metrics
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.words import counted


@dataclass(frozen=True)
class Chance:
    """One constraint on one action.

    Attributes
    ----------
    samples, violated : number of samples, and of those beyond the variation accepted (the limit, where there is none).
    beyond_limit : number beyond the limit itself.
    probability : of a violation, as clinical goals have theirs (``MetricSamples.kept``).
    most_probability : its upper bound that so many samples support with ``confidence`` (Clopper and Pearson).
    risk : allowed.
    criterion : the one that is violated least, of those that could be read.
    expected : mean over the samples of its metric, the worst of its structures.
    value_at_risk : the metric's quantile that is exceeded (below which it falls) with the probability ``risk``.
    is_calibrated : whether the spread of every metric was measured; else the probability is too sure.
    """

    constraint: Constraint
    samples: int
    violated: int
    beyond_limit: int
    probability: float
    most_probability: float
    confidence: float
    risk: float
    criterion: Criterion
    expected: float
    value_at_risk: float
    is_calibrated: bool

    @property
    def is_kept(self) -> bool:
        """Whether the samples certify it: probability and bound are within the risk, and the spread is measured."""
        return self.is_calibrated and self.excess_ratio <= 1

    @property
    def excess_ratio(self) -> float:
        """How many times the risk the bound is, or the probability where it is larger; above 1 it is not certified."""
        return max(self.most_probability, self.probability) / self.risk

    @property
    def excess(self) -> float:
        """How far the value at risk is beyond what is accepted, in its metric's unit; negative where it is within."""
        beyond = self.value_at_risk - self.criterion.accepted
        return beyond if self.criterion.upper else -beyond

    @property
    def bound_words(self) -> str:
        """What the samples say: ``0 of 64 samples; below 4.6 % with 95 % confidence``."""
        said = f"{self.violated} of {counted(self.samples, 'sample')}"
        if not self.is_calibrated:
            return f"{said}; spread not calibrated"
        if self.most_probability >= 1:
            return said
        return f"{said}; below {bound_percent(self.most_probability)} with {percent(self.confidence)} confidence"

    @property
    def words(self) -> str:
        """One sentence: violated how often, how likely at most, allowed how much, and by how much it misses."""
        unit = self.criterion.metric.unit
        said = (
            f"{self.constraint}: violated in {self.bound_words}, where {percent(self.risk)} is allowed; "
            f"expected {self.expected:.1f} {unit}, {'at most' if self.criterion.upper else 'at least'} "
            f"{self.value_at_risk:.1f} {unit} with {percent(1 - self.risk)}"
        )
        if self.excess > 0:
            side = "above" if self.criterion.upper else "below"
            said += f", {self.excess:.1f} {unit} {side} what is accepted"
        if not self.is_calibrated:
            said += "; so nothing can be certified"
        return f"{said}."


def bound_percent(most: float) -> str:
    """An upper bound, rounded up: what lies below it does."""
    digits = 3 if most < 0.1 else 2
    return percent(math.ceil(most * 10**digits - 1e-9) / 10**digits)


def most_probability(violated: int, count: int, confidence: float) -> float:
    """Upper bound of a probability of which ``violated`` of ``count`` draws came true; exact, one-sided.

    Clopper and Pearson, Biometrika 26, 404 (1934). With none of 59 it is 5 % at 95 % confidence.
    """
    return 1 - least_probability(count - violated, count, confidence)


def fewest_samples(risk: float, confidence: float) -> int:
    """Samples that can certify a risk, with no violation among them: 59 for 5 % at 95 % confidence.

    Raises RTDigitalTwinError where one of them is not between 0 and 1.
    """
    required_ratio(risk, "The risk")
    required_ratio(confidence, "The confidence")
    return max(1, math.ceil(math.log(1 - confidence) / math.log(1 - risk) - 1e-9))


def most_violations(count: int, risk: float, confidence: float) -> int:
    """How many violations among ``count`` samples still certify a risk; -1 where none does."""
    allowed = -1
    while allowed + 1 < count and most_probability(allowed + 1, count, confidence) <= risk:
        allowed += 1
    return allowed


def judge_chance(constraint: Constraint, metrics: Metrics, risk: float, confidence: float) -> Chance:
    """Judge a constraint by calibrated samples. ``risk`` is for constraints without their own.

    Raises RTDigitalTwinError where no criterion of it can be read.
    """
    allowed = risk if constraint.risk is None else constraint.risk
    read, problems = read_criteria(constraint.criteria, metrics)
    if not read:
        raise RTDigitalTwinError(" ".join(dict.fromkeys(problems)), where=constraint.label)
    accepted = [one.accepted for one in read]
    kept, within = np.maximum.reduce(accepted), np.maximum.reduce([one.met for one in read])
    least = read[int(np.argmax([one.mean() for one in accepted]))]
    criterion, count = least.criterion, kept.size
    violated = count - whole(kept)
    values = criterion.worst(np.stack([one.samples for one in least.found]))
    return Chance(
        constraint,
        count,
        violated,
        count - whole(within),
        float(1 - kept.mean()),
        most_probability(violated, count, confidence),
        confidence,
        allowed,
        criterion,
        least.value.value,
        float(np.quantile(values, 1 - allowed if criterion.upper else allowed, method="hazen")),
        all(one.is_calibrated for one in read),
    )


def percent(ratio: float) -> str:
    """To a tenth below 10 %, whole above; never rounded to certainty."""
    if 0 < ratio < 0.001:
        return "below 0.1 %"
    if 0.999 < ratio < 1:
        return "above 99.9 %"
    digits = 1 if ratio < 0.1 or ratio > 0.99 else 0
    return f"{100 * ratio:.{digits}f} %".replace(".0 %", " %")
