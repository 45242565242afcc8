"""Volume: values on a Grid, with what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.errors import GeometryError, OutputError
from RTDigitalTwinLib.patient.grid import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk


# Keys of image files that we write.
QUANTITY_KEY = "quantity"
ALPHA_BETA_KEY = "alpha_beta_gy"
PREDICTED_KEY = "predicted"
PREDICTED = "yes"
SIMULATED_KEY = "simulated"
SIMULATED = "yes"


class Quantity(Enum):
    """What the numbers of a volume are, with their unit."""

    HU = "HU"
    DOSE_GY = "Gy"
    EQD2_GY = "Gy, EQD2"
    DOSE_WIDTH_GY = "Gy, half width of a band"
    DOSE_STD_GY = "Gy, standard deviation"
    DOSE_DIFFERENCE_GY = "Gy, difference"
    SUV = "SUV"
    DENSITY_G_PER_CC = "g/cc"
    DISPLACEMENT_MM = "mm"


@dataclass(frozen=True, eq=False)
class Volume:
    """Values on a grid.

    Attributes
    ----------
    values : (slices, rows, columns), a read-only view of the array given; NaN where the quantity is undefined.
    grid : their geometry.
    quantity : what they are.

    Raises
    ------
    GeometryError : the array does not have the grid's shape.
    """

    values: NDArray[np.floating | np.integer]
    grid: Grid
    quantity: Quantity

    def __post_init__(self) -> None:
        if self.values.shape != self.grid.shape:
            raise GeometryError(f"Values of shape {self.values.shape} do not fit a grid of {self.grid.shape}.")
        view = self.values.view()
        view.flags.writeable = False
        object.__setattr__(self, "values", view)

    def __repr__(self) -> str:
        known = self.values[np.isfinite(self.values)]
        reach = f"{known.min():g} to {known.max():g}" if known.size else "not known"
        size = " x ".join(str(n) for n in self.grid.shape)
        spacing = " x ".join(f"{mm:.4g}" for mm in self.grid.spacing_mm)
        return f"<Volume {size} (slices, rows, columns), {spacing} mm (x, y, z), {reach} {self.quantity.value}>"

    def resampled(self, grid: Grid) -> Volume:
        """Linear interpolation onto another grid of the same frame; NaN outside this one.

        Raises GeometryError where the frames of reference differ: that needs a registration.
        """
        if self.grid.same_as(grid):
            return self
        values = resample(self.values, self.grid, grid, outside=np.nan)
        return Volume(values, grid, self.quantity)

    def minus(self, other: Volume, quantity: Quantity) -> Volume:
        """Voxelwise difference; both on the same grid."""
        self.grid.require_same(other.grid, "Two volumes to subtract")
        return Volume(self.values - other.values, self.grid, quantity)


def to_sitk(values: NDArray, grid: Grid) -> sitk.Image:
    """A SimpleITK image of an array (slice, row, column) on a grid."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


def resample(values: ArrayLike, source: Grid, target: Grid, outside: float) -> NDArray[np.float32]:
    """Linear interpolation of an array between grids of one frame; ``outside`` beyond the source.

    Raises GeometryError where the frames of reference differ.
    """
    import SimpleITK as sitk  # here, since training does without it

    if source.frame_of_reference != target.frame_of_reference:
        raise GeometryError(
            "The frames of reference differ, so positions cannot be compared.",
            remedy="Supply a registration between them.",
        )
    image = to_sitk(np.asarray(values, dtype=np.float32), source)
    columns_rows_slices = target.shape[::-1]
    moved = sitk.Resample(
        image,
        columns_rows_slices,
        sitk.Transform(),
        sitk.sitkLinear,
        target.origin_mm,
        target.spacing_mm,
        target.direction,
        outside,
    )
    return sitk.GetArrayFromImage(moved)


def write_nrrd(
    volume: Volume,
    path: str,
    *,
    predicted: bool = False,
    simulated: bool = False,
    alpha_beta_gy: float | None = None,
) -> None:
    """Write a volume as compressed NRRD in LPS, with its quantity and unit as a key.

    Parameters
    ----------
    predicted : whether the values are a prediction, which the file then says.
    simulated : whether simulated deliveries or measurements are behind the values, likewise.
    alpha_beta_gy : of an EQD2, in Gy.

    Raises
    ------
    OutputError : it cannot be written, or is an EQD2 without alpha/beta.
    """
    import SimpleITK as sitk

    if (volume.quantity is Quantity.EQD2_GY) != (alpha_beta_gy is not None):
        raise OutputError("An EQD2, and nothing else, is written with its alpha/beta.", where=Path(path).name)
    image = to_sitk(np.asarray(volume.values, dtype=np.float32), volume.grid)
    image.SetMetaData(QUANTITY_KEY, volume.quantity.value)
    if alpha_beta_gy is not None:
        image.SetMetaData(ALPHA_BETA_KEY, f"{alpha_beta_gy:g}")
    if predicted:
        image.SetMetaData(PREDICTED_KEY, PREDICTED)
    if simulated:
        image.SetMetaData(SIMULATED_KEY, SIMULATED)
    try:
        sitk.WriteImage(image, path, useCompression=True)
    except RuntimeError as error:
        name = Path(path).name
        raise OutputError("The volume cannot be written.", where=name, remedy="Check free space.") from error
