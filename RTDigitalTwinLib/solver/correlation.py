"""How errors of a predicted dose hang together in space: a mixture of Gaussians of the distance, measured on a cohort.

The correlation of the errors over their calibrated spread, at voxels ``d`` apart, is sum_k share_k exp(-d^2 / 2 l_k^2)
with the lengths l_k of ``LENGTHS_MM``: every such mixture with shares of 0 and more is a valid covariance (Rasmussen
and Williams 2006, 4.2). Shares are fitted by non-negative least squares to the correlation found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.model.crop import Crop
from RTDigitalTwinLib.solver.side_by_side import side_by_side

LENGTHS_MM = (4.0, 8.0, 16.0, 32.0, 64.0)
DISTANCES_MM = tuple(float(d) for d in (0, 2, 4, 6, 9, 12, 16, 20, 25, 30, 40, 50, 60, 80))  # edges of the bins
CUSTOMARY_SHARES = (0.05, 0.3, 0.35, 0.15, 0.15)  # where none were measured
FARTHEST_MM = DISTANCES_MM[-1]
LEAST_SHARE_OF_VARIANCE = 1e-6  # along an axis: what less of a drawn field comes of is left out
LEAST_BLUR_RATIO = 1e-9  # of a blur's highest weight: less makes subnormal numbers, which a processor is slow with


class MaskBox:
    """The box around a mask's voxels, where smoothing is a product of three small matrices, exact up to its edge."""

    def __init__(self, crop: Crop) -> None:
        index = np.stack(np.unravel_index(crop.mask_indices, crop.grid.shape), axis=1)
        low = index.min(axis=0)
        self.shape = tuple(int(n) for n in index.max(axis=0) - low + 1)
        self.spacing_mm = tuple(reversed(crop.grid.spacing_mm))  # slices, rows, columns
        self.axes_lps = np.reshape(crop.grid.direction, (3, 3)).T[::-1]  # (3, 3) a unit vector of each, likewise
        self.places = np.ravel_multi_index(tuple((index - low).T), self.shape)
        self._blurs: dict[float, list[torch.Tensor]] = {}

    def spread(self, values: NDArray) -> NDArray[np.float32]:
        """(fields, mask voxels) as (fields, slices, rows, columns), 0 outside the mask."""
        full = np.zeros((len(values), int(np.prod(self.shape))), np.float32)
        full[:, self.places] = values
        return full.reshape(-1, *self.shape)

    def correlated(self, values: NDArray, shares: Sequence[float]) -> NDArray[np.float32]:
        """(fields, mask voxels): each field summed over all voxels with the correlation to them as its weight."""

        def summed(field: torch.Tensor) -> torch.Tensor:
            parts = (
                share * _along_axes(field, *axes) for share, axes in zip(shares, self._weights, strict=True) if share
            )
            return sum(parts, torch.zeros_like(field))

        return self._each(values, summed)

    def drawn(self, shares: Sequence[float], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """(count, mask voxels) Gaussian fields of variance 1 with the mixture's correlation, up to the box's edge."""
        roots = [(float(np.sqrt(share)), axes) for share, axes in zip(shares, self._roots, strict=True) if share]

        def field(own: np.random.Generator) -> NDArray[np.float32]:
            total = torch.zeros(self.shape)
            for size, axes in roots:
                noise = own.standard_normal(tuple(root.shape[1] for root in axes), dtype=np.float32)
                total += size * _along_axes(torch.from_numpy(noise), *axes)
            return total.numpy().reshape(-1)[self.places]

        with side_by_side(field, rng.spawn(count), "cpu") as fields:
            return np.array(list(fields), np.float32).reshape(count, len(self.places))

    def blurred(self, values: NDArray, blur_mm: float) -> NDArray[np.float32]:
        """(fields, mask voxels) after a Gaussian of standard deviation ``blur_mm``; 0 outside the mask."""
        if not blur_mm:
            return values
        kernels = self._kernels(blur_mm)
        return self._each(values, lambda field: _along_axes(field, *kernels))

    def blurred_twice(
        self, values: NDArray, blur_mm: float, between: Callable[[torch.Tensor], torch.Tensor]
    ) -> NDArray[np.float32]:
        """(mask voxels,) blurred, changed by ``between`` on the box (slices, rows, columns), and blurred again.

        What ``between`` leaves outside the mask is blurred as well.
        """

        def blur(field: torch.Tensor) -> torch.Tensor:
            return _along_axes(field, *self._kernels(blur_mm)) if blur_mm else field

        return self._each(values[None], lambda field: blur(between(blur(field))))[0]

    def _each(self, values: NDArray, change: Callable[[torch.Tensor], torch.Tensor]) -> NDArray[np.float32]:
        """Fields (fields, mask voxels) changed one by one on the box: one fits the processor's cache."""
        changed = np.empty(values.shape, np.float32)
        full = np.zeros(self.shape, np.float32)
        for row, field in zip(changed, values, strict=True):
            full.reshape(-1)[self.places] = field
            change(torch.from_numpy(full)).numpy().reshape(-1).take(self.places, out=row)
        return changed

    def _kernels(self, blur_mm: float) -> list[torch.Tensor]:
        if blur_mm not in self._blurs:
            kernels = []
            for n, h in zip(self.shape, self.spacing_mm, strict=True):
                weights = _discrete_gaussian(n, (blur_mm / h) ** 2)
                weights[weights < LEAST_BLUR_RATIO * weights[0]] = 0
                kernel = weights[np.abs(np.arange(n)[:, None] - np.arange(n))]
                kernels.append(torch.from_numpy(kernel.astype(np.float32)))
            self._blurs[blur_mm] = kernels
        return self._blurs[blur_mm]

    def slopes(self, dose_gy: NDArray) -> NDArray[np.float32]:
        """(3, mask voxels) change of a dose per mm along slices, rows and columns; outside the mask it is 0 Gy."""
        full = self.spread(dose_gy[None])[0]
        steps = [
            np.gradient(full, h, axis=axis) if full.shape[axis] > 1 else np.zeros_like(full)
            for axis, h in enumerate(self.spacing_mm)
        ]
        return np.stack([step.reshape(-1)[self.places] for step in steps]).astype(np.float32)

    @cached_property
    def _weights(self) -> list[list[torch.Tensor]]:
        """For each length the weights along each axis: symmetric, so that they serve from either side."""
        axes = [(np.arange(n)[:, None] - np.arange(n)) * h for n, h in zip(self.shape, self.spacing_mm, strict=True)]
        return [
            [torch.from_numpy(np.exp(-0.5 * np.square(away / length)).astype(np.float32)) for away in axes]
            for length in LENGTHS_MM
        ]

    @cached_property
    def _roots(self) -> list[list[torch.Tensor]]:
        """Roots of ``_weights`` (n, rank): long lengths have few that count."""
        return [[_root(weights) for weights in of_length] for of_length in self._weights]


def _along_axes(field: torch.Tensor, slices: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """A field (a, b, c) times a matrix along each axis: (slices, a), (rows, b), (columns, c)."""
    across = rows @ (field @ columns.T)
    return (slices @ across.reshape(len(across), -1)).reshape(-1, *across.shape[1:])


def _discrete_gaussian(count: int, variance: float) -> NDArray[np.float64]:
    """(count,) weights of 0, 1, ... voxels away, their variance exact however few voxels they reach.

    exp(-t) I_n(t) with the modified Bessel function (Lindeberg, IEEE PAMI 12, 234, 1990), by its integral over a
    circle; samples of a Gaussian narrower than a voxel would blur by another width.
    """
    angle = 2 * np.pi * np.arange(4 * count + 64) / (4 * count + 64)
    return np.cos(np.arange(count)[:, None] * angle) @ np.exp(variance * (np.cos(angle) - 1)) / angle.size


def _root(weights: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(weights.double())
    counts = values > LEAST_SHARE_OF_VARIANCE * len(weights)
    return (vectors[:, counts] * values[counts].sqrt()).float().contiguous()


def correlation_by_distance(scores: NDArray, crop: Crop) -> NDArray[np.float64]:
    """(1 + bins,) mean square of signed scores (mask voxels,), and mean product of two in each bin of distance.

    NaN for bins in which there are no two voxels. By fast Fourier transform over the box around the mask.
    """
    from scipy import fft

    box = MaskBox(crop)
    full, inside = box.spread(np.stack([scores, np.ones_like(scores)]))
    reach = [min(n - 1, int(FARTHEST_MM / h)) for n, h in zip(box.shape, box.spacing_mm, strict=True)]
    size = [fft.next_fast_len(n + k, real=True) for n, k in zip(box.shape, reach, strict=True)]

    def products(values: NDArray) -> NDArray:
        spectrum = np.abs(fft.rfftn(values, size)) ** 2
        whole = fft.irfftn(spectrum, size)
        return whole[np.ix_(*(np.arange(-k, k + 1) for k in reach))]

    summed, pairs = products(full), np.round(products(inside))
    steps = np.meshgrid(*(np.arange(-k, k + 1) * h for k, h in zip(reach, box.spacing_mm, strict=True)), indexing="ij")
    away = np.sqrt(sum(np.square(s) for s in steps))
    bins = np.digitize(away, DISTANCES_MM)  # the first bin holds distances up to its edge, but not 0
    bins[away == 0] = 0
    count = np.bincount(bins.ravel(), pairs.ravel(), len(DISTANCES_MM) + 1)[: len(DISTANCES_MM)]
    total = np.bincount(bins.ravel(), summed.ravel(), len(DISTANCES_MM) + 1)[: len(DISTANCES_MM)]
    return np.divide(total, count, out=np.full(len(DISTANCES_MM), np.nan), where=count > 0)


def fit_shares(curves: Sequence[NDArray]) -> tuple[float, ...]:
    """Shares by length from curves of ``correlation_by_distance``, every patient weighing the same; their sum is 1."""
    from scipy.optimize import nnls

    known = np.stack([curve / curve[0] for curve in curves])
    middle = np.array([0.0, *(0.5 * (np.array(DISTANCES_MM[:-1]) + DISTANCES_MM[1:]))])
    usable = np.isfinite(known).any(axis=0)
    found = np.nanmean(known[:, usable], axis=0)
    terms = np.exp(-0.5 * np.square(middle[usable, None] / np.array(LENGTHS_MM)))
    shares, _ = nnls(terms, found)
    return tuple(float(s) for s in shares / shares.sum())


def unseen_ratio(shares: Sequence[float], blur_mm: float) -> float:
    """Share of the errors' variance that a Gaussian blur of standard deviation ``blur_mm`` takes out of sight.

    Of a term exp(-d^2 / 2 l^2) the covariance with its blurred self is (l^2 / (l^2 + b^2))^(3/2), and the blurred
    variance (l^2 / (l^2 + 2 b^2))^(3/2).
    """
    square, blur = np.square(LENGTHS_MM), blur_mm**2
    with_itself = (square / (square + blur)) ** 1.5
    blurred = (square / (square + 2 * blur)) ** 1.5
    return float(np.dot(shares, 1 - 2 * with_itself + blurred))
