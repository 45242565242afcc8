"""Which shift of the patient and output of the machine explain what was observed best.

Under each hypothesis the maximum a posteriori of three lengths and a factor is found by Gauss-Newton; the dose itself
is moved and scaled, not its slopes. Hypotheses are weighed by their evidence (Laplace), each at its own maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import OUTPUT_STD_RATIO, ErrorCovariance, Hypothesis
from RTDigitalTwinLib.calibration.read_off import read_off
from RTDigitalTwinLib.calibration.readings import VolumeReading
from RTDigitalTwinLib.solver.correlation import MaskBox
from RTDigitalTwinLib.solver.side_by_side import side_by_side
from RTDigitalTwinLib.words import decimal

GAUSS_NEWTON_STEPS = 8
HALVINGS = 4  # of a step that makes things worse
LEAST_STEP = 1e-3  # standard deviations of a change: less is not gone on for
EVIDENCE_POWER = 0.5  # of volumes: errors are not quite as the model says, so it counts half (Gruenwald 2012)
CORRELATED_CC = 8.0  # voxels of a dose volume within such a volume count as one: the belief's errors are smooth

WORTH_TELLING = 0.25  # probability of a shift; before anything is observed it is 0.08
FAR_STDS = 2.5  # of an observed position
OUTPUT_WORTH_TELLING = 0.5  # before anything is observed it is 0.22
CONFIRM = (
    " An image or a couch log can confirm or refute it: give the position as a row of kind 'couch shift', 0, 0, 0 mm"
    " where the patient lay as planned, of the fraction measured."
)


Off: TypeAlias = Sequence[NDArray]


class Told(Protocol):
    """What observations say of a dose (mask voxels,)."""

    def off(self, dose_gy: NDArray[np.float32]) -> Off:
        """d: observed minus expected, of each that is told of by itself."""
        ...

    def of_changes(
        self, changes: NDArray[np.float32], dose_gy: NDArray[np.float32], off: Off
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """J' W J and J' W d: J what is seen of changes (changes, mask voxels), d the dose's ``off``, W its weight."""
        ...

    def misfit(self, off: Off) -> float:
        """d' W d."""
        ...


class Mover:
    """A dose, shifted and scaled by sizes (4,) in standard deviations: along slices, rows, columns; output."""

    def __init__(self, dose_gy: NDArray[np.float32], covariance: ErrorCovariance) -> None:
        self.dose_gy, self.covariance = dose_gy, covariance
        self.box: MaskBox = covariance.box
        self._full = self.box.spread(dose_gy[None])[0]

    def moved(self, sizes: NDArray[np.float64]) -> NDArray[np.float32]:
        """(mask voxels,) the dose read where the tissue lies; beyond the mask it is 0 Gy, and nowhere less."""
        steps = sizes[:3] * self.covariance.shift_std_mm / self.box.spacing_mm
        moved = self.dose_gy
        if steps.any():
            moved = np.maximum(read_off(self._full, steps).reshape(-1)[self.box.places], 0)
        return self._free((1 + OUTPUT_STD_RATIO * sizes[3]) * moved, self.dose_gy).astype(np.float32)

    def changes(self, now: NDArray[np.float32], sizes: NDArray[np.float64]) -> NDArray[np.float32]:
        """(4, mask voxels) by one standard deviation of each, about the dose ``now`` moved by ``sizes``."""
        unscaled = now / np.float32(1 + OUTPUT_STD_RATIO * sizes[3])
        shifts = self.covariance.shift_std_mm * self.box.slopes(now)
        found = np.concatenate([shifts, OUTPUT_STD_RATIO * unscaled[None]])
        return self._free(found, np.float32(0))

    def _free(self, changed: NDArray, otherwise: NDArray | np.float32) -> NDArray:
        fixed = self.covariance.fixed
        return changed if fixed is None else np.where(fixed, otherwise, changed)


