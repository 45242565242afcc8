"""What would be measured of a treatment fraction: a simulated delivery, for loops and studies without a measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from RTDigitalTwinLib.calibration.measuring import measure_volume
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.patient.observation import DoseObservation, Moment, NoiseModel
from RTDigitalTwinLib.patient.patient import Patient


@dataclass(frozen=True)
class SimulatedFractions:
    """Dose volumes of single fractions, one a working day, the anatomy and machine changed alike in each.

    Attributes
    ----------
    noise : of each voxel, in Gy of one fraction.
    blur_mm : of the measurement.
    seed : of the noise; each fraction has its own.
    """

    change: Change = Change()
    noise: NoiseModel = NoiseModel(0.02, 0.02)
    blur_mm: float = 3.0
    seed: int = 0

    def of(self, patient: Patient, fraction: int) -> tuple[DoseObservation, ...]:
        """The observations of a fraction. Raises PatientDataError where the plan has no dose to deliver."""
        days = float((fraction - 1) // 5 * 7 + (fraction - 1) % 5)
        truth = delivered_dose(patient, self.change)
        seed = 1000 * self.seed + fraction
        return (measure_volume(patient, truth, Moment(days, fraction), self.noise, self.change, seed, self.blur_mm),)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> SimulatedFractions:
        x, y, z = stored["change"]["shift_mm"]
        change = Change(**dict(stored["change"]) | {"shift_mm": (x, y, z)})
        return cls(change, NoiseModel(**stored["noise"]), stored["blur_mm"], stored["seed"])
