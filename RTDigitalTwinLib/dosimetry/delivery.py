"""A truth to study with: the reference dose held fixed in the room while the anatomy moves in it by a known amount.

No network takes part. What comes out stands in for logs of delivered dose and is simulated: whatever is made of it must
say so. The dose in the room does not feel the moved anatomy (no change of attenuation): an approximation that is good
for a few mm in photon beams (the shift-invariance of McCarter and Beckham 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.distance import signed_distance_mm
from RTDigitalTwinLib.errors import GeometryError, PatientDataError
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.words import decimal

PAROTIDS = ("Parotid_R", "Parotid_L")
SHRINKAGE_REACH_MM = 10.0  # outside a shrinking gland the displacement falls off over this length
WEIGHT_LOSS_REACH_MM = 15.0  # below the skin likewise


@dataclass(frozen=True)
class Change:
    """How a treated patient differs from the planning CT. All 0 is no difference.

    Attributes
    ----------
    shift_mm : of the whole patient in the room, LPS.
    parotid_shrinkage_ratio : share of each parotid's volume that is lost, towards its centroid.
    weight_loss_mm : how far the skin moves inwards.
    output_error_ratio : of the machine: 0.05 delivers 5 % too much.
    """

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    parotid_shrinkage_ratio: float = 0.0
    weight_loss_mm: float = 0.0
    output_error_ratio: float = 0.0

    def __post_init__(self) -> None:
        numbers = (*self.shift_mm, self.parotid_shrinkage_ratio, self.weight_loss_mm, self.output_error_ratio)
        if not np.isfinite(numbers).all() or not 0 <= self.parotid_shrinkage_ratio < 1 or self.output_error_ratio <= -1:
            raise GeometryError(f"No patient changes like this: {self}.")

    @property
    def words(self) -> str:
        """What is simulated."""
        parts = []
        if any(self.shift_mm):
            parts.append("shift {:g}, {:g}, {:g} mm".format(*self.shift_mm))
        if self.parotid_shrinkage_ratio:
            parts.append(f"parotids {self.parotid_shrinkage_ratio:.0%} smaller")
        if self.weight_loss_mm:
            parts.append(f"skin {self.weight_loss_mm:g} mm inwards")
        if self.output_error_ratio:
            parts.append(f"output {decimal(100 * self.output_error_ratio, 1, signed=True)}%")
        return f"simulated: {', '.join(parts) or 'as planned'}"


def displacement_mm(patient: Patient, change: Change) -> NDArray[np.float64]:
    """Where each voxel's tissue lies in the room minus where it was planned: (slices, rows, columns, 3), LPS in mm.

    Inside a parotid the map is a scaling about its centroid by the cube root of the volume left, so that exactly the
    share asked for is lost; outside, that displacement falls off as a Gaussian of the distance to the gland. The skin
    moves inwards along the surface's normal, tissue below it less as an exponential of its depth. The parts are added.
    Read-only where it is the same everywhere.
    """
    grid, shift_mm = patient.ct.grid, np.asarray(change.shift_mm, dtype=float)
    if not change.parotid_shrinkage_ratio and not change.weight_loss_mm:
        return np.broadcast_to(shift_mm, (*grid.shape, 3))
    moved = np.zeros((*grid.shape, 3))
    if change.parotid_shrinkage_ratio:
        scale = np.cbrt(1 - change.parotid_shrinkage_ratio)
        positions = _positions_mm(grid)
        for name in PAROTIDS:
            if name in patient.structures:
                gland = patient.structures[name]
                away = np.maximum(_distance_mm(gland, 4 * SHRINKAGE_REACH_MM), 0)
                weight = np.exp(-0.5 * np.square(away / SHRINKAGE_REACH_MM))
                moved += weight[..., None] * (scale - 1) * (positions - gland.centroid_mm)
    if change.weight_loss_mm:
        moved += _inwards_mm(patient, change.weight_loss_mm)
    return moved + shift_mm


def delivered_dose(patient: Patient, change: Change) -> Volume:
    """Dose in Gy that the tissue of each voxel of the planning CT gets over the whole course: (slices, rows, columns).

    The reference dose is read where the tissue lies in the room, by linear interpolation: exact for shifts by whole
    voxels. Tissue that leaves the reference dose's grid gets 0 Gy, as do voxels where no dose was planned.
    Raises PatientDataError without a reference dose.
    """
    if not patient.plans or patient.plan.dose is None:
        raise PatientDataError("There is no reference dose to deliver.", remedy="Use a patient whose plan has a dose.")
    grid, planned = patient.ct.grid, patient.plan.dose.values.astype(np.float32)
    inside = patient.dose_mask.mask
    moved = displacement_mm(patient, change)[inside]
    values = np.zeros_like(planned)
    # As an offset in voxels: adding positions first would lose the last digits of whole shifts.
    at = np.argwhere(inside) + offsets_in_voxels(grid, moved)
    values[inside] = interpolated(planned, at.T) if moved.any() else planned[inside]
    factor = np.float32(1 + change.output_error_ratio)
    return Volume(factor * values, grid, Quantity.DOSE_GY)


def _positions_mm(grid: Grid) -> NDArray[np.float64]:
    return grid.to_lps_mm(np.moveaxis(np.indices(grid.shape), 0, -1))


def _distance_mm(structure: Structure, reach_mm: float) -> NDArray[np.float32]:
    return signed_distance_mm(structure.mask, structure.grid.spacing_mm, reach_mm)


def _inwards_mm(patient: Patient, loss_mm: float) -> NDArray[np.float64]:
    """Displacement of tissue when the skin moves inwards: along the gradient of the depth below it."""
    grid = patient.ct.grid
    body = _body(patient)
    depth = -signed_distance_mm(body, grid.spacing_mm, 4 * WEIGHT_LOSS_REACH_MM).astype(float)
    slopes = np.gradient(depth, *reversed(grid.spacing_mm))
    normal = np.stack(slopes[::-1], axis=-1)  # along columns, rows, slices
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0.1)
    size = loss_mm * np.exp(-np.maximum(depth, 0) / WEIGHT_LOSS_REACH_MM) * body
    return (size[..., None] * normal) @ np.reshape(grid.direction, (3, 3)).T


def _body(patient: Patient) -> NDArray[np.bool_]:
    """The largest connected part of the CT above -300 HU, with its holes in each slice filled."""
    import SimpleITK as sitk

    dense = sitk.GetImageFromArray((patient.ct.values > -300).astype(np.uint8))
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(dense)) == 1
    slices = [sitk.BinaryFillhole(largest[:, :, k]) for k in range(largest.GetSize()[2])]
    return sitk.GetArrayFromImage(sitk.JoinSeries(slices)).astype(bool)


def interpolated(values: NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float32]:
    """``values`` at places (3, points), index coordinates (slice, row, column), linearly; 0 beyond the array.

    A billionth of a voxel is rounding of the geometry: whole voxels are met exactly.
    """
    from scipy.ndimage import map_coordinates

    rounded = np.round(at)
    at = np.where(np.abs(at - rounded) < 1e-9, rounded, at)
    return map_coordinates(values, at, output=np.float32, order=1, mode="grid-constant", cval=0.0)


def offsets_in_voxels(grid: Grid, moved_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Displacements (..., 3) in mm, LPS, as index offsets (slice, row, column)."""
    axes = np.reshape(grid.direction, (3, 3)) * grid.spacing_mm
    return (moved_mm @ np.linalg.inv(axes).T)[..., ::-1]
