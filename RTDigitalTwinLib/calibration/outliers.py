"""Outliers: observations that a belief cannot explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from RTDigitalTwinLib.calibration.readings import read_scalars, read_volumes, sampled_doses, voxel_std
from RTDigitalTwinLib.patient.observation import MetricObservation, Observation, PointObservation
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

OUTLIER_LEVEL = 0.98
OUTLIER_NOISE_STDS = 3.0
OUTLIER_VOXEL_RATIO = 0.25  # of a dose volume's voxels beyond their bands


@dataclass(frozen=True)
class Judgement:
    """Whether a belief can explain an observation, in terms of the whole course.

    Attributes
    ----------
    observed, expected : in the observation's unit for the whole course; means over the voxels of a dose volume.
    reach : how far apart they may be: the calibrated 98 % band and three standard deviations of the noise, in
        quadrature. Of a dose volume the mean over its voxels.
    beyond_ratio : of a dose volume's voxels, those farther off than that; of a single value 0 or 1.
    is_outlier : beyond what the belief can explain.
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
    """Each observation against samples of a belief.

    Where bands are not calibrated nothing is called an outlier: plain samples are too narrow to say.
    """
    patient, crop = belief_drawn.patient, belief_drawn.crop
    doses = sampled_doses(belief_drawn)
    calibrated = belief_drawn.is_calibrated
    widened = _outlier_factor(belief_drawn)
    judgements = []
    for observation in observations:
        if isinstance(observation, MetricObservation | PointObservation):
            (reading,) = read_scalars([observation], patient, crop)
            expected = float(reading.of(doses).mean())
            reach = float(np.hypot(widened * reading.belief_std(belief_drawn), OUTLIER_NOISE_STDS * reading.std))
            beyond = calibrated and abs(reading.value - expected) > reach
            judgements.append(Judgement(observation, reading.value, expected, reach, float(beyond), beyond))
        else:
            (volume,) = read_volumes([observation], patient, crop)
            expected_gy = volume.of(doses.mean(axis=0))
            limits = np.hypot(widened * voxel_std(belief_drawn), OUTLIER_NOISE_STDS * volume.std)
            known = volume.known
            ratio = float((np.abs(volume.values - expected_gy) > limits)[known].mean())
            observed, expected = float(volume.values[known].mean()), float(expected_gy[known].mean())
            is_outlier = calibrated and ratio > OUTLIER_VOXEL_RATIO
            judgements.append(
                Judgement(observation, observed, expected, float(limits[known].mean()), ratio, is_outlier)
            )
    return tuple(judgements)


def _outlier_factor(drawn: DoseEnsemble) -> float:
    """Standard deviations to the outlier level, by the calibration's own tails over the mask (normal without)."""
    if not drawn.is_calibrated:
        return 2.33
    inner, outer = (float(drawn.half_width(level).values.sum()) for level in (0.95, OUTLIER_LEVEL))
    return 1.96 * outer / inner