@dataclass(frozen=True, eq=False)
class Changed:
    """A hypothesis with the sizes that suit it best.

    Attributes
    ----------
    sizes : (4,) in standard deviations of each change.
    evidence : logarithm of the probability of what was observed, up to what all hypotheses share.
    """

    sizes: NDArray[np.float64]
    dose_gy: NDArray[np.float32]
    evidence: float


def best_change(mover: Mover, hypothesis: Hypothesis, told: Told) -> Changed:
    """The maximum a posteriori by Gauss-Newton, steps halved where they make things worse; from no change on."""
    free = np.flatnonzero(hypothesis.sizes)
    sizes, now, total = np.zeros(4), mover.dose_gy, np.eye(len(free))
    off = told.off(now)
    misfit = told.misfit(off)
    for _ in range(GAUSS_NEWTON_STEPS if len(free) else 0):
        information, pull = told.of_changes(mover.changes(now, sizes)[free], now, off)
        total = np.eye(len(free)) + information
        step = np.zeros(4)
        step[free] = np.linalg.solve(total, pull - sizes[free])
        worse = misfit + float(sizes @ sizes)
        for _ in range(HALVINGS):
            tried = mover.moved(sizes + step)
            tried_off = told.off(tried)
            left = told.misfit(tried_off)
            if left + float(np.square(sizes + step).sum()) <= worse:
                sizes, now, off, misfit = sizes + step, tried, tried_off, left
                break
            step = step / 2
        else:
            break
        if np.abs(step).max() < LEAST_STEP:
            break
    occam = np.linalg.slogdet(total)[1] if len(free) else 0.0
    return Changed(sizes, now, -0.5 * (misfit + float(sizes @ sizes) + occam))


def probabilities(hypotheses: Sequence[Hypothesis], evidence: Sequence[float]) -> NDArray[np.float64]:
    """(hypotheses,) after observing, from the logarithm of each one's evidence."""
    logs = np.array([np.log(h.probability) + e for h, e in zip(hypotheses, evidence, strict=True)])
    likely = np.exp(logs - logs.max())
    return likely / likely.sum()


@dataclass(frozen=True)
class FoundChange:
    """How treatment probably differs from the plan where dose was measured, by all that was observed.

    Attributes
    ----------
    shift_probability, output_probability : that there is a shift of the patient; a change of the machine's output.
    shift_mm : LPS, what is expected of the shift where there is one, besides the position that was observed.
    output_ratio : likewise of the output, 0.05 for 5 % more.
    known_to_mm : standard deviation of the position where it was observed; None where it was not.
    """

    shift_probability: float
    shift_mm: tuple[float, float, float]
    output_probability: float
    output_ratio: float
    known_to_mm: float | None = None

    @classmethod
    def of(
        cls, sizes: Sequence[NDArray[np.float64]], weights: NDArray[np.float64], now: ErrorCovariance
    ) -> FoundChange:
        """From the sizes (4,) and the probability of each hypothesis."""
        shifted, output = (np.array([bool(h.sizes[k]) for h in now.hypotheses]) * weights for k in (0, 3))
        # A hypothesis that the observations rule out altogether has a probability of 0, and tells nothing.
        x, y, z = now.shift_std_mm * (shifted @ np.array(sizes)[:, :3]) @ now.box.axes_lps / (shifted.sum() or 1.0)
        ratio = OUTPUT_STD_RATIO * float(output @ np.array(sizes)[:, 3] / (output.sum() or 1.0))
        position = (float(x), float(y), float(z))
        return cls(float(shifted.sum()), position, float(output.sum()), ratio, now.known_to_mm)

    @property
    def words(self) -> tuple[str, ...]:
        """A sentence on each change that became likely enough to matter."""
        said = []
        x, y, z = (decimal(value, 1, signed=True) for value in self.shift_mm)
        if self.known_to_mm is not None:
            if max(map(abs, self.shift_mm)) > FAR_STDS * self.known_to_mm:
                said.append(
                    f"A shift of the patient by {x}, {y}, {z} mm (LPS) from the position observed would explain what "
                    f"was measured, but its standard deviation is given as {self.known_to_mm:g} mm: look at both."
                )
        elif self.shift_probability >= WORTH_TELLING:
            said.append(
                f"A shift of the patient explains part of what was measured, with probability "
                f"{self.shift_probability:.0%}: by {x}, {y}, {z} mm (LPS) from the planned position.{CONFIRM}"
            )
        if self.output_probability >= OUTPUT_WORTH_TELLING:
            more = "higher" if self.output_ratio >= 0 else "lower"
            said.append(
                f"What was measured is {abs(self.output_ratio):.1%} {more} than predicted all over. The machine's "
                "output explains it, or an error of the prediction: the machine's own check of its output tells which."
            )
        return tuple(said)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> FoundChange:
        """As ``asdict`` gave it. Raises KeyError, TypeError or ValueError for another."""
        x, y, z = (float(v) for v in row["shift_mm"])
        known = row["known_to_mm"]
        return cls(
            float(row["shift_probability"]),
            (x, y, z),
            float(row["output_probability"]),
            float(row["output_ratio"]),
            None if known is None else float(known),
        )


