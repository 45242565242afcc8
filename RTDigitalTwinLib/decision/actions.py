"""Actions: what one could do next in a treatment, and what it makes of the predicted dose."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.decision.beam_changes import ExplainedDose, explained_dose
from RTDigitalTwinLib.decision.objective import mean_gy, penalty_parts
from RTDigitalTwinLib.decision.penalties import penalties_for
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

MOST_SCALING_RATIO = 0.1  # beyond a tenth of the dose it is another prescription
SCALING_STEPS = 21
RISK = 0.05


class ActionKind(Enum):
    """What sort of thing is done."""

    KEEP = "keep"
    SCALE = "scale"
    SPARE = "spare"
    BOOST = "boost"
    LIBRARY_PLAN = "plan from a library"
    RE_IMAGE = "re-image"
    REPLAN = "replan"


@dataclass(frozen=True, eq=False)
class Situation:
    """What actions are judged in.

    Attributes
    ----------
    prediction : the dose of the whole course as it is believed now, if nothing is changed.
    """

    prediction: DoseEnsemble
    _explained: list[ExplainedDose] = field(default_factory=list, repr=False, init=False)

    @property
    def patient(self) -> Patient:
        return self.prediction.patient

    def explained(self, progress: Progress = silent) -> ExplainedDose:
        """The fluence of the plan's beams that explains the present mean dose: fitted once, seconds.

        Raises RTDigitalTwinError where the beams are known to be no fixed coplanar fields, or the CT is not axial.
        """
        if not self._explained:
            prediction = self.prediction
            self._explained.append(
                explained_dose(prediction.patient, prediction.crop, mean_gy(prediction), progress=progress)
            )
        return self._explained[0]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an action makes of the dose.

    Attributes
    ----------
    prediction : the dose of the whole course with the action. Its bands keep the factors measured on unchanged doses.
    beam_consistency_ratio : share of the change asked for that non-negative fluence of the plan's beams can produce;
        None where no change in space was asked for. Never a proof of deliverability.
    notes : what must be known of it.
    """

    prediction: DoseEnsemble
    beam_consistency_ratio: float | None = None
    notes: tuple[str, ...] = ()


