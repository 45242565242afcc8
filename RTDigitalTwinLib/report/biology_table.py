"""TCP and NTCP of a prediction as rows, with what the dose samples and the published parameters leave open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.biology import NOTICE, DoseResponse, applicable, load_biology
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.reading import Reading

DRAWS = 400  # of samples and published parameters together, at least


@dataclass(frozen=True)
class PredictedBiologyRow:
    """TCP or NTCP of one endpoint in one structure.

    Attributes
    ----------
    eud_gy : equivalent uniform dose, the mean over the samples; EQD2 where the model has an alpha/beta.
    probability : 0..1, the mean over the samples with the parameters as published.
    low, high : central band of doses and published parameters together; None where neither leaves anything open.
    with_parameters : whether the band holds published standard deviations of the parameters.
    calibrated : whether the spread of this dose was measured; None without samples. Of mean doses it was; other
        equivalent doses are widened by the factors of doses of their kind of structure, which was not measured.
    reference : probability of the plan's dose, where that is known all over the structure.
    citation : of the parameters.
    """

    structure: str
    effect: str
    endpoint: str
    eud_gy: float
    probability: float
    low: float | None
    high: float | None
    with_parameters: bool
    calibrated: bool | None
    reference: float | None
    citation: str


@dataclass(frozen=True)
class BiologyTable:
    """All endpoints, with what must be said of them."""

    rows: tuple[PredictedBiologyRow, ...]
    notes: tuple[str, ...]


def biology_of_prediction(
    prediction: DoseEnsemble,
    level: float = 0.95,
    models: tuple[DoseResponse, ...] | None = None,
    seed: int = 0,
) -> BiologyTable:
    """Every model for which the patient has a structure; by default those that come with the software."""
    chosen = load_biology() if models is None else models
    patient = prediction.patient
    fractions = patient.plan.prescription.fractions if patient.plans else None
    names = (*patient.targets, *(n for n in patient.structures if n not in patient.targets))
    pairs, notes = applicable(chosen, names, fractions)
    rows, reading = [], Reading(prediction)
    for name, model in pairs:
        try:
            rows.append(_row(reading, name, model, fractions or 1, level, seed))
        except PatientDataError as error:
            notes.append(str(error))
    return BiologyTable(tuple(rows), (*notes, NOTICE) if rows else tuple(notes))


def central_band(drawn: NDArray, level: float) -> tuple[float, float]:
    """The middle ``level`` (0..1) of draws."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _row(
    reading: Reading, name: str, model: DoseResponse, fractions: int, level: float, seed: int
) -> PredictedBiologyRow:
    doses, found = reading.inside(name), reading.response(name, model, fractions)
    prediction = reading.prediction
    low = high = None
    if prediction.has_spread or model.sd:
        draws = -(-DRAWS // doses.count) * doses.count  # every sample as often
        drawn = model.drawn(doses, fractions, draws, seed, found.shift_gy)
        low, high = central_band(drawn, level)
    plan_dose = prediction.patient.plan.dose if prediction.patient.plans else None
    planned = covered_dose_of(plan_dose, prediction.patient.structure(name))
    reference = None if planned is None else float(model.of(planned, fractions)[0])
    return PredictedBiologyRow(
        name, model.effect.value, model.endpoint, float(found.eud_gy.mean()), float(found.probability.mean()), low,
        high, bool(model.sd), found.is_calibrated, reference, model.source,
    )  # fmt: skip
