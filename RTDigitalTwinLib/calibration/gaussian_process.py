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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.covariance import HYPOTHESES, ErrorCovariance, ScalarErrors
from RTDigitalTwinLib.calibration.readings import VolumeReading, voxel_std
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.correlation import unseen_ratio
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

LEAST_GY2 = 1e-6  # of a variance: where dose is 0 and stays so
LEAST_CHANGE_RATIO = 1e-5  # of a variance: less is rounding


@dataclass(frozen=True)
class GaussianProcess:
    """See the module.

    Attributes
    ----------
    steps : of conjugate gradients with a dose volume; 2 did best on the patients tried.
    """

    steps: int = 2
    name: str = "Gaussian process"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        drawn = evidence.drawn
        if not drawn.has_spread:
            raise RTDigitalTwinError("A Gaussian-process update needs samples.", remedy="Draw some.")
        if not evidence.observations:
            return RecalibratedBelief(evidence.prior, self.name, ())
        covariance, doses = ErrorCovariance.of(drawn), evidence.doses_gy
        shift, variance = np.zeros(covariance.std.shape), np.square(covariance.std.astype(float))
        if evidence.volumes:
            variance = np.maximum(variance * inflation_ratio(evidence.volumes, evidence.mean_gy, variance), LEAST_GY2)
            shift = self._from_volumes(evidence, variance, progress)
            variance = _seen_variance(evidence.volumes, covariance, variance)
            covariance = covariance.after(variance)
        if evidence.scalars:
            errors = ScalarErrors.of(evidence.scalars, doses + shift.astype(np.float32), covariance)
            more, variance = posterior(errors)
            shift = shift + more
        moved = np.maximum(evidence.mean_gy + shift, 0) - evidence.mean_gy
        return RecalibratedBelief(
            evidence.prior, self.name, evidence.observations, moved.astype(np.float32), spread_for(drawn, variance)
        )

    def _from_volumes(
        self, evidence: Evidence, variance: NDArray[np.float64], progress: Progress
    ) -> NDArray[np.float64]:
        """(mask voxels,) x of (1 / variance + sum B' R^-1 B) x = sum B' R^-1 d, B the blur (Shewchuk 1994, B2)."""
        precisions = [np.where(v.known, 1 / np.square(v.std.astype(float)), 0) for v in evidence.volumes]

        def back(volume: VolumeReading, values: NDArray) -> NDArray[np.float64]:
            return volume.of(values.astype(np.float32)).astype(float)

        def matrix(values: NDArray) -> NDArray[np.float64]:
            seen = (back(v, p * back(v, values)) for v, p in zip(evidence.volumes, precisions, strict=True))
            return values / variance + sum(seen, np.zeros_like(values))

        scale = 1 / (1 / variance + np.sum(precisions, axis=0))
        wanted, found = np.zeros(variance.shape), np.zeros(variance.shape)
        for volume, precision in zip(evidence.volumes, precisions, strict=True):
            off = np.where(volume.known, volume.values - volume.of(evidence.mean_gy), 0)
            wanted += back(volume, precision * off)
            found += scale * precision * off  # each voxel by itself, to begin with
        left = wanted - matrix(found)
        along = scale * left
        size = float(left @ along)
        for step in range(self.steps):
            progress(step / self.steps, f"step {step + 1} of {self.steps}")
            if size <= 0:
                break
            moved = matrix(along)
            length = size / float(along @ moved)
            found += length * along
            left -= length * moved
            before, size = size, float(left @ (scale * left))
            along = scale * left + size / before * along
        return found


def posterior(scalars: ScalarErrors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mask voxels,) shift and variance in Gy after metrics and points, over the hypotheses.

    The bands before speak of the plan's dose. What changes of treatment add to the variance counts as far as the
    observations made a change likelier than it was: nothing is added by observations that say nothing.
    """
    covariance = scalars.covariance
    weights = scalars.weights()
    shifts, variances, raised = [], [], []
    for hypothesis, weight in zip(HYPOTHESES, weights, strict=True):
        total = scalars.total(hypothesis)
        moved = scalars.change_slopes * hypothesis.sizes
        both = scalars.network + (moved @ covariance.changes).astype(np.float32)
        gain = np.linalg.solve(total, both.astype(float))
        shifts.append(scalars.off @ gain)
        prior = np.square(covariance.std) + np.square(covariance.changes * hypothesis.sizes[:, None]).sum(axis=0)
        variances.append(np.maximum(prior - np.einsum("kx,kx->x", both, gain), 0))
        as_planned = not hypothesis.sizes.any()
        raised.append(0.0 if as_planned else max(weight - hypothesis.probability, 0) / (1 - hypothesis.probability))
    shift = weights @ np.stack(shifts)
    raised[0] = 1 - sum(raised)
    apart = weights @ np.square(np.stack(shifts) - shift)
    return shift, np.array(raised) @ np.stack(variances) + apart


def inflation_ratio(
    volumes: Sequence[VolumeReading], mean_gy: NDArray[np.float32], variance: NDArray[np.float64]
) -> float:
    """How much larger errors are than their variance says, by dose volumes; at least 1.

    The mean square of what was observed minus expected, over its expectation (adaptive inflation; Desroziers et al.
    2005): larger than 1 where treatment differs from the plan.
    """
    found, expected = 0.0, 0.0
    for volume in volumes:
        known = volume.known
        off = (volume.values - volume.of(mean_gy))[known].astype(float)
        noise = np.square(volume.std[known].astype(float))
        weight = 1 / (variance[known] + noise)
        found += float((weight * (np.square(off) - noise)).sum())
        expected += float((weight * variance[known]).sum())
    return max(1.0, found / expected) if expected else 1.0


def _seen_variance(
    volumes: Sequence[VolumeReading], covariance: ErrorCovariance, spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(mask voxels,) after dose volumes, each voxel by itself: what is seen is as sure as the noise lets it be.

    What the blur hides stays as unsure as it was. Voxels that none saw keep their variance.
    """
    hidden = np.ones_like(spread)
    precision = np.zeros_like(spread)
    for volume in volumes:
        hidden[volume.known] = np.minimum(hidden, unseen_ratio(covariance.shares, volume.blur_mm))[volume.known]
        precision[volume.known] += 1 / np.square(volume.std[volume.known].astype(float))
    seen = (1 - hidden) * spread
    return hidden * spread + seen / (1 + seen * precision)


def spread_for(drawn: DoseEnsemble, variance: NDArray[np.float64]) -> NDArray[np.float32]:
    """(mask voxels,) factor on the samples' deviations that makes the bands those of a variance in Gy^2."""
    before = np.square(voxel_std(drawn))
    ratio = np.divide(variance, before, out=np.ones_like(variance), where=before > 0)
    return np.sqrt(np.where(np.abs(ratio - 1) < LEAST_CHANGE_RATIO, 1, ratio)).astype(np.float32)
