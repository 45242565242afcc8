"""Dose-volume histograms and their metrics, for any number of dose samples at once.

A structure's voxels count by their occupancy, so partial volumes enter every value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.errors import RTDigitalTwinError

BIN_GY = 0.1


class DvhMetricKind(Enum):
    """What a DVH metric asks for."""

    DOSE_AT_PERCENT = "D%"
    DOSE_AT_CC = "Dcc"
    VOLUME_AT_DOSE = "V"
    MEAN = "mean"


@dataclass(frozen=True)
class DvhMetric:
    """A metric such as D95 (dose to the hottest 95 % of the volume), D0.1cc, V20 (% receiving 20 Gy) or mean."""

    kind: DvhMetricKind
    argument: float = 0.0

    @classmethod
    def parse(cls, text: str) -> DvhMetric:
        """Raises RTDigitalTwinError where the text is none of D95, D0.1cc, V20, mean."""
        if text.lower() == "mean":
            return cls(DvhMetricKind.MEAN)
        match = re.fullmatch(r"([DV])(\d+(?:\.\d+)?)(cc)?", text)
        if match is None or (match[1] == "V" and match[3]):
            raise RTDigitalTwinError(f"{text!r} is no DVH metric.", remedy="Write D95, D0.1cc, V20 (Gy) or mean.")
        value = float(match[2])
        if match[1] == "V":
            return cls(DvhMetricKind.VOLUME_AT_DOSE, value)
        if match[3]:
            return cls(DvhMetricKind.DOSE_AT_CC, value)
        if value > 100:
            raise RTDigitalTwinError(f"{text!r}: a volume cannot exceed 100 %.")
        return cls(DvhMetricKind.DOSE_AT_PERCENT, value)

    @property
    def unit(self) -> str:
        return "%" if self.kind is DvhMetricKind.VOLUME_AT_DOSE else "Gy"


@dataclass(frozen=True, eq=False)
class StructureDose:
    """Dose samples inside one structure.

    Attributes
    ----------
    doses_gy : (samples, voxels).
    occupancy : (voxels,), each in 0..1 and above 0.
    voxel_volume_cc : of a whole voxel.
    """

    doses_gy: NDArray[np.float32]
    occupancy: NDArray[np.float32]
    voxel_volume_cc: float

    @property
    def volume_cc(self) -> float:
        return float(self.occupancy.sum(dtype=float) * self.voxel_volume_cc)

    @cached_property
    def _descending(self) -> tuple[NDArray, NDArray]:
        """Doses (samples, voxels) from the hottest down, and the share of volume at least as hot as each."""
        order = np.argsort(-self.doses_gy, axis=1, kind="stable")
        share = np.cumsum(self.occupancy.astype(float)[order], axis=1)
        return np.take_along_axis(self.doses_gy, order, axis=1), share / share[:, -1:]

    def volume_at_dose_ratio(self, dose_gy: ArrayLike) -> NDArray[np.float64]:
        """Share of the volume receiving at least each dose: (samples, doses)."""
        wanted = np.atleast_1d(np.asarray(dose_gy, dtype=np.float32))
        doses, share = self._descending
        result = np.empty((len(doses), wanted.size))
        for k, (row, row_share) in enumerate(zip(doses, share, strict=True)):
            hotter = row.size - np.searchsorted(row[::-1], wanted, side="left")
            result[k] = np.where(hotter > 0, row_share[np.maximum(hotter - 1, 0)], 0.0)
        return result

    def dose_at_volume_gy(self, volume_ratio: float) -> NDArray[np.float64]:
        """Dose that the hottest share of the volume receives at least: (samples,).

        Interpolated linearly between the middles of the voxels' shares.
        """
        doses, share = self._descending
        before = np.concatenate([np.zeros((len(share), 1)), share[:, :-1]], axis=1)
        middle = (share + before) / 2
        return np.array([np.interp(volume_ratio, m, d) for m, d in zip(middle, doses, strict=True)])

    def mean_gy(self) -> NDArray[np.float64]:
        """Mean dose: (samples,)."""
        weights = self.occupancy.astype(float)
        return self.doses_gy @ weights / weights.sum()

    def metric(self, metric: DvhMetric) -> NDArray[np.float64]:
        """A metric of every sample: (samples,), in the metric's unit."""
        if metric.kind is DvhMetricKind.MEAN:
            return self.mean_gy()
        if metric.kind is DvhMetricKind.VOLUME_AT_DOSE:
            return 100 * self.volume_at_dose_ratio(metric.argument)[:, 0]
        if metric.kind is DvhMetricKind.DOSE_AT_CC:
            return self.dose_at_volume_gy(min(1.0, metric.argument / self.volume_cc))
        return self.dose_at_volume_gy(metric.argument / 100)


def dose_axis_gy(highest_gy: float) -> NDArray[np.float64]:
    """Doses from 0 to just above the highest, 0.1 Gy apart."""
    return np.round(np.arange(int(np.ceil(highest_gy / BIN_GY)) + 2) * BIN_GY, 6)
