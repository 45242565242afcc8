"""TCP and NTCP of a prediction as rows, with what the dose samples and the published parameters leave open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.biology import NOTICE, DoseResponse, load_biology, models_for
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

DRAWS = 400  # of samples and published parameters together, at least
MEAN_DOSE = "mean"


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
    rows = []
    for name, model in pairs:
        try:
            rows.append(_row(prediction, name, model, fractions or 1, level, seed))
        except PatientDataError as error:
            notes.append(str(error))
    return BiologyTable(tuple(rows), (*notes, NOTICE) if rows else tuple(notes))


def applicable(
    models: Iterable[DoseResponse], names: Iterable[str], fractions: int | None
) -> tuple[list[tuple[str, DoseResponse]], list[str]]:
    """The models of each structure, and what is said of those that need a number of fractions that is not known."""
    chosen = tuple(models)
    pairs, notes = [], []
    for name in names:
        for model in models_for(chosen, name):
            if fractions is None and model.alpha_beta_gy is not None:
                notes.append(f"{name}: {model.endpoint} needs the number of fractions, which no plan says.")
            else:
                pairs.append((name, model))
    return pairs, notes


def central_band(drawn: NDArray, level: float) -> tuple[float, float]:
    """The middle ``level`` (0..1) of draws."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _row(
    prediction: DoseEnsemble, name: str, model: DoseResponse, fractions: int, level: float, seed: int
) -> PredictedBiologyRow:
    doses = prediction.structure_dose(name)
    eud_gy = model.eud_gy(doses, fractions)
    shift_gy = np.zeros(doses.count)
    calibrated = None
    if prediction.has_spread:
        of_mean_dose = model.n == 1 and model.alpha_beta_gy is None
        samples = (
            prediction.metric(name, MEAN_DOSE, doses)
            if of_mean_dose
            else prediction.equivalent_dose(name, lambda inside: model.eud_gy(inside, fractions), doses)
        )
        shift_gy = samples.calibrated_samples() - eud_gy
        calibrated = of_mean_dose and samples.is_calibrated
    low = high = None
    if prediction.has_spread or model.sd:
        draws = -(-DRAWS // doses.count) * doses.count  # every sample as often
        drawn = model.drawn(doses, fractions, draws, seed, shift_gy)
        low, high = central_band(drawn, level)
    probability = model.probability(np.maximum(eud_gy + shift_gy, 0))
    plan_dose = prediction.patient.plan.dose if prediction.patient.plans else None
    planned = covered_dose_of(plan_dose, prediction.patient.structure(name))
    reference = None if planned is None else float(model.of(planned, fractions)[0])
    return PredictedBiologyRow(
        name, model.effect.value, model.endpoint, float(eud_gy.mean()), float(probability.mean()), low, high,
        bool(model.sd), calibrated, reference, model.source,
    )  # fmt: skip
