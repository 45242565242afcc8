"""Outliers: observations that neither a belief nor a change of treatment can explain.

A metric or a point is an outlier where it lies too far from what is expected, the patient's shift and the machine's
output allowed for, and too far from what the other observations together say of it as well: values that agree with
each other tell of a change, a value alone of a mistake. A dose volume is one where too many voxels stay unexplained
after the shift and the output that explain it best, or where these are larger than treatment ever is.

Values that agree are judged together as well: their squared Mahalanobis distance under belief, change and noise has a
chi-square distribution, and a set as far off as one in a thousand would be is an outlier as a whole (all in the wrong
unit, or another patient's). The distance is taken to first order; a set too far off so is judged again with the dose
really moved and scaled as explains it best, unless that change is itself a rare one. Where metrics and points were
absorbed before, later ones are judged given these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import SHIFT_STD_MM, ErrorCovariance, Hypothesis, ScalarErrors
from RTDigitalTwinLib.calibration.readings import (
    VolumeReading,
    read_scalars,
    read_volumes,
    sampled_doses,
    voxel_std,
)
from RTDigitalTwinLib.calibration.scalar_posterior import Mode
from RTDigitalTwinLib.calibration.treatment_change import Mover
from RTDigitalTwinLib.patient.observation import (
    CouchShiftObservation,
    DoseObservation,
    MetricObservation,
    Observation,
    PointObservation,
    ScalarObservation,
)
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

OUTLIER_STDS = 3.5  # errors of a network have longer tails than a normal distribution
OUTLIER_LEVEL = 0.98
OUTLIER_VOXEL_NOISE_STDS = 3.0  # less than for a value: no voxel is rejected by itself, a quarter of all must be off
OUTLIER_VOXEL_RATIO = 0.25  # of a dose volume's voxels beyond their bands
JOINT_PROBABILITY = 0.001  # a set of values that is less likely is an outlier as a whole
LIKELY_CHANGE = 7.78  # squared sizes of a change, in standard deviations: nine in ten of all changes are within
DAILY_RATIO = 0.5  # of shift and output: how much they differ from one fraction to another
WIDEST_CHANGE = 3.0  # standard deviations of shift and output that may explain a dose volume


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
    joint_probability : of values as far off together as this one and those given with it; None for a single one, for
        one that is an outlier by itself, and for dose volumes.
    """

    observation: Observation
    observed: float
    expected: float
    reach: float
    beyond_ratio: float
    is_outlier: bool
    joint_probability: float | None = None

    @property
    def words(self) -> str:
        unit = self.observation.unit
        said = f"{self.observation.label}: {self.observed:.4g} {unit} observed, {self.expected:.4g} {unit} expected"
        if self.beyond_ratio not in (0.0, 1.0):
            return f"{said}, {self.beyond_ratio:.0%} of voxels beyond what the belief can explain"
        if self.is_outlier and self.joint_probability is not None:
            likely = f"less likely than {JOINT_PROBABILITY:g} together with the values given with it"
            return f"{said}, explicable alone but {likely}: look for a wrong unit, normalisation or patient"
        return f"{said}, at most {self.reach:.3g} {unit} apart explicable" if self.is_outlier else said


@dataclass(frozen=True, eq=False)
class Earlier:
    """Metrics and points that were absorbed, with samples of the network's own belief."""

    observations: tuple[ScalarObservation, ...]
    drawn: DoseEnsemble

    @classmethod
    def of(cls, absorbed: Sequence[Observation], drawn: DoseEnsemble) -> Earlier | None:
        """None where nothing was absorbed, or also dose volumes: then the belief after them is judged by."""
        scalars = tuple(o for o in absorbed if isinstance(o, MetricObservation | PointObservation))
        has_volume = any(isinstance(o, DoseObservation) for o in absorbed)
        return cls(scalars, drawn) if scalars and not has_volume and drawn.has_spread else None


def judge(
    belief_drawn: DoseEnsemble,
    observations: Sequence[Observation],
    earlier: Earlier | None = None,
    known_to_mm: float | None = None,
) -> tuple[Judgement, ...]:
    """Each observation against samples of a belief, and metrics and points against each other and ``earlier`` ones.

    Where bands are not calibrated nothing is called an outlier: plain samples are too narrow to say. With fewer than
    two samples there is no spread to judge by, and nothing is either. ``known_to_mm`` is the position's standard
    deviation where dose was measured, as far as it was observed.
    """
    patient, crop = belief_drawn.patient, belief_drawn.crop
    if not observations:
        return ()
    if not belief_drawn.has_spread:
        return tuple(_unjudged(o, belief_drawn) for o in observations)
    covariance = ErrorCovariance.of(belief_drawn)
    given = [o for o in observations if isinstance(o, MetricObservation | PointObservation)]
    scalars = _judged_scalars(given, belief_drawn, earlier, known_to_mm)
    judgements = []
    for observation in observations:
        if isinstance(observation, DoseObservation):
            (volume,) = read_volumes([observation], patient, crop)
            judgements.append(_judged_volume(volume, belief_drawn, covariance))
        elif isinstance(observation, CouchShiftObservation):
            judgements.append(judged_shift(observation))
        else:
            judgements.append(next(scalars))
    return tuple(judgements)


