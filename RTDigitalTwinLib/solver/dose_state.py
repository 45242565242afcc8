"""The dose of a plan as a state of the twin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from RTDigitalTwinLib.model.network_patient import NetworkPatient, network_patient
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
    """What the network and its dropout say of a patient's dose.

    Attributes
    ----------
    prepared : the patient as the network sees it, and as the dose is told.
    calibration : of the bands; None where it was not measured, or the prescription is none the network knows.
    """

    surrogate: DoseSurrogate
    prepared: NetworkPatient
    calibration: BandCalibration | None = None

    @property
    def patient(self) -> Patient:
        return self.prepared.shown

    def sample(self, samples: int, seed: int, progress: Progress = silent) -> DoseEnsemble:
        drawn = sample_dose(self.surrogate, self.prepared.seen, samples, seed, progress)
        if self.prepared.is_extrapolated:
            factor = self.prepared.dose_factor
            drawn = replace(
                drawn,
                patient=self.prepared.shown,
                deterministic_gy=drawn.deterministic_gy * np.float32(factor),
                deviations_gy=(drawn.deviations_gy * np.float32(factor)).astype(np.float16),
            )
        return replace(drawn, calibration=self.calibration)


@dataclass(frozen=True, eq=False)
class DoseState:
    """StateModel of the dose of the whole course, in Gy. It is the plan's, so time alone does not change it."""

    surrogate: DoseSurrogate
    calibration: StoredCalibration | None = None

    def initial(self, patient: Patient) -> DoseBelief:
        """The first belief. Raises PatientDataError where the network cannot take the patient."""
        prepared = network_patient(patient)
        bands = None
        if self.calibration is not None and not prepared.is_extrapolated:
            bands = self.calibration.for_patient(patient.pseudonym)
        return DoseBelief(self.surrogate, prepared, bands)

    def transition(self, state: DoseEnsemble, action: object, days: float, seed: int) -> DoseEnsemble:
        return state

    def observe(self, state: DoseEnsemble) -> dict[str, Ensemble]:
        """Mean dose of each structure, with its calibrated band where that was measured."""
        return {f"{name}_mean_gy": state.metric(name, "mean") for name in state.patient.structures}
