"""What dose volumes say of a dose: the change of treatment that explains them, then every voxel's own error.

Errors of voxels are taken as independent, larger than their variance where the volumes show so. From what each voxel
tells by itself, a few steps of conjugate gradients go on to undo the blur: few, for more would sharpen the noise with
the dose (Hanke 1995).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    return _deblurred(volumes, box, off, variance, steps)


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

    def left_of(drawn: tuple[NDArray[np.float32], list[NDArray[np.float32]]]) -> NDArray[np.float32]:
        error, noise = drawn
        off = [np.where(v.known, _seen(v, box, error) + n, 0) for v, n in zip(volumes, noise, strict=True)]
        return (error - _deblurred(volumes, box, off, variance, steps)).astype(np.float32)

    left = np.empty_like(errors)
    with side_by_side(left_of, list(zip(errors, noises, strict=True)), "cpu") as done:
        for k, row in enumerate(done):
            progress(k / len(errors), f"error {k + 1} of {len(errors)}")
            left[k] = row
    return left


def _seen(volume: VolumeReading, box: MaskBox, values: NDArray) -> NDArray[np.float32]:
    return box.blurred(values[None], volume.blur_mm)[0]


def _deblurred(
    volumes: Sequence[VolumeReading], box: MaskBox, off: Sequence[NDArray], variance: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """x (mask voxels,) of (1 / variance + sum B' R^-1 B) x = sum B' R^-1 d, B the blur (Shewchuk 1994, B2).

    ``off`` are the d of each volume.
    """
    precisions = [np.where(v.known, 1 / np.square(v.std.astype(float)), 0) for v in volumes]

    def matrix(values: NDArray) -> NDArray:
        parts = (_seen(v, box, p * _seen(v, box, values)) for v, p in zip(volumes, precisions, strict=True))
        return values / variance + sum(parts, np.zeros_like(values))

    def dot(one: NDArray, other: NDArray) -> float:
        return float(np.einsum("x,x->", one, other))  # a product of the libraries' own would wake all cores

    scale = 1 / (1 / variance + np.sum(precisions, axis=0))
    wanted, found = np.zeros(len(variance)), np.zeros(len(variance))
    for volume, precision, d in zip(volumes, precisions, off, strict=True):
        wanted += _seen(volume, box, precision * d)
        found += scale * precision * d  # each voxel by itself, to begin with
    left = wanted - matrix(found)
    along = scale * left
    size = dot(left, along)
    for _ in range(steps):
        if size <= 0:
            break
        moved = matrix(along)
        length = size / dot(along, moved)
        found += length * along
        left -= length * moved
        before, size = size, dot(left, scale * left)
        along = scale * left + size / before * along
    return found


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
