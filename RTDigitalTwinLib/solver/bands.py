"""Calibrated bands: the sampled spread times factors whose coverage was measured.

A band is mean +- factor * sqrt(spread^2 + floor^2). The factors come from patients with known dose (see
``calibration.conformal``); they hold for patients like those, and for the network they were measured with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.metric_samples import ranks
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.solver.correlation import CUSTOMARY_SHARES, LENGTHS_MM

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95, 0.98)
DOSE_EDGES_GY = (5.0, 20.0, 40.0, 55.0)
FLOORS = {"Gy": 0.25, "%": 0.5}
REMAINDER = "remainder"  # voxels of no structure


@dataclass(frozen=True)
class BandScale:
    """Factors by level for one kind of value.

    Attributes
    ----------
    factors : one for each of ``LEVELS``, or fewer where the patients were too few for the highest.
    floor : in the unit of the value; an array for each of several values.
    highest : the value's upper limit, such as 100 %; the lower is 0.
    """

    factors: tuple[float, ...]
    floor: float | NDArray[np.float64]
    highest: float = np.inf

    def factor(self, level: float) -> float:
        """Factor at a level, linear between those measured. Raises RTDigitalTwinError beyond them."""
        return float(factors_at(np.asarray(self.factors), level))

    @property
    def std_factor(self) -> float:
        """Standard deviations of the value to one of the spread, by the 95 % band or the widest known."""
        level = min(0.95, LEVELS[len(self.factors) - 1])
        return self.factor(level) / NormalDist().inv_cdf((1 + level) / 2)

    def times(self, unit: float) -> BandScale:
        """For the same value in another unit, ``unit`` times as large."""
        return BandScale(self.factors, self.floor * unit, self.highest * unit)

    def calibrated(self, samples: NDArray) -> NDArray[np.float64]:
        """Samples (samples, ...), moved until those of each value lie evenly in its calibrated distribution.

        Its central bands are the calibrated ones (``kept_ratio``). Sample k of n in order goes to its quantile
        (k + 0.5) / n, so that samples of several values stay together, and the number beyond a limit is what the
        distribution has there, whatever the luck of the draw. Raises RTDigitalTwinError with fewer than two samples.
        """
        values = np.asarray(samples, float)
        mean, spread = self._centre(values)
        central = 2 * (ranks(values) + 0.5) / len(values) - 1
        return np.clip(mean + np.sign(central) * self._factors_of(np.abs(central)) * spread, 0, self.highest)

    def kept_ratio(self, samples: NDArray, limit: float, *, upper: bool) -> float:
        """Probability that a scalar is at most (``upper``) or at least ``limit``, by samples (samples,) of it.

        Of the distribution about the mean whose central bands are the calibrated ones: at the edge of its 95 % band a
        limit is kept with 97.5 % or 2.5 %. Between no deviation and the lowest level measured, factors rise linearly;
        beyond the highest they go on as those of a normal distribution do.
        Raises RTDigitalTwinError with fewer than two samples.
        """
        mean, spread = (float(v) for v in self._centre(np.asarray(samples, float)))
        if limit >= self.highest if upper else limit <= 0:
            return 1.0
        if limit < 0 if upper else limit > self.highest:
            return 0.0
        room = limit - mean if upper else mean - limit
        if spread == 0:
            return float(room >= 0)
        central = self._central_ratio(abs(room) / spread)
        return (1 + central) / 2 if room >= 0 else (1 - central) / 2

    def _centre(self, values: NDArray) -> tuple[NDArray, NDArray]:
        """Mean over the samples, and the spread that factors multiply."""
        if len(values) < 2:
            raise RTDigitalTwinError("A spread needs at least two samples.", remedy="Ask for more samples.")
        return values.mean(axis=0), np.sqrt(values.var(axis=0, ddof=1) + np.square(self.floor))

    def _factors_of(self, central: NDArray) -> NDArray[np.float64]:
        """Factors of the bands that hold shares 0..1 (excluded) of the distribution."""
        known = LEVELS[: len(self.factors)]
        within = np.interp(central, (0.0, *known), (0.0, *self.factors))
        outermost = (1 + known[-1]) / 2
        normal = torch.special.ndtri(torch.from_numpy(np.maximum((1 + central) / 2, outermost))).numpy()
        return within * normal / NormalDist().inv_cdf(outermost)  # 1 within the known levels

    def _central_ratio(self, factor: float) -> float:
        """The share that the band of a factor holds: ``_factors_of`` the other way."""
        known = LEVELS[: len(self.factors)]
        if factor == 0:  # where the first factors are 0, bands of several levels are the mean alone
            return 0.0
        if factor <= self.factors[-1]:
            return float(np.interp(factor, (0.0, *self.factors), (0.0, *known)))
        if self.factors[-1] == 0:
            return 1.0
        normal = NormalDist()
        return 2 * normal.cdf(normal.inv_cdf((1 + known[-1]) / 2) * factor / self.factors[-1]) - 1

    def band(self, mean: NDArray, spread: NDArray, level: float) -> tuple[NDArray, NDArray]:
        """(low, high) within the value's limits."""
        half = self.factor(level) * np.sqrt(np.square(spread) + self.floor**2)
        return np.clip(mean - half, 0, self.highest), np.clip(mean + half, 0, self.highest)


