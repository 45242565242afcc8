"""Conformal calibration of the sampled spread, at patient level.

A score is |known - mean| / sqrt(spread^2 + floor^2). For values that a patient has once (a DVH metric) the factor is
the split-conformal quantile of the patients' scores, rank ceil((n + 1) level) of n (Vovk et al. 2005; Angelopoulos and
Bates 2023). For values that a patient has many of (voxels, points of a curve) it is the quantile of all scores with
every patient weighing the same, which aims at the mean coverage over patients. Structures that fewer than 20 patients
have are pooled with those of their kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.loading import load_patients
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.bands import DOSE_EDGES_GY, FLOORS, LEVELS, REMAINDER, BandCalibration, pooled_key
from RTDigitalTwinLib.solver.calibration_file import StoredCalibration
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble, structure_dose_of
from RTDigitalTwinLib.solver.sampling import sample_dose

FEWEST_PATIENTS = 20
FEWEST_TO_CALIBRATE = 5
VOXELS_KEPT = 4000  # of a structure's dose range in one patient
RANGES = len(DOSE_EDGES_GY) + 1


@dataclass(frozen=True, eq=False)
class PatientScores:
    """Scores of one patient with known dose.

    Attributes
    ----------
    voxels : by structure (and ``remainder``) the scores in each dose range, thinned evenly to 4000.
    metrics : by (structure, metric) one score.
    curves : by structure the scores at the doses where the curve falls.
    kinds : of the structures.
    """

    pseudonym: str
    voxels: Mapping[str, tuple[NDArray[np.float32], ...]]
    metrics: Mapping[tuple[str, str], float]
    curves: Mapping[str, NDArray[np.float32]]
    kinds: Mapping[str, StructureKind]


def scores_of(ensemble: DoseEnsemble) -> PatientScores:
    """Scores of a prediction against the patient's planned dose.

    Raises PatientDataError without a planned dose, RTDigitalTwinError with fewer than two samples.
    """
    patient = ensemble.patient
    known = _known_dose(patient)
    indices = ensemble.crop.mask_indices
    mean, spread, truth = (v.reshape(-1)[indices] for v in (ensemble.mean.values, ensemble.std.values, known.values))
    scores = np.abs(truth - mean) / np.sqrt(np.square(spread) + FLOORS["Gy"] ** 2)
    ranges = np.digitize(mean, DOSE_EDGES_GY)
    voxels, metrics, curves = {}, {}, {}
    remainder = np.ones(indices.size, bool)
    levels = target_levels_gy(patient)
    for name, structure in patient.structures.items():
        inside = structure.mask.reshape(-1)[indices]
        remainder &= ~inside
        voxels[name] = _thinned(scores, ranges, inside)
        planned = structure_dose_of(known, structure)
        sampled = ensemble.structure_dose(name)
        for metric in metrics_of(structure, levels.get(name)):
            parsed = DvhMetric.parse(metric)
            predicted = ensemble.metric(name, metric, sampled)
            scale = np.sqrt(predicted.std**2 + FLOORS[parsed.unit] ** 2)
            metrics[name, metric] = float(abs(planned.metric(parsed)[0] - predicted.mean) / scale)
        curve = ensemble.dvh(name)
        expected = planned.volume_at_dose_ratio(curve.dose_gy)[0]
        falls = _falls(expected, curve.mean)
        distance = np.abs(expected - curve.mean) / np.sqrt(curve.std**2 + FLOORS["ratio"] ** 2)
        curves[name] = distance[falls].astype(np.float32)
    voxels[REMAINDER] = _thinned(scores, ranges, remainder)
    kinds = {name: s.kind for name, s in patient.structures.items()}
    return PatientScores(patient.pseudonym, voxels, metrics, curves, kinds)


def _known_dose(patient: Patient) -> Volume:
    if not patient.plans or patient.plan.dose is None:
        raise PatientDataError("There is no planned dose to calibrate with (dose.csv).", where=patient.pseudonym)
    return patient.plan.dose


def _falls(expected: NDArray, mean: NDArray) -> NDArray[np.bool_]:
    """Where either curve has left 1 and has not reached 0: elsewhere any band holds."""
    return (np.minimum(expected, mean) < 0.999) & (np.maximum(expected, mean) > 0.001)


def _thinned(scores: NDArray, ranges: NDArray, inside: NDArray[np.bool_]) -> tuple[NDArray[np.float32], ...]:
    parts = []
    for k in range(RANGES):
        part = scores[inside & (ranges == k)]
        parts.append(part[:: max(1, -(-part.size // VOXELS_KEPT))].astype(np.float32))
    return tuple(parts)


def fit(cohort: Sequence[PatientScores], samples: int) -> BandCalibration:
    """Factors from the scores of a cohort. Raises RTDigitalTwinError with fewer than five patients."""
    if len(cohort) < FEWEST_TO_CALIBRATE:
        raise RTDigitalTwinError(
            f"A calibration needs at least {FEWEST_TO_CALIBRATE} patients with a planned dose, not {len(cohort)}."
        )
    voxels: dict[str, list[tuple[NDArray, ...]]] = defaultdict(list)
    curves: dict[str, list[NDArray]] = defaultdict(list)
    metrics: dict[str, list[float]] = defaultdict(list)
    for patient in cohort:
        for name, parts in patient.voxels.items():
            kind = patient.kinds.get(name)
            for key in {name, pooled_key(kind) if kind else REMAINDER}:
                voxels[key].append(parts)
        for name, points in patient.curves.items():
            for key in (name, pooled_key(patient.kinds[name])):
                curves[key].append(points)
        for (name, metric), score in patient.metrics.items():
            pooled, unit = pooled_key(patient.kinds[name]), DvhMetric.parse(metric).unit
            for key in (f"{name} {metric}", f"{pooled} {metric}", f"{pooled} {unit}"):
                metrics[key].append(score)
    everywhere = [parts for group in voxels.values() for parts in group]
    return BandCalibration(
        {k: _range_factors(v, everywhere) for k, v in voxels.items() if _is_measured(k, v)},
        {k: _conformal(v) for k, v in metrics.items() if _is_measured(k, v)},
        {k: tuple(_weighted_quantiles(v)) for k, v in curves.items() if _is_measured(k, v)},
        len(cohort),
        samples,
    )


def _is_measured(key: str, values: Sequence) -> bool:
    return key.split()[0] in ("target", "organ", REMAINDER) or len(values) >= FEWEST_PATIENTS


def _range_factors(
    group: Sequence[tuple[NDArray, ...]], everywhere: Sequence[tuple[NDArray, ...]]
) -> tuple[tuple[float, ...], ...]:
    """By dose range; a range that few of the group reach takes the whole group, one that none reach takes all."""
    factors = []
    for k in range(RANGES):
        parts = [patient[k] for patient in group if patient[k].size]
        if len(parts) < FEWEST_TO_CALIBRATE:
            parts = [p for patient in group for p in patient if p.size] or [p[k] for p in everywhere if p[k].size]
        factors.append(tuple(_weighted_quantiles(parts)))
    return tuple(factors)


def _conformal(scores: Sequence[float]) -> tuple[float, ...]:
    """Split-conformal factors; where n patients are too few for a level, the highest score."""
    ordered = np.sort(np.asarray(scores, float))
    n = len(ordered)
    return tuple(float(ordered[min(int(np.ceil((n + 1) * level)), n) - 1]) for level in LEVELS)


def _weighted_quantiles(parts: Iterable[NDArray]) -> list[float]:
    """Quantiles at ``LEVELS`` of all scores, every patient's part weighing the same."""
    parts = [np.asarray(p, float) for p in parts if len(p)]
    values = np.concatenate(parts)
    weights = np.concatenate([np.full(len(p), 1 / len(p)) for p in parts])
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return [float(values[order][min(int(np.searchsorted(share, level)), len(values) - 1)]) for level in LEVELS]


