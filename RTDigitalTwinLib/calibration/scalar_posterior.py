"""The posterior of a dose after metrics and points, averaged over what may have changed of the treatment.

Under each hypothesis shift and output are sought first: the believed dose itself is moved and scaled
(``treatment_change``). There readings and changes are made linear anew, and the rest is a linear-Gaussian update. A
hypothesis's evidence is that of the linear model at its own maximum (Laplace), where how large all errors are is
itself unsure: the covariance has a factor of inverse-gamma distribution, which makes the readings' distribution a
Student's t (Shah, Wilson and Ghahramani 2014). Where no hypothesis explains the readings well, none gains as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import Hypothesis, ScalarErrors, slopes_of
from RTDigitalTwinLib.calibration.treatment_change import FoundChange, Mover, Off, best_change, probabilities

EVIDENCE_DEGREES = 20.0  # of freedom of the t distribution: how surely the size of errors is known


@dataclass(frozen=True, eq=False)
class Mode:
    """A hypothesis where it explains the readings best, and what follows from it there.

    Attributes
    ----------
    sizes : (4,) of the changes there, in standard deviations.
    errors : linear about the dose moved so.
    of_changes, of_network : (readings, 4), (readings, mask voxels): what a reading off by 1 teaches of each.
    """

    hypothesis: Hypothesis
    sizes: NDArray[np.float64]
    errors: ScalarErrors
    of_changes: NDArray[np.float64]
    of_network: NDArray[np.float64]

    @classmethod
    def of(cls, errors: ScalarErrors, mover: Mover, hypothesis: Hypothesis) -> Mode:
        """``mover`` is of the dose that the errors are about, without a change of treatment."""
        found = best_change(mover, hypothesis, _ScalarsTold(errors))
        if hypothesis.sizes.any():
            errors = errors.about(found.dose_gy, mover.changes(found.dose_gy, found.sizes), found.sizes)
        total = errors.total(hypothesis)
        of_changes = np.linalg.solve(total, errors.change_slopes * hypothesis.sizes.astype(float))
        return cls(hypothesis, found.sizes, errors, of_changes, np.linalg.solve(total, errors.network.astype(float)))

    @property
    def evidence(self) -> float:
        """Logarithm of the readings' probability, up to what all hypotheses share."""
        total, off = self.errors.total(self.hypothesis), self.errors.off
        square = float(off @ np.linalg.solve(total, off))
        tail = (EVIDENCE_DEGREES + off.size) * np.log1p(square / EVIDENCE_DEGREES)
        return -0.5 * float(np.linalg.slogdet(total)[1] + tail)

    @property
    def dose_gy(self) -> NDArray[np.float64]:
        """(mask voxels,) expected."""
        off = self.errors.off
        further = off @ self.of_changes - self.sizes
        return self.errors.dose_gy + further @ self.errors.covariance.changes + off @ self.of_network

    @property
    def variance_gy2(self) -> NDArray[np.float64]:
        """(mask voxels,) of what is left."""
        covariance, sizes = self.errors.covariance, self.hypothesis.sizes
        prior = np.square(covariance.std) + np.square(covariance.changes * sizes[:, None]).sum(axis=0)
        both = self.errors.network + (self.errors.change_slopes * sizes) @ covariance.changes
        gain = self.of_network + self.of_changes @ covariance.changes
        return np.maximum(prior - np.einsum("kx,kx->x", both, gain), 0)

    def left_of(self, error: NDArray[np.float32], mover: Mover, rng: np.random.Generator) -> NDArray:
        """(mask voxels,) what is left of an error and of a drawn change when they are measured and taken away.

        By what is left of the change the dose is really moved.
        """
        errors = self.errors
        sizes = rng.standard_normal(4) * self.hypothesis.sizes
        noise = errors.noise_std * rng.standard_normal(errors.noise_std.size)
        off = errors.slopes @ error + errors.change_slopes @ sizes + noise
        left = sizes - off @ self.of_changes
        moved = mover.moved(self.sizes + left) - errors.dose_gy if self.hypothesis.sizes.any() else 0
        return error - off @ self.of_network + moved


