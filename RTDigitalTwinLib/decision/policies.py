"""Policies: when, in a course, a twin looks again at what it believes, and how it weighs what it is unsure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from RTDigitalTwinLib.calibration.watch import Watch
from RTDigitalTwinLib.decision.actions import Action, ActionKind
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.words import counted

POLICIES = ("static", "scheduled", "triggered")
UNCERTAINTY_WEIGHT = 1.0  # of the uncertainty-penalised policies


class Policy(Protocol):
    """When to recalibrate.

    Attributes
    ----------
    name : in words.
    uncertainty_weight : of the penalty on uncertainty when actions are ranked; 0 is risk-neutral.
    """

    @property
    def name(self) -> str: ...

    @property
    def uncertainty_weight(self) -> float: ...

    def due(self, fraction: int, watch: Watch) -> str | None:
        """Why to recalibrate after this fraction; None where not to."""
        ...


@dataclass(frozen=True)
class Static:
    """Never recalibrate: the belief of the first day is kept."""

    uncertainty_weight: float = 0.0

    @property
    def name(self) -> str:
        return _named("static", self.uncertainty_weight)

    def due(self, fraction: int, watch: Watch) -> str | None:
        return None


@dataclass(frozen=True)
class Scheduled:
    """Recalibrate after every so many fractions."""

    uncertainty_weight: float = 0.0
    every: int = 5

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RTDigitalTwinError(f"Nothing can be done after every {counted(self.every, 'fraction')}.")

    @property
    def name(self) -> str:
        return _named("scheduled", self.uncertainty_weight)

    def due(self, fraction: int, watch: Watch) -> str | None:
        return f"every {counted(self.every, 'fraction')}" if fraction % self.every == 0 else None


@dataclass(frozen=True)
class Triggered:
    """Recalibrate when the readings are no longer those expected, and once before, to know the patient.

    Attributes
    ----------
    first : fraction after which the twin learns from what was read so far, alarm or not: a week.
    """

    uncertainty_weight: float = 0.0
    first: int = 5

    @property
    def name(self) -> str:
        return _named("triggered", self.uncertainty_weight)

    def due(self, fraction: int, watch: Watch) -> str | None:
        if watch.alarm:
            return "readings are not as expected"
        return f"baseline of {counted(self.first, 'fraction')}" if fraction == self.first else None


def policy_named(name: str, uncertainty_weight: float = 0.0, every: int = 5) -> Policy:
    """One of ``POLICIES``. Raises RTDigitalTwinError for another name, or a weight that is none."""
    if not (np.isfinite(uncertainty_weight) and uncertainty_weight >= 0):
        raise RTDigitalTwinError(f"The weight of uncertainty must be 0 or more, not {uncertainty_weight}.")
    if name == "static":
        return Static(uncertainty_weight)
    if name == "scheduled":
        return Scheduled(uncertainty_weight, every)
    if name == "triggered":
        return Triggered(uncertainty_weight)
    raise RTDigitalTwinError(f"There is no policy {name!r}.", remedy=f"Use {', '.join(POLICIES)}.")


def _named(name: str, weight: float) -> str:
    return f"{name}, uncertainty-penalised" if weight else f"{name}, risk-neutral"


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided: an action, or none where nothing is acceptable; and why."""

    action: Action | None
    reasons: tuple[str, ...] = ()


class Decider(Protocol):
    """Ranks actions. Predictions are of the whole course's dose: samples, or one dose that is known."""

    def require(self, prediction: DoseEnsemble) -> None:
        """Raise RTDigitalTwinError where such predictions cannot be decided on."""
        ...

    def decide(self, prediction: DoseEnsemble, actions: Sequence[Action], uncertainty_weight: float) -> Decision: ...

    def utility(self, prediction: DoseEnsemble, kind: ActionKind) -> float:
        """What a dose that is known is worth, less the effort of such an action; higher is better."""
        ...

    def violated(self, prediction: DoseEnsemble) -> tuple[tuple[str, bool], ...]:
        """Every constraint by its words, and whether a dose that is known violates it."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Plain values, by which two deciders are told apart."""
        ...
