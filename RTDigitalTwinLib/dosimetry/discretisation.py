"""How far a DVH may be off because a structure is known on voxels only. Matters for small structures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.patient.grid import Box, Grid
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume

SMALL_CC = 5.0  # below this a value is given together with its discretisation error
DRAWS = 32
_TWO_SIDED_95 = 1.96


@dataclass(frozen=True)
class DiscretisationError:
    """Half widths of what the voxels leave open.

    Attributes
    ----------
    volume_cc : of the volume.
    metrics : by metric, in its unit.
    """

    volume_cc: float
    metrics: dict[str, float]


def discretisation_error(dose: Volume, structure: Structure, metrics: Sequence[str]) -> DiscretisationError:
    """Of the metrics of one dose in a structure on the same grid.

    Raises as ``structure_dose_of``; PatientDataError where the dose covers too little of the structure.
    """
    parsed = [DvhMetric.parse(metric) for metric in metrics]

    def values(one_dose: Volume, one_structure: Structure) -> NDArray:
        inside = structure_dose_of(one_dose, one_structure)
        return np.array([inside.metric(metric)[0] for metric in parsed])

    read = values(dose, structure)
    change = np.zeros(len(parsed))
    for coarse_dose, coarse_structure in _coarser(dose, structure):
        change = np.maximum(change, np.abs(values(coarse_dose, coarse_structure) - read))
    away = np.zeros(len(parsed) + 1)
    redrawn = [[one.volume_cc, *values(dose, one)] for one in _redrawn(structure)]
    if redrawn:
        drawn = np.array(redrawn)
        off = drawn.mean(axis=0) - [structure.volume_cc, *read]
        away = np.hypot(off, _TWO_SIDED_95 * drawn.std(axis=0, ddof=1))
    half_widths = np.hypot(change, away[1:])
    return DiscretisationError(float(away[0]), dict(zip(metrics, half_widths.tolist(), strict=True)))


def _redrawn(structure: Structure) -> Iterator[Structure]:
    """Structures that would round to the same mask where voxels go from full to empty."""
    rng = np.random.default_rng(0)
    box = tuple(
        slice(max(part.start - 1, 0), min(part.stop + 1, size))
        for part, size in zip(structure.box, structure.grid.shape, strict=True)
    )
    occupancy = structure.occupancy[box]
    full, empty = occupancy == 1, occupancy == 0
    last, first = full & _touching(empty), empty & _touching(full)
    if not last.any():
        return
    for _ in range(DRAWS):
        drawn = occupancy.copy()
        drawn[last] = rng.uniform(0.5, 1, int(last.sum()))
        drawn[first] = rng.uniform(0, 0.5, int(first.sum()))
        yield Structure(structure.name, structure.grid, (box[0], box[1], box[2]), drawn, structure.kind)


def _touching(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels with a true one among the 26 around them (or themselves true)."""
    for axis in range(3):
        padded = np.pad(mask, [(1, 1) if a == axis else (0, 0) for a in range(3)])
        mask = (
            mask
            | np.take(padded, np.arange(mask.shape[axis]), axis)
            | np.take(padded, np.arange(2, mask.shape[axis] + 2), axis)
        )
    return mask


def _coarser(dose: Volume, structure: Structure) -> Iterator[tuple[Volume, Structure]]:
    """Dose and structure averaged over two voxels along each axis, in the eight ways to pair them."""
    for phase in product((0, 1), repeat=3):
        box = _paired_box(structure.box, structure.grid, phase)
        if box is None:
            continue
        grid = structure.grid.cropped(box)
        slices, rows, columns = (n // 2 for n in grid.shape)
        x, y, z = grid.to_lps_mm((0.5, 0.5, 0.5))
        width, height, depth = grid.spacing_mm
        coarse = replace(
            grid, shape=(slices, rows, columns), spacing_mm=(2 * width, 2 * height, 2 * depth), origin_mm=(x, y, z)
        )
        occupancy = _in_eights(structure.occupancy[box])
        if not occupancy.any():
            continue
        gy = _in_eights(np.asarray(dose.values[box], np.float32))
        yield (
            Volume(gy, coarse, Quantity.DOSE_GY),
            Structure.from_array(structure.name, np.clip(occupancy, 0, 1), coarse, structure.kind),
        )


def _paired_box(box: Box, grid: Grid, phase: Sequence[int]) -> Box | None:
    """The structure's box and two voxels around it where the grid has them, of even sizes; None without room."""
    pairs = []
    for part, size, shift in zip(box, grid.shape, phase, strict=True):
        start = max(part.start - 3 + shift, 0)
        stop = min(part.stop + 3, size)
        stop -= (stop - start) % 2
        if stop < part.stop:  # at the grid's end: begin a voxel earlier or give the last one up
            start, stop = (start - 1, stop + 1) if start > 0 else (start, stop)
        if stop - start < 2:
            return None
        pairs.append(slice(start, stop))
    return pairs[0], pairs[1], pairs[2]


def _in_eights(values: NDArray) -> NDArray:
    slices, rows, columns = (n // 2 for n in values.shape)
    return values.reshape(slices, 2, rows, 2, columns, 2).mean(axis=(1, 3, 5))
