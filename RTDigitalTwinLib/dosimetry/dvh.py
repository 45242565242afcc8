"""Dose-volume histograms and their metrics, exact, for any number of dose samples at once.

A structure's voxels count by their occupancy. Inside a voxel the dose is spread evenly over a range (see
``inside_voxels``), so a cumulative DVH is a chain of straight lines: volumes at a dose and doses at a volume are read
off it exactly, without bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from RTDigitalTwinLib.dosimetry.dvh_metric import DvhMetric, DvhMetricKind
from RTDigitalTwinLib.errors import PatientDataError

BIN_GY = 0.1
LEAST_COVERED_RATIO = 0.99  # of a structure's volume, for a metric to be given
SAME_DOSE_GY = 1e-4
_SAME_RATIO = 1e-9
_SORTED_TOGETHER = 250_000  # knots: what is worked on stays near the cache


@dataclass(frozen=True, eq=False)
class StructureDose:
    """Dose samples inside one structure.

    Attributes
    ----------
    doses_gy : (samples, voxels), the mean dose of the part of each voxel that the structure fills; an array, or a
        tensor on whichever device is to do the work.
    occupancy : (voxels,), each in 0..1 and above 0.
    voxel_volume_cc : of a whole voxel.
    half_widths_gy : (samples, voxels), how far the dose of the part reaches to both sides of its mean; None where it
        is the same all over each voxel.
    covered_ratio : share of the structure's volume where the dose is known. The voxels are of this part.
    name : of the structure.
    """

    doses_gy: NDArray[np.float32] | Tensor
    occupancy: NDArray[np.float32]
    voxel_volume_cc: float
    half_widths_gy: NDArray[np.float32] | Tensor | None = None
    covered_ratio: float = 1.0
    name: str = ""

    @property
    def volume_cc(self) -> float:
        """Of the whole structure, covered or not."""
        return float(self.occupancy.sum(dtype=float) * self.voxel_volume_cc) / max(self.covered_ratio, 1e-12)

    @property
    def is_covered(self) -> bool:
        """Whether the dose is known in so much of the structure that metrics can be given."""
        return self.covered_ratio >= LEAST_COVERED_RATIO and self.occupancy.size > 0

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.doses_gy)

    def sample(self, index: int) -> StructureDose:
        """One of the samples alone."""
        row = slice(index, index + 1)
        half = None if self.half_widths_gy is None else self.half_widths_gy[row]
        return replace(self, doses_gy=self.doses_gy[row], half_widths_gy=half)

    @cached_property
    def _weights(self) -> Tensor:
        """(voxels,) share of the known volume in each."""
        occupancy = torch.as_tensor(self.occupancy, dtype=torch.float64, device=self._middle.device)
        return occupancy / occupancy.sum()

    @cached_property
    def _middle(self) -> Tensor:
        """Raises PatientDataError where too little of the structure has a dose for any metric."""
        if not self.is_covered:
            raise PatientDataError(
                f"The dose covers {100 * self.covered_ratio:.1f} % of the structure; metrics need "
                f"{100 * LEAST_COVERED_RATIO:g} %.",
                where=self.name,
                remedy="Use a dose grid that holds the whole structure.",
            )
        return torch.as_tensor(self.doses_gy)

    @cached_property
    def _half(self) -> Tensor:
        return torch.zeros_like(self._middle) if self.half_widths_gy is None else torch.as_tensor(self.half_widths_gy)

    @cached_property
    def _curve(self) -> tuple[Tensor, Tensor]:
        """Knots of the cumulative DVHs: doses (samples, knots) ascending, and minus the share of volume above each.

        Both ascend, so that either can be searched. Voxels without a range get one of 0.0002 Gy.
        """
        samples, voxels = self._middle.shape
        knots = self._middle.new_empty((samples, 2 * voxels), dtype=torch.float64)
        less = torch.empty_like(knots)
        together = max(1, _SORTED_TOGETHER // (2 * voxels))
        for first in range(0, samples, together):
            part = slice(first, first + together)
            middle, half = self._middle[part].double(), self._half[part].double().clamp_min(SAME_DOSE_GY)
            density = self._weights / (2 * half)
            ends, order = _sorted(torch.cat([middle - half, middle + half], dim=1))
            falls = torch.cat([density, -density], dim=1).gather(1, order).cumsum(dim=1)
            lost = (falls[:, :-1] * ends.diff(dim=1)).cumsum(dim=1)
            above = (1 - lost).clamp_(0, 1)
            # rounding must not let a curve rise
            knots[part], less[part, 0], less[part, 1:] = ends, -1.0, torch.cummin(above, dim=1).values.neg_()
        return knots, less

    def volume_at_dose_ratio(self, dose_gy: ArrayLike) -> NDArray[np.float64]:
        """Share of the volume receiving at least each dose (to 0.0001 Gy): (samples, doses)."""
        knots, less = self._curve
        wanted = torch.as_tensor(np.atleast_1d(np.asarray(dose_gy, dtype=float)), device=knots.device) - SAME_DOSE_GY
        wanted = wanted.expand(len(knots), -1).contiguous()
        upper = torch.searchsorted(knots, wanted).clamp(1, knots.shape[1] - 1)
        x0, x1 = knots.gather(1, upper - 1), knots.gather(1, upper)
        y0, y1 = -less.gather(1, upper - 1), -less.gather(1, upper)
        share = ((wanted - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
        return (y0 + share * (y1 - y0)).where(wanted < knots[:, -1:], 0.0).cpu().numpy()

    def doses_at_volume_gy(self, volume_ratio: ArrayLike) -> NDArray[np.float64]:
        """Dose that the hottest share of the volume receives at least, for each share in 0..1: (samples, shares)."""
        knots, less = self._curve
        wanted = torch.as_tensor(np.atleast_1d(np.asarray(volume_ratio, dtype=float)), device=knots.device)
        # the hottest knot with at least the share above it
        target = (_SAME_RATIO - wanted).expand(len(knots), -1).contiguous()
        upper = torch.searchsorted(less, target, right=True).clamp(1, knots.shape[1] - 1)
        x0, x1 = knots.gather(1, upper - 1), knots.gather(1, upper)
        y0, y1 = -less.gather(1, upper - 1), -less.gather(1, upper)
        fall = y0 - y1
        share = torch.where(fall > 0, (y0 - wanted) / fall.clamp_min(1e-300), 0.0).clamp(0, 1)
        found = (x0 + share * (x1 - x0)).cpu().numpy()
        lowest, highest = self._ends
        return np.clip(found, lowest[:, None], highest[:, None])

    def dose_at_volume_gy(self, volume_ratio: float) -> NDArray[np.float64]:
        """Dose that the hottest share of the volume receives at least: (samples,)."""
        return self.doses_at_volume_gy(volume_ratio)[:, 0]

    def differential(self, edges_gy: ArrayLike) -> NDArray[np.float64]:
        """Share of the volume between each two neighbouring doses, the lower one included: (samples, doses - 1)."""
        return -np.diff(self.volume_at_dose_ratio(edges_gy), axis=1)

    def mean_gy(self) -> NDArray[np.float64]:
        """Mean dose: (samples,)."""
        return (self._middle.double() @ self._weights).cpu().numpy()

    def min_gy(self) -> NDArray[np.float64]:
        """Lowest dose anywhere in the structure: (samples,)."""
        return self._ends[0].copy()

    def max_gy(self) -> NDArray[np.float64]:
        """Highest dose anywhere in the structure: (samples,)."""
        return self._ends[1].copy()

    @cached_property
    def _ends(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest dose of each sample."""
        lowest = (self._middle - self._half).amin(dim=1).double().clamp_min(0)
        return lowest.cpu().numpy(), (self._middle + self._half).amax(dim=1).double().cpu().numpy()

    def average(self, function: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
        """Mean over the volume of a function of the dose in Gy: (samples,).

        The function takes and gives tensors of any shape. Inside the voxels it is integrated with Gauss-Legendre's
        three points, exact up to the fifth power of the dose.
        """
        reach = self._half.double() * 0.6**0.5
        middle = self._middle.double()
        result = (8 / 18) * (function(middle) @ self._weights)
        for end in (middle - reach, middle + reach):
            result = result + (5 / 18) * (function(end.clamp_min_(0)) @ self._weights)
        return result.cpu().numpy()

    def metric(self, metric: DvhMetric) -> NDArray[np.float64]:
        """A metric of every sample: (samples,), in the metric's unit.

        D of more cc than the structure has is its lowest dose. Raises PatientDataError where the dose covers too
        little of the structure.
        """
        _ = self._middle  # refuses what is not covered, before its volume is asked for
        match metric.kind:
            case DvhMetricKind.MEAN:
                return self.mean_gy()
            case DvhMetricKind.MIN:
                return self.min_gy()
            case DvhMetricKind.MAX:
                return self.max_gy()
            case DvhMetricKind.VOLUME_AT_DOSE:
                return 100 * self.volume_at_dose_ratio(metric.argument)[:, 0]
            case DvhMetricKind.CC_AT_DOSE:
                return self.volume_cc * self.volume_at_dose_ratio(metric.argument)[:, 0]
            case DvhMetricKind.DOSE_AT_CC:
                return self.dose_at_volume_gy(min(1.0, metric.argument / self.volume_cc))
            case _:
                return self.dose_at_volume_gy(metric.argument / 100)


def _sorted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in ascending order, and where each value was."""
    if values.device.type == "cpu":  # NumPy sorts with the processor's vector instructions, in a third of the time
        order = torch.from_numpy(np.argsort(values.numpy(), axis=1))
        return values.gather(1, order), order
    return values.sort(dim=1)


def dose_axis_gy(highest_gy: float) -> NDArray[np.float64]:
    """Doses from 0 to just above the highest, 0.1 Gy apart."""
    return np.round(np.arange(int(np.ceil(highest_gy / BIN_GY)) + 2) * BIN_GY, 6)
