"""What is read of every fraction in vivo, as a linear function of the dose, with all that makes it vary.

Structure means and points are sums over voxels, so that a fraction's readings are a matrix times its dose. They differ
from a belief's by the network's error, the same in every fraction; by set-up and output, new every day; and by noise.
All in Gy of a course of such fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import SHIFT_STD_MM, ErrorCovariance, ScalarErrors
from RTDigitalTwinLib.calibration.measuring import Wanted, asked
from RTDigitalTwinLib.calibration.readings import Reading, read_scalars, sampled_doses, voxel_std
from RTDigitalTwinLib.dosimetry.delivery import interpolated
from RTDigitalTwinLib.dosimetry.fraction_delivery import SetupErrors
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.observation import Moment, NoiseModel
from RTDigitalTwinLib.solver.correlation import MaskBox
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

CHANGE_OUTPUT_RATIO = 0.02  # standard deviation of the output's change, where there is a change
DAYS = 32  # simulated by the twin itself, each with its mirror image


@dataclass(frozen=True, eq=False)
class FractionReadings:
    """The readings of a patient's fractions.

    Attributes
    ----------
    readings : as of a fraction; their values are not used.
    slopes : (readings, mask voxels) the matrix.
    mean_gy, std_gy : (mask voxels,) of the network's belief, before anything was read.
    base_gy : (readings,) what that belief expects.
    network : (readings, mask voxels) covariance of the network's error at each voxel with that of each reading.
    curved_gy2 : (readings,) variance by a day's set-up beyond what the dose's slopes tell.
    noise_ratio, noise_floor_gy : of a reading of one fraction, the floor times the number of fractions.
    """

    readings: tuple[Reading, ...]
    slopes: NDArray[np.float32]
    mean_gy: NDArray[np.float32]
    std_gy: NDArray[np.float32]
    base_gy: NDArray[np.float64]
    network: NDArray[np.float32]
    curved_gy2: NDArray[np.float64]
    noise_ratio: float
    noise_floor_gy: float
    box: MaskBox
    setup: SetupErrors

    @classmethod
    def of(
        cls, drawn: DoseEnsemble, wanted: Sequence[Wanted], noise: NoiseModel, setup: SetupErrors
    ) -> FractionReadings:
        """``wanted`` are means and points; samples of the network's belief, at least two."""
        readings = tuple(read_scalars(asked(wanted, Moment(0.0, 1), noise), drawn.patient, drawn.crop))
        covariance, doses = ErrorCovariance.of(drawn), sampled_doses(drawn)
        errors = ScalarErrors.of(readings, doses, covariance)
        mean = doses.mean(axis=0)
        expected = np.array([float(r.of(mean[None])[0]) for r in readings])
        fractions = drawn.patient.plan.prescription.fractions
        floor = noise.floor * fractions
        _, curved = _days(covariance.box, mean, setup, errors.slopes)
        return cls(
            readings, errors.slopes, mean, covariance.std, expected, errors.network, curved, noise.ratio, floor,
            covariance.box, setup,
        )  # fmt: skip

    @property
    def count(self) -> int:
        return len(self.readings)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(reading.observation.label for reading in self.readings)

    def of_dose(self, dose_gy: NDArray[np.float32]) -> NDArray[np.float64]:
        """(readings,) exact values of a dose (mask voxels,)."""
        return np.array([float(reading.of(dose_gy[None])[0]) for reading in self.readings])

    def measured(self, dose_gy: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
        """(readings,) of a delivered dose, with noise, not negative."""
        true = self.of_dose(dose_gy)
        return np.maximum(true + self.noise_std(true) * rng.standard_normal(self.count), 0)

    def noise_std(self, values_gy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.hypot(self.noise_ratio * values_gy, self.noise_floor_gy)

    @property
    def between(self) -> NDArray[np.float64]:
        """(readings, readings) covariance of the network's errors."""
        both = self.network.astype(float) @ self.slopes.T.astype(float)
        return (both + both.T) / 2

    def moving(self, dose_gy: NDArray[np.float32]) -> NDArray[np.float32]:
        """(4, mask voxels) change of a dose by 1 mm along slices, rows, columns, and by all of the output."""
        return np.concatenate([self.box.slopes(dose_gy), dose_gy[None]])

    def daily(self, dose_gy: NDArray[np.float32]) -> NDArray[np.float64]:
        """(readings, readings) covariance of one fraction's readings about those of its mean dose."""
        expected = self.base_gy + self.slopes.astype(float) @ (dose_gy - self.mean_gy).astype(float)
        moved = self.slopes.astype(float) @ self.moving(dose_gy).T.astype(float)
        moved = moved * ([self.setup.random_mm] * 3 + [self.setup.output_ratio])
        return moved @ moved.T + np.diag(np.square(self.noise_std(np.maximum(expected, 0))) + self.curved_gy2)

    def lasting(self, dose_gy: NDArray[np.float32], std_mm: float) -> NDArray[np.float64]:
        """(readings, readings) covariance by a shift of ``std_mm`` along each axis that stays."""
        moved = std_mm * self.slopes.astype(float) @ self.box.slopes(dose_gy).T.astype(float)
        return moved @ moved.T


def blurred_by_setup(drawn: DoseEnsemble, setup: SetupErrors) -> DoseEnsemble:
    """A planned dose as the mean of many days gives it, its bands widened by the lasting error of set-up."""
    box, mean = MaskBox(drawn.crop), drawn.mean.values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
    blur, _ = _days(box, mean, setup, None)
    spread = voxel_std(drawn)
    variance = np.square(spread) + np.square(setup.systematic_mm * box.slopes(mean + blur)).sum(axis=0)
    ratio = np.sqrt(np.divide(variance, np.square(spread), out=np.ones_like(variance), where=spread > 0))
    about = drawn.deviations_gy - drawn.deviations_gy.mean(axis=0, dtype=np.float32)
    return replace(
        drawn,
        deterministic_gy=np.maximum(drawn.deterministic_gy + blur, 0).astype(np.float32),
        deviations_gy=(drawn.deviations_gy + (ratio - 1).astype(np.float32) * about).astype(np.float16),
        floor_ratio=ratio.astype(np.float32),
    )


def moved_unscaled(box: MaskBox, dose_gy: NDArray, along_axes_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """(mask voxels,) a dose at tissue that lies off by (3,) mm along slices, rows, columns; 0 outside the mask."""
    places = np.stack(np.unravel_index(box.places, box.shape)).astype(float)
    offset = np.asarray(along_axes_mm) / np.asarray(box.spacing_mm)
    return interpolated(box.spread(np.asarray(dose_gy)[None])[0], places + offset[:, None])


def _days(
    box: MaskBox, dose_gy: NDArray[np.float32], setup: SetupErrors, slopes: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """(mask voxels,) the mean of days less the dose without errors; (readings,) variance of that over the days.

    Days come with their mirror images, so that what the slopes tell is no part of either.
    """
    rng = np.random.default_rng(0)
    total = np.zeros(dose_gy.shape)
    read = []
    for _ in range(DAYS):
        day = setup.random_mm * rng.standard_normal(3)
        both = (moved_unscaled(box, dose_gy, day) + moved_unscaled(box, dose_gy, -day)) / 2 - dose_gy
        total += both
        if slopes is not None:
            read.append(slopes @ both)
    curved = np.var(read, axis=0, ddof=1) if slopes is not None else np.zeros(0)
    return (total / DAYS).astype(np.float32), curved.astype(float)


def change_std() -> NDArray[np.float64]:
    """(4,) of a change of treatment where there is one: mm along slices, rows, columns; share of the output."""
    return np.array([SHIFT_STD_MM] * 3 + [CHANGE_OUTPUT_RATIO])


def in_lps_mm(grid: Grid, along_axes_mm: NDArray[np.float64]) -> tuple[float, float, float]:
    """A displacement along slices, rows, columns as LPS."""
    x, y, z = (float(v) for v in np.reshape(grid.direction, (3, 3)) @ np.asarray(along_axes_mm)[::-1])
    return x, y, z


def along_axes_mm(grid: Grid, lps_mm: Sequence[float]) -> NDArray[np.float64]:
    """The other way."""
    return (np.linalg.inv(np.reshape(grid.direction, (3, 3))) @ np.asarray(lps_mm, float))[::-1]
