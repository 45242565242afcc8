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


VOLUME_RATIOS = np.concatenate([[0.001, 0.005], np.linspace(0.01, 0.99, 99), [0.995, 0.999]])


@dataclass(frozen=True, eq=False)
class DvhEnsemble(Ensemble):
    """Cumulative DVHs: samples (samples, doses) of the volume's share in 0..1 at ``dose_gy`` (doses,).

    ``scale`` is of the dose at a volume, in Gy.
    """

    structure: str = ""
    dose_gy: NDArray = None  # type: ignore[assignment]

    @cached_property
    def dose_at_volume(self) -> Ensemble:
        """The curves turned about: dose in Gy that each of ``VOLUME_RATIOS`` of the volume receives at least."""
        return Ensemble(np.stack([dose_at_volume_gy(curve, self.dose_gy) for curve in self.samples]), "Gy", self.scale)

    def band(self, level: float = 0.95) -> tuple[NDArray, NDArray]:
        """Pointwise band of the volume's share (low, high); each limit falls with the dose, as a DVH does.

        Calibrated bands are bands of the dose at each volume, so they close where all of the volume has the dose.
        """
        if self.scale is None:
            return self.sampled_band(level)
        low_gy, high_gy = self.dose_at_volume.band(level)
        low_gy, high_gy = np.minimum.accumulate(low_gy), np.maximum.accumulate(high_gy[::-1])[::-1]
        low, high = (
            np.interp(self.dose_gy, limit[::-1], VOLUME_RATIOS[::-1], left=1.0, right=0.0)
            for limit in (low_gy, high_gy)
        )
        return np.minimum(low, self.mean), np.maximum(high, self.mean)


def dose_at_volume_gy(volume_ratio: NDArray, dose_gy: NDArray) -> NDArray:
    """Dose at ``VOLUME_RATIOS`` of one cumulative DVH (doses,) over ``dose_gy``."""
    return np.interp(VOLUME_RATIOS, volume_ratio[::-1], dose_gy[::-1])


@dataclass(frozen=True)
class Forecast:
    """Ensembles over the time to come: for each observable one ensemble a time."""

    days: tuple[float, ...]
    observables: dict[str, tuple[Ensemble, ...]]
