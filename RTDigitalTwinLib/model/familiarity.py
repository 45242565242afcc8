"""Whether a patient is like those the network was trained on.

A few plain descriptors of images and structures, and their Mahalanobis distance from the training patients'.
Descriptors of absent structures are left out, and the squared distance is divided by the number of those that count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import TrainingError
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK, RIGHT_LEFT_PAIRS, TARGETS
from RTDigitalTwinLib.patient.patient import Patient

FALSE_ALARM_RATIO = 0.01
FEWEST_PATIENTS = 40
FOLDS = 10
SHRINKAGE = 0.1
NAMED = 3  # descriptors named in a warning
STANDS_OUT = 3.0  # standard deviations
_AXES = ("left", "posterior", "up")


def describe(patient: Patient) -> dict[str, float]:
    """Descriptors by name, each with its unit in the name; NaN where the patient lacks the structure."""
    mask, grid = patient.dose_mask, patient.ct.grid
    hu = np.clip(patient.ct.values[mask.mask], -1000, 3071)
    found = {
        "pixel size (mm)": grid.spacing_mm[0],
        "slice distance (mm)": grid.spacing_mm[2],
        "middle CT value (HU)": float(np.percentile(hu, 50)),
        "90th percentile of CT (HU)": float(np.percentile(hu, 90)),
        "share of bone (%)": 100 * float((hu > 300).mean()),
        "share of air (%)": 100 * float((hu < -500).mean()),
    }
    box = mask.box
    for axis, name in ((2, "width"), (1, "depth"), (0, "length")):
        step = grid.spacing_mm[2 - axis]
        found[f"{name} of the dose region (mm)"] = (box[axis].stop - box[axis].start) * step
    centre = np.array(mask.centroid_mm)
    for name in (*TARGETS, *ORGANS_AT_RISK):
        structure = patient.structures.get(name)
        found[f"log volume of {name}"] = np.log(structure.volume_cc) if structure else np.nan
        away = np.array(structure.centroid_mm) - centre if structure else np.full(3, np.nan)
        for axis, direction in enumerate(_AXES):
            found[f"{name} {direction} of the dose region's centre (mm)"] = float(away[axis])
    for right, left in RIGHT_LEFT_PAIRS:
        both = patient.structures.get(right), patient.structures.get(left)
        apart = both[1].centroid_mm[0] - both[0].centroid_mm[0] if both[0] and both[1] else np.nan
        found[f"{left} left of {right} (mm)"] = float(apart)
    return found


@dataclass(frozen=True)
class FamiliarityVerdict:
    """How far a patient is from the training patients.

    Attributes
    ----------
    score : squared Mahalanobis distance per descriptor; about 1 for a training patient.
    threshold : beyond it the patient counts as unlike them.
    reasons : descriptors that stand out, in words; the farthest first.
    """

    score: float
    threshold: float
    reasons: tuple[str, ...]

    @property
    def is_familiar(self) -> bool:
        return self.score <= self.threshold and not any(reason.startswith("no ") for reason in self.reasons)

    def warning(self) -> str:
        """For the user; "" where the patient is familiar."""
        if self.is_familiar:
            return ""
        why = "; ".join(self.reasons) or "in no single respect"
        return (
            f"This patient is unlike those the network was trained on (score {self.score:.1f}, threshold "
            f"{self.threshold:.1f}): {why}. Prediction and bands may be wrong."
        )


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Descriptors of the training patients.

    Attributes
    ----------
    names : of the descriptors.
    mean, covariance : (names,), (names, names).
    threshold : of the score, chosen for a false-alarm rate of 1 % on training patients that were left out.
    always : targets that nearly every training patient has.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    threshold: float
    always: tuple[str, ...]

    @classmethod
    def fit(cls, described: Sequence[Mapping[str, float]]) -> Familiarity:
        """From the descriptors of training patients. Raises TrainingError with fewer than 40."""
        if len(described) < FEWEST_PATIENTS:
            raise TrainingError(
                f"At least {FEWEST_PATIENTS} training patients are needed to tell who is unlike them, not "
                f"{len(described)}."
            )
        names = tuple(described[0])
        values = np.array([[row[name] for name in names] for row in described], float)
        left_out = []
        for fold in range(FOLDS):
            part = np.arange(len(values)) % FOLDS == fold
            mean, covariance = _moments(values[~part])
            left_out += [_score(row, mean, covariance) for row in values[part]]
        mean, covariance = _moments(values)
        shares = {t: np.mean(np.isfinite(values[:, names.index(f"log volume of {t}")])) for t in TARGETS}
        always = tuple(name for name, share in shares.items() if share > 0.99)
        return cls(names, mean, covariance, float(np.quantile(left_out, 1 - FALSE_ALARM_RATIO)), always)

    def judge(self, patient: Patient) -> FamiliarityVerdict:
        """Compare a patient with the training patients."""
        return self.judge_described(describe(patient))

    def judge_described(self, described: Mapping[str, float]) -> FamiliarityVerdict:
        """As ``judge``, from descriptors."""
        row = np.array([described[name] for name in self.names])
        reasons = [f"no {name}" for name in self.always if not np.isfinite(described[f"log volume of {name}"])]
        with np.errstate(invalid="ignore"):
            deviations = np.abs(row - self.mean) / np.sqrt(np.diag(self.covariance))
        order = np.argsort(-np.nan_to_num(deviations, nan=-1))[:NAMED]
        for i in order:
            if deviations[i] > STANDS_OUT:
                usual = f"{self.mean[i]:.4g} ± {np.sqrt(self.covariance[i, i]):.2g}"
                reasons.append(f"{self.names[i]} {row[i]:.4g}, trained on {usual}")
        return FamiliarityVerdict(_score(row, self.mean, self.covariance), self.threshold, tuple(reasons))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "names": list(self.names),
            "mean": [float(f"{v:.6g}") for v in self.mean],
            "covariance": [[float(f"{v:.6g}") for v in row] for row in self.covariance],
            "threshold": round(self.threshold, 4),
            "always": list(self.always),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Familiarity:
        """Raises KeyError, TypeError or ValueError where something is missing."""
        mean, covariance = np.array(stored["mean"], float), np.array(stored["covariance"], float)
        names = tuple(stored["names"])
        if mean.shape != (len(names),) or covariance.shape != (len(names), len(names)):
            raise ValueError("descriptors of another number")
        return cls(names, mean, covariance, float(stored["threshold"]), tuple(stored["always"]))


def _moments(values: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and covariance over the patients that have a descriptor; correlations shrunk by a tenth."""
    mean = np.nanmean(values, axis=0)
    known = np.isfinite(values)
    centred = np.where(known, values - mean, 0.0)
    scale = np.sqrt((centred**2).sum(axis=0) / np.maximum(known.sum(axis=0) - 1, 1))
    scale = np.maximum(scale, 1e-3)
    unit = centred / scale
    pairs = known.T.astype(float) @ known.astype(float)
    correlation = (unit.T @ unit) / np.maximum(pairs - 1, 1)
    correlation = (1 - SHRINKAGE) * correlation
    np.fill_diagonal(correlation, 1.0)
    lowest = float(np.linalg.eigvalsh(correlation)[0])
    if lowest < SHRINKAGE:  # pairs of absent structures can leave it indefinite
        correlation = (correlation + (SHRINKAGE - lowest) * np.eye(len(scale))) / (1 + SHRINKAGE - lowest)
    return mean, correlation * np.outer(scale, scale)


def _score(row: NDArray, mean: NDArray, covariance: NDArray) -> float:
    known = np.isfinite(row)
    away = (row - mean)[known]
    return float(away @ np.linalg.solve(covariance[np.ix_(known, known)], away) / max(known.sum(), 1))
