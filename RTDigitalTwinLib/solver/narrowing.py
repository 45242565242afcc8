"""What observing taught of anything that is worked out from a dose: metrics, DVHs, equivalent doses.

Errors that the dose may have are drawn from the covariance measured on a cohort; each is measured and taken away as the
calibrator would, and what is left of it is kept (conditioning by kriging, Matheron: Journel and Huijbregts 1978).
A value worked out of the dose has a variance S under the first and V under the second. Its calibrated variance b before
anything was observed was measured, so that it is not replaced: what observing tells, 1 / V - 1 / S, is added to its
information 1 / b. Where nothing is told of a value its band stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.solver.bands import BandScale
from RTDigitalTwinLib.solver.ensemble import Ensemble

if TYPE_CHECKING:
    from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

Worked = Callable[[StructureDose], NDArray]  # doses in a structure to values (samples, ...)
MISFIT_RATIO = 1.25  # errors left are larger than those drawn: measured on three validation patients
LEAST_RATIO = 0.01  # of a spread: nothing is known exactly
LEAST_VARIANCE = 1e-8
SAME_RATIO = 1e-3  # of a variance: a difference of less is rounding


@dataclass(frozen=True, eq=False)
class ErrorPaths:
    """Errors of a dose drawn before observing, and what is left of each: (draws, mask voxels) in Gy."""

    before_gy: NDArray[np.float16]
    after_gy: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Narrowing:
    """How much surer values of a dose are than before observing.

    Attributes
    ----------
    samples : of the belief before anything was observed.
    before, after : doses wrong by the errors that were possible then, and by what is left of them.
    """

    samples: DoseEnsemble
    before: DoseEnsemble
    after: DoseEnsemble
    _inside: dict[str, tuple[StructureDose, ...]] = field(default_factory=dict, repr=False, init=False)

    @classmethod
    def of(cls, samples: DoseEnsemble, paths: ErrorPaths, after_gy: NDArray[np.float32]) -> Narrowing:
        """``samples`` of the belief before, ``after_gy`` (mask voxels,) what is expected now."""
        before_gy = samples.mean.values.reshape(-1)[samples.crop.mask_indices].astype(np.float32)
        return cls(
            samples,
            replace(samples, deterministic_gy=before_gy, deviations_gy=_and_none(paths.before_gy), calibration=None),
            replace(samples, deterministic_gy=after_gy, deviations_gy=_and_none(paths.after_gy), calibration=None),
        )

    @property
    def ensembles(self) -> tuple[DoseEnsemble, DoseEnsemble, DoseEnsemble]:
        return self.samples, self.before, self.after

    def of_changed(self, change: Callable[[DoseEnsemble], DoseEnsemble]) -> Narrowing:
        """The same of a dose that is changed by what is known for sure."""
        return Narrowing(*(change(ensemble) for ensemble in self.ensembles))

    def narrowed(self, name: str, worked: Worked, now: NDArray, unit: str, scale: BandScale | None) -> Ensemble:
        """Samples ``now`` (samples, ...) of a value of a structure, with the spread and floor that are left.

        ``worked`` gives the value from doses in the structure.
        """
        then, before, after = (np.asarray(worked(inside), dtype=float) for inside in self._doses(name))
        spread = then.std(axis=0, ddof=1)
        floor = 0.0 if scale is None else scale.floor
        ratio = spread_ratio(
            (1.0 if scale is None else scale.std_factor) ** 2 * (np.square(spread) + np.square(floor)),
            _mean_square(before),
            _mean_square(after),
        )
        own = now.std(axis=0, ddof=1, dtype=float)
        middle = now.mean(axis=0, dtype=float)
        stretch = np.divide(ratio * spread, own, out=np.zeros_like(own), where=own > 0)
        samples = middle + stretch * (now - middle)
        return Ensemble(samples, unit, None if scale is None else replace(scale, floor=floor * ratio))

    def _doses(self, name: str) -> tuple[StructureDose, ...]:
        if name not in self._inside:
            self._inside.clear()  # metrics of one structure are asked for together
            self._inside[name] = tuple(e.structure_dose(name) for e in self.ensembles)
        return self._inside[name]


def _and_none(errors_gy: NDArray[np.float16]) -> NDArray[np.float16]:
    """Errors with one of 0 before them: what is expected itself."""
    return np.concatenate([np.zeros_like(errors_gy[:1]), errors_gy])


def _mean_square(values: NDArray) -> NDArray[np.float64]:
    """Of values away from the first: what a rough error does to a quantile on average counts as well as its spread."""
    return np.square(values[1:] - values[0]).mean(axis=0)


def spread_ratio(variance: NDArray, drawn_before: NDArray, drawn_after: NDArray) -> NDArray[np.float64]:
    """Standard deviation after observing over that before: see the module.

    Where observing made errors larger (a change of treatment became likely), that is added to the variance.
    """
    same = np.abs(drawn_after - drawn_before) < SAME_RATIO * drawn_before
    left_over = MISFIT_RATIO**2 * np.maximum(drawn_after, LEAST_VARIANCE)
    learned = np.maximum(1 / left_over - 1 / np.maximum(drawn_before, LEAST_VARIANCE), 0)
    left = 1 / (1 / np.maximum(variance, LEAST_VARIANCE) + learned) + np.maximum(drawn_after - drawn_before, 0)
    ratio = np.sqrt(left / np.maximum(variance, LEAST_VARIANCE))
    return np.where(same | (variance <= 0), 1.0, np.maximum(ratio, LEAST_RATIO))
