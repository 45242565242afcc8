"""Ensemble: samples of anything, with what they say of its spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.metric_samples import MetricSamples, kept_parts
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.solver.bands import FLOORS, BandScale


def band_quantiles(level: float) -> tuple[float, float]:
    """Lower and upper quantile of a central band. Raises RTDigitalTwinError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise RTDigitalTwinError(f"A band's level must lie between 0 and 1, not {level}.", remedy="Use 0.95 for 95 %.")
    return (1 - level) / 2, (1 + level) / 2


def even_band(samples: NDArray, level: float) -> tuple[float, float]:
    """Central band of a scalar's samples (samples,) that lie evenly in its distribution, each amid the n-th part of it.

    Calibrated samples do (``BandScale.calibrated``), and what is worked out of them.
    """
    low, high = np.quantile(samples, band_quantiles(level), method="hazen")
    return float(low), float(high)


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

    @property
    def is_calibrated(self) -> bool:
        """Whether the spread of these values was measured against known ones."""
        return self.scale is not None

    def calibrated_samples(self) -> NDArray:
        """Samples with the calibrated spread; as they are where it was not measured."""
        return self.samples if self.scale is None else self.scale.calibrated(self.samples)

    @property
    def metric_samples(self) -> MetricSamples:
        """Of a scalar, as goals and constraints are judged on it: by the distribution that its bands are of."""
        scale = self.scale
        if scale is None or self.count < 2:
            return MetricSamples(float(self.mean), self.samples)

        def judge(limit: float, upper: bool) -> NDArray[np.float64]:
            return kept_parts(self.samples, scale.kept_ratio(self.samples, limit, upper=upper), upper=upper)

        return MetricSamples(float(self.mean), scale.calibrated(self.samples), True, judge)

    @property
    def calibrated_std(self) -> float:
        """Of a scalar: half its calibrated 95 % band over 1.96; of the samples where none was measured."""
        if self.scale is None:
            return float(self.std)
        return float(self.scale.factor(0.95) * np.hypot(self.std, self.scale.floor) / 1.96)

    def sampled_band(self, level: float = 0.95) -> tuple[NDArray, NDArray]:
        """Pointwise central band of the *sampled* spread: (low, high). Too narrow."""
        low, high = band_quantiles(level)
        return self.quantile(low), self.quantile(high)


SMALLEST_STD_GY = 0.01
VOLUME_RATIOS = np.concatenate([[0.001, 0.005], np.linspace(0.01, 0.99, 99), [0.995, 0.999]])


def fewest_simultaneous(level: float) -> int:
    """Samples that a simultaneous band at a level needs: 19 for 95 %."""
    band_quantiles(level)
    return max(3, math.ceil(round(level / (1 - level), 9)))


@dataclass(frozen=True, eq=False)
class DvhEnsemble(Ensemble):
    """Cumulative DVHs: samples (samples, doses) of the volume's share in 0..1 at ``dose_gy`` (doses,).

    ``doses_at_volume_gy`` (samples, volumes) are the same curves at ``VOLUME_RATIOS``, not read off the axis.
    ``scale`` is of the dose at a volume, in Gy.
    """

    structure: str = ""
    dose_gy: NDArray = None  # type: ignore[assignment]
    doses_at_volume_gy: NDArray = None  # type: ignore[assignment]

    @cached_property
    def dose_at_volume(self) -> Ensemble:
        """The curves turned about: dose in Gy that each of ``VOLUME_RATIOS`` of the volume receives at least."""
        return Ensemble(self.doses_at_volume_gy, "Gy", self.scale)

    def band(self, level: float = 0.95, *, simultaneous: bool = False) -> tuple[NDArray, NDArray]:
        """Band of the volume's share (low, high); each limit falls with the dose, as a DVH does.

        Pointwise by default: at each point it holds ``level`` of the curves. Simultaneous: it holds ``level`` of the
        curves over their whole length. Calibrated bands are bands of the dose at each volume, so they close where all
        of the volume has the dose; simultaneous ones are so much wider than these as simultaneous bands of the
        samples are than pointwise ones, and their own coverage was not measured.
        Raises RTDigitalTwinError where the samples are too few for a simultaneous band at this level.
        """
        if simultaneous:
            return self._of_dose_band(*self._simultaneous_gy(level))
        if self.scale is None:
            return self.sampled_band(level)
        return self._of_dose_band(*self.dose_at_volume.band(level))

    def _of_dose_band(self, low_gy: NDArray, high_gy: NDArray) -> tuple[NDArray, NDArray]:
        """A band of the dose at each volume, as one of the volume at each dose."""
        low, high = (_volume_ratio(limit, self.dose_gy) for limit in _falling(low_gy, high_gy))
        return np.minimum(low, self.mean), np.maximum(high, self.mean)

    def _simultaneous_gy(self, level: float) -> tuple[NDArray, NDArray]:
        """Mean +- k standard deviations of the dose at each volume, k the conformal quantile of the largest deviation.

        Each sample is judged by the mean and spread of the others (sup-t band: Montiel Olea and Plagborg-Moller,
        Journal of Applied Econometrics 34, 1, 2019).
        """
        band_quantiles(level)
        doses, n = self.dose_at_volume, self.count
        rank = math.ceil(level * (n + 1))
        if n < 3 or rank > n:
            fewest = fewest_simultaneous(level)
            raise RTDigitalTwinError(
                f"A simultaneous {100 * level:g} % band needs at least {fewest} samples, not {n}.",
                remedy="Predict with more samples, or take the pointwise band.",
            )
        away = doses.samples - doses.mean
        left_out = away * n / (n - 1)
        variance = (np.square(away).sum(axis=0) - np.square(away) * n / (n - 1)) / (n - 2)
        score = np.abs(left_out) / np.sqrt(np.maximum(variance, 0) + SMALLEST_STD_GY**2)
        k = float(np.sort(score.max(axis=1))[rank - 1])
        spread = np.sqrt(doses.std**2 + SMALLEST_STD_GY**2)
        if self.scale is None:
            return np.maximum(doses.mean - k * spread, 0), doses.mean + k * spread
        low, high = doses.band(level)
        wider = max(1.0, k / float(np.quantile(score, level)))
        return np.maximum(doses.mean - wider * (doses.mean - low), 0), doses.mean + wider * (high - doses.mean)


