"""Two doses compared: difference, and the gamma index.

Gamma is PyMedPhys's (Biggs et al., Journal of Open Source Software 7, 4555, 2022): kept, under a free licence, tested
against published cases, for any two grids; with SciPy's interpolation, so that numba is not needed. The index: Low et
al., Medical Physics 25, 656 (1998); the search: Wendling et al., Medical Physics 34, 1647 (2007).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.grid import Grid, bounding_box
from RTDigitalTwinLib.patient.volume import Quantity, Volume

HIGHEST_GAMMA = 2.0  # beyond it the search stops
JUST_ABOVE_1 = 1 + 1e-9  # where the search stops that asks for passing only
ROUNDING = 1e-6  # of dose criteria: who passes by a hair must be searched for
NEVER_GY = -1e6  # matches no dose


@dataclass(frozen=True)
class GammaCriteria:
    """When two doses agree at a place.

    Attributes
    ----------
    dose_percent : of the reference's highest dose; of the dose at the place where ``local``.
    distance_mm : to a place where the dose agrees.
    cutoff_percent : places below this share of the reference's highest dose are left out.
    """

    dose_percent: float = 3.0
    distance_mm: float = 2.0
    cutoff_percent: float = 10.0
    local: bool = False

    def __post_init__(self) -> None:
        numbers = (self.dose_percent, self.distance_mm, self.cutoff_percent)
        if not (all(map(math.isfinite, numbers)) and min(numbers[:2]) > 0 and 0 <= self.cutoff_percent < 100):
            raise RTDigitalTwinError(
                f"Gamma cannot be judged at {self}.",
                remedy="Use for example 3 %, 2 mm above 10 %.",
            )

    def __str__(self) -> str:
        kind = "local" if self.local else "global"
        return f"{self.dose_percent:g} % {kind} / {self.distance_mm:g} mm, above {self.cutoff_percent:g} %"


@dataclass(frozen=True, eq=False)
class Gamma:
    """The gamma index of a dose against a reference.

    Attributes
    ----------
    values : (slices, rows, columns) on the reference's grid; NaN where not judged, at most 2. Of ``passing_only`` an
        upper bound where it is at most 1, else infinite.
    pass_ratio : share of the judged voxels at or below 1.
    judged_voxels : their number.
    left_out_ratio : share of the reference's voxels above the cutoff where the other dose is not known.
    """

    values: NDArray[np.float64]
    pass_ratio: float
    judged_voxels: int
    left_out_ratio: float
    criteria: GammaCriteria


def gamma_index(
    reference: Volume, evaluated: Volume, criteria: GammaCriteria | None = None, *, passing_only: bool = False
) -> Gamma:
    """Gamma of ``evaluated`` at every voxel of ``reference``; the grids may differ but not their directions.

    ``passing_only`` asks no more than which voxels pass: the search leaves a voxel once it is found at or below 1, and
    ends at the distance of the criterion. The same voxels pass, several times faster.
    Raises GeometryError for other frames of reference or directions, PatientDataError where a volume is no dose, the
    reference has no dose or the doses do not overlap.
    """
    from pymedphys import gamma  # takes a second

    criteria = criteria or GammaCriteria()
    known_gy = _on_reference(reference, evaluated)
    highest_gy = _highest_gy(reference)
    wanted = np.nan_to_num(reference.values) >= highest_gy * criteria.cutoff_percent / 100
    judged = wanted & np.isfinite(known_gy) & np.isfinite(reference.values)
    box = bounding_box(judged)
    if box is None:
        raise PatientDataError("The two doses have no voxel in common above the cutoff.", remedy="Check their frames.")
    evaluated_gy = np.where(np.isfinite(evaluated.values), evaluated.values, NEVER_GY).astype(float)
    searched = judged
    if passing_only and reference.grid.same_as(evaluated.grid):
        searched = judged & ~_beyond_reach(reference, evaluated_gy, judged, highest_gy, criteria)
        if not searched.any():
            return Gamma(np.where(judged, np.inf, np.nan), 0.0, int(judged.sum()), _left_out(judged, wanted), criteria)
    reference_gy = np.where(searched, reference.values, 0.0)[box].astype(float)
    axes = _axes(reference.grid, reference.grid)
    logging.getLogger("pymedphys").setLevel(logging.WARNING)
    found = gamma(
        tuple(axis[part] for axis, part in zip(axes, box, strict=True)),
        reference_gy,
        _axes(evaluated.grid, reference.grid),
        evaluated_gy,
        criteria.dose_percent,
        criteria.distance_mm,
        lower_percent_dose_cutoff=max(criteria.cutoff_percent, 1e-6),
        max_gamma=JUST_ABOVE_1 if passing_only else HIGHEST_GAMMA,
        skip_once_passed=passing_only,
        local_gamma=criteria.local,
        global_normalisation=highest_gy,
        interp_algo="scipy",
    )
    if passing_only:
        found = np.where(searched[box] & (found <= 1), found, np.inf)
    values = np.full(reference.grid.shape, np.nan)
    values[box] = np.where(judged[box], found, np.nan)
    inside = values[judged]
    return Gamma(
        values,
        float((np.nan_to_num(inside, nan=HIGHEST_GAMMA) <= 1).mean()),
        int(judged.sum()),
        _left_out(judged, wanted),
        criteria,
    )


def _left_out(judged: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    return 1 - float(judged.sum() / wanted.sum())


def _beyond_reach(
    reference: Volume, evaluated_gy: NDArray, judged: NDArray[np.bool_], highest_gy: float, criteria: GammaCriteria
) -> NDArray[np.bool_]:
    """Voxels that cannot pass: within the distance no dose is near enough. Both doses on one grid.

    A linearly interpolated dose is highest and lowest in a box at the box's corners and where it cuts the grid's
    planes, so a few places around each voxel settle it, where the search would look at thousands.
    """
    from scipy.interpolate import RegularGridInterpolator

    voxels = np.nonzero(judged)
    along = []
    for step_mm in reversed(reference.grid.spacing_mm):
        planes = np.arange(1, int(criteria.distance_mm / step_mm) + 1)
        reach = np.append(planes, criteria.distance_mm / step_mm)
        along.append(np.concatenate([-reach, [0.0], reach]))
    dose = RegularGridInterpolator(
        tuple(np.arange(n, dtype=float) for n in evaluated_gy.shape),
        evaluated_gy,
        bounds_error=False,
        fill_value=np.nan,
    )
    low, high = np.full(len(voxels[0]), np.inf), np.full(len(voxels[0]), -np.inf)
    for offset in product(*along):
        gy = dose(np.stack([v + o for v, o in zip(voxels, offset, strict=True)], axis=-1))
        low, high = np.fmin(low, gy), np.fmax(high, gy)
    wanted_gy = np.asarray(reference.values[voxels], float)
    near_gy = criteria.dose_percent / 100 * (wanted_gy if criteria.local else highest_gy) * (1 + ROUNDING)
    result = np.zeros(judged.shape, bool)
    result[voxels] = (wanted_gy + near_gy < low) | (wanted_gy - near_gy > high)
    return result


@dataclass(frozen=True, eq=False)
class DoseDifference:
    """Evaluated minus reference dose, on the reference's grid.

    Attributes
    ----------
    volume : in Gy; NaN where either is not known.
    mean_gy, mean_absolute_gy, largest_gy : over the voxels where the reference has at least 10 % of its highest dose;
        the last is the one with the largest size, with its sign.
    """

    volume: Volume
    mean_gy: float
    mean_absolute_gy: float
    largest_gy: float


def dose_difference(reference: Volume, evaluated: Volume, cutoff_percent: float = 10.0) -> DoseDifference:
    """Raises as ``gamma_index``."""
    known_gy = _on_reference(reference, evaluated)
    difference = known_gy - reference.values
    above = np.nan_to_num(reference.values) >= _highest_gy(reference) * cutoff_percent / 100
    inside = difference[above & np.isfinite(difference)].astype(float)
    if not inside.size:
        raise PatientDataError("The two doses have no voxel in common above the cutoff.", remedy="Check their frames.")
    return DoseDifference(
        Volume(difference, reference.grid, Quantity.DOSE_DIFFERENCE_GY),
        float(inside.mean()),
        float(np.abs(inside).mean()),
        float(inside[np.abs(inside).argmax()]),
    )


def _on_reference(reference: Volume, evaluated: Volume) -> NDArray:
    for name, volume in (("reference", reference), ("evaluated", evaluated)):
        if volume.quantity is not Quantity.DOSE_GY:
            raise PatientDataError(f"The {name} volume holds {volume.quantity.value}, not a dose in Gy.")
    return np.asarray(evaluated.resampled(reference.grid).values)


def _highest_gy(reference: Volume) -> float:
    known = reference.values[np.isfinite(reference.values)]
    if not known.size or not known.max() > 0:
        raise PatientDataError("The reference has no dose to compare with.")
    return float(known.max())


def _axes(grid: Grid, reference: Grid) -> tuple[NDArray, NDArray, NDArray]:
    """Positions in mm along the reference's slices, rows and columns."""
    if not np.allclose(grid.direction, reference.direction, atol=1e-4):
        raise GeometryError("The doses' grids are turned against each other.", remedy="Resample one onto the other.")
    turn = np.reshape(reference.direction, (3, 3))
    x, y, z = turn.T @ (np.asarray(grid.origin_mm) - reference.origin_mm)
    dx, dy, dz = grid.spacing_mm
    slices, rows, columns = grid.shape
    return z + dz * np.arange(slices), y + dy * np.arange(rows), x + dx * np.arange(columns)
