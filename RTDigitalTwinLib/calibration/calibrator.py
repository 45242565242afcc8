"""Calibrators: ways to absorb observations into a belief, behind one Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import Belief, RecalibratedBelief, absorbed_by, in_time, prior_of
from RTDigitalTwinLib.calibration.readings import (
    Reading,
    VolumeReading,
    read_scalars,
    read_volumes,
    sampled_doses,
    voxel_std,
)
from RTDigitalTwinLib.patient.observation import MetricObservation, Observation, PointObservation, require_fit
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief

SAMPLES = 32  # what a calibrator looks at; bands are calibrated for that many
OUTLIER_LEVEL = 0.98
OUTLIER_NOISE_STDS = 3.0
OUTLIER_VOXEL_RATIO = 0.25  # of a dose volume's voxels beyond their bands


class Calibrator(Protocol):
    """A way to absorb observations.

    All work on the whole of what was ever absorbed, from the network's own belief on: the order in which observations
    were given does not matter, and one method may follow another.
    """

    @property
    def name(self) -> str: ...

    def recalibrate(
        self,
        belief: Belief,
        observations: Sequence[Observation],
        drawn: DoseEnsemble | None = None,
        progress: Progress = silent,
    ) -> RecalibratedBelief:
        """The belief with ``observations`` absorbed besides what it holds already; ``belief`` stays as it is.

        ``drawn`` are samples of the network's own belief, where they are at hand. Raises PatientDataError for
        observations that cannot be the patient's or were absorbed before.
        """
        ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """What any calibrator starts from.

    Attributes
    ----------
    prior : the network's own belief.
    observations : absorbed before and now, in order of time.
    drawn : samples of the prior.
    """

    prior: DoseBelief
    observations: tuple[Observation, ...]
    drawn: DoseEnsemble
    scalars: tuple[Reading, ...]
    volumes: tuple[VolumeReading, ...]

    @property
    def doses_gy(self) -> NDArray[np.float32]:
        """(samples, mask voxels) of the prior."""
        return sampled_doses(self.drawn)

    @property
    def mean_gy(self) -> NDArray[np.float32]:
        """(mask voxels,) mean of the prior's samples."""
        return self.drawn.mean.values.reshape(-1)[self.drawn.crop.mask_indices].astype(np.float32)


def gather(
    belief: Belief, observations: Sequence[Observation], drawn: DoseEnsemble | None = None, progress: Progress = silent
) -> Evidence:
    """All that was and is to be absorbed, read against the network's own belief. Raises PatientDataError."""
    prior, before = prior_of(belief), absorbed_by(belief)
    require_fit(observations, prior.patient, before)
    if drawn is None:
        drawn = prior.sample(SAMPLES, 0, progress)
    together = in_time([*before, *observations])
    scalars = read_scalars(together, prior.patient, drawn.crop)
    volumes = read_volumes(together, prior.patient, drawn.crop)
    return Evidence(prior, together, drawn, tuple(scalars), tuple(volumes))


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
