"""Two doses of one patient side by side: difference, gamma, DVH metrics, goals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from RTDigitalTwinLib.dosimetry.comparison import DoseDifference, Gamma, GammaCriteria, dose_difference, gamma_index
from RTDigitalTwinLib.dosimetry.goals import GoalSet
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.report.dose_review import DoseReview, review_dose
from RTDigitalTwinLib.report.goal_table import GoalRow, GoalValue


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of both doses; None where a dose does not cover the structure."""

    structure: str
    metric: str
    unit: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """B minus A."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class ComparedValue:
    """One alternative of a goal on both doses; None where a dose does not cover it.

    Attributes
    ----------
    criterion : the alternative in words.
    decides : the doses whose outcome rests on it: ``A``, ``B`` or ``A and B``.
    """

    criterion: str
    a: GoalValue | None
    b: GoalValue | None
    decides: str


@dataclass(frozen=True)
class ComparedGoal:
    """A goal on both doses: how it ended, and every alternative that decides one of them, with the values of both."""

    protocol: str
    goal: str
    a_status: str
    b_status: str
    values: tuple[ComparedValue, ...]


@dataclass(frozen=True, eq=False)
class DoseComparison:
    """Dose B against dose A."""

    difference: DoseDifference
    gamma: Gamma
    metrics: tuple[ComparedMetric, ...]
    goals: tuple[ComparedGoal, ...]
    notes: tuple[str, ...]


def compare_doses(
    patient: Patient,
    a: Volume,
    b: Volume,
    criteria: GammaCriteria | None = None,
    goals: Sequence[GoalSet] | None = None,
) -> DoseComparison:
    """Compare two doses in the structures of one patient; both are put on the CT's grid for the DVHs.

    Difference and gamma are on the grid of A. Raises GeometryError or PatientDataError where they cannot be compared.
    """
    difference = dose_difference(a, b)
    gamma = gamma_index(a, b, criteria, passing_only=True)
    reviews = [review_dose(patient, dose.resampled(patient.ct.grid), goals, models=()) for dose in (a, b)]
    labels = [f"{name}: " for name in "AB"]
    shared = set(reviews[0].notes) & set(reviews[1].notes)
    notes = [note for note in reviews[0].notes if note in shared]
    notes += [f"{k}{n}" for k, r in zip(labels, reviews, strict=True) for n in r.notes if n not in shared]
    if gamma.left_out_ratio > 0:
        notes.append(f"B is not known at {gamma.left_out_ratio:.1%} of A's voxels above the cutoff.")
    return DoseComparison(difference, gamma, _metrics(*reviews), _goals(*reviews), tuple(notes))


def _metrics(a: DoseReview, b: DoseReview) -> tuple[ComparedMetric, ...]:
    values = [{(row.structure, row.metric): row for row in review.metrics} for review in (a, b)]
    rows = []
    for structure, metric in dict.fromkeys([*values[0], *values[1]]):
        pair = [one.get((structure, metric)) for one in values]
        unit = next(row.unit for row in pair if row is not None)
        first, second = (None if row is None else row.value for row in pair)
        rows.append(ComparedMetric(structure, metric, unit, first, second))
    return tuple(rows)


def _goals(a: DoseReview, b: DoseReview) -> tuple[ComparedGoal, ...]:
    rows = []
    for first, second in zip(a.goals, b.goals, strict=True):
        for x, y in zip(first.rows, second.rows, strict=True):
            decisive = dict.fromkeys(row.criterion for row in (x, y) if row.criterion)
            values = tuple(_value(criterion, x, y) for criterion in decisive)
            rows.append(ComparedGoal(x.protocol, x.goal, x.status, y.status, values))
    return tuple(rows)


def _value(criterion: str, a: GoalRow, b: GoalRow) -> ComparedValue:
    """One alternative as both doses have it: never A's value of one beside B's of another."""
    first, second = (next((v for v in row.alternatives if v.criterion == criterion), None) for row in (a, b))
    decides = " and ".join(name for name, row in zip("AB", (a, b), strict=True) if row.criterion == criterion)
    return ComparedValue(criterion, first, second, decides)
