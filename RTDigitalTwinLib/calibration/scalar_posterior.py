"""The posterior of a dose after metrics and points, averaged over what may have changed of the treatment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import HYPOTHESES, ScalarErrors


@dataclass(frozen=True, eq=False)
class Posterior:
    """After metrics and points.

    Attributes
    ----------
    shift_gy, variance_gy2 : (mask voxels,) over the hypotheses.
    gains, shifts : of each hypothesis (readings, mask voxels) and (mask voxels,).
    weights, raised : (hypotheses,) their probabilities; and those that count for what a change adds to the variance.
    """

    shift_gy: NDArray[np.float64]
    variance_gy2: NDArray[np.float64]
    gains: tuple[NDArray[np.float64], ...]
    shifts: NDArray[np.float64]
    weights: NDArray[np.float64]
    raised: NDArray[np.float64]

    def left_of(self, errors: NDArray[np.float32], scalars: ScalarErrors, rng: np.random.Generator) -> NDArray:
        """(draws, mask voxels) what is left of errors when they are measured and the update taken away.

        Draws are shared out among the hypotheses as their probabilities are.
        """
        count = len(errors)
        places = (np.arange(count) + 0.5) / count
        added = np.minimum(np.searchsorted(np.cumsum(self.raised), places), len(HYPOTHESES) - 1)
        likely = np.minimum(np.searchsorted(np.cumsum(self.weights), places), len(HYPOTHESES) - 1)
        left = np.empty_like(errors)
        for k in range(count):
            changes = rng.standard_normal(4).astype(np.float32) * HYPOTHESES[added[k]].sizes
            error = errors[k] + changes @ scalars.covariance.changes
            noise = scalars.noise_std * rng.standard_normal(len(scalars.noise_std))
            update = (scalars.slopes @ error + noise) @ self.gains[added[k]]
            left[k] = error - update + (self.shifts[likely[k]] - self.shift_gy)
        return left


def posterior(scalars: ScalarErrors) -> Posterior:
    """After metrics and points, over the hypotheses.

    The bands before speak of the plan's dose. What changes of treatment add to the variance counts as far as the
    observations made a change likelier than it was: nothing is added by observations that say nothing.
    """
    covariance = scalars.covariance
    weights = scalars.weights()
    shifts, variances, raised, gains = [], [], [], []
    for hypothesis, weight in zip(HYPOTHESES, weights, strict=True):
        total = scalars.total(hypothesis)
        moved = scalars.change_slopes * hypothesis.sizes
        both = scalars.network + (moved @ covariance.changes).astype(np.float32)
        gain = np.linalg.solve(total, both.astype(float))
        gains.append(gain)
        shifts.append(scalars.off @ gain)
        prior = np.square(covariance.std) + np.square(covariance.changes * hypothesis.sizes[:, None]).sum(axis=0)
        variances.append(np.maximum(prior - np.einsum("kx,kx->x", both, gain), 0))
        as_planned = not hypothesis.sizes.any()
        raised.append(0.0 if as_planned else max(weight - hypothesis.probability, 0) / (1 - hypothesis.probability))
    shift = weights @ np.stack(shifts)
    raised[0] = 1 - sum(raised)
    apart = weights @ np.square(np.stack(shifts) - shift)
    variance = np.array(raised) @ np.stack(variances) + apart
    return Posterior(shift, variance, tuple(gains), np.stack(shifts), weights, np.array(raised))
