"""Two doses from readings before and after a change: a joint linear-Gaussian fit that does not average over it.

Before: the network's dose, its error and a lasting shift of set-up. After: the same anatomy shifted and the output
changed (by interpolation, the shift found by Gauss-Newton steps), and an error of its own of ``LOCAL_RATIO`` times the
network's, for what is no shift. The network's error is shared, so that it drops out of the shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.fraction_readings import FractionReadings, change_std, moved_unscaled

LOCAL_RATIO = 0.4  # of the network's error, chosen
GAUSS_NEWTON_STEPS = 5
LEAST_GY2 = 1e-6


@dataclass(frozen=True, eq=False)
class FittedDose:
    """A dose per course of such fractions: (mask voxels,) its change to the network's mean, its variance in Gy^2."""

    shift_gy: NDArray[np.float32]
    variance: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChangeFit:
    """What readings say of a change.

    Attributes
    ----------
    before, after : the doses; the same one where nothing was read after.
    change : (4,) shift along slices, rows, columns in mm; share of the output.
    change_covariance : (4, 4) of it.
    unexplained_ratio : chi-square of all mean readings over its degrees of freedom; about 1 where the model holds.
    covariance : (readings, readings) of the mean readings after, as fitted.
    """

    before: FittedDose
    after: FittedDose
    change: NDArray[np.float64]
    change_covariance: NDArray[np.float64]
    unexplained_ratio: float
    covariance: NDArray[np.float64]


def fit_change(known: FractionReadings, before: NDArray[np.float64], after: NDArray[np.float64]) -> ChangeFit:
    """From readings (fractions, readings) of before, at least one fraction, and after, maybe none."""
    slopes, between, mean = known.slopes.astype(float), known.between, known.mean_gy
    own = known.box.slopes(mean).astype(float) * known.setup.systematic_mm
    lasting = slopes @ own.T
    shared = between + lasting @ lasting.T
    common = known.network.astype(float).T + own.T @ lasting.T  # (voxels, readings), alike before and after
    variance = np.square(known.std_gy.astype(float)) + np.square(own).sum(axis=0)
    total = shared + known.daily(mean) / len(before)
    off = before.mean(axis=0) - known.base_gy
    if not len(after):
        solved = np.linalg.solve(total, off)
        fitted = FittedDose(_shift(mean, common @ solved), _left(variance, common, total))
        left = shared - shared @ np.linalg.solve(total, shared)
        none = np.zeros((4, 4))
        return ChangeFit(fitted, fitted, np.zeros(4), none, float(off @ solved) / off.size, (left + left.T) / 2)
    before_total, before_off = total, off
    prior = np.diag(np.square(change_std()))
    change = np.zeros(4)
    for _ in range(GAUSS_NEWTON_STEPS):
        moved = moved_dose(known, mean, change)
        changes = known.moving(moved_unscaled(known.box, mean, change[:3])).astype(float)
        jacobian = slopes @ changes.T
        of_after = shared + LOCAL_RATIO**2 * between + jacobian @ prior @ jacobian.T
        total = np.block([[before_total, shared], [shared, of_after + known.daily(moved) / len(after)]])
        more = after.mean(axis=0) - known.base_gy - slopes @ (moved - mean).astype(float) + jacobian @ change
        off = np.concatenate([before_off, more])
        solved = np.linalg.solve(total, off)
        change = prior @ jacobian.T @ solved[known.count :]
    of_change = np.concatenate([np.zeros((4, known.count)), prior @ jacobian.T], axis=1)
    local = LOCAL_RATIO**2 * known.network.astype(float).T
    fields = np.concatenate([common, common], axis=1)
    rest = np.concatenate([common, common + local], axis=1) @ solved  # what is no change
    fields_after = np.concatenate([common, common + local + changes.T @ prior @ jacobian.T], axis=1)
    added = LOCAL_RATIO**2 * np.square(known.std_gy.astype(float)) + np.square(changes * change_std()[:, None]).sum(0)
    cross = np.concatenate([shared, of_after], axis=1)
    left = of_after - cross @ np.linalg.solve(total, cross.T)
    return ChangeFit(
        FittedDose(_shift(mean, fields @ solved), _left(variance, fields, total)),
        FittedDose(
            _shift(mean, moved_dose(known, mean, change) - mean + rest), _left(variance + added, fields_after, total)
        ),
        change,
        prior - of_change @ np.linalg.solve(total, of_change.T),
        float(off @ solved) / off.size,
        (left + left.T) / 2,
    )


def moved_dose(known: FractionReadings, dose_gy: NDArray[np.float32], change: NDArray[np.float64]) -> NDArray:
    """(mask voxels,) a dose at tissue that lies ``change`` off, times the output."""
    return moved_unscaled(known.box, dose_gy, change[:3]) * np.float32(1 + change[3])


def _shift(mean: NDArray[np.float32], moved: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.maximum(mean + moved, 0) - mean).astype(np.float32)


def _left(variance: NDArray[np.float64], cross: NDArray[np.float64], total: NDArray) -> NDArray[np.float64]:
    explained = np.einsum("xk,kx->x", cross, np.linalg.solve(total, cross.T))
    return np.maximum(variance - explained, LEAST_GY2)
