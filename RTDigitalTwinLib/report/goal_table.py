"""Clinical goals as rows: what the report, the command line and the CSV file all show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, StructureDose
from RTDigitalTwinLib.dosimetry.goals import (
    SURE,
    Criterion,
    CriterionValue,
    Goal,
    GoalChoice,
    GoalResult,
    GoalSet,
    Status,
    evaluate_goals,
    fitting_goals,
)
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.dosimetry.metric_samples import Metrics, MetricSamples
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.words import counted

# A sign beside every word, so that a row reads without its colour.
SIGNS = {
    Status.MET: "✓",
    Status.ACCEPTABLE: "~",
    Status.VIOLATED: "✗",
    Status.UNSURE: "?",
    Status.NOT_EVALUATED: "–",
}
# A band of a volume that is as wide is not told. On 17 validation patients 62 of 64 bands of the parotids' V20 and V30
# were narrower; 36 of 44 of the targets' coverage were not, which in 40 of the 44 plans lay in 70 to 98 %.
UNINFORMATIVE_PERCENT = 50.0
NOT_INFORMATIVE = "not informative"
UNINFORMATIVE_RULE = (
    f"{NOT_INFORMATIVE}: the band is {UNINFORMATIVE_PERCENT:g} percentage points wide or more, so that it leaves half "
    "of 0 to 100 % open, as it does where a DVH falls steeply about the dose that is asked for"
)
UNCALIBRATED = "*"  # after a probability whose samples have no calibrated spread
UNCALIBRATED_NOTE = f"{UNCALIBRATED} The spread is not calibrated here and the probability too sure."
# What ``_percent_words`` does, wherever its words are shown.
ROUNDING = "Probabilities are in whole percent, rounded towards 50 %, so that none reads surer than it is."
# What the words of a prediction's goals mean (``likely_status``).
RULE = (
    f"Met: with a probability of at least {100 * SURE:g} %. Acceptable: at least the accepted variation is kept with "
    f"{100 * SURE:g} %. Violated: not even that, with {100 * SURE:g} %. Unsure: everything between. {ROUNDING}"
)

Bands = Callable[[str, DvhMetric], tuple[float, float]]


def is_informative(low: float, high: float, unit: str) -> bool:
    """Whether a band leaves less than half of a volume's 0 to 100 % open; bands of doses always tell something."""
    return unit != "%" or high - low < UNINFORMATIVE_PERCENT


@dataclass(frozen=True)
class GoalValue:
    """What one alternative of a goal came to.

    Attributes
    ----------
    criterion : the alternative in words.
    of : what the value is of as far as the goal leaves that open, such as ``Parotid_L`` where either gland will do, and
        ``D1cc`` where the maximum or D1cc will do; "" where the goal has one criterion of one structure.
    """

    criterion: str
    of: str
    value: float
    unit: str

    @property
    def number_words(self) -> str:
        return f"{self.value:.1f} {self.unit}"

    def __str__(self) -> str:
        return f"{self.number_words} ({self.of})" if self.of else self.number_words