def changed_dose(
    volumes: Sequence[VolumeReading], mean_gy: NDArray[np.float32], covariance: ErrorCovariance
) -> tuple[NDArray[np.float32], FoundChange]:
    """(mask voxels,) the dose expected, shifted and scaled as volumes tell, over the hypotheses; and by what."""
    told, mover = _VolumesTold.of(volumes, covariance), Mover(mean_gy, covariance)
    with side_by_side(lambda h: best_change(mover, h, told), covariance.hypotheses, "cpu") as done:
        fits = list(done)
    weights = probabilities(covariance.hypotheses, [EVIDENCE_POWER * fit.evidence for fit in fits])
    # As a change, so that volumes that say nothing leave the dose as it is to the last bit.
    change = sum((w * (fit.dose_gy - mean_gy) for w, fit in zip(weights, fits, strict=True)), np.zeros(mean_gy.shape))
    found = FoundChange.of([fit.sizes for fit in fits], weights, covariance)
    return mean_gy + change.astype(np.float32), found


@dataclass(frozen=True, eq=False)
class _VolumesTold:
    """What dose volumes say, voxels within ``CORRELATED_CC`` counting as one: ``weights`` (mask voxels,) of each."""

    volumes: tuple[VolumeReading, ...]
    weights: tuple[NDArray[np.float64], ...]
    box: MaskBox

    @classmethod
    def of(cls, volumes: Sequence[VolumeReading], covariance: ErrorCovariance) -> _VolumesTold:
        alike = min(1.0, float(np.prod(covariance.box.spacing_mm)) / 1000 / CORRELATED_CC)
        variance = np.square(covariance.std.astype(float))
        weights = [alike * v.known / (variance + np.square(v.std.astype(float))) for v in volumes]
        return cls(tuple(volumes), tuple(weights), covariance.box)

    def off(self, dose_gy: NDArray[np.float32]) -> Off:
        return [
            np.where(v.known, v.values - self.box.blurred(dose_gy[None], v.blur_mm)[0], 0)  # NaN where it is not known
            for v in self.volumes
        ]

    def of_changes(
        self, changes: NDArray[np.float32], dose_gy: NDArray[np.float32], off: Off
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        total, pull = np.zeros((len(changes), len(changes))), np.zeros(len(changes))
        for volume, weight, d in zip(self.volumes, self.weights, off, strict=True):
            seen = self.box.blurred(changes, volume.blur_mm).astype(float)
            weighted = seen * weight
            total = total + weighted @ seen.T
            pull = pull + weighted @ d
        return total, pull

    def misfit(self, off: Off) -> float:
        return sum(float(w @ np.square(d)) for w, d in zip(self.weights, off, strict=True))