def folds_of(count: int, folds: int) -> list[list[int]]:
    """Indices of ``folds`` groups that share nobody."""
    return [list(range(k, count, folds)) for k in range(min(folds, count))]


def cross_fit(cohort: Sequence[PatientScores], samples: int, folds: int = 11) -> dict[str, BandCalibration]:
    """By pseudonym a calibration that this patient, and those of its fold, had no part in."""
    result: dict[str, BandCalibration] = {}
    for held_out in folds_of(len(cohort), folds):
        others = [scores for i, scores in enumerate(cohort) if i not in held_out]
        calibration = fit(others, samples)
        result |= {cohort[i].pseudonym: calibration for i in held_out}
    return result


def calibrate(
    surrogate: DoseSurrogate,
    folders: Sequence[Path],
    samples: int,
    seed: int = 0,
    folds: int = 11,
    progress: Progress = silent,
) -> StoredCalibration:
    """Predict a cohort with known doses and measure the factors of its bands.

    Raises PatientDataError for a patient without planned dose, RTDigitalTwinError with fewer than two samples or too
    few patients.
    """
    if samples < 2:
        raise RTDigitalTwinError("A calibration needs at least two samples.", remedy="Use --samples 32.")
    cohort = []
    for i, folder in enumerate(folders):
        progress(i / len(folders), f"patient {i + 1} of {len(folders)}")
        (patient,) = load_patients([folder])
        cohort.append(scores_of(sample_dose(surrogate, patient, samples, seed)))
    progress(1.0, "done")
    return StoredCalibration(fit(cohort, samples), cross_fit(cohort, samples, folds))
