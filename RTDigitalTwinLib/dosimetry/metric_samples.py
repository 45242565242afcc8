"""A metric of a dose that is not known for sure: its samples, and how probably it keeps a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh_metric import DvhMetric

Judge = Callable[[float, bool], NDArray[np.float64]]  # of a limit, upper or lower: (samples,) how much of each keeps it


@dataclass(frozen=True, eq=False)
class MetricSamples:
    """A metric of one structure: samples (samples,), and whether their spread was measured.

    Attributes
    ----------
    nominal : the value to show: of the single dose, or the samples' mean.
    judge : by the distribution that the samples stand for; None where they are all that is known of it.
    """

    nominal: float
    samples: NDArray[np.float64]
    is_calibrated: bool = False
    judge: Judge | None = None

    def kept(self, limit: float, *, upper: bool) -> NDArray[np.float64]:
        """(samples,) how much of each sample keeps a limit, 0..1; their mean is the probability that it is kept."""
        if self.judge is not None:
            return self.judge(limit, upper)
        return np.asarray(self.samples <= limit if upper else self.samples >= limit, float)


def kept_parts(samples: NDArray, kept_ratio: float, *, upper: bool) -> NDArray[np.float64]:
    """(samples,) how much of each keeps a limit, where the distribution that they stand for does with ``kept_ratio``.

    A sample stands for the n-th part of the distribution about it, in order of size: of one part the limit may leave a
    share, and all others keep it or do not. So limits on several metrics are judged together, sample by sample.
    """
    n = len(samples)
    before = ranks(samples) if upper else n - 1 - ranks(samples)
    return np.clip(n * kept_ratio - before, 0.0, 1.0)


def ranks(values: NDArray) -> NDArray[np.intp]:
    """Position of each value among the samples (first axis), from 0; equal values in the order given."""
    return np.argsort(np.argsort(values, axis=0, kind="stable"), axis=0, kind="stable")


Metrics = Callable[[str, DvhMetric], MetricSamples]
