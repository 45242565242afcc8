"""Watching a course: whether a fraction's readings are still those that the fractions before let one expect.

What a patient's readings are on average is learned fraction by fraction (a Kalman filter whose state stands still,
starting from the belief and the calibrated covariance of its error), so that an error of the network, which is the same
every day, is told from a change. The innovation, a fraction's readings less those expected, gives chi-square over its
covariance with as many degrees of freedom as there are readings. Where doses fall off steeper than the belief has it,
that is larger in every fraction; what is usual for the patient is learned on the way and divided by (self-starting
charts, Hawkins 1987). A cumulative sum of the excess (Page 1954) raises the alarm; a single fraction's share in it is
limited, so that one bad day is not enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import RTDigitalTwinError

SLACK = 1.5  # standard deviations of chi-square that a fraction may exceed its mean by at no cost
THRESHOLD = 12.0
MOST_A_FRACTION = 0.7  # of the threshold
USUAL_FRACTIONS = 3.0  # that the expectation of 1 counts for in what is usual
MOST_USUAL = 3.0  # times what is usual: more of a fraction is not learned from
MEMORY_RATIO = 0.6  # of the mean chi-square from one fraction to the next


@dataclass(frozen=True)
class WatchSettings:
    """When to raise the alarm. ``threshold`` is of the cumulative sum: docs/course.md says how often it is in vain."""

    threshold: float = THRESHOLD
    slack: float = SLACK

    def __post_init__(self) -> None:
        if not (np.isfinite([self.threshold, self.slack]).all() and self.threshold > 0 and self.slack >= 0):
            raise RTDigitalTwinError(f"No watch can be kept like this: {self}.")


@dataclass(frozen=True, eq=False)
class Watch:
    """What is known of the readings' mean, and what the fractions so far made of it.

    Attributes
    ----------
    settings : see there.
    expected_gy, covariance : (readings,), (readings, readings) of the mean over fractions.
    learned : fractions since it was begun; the first tells of the patient, not of a change.
    total : the cumulative sum.
    since : the first fraction after the sum was last 0; None where it is.
    innovation_ratio : chi-square over its degrees of freedom of the last fraction; 1 is as expected.
    mean_ratio : the same averaged with a fading memory.
    usual_ratio, usual_weight : the patient's own mean of it, at least 1, and of how many fractions.
    """

    settings: WatchSettings
    expected_gy: NDArray[np.float64]
    covariance: NDArray[np.float64]
    learned: int = 0
    total: float = 0.0
    since: int | None = None
    innovation_ratio: float = 1.0
    mean_ratio: float = 1.0
    usual_ratio: float = 1.0
    usual_weight: float = USUAL_FRACTIONS

    def after(self, fraction: int, readings_gy: NDArray[np.float64], daily: NDArray[np.float64]) -> Watch:
        """With a fraction's readings, whose covariance about their mean is ``daily``."""
        off = readings_gy - self.expected_gy
        total = self.covariance + daily
        gain = np.linalg.solve(total, self.covariance).T
        count = len(off)
        chi_square = float(off @ np.linalg.solve(total, off))
        ratio = chi_square / count
        more = (ratio / self.usual_ratio - 1) * np.sqrt(count / 2) - self.settings.slack
        more = min(more, MOST_A_FRACTION * self.settings.threshold) if self.learned else 0.0
        sum_now = max(self.total + more, 0.0)
        left = self.covariance - gain @ self.covariance
        mean = MEMORY_RATIO * self.mean_ratio + (1 - MEMORY_RATIO) * ratio / self.usual_ratio if self.learned else 1.0
        usual, weight = self.usual_ratio, self.usual_weight
        if self.learned:
            usual = (weight * usual + min(ratio, MOST_USUAL * usual)) / (weight + 1)
            weight += 1
        return replace(
            self,
            expected_gy=self.expected_gy + gain @ off,
            covariance=(left + left.T) / 2,
            learned=self.learned + 1,
            total=sum_now,
            since=(fraction if self.since is None else self.since) if sum_now else None,
            innovation_ratio=ratio,
            mean_ratio=mean,
            usual_ratio=max(usual, 1.0),
            usual_weight=weight,
        )

    @property
    def alarm(self) -> bool:
        return self.total >= self.settings.threshold

    @property
    def inflation_ratio(self) -> float:
        """How much wider than told the belief is, by the innovations of late; at least 1 (Desroziers et al. 2005)."""
        return float(np.sqrt(max(1.0, self.mean_ratio)))
