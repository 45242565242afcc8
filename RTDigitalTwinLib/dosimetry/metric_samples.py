"""A metric of a dose that is not known for sure: its samples, and how probably it keeps a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric

KeptRatio = Callable[[float, bool], float]  # of a limit, upper or lower


@dataclass(frozen=True, eq=False)
class MetricSamples:
    """A metric of one structure: samples (samples,), and whether their spread was measured.

    Attributes
    ----------
    nominal : the value to show: of the single dose, or the samples' mean.
    kept_ratio : probability that a limit (``upper`` or lower) is kept, of the distribution that the samples stand for;
        None where the samples are all that is known of it.
    """

    nominal: float
    samples: NDArray[np.float64]
    is_calibrated: bool = False
    kept_ratio: KeptRatio | None = None

    def kept(self, limit: float, *, upper: bool) -> NDArray[np.float64]:
        """(samples,) how much of each sample keeps a limit; their mean is the probability that it is kept.

        A sample stands for the n-th part of the distribution about it, in order of size: of one part the limit may
        leave a share, and all others keep it or do not. So limits on several metrics are judged sample by sample.
        """
        if self.kept_ratio is None:
            return np.asarray(self.samples <= limit if upper else self.samples >= limit, float)
        n = self.samples.size
        before = ranks(self.samples) if upper else n - 1 - ranks(self.samples)
        return np.clip(n * self.kept_ratio(limit, upper) - before, 0.0, 1.0)


def ranks(values: NDArray) -> NDArray[np.intp]:
    """(samples,) position of each value among them, from 0; equal values in the order given."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


Metrics = Callable[[str, DvhMetric], MetricSamples]
