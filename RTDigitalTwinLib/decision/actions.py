"""Actions: what one could do next in a treatment, and what it makes of the predicted dose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

MOST_SCALING_RATIO = 0.1  # beyond a tenth of the dose it is another prescription


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
        return Outcome(scaled(situation.prediction, np.float32(self.factor)))


def scaled(prediction: DoseEnsemble, factor: np.ndarray | np.float32) -> DoseEnsemble:
    """A prediction with every sample times a factor, one or (mask voxels,)."""
    return replace(
        prediction,
        deterministic_gy=(prediction.deterministic_gy * factor).astype(np.float32),
        deviations_gy=(prediction.deviations_gy * factor).astype(np.float16),
    )
