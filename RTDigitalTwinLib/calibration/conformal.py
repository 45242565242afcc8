"""Conformal calibration of the sampled spread, at patient level.

A score is |known - mean| / sqrt(spread^2 + floor^2). The factor at a level is a quantile of the scores in which every
patient weighs the same, whatever the number of its scores. For DVH metrics, of which a patient has one (or a few, where
structures are pooled), the level is raised to level (n + 1) / n, which for one score a patient is the split-conformal
quantile (Vovk et al. 2005; Angelopoulos and Bates 2023); levels that n patients cannot give are left out. For voxels
and points of curves the plain quantile aims at the mean coverage over patients. Structures that fewer than 20 patients
have are pooled with those of their kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.calibration.coverage import judged_structures, planned_dose
from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.loading import load_patients
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.bands import DOSE_EDGES_GY, FLOORS, LEVELS, BandCalibration, pooled_key
from RTDigitalTwinLib.solver.calibration_file import StoredCalibration
from RTDigitalTwinLib.solver.correlation import CUSTOMARY_SHARES, correlation_by_distance, fit_shares
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.ensemble import VOLUME_RATIOS
from RTDigitalTwinLib.solver.sampling import sample_dose

FEWEST_PATIENTS = 20
FEWEST_TO_CALIBRATE = 20  # 95 % needs 19
FEWEST_IN_RANGE = 5
VOXELS_KEPT = 4000  # of a structure's dose range in one patient
RANGES = len(DOSE_EDGES_GY) + 1


@dataclass(frozen=True, eq=False)
class PatientScores:
    """Scores of one patient with known dose.

    Attributes
    ----------
    voxels : by structure (and ``remainder``) the scores in each dose range, thinned evenly to 4000.
    metrics : by (structure, metric) one score.
    curves : by structure the scores of the dose at each of ``VOLUME_RATIOS``.
    kinds : of the structures.
    correlation : mean square of the signed voxel scores, and mean product of two by their distance; None where unknown.
    """

    pseudonym: str
    voxels: Mapping[str, tuple[NDArray[np.float32], ...]]
    metrics: Mapping[tuple[str, str], float]
    curves: Mapping[str, NDArray[np.float32]]
    kinds: Mapping[str, StructureKind]
    correlation: NDArray[np.float64] | None = None


def scores_of(ensemble: DoseEnsemble) -> PatientScores:
    """Scores of a prediction against the patient's planned dose. Structures outside the dose mask have none.

    Raises PatientDataError without a planned dose, RTDigitalTwinError with fewer than two samples.
    """
    patient = ensemble.patient
    known = planned_dose(patient)
    indices = ensemble.crop.mask_indices
    mean, spread, truth = (v.reshape(-1)[indices] for v in (ensemble.mean.values, ensemble.std.values, known.values))
    scores = np.abs(truth - mean) / np.sqrt(np.square(spread) + FLOORS["Gy"] ** 2)
    ranges = np.digitize(mean, DOSE_EDGES_GY)
    listed, owner = ensemble.owners()
    voxels = {name: _thinned(scores, ranges, owner == k) for k, (name, _) in enumerate(listed)}
    metrics: dict[tuple[str, str], float] = {}
    curves: dict[str, NDArray[np.float32]] = {}
    for name in judged_structures(ensemble):
        structure = patient.structures[name]
        planned, sampled = structure_dose_of(known, structure), ensemble.structure_dose(name)
        for metric in metrics_of(structure, target_levels_gy(patient).get(name)):
            parsed = DvhMetric.parse(metric)
            predicted = ensemble.metric(name, metric, sampled)
            scale = np.sqrt(predicted.std**2 + FLOORS[parsed.unit] ** 2)
            metrics[name, metric] = float(abs(planned.metric(parsed)[0] - predicted.mean) / scale)
        curve = ensemble.dvh(name)
        doses_gy = curve.dose_at_volume
        expected_gy = planned.doses_at_volume_gy(VOLUME_RATIOS)[0]
        distance = np.abs(expected_gy - doses_gy.mean) / np.sqrt(doses_gy.std**2 + FLOORS["Gy"] ** 2)
        curves[name] = distance.astype(np.float32)
    kinds = {name: s.kind for name, s in patient.structures.items()}
    correlation = correlation_by_distance(np.sign(truth - mean) * scores, ensemble.crop)
    return PatientScores(patient.pseudonym, voxels, metrics, curves, kinds, correlation)


def _thinned(scores: NDArray, ranges: NDArray, inside: NDArray[np.bool_]) -> tuple[NDArray[np.float32], ...]:
    parts = []
    for k in range(RANGES):
        part = scores[inside & (ranges == k)]
        parts.append(part[:: max(1, -(-part.size // VOXELS_KEPT))].astype(np.float32))
    return tuple(parts)


def fit(cohort: Sequence[PatientScores], samples: int) -> BandCalibration:
    """Factors from the scores of a cohort. Raises RTDigitalTwinError with fewer than 20 patients."""
    if len(cohort) < FEWEST_TO_CALIBRATE:
        raise RTDigitalTwinError(
            f"A calibration needs at least {FEWEST_TO_CALIBRATE} patients with a planned dose, not {len(cohort)}."
        )
    voxels, curves, metrics = (_Gathered() for _ in range(3))
    for i, patient in enumerate(cohort):
        for name, parts in patient.voxels.items():
            pooled = pooled_key(patient.kinds.get(name, StructureKind.REGION))
            for key in {name, pooled}:
                for k, part in enumerate(parts):
                    voxels.add((key, k), i, part)
                    voxels.add((key, None), i, part)
                    voxels.add((None, k), i, part)
        for name, points in patient.curves.items():
            for key in (name, pooled_key(patient.kinds[name])):
                curves.add(key, i, points)
        for (name, metric), score in patient.metrics.items():
            pooled, unit = pooled_key(patient.kinds[name]), DvhMetric.parse(metric).unit
            alike = (f"{pooled} Gy",) if unit == "Gy" else ()
            for key in (f"{name} {metric}", f"{pooled} {metric}", *alike):
                metrics.add(key, i, [score])
    keys = [key for key, k in voxels.keys() if key and k is None and voxels.patients((key, None)) >= FEWEST_PATIENTS]
    return BandCalibration(
        {key: tuple(_range_factors(voxels, key, k) for k in range(RANGES)) for key in keys},
        {k: metrics.quantiles(k, raised=True) for k in metrics.keys() if metrics.patients(k) >= FEWEST_PATIENTS},
        {k: curves.quantiles(k) for k in curves.keys() if curves.patients(k) >= FEWEST_PATIENTS},
        len(cohort),
        samples,
        fit_shares(measured)
        if (measured := [p.correlation for p in cohort if p.correlation is not None])
        else CUSTOMARY_SHARES,
    )


class _Gathered:
    """Scores by key and patient."""

    def __init__(self) -> None:
        self._parts: dict[Any, dict[int, list[NDArray]]] = defaultdict(lambda: defaultdict(list))

    def add(self, key: Any, patient: int, scores: ArrayLike) -> None:
        if np.size(scores):
            self._parts[key][patient].append(np.asarray(scores, float))

    def keys(self) -> list[Any]:
        return list(self._parts)

    def patients(self, key: Any) -> int:
        return len(self._parts[key]) if key in self._parts else 0

    def quantiles(self, key: Any, *, raised: bool = False) -> tuple[float, ...]:
        """Quantiles at ``LEVELS``, every patient weighing the same; ``raised`` leaves out levels beyond n patients."""
        patients = [np.concatenate(parts) for parts in self._parts[key].values()]
        values = np.concatenate(patients)
        weights = np.concatenate([np.full(p.size, 1 / (p.size * len(patients))) for p in patients])
        order = np.argsort(values, kind="stable")
        share = np.cumsum(weights[order])
        wanted = [level * (len(patients) + 1) / len(patients) if raised else level for level in LEVELS]
        ranks = [int(np.searchsorted(share, level - 1e-9)) for level in wanted if level <= 1 + 1e-9]
        return tuple(float(values[order][min(rank, values.size - 1)]) for rank in ranks)


def _range_factors(voxels: _Gathered, key: str, k: int) -> tuple[float, ...]:
    """Of a dose range; where few of the group reach it, of that range in all structures, else of the whole group."""
    for choice in ((key, k), (None, k)):
        if voxels.patients(choice) >= FEWEST_IN_RANGE:
            return voxels.quantiles(choice)
    return voxels.quantiles((key, None))


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
    fewest = -(-FEWEST_TO_CALIBRATE * folds // (folds - 1))  # with a fold left out
    if len(folders) < fewest:
        raise RTDigitalTwinError(f"A calibration needs at least {fewest} patients, not {len(folders)}.")
    cohort: list[PatientScores] = []
    for i, folder in enumerate(folders):
        progress(i / len(folders), f"patient {i + 1} of {len(folders)}")
        (patient,) = load_patients([folder])
        if patient.pseudonym in surrogate.trained_on:
            raise PatientDataError(
                "The network was trained on this patient, so its error here says nothing of others.",
                where=patient.pseudonym,
                remedy="Calibrate on patients that were kept apart, such as validation-pats.",
            )
        if any(scores.pseudonym == patient.pseudonym for scores in cohort):
            raise PatientDataError("The patient is there twice.", where=patient.pseudonym, remedy="Remove one.")
        cohort.append(scores_of(sample_dose(surrogate, patient, samples, seed)))
    progress(1.0, "done")
    return StoredCalibration(fit(cohort, samples), cross_fit(cohort, samples, folds))
