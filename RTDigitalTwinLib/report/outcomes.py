"""A prediction's findings as the outcome that is shown of it."""

from __future__ import annotations

import numpy as np

from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.outcome import (
    ABSOLUTE,
    BAND_LEVEL,
    BAND_LEVELS,
    BEFORE,
    BEFORE_COLUMN,
    CHANGE,
    DIFFERENCE,
    DOSE_COLUMN,
    MEAN,
    REFERENCE_COLUMN,
    STD,
    VOLUME_COLUMN,
    WIDTH,
    Outcome,
    Table,
    Values,
    band_columns,
)
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.report.deciding import GAIN, NO_BAND, ORDER
from RTDigitalTwinLib.report.goal_table import RULE, UNCALIBRATED_NOTE, GoalRow, GoalTable
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

UNKNOWN_PRESCRIPTION_GY = 70.0
_OBSERVED = (("Observed", "observed"), ("Expected before", "before"), ("Expected after", "after"))


def outcome_of(findings: Findings, progress: Progress = silent, *, device: str = "") -> Outcome:
    """Everything that is shown of a prediction; ``device`` is what computed it."""
    prediction = findings.prediction
    patient = prediction.patient
    progress(0.0, "tables")
    return Outcome(
        pseudonym=patient.pseudonym,
        volumes=_volumes(findings),
        shown=patient.dose_mask.mask,
        curves=_curves(findings, progress),
        volume_cc={name: structure.volume_cc for name, structure in patient.structures.items()},
        metrics=_metrics(prediction),
        goals=_goals(findings),
        observations=_observations(findings),
        compared=_compared(findings),
        ranking=_ranking(findings),
        beside=None if findings.before is None and findings.observing is None else findings.words,
        highest_gy=patient.plan.prescription.highest_gy if patient.plans else UNKNOWN_PRESCRIPTION_GY,
        band_words=prediction.band_words(BAND_LEVEL) if prediction.has_spread else "",
        is_calibrated=prediction.is_calibrated,
        samples=prediction.count,
        seed=prediction.seed,
        weights_sha256=prediction.weights_sha256,
        device=device,
        notes=findings.notes,
        action="" if findings.deciding is None else findings.deciding.shown.action.name,
        decided="" if findings.deciding is None else findings.deciding.words,
        outcomes=() if findings.observing is None else tuple(row.outcome for row in findings.observing.rows),
    )


def _volumes(findings: Findings) -> dict[str, Volume]:
    prediction = findings.prediction
    volumes = {MEAN: prediction.mean}
    if prediction.has_spread:
        volumes[STD] = prediction.std
    if prediction.is_calibrated:
        volumes[WIDTH] = prediction.half_width(BAND_LEVEL)
    patient = prediction.patient
    reference = patient.plan.dose if patient.plans else None
    if reference is not None:
        signed = prediction.mean.minus(reference, Quantity.DOSE_DIFFERENCE_GY)
        volumes[DIFFERENCE] = signed
        volumes[ABSOLUTE] = Volume(abs(signed.values), signed.grid, Quantity.DOSE_DIFFERENCE_GY)
    if findings.before is not None:
        volumes[BEFORE] = findings.before.mean
        volumes[CHANGE] = prediction.mean.minus(findings.before.mean, Quantity.DOSE_DIFFERENCE_GY)
    return volumes


def _curves(findings: Findings, progress: Progress) -> dict[str, Table]:
    prediction, before = findings.prediction, findings.before
    patient = prediction.patient
    reference = patient.plan.dose if patient.plans else None
    curves = {}
    for row, name in enumerate(patient.structures):
        progress(row / len(patient.structures), f"dose-volume histogram of {name}")
        dvh = prediction.dvh(name)
        columns: dict[str, Values] = {DOSE_COLUMN: dvh.dose_gy, VOLUME_COLUMN: 100 * dvh.mean}
        if prediction.has_spread:
            for level in (BAND_LEVEL, *(level for level in BAND_LEVELS if level != BAND_LEVEL)):
                titles = band_columns(level)
                columns |= {title: 100 * limit for title, limit in zip(titles, dvh.band(level), strict=True)}
        dose = covered_dose_of(reference, patient.structures[name])
        if dose is not None:
            columns[REFERENCE_COLUMN] = 100 * np.asarray(dose.volume_at_dose_ratio(dvh.dose_gy)[0])
        if before is not None:
            earlier = before.dvh(name)
            columns[BEFORE_COLUMN] = 100 * np.interp(dvh.dose_gy, earlier.dose_gy, earlier.mean, right=0.0)
        curves[name] = Table(columns)
    return curves


def _metrics(prediction: DoseEnsemble) -> Table:
    structures = prediction.patient.structures
    rows = [_metric_row(prediction, structure) for structure in structures.values()]
    columns: dict[str, Values] = {"Structure": tuple(structures)}
    return Table(columns | {title: np.array([row[title] for row in rows]) for title in (rows[0] if rows else ())})


