"""Watching a course: whether a fraction's readings are still those that the fractions before let one expect.

What a patient's readings are on average is learned fraction by fraction (a Kalman filter whose state stands still,
starting from the belief and the calibrated covariance of its error), so that an error of the network, which is the same
every day, is told from a change. Innovations, a fraction's readings less those expected, are averaged with a fading
memory, made uncorrelated before by their covariance (a multivariate exponentially weighted moving average: Lowry et
al., Technometrics 34, 46, 1992): set-up differs from day to day and averages out, a change stays. The alarm is raised
where the average is too far from 0 for its own covariance. Where doses fall off steeper than the belief has it,
readings vary more in every fraction; what is usual for the patient is learned on the way and divided by (self-starting
charts, Hawkins 1987). A single fraction counts for so much at most, so that one bad day is not enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import RTDigitalTwinError

MEMORY = 0.2  # weight of a fraction in the average of innovations
THRESHOLD = 7.0
MOST_RATIO = 2.0  # times what is usual: more chi-square of a fraction does not count
USUAL_FRACTIONS = 5.0  # that the expectation of 1 counts for in what is usual: a week
MOST_USUAL = 3.0  # times what is usual: more of a fraction is not learned from
LOOK_BACK = 8  # fractions in which a change that raised an alarm is looked for
MEMORY_RATIO = 0.6  # of the mean chi-square from one fraction to the next


@dataclass(frozen=True)
class WatchSettings:
    """When to raise the alarm. ``threshold`` is of ``Watch.total``: docs/course.md says how often it is in vain."""

    threshold: float = THRESHOLD
    memory: float = MEMORY

    def __post_init__(self) -> None:
        if not (np.isfinite(self.threshold) and self.threshold > 0 and 0 < self.memory <= 1):
            raise RTDigitalTwinError(f"No watch can be kept like this: {self}.")


@dataclass(frozen=True, eq=False)
class Watch:
    """What is known of the readings' mean, and what the fractions so far made of it.

    Attributes
    ----------
    settings : see there.
    expected_gy, covariance : (readings,), (readings, readings) of the mean over fractions.
    learned : fractions since it was begun; the first tells of the patient, not of a change.
    average : (readings,) of uncorrelated innovations, with a fading memory; None before any.
    average_variance : of each of its components, without a change.
    totals : by fraction, how many standard deviations the average's chi-square was beyond its mean.
    innovation_ratio : chi-square over its degrees of freedom of the last fraction; 1 is as expected.
    mean_ratio : the same averaged with a fading memory.
    usual_ratio, usual_weight : the patient's own mean of it, at least 1, and of how many fractions.
    """

    settings: WatchSettings
    expected_gy: NDArray[np.float64]
    covariance: NDArray[np.float64]
    learned: int = 0
    average: NDArray[np.float64] | None = None
    average_variance: float = 0.0
    totals: tuple[tuple[int, float], ...] = ()
    innovation_ratio: float = 1.0
    mean_ratio: float = 1.0
    usual_ratio: float = 1.0
    usual_weight: float = USUAL_FRACTIONS

    def after(self, fraction: int, readings_gy: NDArray[np.float64], daily: NDArray[np.float64]) -> Watch:
        """With a fraction's readings, whose covariance about their mean is ``daily``."""
        off = readings_gy - self.expected_gy
        total = self.covariance + daily
        gain = np.linalg.solve(total, self.covariance).T
        left = self.covariance - gain @ self.covariance
        alone = np.linalg.solve(np.linalg.cholesky(total), off)
        ratio = float(np.square(alone).mean())
        learnt = replace(
            self,
            expected_gy=self.expected_gy + gain @ off,
            covariance=(left + left.T) / 2,
            learned=self.learned + 1,
            innovation_ratio=ratio,
        )
        return learnt._averaged(fraction, alone, ratio) if self.learned else learnt

    def _averaged(self, fraction: int, alone: NDArray[np.float64], ratio: float) -> Watch:
        """With a fraction's innovation, uncorrelated and of variance 1 as expected."""
        usual, memory = self.usual_ratio, self.settings.memory
        counts = min(1.0, np.sqrt(MOST_RATIO * usual / max(ratio, 1e-9))) / np.sqrt(usual)
        before = np.zeros_like(alone) if self.average is None else self.average
        average = memory * counts * alone + (1 - memory) * before
        variance = memory**2 + (1 - memory) ** 2 * self.average_variance
        beyond = float((np.square(average).mean() / variance - 1) * np.sqrt(alone.size / 2))
        learned = (self.usual_weight * usual + min(ratio, MOST_USUAL * usual)) / (self.usual_weight + 1)
        return replace(
            self,
            average=average,
            average_variance=variance,
            totals=(*self.totals, (fraction, beyond)),
            mean_ratio=MEMORY_RATIO * self.mean_ratio + (1 - MEMORY_RATIO) * ratio / usual,
            usual_ratio=max(learned, 1.0),
            usual_weight=self.usual_weight + 1,
        )

    @property
    def total(self) -> float:
        """What the alarm is raised by; 0 where the readings are as expected."""
        return max(self.totals[-1][1], 0.0) if self.totals else 0.0

    @property
    def since(self) -> int | None:
        """The fraction after that of late in which the average was least off; None before it rose."""
        late = self.totals[-LOOK_BACK:]
        if not late:
            return None
        least = min(late, key=lambda of: (of[1], -of[0]))[0]
        return None if least == late[-1][0] else least + 1

    @property
    def alarm(self) -> bool:
        return self.total >= self.settings.threshold

    @property
    def inflation_ratio(self) -> float:
        """How much wider than told the belief is, by the innovations of late; at least 1 (Desroziers et al. 2005)."""
        return float(np.sqrt(max(1.0, self.mean_ratio)))
