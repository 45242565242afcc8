"""Reading a prediction: metrics and modelled probabilities of its samples, each structure taken once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, StructureDose
from RTDigitalTwinLib.dosimetry.metric_samples import MetricSamples
from RTDigitalTwinLib.model.biology import DoseResponse
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

MEAN_DOSE = "mean"


@dataclass(frozen=True, eq=False)
class ResponseSamples:
    """A modelled probability of every sample, with the parameters as published.

    Attributes
    ----------
    eud_gy : (samples,) equivalent uniform dose as sampled; EQD2 where the model has an alpha/beta.
    shift_gy : (samples,) what the calibration of the spread moves it by; 0 where there is none.
    probability : (samples,) of both together.
    is_calibrated : whether the spread of this dose was measured; None without samples. Of mean doses it was; other
        equivalent doses are widened by the factors of doses of their kind of structure, which was not measured.
    """

    eud_gy: NDArray[np.float64]
    shift_gy: NDArray[np.float64]
    probability: NDArray[np.float64]
    is_calibrated: bool | None


@dataclass(frozen=True, eq=False)
class Reading:
    """A prediction with what was read of it so far."""

    prediction: DoseEnsemble
    _inside: dict[str, StructureDose] = field(default_factory=dict, repr=False, init=False)
    _metrics: dict[tuple[str, DvhMetric], MetricSamples] = field(default_factory=dict, repr=False, init=False)

    def inside(self, name: str) -> StructureDose:
        """Every sample's dose in a structure."""
        if name not in self._inside:
            self._inside[name] = self.prediction.structure_dose(name)
        return self._inside[name]

    def metric(self, name: str, metric: DvhMetric) -> MetricSamples:
        """A metric's samples, calibrated where that was measured."""
        key = name, metric
        if key not in self._metrics:
            self._metrics[key] = self.prediction.metric_samples(name, metric, self.inside(name))
        return self._metrics[key]

    def response(self, name: str, model: DoseResponse, fractions: int) -> ResponseSamples:
        """A model's probability in a structure. Raises PatientDataError where the dose covers too little of it."""
        doses = self.inside(name)
        eud_gy = model.eud_gy(doses, fractions)
        shift_gy = np.zeros(doses.count)
        calibrated = None
        if self.prediction.has_spread:
            of_mean_dose = model.n == 1 and model.alpha_beta_gy is None
            if of_mean_dose:
                samples = self.prediction.metric(name, MEAN_DOSE, doses)
            else:
                samples = self.prediction.equivalent_dose(name, lambda inside: model.eud_gy(inside, fractions), doses)
            shift_gy = samples.calibrated_samples() - eud_gy
            calibrated = of_mean_dose and samples.is_calibrated
        return ResponseSamples(eud_gy, shift_gy, model.probability(np.maximum(eud_gy + shift_gy, 0)), calibrated)
