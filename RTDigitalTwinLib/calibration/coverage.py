"""What bands are worth: coverage, width, and whether spread tells where the error is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

SPARSIFIED = np.linspace(0, 0.95, 20)
FALLING = (0.001, 0.999)


@dataclass(frozen=True)
class Coverage:
    """One patient's shares of values inside their bands.

    Attributes
    ----------
    voxel_ratio, width_gy : over the dose mask; mean full width.
    structure_ratio : by structure, of its voxels.
    metric_hits : by "structure metric" whether the band holds the planned value.
    dvh_ratio : by structure, of the curve's points where it falls.
    """

    voxel_ratio: float
    width_gy: float
    structure_ratio: dict[str, float]
    metric_hits: dict[str, bool]
    dvh_ratio: dict[str, float]


@dataclass(frozen=True)
class Sharpness:
    """Whether the spread knows where the error is, in one patient.

    Attributes
    ----------
    rank_correlation : Spearman's, of spread and absolute error over the mask's voxels; 0 where either is the same
        everywhere.
    sparsification_error : area between the mean error left when the most uncertain voxels are taken out step by step
        and when the most wrong ones are, as a share of the mean error (Ilg et al. 2018); 0 is best.
    """

    rank_correlation: float
    sparsification_error: float


def coverage_of(ensemble: DoseEnsemble, level: float = 0.95) -> Coverage:
    """Coverage of a prediction's bands: calibrated where they are, else of the plain samples.

    Raises PatientDataError without a planned dose.
    """
    patient, truth = ensemble.patient, _truth(ensemble)
    indices = ensemble.crop.mask_indices
    low, high = (v.values.reshape(-1)[indices] for v in ensemble.band(level))
    hit = (low <= truth) & (truth <= high)
    structures, metrics, curves = {}, {}, {}
    levels = target_levels_gy(patient)
    for name in judged_structures(ensemble):
        structure = patient.structures[name]
        structures[name] = float(hit[structure.mask.reshape(-1)[indices]].mean())
        planned, doses = structure_dose_of(planned_dose(patient), structure), ensemble.structure_dose(name)
        for metric in metrics_of(structure, levels.get(name)):
            a, b = ensemble.metric(name, metric, doses).band(level)
            metrics[f"{name} {metric}"] = bool(a <= planned.metric(DvhMetric.parse(metric))[0] <= b)
        curve = ensemble.dvh(name)
        expected = planned.volume_at_dose_ratio(curve.dose_gy)[0]
        a, b = curve.band(level)
        falling = falls(expected, curve.mean)
        if falling.any():
            curves[name] = float(((a <= expected) & (expected <= b))[falling].mean())
    return Coverage(float(hit.mean()), float((high - low).mean()), structures, metrics, curves)


def sharpness_of(ensemble: DoseEnsemble) -> Sharpness:
    """How well the spread (the calibrated width, where there is one) ranks the errors of a prediction."""
    indices = ensemble.crop.mask_indices
    error = np.abs(_truth(ensemble) - ensemble.mean.values.reshape(-1)[indices]).astype(float)
    width = ensemble.half_width() if ensemble.is_calibrated else ensemble.std
    spread = width.values.reshape(-1)[indices]
    if np.ptp(spread) == 0 or np.ptp(error) == 0:
        return Sharpness(0.0, 0.0 if np.ptp(error) == 0 else 1.0)
    correlation = float(np.corrcoef(_ranks(spread), _ranks(error))[0, 1])
    by_spread, by_error = (_left_when_taken_out(error, np.argsort(-v)) for v in (spread, error))
    return Sharpness(correlation, float(np.mean(by_spread - by_error) / error.mean()))


def planned_dose(patient: Patient) -> Volume:
    """The dose that is known of a patient. Raises PatientDataError where there is none, or it is not finite."""
    if not patient.plans or patient.plan.dose is None:
        raise PatientDataError("There is no planned dose to compare with (dose.csv).", where=patient.pseudonym)
    if not np.isfinite(patient.plan.dose.values[patient.dose_mask.mask]).all():
        raise PatientDataError("The planned dose is not known everywhere in the mask.", where=patient.pseudonym)
    return patient.plan.dose


def judged_structures(ensemble: DoseEnsemble) -> list[str]:
    """Organs and targets with a voxel in the dose mask: elsewhere dose is 0 by definition, and any band holds."""
    indices = ensemble.crop.mask_indices
    named = ensemble.patient.structures.items()
    return [n for n, s in named if s.kind is not StructureKind.REGION and s.mask.reshape(-1)[indices].any()]


def falls(expected: NDArray, mean: NDArray) -> NDArray[np.bool_]:
    """Where either DVH has left 1 and has not reached 0: elsewhere any band holds."""
    return (np.minimum(expected, mean) < FALLING[1]) & (np.maximum(expected, mean) > FALLING[0])


def _truth(ensemble: DoseEnsemble) -> NDArray:
    return planned_dose(ensemble.patient).values.reshape(-1)[ensemble.crop.mask_indices]


def _ranks(values: NDArray) -> NDArray[np.float64]:
    """Ranks, the mean rank where values are equal."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _left_when_taken_out(error: NDArray, order: NDArray) -> NDArray:
    """Mean error of what is left after each share of voxels is taken out in an order."""
    ordered = error[order]
    rest = np.cumsum(ordered[::-1])[::-1] / np.arange(ordered.size, 0, -1)
    return rest[(SPARSIFIED * ordered.size).astype(int)]


@dataclass
class CoverageTally:
    """Coverage over a cohort: every patient weighs the same, every metric counts once."""

    patients: list[Coverage] = field(default_factory=list)
    sharpness: list[Sharpness] = field(default_factory=list)

    def add(self, coverage: Coverage, sharpness: Sharpness) -> None:
        self.patients.append(coverage)
        self.sharpness.append(sharpness)

    def as_dict(self) -> dict[str, object]:
        """For JSON: shares in 0..1, widths in Gy."""
        hits = [hit for p in self.patients for hit in p.metric_hits.values()]
        return {
            "coverage_voxel_95": _mean([p.voxel_ratio for p in self.patients]),
            "coverage_dvh_95": _mean([r for p in self.patients for r in p.dvh_ratio.values()]),
            "coverage_metric_95": _mean(hits),
            "band_width_gy": _mean([p.width_gy for p in self.patients]),
            "rank_correlation": _mean([s.rank_correlation for s in self.sharpness]),
            "sparsification_error": _mean([s.sparsification_error for s in self.sharpness]),
            "coverage_voxel_95_by_structure": _by_key([p.structure_ratio for p in self.patients]),
            "coverage_metric_95_by_metric": _by_key([p.metric_hits for p in self.patients]),
            "coverage_dvh_95_by_structure": _by_key([p.dvh_ratio for p in self.patients]),
        }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _by_key(rows: Sequence[dict]) -> dict[str, float]:
    gathered: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for key, value in row.items():
            gathered[key].append(float(value))
    return {key: _mean(values) for key, values in sorted(gathered.items())}
