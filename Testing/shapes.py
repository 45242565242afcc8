"""Shapes in a linear dose gradient, whose DVHs are known in closed form, put on grids with their exact occupancy.

After Nelms et al., Medical Physics 42, 4435 (2015): 24 mm shapes, 1 Gy/mm, 16 Gy in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume

MIDDLE_GY = 16.0
GRADIENT_GY_PER_MM = 1.0
SUBDIVISION_MM = 0.1  # across the axis; along it occupancy is exact

# Of each: the body, and the axis of the array that the gradient runs along.
CASES = {"sphere": 0, "cylinder along": 0, "cylinder across": 2, "cone across": 2}


@dataclass(frozen=True)
class Shape:
    """A sphere, cylinder or cone whose axis runs along the slices; as high as it is wide.

    Attributes
    ----------
    case : one of ``CASES``.
    radius_mm : of the shape, and half its height.
    """

    case: str
    radius_mm: float = 12.0

    @property
    def volume_cc(self) -> float:
        share = {"sphere": 4 / 3, "cylinder along": 2, "cylinder across": 2, "cone across": 2 / 3}[self.case]
        return share * np.pi * self.radius_mm**3 / 1000

    def volume_at_dose_ratio(self, dose_gy: ArrayLike) -> NDArray[np.float64]:
        s = (np.asarray(dose_gy, float) - MIDDLE_GY) / (GRADIENT_GY_PER_MM * self.radius_mm)
        s = np.clip(s, -1, 1)
        if self.case == "sphere":
            return (2 - 3 * s + s**3) / 4
        if self.case == "cylinder along":
            return (1 - s) / 2
        if self.case == "cylinder across":
            return (np.arccos(s) - s * np.sqrt(1 - s**2)) / np.pi
        a = np.maximum(np.abs(s), 1e-12)
        root = np.sqrt(1 - a**2)
        above = (np.arccos(a) - 2 * a * root + a**3 * np.log((1 + root) / a)) / np.pi
        return np.where(s >= 0, above, 1 - above)

    def dose_at_volume_gy(self, volume_ratio: ArrayLike) -> NDArray[np.float64]:
        axis = MIDDLE_GY + GRADIENT_GY_PER_MM * self.radius_mm * np.linspace(-1, 1, 200_001)
        return np.interp(np.asarray(volume_ratio, float), self.volume_at_dose_ratio(axis)[::-1], axis[::-1])

    def on_grid(self, spacing_mm: float, offset: tuple[float, float, float]) -> tuple[Volume, Structure]:
        """Dose and structure; ``offset`` shifts the grid by shares of a voxel along (slice, row, column)."""
        n = int(np.ceil(2 * self.radius_mm / spacing_mm)) + 6
        z, y, x = (((np.arange(n) - (n - 1) / 2) + shift) * spacing_mm for shift in offset)
        grid = Grid((n, n, n), (spacing_mm,) * 3, (float(x[0]), float(y[0]), float(z[0])))
        occupancy = self._occupancy(z, y, x, spacing_mm)
        along = {0: z[:, None, None], 2: x[None, None, :]}[CASES[self.case]]
        gy = np.broadcast_to(MIDDLE_GY + GRADIENT_GY_PER_MM * along, grid.shape).astype(np.float32)
        return Volume(gy, grid, Quantity.DOSE_GY), Structure.from_array(self.case, occupancy, grid)

    def _occupancy(self, z: NDArray, y: NDArray, x: NDArray, spacing_mm: float) -> NDArray[np.float32]:
        parts = max(4, int(np.ceil(spacing_mm / SUBDIVISION_MM)))
        within = ((np.arange(parts) + 0.5) / parts - 0.5) * spacing_mm
        fine_y, fine_x = ((line[:, None] + within).ravel() for line in (y, x))
        away = np.hypot(fine_y[:, None], fine_x[None, :])
        radius = self.radius_mm
        low = np.where(away <= radius, -radius, np.inf)
        high = np.full_like(low, radius)
        if self.case == "sphere":
            high = np.sqrt(np.maximum(radius**2 - away**2, 0))
            low = np.where(away <= radius, -high, np.inf)
        elif self.case == "cone across":
            high = radius - 2 * away
        occupancy = np.empty((z.size, y.size, x.size), np.float32)
        for k, centre in enumerate(z):
            top, bottom = centre + spacing_mm / 2, centre - spacing_mm / 2
            filled = np.clip(np.minimum(high, top) - np.maximum(low, bottom), 0, None) / spacing_mm
            occupancy[k] = filled.reshape(y.size, parts, x.size, parts).mean(axis=(1, 3))
        return np.clip(occupancy, 0, 1)
