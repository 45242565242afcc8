"""Calibrators with few unknowns, solved in closed form: one scale for the whole dose, or an offset a structure.

Both write the correction as a sum of fields with independent standard normal coefficients and linearise what is
observed at the belief's mean: with H (observations x fields), noise R and innovation d the coefficients have covariance
C = (1 + H' R^-1 H)^-1 and mean C H' R^-1 d (conjugate Bayesian linear regression; Bishop 2006, 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.readings import Reading, read_scalars, voxel_std
from RTDigitalTwinLib.dosimetry.distance import signed_distance_mm
from RTDigitalTwinLib.patient.observation import MetricObservation
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

STEP = 0.05  # of a field's standard deviation: metrics that are not linear are linearised over it
CORRELATED_CC = 8.0  # voxels of a dose volume within such a volume count as one: the belief's errors are smooth
FARTHEST_REACHES = 3.0


@dataclass(frozen=True)
class GlobalScale:
    """One factor on the whole dose.

    What the factor cannot explain at an observation, the belief's own uncertainty there, counts as noise.

    Attributes
    ----------
    prior_ratio : standard deviation of the factor around 1 before anything is observed.
    """

    prior_ratio: float = 0.05
    name: str = "global scale"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        mean, spread = evidence.mean_gy, voxel_std(evidence.drawn)
        information, pull = 0.0, 0.0
        for reading in evidence.scalars:
            slope = _slopes(reading, mean, (self.prior_ratio * mean)[None])[0]
            variance = reading.std**2 + reading.belief_std(evidence.drawn) ** 2
            information += slope**2 / variance
            pull += slope * (reading.value - _expected(reading, evidence)) / variance
        for volume in evidence.volumes:
            known = volume.known
            expected = volume.of(mean)[known].astype(float)
            slope_gy = self.prior_ratio * expected
            variance_gy = np.square(volume.std[known].astype(float)) + np.square(spread[known])
            alike = min(1.0, evidence.drawn.crop.grid.voxel_volume_mm3 / 1000 / CORRELATED_CC)
            information += alike * float((slope_gy**2 / variance_gy).sum())
            pull += alike * float((slope_gy * (volume.values[known] - expected) / variance_gy).sum())
        scale = 1 + self.prior_ratio * pull / (1 + information)
        shift = ((scale - 1) * mean).astype(np.float32)
        ratio = np.full(mean.shape, scale, np.float32)
        return RecalibratedBelief(evidence.prior, self.name, evidence.observations, shift, ratio)


@dataclass(frozen=True)
class StructureOffsets:
    """An offset for each observed structure, and a slope along its own dose, fading out around it; likewise a point.

    One factor on the whole dose is sought with them.

    Each field is shaped as the belief's own uncertainty, so that where the belief is sure little is added, and sized so
    that the structure's mean is as unsure as its calibrated band says. From a dose volume the means of all structures
    are taken.

    Attributes
    ----------
    reach_mm : outside the structure, fields fall off as a Gaussian of this standard deviation.
    scale_ratio : standard deviation of the factor around 1 before anything is observed.
    """

    reach_mm: float = 15.0
    scale_ratio: float = 0.03
    name: str = "structure offsets"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        mean, spread = evidence.mean_gy, voxel_std(evidence.drawn)
        rows = [(r, r.value - _expected(r, evidence), r.std) for r in evidence.scalars]
        rows += _means_of_volumes(evidence)
        fields, known = [], set()
        for reading, _, _ in rows:
            key = reading.observation.structure if isinstance(reading.observation, MetricObservation) else id(reading)
            if key not in known:
                known.add(key)
                fields += self._fields(reading, mean, spread, evidence.drawn)
        shift = np.zeros(mean.shape, np.float32)
        if rows:
            shapes = np.stack([*fields, (self.scale_ratio * mean).astype(np.float32)])
            slopes = np.stack([_slopes(reading, mean, shapes) for reading, _, _ in rows])
            shift = (solve(slopes, [d for _, d, _ in rows], [s for _, _, s in rows]) @ shapes).astype(np.float32)
        return RecalibratedBelief(evidence.prior, self.name, evidence.observations, shift)

    def _fields(
        self, reading: Reading, mean: NDArray, spread: NDArray, drawn: DoseEnsemble
    ) -> list[NDArray[np.float32]]:
        near = np.exp(-0.5 * np.square(distance_mm(reading, drawn, FARTHEST_REACHES * self.reach_mm) / self.reach_mm))
        near[near <= np.exp(-0.5 * FARTHEST_REACHES**2)] = 0
        inside = reading.places[reading.places >= 0]
        shape = (spread * near).astype(np.float32)
        if reading.metric is None:
            return [shape]
        weights = reading.weights[reading.places >= 0].astype(float)
        wanted = _mean_std(reading, drawn)
        offset = shape * np.float32(wanted / (shape[inside] @ weights / weights.sum()))
        middle = mean[inside] @ weights / weights.sum()
        width = float(np.sqrt(np.square(mean[inside] - middle) @ weights / weights.sum())) + 0.1
        lean = np.clip((mean - middle) / width, -2, 2).astype(np.float32)
        return [offset, offset * lean * np.float32(0.5)]


def solve(slopes: NDArray, innovation: Sequence[float], noise_std: Sequence[float]) -> NDArray[np.float64]:
    """Posterior mean of coefficients (fields,) that are standard normal before, from slopes (observations, fields)."""
    weighted = slopes.T / np.square(np.asarray(noise_std, dtype=float))
    precision = np.eye(slopes.shape[1]) + weighted @ slopes
    return np.linalg.solve(precision, weighted @ np.asarray(innovation, dtype=float))


def distance_mm(reading: Reading, drawn: DoseEnsemble, reach_mm: float) -> NDArray[np.float64]:
    """(mask voxels,) distance to the structure or point of a reading, 0 inside; at most ``reach_mm``."""
    grid, indices = drawn.crop.grid, drawn.crop.mask_indices
    if isinstance(reading.observation, MetricObservation):
        structure = drawn.patient.structure(reading.observation.structure)
        away = signed_distance_mm(structure.occupancy > 0, grid.spacing_mm, reach_mm).reshape(-1)[indices]
        return np.maximum(away, 0).astype(float)
    positions = grid.to_lps_mm(np.stack(np.unravel_index(indices, grid.shape), axis=-1))
    return np.minimum(np.linalg.norm(positions - reading.observation.position_mm, axis=-1), reach_mm)


def _expected(reading: Reading, evidence: Evidence) -> float:
    """Mean over the samples, as tables show it."""
    return float(reading.of(evidence.doses_gy).mean())


def _slopes(reading: Reading, mean: NDArray, fields: NDArray) -> NDArray[np.float64]:
    """(fields,) change of a reading for one standard deviation of each field, between -STEP and +STEP of it."""
    up, down = (reading.of(np.maximum(mean + sign * STEP * fields, 0).astype(np.float32)) for sign in (1, -1))
    return (up - down) / (2 * STEP)


def _mean_std(reading: Reading, drawn: DoseEnsemble) -> float:
    assert isinstance(reading.observation, MetricObservation)
    return drawn.metric(reading.observation.structure, "mean").calibrated_std


def _means_of_volumes(evidence: Evidence) -> list[tuple[Reading, float, float]]:
    """Of each dose volume the mean of every structure, as readings with innovation and noise."""
    rows = []
    for volume in evidence.volumes:
        mean = volume.of(evidence.mean_gy)
        off = np.where(volume.known, volume.values - mean, 0)
        for name in evidence.prior.patient.structures:
            like = MetricObservation(
                name, "mean", 0.0, volume.observation.moment, volume.observation.noise, volume.observation.source
            )
            (reading,) = read_scalars([like], evidence.prior.patient, evidence.drawn.crop)
            inside = reading.places >= 0
            weights, places = reading.weights[inside].astype(float), reading.places[inside]
            std = float(np.sqrt(np.square(volume.std[places] * weights).sum()) / weights.sum())
            rows.append((reading, float(off[places] @ weights / weights.sum()), std))
    return rows
