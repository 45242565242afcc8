"""Dose of fractions on several anatomies, mapped to the planning CT and summed, physical or in EQD2.

Each dose is read where the tissue of a voxel lies (direct dose mapping; Chetty and Rosu-Bubulac, Semin Radiat Oncol 29,
198, 2019). How far the mapping may be off is taken from its inconsistency with its inverse, and told in mm and in Gy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.fractionation import bed_gy
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.dicom_dose import HIGHEST_DOSE_GY
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.registration import Registration
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.words import counted

VALIDITY = (
    "Mapped dose is for photons and tissue that keeps its mass: not for protons or ions, whose range changes with the "
    "anatomy, nor where density changes much or tissue comes or goes. Consistency there and back does not prove that "
    "a registration is right: its error is at least what is told."
)


@dataclass(frozen=True, eq=False)
class DeliveredDose:
    """What was delivered on one anatomy.

    Attributes
    ----------
    dose : Gy in ``of_fractions`` equal fractions, on its own grid; NaN where not known.
    fractions : how many of them were delivered so.
    of_fractions : how many the dose stands for: 1 for the dose of a single fraction, all for that of a whole plan.
    registration : from the planning frame to the dose's; None where nothing moved and the frames are the same.

    Raises
    ------
    RTDigitalTwinError : numbers of fractions below 1.
    PatientDataError : the volume is no physical dose, negative, infinite, or adds up to more than anybody receives.
    """

    dose: Volume
    fractions: int = 1
    of_fractions: int = 1
    registration: Registration | None = None

    def __post_init__(self) -> None:
        if self.dose.quantity is not Quantity.DOSE_GY:
            raise PatientDataError(f"The volume holds {self.dose.quantity.value}, not a dose in Gy.")
        if (self.dose.values < 0).any():  # NaN is not
            raise PatientDataError("The dose has negative values.", remedy="Check its scaling.")
        if np.isinf(self.dose.values).any():
            raise PatientDataError("The dose has infinite values.", remedy="Export it anew.")
        for what, number in (("delivered", self.fractions), ("of the dose", self.of_fractions)):
            if number < 1:
                raise RTDigitalTwinError(f"The number of fractions {what} must be 1 or more, not {number}.")
        _require_possible(self.dose.values, f"The dose of {counted(self.of_fractions, 'fraction')}")
        _require_possible(
            np.asarray(self.dose.values, float) * (self.fractions / self.of_fractions),
            f"{self.fractions} fractions of a dose of {self.of_fractions}",
        )

    def onto(self, grid: Grid) -> NDArray[np.float64]:
        """Gy of the fractions delivered, at the tissue of each voxel of a grid of the planning frame; NaN unknown."""
        if self.registration is not None:
            gy = self.registration.onto(self.dose, grid).values
        else:
            gy = self.dose.resampled(grid).values
        return np.asarray(gy, float) * self.fractions / self.of_fractions


@dataclass(frozen=True, eq=False)
class AccumulatedDose:
    """A sum of mapped doses on the planning grid.

    Attributes
    ----------
    dose : Gy, or the EQD2 where ``alpha_beta_gy`` is set; NaN where any of its parts is not known.
    fractions : delivered in all.
    alpha_beta_gy : of the EQD2; None for physical dose.
    mapping_error : in mm, the inconsistency with the inverse, the mean over the fractions; those without registration
        have none. NaN where it is not known; None where no registration told one.
    dose_error : in Gy as the dose: distance times steepness of the mapped dose, added over the fractions as if they
        were all off to the same side; None as ``mapping_error``.
    estimated : whether every registration told its error; where not, both errors leave those out that did not.
    """

    dose: Volume
    fractions: int
    alpha_beta_gy: float | None
    mapping_error: Volume | None
    dose_error: Volume | None
    estimated: bool


def accumulated(parts: Sequence[DeliveredDose], grid: Grid, alpha_beta_gy: float | None = None) -> AccumulatedDose:
    """Sum doses on a grid of the planning frame, in double precision, rounded to single in the end.

    With ``alpha_beta_gy`` every part is turned to BED with its own dose per fraction in each voxel, and the sum to EQD2
    (linear-quadratic, no repopulation: ``fractionation``). Raises RTDigitalTwinError where there is nothing to sum,
    GeometryError where frames do not fit, PatientDataError where the sum is more than anybody receives.
    """
    if not parts:
        raise RTDigitalTwinError("There is no dose to accumulate.")
    total, physical_gy, wrong_gy, wrong_mm = (np.zeros(grid.shape) for _ in range(4))
    weight = 1.0 if alpha_beta_gy is None else 1 / (1 + 2 / alpha_beta_gy)
    count = sum(part.fractions for part in parts)
    for part in parts:
        gy = part.onto(grid)
        physical_gy += gy
        rise: float | NDArray = 1.0
        if alpha_beta_gy is not None:
            total += weight * bed_gy(gy, part.fractions, alpha_beta_gy)
            rise = weight * (1 + 2 * gy / (part.fractions * alpha_beta_gy))  # d EQD2 / d dose
        error = None if part.registration is None else part.registration.error
        if error is not None:
            away_mm = np.asarray(error.resampled(grid).values, float)
            wrong_mm += away_mm * part.fractions / count
            wrong_gy += rise * away_mm * steepness_gy_per_mm(gy, grid)
    _require_possible(physical_gy, f"The sum of {counted(count, 'fraction')}")
    told = [part.registration.error is not None for part in parts if part.registration is not None]
    return AccumulatedDose(
        Volume(physical_gy.astype(np.float32), grid, Quantity.DOSE_GY)
        if alpha_beta_gy is None
        else Volume(total.astype(np.float32), grid, Quantity.EQD2_GY),
        count,
        alpha_beta_gy,
        Volume(wrong_mm.astype(np.float32), grid, Quantity.DISPLACEMENT_MM) if any(told) else None,
        Volume(wrong_gy.astype(np.float32), grid, Quantity.DOSE_DIFFERENCE_GY) if any(told) else None,
        all(told),
    )


def _require_possible(gy: NDArray, what: str) -> None:
    highest = float(np.max(gy, initial=0.0, where=~np.isnan(gy)))
    if highest > HIGHEST_DOSE_GY:
        raise PatientDataError(
            f"{what} reaches {highest:.0f} Gy; at most {HIGHEST_DOSE_GY:g} is expected.",
            remedy="Check its unit, and how many fractions it stands for.",
        )


def steepness_gy_per_mm(gy: NDArray, grid: Grid) -> NDArray[np.float64]:
    """Length of the gradient of values on a grid; along an axis that of the steeper side, so peaks are not flat.

    NaN where the value itself is not known, or along an axis no side is.
    """
    squared = np.zeros(gy.shape)
    for axis, step_mm in enumerate(reversed(grid.spacing_mm)):
        if gy.shape[axis] < 2:
            continue
        slopes = np.diff(gy, axis=axis) / step_mm
        nowhere = np.full_like(np.take(slopes, [0], axis=axis), np.nan)
        before = np.concatenate([nowhere, slopes], axis=axis)
        after = np.concatenate([slopes, nowhere], axis=axis)
        squared += np.square(np.fmax(np.abs(before), np.abs(after)))
    return np.where(np.isnan(gy), np.nan, np.sqrt(squared))
