"""Structure: a named region as occupancy per voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.grid import Box, Grid, bounding_box
from RTDigitalTwinLib.patient.volume import resample


class StructureKind(Enum):
    """What a structure is to the plan."""

    ORGAN = "organ at risk"
    TARGET = "target"
    REGION = "region"


@dataclass(frozen=True, eq=False)
class Structure:
    """A region, kept as the box around it.

    Attributes
    ----------
    name : TG-263 name where one exists.
    grid : the geometry it lives on.
    box : slices (slice, row, column) of the grid around the occupied voxels.
    box_occupancy : share of each voxel in the region, 0..1, inside the box (float32, read-only).
    kind : organ at risk, target or other region.
    source_name : its name in the source.

    Raises
    ------
    GeometryError : occupancy outside 0..1 or not of the box's shape; an empty region.
    """

    name: str
    grid: Grid
    box: Box
    box_occupancy: NDArray[np.float32]
    kind: StructureKind = StructureKind.ORGAN
    source_name: str = ""

    def __post_init__(self) -> None:
        sizes = tuple(s.stop - s.start for s in self.box)
        if self.box_occupancy.shape != sizes:
            raise GeometryError(
                f"Occupancy of shape {self.box_occupancy.shape} does not fit its box {sizes}.", where=self.name
            )
        occupancy = np.array(self.box_occupancy, dtype=np.float32)
        if not (occupancy.min() >= 0 and occupancy.max() <= 1):  # NaN fails as well
            raise GeometryError("Occupancy must lie in 0..1.", where=self.name)
        if not occupancy.any():
            raise GeometryError("The structure is empty.", where=self.name)
        occupancy.flags.writeable = False
        object.__setattr__(self, "box_occupancy", occupancy)

    @classmethod
    def from_array(
        cls,
        name: str,
        occupancy: NDArray,
        grid: Grid,
        kind: StructureKind = StructureKind.ORGAN,
        source_name: str = "",
    ) -> Structure:
        """From occupancy (or a mask) over the whole grid, (slices, rows, columns)."""
        if occupancy.shape != grid.shape:
            raise GeometryError(
                f"Occupancy of shape {occupancy.shape} does not fit a grid of {grid.shape}.", where=name
            )
        box = bounding_box(occupancy != 0)
        if box is None:
            raise GeometryError("The structure is empty.", where=name)
        return cls(name, grid, box, occupancy[box].astype(np.float32), kind, source_name or name)

    @property
    def occupancy(self) -> NDArray[np.float32]:
        """Occupancy over the whole grid (made anew at each call)."""
        full = np.zeros(self.grid.shape, np.float32)
        full[self.box] = self.box_occupancy
        return full

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Voxels at least half inside, over the whole grid (made anew at each call)."""
        full = np.zeros(self.grid.shape, bool)
        full[self.box] = self.box_occupancy >= 0.5
        return full

    @cached_property
    def volume_cc(self) -> float:
        return float(self.box_occupancy.sum(dtype=float) * self.grid.voxel_volume_mm3 / 1000)

    @cached_property
    def centroid_mm(self) -> tuple[float, float, float]:
        """Centre of mass, LPS."""
        weights = self.box_occupancy.astype(float)
        index = []
        for axis, part in enumerate(self.box):
            profile = weights.sum(axis=tuple(a for a in range(3) if a != axis))
            index.append(float((profile * np.arange(part.start, part.stop)).sum() / profile.sum()))
        x, y, z = self.grid.to_lps_mm(index)
        return float(x), float(y), float(z)

    def shared_cc(self, other: Structure) -> float:
        """Volume that surely lies in both: voxels of a common border that add up to one at most are not shared."""
        self.grid.require_same(other.grid, f"{self.name} and {other.name}")
        both = np.clip(self.occupancy + other.occupancy - 1, 0, None)
        return float(both.sum(dtype=float) * self.grid.voxel_volume_mm3 / 1000)

    def resampled(self, grid: Grid) -> Structure:
        """Occupancy interpolated onto another grid of the same frame; what leaves that grid is cut off.

        Raises GeometryError where nothing is left.
        """
        if self.grid.same_as(grid):
            return self
        moved = np.clip(resample(self.occupancy, self.grid, grid, outside=0.0), 0, 1)
        return Structure.from_array(self.name, moved, grid, self.kind, self.source_name)


def joined(structures: Sequence[Structure], name: str) -> Structure:
    """What lies in any of these, as one structure of the first's kind.

    What they share counts once as ``Structure.shared_cc`` tells it: voxels of a common border add up, to one at most.
    Raises GeometryError on different grids.
    """
    first = structures[0]
    whole = np.zeros(first.grid.shape, np.float32)
    for structure in structures:
        first.grid.require_same(structure.grid, f"{first.name} and {structure.name}")
        whole[structure.box] += structure.box_occupancy
    return Structure.from_array(name, np.minimum(whole, 1), first.grid, first.kind)
