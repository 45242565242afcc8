"""The numbers of a prediction as rows: what the report, the command line and the CSV files all show."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.goals import GoalChoice, GoalSet
from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.dosimetry.openkbp_score import PatientScore, score_patient
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.outcome import BesideWords
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.report.biology_table import BiologyTable, PredictedBiologyRow, biology_of_prediction
from RTDigitalTwinLib.report.deciding import Deciding
from RTDigitalTwinLib.report.goal_table import (
    GoalRow,
    GoalTable,
    bands_of_prediction,
    goal_choice,
    goal_tables,
    is_informative,
)
from RTDigitalTwinLib.report.observing import Observing
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.ensemble import fewest_simultaneous
from RTDigitalTwinLib.solver.reading import Reading

CSV_DECIMALS = 6


@dataclass(frozen=True)
class MetricRow:
    """One DVH metric of one structure.

    Attributes
    ----------
    metric : D95, D0.1cc, V20 or mean.
    unit : Gy, or % of the structure's volume.
    mean : over the samples; of the single dose in deterministic mode.
    low, high : limits of the band; None where there are fewer than two samples.
    reference : of the plan's dose; None where that is not known all over the structure.
    """

    structure: str
    metric: str
    unit: str
    mean: float
    low: float | None
    high: float | None
    reference: float | None

    @property
    def difference(self) -> float | None:
        """Predicted mean minus reference."""
        return None if self.reference is None else self.mean - self.reference

    @property
    def covers_reference(self) -> bool | None:
        """Whether the band holds the reference; None without a band or a reference."""
        if self.low is None or self.high is None or self.reference is None:
            return None
        return self.low <= self.reference <= self.high

    @property
    def is_informative(self) -> bool | None:
        """Whether the band says anything: not where it leaves half of 0 to 100 % open. None without a band."""
        if self.low is None or self.high is None:
            return None
        return is_informative(self.low, self.high, self.unit)


@dataclass(frozen=True)
class DvhRow:
    """One point of a structure's cumulative DVH: share of its volume (0..1) receiving at least ``dose_gy``.

    ``volume_low`` and ``volume_high`` are the band point by point, None where there are fewer than two samples;
    ``whole_low`` and ``whole_high`` the one for the whole curve at once, None where the samples are too few for it.
    """

    structure: str
    dose_gy: float
    volume_mean: float
    volume_low: float | None
    volume_high: float | None
    whole_low: float | None
    whole_high: float | None


@dataclass(frozen=True, eq=False)
class Findings:
    """A prediction with the numbers that every table shows, each worked out once.

    Attributes
    ----------
    level : of the band.
    more_notes : for the user to read, beside what the patient's reader noticed.
    chosen_goals : protocols to judge by; None for those that fit the prescription.
    observing : what was observed, of a prediction after it.
    deciding : a ranking of actions, of the prediction with the one it shows.
    """

    prediction: DoseEnsemble
    level: float = 0.95
    more_notes: tuple[str, ...] = ()
    chosen_goals: tuple[GoalSet, ...] | None = None
    observing: Observing | None = None
    deciding: Deciding | None = None

    @property
    def before(self) -> DoseEnsemble | None:
        """The prediction to set beside it: before observing, or if nothing is changed; None where there is none."""
        if self.deciding is not None:
            return self.deciding.before
        return None if self.observing is None else self.observing.before

    @property
    def words(self) -> BesideWords:
        """What to call it and the one beside it."""
        if self.deciding is not None:
            return BesideWords(
                f"with action {self.deciding.shown.action.name}", "if nothing is changed", "Change by the action"
            )
        return BesideWords("after observing", "before observing", "Change by observing")

    @property
    def dose_words(self) -> str:
        """What the dose is, of an action's or of one that stands beside it; "" of a plain prediction."""
        if self.deciding is None:
            return ""
        return f"predicted {self.words.before if self.before is None else self.words.now}, not delivered"

    @property
    def simulated(self) -> bool:
        """Whether observations in it stand in for measurements."""
        return any(one is not None and one.simulated for one in (self.observing, self.deciding))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must see."""
        partly: tuple[str, ...] = ()
        if self.score is not None and self.score.known_ratio < 1:
            partly = (
                f"The reference dose is known in {100 * self.score.known_ratio:.1f} % of the volume that can receive "
                "dose: scores are of that part, and structures beyond it have no reference.",
            )
        return (*self.prediction.patient.warnings, *self.more_notes, *partly)

    @cached_property
    def rows(self) -> tuple[MetricRow, ...]:
        return tuple(metric_rows(self.prediction, self.level))

    @cached_property
    def rows_before(self) -> tuple[MetricRow, ...]:
        """The same metrics of the prediction beside it; none where there is none."""
        return () if self.before is None else tuple(metric_rows(self.before, self.level))

    @cached_property
    def goals(self) -> tuple[GoalTable, ...]:
        """Clinical goals of the protocols asked for; by default of those that fit the prescription."""
        metrics, bands = Reading(self.prediction).metric, bands_of_prediction(self.prediction, self.level)
        return tuple(goal_tables(self.prediction.patient, metrics, self.goal_choice, bands))

    @cached_property
    def goal_choice(self) -> GoalChoice:
        """Which protocols, and why."""
        return goal_choice(self.prediction.patient, self.chosen_goals)

    @cached_property
    def biology(self) -> BiologyTable:
        """TCP and NTCP of the models that come with the software."""
        return biology_of_prediction(self.prediction, self.level)

    @cached_property
    def score(self) -> PatientScore | None:
        """Against the plan's dose, where it is known; None where it is known in no structure."""
        try:
            return score_patient(self.prediction.patient, self.prediction.mean.values)
        except PatientDataError:
            return None