@dataclass(frozen=True)
class GoalRow:
    """One goal of one protocol.

    Attributes
    ----------
    goal : its criteria in words; ``criterion`` the one that ``value`` and ``status`` rest on, and ``limit`` its limit
        in words, with the variation accepted.
    low, high : band of the value, of several structures the worst of their limits; None for a single dose.
    probability_met, probability_acceptable : 0..1; None for a single dose.
    least_probability_met : that the samples support with 95 % confidence.
    calibrated : whether the probabilities are of calibrated samples; None for a single dose.
    note : what could not be evaluated, and why.
    status : of a single dose what it is, else by the probabilities (``RULE``).
    value_of : of which of the goal's alternatives and structures the value is (``GoalValue.of``).
    alternatives : of the goal that could be read, in its order.
    """

    protocol: str
    priority: int
    label: str
    goal: str
    criterion: str
    limit: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    status: str
    sign: str
    probability_met: float | None
    least_probability_met: float | None
    probability_acceptable: float | None
    calibrated: bool | None
    note: str
    value_of: str = ""
    alternatives: tuple[GoalValue, ...] = ()

    @property
    def outcome(self) -> str:
        """Sign and word."""
        return f"{self.sign} {self.status}"

    @property
    def number_words(self) -> str:
        return "" if self.value is None else f"{self.value:.1f} {self.unit}"

    @property
    def value_words(self) -> str:
        """The number, with what it is of where the goal leaves that open: ``24.6 Gy (Parotid_L)``."""
        return f"{self.number_words} ({self.value_of})" if self.value_of else self.number_words

    @property
    def other_words(self) -> str:
        """The alternatives that the goal is not judged by, with their values; "" where there are none."""
        others = [a for a in self.alternatives if a.criterion != self.criterion]
        return "; ".join(f"{a.criterion}: {a.number_words}" for a in others)

    @property
    def band_words(self) -> str:
        if self.low is None or self.high is None:
            return ""
        informative = is_informative(self.low, self.high, self.unit)
        return f"{self.low:.1f} to {self.high:.1f} {self.unit}" if informative else NOT_INFORMATIVE

    @property
    def probability_words(self) -> str:
        """In whole percent, never rounded to certainty or over the bounds of a word; marked where not calibrated.

        Of a goal that is not called met, with the probability that at least the accepted variation is kept.
        """
        if self.probability_met is None or self.probability_acceptable is None:
            return ""
        met, acceptable = self.probability_met, self.probability_acceptable
        words, accepted = (_percent_words(ratio, bool(self.calibrated)) for ratio in (met, acceptable))
        if accepted != words and self.status != Status.MET.value:
            words = f"{words} ({accepted} accepted)"
        return words if self.calibrated else f"{words} {UNCALIBRATED}"

    @property
    def support_words(self) -> str:
        """The least probability that the samples support, in whole percent, rounded down."""
        if self.least_probability_met is None:
            return ""
        percent = math.floor(100 * self.least_probability_met + 1e-9)
        return f"at least {percent} %" if percent else "nothing"


