"""Actions that change the dose in space by the plan's beams: spare a structure, boost one, plan anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.decision.actions import RISK, ActionKind, Outcome, Situation, added, require_risk
from RTDigitalTwinLib.decision.beam_changes import NOTICE, beam_consistent_ratio
from RTDigitalTwinLib.decision.bounds import ChangeBounds
from RTDigitalTwinLib.decision.fluence import FluenceSettings, optimised_fluence
from RTDigitalTwinLib.decision.objective import kept_parts, mean_gy
from RTDigitalTwinLib.decision.penalties import HIGHEST_RATIO, Penalty, penalties_for
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.words import decimal

AIM_WEIGHT = 10.0  # of what a structure is to get; a tenth of a target's, ten times an organ's that is to be kept
STEPS, REPLAN_STEPS = 20, 30
LEAST_CHANGE_GY = 0.01
NEW_PLAN_NOTE = (
    "The spread is that of the present dose; how sure the dose of a new plan is was not measured, so that nothing "
    "of it is certified."
)
LEAST_TOLD_GY = 0.05  # of what the beams make beyond the bounds


@dataclass(frozen=True)
class Spare:
    """Give an organ less, and let targets and other organs have what they have.

    Attributes
    ----------
    aim_gy : of the organ's mean dose, or of each voxel where its goals are of that; by default its present mean, or
        present D0.1cc, less the share that may be changed at most.
    bounds : of the change.
    risk : share of the samples, those with the most dose, whose mean is to reach the aim.
    steps : of the optimisation.
    """

    structure: str
    bounds: ChangeBounds = ChangeBounds()
    aim_gy: float | None = None
    risk: float = RISK
    steps: int = STEPS
    kind: ActionKind = ActionKind.SPARE

    def __post_init__(self) -> None:
        _require_sound(self.aim_gy, self.risk, self.steps, self.structure)

    @property
    def name(self) -> str:
        return _name("spare", self.structure, self.bounds, self.aim_gy)

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        """Raises RTDigitalTwinError for a target, and where the beams cannot be followed."""
        structure = situation.patient.structure(self.structure)
        if structure.kind is StructureKind.TARGET:
            raise RTDigitalTwinError("A target cannot be spared.", where=self.structure, remedy="Scale the dose.")
        return _changed(situation, self.structure, [self._aim(situation.prediction)], self, progress)

    def _aim(self, prediction: DoseEnsemble) -> Penalty:
        goals = [penalty for penalty in penalties_for(prediction) if penalty.structure == self.structure]
        of_mean = not goals or any(penalty.of_mean for penalty in goals)
        present_gy = float(prediction.metric(self.structure, "mean" if of_mean else "D0.1cc").mean)
        aim_gy = self.aim_gy if self.aim_gy is not None else (1 - self.bounds.most_change_ratio) * present_gy
        return Penalty(self.structure, max(aim_gy, LEAST_CHANGE_GY), True, of_mean, AIM_WEIGHT)


@dataclass(frozen=True)
class Boost:
    """Give a target more where it has too little, and let other targets and organs have what they have.

    Attributes
    ----------
    aim_gy : of each voxel at least; by default what is prescribed to the target.
    bounds, risk, steps : as of ``Spare``; the risk is that of the samples with the least dose.
    """

    structure: str
    bounds: ChangeBounds = ChangeBounds()
    aim_gy: float | None = None
    risk: float = RISK
    steps: int = STEPS
    kind: ActionKind = ActionKind.BOOST

    def __post_init__(self) -> None:
        _require_sound(self.aim_gy, self.risk, self.steps, self.structure)

    @property
    def name(self) -> str:
        return _name("boost", self.structure, self.bounds, self.aim_gy)

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        """Raises RTDigitalTwinError where no dose to aim at is known, and where the beams cannot be followed."""
        situation.patient.structure(self.structure)
        aim_gy = self.aim_gy or target_levels_gy(situation.patient).get(self.structure)
        if aim_gy is None:
            raise RTDigitalTwinError(
                "No dose is prescribed to this structure, so that there is none to boost it to.",
                where=self.structure,
                remedy="Give aim_gy.",
            )
        highest_gy = HIGHEST_RATIO * max([aim_gy, *target_levels_gy(situation.patient).values()])
        aims = [
            Penalty(self.structure, aim_gy, False, False, AIM_WEIGHT),
            Penalty(self.structure, highest_gy, True, False, AIM_WEIGHT),
        ]
        return _changed(situation, self.structure, aims, self, progress)


@dataclass(frozen=True)
class Replan:
    """Plan anew with the same beams: the non-negative fluence that lessens the penalties of all goals most.

    Attributes
    ----------
    risk : share of the samples, the worst for each goal, whose mean penalty counts.
    steps : of the optimisation.
    """

    risk: float = RISK
    steps: int = REPLAN_STEPS
    name: str = "replan"
    kind: ActionKind = ActionKind.REPLAN

    def __post_init__(self) -> None:
        _require_sound(None, self.risk, self.steps, self.name)

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        """Raises RTDigitalTwinError where nothing is asked of the dose, and where the beams cannot be followed."""
        explained = situation.explained(part(progress, 0.0, 0.4))
        found = optimised_fluence(
            situation.prediction,
            explained,
            FluenceSettings(self.steps, self.risk),
            kept=kept_parts(situation.prediction),
            progress=part(progress, 0.4, 1.0),
        )
        notes = (_extent(found.change_gy), explained.words, NEW_PLAN_NOTE, NOTICE)
        return Outcome(added(situation.prediction, found.change_gy, calibrated=False), 1.0, notes)


def _changed(
    situation: Situation, structure: str, aims: Sequence[Penalty], action: Spare | Boost, progress: Progress
) -> Outcome:
    """Look for the change over the fluence, bring it within its bounds, and project it on the beams again."""
    prediction = situation.prediction
    explained = situation.explained(part(progress, 0.0, 0.3))
    settings = FluenceSettings(action.steps, action.risk)
    kept = kept_parts(prediction, structure)
    found = optimised_fluence(prediction, explained, settings, aims, kept, part(progress, 0.3, 0.8))
    asked_gy = action.bounds.bounded(found.change_gy, mean_gy(prediction), prediction.crop)
    if np.abs(asked_gy).max(initial=0) < LEAST_CHANGE_GY:
        return Outcome(prediction, notes=("Nothing is to be gained: the dose stays as it is.",))
    achieved = explained.projected(asked_gy, progress=part(progress, 0.8, 1.0))
    ratio = beam_consistent_ratio(asked_gy, achieved.change_gy)
    told = [f"Of the change asked for {100 * ratio:.0f} % is beam-consistent."]
    beyond_gy = float((np.abs(achieved.change_gy) - action.bounds.limits_gy(mean_gy(prediction))).max(initial=0))
    if beyond_gy > LEAST_TOLD_GY:
        told.append(f"What beams make of it is beyond the bounds by up to {beyond_gy:.1f} Gy.")
    notes = (*told, _extent(achieved.change_gy), explained.words, NOTICE)
    return Outcome(added(prediction, achieved.change_gy), ratio, notes)


def _extent(change_gy: NDArray) -> str:
    least, most = (decimal(float(gy), 1, signed=True) for gy in (change_gy.min(), change_gy.max()))
    return f"The mean dose changes by {least} to {most} Gy."


def _name(verb: str, structure: str, bounds: ChangeBounds, aim_gy: float | None) -> str:
    usual = ChangeBounds(bounds.most_change_ratio)
    words = [f"{verb} {structure} by at most {100 * bounds.most_change_ratio:g} %"]
    if bounds.most_change_gy != usual.most_change_gy:
        words.append(f"and {bounds.most_change_gy:g} Gy")
    if bounds.steepest_gy_per_cm != usual.steepest_gy_per_cm:
        words.append(f"and {bounds.steepest_gy_per_cm:g} Gy per cm")
    return " ".join([*words, *([f"towards {aim_gy:g} Gy"] if aim_gy is not None else [])])


def _require_sound(aim_gy: float | None, risk: float, steps: int, where: str) -> None:
    require_risk(risk)
    if steps < 1:
        raise RTDigitalTwinError(f"Nothing is found in {steps} steps.", where=where, remedy="Give 1 or more.")
    if aim_gy is not None and not (np.isfinite(aim_gy) and aim_gy > 0):
        raise RTDigitalTwinError(f"{aim_gy:g} Gy is no dose to aim at.", where=where, remedy="Give one above 0 Gy.")