def _metric_row(prediction: DoseEnsemble, structure: Structure) -> dict[str, float]:
    """The columns of one structure: the doses of all its voxels in all samples are held for one at a time."""
    name = structure.name
    dose = prediction.structure_dose(name)
    mean = prediction.metric(name, "mean", dose)
    row = {
        "Volume (cc)": structure.volume_cc,
        "Mean dose (Gy)": float(mean.mean),
        "Min dose (Gy)": float(dose.min_gy().mean()),
        "Max dose (Gy)": float(dose.max_gy().mean()),
    }
    row |= {f"{metric} (Gy)": float(prediction.metric(name, metric, dose).mean) for metric in ("D95", "D2")}
    if prediction.has_spread:
        low, high = mean.band(BAND_LEVEL)
        row |= {"Mean dose band low (Gy)": float(low), "Mean dose band high (Gy)": float(high)}
    return row


def _goals(findings: Findings) -> Table:
    """Every goal of every protocol as a row of words, as the report has them; its description says how to read it."""
    tables = findings.goals
    rows = [row for table in tables for row in table.rows]

    def words(of: str) -> tuple[str, ...]:
        return tuple(str(getattr(row, of)) for row in rows)

    columns: dict[str, Values] = {
        "Outcome": words("outcome"),
        "Goal": words("goal"),
        "Limit": words("limit"),
        "Value": words("value_words"),
    }
    if any(row.band_words for row in rows):
        columns["95 % band"] = words("band_words")
    if any(row.probability_met is not None for row in rows):
        columns |= {"Probability": words("probability_words"), "Supported by the samples": words("support_words")}
    columns |= {"Priority": words("priority"), "Protocol": words("protocol"), "Remark": words("note")}
    return Table(columns, _description(tables, rows))


def _description(tables: tuple[GoalTable, ...], rows: list[GoalRow]) -> str:
    said = [f"{table.title}: {table.words}. {' '.join(table.notes)}".strip() for table in tables]
    if any(row.probability_met is not None for row in rows):
        said.append(RULE)
    if any(row.calibrated is False for row in rows):
        said.append(UNCALIBRATED_NOTE)
    return " ".join(said)


def _observations(findings: Findings) -> Table | None:
    """The observations beside what was expected."""
    if findings.observing is None:
        return None
    rows = findings.observing.rows
    return Table(
        {
            "Observation": tuple(row.label for row in rows),
            "When": tuple(row.when for row in rows),
            "Unit, whole course": tuple(row.unit for row in rows),
            **{title: np.array([round(getattr(row, of), 2) for row in rows]) for title, of in _OBSERVED},
            "Outcome": tuple(row.outcome for row in rows),
            "Source": tuple(row.source for row in rows),
        }
    )


def _compared(findings: Findings) -> Table | None:
    """Every metric before and after observing."""
    if findings.observing is None:
        return None
    now, then = findings.rows, findings.rows_before
    known = [np.nan if row.reference is None else row.reference for row in now]
    return Table(
        {
            "Structure": tuple(row.structure for row in now),
            "Metric": tuple(f"{row.metric} ({row.unit})" for row in now),
            "Before": np.round([row.mean for row in then], 2),
            "After": np.round([row.mean for row in now], 2),
            "Change": np.round([a.mean - b.mean for a, b in zip(now, then, strict=True)], 2),
            "Reference": np.round(known, 2),
        }
    )


def _ranking(findings: Findings) -> Table | None:
    """Every action as a row, as the report has them; its description says the outcome."""
    if findings.deciding is None:
        return None
    ranking, rows = findings.deciding.ranking, findings.deciding.rows
    gains = [np.nan if row.gain is None else row.gain for row in rows]
    better = [np.nan if row.probability_better is None else 100 * row.probability_better for row in rows]
    return Table(
        {
            "Place": tuple(str(row.place) for row in rows),
            "Action": tuple(row.action for row in rows),
            "Outcome": tuple(f"{row.sign} {row.outcome}" for row in rows),
            "Utility": np.round([row.utility for row in rows], 4),
            "Expected": np.round([row.expected for row in rows], 4),
            "Uncertainty": np.round([row.uncertainty for row in rows], 4),
            "Gain on keeping": np.round(gains, 4),
            "Better than keeping (%)": np.round(better, 1),
            "Nearest limit": tuple(row.worst_constraint for row in rows),
            "Violated in": tuple(row.violated_words for row in rows),
            "Reasons": tuple(row.reasons if row.has_band else f"{NO_BAND}; {row.reasons}" for row in rows),
        },
        " ".join(("Research use only.", findings.deciding.words, GAIN, ORDER, *ranking.notes)),
    )
