"""Values on a grid read off beside its points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def read_off(values: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Values (slices, rows, columns) read off by (3,) voxels; 0 beyond the array.

    Cubic convolution (Keys 1981): it does not blur as linear interpolation does, and its derivative by a step of 0 is
    the central difference, so that Gauss-Newton steps lead where the slopes say.
    """
    for axis, step in enumerate(steps):
        whole, part = int(np.floor(step)), float(step - np.floor(step))
        weights = (
            ((2 - part) * part - 1) * part / 2,
            ((3 * part - 5) * part**2 + 2) / 2,
            ((4 - 3 * part) * part + 1) * part / 2,
            (part - 1) * part**2 / 2,
        )
        found = np.zeros_like(values)
        for k, weight in zip(range(whole - 1, whole + 3), weights, strict=True):
            low, high = max(0, -k), min(values.shape[axis], values.shape[axis] - k)
            if weight and low < high:
                into, out = (np.moveaxis(array, axis, 0) for array in (found, values))
                into[low:high] += np.float32(weight) * out[low + k : high + k]
        values = found
    return values
