"""The dose of a plan as a state of the twin."""

from __future__ import annotations

from dataclasses import dataclass, replace

from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.bands import BandCalibration
from RTDigitalTwinLib.solver.calibration_file import StoredCalibration
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.ensemble import Ensemble
from RTDigitalTwinLib.solver.sampling import sample_dose


@dataclass(frozen=True, eq=False)
class DoseBelief:
    """What the network and its dropout say of a patient's dose."""

    surrogate: DoseSurrogate
    patient: Patient
    calibration: BandCalibration | None = None

    def sample(self, samples: int, seed: int, progress: Progress = silent) -> DoseEnsemble:
        drawn = sample_dose(self.surrogate, self.patient, samples, seed, progress)
        return replace(drawn, calibration=self.calibration)


@dataclass(frozen=True, eq=False)
class DoseState:
    """StateModel of the dose of the whole course, in Gy. It is the plan's, so time alone does not change it."""

    surrogate: DoseSurrogate
    calibration: StoredCalibration | None = None

    def initial(self, patient: Patient) -> DoseBelief:
        bands = None if self.calibration is None else self.calibration.for_patient(patient.pseudonym)
        return DoseBelief(self.surrogate, patient, bands)

    def transition(self, state: DoseEnsemble, action: object, days: float, seed: int) -> DoseEnsemble:
        return state

    def observe(self, state: DoseEnsemble) -> dict[str, Ensemble]:
        """Mean dose of each structure, with its calibrated band where that was measured."""
        return {f"{name}_mean_gy": state.metric(name, "mean") for name in state.patient.structures}