@dataclass(frozen=True)
class GoalTable:
    """The rows of a protocol with what must be said of it."""

    title: str
    citation: str
    rows: tuple[GoalRow, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the protocol."""
        return self.title.partition(":")[0]

    @property
    def not_met(self) -> tuple[GoalRow, ...]:
        """The goals that were evaluated and cannot be called met."""
        return tuple(row for row in self.rows if row.status not in (Status.MET.value, Status.NOT_EVALUATED.value))

    @property
    def words(self) -> str:
        """How many goals ended how, such as ``5 met, 1 violated``."""
        counted = {s: sum(row.status == s.value for row in self.rows) for s in Status}
        return ", ".join(f"{n} {s.value}" for s, n in counted.items() if n)


def goal_choice(patient: Patient, chosen: Sequence[GoalSet] | None = None) -> GoalChoice:
    """Those chosen; by default those that come with the software and fit the patient's prescription (``goals_for``)."""
    if chosen is not None:
        return GoalChoice(tuple(chosen), {one.name: "Applied because it was asked for." for one in chosen})
    return fitting_goals(max(target_levels_gy(patient).values(), default=None))


def goal_tables(patient: Patient, metrics: Metrics, choice: GoalChoice, bands: Bands | None = None) -> list[GoalTable]:
    """Judge every goal of the protocols chosen, each with its reason among the notes; ``bands`` are of the metrics."""
    fractions = patient.plan.prescription.fractions if patient.plans else None
    tables = []
    for goals in choice.sets:
        results = evaluate_goals(goals, list(patient.structures), metrics)
        rows = tuple(goal_row(result, goals.name, bands) for result in results)
        notes = [choice.reasons[goals.name]]
        if goals.fractions is not None and fractions != goals.fractions:
            given = "an unknown number" if fractions is None else str(fractions)
            notes.append(f"The limits are meant for {counted(goals.fractions, 'fraction')}; the plan has {given}.")
        tables.append(GoalTable(f"{goals.name}: {goals.title}", goals.citation, rows, tuple(notes)))
    return tables


def goal_row(result: GoalResult, protocol: str, bands: Bands | None = None) -> GoalRow:
    """A judged goal of a protocol as a row."""
    criterion = result.criterion
    single = result.probability_met is None
    low, high = (None, None) if criterion is None or bands is None else _band(criterion, bands)
    alternatives = tuple(
        GoalValue(str(one.criterion), _of(result.goal, one), one.value, one.criterion.metric.unit)
        for one in result.read
    )
    of = next((a.of for a, one in zip(alternatives, result.read, strict=True) if one.criterion is criterion), "")
    return GoalRow(
        protocol,
        result.goal.priority,
        result.goal.label,
        str(result.goal),
        "" if criterion is None else str(criterion),
        "" if criterion is None else _limit_words(criterion),
        result.value,
        low,
        high,
        "" if criterion is None else criterion.metric.unit,
        result.status.value,
        SIGNS[result.status],
        result.probability_met,
        result.least_probability_met,
        result.probability_acceptable,
        None if single else result.is_calibrated,
        result.reason,
        of,
        alternatives,
    )


def bands_of_prediction(prediction: DoseEnsemble, level: float = 0.95) -> Bands | None:
    """Central bands of a prediction's metrics, as the table of metrics has them; None where there is no spread."""
    if not prediction.has_spread:
        return None

    def read(name: str, metric: DvhMetric) -> tuple[float, float]:
        low, high = prediction.metric(name, str(metric)).band(level)
        return float(low), float(high)

    return cache(read)


def metrics_of_dose(dose: Volume, patient: Patient) -> Metrics:
    """Metrics of a single dose, each structure taken once."""
    inside: dict[str, StructureDose] = {}

    def read(name: str, metric: DvhMetric) -> MetricSamples:
        if name not in inside:
            inside[name] = structure_dose_of(dose, patient.structure(name))
        values = np.asarray(inside[name].metric(metric), float)
        return MetricSamples(float(values[0]), values)

    return read


def _percent_words(ratio: float, calibrated: bool) -> str:
    """A calibrated probability is never certainty; a share of the samples may be none or all of them."""
    if ratio < 0.01 and (ratio or calibrated):
        return "below 1 %"
    if ratio > 0.99 and (ratio < 1 or calibrated):
        return "above 99 %"
    # Towards 50 %, for a word and the number beside it must agree: 94.8 % is no 95 %.
    return f"{math.floor(100 * ratio + 1e-9) if ratio > 0.5 else math.ceil(100 * ratio - 1e-9)} %"


def _of(goal: Goal, one: CriterionValue) -> str:
    """What a value is of, as far as the goal's words leave it open."""
    criterion = one.criterion
    structures = " and ".join(criterion.structures)
    parts = []
    if len({other.structures for other in goal.criteria}) > 1 or len(criterion.structures) > 1:
        parts.append(one.structure)
    if len({str(other.metric) for other in goal.criteria}) > 1:
        parts.append(str(criterion.metric))
    words = " ".join(parts)
    return f"{words}, the worst of {structures}" if len(criterion.structures) > 1 else words


def _band(criterion: Criterion, bands: Bands) -> tuple[float, float]:
    limits = np.array([bands(name, criterion.metric) for name in criterion.structures])
    low, high = criterion.worst(limits)
    return float(low), float(high)


def _limit_words(criterion: Criterion) -> str:
    limit = f"{'≤' if criterion.upper else '≥'} {criterion.limit:g} {criterion.metric.unit}"
    if criterion.acceptable is None:
        return limit
    return f"{limit} ({criterion.acceptable:g} {criterion.metric.unit} accepted)"
