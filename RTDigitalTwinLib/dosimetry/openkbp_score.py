"""The OpenKBP dose and DVH scores, voxel-based as the benchmark defines them.

Babier et al., Medical Physics 48, 5549 (2021). Partial volumes play no part here: a voxel belongs to a structure where
at least half of it does. Clinical DVH values come from ``dvh.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh import LEAST_COVERED_RATIO
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import StructureKind

MetricKey = tuple[str, str]
TARGET_PERCENTILES = (("D99", 1), ("D95", 5), ("D1", 99))


@dataclass(frozen=True)
class PatientScore:
    """Errors of one patient.

    Attributes
    ----------
    dose_error_gy : sum of absolute differences over all voxels divided by the voxels of the dose mask.
    dvh_errors_gy : absolute difference by (structure, metric).
    known_ratio : share of the dose mask where the reference dose is known; the scores are of this part.
    """

    dose_error_gy: float
    dvh_errors_gy: dict[MetricKey, float]
    known_ratio: float = 1.0

    @property
    def dvh_error_gy(self) -> float:
        return float(np.mean(list(self.dvh_errors_gy.values())))


def dvh_metrics_gy(patient: Patient, dose_gy: NDArray) -> dict[MetricKey, float]:
    """The benchmark's metrics of a dose (slices, rows, columns): D0.1cc and mean of organs, D99, D95, D1 of targets.

    Of known voxels; a structure with too many NaN for clinical metrics (``dvh.LEAST_COVERED_RATIO``) has none here.
    """
    voxels_in_tenth_cc = max(1, round(100 / patient.ct.grid.voxel_volume_mm3))
    metrics: dict[MetricKey, float] = {}
    for name, structure in patient.structures.items():
        inside = dose_gy[structure.box][structure.box_occupancy >= 0.5]
        known = np.isfinite(inside)
        if not inside.size or known.mean() < LEAST_COVERED_RATIO:
            continue
        inside = inside[known]
        if structure.kind is StructureKind.TARGET:
            for metric, percentile in TARGET_PERCENTILES:
                metrics[name, metric] = float(np.percentile(inside, percentile))
        else:
            hottest = max(0.0, 100 - 100 * voxels_in_tenth_cc / inside.size)
            metrics[name, "D0.1cc"] = float(np.percentile(inside, hottest))
            metrics[name, "mean"] = float(inside.mean(dtype=float))
    return metrics


def score_patient(patient: Patient, predicted_gy: NDArray) -> PatientScore:
    """Compare a dose (slices, rows, columns) with the patient's reference dose.

    Where the reference is NaN, nothing is compared. Raises PatientDataError where the patient has no reference dose, or
    it is not known in any structure.
    """
    if not patient.plans or patient.plan.dose is None:
        raise PatientDataError("There is no reference dose to compare with (dose.csv).", where=patient.pseudonym)
    reference = patient.plan.dose.values
    known = np.isfinite(reference)
    mask = patient.dose_mask.mask
    in_mask = int((mask & known).sum())
    expected = dvh_metrics_gy(patient, reference)
    found = dvh_metrics_gy(patient, np.where(known, predicted_gy, np.nan))
    if not expected or not in_mask:
        raise PatientDataError(
            "The reference dose is known in no structure.",
            where=patient.pseudonym,
            remedy="Give a dose on a grid that holds the structures.",
        )
    total = np.abs(reference[known].astype(float) - predicted_gy[known]).sum()
    errors = {key: abs(expected[key] - found[key]) for key in expected}
    return PatientScore(float(total / in_mask), errors, in_mask / int(mask.sum()))


def cohort_scores_gy(scores: Iterable[PatientScore]) -> tuple[float, float]:
    """(dose score, DVH score): the mean over patients, and over all pooled (patient, structure, metric) cells."""
    scores = list(scores)
    cells = [error for score in scores for error in score.dvh_errors_gy.values()]
    return float(np.mean([score.dose_error_gy for score in scores])), float(np.mean(cells))