@dataclass(frozen=True, eq=False)
class Posterior:
    """After metrics and points.

    Attributes
    ----------
    dose_gy, variance_gy2 : (mask voxels,) over the hypotheses.
    mover : of the dose before.
    modes, doses_gy : of each hypothesis, and what is expected under it (hypotheses, mask voxels).
    weights, raised : (hypotheses,) their probabilities; and those that count for what a change adds to the variance.
    """

    dose_gy: NDArray[np.float64]
    variance_gy2: NDArray[np.float64]
    mover: Mover
    modes: tuple[Mode, ...]
    doses_gy: NDArray[np.float64]
    weights: NDArray[np.float64]
    raised: NDArray[np.float64]

    @property
    def change(self) -> FoundChange:
        """How treatment probably differs from the plan."""
        return FoundChange.of([mode.sizes for mode in self.modes], self.weights, self.mover.covariance)

    def left_of(self, errors: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """(draws, mask voxels) what is left of errors when they are measured and the update taken away.

        Draws are shared out among the hypotheses as their probabilities are.
        """
        count = len(errors)
        places = (np.arange(count) + 0.5) / count
        added = np.minimum(np.searchsorted(np.cumsum(self.raised), places), len(self.modes) - 1)
        likely = np.minimum(np.searchsorted(np.cumsum(self.weights), places), len(self.modes) - 1)
        left = np.empty_like(errors)
        for k in range(count):
            apart = self.doses_gy[likely[k]] - self.dose_gy
            left[k] = self.modes[added[k]].left_of(errors[k], self.mover, rng) + apart
        return left


def posterior(errors: ScalarErrors) -> Posterior:
    """After metrics and points, over the hypotheses.

    The bands before speak of the plan's dose. What changes of treatment add to the variance counts as far as the
    observations made a change likelier than it was: nothing is added by observations that say nothing, but for the
    noise of a position that was observed.
    """
    mover = Mover(errors.dose_gy, errors.covariance)
    modes = tuple(Mode.of(errors, mover, hypothesis) for hypothesis in errors.covariance.hypotheses)
    weights = probabilities(errors.covariance.hypotheses, [mode.evidence for mode in modes])
    doses = np.stack([mode.dose_gy for mode in modes])
    expected = weights @ doses
    apart = weights @ np.square(doses - expected)
    known = errors.covariance.known_to_mm is not None  # then the position's noise is no change, and counts as it is
    raised = weights if known else _raised(errors.covariance.hypotheses, weights)
    variance = raised @ np.stack([mode.variance_gy2 for mode in modes]) + apart
    return Posterior(expected, variance, mover, modes, doses, weights, raised)


def _raised(hypotheses: Sequence[Hypothesis], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(hypotheses,) how much likelier each became, as a share of what it could; the rest is the first one."""
    risen = [max(w - h.probability, 0) / (1 - h.probability) for w, h in zip(weights, hypotheses, strict=True)][1:]
    return np.array([1 - sum(risen), *risen])


@dataclass(frozen=True, eq=False)
class _ScalarsTold:
    """What metrics and points say of a dose, wrong by the network's errors alone."""

    errors: ScalarErrors

    def off(self, dose_gy: NDArray[np.float32]) -> Off:
        return [self.errors.off_at(dose_gy)]

    def of_changes(
        self, changes: NDArray[np.float32], dose_gy: NDArray[np.float32], off: Off
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        seen = slopes_of(self.errors.readings, dose_gy).astype(float) @ changes.T.astype(float)
        weighted = np.linalg.solve(self.errors.as_planned, seen).T
        return weighted @ seen, weighted @ off[0]

    def misfit(self, off: Off) -> float:
        return float(off[0] @ np.linalg.solve(self.errors.as_planned, off[0]))
