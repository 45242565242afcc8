"""Clinical goals: read from protocol files, judged on doses with what is known of their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh_metric import DvhMetric
from RTDigitalTwinLib.dosimetry.metric_samples import Metrics, MetricSamples
from RTDigitalTwinLib.dosimetry.protocol_file import (
    HIGHEST_DOSE_GY,
    names_of,
    read_protocol,
    reading,
    require_known,
    text_of,
)
from RTDigitalTwinLib.errors import ProtocolError, RTDigitalTwinError
from RTDigitalTwinLib.resources import resource_path

CONFIDENCE = 0.95
GOAL_FILES = "goals_*.toml"
SAME_PRESCRIPTION_RATIO = 0.02


SURE = 0.95  # a goal is called met, acceptable or violated where that is as probable


class Status(Enum):
    """What became of a goal: of a single dose what it is, of an ensemble what is probable (``likely_status``)."""

    MET = "met"
    ACCEPTABLE = "acceptable"
    VIOLATED = "violated"
    UNSURE = "unsure"
    NOT_EVALUATED = "not evaluated"


@dataclass(frozen=True)
class Criterion:
    """A limit that a metric of all ``structures`` must keep.

    Attributes
    ----------
    upper : whether the metric must stay at or below ``limit``; else at or above.
    limit, acceptable : in the metric's unit; the second is the variation accepted, None where there is none.
    """

    structures: tuple[str, ...]
    metric: DvhMetric
    upper: bool
    limit: float
    acceptable: float | None = None

    @property
    def accepted(self) -> float:
        """The variation accepted, or the limit where there is none."""
        return self.limit if self.acceptable is None else self.acceptable

    def keeps(self, values: NDArray, limit: float) -> NDArray[np.bool_]:
        return values <= limit if self.upper else values >= limit

    def kept(self, found: Sequence[MetricSamples], limit: float) -> NDArray[np.float64]:
        """(samples,) how much of each sample keeps a limit in all structures, 0..1; ``found`` are its metrics."""
        return np.minimum.reduce([one.kept(limit, upper=self.upper) for one in found])

    def worst(self, values: NDArray) -> NDArray:
        """Of several structures (structures, ...), along the first axis."""
        return values.max(axis=0) if self.upper else values.min(axis=0)

    def __str__(self) -> str:
        sign = "≤" if self.upper else "≥"
        return f"{' and '.join(self.structures)} {self.metric} {sign} {self.limit:g} {self.metric.unit}"


@dataclass(frozen=True)
class Goal:
    """Met where any of its criteria is. Priority 1 goes first."""

    label: str
    priority: int
    criteria: tuple[Criterion, ...]
    citation: str = ""

    def __str__(self) -> str:
        return " or ".join(str(criterion) for criterion in self.criteria)


@dataclass(frozen=True)
class GoalSet:
    """The goals of a protocol.

    Attributes
    ----------
    fractions : that its limits are meant for; None where it does not say.
    prescribed_gy : highest dose prescribed that it is meant for; None where it is for any.
    site : of the tumours it is for, in words; "" where it is for any.
    """

    name: str
    title: str
    citation: str
    goals: tuple[Goal, ...]
    fractions: int | None = None
    prescribed_gy: float | None = None
    site: str = ""


@dataclass(frozen=True)
class GoalChoice:
    """The protocols to judge by, with a reason for each by its name, and for those left out why."""

    sets: tuple[GoalSet, ...]
    reasons: Mapping[str, str]
    left_out: tuple[str, ...] = ()


def goals_for(known: Sequence[GoalSet], highest_gy: float | None) -> GoalChoice:
    """The protocols that fit a plan whose highest prescribed dose is ``highest_gy``; None where no dose is prescribed.

    The rule: a protocol without a dose of its own is for every plan; one with a dose is for plans within 2 % of it. The
    tumour's site is in no plan, so a protocol for one site is taken by the dose alone and the reason says so.
    """
    sets, reasons, left_out = [], {}, []
    for one in known:
        if one.prescribed_gy is None:
            reasons[one.name] = "Applied because it is for plans of any prescribed dose."
        elif highest_gy is not None and abs(highest_gy / one.prescribed_gy - 1) <= SAME_PRESCRIPTION_RATIO:
            site = f" It is a protocol for {one.site}; whether that is the site here is not known." if one.site else ""
            reasons[one.name] = f"Applied because the highest prescribed dose is {highest_gy:g} Gy.{site}"
        else:
            given = "no dose is prescribed" if highest_gy is None else f"{highest_gy:g} Gy are prescribed"
            left_out.append(f"{one.name} is not applied: it is for {one.prescribed_gy:g} Gy, and {given}.")
            continue
        sets.append(one)
    return GoalChoice(tuple(sets), reasons, tuple(left_out))


def fitting_goals(highest_gy: float | None) -> GoalChoice:
    """Of the protocols that come with the software those that fit the highest prescribed dose (``goals_for``)."""
    return goals_for([load_goals(path) for path in available_goals().values()], highest_gy)


@dataclass(frozen=True)
class CriterionValue:
    """What a criterion's metric came to: ``value`` is that of ``structure``, the worst of the criterion's."""

    criterion: Criterion
    value: float
    structure: str


@dataclass(frozen=True)
class GoalResult:
    """A goal on one dose or an ensemble.

    Attributes
    ----------
    status : of the dose, or by the probabilities (``likely_status``).
    criterion : the one it rests on: of a dose the first that holds, else the first that could be read; of an ensemble
        the one that is most probably met, to the whole percent, and of such that whose accepted variation is kept most
        probably; that alone decides where the goal is acceptable. None where none could be read.
    value : of that criterion's metric, the worst of its structures; of an ensemble of the means over the samples.
    samples : number of samples; 1 of a single dose, for which there are no probabilities.
    probability_met, probability_acceptable : that the goal is met, and that at least the accepted variation is kept
        (``MetricSamples.kept``).
    least_probability_met : that the number of samples supports with 95 % confidence (Clopper and Pearson, Biometrika
        26, 404, 1934).
    is_calibrated : whether the spread of every metric was measured; else the probabilities are too sure.
    reason : why it was not evaluated, or what of it was not.
    read : every criterion that could be read, in the goal's order; ``criterion`` is one of them.
    """

    goal: Goal
    status: Status
    criterion: Criterion | None = None
    value: float | None = None
    samples: int = 1
    probability_met: float | None = None
    probability_acceptable: float | None = None
    least_probability_met: float | None = None
    is_calibrated: bool = False
    reason: str = ""
    read: tuple[CriterionValue, ...] = ()


@dataclass(frozen=True, eq=False)
class ReadCriterion:
    """A criterion with the metrics of its structures, on one dose or an ensemble."""

    criterion: Criterion
    found: tuple[MetricSamples, ...]

    @property
    def value(self) -> CriterionValue:
        """To show."""
        nominal = [one.nominal for one in self.found]
        worst = float(self.criterion.worst(np.array(nominal)))
        return CriterionValue(self.criterion, worst, self.criterion.structures[nominal.index(worst)])

    @property
    def met(self) -> NDArray[np.float64]:
        """(samples,) how much of each keeps the limit."""
        return self.criterion.kept(self.found, self.criterion.limit)

    @property
    def accepted(self) -> NDArray[np.float64]:
        """(samples,) how much of each keeps the variation accepted, or the limit where there is none."""
        return self.criterion.kept(self.found, self.criterion.accepted)

    @property
    def is_calibrated(self) -> bool:
        return all(one.is_calibrated for one in self.found)


def read_criteria(criteria: Iterable[Criterion], metrics: Metrics) -> tuple[list[ReadCriterion], list[str]]:
    """Those that can be read, and why others cannot. ``metrics`` gives a metric of a structure; its errors are told."""
    read, problems = [], []
    for criterion in criteria:
        try:
            found = tuple(metrics(name, criterion.metric) for name in criterion.structures)
        except RTDigitalTwinError as error:
            problems.append(str(error))
            continue
        read.append(ReadCriterion(criterion, found))
    return read, problems


def evaluate_goal(goal: Goal, structures: Sequence[str], metrics: Metrics) -> GoalResult:
    """Judge a goal. ``metrics`` gives a metric of one of ``structures``; its errors become the reason."""
    absent = {c: [name for name in c.structures if name not in structures] for c in goal.criteria}
    reasons = [f"There is no structure {' or '.join(names)}." for names in absent.values() if names]
    read, problems = read_criteria([c for c in goal.criteria if not absent[c]], metrics)
    reason = " ".join(dict.fromkeys([*reasons, *problems]))
    if not read:
        return GoalResult(goal, Status.NOT_EVALUATED, reason=reason)
    values = tuple(one.value for one in read)
    count = read[0].found[0].samples.size
    if count < 2:
        status, of = _status(values)
        return GoalResult(goal, status, of.criterion, of.value, count, reason=reason, read=values)
    each_met, each_accepted = [one.met for one in read], [one.accepted for one in read]
    met, accepted = np.maximum.reduce(each_met), np.maximum.reduce([*each_met, *each_accepted])
    probability, acceptable = float(met.mean()), float(accepted.mean())
    status = likely_status(probability, acceptable)
    by_variation = status is Status.ACCEPTABLE
    likely = [
        (0.0 if by_variation else round(float(a.mean()), 2), float(b.mean()))
        for a, b in zip(each_met, each_accepted, strict=True)
    ]
    of = values[likely.index(max(likely))]
    return GoalResult(
        goal, status, of.criterion, of.value, count, probability, acceptable,
        least_probability(whole(met), count), all(one.is_calibrated for one in read), reason, values,
    )  # fmt: skip


def likely_status(met: float, acceptable: float) -> Status:
    """The word for probabilities: what is 95 % sure, and else unsure.

    Met where that is as probable; acceptable where keeping at least the accepted variation is; violated where not even
    that is kept with 95 %.
    """
    if met >= SURE:
        return Status.MET
    if acceptable >= SURE:
        return Status.ACCEPTABLE
    return Status.VIOLATED if acceptable <= 1 - SURE else Status.UNSURE


def whole(kept: NDArray) -> int:
    """Of samples that keep a limit in part (samples,) the number that do, as the binomial bound counts them.

    The fewer of those that do in more than half of their own part, and n times the probability, a half rounded down:
    of several structures each may leave a small share of another sample, of which none alone would be counted.
    """
    own, together = int((kept > 0.5 + 1e-9).sum()), math.ceil(float(kept.sum()) - 0.5 - 1e-9)
    return max(0, min(own, together))


def _status(read: Sequence[CriterionValue]) -> tuple[Status, CriterionValue]:
    """Of a single dose."""
    for status in (Status.MET, Status.ACCEPTABLE):
        for one in read:
            limit = one.criterion.limit if status is Status.MET else one.criterion.accepted
            if one.criterion.keeps(np.asarray(one.value), limit):
                return status, one
    return Status.VIOLATED, read[0]


def evaluate_goals(goals: GoalSet, structures: Sequence[str], metrics: Metrics) -> list[GoalResult]:
    """Every goal of a set, by priority; none is left out."""
    ordered = sorted(goals.goals, key=lambda goal: goal.priority)
    return [evaluate_goal(goal, structures, metrics) for goal in ordered]


def least_probability(kept: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Lower bound of a probability of which ``kept`` of ``count`` draws came true: 59 of 59 support 95 %."""
    from scipy.special import betaincinv  # only here: a prediction needs no SciPy

    return float(betaincinv(kept, count - kept + 1, 1 - confidence)) if kept else 0.0