def ordered_structures(patient: Patient) -> tuple[Structure, ...]:
    """Structures as tables and charts list them: targets from the highest dose level down, then the others."""
    levels = target_levels_gy(patient)
    targets = sorted(patient.targets.values(), key=lambda target: -levels.get(target.name, 0.0))
    others = [s for s in patient.structures.values() if s.kind is not StructureKind.TARGET]
    return (*targets, *others)


def metric_rows(prediction: DoseEnsemble, level: float = 0.95) -> list[MetricRow]:
    """Metrics of every structure with the central band at ``level``, calibrated where that was measured."""
    patient = prediction.patient
    levels = target_levels_gy(patient)
    plan_dose = patient.plan.dose if patient.plans else None
    rows = []
    for structure in ordered_structures(patient):
        sampled = prediction.structure_dose(structure.name)
        planned = covered_dose_of(plan_dose, structure)
        for name in metrics_of(structure, levels.get(structure.name)):
            metric = DvhMetric.parse(name)
            ensemble = prediction.metric(structure.name, name, sampled)
            low, high = (float(v) for v in ensemble.band(level)) if prediction.has_spread else (None, None)
            reference = None if planned is None else _known(float(planned.metric(metric)[0]))
            rows.append(MetricRow(structure.name, name, metric.unit, float(ensemble.mean), low, high, reference))
    return rows


def dvh_rows(prediction: DoseEnsemble, level: float = 0.95) -> list[DvhRow]:
    """Cumulative DVH of every structure, 0.1 Gy apart, with the pointwise and the simultaneous band at ``level``."""
    rows = []
    for structure in ordered_structures(prediction.patient):
        curves = prediction.dvh(structure.name)
        nothing = [None] * len(curves.dose_gy)
        limits: list[Sequence[float | None]] = [nothing] * 4
        if prediction.has_spread:
            limits[:2] = [limit.tolist() for limit in curves.band(level)]
        if prediction.count >= fewest_simultaneous(level):
            limits[2:] = [limit.tolist() for limit in curves.band(level, simultaneous=True)]
        columns = zip(curves.dose_gy.tolist(), curves.mean.tolist(), *limits, strict=True)
        rows += [DvhRow(structure.name, *column) for column in columns]
    return rows


def write_metrics_csv(path: Path, rows: Iterable[MetricRow], dose: str = "") -> None:
    """Write structure, metric, unit, mean, low, high, reference. A cell is empty where there is nothing to claim.

    ``dose`` says in every row of what dose it is, in this table and the others; without it there is no such column.
    Raises OutputError where it cannot be written.
    """
    write_rows(path, MetricRow, rows, dose)


def write_goals_csv(path: Path, tables: Iterable[GoalTable], dose: str = "") -> None:
    """Write a row for every goal of every protocol. Raises OutputError where it cannot be written."""
    write_rows(path, GoalRow, [row for table in tables for row in table.rows], dose)


def write_biology_csv(path: Path, table: BiologyTable, dose: str = "") -> None:
    """Write a row for every endpoint. Raises OutputError where it cannot be written."""
    write_rows(path, PredictedBiologyRow, table.rows, dose)


def write_dvh_csv(path: Path, prediction: DoseEnsemble, level: float = 0.95, dose: str = "") -> None:
    """Write structure, dose_gy, volume_mean, volume_low, volume_high, whole_low, whole_high; volumes as shares in 0..1.

    The last two are the limits that hold whole curves; volume_low and volume_high hold them point by point. Limits stay
    empty where the samples are too few: one dose says nothing of its spread.
    Raises OutputError where it cannot be written.
    """
    write_rows(path, DvhRow, dvh_rows(prediction, level), dose)


def write_rows(path: Path, row_type: type, rows: Iterable[Any], dose: str = "") -> None:
    """Write dataclasses of one type as CSV, a column a field; a cell is empty where there is nothing to claim.

    With ``dose`` a first column says in every row of what dose it is.
    Raises OutputError where it cannot be written.
    """
    names = [field.name for field in fields(row_type)]
    with whole_file(path) as aside, aside.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        heading, of = (["dose"], [dose]) if dose else ([], [])
        writer.writerow([*heading, *names])
        writer.writerows([*of, *(_cell(getattr(row, name)) for name in names)] for row in rows)


def _cell(value: str | float | tuple[object, ...] | None) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return "; ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{round(value, CSV_DECIMALS) + 0.0:.10g}"  # + 0.0 turns a negative zero positive


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
