"""Twin: a patient with what is believed of it. What a console user holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.errors import ModelError
from RTDigitalTwinLib.model.familiarity import FamiliarityVerdict
from RTDigitalTwinLib.model.state import StateModel
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.calibration_file import load_calibration
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief, DoseState
from RTDigitalTwinLib.solver.ensemble import Forecast
from RTDigitalTwinLib.solver.forecast import forecast


class Twin:
    """A digital twin of one patient.

    Parameters
    ----------
    patient : as loaded.
    weights : of the dose network; by default those that come with the software.
    device : ``auto``, ``cpu`` or ``cuda``.
    models : further state models by name (motion, toxicity, growth).
    """

    def __init__(
        self,
        patient: Patient,
        weights: str | PathLike[str] | None = None,
        device: str = "auto",
        models: Mapping[str, StateModel[Any]] | None = None,
    ) -> None:
        self.patient = patient
        self.models: dict[str, StateModel[Any]] = dict(models or {})
        self._weights = None if weights is None else Path(weights)
        self._device = device

    @cached_property
    def dose_model(self) -> DoseState:
        """The dose surrogate with the calibration of its bands, where that was measured; loaded when first used.

        Raises ModelError where weights or calibration are not intact.
        """
        surrogate = DoseSurrogate.load(self._weights, self._device)
        return DoseState(surrogate, load_calibration(self._weights, surrogate.weights_sha256))

    @cached_property
    def familiarity(self) -> FamiliarityVerdict | None:
        """Whether the patient is like those the dose network was trained on; None where its weights do not tell."""
        known = self.dose_model.surrogate.familiarity
        return None if known is None else known.judge(self.dose_belief.prepared.seen)

    @cached_property
    def dose_belief(self) -> DoseBelief:
        """What is believed of the dose."""
        return self.dose_model.initial(self.patient)

    def predict(self, samples: int = 64, seed: int = 0, progress: Progress = silent) -> DoseEnsemble:
        """Dose with its sampled spread; ``samples`` 0 is deterministic.

        It lies on the grid of its own ``patient``: this twin's, or that one at the network's resolution. Raises
        PatientDataError where the prescription is too far from those the network knows.
        """
        return self.dose_belief.sample(samples, seed, progress)

    def forecast(self, state: str, days: Sequence[float], samples: int = 64, seed: int = 0) -> Forecast:
        """Observables of one of the twin's states (``dose`` or a name in ``models``) on the days ahead.

        Raises ModelError for a state the twin does not hold.
        """
        if state == "dose":
            return forecast(self.dose_model, self.dose_belief, days, samples, seed)
        if state not in self.models:
            raise ModelError(f"The twin has no state {state!r}; it has {', '.join(['dose', *self.models])}.")
        model = self.models[state]
        return forecast(model, model.initial(self.patient), days, samples, seed)