@dataclass(frozen=True, eq=False)
class VolumeEnsemble(Ensemble):
    """The volume (samples,) that a dose reaches, known as surely as the doses at volumes are: as the DVH's band is.

    V70 is at most 20 % just where D20 is at most 70 Gy. Where nearly all or none of a volume has a dose, the samples of
    the volume itself hardly differ, and say nothing of how far the dose is from changing that.

    Attributes
    ----------
    doses : (samples, volumes) in Gy, at ``VOLUME_RATIOS``.
    at_gy : the dose.
    whole : the volume of all of the structure, in ``unit``.
    """

    doses: Ensemble = None  # type: ignore[assignment]
    at_gy: float = 0.0
    whole: float = 100.0

    def band(self, level: float = 0.95) -> tuple[NDArray, NDArray]:
        """(low, high), with the mean inside."""
        if self.scale is None:
            return self.sampled_band(level)
        low, high = (self.whole * _volume_ratio(limit, self.at_gy) for limit in _falling(*self.doses.band(level)))
        return np.minimum(low, self.mean), np.maximum(high, self.mean)

    @property
    def calibrated_std(self) -> float:
        """Half the calibrated 95 % band over 1.96, with the floor of volumes: where all or none of a volume has the
        dose its band closes, and nothing is known for sure for that."""
        if self.scale is None:
            return float(self.std)
        low, high = self.band(0.95)
        return float(np.hypot((high - low) / 2 / 1.96, FLOORS["%"] * self.whole / 100))

    def calibrated_samples(self) -> NDArray:
        """Where each calibrated curve of the doses at volumes has the dose."""
        if self.scale is None:
            return self.samples
        falling = np.minimum.accumulate(self.doses.calibrated_samples(), axis=1)
        return np.array([self.whole * _volume_ratio(row, self.at_gy) for row in falling])

    @property
    def metric_samples(self) -> MetricSamples:
        if self.scale is None or self.count < 2:
            return MetricSamples(float(self.mean), self.samples)
        return MetricSamples(float(self.mean), self.calibrated_samples(), True, self._kept)

    def _kept(self, limit: float, upper: bool) -> NDArray[np.float64]:
        if limit >= self.whole if upper else limit <= 0:
            return np.ones(self.count)
        if limit < 0 if upper else limit > self.whole:
            return np.zeros(self.count)
        return self._dose_at(limit / self.whole).metric_samples.kept(self.at_gy, upper=upper)

    def _dose_at(self, ratio: float) -> Ensemble:
        """The dose that a share of the volume receives at least."""
        scale, place = self.doses.scale, float(np.clip(ratio, VOLUME_RATIOS[0], VOLUME_RATIOS[-1]))
        gy = np.array([np.interp(place, VOLUME_RATIOS, row) for row in self.doses.samples])
        if scale is not None and np.ndim(scale.floor):
            scale = replace(scale, floor=float(np.interp(place, VOLUME_RATIOS, scale.floor)))
        return Ensemble(gy, "Gy", scale)


def _falling(low_gy: NDArray, high_gy: NDArray) -> tuple[NDArray, NDArray]:
    """Limits of the dose at each volume that never rise with it, as no DVH does: the wider."""
    return np.minimum.accumulate(low_gy), np.maximum.accumulate(high_gy[::-1])[::-1]


def _volume_ratio(falling_gy: NDArray, at_gy: NDArray | float) -> NDArray:
    """Where doses at ``VOLUME_RATIOS`` have a dose."""
    return np.interp(at_gy, falling_gy[::-1], VOLUME_RATIOS[::-1], left=1.0, right=0.0)


@dataclass(frozen=True)
class Forecast:
    """Ensembles over the time to come: for each observable one ensemble a time."""

    days: tuple[float, ...]
    observables: dict[str, tuple[Ensemble, ...]]
