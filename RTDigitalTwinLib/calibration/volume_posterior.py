"""What dose volumes say of a dose: the change of treatment that explains them, then every voxel's own error.

Errors of voxels are taken as independent, larger than their variance where the volumes show so. From what each voxel
tells by itself, a few steps of conjugate gradients go on to undo the blur: few, for more would sharpen the noise with
the dose (Hanke 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.covariance import ErrorCovariance
from RTDigitalTwinLib.calibration.readings import VolumeReading
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.correlation import MaskBox, unseen_ratio
from RTDigitalTwinLib.solver.side_by_side import side_by_side


def from_volumes(
    volumes: Sequence[VolumeReading],
    box: MaskBox,
    mean_gy: NDArray[np.float32],
    variance: NDArray[np.float64],
    steps: int,
) -> NDArray[np.float64]:
    """(mask voxels,) what dose volumes say of the error of a dose, in Gy."""
    off = [np.where(v.known, v.values - _seen(v, box, mean_gy), 0) for v in volumes]
    return _Deblurring.of(volumes, box, variance).found(off, steps).astype(float)


def left_by_volumes(
    volumes: Sequence[VolumeReading],
    box: MaskBox,
    variance: NDArray[np.float64],
    errors: NDArray[np.float32],
    steps: int,
    rng: np.random.Generator,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """(draws, mask voxels) what is left of errors when volumes are measured of them and taken for what they say."""
    noises = [[v.std * rng.standard_normal(v.std.shape, dtype=np.float32) for v in volumes] for _ in errors]
    deblurring = _Deblurring.of(volumes, box, variance)

    def left_of(drawn: tuple[NDArray[np.float32], list[NDArray[np.float32]]]) -> NDArray[np.float32]:
        error, noise = drawn
        off = [np.where(v.known, _seen(v, box, error) + n, 0) for v, n in zip(volumes, noise, strict=True)]
        return error - deblurring.found(off, steps)

    left = np.empty_like(errors)
    with side_by_side(left_of, list(zip(errors, noises, strict=True)), "cpu") as done:
        for k, row in enumerate(done):
            progress(k / len(errors), f"error {k + 1} of {len(errors)}")
            left[k] = row
    return left


def _seen(volume: VolumeReading, box: MaskBox, values: NDArray) -> NDArray[np.float32]:
    return box.blurred(values[None], volume.blur_mm)[0]


@dataclass(frozen=True, eq=False)
class _Deblurring:
    """x (mask voxels,) of (1 / variance + sum B' R^-1 B) x = sum B' R^-1 d, B the blur (Shewchuk 1994, B2).

    Attributes
    ----------
    blurs_mm : of each volume.
    precisions : R^-1 of each, (slices, rows, columns) on the box; 0 where nothing is known.
    information : (mask voxels,) 1 / variance.
    scale : (mask voxels,) 1 over what each voxel tells by itself.
    """

    box: MaskBox
    blurs_mm: tuple[float, ...]
    precisions: tuple[torch.Tensor, ...]
    information: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def of(cls, volumes: Sequence[VolumeReading], box: MaskBox, variance: NDArray[np.float64]) -> _Deblurring:
        precisions = [np.where(v.known, 1 / np.square(v.std.astype(float)), 0) for v in volumes]
        information = 1 / variance
        scale = 1 / (information + np.sum(precisions, axis=0))
        boxes = tuple(torch.from_numpy(full) for full in box.spread(np.stack(precisions)))
        blurs_mm = tuple(v.blur_mm for v in volumes)
        return cls(box, blurs_mm, boxes, information.astype(np.float32), scale.astype(np.float32))

    def found(self, off: Sequence[NDArray], steps: int) -> NDArray[np.float32]:
        """After a few ``steps``; ``off`` are the d (mask voxels,) of each volume."""
        wanted = [torch.from_numpy(full) for full in self.box.spread(np.stack(off))]
        told = [
            (precision * d).numpy().reshape(-1)[self.box.places]
            for precision, d in zip(self.precisions, wanted, strict=True)
        ]
        found = self.scale * sum(told, np.zeros_like(self.scale))  # each voxel by itself, to begin with
        left = self._back(found, wanted) - self.information * found
        along = self.scale * left
        size = _dot(left, along)
        for _ in range(steps):
            if size <= 0:
                break
            moved = self.information * along + self._back(along)
            length = size / _dot(along, moved)
            found += np.float32(length) * along
            left -= np.float32(length) * moved
            scaled = self.scale * left
            before, size = size, _dot(left, scaled)
            along = scaled + np.float32(size / before) * along
        return found

    def _back(self, values: NDArray[np.float32], wanted: Sequence[torch.Tensor] = ()) -> NDArray[np.float32]:
        """(mask voxels,) sum of B' R^-1 B values over the volumes; of B' R^-1 (d - B values) for ``wanted`` d."""
        total = np.zeros_like(values)
        for k, (blur_mm, precision) in enumerate(zip(self.blurs_mm, self.precisions, strict=True)):

            def weighed(seen: torch.Tensor, k: int = k, precision: torch.Tensor = precision) -> torch.Tensor:
                return precision * (wanted[k] - seen if wanted else seen)

            total += self.box.blurred_twice(values, blur_mm, weighed)
        return total


def _dot(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """By numpy alone: a product of the libraries' own would wake all cores."""
    return float(np.einsum("x,x->", one, other, dtype=float))


def inflation_ratio(
    volumes: Sequence[VolumeReading], box: MaskBox, mean_gy: NDArray[np.float32], variance: NDArray[np.float64]
) -> float:
    """How much larger errors are than their variance says, by dose volumes; at least 1.

    The mean square of what was observed minus expected, over its expectation (adaptive inflation; Desroziers et al.
    2005): larger than 1 where treatment differs from the plan.
    """
    found, expected = 0.0, 0.0
    for volume in volumes:
        known = volume.known
        off = (volume.values - _seen(volume, box, mean_gy))[known].astype(float)
        noise = np.square(volume.std[known].astype(float))
        weight = 1 / (variance[known] + noise)
        found += float((weight * (np.square(off) - noise)).sum())
        expected += float((weight * variance[known]).sum())
    return max(1.0, found / expected) if expected else 1.0


def seen_variance(
    volumes: Sequence[VolumeReading], covariance: ErrorCovariance, spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(mask voxels,) after dose volumes, each voxel by itself: what is seen is as sure as the noise lets it be.

    What the blur hides stays as unsure as it was. Voxels that none saw keep their variance. The share that is hidden is
    that of errors over their spread: by the larger near part where the spread is large, bands held 98 instead of 97 %.
    """
    hidden = np.ones(spread.shape)
    precision = np.zeros_like(spread)
    for volume in volumes:
        hidden[volume.known] = np.minimum(hidden, unseen_ratio(covariance.shares, volume.blur_mm))[volume.known]
        precision[volume.known] += 1 / np.square(volume.std[volume.known].astype(float))
    seen = (1 - hidden) * spread
    return hidden * spread + seen / (1 + seen * precision)
