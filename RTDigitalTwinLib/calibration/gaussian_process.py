"""Gaussian-process update of the dose: the linear-Gaussian posterior under the errors measured on a cohort.

With K the covariance of ``covariance`` (network, shift, output), H what is observed of a dose, R the noise and d what
was observed minus expected, the dose moves by K H' (H K H' + R)^-1 d and its variance falls by the diagonal of
K H' (H K H' + R)^-1 H K (Rasmussen and Williams 2006, 2.2; kriging in geostatistics). From metrics and points the
posteriors under the hypotheses are averaged by their evidence.

A dose volume has as many numbers as there are voxels, and tells more of each than its surroundings do. Errors of voxels
are taken as independent there, larger than their variance where the volume shows so. From what each voxel tells by
itself, a few steps of conjugate gradients go on to undo the blur: few, for more would sharpen the noise with the dose
(Hanke 1995).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.covariance import ErrorCovariance, ScalarErrors
from RTDigitalTwinLib.calibration.readings import voxel_std
from RTDigitalTwinLib.calibration.scalar_posterior import posterior
from RTDigitalTwinLib.calibration.treatment_change import FoundChange, changed_dose
from RTDigitalTwinLib.calibration.volume_posterior import from_volumes, inflation_ratio, left_by_volumes, seen_variance
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.narrowing import ErrorPaths

LEAST_GY2 = 1e-6  # of a variance: where dose is 0 and stays so
PATHS_SEED = 0
LEAST_CHANGE_RATIO = 1e-5  # of a variance: less is rounding


@dataclass(frozen=True)
class GaussianProcess:
    """See the module.

    Attributes
    ----------
    steps : of conjugate gradients with a dose volume; 2 did best on the patients tried.
    paths : errors drawn to tell how surely metrics and DVHs are known afterwards.
    """

    steps: int = 2
    paths: int = 24
    name: str = "Gaussian process"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        drawn = evidence.drawn
        if not drawn.has_spread:
            raise RTDigitalTwinError("A Gaussian-process update needs samples.", remedy="Draw some.")
        if not evidence.observations:
            return RecalibratedBelief(evidence.prior, self.name, ())
        covariance, doses = ErrorCovariance.of(drawn, evidence.position.measured_noise_mm), evidence.doses_gy
        change: FoundChange | None = None
        shift, variance = np.zeros(covariance.std.shape), np.square(covariance.std.astype(float))
        rng, box = np.random.default_rng(PATHS_SEED), covariance.box
        before = covariance.drawn(self.paths, rng)
        left = before
        if volumes := evidence.joined_volumes:
            changed, change = changed_dose(volumes, evidence.mean_gy, covariance)
            inflation = inflation_ratio(volumes, box, changed, variance)
            variance = np.maximum(variance * inflation, LEAST_GY2)
            shift = changed - evidence.mean_gy + from_volumes(volumes, box, changed, variance, self.steps)
            wrong = np.float32(np.sqrt(inflation)) * before
            left = left_by_volumes(volumes, box, variance, wrong, self.steps, rng, progress)
            variance = seen_variance(volumes, covariance, variance)
            covariance = covariance.after(variance)
        if evidence.scalars:
            errors = ScalarErrors.of(evidence.scalars, doses + shift.astype(np.float32), covariance)
            found = posterior(errors)
            shift = shift + (found.dose_gy - errors.dose_gy)
            variance, left = found.variance_gy2, found.left_of(left, rng)
            changes = (found.change,) if change is None else (change, found.change)
            change = max(changes, key=lambda one: one.shift_probability)
        moved = np.maximum(evidence.mean_gy + shift, 0) - evidence.mean_gy
        return RecalibratedBelief(
            evidence.prior,
            self.name,
            evidence.observations,
            moved.astype(np.float32),
            spread_for(drawn, variance),
            paths=ErrorPaths(before.astype(np.float16), left.astype(np.float16)),
            change=change,
        )


def spread_for(drawn: DoseEnsemble, variance: NDArray[np.float64]) -> NDArray[np.float32]:
    """(mask voxels,) factor on the samples' deviations that makes the bands those of a variance in Gy^2."""
    before = np.square(voxel_std(drawn))
    ratio = np.divide(variance, before, out=np.ones_like(variance), where=before > 0)
    return np.sqrt(np.where(np.abs(ratio - 1) < LEAST_CHANGE_RATIO, 1, ratio)).astype(np.float32)
