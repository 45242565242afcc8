"""Ensemble: samples of anything, with what they say of its spread."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.solver.bands import BandScale


def band_quantiles(level: float) -> tuple[float, float]:
    """Lower and upper quantile of a central band. Raises RTDigitalTwinError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise RTDigitalTwinError(f"A band's level must lie between 0 and 1, not {level}.", remedy="Use 0.95 for 95 %.")
    return (1 - level) / 2, (1 + level) / 2


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Samples of an array or a scalar.

    Attributes
    ----------
    samples : (samples, ...).
    unit : of the values.
    scale : widens the spread to a calibrated band; None where that was not measured.
    """

    samples: NDArray
    unit: str = ""
    scale: BandScale | None = None

    @property
    def count(self) -> int:
        return len(self.samples)

    @cached_property
    def mean(self) -> NDArray:
        return self.samples.mean(axis=0, dtype=float)

    @cached_property
    def std(self) -> NDArray:
        """Standard deviation of the samples (n - 1). Raises RTDigitalTwinError with fewer than two."""
        if self.count < 2:
            raise RTDigitalTwinError("A spread needs at least two samples.", remedy="Ask for more samples.")
        return self.samples.std(axis=0, ddof=1, dtype=float)

    def quantile(self, ratio: float) -> NDArray:
        """Exact quantile of the samples, linearly interpolated."""
        return np.quantile(self.samples, ratio, axis=0)

    def band(self, level: float = 0.95) -> tuple[NDArray, NDArray]:
        """Pointwise central band (low, high): calibrated where its coverage was measured, else of the samples."""
        if self.scale is None:
            return self.sampled_band(level)
        return self.scale.band(self.mean, self.std, level)

    def sampled_band(self, level: float = 0.95) -> tuple[NDArray, NDArray]:
        """Pointwise central band of the *sampled* spread: (low, high). Too narrow."""
        low, high = band_quantiles(level)
        return self.quantile(low), self.quantile(high)


@dataclass(frozen=True, eq=False)
class DvhEnsemble(Ensemble):
    """Cumulative DVHs: samples (samples, doses) of the volume's share in 0..1 at ``dose_gy`` (doses,)."""

    structure: str = ""
    dose_gy: NDArray = None  # type: ignore[assignment]

    def band(self, level: float = 0.95) -> tuple[NDArray, NDArray]:
        """Pointwise band (low, high); each limit falls with the dose, as a DVH does."""
        low, high = super().band(level)
        return np.minimum.accumulate(low), np.maximum.accumulate(high[::-1])[::-1]


@dataclass(frozen=True)
class Forecast:
    """Ensembles over the time to come: for each observable one ensemble a time."""

    days: tuple[float, ...]
    observables: dict[str, tuple[Ensemble, ...]]