def factors_at(factors: NDArray, level: float) -> NDArray:
    """Factors (..., levels) at a level, linearly between those measured."""
    measured = LEVELS[: factors.shape[-1]]
    if not measured[0] <= level <= measured[-1]:
        raise RTDigitalTwinError(
            f"Bands are calibrated from {measured[0]:.0%} to {measured[-1]:.0%} here, not at {level:.1%}.",
            remedy="Choose a level between these, or ask for the sampled band.",
        )
    upper = int(np.searchsorted(measured, level))
    lower = max(upper - 1, 0)
    share = 0.0 if upper == lower else (level - LEVELS[lower]) / (LEVELS[upper] - LEVELS[lower])
    return (1 - share) * factors[..., lower] + share * factors[..., upper]


@dataclass(frozen=True)
class BandCalibration:
    """Factors for voxels, DVH metrics and DVH curves.

    Keys are a structure's name, or ``target``, ``organ`` (pooled) or ``remainder``.

    Attributes
    ----------
    voxels : by key a factor for each dose range (between ``DOSE_EDGES_GY``) and level.
    metrics : by "key metric" factors by level; "key Gy" stands for doses that were not measured.
    curves : by key factors by level.
    patients, samples : what it was measured on.
    correlation : shares of the lengths over which errors hang together (``solver.correlation``).
    """

    voxels: Mapping[str, tuple[tuple[float, ...], ...]]
    metrics: Mapping[str, tuple[float, ...]]
    curves: Mapping[str, tuple[float, ...]]
    patients: int
    samples: int
    correlation: tuple[float, ...] = CUSTOMARY_SHARES

    @property
    def highest_metric_level(self) -> float:
        """The widest central band that was measured of every metric; beyond it samples are spread as a normal's."""
        return LEVELS[min((len(factors) for factors in self.metrics.values()), default=1) - 1]

    def metric_scale(self, structure: str, kind: StructureKind, metric: str, unit: str) -> BandScale | None:
        """For a DVH metric of a structure, pooled over what is alike where it was not measured itself; None without.

        A dose that was not measured has the factors of other doses. A volume at a dose has not: how its spread goes
        with its error depends on how near to all or none it is (``curve_scale`` tells of it instead).
        """
        pooled = pooled_key(kind)
        alike = () if unit == "%" else (f"{pooled} {unit}",)
        for key in (f"{structure} {metric}", f"{pooled} {metric}", *alike):
            if key in self.metrics:
                return BandScale(self.metrics[key], FLOORS[unit], 100.0 if unit == "%" else np.inf)
        return None

    def curve_scale(self, structure: str, kind: StructureKind) -> BandScale | None:
        """For the dose at a volume of a structure's DVH; None where nothing like it was measured."""
        key = structure if structure in self.curves else pooled_key(kind)
        return BandScale(self.curves[key], FLOORS["Gy"]) if key in self.curves else None

    def voxel_factors(self, structure: str, kind: StructureKind, level: float) -> NDArray:
        """(dose ranges,) factors in a structure."""
        keys = (structure, pooled_key(kind), REMAINDER)
        return factors_at(np.asarray(next(self.voxels[key] for key in keys if key in self.voxels)), level)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, factors to four digits."""

        def rounded(values: Any) -> Any:
            return [rounded(v) for v in values] if isinstance(values, Sequence) else round(float(values), 4)

        groups = {
            name: {key: rounded(f) for key, f in getattr(self, name).items()}
            for name in ("voxels", "metrics", "curves")
        }
        correlation = rounded(self.correlation)
        return {**groups, "patients": self.patients, "samples": self.samples, "correlation": correlation}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> BandCalibration:
        """Raises KeyError, TypeError or ValueError where something is missing."""
        voxels = {k: tuple(tuple(map(float, r)) for r in ranges) for k, ranges in stored["voxels"].items()}
        flat = [{k: tuple(map(float, f)) for k, f in stored[name].items()} for name in ("metrics", "curves")]
        rows = [f for group in flat for f in group.values()] + [r for ranges in voxels.values() for r in ranges]
        if not all(_are_factors(f) for f in rows) or any(len(r) != len(DOSE_EDGES_GY) + 1 for r in voxels.values()):
            raise ValueError("no factors by level and dose range")
        if REMAINDER not in voxels:
            raise ValueError("no factors for the remainder")
        shares = tuple(map(float, stored.get("correlation", CUSTOMARY_SHARES)))
        if len(shares) != len(LENGTHS_MM) or not all(0 <= share <= 1 for share in shares):
            raise ValueError("no shares of the lengths of correlation")
        return cls(voxels, flat[0], flat[1], int(stored["patients"]), int(stored["samples"]), shares)


def _are_factors(values: tuple[float, ...]) -> bool:
    known = np.asarray(values)
    return 0 < known.size <= len(LEVELS) and bool(np.isfinite(known).all() and (np.diff(known, prepend=0.0) >= 0).all())


def pooled_key(kind: StructureKind) -> str:
    """The key under which structures of a kind are pooled."""
    if kind is StructureKind.TARGET:
        return "target"
    return "organ" if kind is StructureKind.ORGAN else REMAINDER