def available_goals() -> dict[str, Path]:
    """Files of goals that come with the software, by the word that chooses them (rtog0225)."""
    folder = resource_path("Protocols")
    return {path.stem.removeprefix("goals_"): path for path in sorted(folder.glob(GOAL_FILES))}


def load_goals(path: Path) -> GoalSet:
    """Raises ProtocolError that names file and goal where something is missing, of another unit or impossible."""
    content = read_protocol(path)
    entries = content.get("goals")
    if not isinstance(entries, list) or not entries:
        raise ProtocolError("There are no goals.", where=path.name, remedy="Write each under [[goals]].")
    goals = tuple(_goal(entry, f"{path.name}, goal {k}") for k, entry in enumerate(entries, start=1))
    with reading(path.name):
        texts = [text_of(content[key]) for key in ("name", "title", "citation")]
        fractions = content.get("fractions")
        if fractions is not None and (not isinstance(fractions, int) or fractions < 1):
            raise ValueError(f"fractions is {fractions!r}")
        prescribed = content.get("prescribed_gy")
        if prescribed is not None and not 0 < float(prescribed) <= HIGHEST_DOSE_GY:
            raise ValueError(f"prescribed_gy is {prescribed!r}, which is no dose in Gy")
        site = text_of(content["site"]) if "site" in content else ""
        known = {"name", "title", "citation", "fractions", "prescribed_gy", "site", "dose_unit", "goals"}
        require_known(content, known)
    prescribed_gy = None if prescribed is None else float(prescribed)
    return GoalSet(texts[0], texts[1], texts[2], goals, fractions, prescribed_gy, site)


