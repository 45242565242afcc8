"""Which shift of the patient and output of the machine explain dose volumes best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import (
    EVIDENCE_POWER,
    HYPOTHESES,
    OUTPUT_STD_RATIO,
    SHIFT_STD_MM,
    ErrorCovariance,
    Hypothesis,
)
from RTDigitalTwinLib.calibration.readings import VolumeReading
from RTDigitalTwinLib.solver.correlation import MaskBox

GAUSS_NEWTON_STEPS = 3
CORRELATED_CC = 8.0  # voxels of a dose volume within such a volume count as one: the belief's errors are smooth


def changed_dose(
    volumes: Sequence[VolumeReading], mean_gy: NDArray[np.float32], covariance: ErrorCovariance
) -> NDArray[np.float32]:
    """(mask voxels,) the dose expected, shifted and scaled as the volumes tell.

    Under each hypothesis the maximum a posteriori of three lengths and a factor, by Gauss-Newton; the dose itself is
    moved, not its slopes. The hypotheses are weighed by their evidence (Laplace), tempered as for metrics.
    """
    fits = [_Fit.of(volumes, mean_gy, covariance, hypothesis) for hypothesis in HYPOTHESES]
    logs = np.array(
        [np.log(h.probability) + EVIDENCE_POWER * fit.evidence for h, fit in zip(HYPOTHESES, fits, strict=True)]
    )
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    # As a change, so that volumes that say nothing leave the dose as it is to the last bit.
    change = sum((w * (fit.dose_gy - mean_gy) for w, fit in zip(weights, fits, strict=True)), np.zeros(mean_gy.shape))
    return mean_gy + change.astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A hypothesis with the sizes that suit it best.

    Attributes
    ----------
    sizes : (4,) in standard deviations of each change.
    evidence : logarithm of the probability of the volumes, up to what all hypotheses share.
    """

    sizes: NDArray[np.float64]
    dose_gy: NDArray[np.float32]
    evidence: float

    @classmethod
    def of(
        cls,
        volumes: Sequence[VolumeReading],
        mean_gy: NDArray[np.float32],
        covariance: ErrorCovariance,
        hypothesis: Hypothesis,
    ) -> _Fit:
        box, free = covariance.box, np.flatnonzero(hypothesis.sizes)
        full = box.spread(mean_gy[None])[0]
        alike = min(1.0, float(np.prod(box.spacing_mm)) / 1000 / CORRELATED_CC)
        weights = [
            alike * v.known / (np.square(covariance.std.astype(float)) + np.square(v.std.astype(float)))
            for v in volumes
        ]
        sizes, now, total = np.zeros(4), mean_gy, np.eye(0)
        for _ in range(GAUSS_NEWTON_STEPS if hypothesis.shifted else len(free)):
            moved = now / np.float32(1 + OUTPUT_STD_RATIO * sizes[3])
            changes = np.concatenate([SHIFT_STD_MM * box.slopes(now), OUTPUT_STD_RATIO * moved[None]])[free]
            total, pull = np.eye(len(free)), -sizes[free]
            for volume, weight in zip(volumes, weights, strict=True):
                seen = box.blurred(changes, volume.blur_mm).astype(float)
                off = _off(volume, now, box)
                total = total + (seen * weight) @ seen.T
                pull = pull + (seen * weight) @ off
            sizes[free] += np.linalg.solve(total, pull)
            now = _changed(full, sizes, box)
        misfit = sum(float(w @ np.square(_off(v, now, box))) for v, w in zip(volumes, weights, strict=True))
        occam = np.linalg.slogdet(total)[1] if len(free) else 0.0
        return cls(sizes, now, -0.5 * (misfit + float(sizes @ sizes) + occam))


def _off(volume: VolumeReading, dose_gy: NDArray[np.float32], box: MaskBox) -> NDArray[np.float32]:
    return np.where(volume.known, volume.values - box.blurred(dose_gy[None], volume.blur_mm)[0], 0)


def _changed(full: NDArray[np.float32], sizes: NDArray[np.float64], box: MaskBox) -> NDArray[np.float32]:
    """(mask voxels,) the dose read where the tissue lies, linearly; beyond the mask it is 0 Gy."""
    from scipy.ndimage import shift

    steps = -sizes[:3] * SHIFT_STD_MM / box.spacing_mm
    moved = shift(full, steps, order=1).reshape(-1)[box.places]
    return ((1 + OUTPUT_STD_RATIO * sizes[3]) * moved).astype(np.float32)
