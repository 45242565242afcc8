"""Chance constraints: how likely an action violates a limit, and what so many samples can certify of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.decision.protocol import Constraint, required_ratio
from RTDigitalTwinLib.dosimetry.goals import Criterion, Metrics, least_probability
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.words import counted


@dataclass(frozen=True)
class Chance:
    """One constraint on one action.

    Attributes
    ----------
    samples, violated : number of samples, and of those beyond the variation accepted (the limit, where there is none).
    beyond_limit : number beyond the limit itself.
    most_probability : upper bound of the violation's probability that the samples support (Clopper and Pearson).
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
    most_probability: float
    risk: float
    criterion: Criterion
    expected: float
    value_at_risk: float
    is_calibrated: bool

    @property
    def probability(self) -> float:
        """Share of the samples that violate it."""
        return self.violated / self.samples

    @property
    def is_kept(self) -> bool:
        """Whether the samples certify it: the bound is within the risk, and the spread is a measured one."""
        return self.is_calibrated and self.most_probability <= self.risk

    @property
    def excess_ratio(self) -> float:
        """How many times the risk the bound is; above 1 it is not certified."""
        return self.most_probability / self.risk

    @property
    def excess(self) -> float:
        """How far the value at risk is beyond what is accepted, in its metric's unit; negative where it is within."""
        beyond = self.value_at_risk - self.criterion.accepted
        return beyond if self.criterion.upper else -beyond

    @property
    def words(self) -> str:
        """One sentence: violated how often, how likely at most, allowed how much, and by how much it misses."""
        unit = self.criterion.metric.unit
        said = (
            f"{self.constraint}: violated in {self.violated} of {counted(self.samples, 'sample')}, with a probability "
            f"of at most {percent(self.most_probability)} where {percent(self.risk)} is allowed; "
            f"expected {self.expected:.1f} {unit}, {'at most' if self.criterion.upper else 'at least'} "
            f"{self.value_at_risk:.1f} {unit} with {percent(1 - self.risk)}"
        )
        if self.excess > 0:
            said += f", {self.excess:.1f} {unit} beyond what is accepted"
        if not self.is_calibrated:
            said += "; the spread of this is not calibrated, and nothing can be certified"
        return f"{said}."


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
    """Judge a constraint on calibrated samples. ``risk`` is for constraints without their own.

    Raises RTDigitalTwinError where no criterion of it can be read.
    """
    allowed = risk if constraint.risk is None else constraint.risk
    read: list[tuple[Criterion, NDArray, float, bool]] = []
    problems = []
    for criterion in constraint.criteria:
        try:
            found = [metrics(name, criterion.metric) for name in criterion.structures]
        except RTDigitalTwinError as error:
            problems.append(str(error))
            continue
        values = criterion.worst(np.stack([f.samples for f in found]))
        expected = float(criterion.worst(np.array([f.nominal for f in found])))
        read.append((criterion, values, expected, all(f.is_calibrated for f in found)))
    if not read:
        raise RTDigitalTwinError(" ".join(dict.fromkeys(problems)), where=constraint.label)
    kept = np.logical_or.reduce([c.keeps(values, c.accepted) for c, values, *_ in read])
    within = np.logical_or.reduce([c.keeps(values, c.limit) for c, values, *_ in read])
    criterion, values, expected, _ = max(read, key=lambda row: int(row[0].keeps(row[1], row[0].accepted).sum()))
    count, violated = kept.size, int((~kept).sum())
    return Chance(
        constraint,
        count,
        violated,
        int((~within).sum()),
        most_probability(violated, count, confidence),
        allowed,
        criterion,
        expected,
        float(np.quantile(values, 1 - allowed if criterion.upper else allowed)),
        all(calibrated for *_, calibrated in read),
    )


def percent(ratio: float) -> str:
    """To a tenth below 10 %, whole above; never rounded to certainty."""
    if 0 < ratio < 0.001:
        return "below 0.1 %"
    if 0.999 < ratio < 1:
        return "above 99.9 %"
    digits = 1 if ratio < 0.1 or ratio > 0.99 else 0
    return f"{100 * ratio:.{digits}f} %".replace(".0 %", " %")