def _judged_scalars(
    observations: Sequence[ScalarObservation],
    drawn: DoseEnsemble,
    earlier: Earlier | None,
    known_to_mm: float | None,
) -> Iterator[Judgement]:
    if not observations:
        return iter(())
    before = () if earlier is None else earlier.observations
    drawn_before = drawn if earlier is None else earlier.drawn
    covariance, doses = ErrorCovariance.of(drawn_before, known_to_mm), sampled_doses(drawn_before)

    def errors_of(some: Sequence[ScalarObservation]) -> ScalarErrors:
        return ScalarErrors.of(read_scalars([*before, *some], drawn.patient, drawn.crop), doses, covariance)

    errors = errors_of(observations)
    off, total = _given(errors, len(before))
    reach = OUTLIER_STDS * np.sqrt(np.diag(total))
    # What the others say of each, left out in turn, from the inverse (Sundararajan and Keerthi 2001).
    inverse = np.linalg.inv(total)
    from_others = np.abs(inverse @ off) / np.sqrt(np.diag(inverse))
    beyond = (np.abs(off) > reach) & (from_others > OUTLIER_STDS) & drawn.is_calibrated
    likely = _joint_probability(off[~beyond], total[np.ix_(~beyond, ~beyond)])
    if likely is not None and likely < JOINT_PROBABILITY:
        kept = errors_of([o for o, out in zip(observations, beyond, strict=True) if not out])
        mode = Mode.of(kept, Mover(kept.dose_gy, covariance), _anything(covariance))
        if float(mode.sizes @ mode.sizes) <= LIKELY_CHANGE:
            likely = _joint_probability(*_given(mode.errors, len(before)))
    together = drawn.is_calibrated and likely is not None and likely < JOINT_PROBABILITY
    return iter(
        Judgement(
            reading.observation,
            reading.value,
            reading.value - float(off[k]),
            float(reach[k]),
            float(beyond[k]),
            bool(beyond[k]) or together,
            None if beyond[k] else likely,
        )
        for k, reading in enumerate(errors.readings[len(before) :])
    )


def _given(errors: ScalarErrors, before: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(readings,) observed minus expected and (readings, readings) its covariance, given the first ``before`` of them.

    Normal conditioning under the network's own errors and one change of treatment for all; from day to day that may
    vary by ``DAILY_RATIO`` of it.
    """
    total, off = errors.total(_anything(errors.covariance)), errors.off
    if not before:
        return off, total
    gain = np.linalg.solve(total[:before, :before], total[:before, before:]).T
    daily = DAILY_RATIO * errors.change_slopes[before:]
    left = total[before:, before:] - gain @ total[:before, before:] + daily @ daily.T
    return off[before:] - gain @ off[:before], (left + left.T) / 2


def _anything(covariance: ErrorCovariance) -> Hypothesis:
    """The one that lets every change be."""
    return covariance.hypotheses[-1]


def _joint_probability(off: NDArray[np.float64], total: NDArray[np.float64]) -> float | None:
    """Of a squared Mahalanobis distance at least as large: None for fewer than two values."""
    if len(off) < 2:
        return None
    square = float(off @ np.linalg.solve(total, off))
    return float(torch.special.gammaincc(torch.tensor(len(off) / 2.0), torch.tensor(square / 2.0)))


def _judged_volume(volume: VolumeReading, drawn: DoseEnsemble, covariance: ErrorCovariance) -> Judgement:
    mean = sampled_doses(drawn).mean(axis=0)
    expected, known = volume.of(mean), volume.known
    off = np.where(known, volume.values - expected, 0)
    limits = np.hypot(_outlier_factor(drawn) * voxel_std(drawn), OUTLIER_VOXEL_NOISE_STDS * volume.std)
    sizes, explained = _best_change(volume, off, covariance)
    left = np.abs(off - explained)
    ratio = float((left > limits)[known].mean())
    too_large = bool(np.abs(sizes).max() > OUTLIER_STDS)
    return Judgement(
        volume.observation,
        float(volume.values[known].mean()),
        float(expected[known].mean()),
        float(limits[known].mean()),
        ratio,
        drawn.is_calibrated and (ratio > OUTLIER_VOXEL_RATIO or too_large),
    )


def _best_change(
    volume: VolumeReading, off: NDArray, covariance: ErrorCovariance
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(4,) sizes of shift and output that explain a difference best, and (mask voxels,) what they do within limits."""
    changes = np.stack([volume.of(change) for change in covariance.changes]).astype(float)
    weighted = changes * volume.known / np.square(np.hypot(covariance.std, volume.std).astype(float))
    sizes = np.linalg.solve(weighted @ changes.T + np.eye(len(changes)), weighted @ off)
    return sizes, np.clip(sizes, -WIDEST_CHANGE, WIDEST_CHANGE) @ changes


def judged_shift(observation: CouchShiftObservation) -> Judgement:
    """A couch shift against what shifts are: 0 mm expected, each axis by itself."""
    reach = OUTLIER_STDS * float(np.hypot(SHIFT_STD_MM, observation.noise.floor))
    beyond = max(map(abs, observation.shift_mm)) > reach
    return Judgement(observation, observation.value, 0.0, reach, float(beyond), beyond)


def _unjudged(observation: Observation, drawn: DoseEnsemble) -> Judgement:
    doses = sampled_doses(drawn)
    if isinstance(observation, CouchShiftObservation):
        return judged_shift(observation)
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
