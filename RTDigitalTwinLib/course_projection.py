"""The dose of a course as the sum of its parts, sample by sample, and what it means: TCP, NTCP and coverage.

Parts are predictions of one patient drawn alike, each of the dose that a whole course of such fractions would give;
sample k of the sum is that of sample k of every part, so that what is not known of the patient stays the same in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.decision.actions import Action, ActionKind, Outcome, Situation
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.biology import DoseResponse, load_biology, models_for
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.ensemble import even_band
from RTDigitalTwinLib.solver.reading import Reading

COVERAGE = "D95"
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Part:
    """A share of the course: a prediction, the ratio of the course's fractions, how much wider than told it is."""

    prediction: DoseEnsemble
    ratio: float
    inflation_ratio: float = 1.0


def summed(parts: Sequence[Part]) -> DoseEnsemble:
    """The parts' sum; ratios that add up to 1 make it that of the whole course."""
    first = parts[0].prediction
    dose = np.zeros(first.deterministic_gy.shape, np.float32)
    deviations = np.zeros(first.deviations_gy.shape, np.float32)
    floor = np.zeros_like(dose)
    for part in parts:
        drawn, ratio = part.prediction, np.float32(part.ratio)
        own = drawn.deviations_gy.astype(np.float32)
        middle = own.mean(axis=0) if drawn.count else np.float32(0)
        dose += ratio * drawn.deterministic_gy
        deviations += ratio * (middle + np.float32(part.inflation_ratio) * (own - middle))
        floor += ratio * np.float32(part.inflation_ratio) * (1.0 if drawn.floor_ratio is None else drawn.floor_ratio)
    return replace(
        first,
        deterministic_gy=dose,
        deviations_gy=deviations.astype(np.float16),
        absorbed=max(part.prediction.absorbed for part in parts),
        floor_ratio=None if np.all(floor == 1) else floor,
        narrowing=None,  # it is of one part
    )


def known_dose(like: DoseEnsemble, dose_gy: NDArray[np.float32]) -> DoseEnsemble:
    """A dose (mask voxels,) that is known, as a prediction without samples."""
    return replace(
        like,
        deterministic_gy=dose_gy.astype(np.float32),
        deviations_gy=np.empty((0, dose_gy.size), np.float16),
        seed=None,
        calibration=None,
        absorbed=0,
        floor_ratio=None,
        narrowing=None,
    )


@dataclass(frozen=True, eq=False)
class OnRemaining:
    """An action on the fractions still to come, judged by the dose of the whole course.

    Attributes
    ----------
    delivered : the parts given so far.
    present : a situation whose prediction is what the fractions to come are believed to give without the action, as a
        whole course of them; shared by all actions of a decision.
    ratio : of the course's fractions that are to come.
    instead : what they give with the action, where that follows from the course and not from the action.
    """

    action: Action
    delivered: tuple[Part, ...]
    present: Situation
    ratio: float
    inflation_ratio: float = 1.0
    instead: DoseEnsemble | None = None
    _found: list[Outcome] = field(default_factory=list, repr=False, init=False)

    @property
    def name(self) -> str:
        return self.action.name

    @property
    def kind(self) -> ActionKind:
        return self.action.kind

    def of_remaining(self, progress: Progress = silent) -> Outcome:
        """Of the fractions to come alone; worked out once. Raises as the action does."""
        if not self._found:
            known = None if self.instead is None else Outcome(self.instead)
            self._found.append(known or self.action.outcome(self.present, progress))
        return self._found[0]

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        found = self.of_remaining(progress)
        return replace(found, prediction=summed((*self.delivered, self.part(found.prediction))))

    def part(self, prediction: DoseEnsemble) -> Part:
        """What a dose of the fractions to come adds to the course."""
        return Part(prediction, self.ratio, self.inflation_ratio)


@dataclass(frozen=True)
class Endpoint:
    """A TCP, an NTCP or the coverage of a target at the end of treatment.

    Attributes
    ----------
    unit : "" of probabilities, Gy of coverage.
    mean, low, high : over the samples, with their calibrated 95 % band of the dose; a model's parameters as published.
    true : of the simulated truth.
    """

    structure: str
    effect: str
    endpoint: str
    unit: str
    mean: float
    low: float
    high: float
    true: float

    @property
    def name(self) -> str:
        return f"{self.structure} {self.effect}" + (f" ({self.endpoint})" if self.endpoint else "")

    @property
    def covers(self) -> bool:
        return self.low <= self.true <= self.high


def endpoints_of(
    projection: DoseEnsemble, truth: DoseEnsemble, models: tuple[DoseResponse, ...] | None = None
) -> tuple[Endpoint, ...]:
    """Of every model a structure of the patient has, and of the targets' coverage; truth as one dose that is known.

    Structures that the dose covers too little of have none.
    """
    models = load_biology() if models is None else models
    patient = projection.patient
    fractions = patient.plan.prescription.fractions
    found: list[Endpoint] = []
    reading = Reading(projection)
    for name in ordered(patient):
        try:
            doses, true = reading.inside(name), truth.structure_dose(name)
            if name in target_levels_gy(patient):
                values = projection.metric(name, COVERAGE, doses)
                of_truth = float(truth.metric(name, COVERAGE, true).mean)
                low, high = (float(limit) for limit in values.band(LEVEL))
                found.append(Endpoint(name, COVERAGE, "", "Gy", float(values.mean), low, high, of_truth))
            for model in models_for(models, name):
                likely = reading.response(name, model, fractions).probability
                low, high = even_band(likely, LEVEL)
                mean, of_truth = float(likely.mean()), float(model.of(true, fractions)[0])
                found.append(Endpoint(name, model.effect.value, model.endpoint, "", mean, low, high, of_truth))
        except PatientDataError:
            continue
    return tuple(found)


def ordered(patient: Patient) -> tuple[str, ...]:
    """Targets first."""
    return (*patient.targets, *(name for name in patient.structures if name not in patient.targets))


def require_ntcp(patient: Patient, structure: str | None) -> None:
    """Raise PatientDataError where a structure of a patient has no NTCP; None is any."""
    if structure is None:
        return
    patient.structure(structure)
    of = {name for model in load_biology() if model.effect.value == "NTCP" for name in model.structures}
    if structure not in of:
        raise PatientDataError(
            "There is no NTCP of this structure.",
            where=structure,
            remedy=f"It is of {', '.join(n for n in patient.structures if n in of) or 'none of the patient'}.",
        )
