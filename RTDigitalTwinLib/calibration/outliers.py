"""Outliers: observations that neither a belief nor a change of treatment can explain.

A metric or a point is an outlier where it lies too far from what is expected, the patient's shift and the machine's
output allowed for, and too far from what the other observations together say of it as well: values that agree with
each other tell of a change, a value alone of a mistake. A dose volume is one where too many voxels stay unexplained
after the shift and the output that explain it best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import HYPOTHESES, ErrorCovariance, ScalarErrors
from RTDigitalTwinLib.calibration.readings import (
    VolumeReading,
    read_scalars,
    read_volumes,
    sampled_doses,
    voxel_std,
)
from RTDigitalTwinLib.patient.observation import DoseObservation, Observation, ScalarObservation
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

OUTLIER_STDS = 3.5  # errors of a network have longer tails than a normal distribution
OUTLIER_LEVEL = 0.98
OUTLIER_NOISE_STDS = 3.0
OUTLIER_VOXEL_RATIO = 0.25  # of a dose volume's voxels beyond their bands
WIDEST_CHANGE = 3.0  # standard deviations of shift and output that may explain a dose volume
ANYTHING = HYPOTHESES[-1]


@dataclass(frozen=True)
class Judgement:
    """Whether an observation can be explained, in terms of the whole course.

    Attributes
    ----------
    observed, expected : in the observation's unit for the whole course; means over the voxels of a dose volume.
    reach : how far apart they may be: 3.5 standard deviations of belief, change of treatment and noise. Of a dose
        volume the mean over its voxels of the 98 % band and three standard deviations of the noise, in quadrature.
    beyond_ratio : of a dose volume's voxels, those farther off than that after the change that explains it best; of
        a single value 0 or 1.
    is_outlier : beyond what can be explained.
    """

    observation: Observation
    observed: float
    expected: float
    reach: float
    beyond_ratio: float
    is_outlier: bool

    @property
    def words(self) -> str:
        unit = self.observation.unit
        said = f"{self.observation.label}: {self.observed:.4g} {unit} observed, {self.expected:.4g} {unit} expected"
        if self.beyond_ratio not in (0.0, 1.0):
            return f"{said}, {self.beyond_ratio:.0%} of voxels beyond what the belief can explain"
        return f"{said}, at most {self.reach:.3g} {unit} apart explicable" if self.is_outlier else said


def judge(belief_drawn: DoseEnsemble, observations: Sequence[Observation]) -> tuple[Judgement, ...]:
    """Each observation against samples of a belief, and metrics and points against each other.

    Where bands are not calibrated nothing is called an outlier: plain samples are too narrow to say. With fewer than
    two samples there is no spread to judge by, and nothing is either.
    """
    patient, crop = belief_drawn.patient, belief_drawn.crop
    if not observations:
        return ()
    if not belief_drawn.has_spread:
        return tuple(_unjudged(o, belief_drawn) for o in observations)
    covariance = ErrorCovariance.of(belief_drawn)
    scalars = _judged_scalars([o for o in observations if not isinstance(o, DoseObservation)], belief_drawn, covariance)
    judgements = []
    for observation in observations:
        if isinstance(observation, DoseObservation):
            (volume,) = read_volumes([observation], patient, crop)
            judgements.append(_judged_volume(volume, belief_drawn, covariance))
        else:
            judgements.append(next(scalars))
    return tuple(judgements)


def _judged_scalars(
    observations: Sequence[ScalarObservation], drawn: DoseEnsemble, covariance: ErrorCovariance
) -> Iterator[Judgement]:
    if not observations:
        return iter(())
    readings = tuple(read_scalars(observations, drawn.patient, drawn.crop))
    errors = ScalarErrors.of(readings, sampled_doses(drawn), covariance)
    total = errors.total(ANYTHING)
    reach = OUTLIER_STDS * np.sqrt(np.diag(total))
    # What the others say of each, left out in turn, from the inverse (Sundararajan and Keerthi 2001).
    inverse = np.linalg.inv(total)
    from_others = np.abs(inverse @ errors.off) / np.sqrt(np.diag(inverse))
    beyond = (np.abs(errors.off) > reach) & (from_others > OUTLIER_STDS) & drawn.is_calibrated
    return iter(
        Judgement(r.observation, r.value, r.value - float(off), float(limit), float(out), bool(out))
        for r, off, limit, out in zip(readings, errors.off, reach, beyond, strict=True)
    )


def _judged_volume(volume: VolumeReading, drawn: DoseEnsemble, covariance: ErrorCovariance) -> Judgement:
    mean = sampled_doses(drawn).mean(axis=0)
    expected, known = volume.of(mean), volume.known
    off = np.where(known, volume.values - expected, 0)
    limits = np.hypot(_outlier_factor(drawn) * voxel_std(drawn), OUTLIER_NOISE_STDS * volume.std)
    left = np.abs(off - _best_change(volume, off, covariance))
    ratio = float((left > limits)[known].mean())
    return Judgement(
        volume.observation,
        float(volume.values[known].mean()),
        float(expected[known].mean()),
        float(limits[known].mean()),
        ratio,
        drawn.is_calibrated and ratio > OUTLIER_VOXEL_RATIO,
    )


def _best_change(volume: VolumeReading, off: NDArray, covariance: ErrorCovariance) -> NDArray[np.float64]:
    """(mask voxels,) what shift and output explain of a difference, as the volume sees it: regression within limits."""
    changes = np.stack([volume.of(change) for change in covariance.changes]).astype(float)
    weighted = changes * volume.known / np.square(np.hypot(covariance.std, volume.std).astype(float))
    sizes = np.linalg.solve(weighted @ changes.T + np.eye(len(changes)), weighted @ off)
    return np.clip(sizes, -WIDEST_CHANGE, WIDEST_CHANGE) @ changes


def _unjudged(observation: Observation, drawn: DoseEnsemble) -> Judgement:
    doses = sampled_doses(drawn)
    if isinstance(observation, DoseObservation):
        (volume,) = read_volumes([observation], drawn.patient, drawn.crop)
        observed, expected = volume.values[volume.known].mean(), volume.of(doses[0])[volume.known].mean()
    else:
        (reading,) = read_scalars([observation], drawn.patient, drawn.crop)
        observed, expected = reading.value, reading.of(doses)[0]
    return Judgement(observation, float(observed), float(expected), float("nan"), 0.0, False)


def _outlier_factor(drawn: DoseEnsemble) -> float:
    """Standard deviations to the outlier level, by the calibration's own tails over the mask (normal without)."""
    if not drawn.is_calibrated:
        return 2.33
    inner, outer = (float(drawn.half_width(level).values.sum()) for level in (0.95, OUTLIER_LEVEL))
    return 1.96 * outer / inner
