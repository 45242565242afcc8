"""Fractions as they are delivered: a truth to study courses with, simulated, in which no network takes part.

The planned dose stays in the room (``dosimetry.delivery``). Each fraction the anatomy lies where set-up put it: a
lasting error of the patient, one of the day, the change from its fraction on, and what the couch was corrected by. All
chance is drawn from the seed and the number of the fraction, so that a fraction is the same whatever was done before.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.delivery import Change, displacement_mm, interpolated, offsets_in_voxels
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.patient import Patient

LASTING, OF_THE_DAY, REGISTRATION, READINGS, VOLUME = range(5)  # streams of chance
Shift = tuple[float, float, float]
NOWHERE: Shift = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SetupErrors:
    """Standard deviations along each axis. The defaults are chosen, as of a mask with image guidance, not measured.

    Attributes
    ----------
    systematic_mm : of the patient's mean over the course.
    random_mm : of a day about that mean.
    output_ratio : of the machine's output of a day.
    registration_mm : of what an image says of the day's shift.
    """

    systematic_mm: float = 1.0
    random_mm: float = 1.5
    output_ratio: float = 0.005
    registration_mm: float = 0.5

    def __post_init__(self) -> None:
        known = (self.systematic_mm, self.random_mm, self.output_ratio, self.registration_mm)
        if not np.isfinite(known).all() or min(known) < 0:
            raise RTDigitalTwinError(f"Standard deviations of set-up must be numbers of 0 or more: {self}.")


@dataclass(frozen=True, eq=False)
class Treatment:
    """What is being given.

    Attributes
    ----------
    couch_mm : correction of the couch, LPS, added to where the anatomy lies.
    dose_factor : times the planned dose at each voxel of the grid; None for 1.
    adapted : whether the plan was made anew on the changed anatomy.
    """

    couch_mm: Shift = NOWHERE
    dose_factor: NDArray[np.float32] | None = None
    adapted: bool = False


@dataclass(frozen=True, eq=False)
class Deliveries:
    """The fractions of one patient's course.

    Attributes
    ----------
    change : of the anatomy and the machine, from fraction ``shift_at`` on; None of either for none.
    indices : (voxels,) of the voxels whose dose is told, flat in the grid.
    """

    patient: Patient
    indices: NDArray[np.int64]
    change: Change
    shift_at: int | None
    setup: SetupErrors
    seed: int
    _kept: list[tuple[NDArray[np.float32] | None, NDArray[np.float32]]] = field(
        default_factory=list, repr=False, init=False
    )

    def __post_init__(self) -> None:
        if not self.patient.plans or self.patient.plan.dose is None:
            raise PatientDataError(
                "There is no reference dose to deliver.", remedy="Use a patient whose plan has a dose."
            )

    def chance(self, stream: int, fraction: int) -> np.random.Generator:
        """Of a fraction's own."""
        return np.random.default_rng([self.seed, stream, fraction])

    def has_changed(self, fraction: int) -> bool:
        return self.shift_at is not None and fraction >= self.shift_at

    def lasting_mm(self, fraction: int) -> NDArray[np.float64]:
        """(3,) LPS: where the anatomy lies on the mean of the days, before the couch is corrected."""
        own = self.setup.systematic_mm * self.chance(LASTING, 0).standard_normal(3)
        return own + np.asarray(self.change.shift_mm) * self.has_changed(fraction)

    def day(self, fraction: int) -> tuple[NDArray[np.float64], float]:
        """(3,) shift of the day in mm, LPS, and its output less 1."""
        rng = self.chance(OF_THE_DAY, fraction)
        return self.setup.random_mm * rng.standard_normal(3), self.setup.output_ratio * float(rng.standard_normal())

    def seen_mm(self, fraction: int, treatment: Treatment) -> Shift:
        """What an image of the fraction says of its shift: lasting, couch and day, which it cannot tell apart."""
        off = self.setup.registration_mm * self.chance(REGISTRATION, fraction).standard_normal(3)
        x, y, z = (float(v) for v in self.lasting_mm(fraction) + treatment.couch_mm + self.day(fraction)[0] + off)
        return x, y, z

    def dose_gy(self, fraction: int, treatment: Treatment) -> NDArray[np.float32]:
        """(voxels,) what the fraction gives, times the number of fractions: Gy of a course of such fractions."""
        shift, output = self.day(fraction)
        return self._at(fraction, treatment, shift, output)

    def expected_gy(self, fraction: int, treatment: Treatment) -> NDArray[np.float32]:
        """The same without the day's own errors."""
        return self._at(fraction, treatment, np.zeros(3), 0.0)

    def corrected(self, treatment: Treatment, seen_mm: Shift) -> Treatment:
        """The couch moved so that what was seen is taken back."""
        x, y, z = (float(a - b) for a, b in zip(treatment.couch_mm, seen_mm, strict=True))
        return replace(treatment, couch_mm=(x, y, z))

    def replanned(self, fraction: int, treatment: Treatment) -> Treatment:
        """The planned dose back on the anatomy as it lies on the mean of the days; what was changed of it is kept."""
        x, y, z = (float(-v) for v in self.lasting_mm(fraction))
        return replace(treatment, couch_mm=(x, y, z), adapted=treatment.adapted or self.has_changed(fraction))

    def _at(self, fraction: int, treatment: Treatment, day_mm: NDArray, output: float) -> NDArray[np.float32]:
        grid = self.patient.ct.grid
        moved = self.lasting_mm(fraction) + treatment.couch_mm + day_mm
        at = self._index + offsets_in_voxels(grid, moved)[:, None]
        deformed = float(self.has_changed(fraction)) - float(treatment.adapted)
        if deformed and self._deformation is not None:
            at = at + deformed * self._deformation
        if self.has_changed(fraction):
            output += self.change.output_error_ratio
        return interpolated(self._dose_in_room(treatment), at) * np.float32(1 + output)

    @cached_property
    def _index(self) -> NDArray[np.float64]:
        return np.stack(np.unravel_index(self.indices, self.patient.ct.grid.shape)).astype(float)

    @cached_property
    def _deformation(self) -> NDArray[np.float64] | None:
        """(3, voxels) index offsets by what of the change is no shift."""
        rest = replace(self.change, shift_mm=NOWHERE, output_error_ratio=0.0)
        if rest == Change():
            return None
        grid = self.patient.ct.grid
        moved = displacement_mm(self.patient, rest).reshape(-1, 3)[self.indices]
        return offsets_in_voxels(grid, moved).T

    def _dose_in_room(self, treatment: Treatment) -> NDArray[np.float32]:
        """The planned dose with what was changed of it; kept for the treatment last asked for."""
        if not self._kept or self._kept[0][0] is not treatment.dose_factor:
            dose, factor = self.patient.plan.dose, treatment.dose_factor
            assert dose is not None
            planned = np.where(self.patient.dose_mask.mask, np.nan_to_num(dose.values), 0).astype(np.float32)
            self._kept[:] = [(factor, planned if factor is None else planned * factor)]
        return self._kept[0][1]
