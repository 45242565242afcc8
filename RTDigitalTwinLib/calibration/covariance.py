"""What a belief may be wrong by, voxel to voxel: errors of the network, and treatment that is not as planned.

Errors of the network have the calibrated spread at each voxel and hang together over the distances measured on a cohort
(``solver.correlation``). A large spread is so mostly by what is near: what hangs together from ``FAR_FROM_MM`` on grows
with it to ``FAR_STD_GY`` only, and the near part fills the rest. Both were chosen on the 25 validation patients that
are not those of docs/recalibration.md.

Treatment may differ from the plan by a shift of the patient and by the machine's output; to first order these are the
dose's slopes along the three axes, and the dose itself. How likely such a change is before anything is observed is said
by ``HYPOTHESES``; the observations then weigh them by their evidence. Where the position was observed, its noise bounds
what shift there may be. Probabilities were chosen on three validation patients (pt_203, pt_213, pt_219), those where
the position was observed on the eight of docs/recalibration.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.readings import Reading, voxel_std
from RTDigitalTwinLib.solver.correlation import LENGTHS_MM, MaskBox
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

SHIFT_STD_MM = 4.0  # along each axis, where there is one
OUTPUT_STD_RATIO = 0.04  # likewise of the machine's output
FAR_FROM_MM, FAR_STD_GY = 16.0, 4.0
SEEN_RATIO = 0.99  # of the spread before: where less is left, something was seen


@dataclass(frozen=True)
class Hypothesis:
    """A way in which treatment may go: its probability before anything is observed, and what it lets change."""

    name: str
    probability: float
    shifted: bool
    output: bool

    @property
    def sizes(self) -> NDArray[np.float32]:
        """(4,) 1 for the changes it has: along slices, rows, columns, and of the output."""
        return np.array([self.shifted] * 3 + [self.output], np.float32)


HYPOTHESES = (
    Hypothesis("as planned", 0.72, False, False),
    Hypothesis("shifted", 0.06, True, False),
    Hypothesis("output", 0.20, False, True),
    Hypothesis("shifted, output", 0.02, True, True),
)
# Where the position was observed: what its noise leaves is there or, as noise is stated with caution, is not.
HYPOTHESES_THERE = (
    Hypothesis("where it was seen", 0.39, False, False),
    Hypothesis("beside it", 0.39, True, False),
    Hypothesis("where it was seen, output", 0.11, False, True),
    Hypothesis("beside it, output", 0.11, True, True),
)


def shift_std_mm(known_to_mm: float | None) -> float:
    """Of a shift along each axis: less than shifts are where the position was observed better than that."""
    return SHIFT_STD_MM if known_to_mm is None else min(SHIFT_STD_MM, known_to_mm)


@dataclass(frozen=True, eq=False)
class ErrorCovariance:
    """Of a dose at the mask's voxels, in Gy of the course.

    Attributes
    ----------
    std : (mask voxels,) of the network's error.
    shares : of the lengths over which it hangs together.
    changes : (4, mask voxels) of one standard deviation each: shift along slices, rows, columns; output.
    fixed : (mask voxels,) where a dose volume was seen: no change of treatment that it did not show; None for nowhere.
    known_to_mm : standard deviation of the position, along each axis, where it was observed; None where it was not.
    """

    box: MaskBox
    std: NDArray[np.float32]
    shares: tuple[float, ...]
    changes: NDArray[np.float32]
    fixed: NDArray[np.bool_] | None = None
    known_to_mm: float | None = None

    @classmethod
    def of(cls, drawn: DoseEnsemble, known_to_mm: float | None = None) -> ErrorCovariance:
        """Of samples with at least two."""
        box = MaskBox(drawn.crop)
        mean = drawn.mean.values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
        changes = np.concatenate([shift_std_mm(known_to_mm) * box.slopes(mean), OUTPUT_STD_RATIO * mean[None]])
        std = voxel_std(drawn).astype(np.float32)
        return cls(box, std, drawn.correlation, changes, known_to_mm=known_to_mm)

    @property
    def shift_std_mm(self) -> float:
        """Of a shift along each axis, where there is one."""
        return shift_std_mm(self.known_to_mm)

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """Ways in which treatment may have gone; the first is that with the least change."""
        return HYPOTHESES if self.known_to_mm is None else HYPOTHESES_THERE

    def of_network(self, fields: NDArray) -> NDArray[np.float32]:
        """Covariance of the network's error times fields (fields, mask voxels)."""
        parts = (std * self.box.correlated(fields * std, shares) for std, shares in self._parts)
        return sum(parts, np.zeros(fields.shape, np.float32))

    def drawn(self, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(count, mask voxels) errors that the network may have, in Gy."""
        parts = (std * self.box.drawn(shares, count, rng) for std, shares in self._parts)
        return sum(parts, np.zeros((count, self.std.size), np.float32))

    @cached_property
    def _parts(self) -> tuple[tuple[NDArray[np.float32], tuple[float, ...]], ...]:
        """Far and near: fields (mask voxels,) in Gy and the shares by length that each has of their squares."""
        far = tuple(s if length >= FAR_FROM_MM else 0.0 for s, length in zip(self.shares, LENGTHS_MM, strict=True))
        near = tuple(s - f for s, f in zip(self.shares, far, strict=True))
        if not sum(far) or not sum(near):
            return ((self.std, self.shares),)
        far_std = self.std / np.sqrt(1 + np.square(self.std / FAR_STD_GY))
        near_variance = (sum(self.shares) * np.square(self.std) - sum(far) * np.square(far_std)) / sum(near)
        return (far_std, far), (np.sqrt(near_variance), near)

    def after(self, variance: NDArray[np.float64]) -> ErrorCovariance:
        """Where a dose volume was seen: less of the network's error, and no change of treatment it did not show."""
        std = np.sqrt(variance).astype(np.float32)
        seen = std < self.std * SEEN_RATIO
        return replace(self, std=std, changes=np.where(seen, 0, self.changes), fixed=seen)


@dataclass(frozen=True, eq=False)
class ScalarErrors:
    """What metrics and points say, linear about a dose.

    Attributes
    ----------
    dose_gy : (mask voxels,) that dose.
    slopes : (readings, mask voxels) change of each reading by the dose at each voxel.
    off, noise_std : (readings,) observed minus expected, and the noise.
    network : (readings, mask voxels) covariance of the network's error at each voxel with that of each reading.
    """

    covariance: ErrorCovariance
    readings: tuple[Reading, ...]
    dose_gy: NDArray[np.float32]
    slopes: NDArray[np.float32]
    off: NDArray[np.float64]
    noise_std: NDArray[np.float64]
    network: NDArray[np.float32]

    @classmethod
    def of(cls, readings: Sequence[Reading], doses: NDArray[np.float32], covariance: ErrorCovariance) -> ScalarErrors:
        """About the mean of doses (samples, mask voxels); what is expected is the mean over the samples."""
        doses = np.maximum(doses, 0)
        mean = doses.mean(axis=0)
        slopes = slopes_of(readings, mean)
        off = np.array([reading.value - reading.of(doses).mean() for reading in readings])
        noise = np.array([reading.std for reading in readings])
        return cls(covariance, tuple(readings), mean, slopes, off, noise, covariance.of_network(slopes))

    def off_at(self, dose_gy: NDArray[np.float32]) -> NDArray[np.float64]:
        """(readings,) observed minus expected where the dose is another."""
        doses = np.stack([dose_gy, self.dose_gy])
        return self.off - np.array([float(np.subtract(*reading.of(doses))) for reading in self.readings])

    def about(
        self, dose_gy: NDArray[np.float32], changes: NDArray[np.float32], sizes: NDArray[np.float64]
    ) -> ScalarErrors:
        """The same, linear about another dose: the one that changes of treatment of ``sizes`` (4,) lead to.

        ``off`` is then what would be off without them, were all as linear as it is there.
        """
        slopes = slopes_of(self.readings, dose_gy)
        network = self.network if np.array_equal(slopes, self.slopes) else self.covariance.of_network(slopes)
        covariance = replace(self.covariance, changes=changes)
        moved = replace(self, covariance=covariance, dose_gy=dose_gy, slopes=slopes, network=network)
        return replace(moved, off=self.off_at(dose_gy) + moved.change_slopes @ sizes)

    @cached_property
    def as_planned(self) -> NDArray[np.float64]:
        """(readings, readings) covariance of what is observed under errors of the network alone, noise included."""
        both = self.network.astype(float) @ self.slopes.T.astype(float)
        return (both + both.T) / 2 + np.diag(np.square(self.noise_std))

    @cached_property
    def change_slopes(self) -> NDArray[np.float64]:
        """(readings, 4) change of each reading by one standard deviation of each change."""
        return self.slopes.astype(float) @ self.covariance.changes.T.astype(float)

    def total(self, hypothesis: Hypothesis) -> NDArray[np.float64]:
        """(readings, readings) covariance of what is observed, noise included."""
        moved = self.change_slopes * hypothesis.sizes
        return self.as_planned + moved @ moved.T


def slopes_of(readings: Sequence[Reading], dose_gy: NDArray[np.float32]) -> NDArray[np.float32]:
    """(readings, mask voxels) of ``slope_of``."""
    return np.stack([slope_of(reading, dose_gy) for reading in readings])


def slope_of(reading: Reading, dose_gy: NDArray[np.float32]) -> NDArray[np.float32]:
    """(mask voxels,) derivative of a reading by the dose at each voxel, smoothed as ``Reading.soft`` is."""
    dose = torch.from_numpy(dose_gy.copy()).requires_grad_()
    reading.soft(dose).backward()
    assert dose.grad is not None
    return dose.grad.numpy()