def _goal(entry: Mapping[str, Any], where: str) -> Goal:
    with reading(where):
        require_known(entry, {"label", "priority", "citation", "criteria"})
        priority = entry["priority"]
        if not isinstance(priority, int) or priority < 1:
            raise ValueError(f"priority is {priority!r}; 1 goes first")
        criteria = tuple(read_criterion(criterion, where) for criterion in entry["criteria"])
        if not criteria:
            raise ValueError("it has no criteria")
        return Goal(text_of(entry["label"]), priority, criteria, str(entry.get("citation", "")))


def read_criterion(entry: Mapping[str, Any], where: str) -> Criterion:
    """A criterion of a protocol file. Raises ProtocolError, or what ``protocol_file.reading`` turns into one."""
    require_known(entry, {"structures", "metric", "at_most", "at_least", "acceptable", "unit"})
    try:
        metric = DvhMetric.parse(text_of(entry["metric"]))
    except RTDigitalTwinError as error:
        raise ProtocolError(error.what, where=where, remedy=error.remedy) from error
    if (unit := entry["unit"]) != metric.unit:
        raise ProtocolError(f"{metric} is in {metric.unit}, but its limit is given in {unit!r}.", where=where)
    if ("at_most" in entry) == ("at_least" in entry):
        raise ValueError("write either at_most or at_least")
    upper = "at_most" in entry
    limit = _limit(entry["at_most" if upper else "at_least"], metric, where)
    acceptable = _limit(entry["acceptable"], metric, where) if "acceptable" in entry else None
    if acceptable is not None and (acceptable < limit if upper else acceptable > limit):
        raise ValueError(f"the accepted variation {acceptable:g} is stricter than the limit {limit:g}")
    return Criterion(names_of(entry["structures"]), metric, upper, limit, acceptable)


def _limit(value: object, metric: DvhMetric, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is no limit")
    if metric.unit == "Gy" and value > HIGHEST_DOSE_GY:
        raise ProtocolError(f"{metric} {value:g} Gy is no limit in Gy.", where=where, remedy="Is it in cGy?")
    if metric.unit == "%" and value > 100:
        raise ProtocolError(f"{metric} {value:g} %: a volume cannot exceed 100 %.", where=where)
    return float(value)
