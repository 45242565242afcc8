"""What lies inside a voxel: which part of it a structure fills, and how the dose runs through that part.

A voxel's dose is taken as linear inside it. Its slopes come from the neighbours by the monotonised central difference
(van Leer, Journal of Computational Physics 23, 276, 1977), exact for a linear dose and never beyond the neighbours'
doses. A partly filled voxel is taken as cut by a plane across the gradient of the occupancy (Youngs 1982), so that its
part has a centre and an extent of its own. Sampled shapes need both: voxels counted as points at their centres put the
volume of a whole sheet of voxels at one dose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume

PLACES = 5  # along each edge of a cut voxel
CUT_TOGETHER = 20_000
BISECTIONS = 20
NOWHERE = -1
SAMPLES_TOGETHER = 16
MOST_KEPT = 500_000  # voxels of a structure, 84 bytes each, that are kept as long as it is in use


@dataclass(frozen=True, eq=False)
class StructureVoxels:
    """The voxels of a structure and what it fills of each. Lengths are in voxels, axes (slice, row, column).

    Attributes
    ----------
    index : (voxels,) place in the flattened grid.
    neighbours : (3, 2, voxels) places of the voxels before and after along each axis; -1 beyond the grid.
    occupancy : (voxels,) above 0 to 1.
    offset : (3, voxels) centre of the filled part from the voxel's centre.
    variance : (3, voxels) of the positions in the filled part; 1/12 in a full voxel.
    voxel_volume_cc : of a whole voxel.
    name : of the structure.
    """

    index: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    occupancy: NDArray[np.float32]
    offset: NDArray[np.float32]
    variance: NDArray[np.float32]
    voxel_volume_cc: float
    name: str

    @classmethod
    def of(cls, structure: Structure) -> StructureVoxels:
        """Of all voxels with any occupancy; worked out once as long as a structure that is not huge is in use."""
        if structure in _KEPT:
            return _KEPT[structure]
        inside = np.nonzero(structure.box_occupancy)
        shape = structure.grid.shape
        position = [axis + part.start for axis, part in zip(inside, structure.box, strict=True)]
        index = np.ravel_multi_index(position, shape)
        neighbours = np.empty((3, 2, index.size), np.int64)
        for axis, step in enumerate((shape[1] * shape[2], shape[2], 1)):
            neighbours[axis, 0] = np.where(position[axis] > 0, index - step, NOWHERE)
            neighbours[axis, 1] = np.where(position[axis] < shape[axis] - 1, index + step, NOWHERE)
        occupancy = structure.box_occupancy[inside]
        offset = np.zeros((3, index.size), np.float32)
        variance = np.full((3, index.size), 1 / 12, np.float32)
        cut = np.flatnonzero(occupancy < 1)
        if cut.size:
            slices, rows, columns = (axis[cut] for axis in inside)
            normal = _occupancy_gradient(structure)[:, slices, rows, columns]
            for first in range(0, cut.size, CUT_TOGETHER):
                part = slice(first, first + CUT_TOGETHER)
                offset[:, cut[part]], variance[:, cut[part]] = cut_voxels(occupancy[cut[part]], normal[:, part])
        volume_cc = structure.grid.voxel_volume_mm3 / 1000
        found = cls(index, neighbours, occupancy, offset, variance, volume_cc, structure.name)
        if index.size <= MOST_KEPT:
            _KEPT[structure] = found
        return found

    def placed(self, place: NDArray) -> StructureVoxels:
        """The same voxels, found in another array: ``place`` (grid voxels,) says where each lies there, or -1."""
        neighbours = np.where(self.neighbours == NOWHERE, NOWHERE, place[self.neighbours])
        return replace(self, index=place[self.index], neighbours=neighbours)

    def gathered(self) -> tuple[NDArray[np.int64], StructureVoxels]:
        """Places that the voxels and their neighbours need, and the same voxels found in an array of these alone."""
        if not self.index.size:
            return self.index, self
        nowhere = self.neighbours == NOWHERE
        first = int(self.neighbours.min(initial=int(self.index.min()), where=~nowhere))
        last = int(max(self.index.max(), self.neighbours.max()))
        wanted = np.zeros(last - first + 1, bool)
        wanted[self.index - first] = True
        wanted[self.neighbours[~nowhere] - first] = True
        place = wanted.cumsum(dtype=np.int64) - 1
        neighbours = np.where(nowhere, NOWHERE, place[np.where(nowhere, 0, self.neighbours - first)])
        return np.flatnonzero(wanted) + first, replace(self, index=place[self.index - first], neighbours=neighbours)

    def only(self, kept: NDArray[np.bool_]) -> StructureVoxels:
        """Those voxels alone."""
        return replace(
            self,
            index=self.index[kept],
            neighbours=self.neighbours[..., kept],
            occupancy=self.occupancy[kept],
            offset=self.offset[:, kept],
            variance=self.variance[:, kept],
        )


_KEPT: WeakKeyDictionary[Structure, StructureVoxels] = WeakKeyDictionary()


def structure_dose_of(dose: Volume, structure: Structure, device: torch.device | str = "cpu") -> StructureDose:
    """A single dose in a structure on the same grid; NaN marks where it is not known.

    Raises GeometryError on another grid, PatientDataError where the volume is no dose in Gy or has negative values.
    """
    return structure_doses_of([dose], structure, device)


def covered_dose_of(dose: Volume | None, structure: Structure) -> StructureDose | None:
    """``structure_dose_of``, or None where there is no dose or it covers too little of the structure for metrics."""
    inside = None if dose is None else structure_dose_of(dose, structure)
    return inside if inside is not None and inside.is_covered else None


def structure_doses_of(
    doses: Sequence[Volume], structure: Structure, device: torch.device | str = "cpu"
) -> StructureDose:
    """Several doses in a structure, as samples; a voxel counts where all of them are known.

    Raises as ``structure_dose_of``.
    """
    for dose in doses:
        dose.grid.require_same(structure.grid, f"The dose and {structure.name}")
        if dose.quantity is not Quantity.DOSE_GY:
            raise PatientDataError(f"The volume holds {dose.quantity.value}, not a dose in Gy.", where=structure.name)
    voxels = StructureVoxels.of(structure)
    needed, compact = voxels.gathered()
    gy = np.stack([d.values.reshape(-1)[needed] for d in doses]).astype(np.float32, copy=False)
    inside = gy if np.isfinite(gy).all() and gy.min(initial=0) >= 0 else gy[:, compact.index]
    if (inside < 0).any():
        raise PatientDataError("The dose has negative values.", where=structure.name, remedy="Check its scaling.")
    known = np.asarray(np.isfinite(inside).all(axis=0))
    kept = compact if known.all() else compact.only(known)
    covered = float(kept.occupancy.sum(dtype=float) / voxels.occupancy.sum(dtype=float))
    rows = torch.as_tensor(gy, device=device)
    middle = rows.new_empty((len(rows), kept.index.size))
    half = torch.empty_like(middle)
    for first in range(0, len(rows), SAMPLES_TOGETHER):
        part = slice(first, first + SAMPLES_TOGETHER)
        middle[part], half[part] = doses_inside(rows[part], kept)
    return StructureDose(middle, kept.occupancy, voxels.voxel_volume_cc, half, covered, structure.name)


def doses_inside(doses_gy: Tensor, voxels: StructureVoxels) -> tuple[Tensor, Tensor]:
    """Dose in the filled part of each voxel, from samples (samples, places).

    Returns
    -------
    middle_gy, half_width_gy : (samples, voxels) each. The dose of the part is spread evenly between middle minus and
        plus half width, which has the mean and the variance of the linear dose in it. Where neighbours are NaN or
        beyond the array, the dose runs on from the other side, never below 0.
    """
    device = doses_gy.device

    nowhere = voxels.neighbours == NOWHERE
    # On a GPU asking would wait for all that is under way.
    all_known = device.type == "cpu" and not nowhere.any() and bool(torch.isfinite(doses_gy).all())

    def at(index: NDArray[np.int64]) -> Tensor:
        return doses_gy.index_select(1, torch.as_tensor(index, device=device))

    def neighbour(axis: int, side: int) -> Tensor:
        if all_known:
            return at(voxels.neighbours[axis, side])
        found = at(np.maximum(voxels.neighbours[axis, side], 0))
        found[:, torch.as_tensor(nowhere[axis, side], device=device)] = torch.nan
        return found

    centre = at(voxels.index)
    middle, variance = centre.clone(), torch.zeros_like(centre)
    for axis in range(3):
        before = centre - neighbour(axis, 0)
        after = neighbour(axis, 1).sub_(centre)
        if not all_known:
            before, after = torch.where(before.isnan(), after, before), torch.where(after.isnan(), before, after)
        slope = _limited(before, after)
        middle += slope * torch.as_tensor(voxels.offset[axis], device=device)
        variance += slope.square_() * torch.as_tensor(voxels.variance[axis], device=device)
    middle.clamp_min_(0)
    return middle, torch.minimum(variance.mul_(3).sqrt_(), middle)


def _limited(before: Tensor, after: Tensor) -> Tensor:
    """Monotonised central difference; 0 where either is not known."""
    central = (before + after).div_(2)
    steepest = torch.minimum(before.abs(), after.abs()).mul_(2)
    return torch.where(before * after > 0, central.clamp_(-steepest, steepest), 0.0)


def _occupancy_gradient(structure: Structure) -> NDArray[np.float32]:
    """(3, *box) gradient of the occupancy over 3x3x3 voxels; beyond the grid the structure is taken to go on."""
    occupancy = structure.box_occupancy
    for axis, (part, size) in enumerate(zip(structure.box, structure.grid.shape, strict=True)):
        widths = [(0, 0)] * 3
        for end, mode in ((0, part.start == 0), (1, part.stop == size)):
            widths[axis] = (1, 0) if end == 0 else (0, 1)
            occupancy = np.pad(occupancy, widths, mode="edge" if mode else "constant")
    gradient = []
    for axis in range(3):
        smoothed = occupancy
        for other in range(3):
            inner = _middle(smoothed, other)
            low, high = _middle(smoothed, other, -1), _middle(smoothed, other, 1)
            smoothed = high - low if other == axis else low + 2 * inner + high
        gradient.append(smoothed)
    return np.stack(gradient)


def _middle(values: NDArray, axis: int, shift: int = 0) -> NDArray:
    """Without the first and last along an axis, moved by up to one."""
    return np.take(values, np.arange(1 + shift, values.shape[axis] - 1 + shift), axis=axis)


def cut_voxels(occupancy: NDArray[np.float32], normal: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    """Centre and variance of the part that a plane cuts off unit voxels on the side that ``normal`` points to.

    Parameters
    ----------
    occupancy : (voxels,) share of the part.
    normal : (3, voxels), of any length; 0 where there is no telling, which leaves the part centred and as wide as the
        voxel.

    Returns
    -------
    offset, variance : (3, voxels) each, in voxels and voxels squared.
    """
    line = ((np.arange(PLACES) + 0.5) / PLACES - 0.5).astype(np.float32)
    places = np.stack(np.meshgrid(line, line, line, indexing="ij")).reshape(3, -1)
    length = np.abs(normal).sum(axis=0)
    told = length > 1e-4
    unit = (normal / np.where(told, length, 1)).astype(np.float32)
    along = unit.T @ places
    low, high = np.full(occupancy.size, -1.0, np.float32), np.full(occupancy.size, 1.0, np.float32)
    for _ in range(BISECTIONS):  # where the plane must lie; each place is a cell 1 / PLACES wide along the normal
        plane = (low + high) / 2
        share = np.clip((along - plane[:, None]) * PLACES + 0.5, 0, 1).mean(axis=1)
        too_much = share > occupancy
        low, high = np.where(too_much, plane, low), np.where(too_much, high, plane)
    weight = np.clip((along - ((low + high) / 2)[:, None]) * PLACES + 0.5, 0, 1)
    weight[~told] = 1
    whole = np.maximum(weight.sum(axis=1), 1e-12)
    moved = (1 - weight) / (2 * PLACES)  # a cut place is filled at its far end
    within = 1 / (12 * PLACES**2)
    offset, variance = np.empty_like(unit), np.empty_like(unit)
    for axis in range(3):
        position = places[axis] + unit[axis, :, None] * moved
        own = within * (1 - np.abs(unit[axis, :, None]) * (1 - weight**2))
        offset[axis] = (weight * position).sum(axis=1) / whole
        variance[axis] = (weight * (position**2 + own)).sum(axis=1) / whole - offset[axis] ** 2
    return offset, np.minimum(variance, 1 / 12)