class Action(Protocol):
    """Something one could do. ``name`` tells it from the others, in words."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> ActionKind: ...

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        """Raises RTDigitalTwinError where the action cannot be done for this patient."""
        ...


@dataclass(frozen=True)
class Keep:
    """Go on as planned."""

    name: str = "keep"
    kind: ActionKind = ActionKind.KEEP

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        return Outcome(situation.prediction)


@dataclass(frozen=True)
class Scale:
    """Give all of the dose times a factor: more or fewer monitor units.

    Raises RTDigitalTwinError where ``factor`` is further than a tenth from 1.
    """

    factor: float
    kind: ActionKind = ActionKind.SCALE

    def __post_init__(self) -> None:
        if not (np.isfinite(self.factor) and 0 < abs(self.factor - 1) <= MOST_SCALING_RATIO + 1e-9):
            raise RTDigitalTwinError(
                f"The dose cannot be scaled by {self.factor:g}.",
                remedy=f"Give a factor from {1 - MOST_SCALING_RATIO:g} to {1 + MOST_SCALING_RATIO:g} other than 1.",
            )

    @property
    def name(self) -> str:
        return f"scale by {self.factor:g}"

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        note = scaling_note(self.factor, situation.patient)
        return Outcome(scaled(situation.prediction, np.float32(self.factor)), notes=(note,))


@dataclass(frozen=True)
class ScaleWithin:
    """Give all of the dose the factor within bounds that lessens the penalties of the goals most.

    Attributes
    ----------
    lowest, highest : bounds of the factor; 1 lies between them or on them.
    risk : share of the worst samples whose mean penalty counts.
    """

    lowest: float = 0.95
    highest: float = 1.05
    risk: float = RISK
    kind: ActionKind = ActionKind.SCALE

    def __post_init__(self) -> None:
        require_risk(self.risk)
        bounds = 1 - MOST_SCALING_RATIO - 1e-9, 1 + MOST_SCALING_RATIO + 1e-9
        if not (bounds[0] <= self.lowest <= 1 <= self.highest <= bounds[1] and self.lowest < self.highest):
            raise RTDigitalTwinError(
                f"The dose cannot be scaled from {self.lowest:g} to {self.highest:g}.",
                remedy=f"Give bounds around 1, from {1 - MOST_SCALING_RATIO:g} to {1 + MOST_SCALING_RATIO:g}.",
            )

    @property
    def name(self) -> str:
        return f"scale by the best factor from {self.lowest:g} to {self.highest:g}"

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        """Raises RTDigitalTwinError where nothing is asked of the dose."""
        parts = penalty_parts(situation.prediction, penalties_for(situation.prediction), self.risk)
        if not parts:
            raise RTDigitalTwinError(
                "Nothing is asked of the dose that a factor could serve.", where=situation.patient.pseudonym
            )
        factors = np.linspace(self.lowest, self.highest, SCALING_STEPS)
        penalties = []
        for step, factor in enumerate(factors):
            progress(step / SCALING_STEPS, f"factor {factor:.3f}")
            penalties.append(sum(part.scaled(float(factor)) for part in parts))
        best = float(factors[int(np.argmin(penalties))])
        notes = [f"The best factor is {best:.3f}."]
        if best != 1:
            notes.append(scaling_note(best, situation.patient))
        return Outcome(scaled(situation.prediction, np.float32(best)), notes=tuple(notes))


@dataclass(frozen=True)
class ReImage:
    """Take another image of the patient, and go on as planned until it is seen.

    The dose does not change. What an image is worth, the actions that it may change, shows only over a course.
    """

    name: str = "re-image"
    kind: ActionKind = ActionKind.RE_IMAGE

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        note = "Re-imaging changes no dose: it lessens the uncertainty, and what that is worth shows over the course."
        return Outcome(situation.prediction, notes=(note,))


def scaling_note(factor: float, patient: Patient) -> str:
    """What it means to scale a whole dose."""
    change = f"{100 * abs(factor - 1):.3g} % {'more' if factor > 1 else 'less'}"
    said = f"It gives {change} dose everywhere, to organs as well as targets"
    if patient.plans:
        level_gy = patient.plan.prescription.highest_gy
        said += f", as if {level_gy * factor:.4g} Gy were prescribed in place of {level_gy:g} Gy"
    return (
        f"{said}: another prescription than the plan's, which is for a physician to decide. What it gains is read off "
        "models of tumour control and complications, which are no outcomes of patients."
    )


def require_risk(risk: float) -> None:
    """Raises RTDigitalTwinError unless a risk lies between 0 and 1, or is 1 for the mean of all samples."""
    if not 0 < risk <= 1:
        raise RTDigitalTwinError(f"A risk of {risk:g} has no meaning.", remedy="Give one above 0, such as 0.05.")


def added(prediction: DoseEnsemble, change_gy: NDArray, *, calibrated: bool = True) -> DoseEnsemble:
    """A prediction with a change (mask voxels,) in Gy added to every sample, none below 0.

    Its bands keep the factors measured on unchanged doses, unless not ``calibrated``.

    The samples' deviations stay: the dose is linear in the fluence, so what a change of the fluence adds is the same
    whatever the present dose turns out to be. A factor on each sample would be a change that no one fluence makes.
    """

    def changed(one: DoseEnsemble) -> DoseEnsemble:
        return replace(one, deterministic_gy=np.maximum(one.deterministic_gy + np.asarray(change_gy, np.float32), 0))

    learned = prediction.narrowing.of_changed(changed) if prediction.narrowing else None
    calibration = prediction.calibration if calibrated else None
    return replace(changed(prediction), calibration=calibration, narrowing=learned)


def scaled(prediction: DoseEnsemble, factor: np.ndarray | np.float32) -> DoseEnsemble:
    """A prediction with every sample times a factor, one or (mask voxels,)."""

    def changed(one: DoseEnsemble) -> DoseEnsemble:
        return replace(
            one,
            deterministic_gy=(one.deterministic_gy * factor).astype(np.float32),
            deviations_gy=(one.deviations_gy * factor).astype(np.float16),
        )

    learned = prediction.narrowing.of_changed(changed) if prediction.narrowing else None
    return replace(changed(prediction), narrowing=learned)
