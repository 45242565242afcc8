"""Distances to a structure's surface."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def signed_distance_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float], reach_mm: float) -> NDArray[np.float32]:
    """Euclidean distance to the surface voxels of a mask (slices, rows, columns), exact between voxel centres.

    Surface voxels are those of the mask with a voxel outside it among their 26 neighbours in the array. Distances are
    negative inside; whatever is farther than ``reach_mm`` has that distance. One axis after the other (Saito and
    Toriwaki 1994). ``spacing_mm`` is along (columns, rows, slices). Raises ValueError for an empty mask.
    """
    if not mask.any():
        raise ValueError("the mask is empty")
    inside = torch.from_numpy(np.ascontiguousarray(mask))
    outside = functional.max_pool3d((~inside).float()[None], 3, stride=1, padding=1)[0] > 0
    squared = torch.where(inside & outside, 0.0, reach_mm**2)
    for axis, step in enumerate(reversed(spacing_mm)):
        squared = _nearest(squared, axis, float(step), reach_mm)
    distance = squared.sqrt()
    return torch.where(inside, -distance, distance).numpy()


def _nearest(squared: Tensor, axis: int, step_mm: float, reach_mm: float) -> Tensor:
    """The least of ``squared`` plus the squared distance along an axis."""
    size, result = squared.shape[axis], squared.clone()
    for offset in range(1, min(math.ceil(reach_mm / step_mm), size - 1) + 1):
        away = (offset * step_mm) ** 2
        low, high = result.narrow(axis, 0, size - offset), result.narrow(axis, offset, size - offset)
        torch.minimum(low, squared.narrow(axis, offset, size - offset) + away, out=low)
        torch.minimum(high, squared.narrow(axis, 0, size - offset) + away, out=high)
    return result
