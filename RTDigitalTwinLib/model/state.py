"""What any part of a twin looks like: a belief about a state, and how the state moves and is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from RTDigitalTwinLib.patient.patient import Patient

State = TypeVar("State")
State_co = TypeVar("State_co", covariant=True)


class Belief(Protocol[State_co]):
    """What is known of a state: a value that can be sampled."""

    def sample(self, samples: int, seed: int) -> State_co:
        """Joint samples of the state; the same seed gives the same samples."""
        ...


class StateModel(Protocol[State]):
    """One modelled state of a patient: dose, set-up and anatomy, toxicity, tumour size.

    A state value holds all samples at once, so that models held by one twin share the sample index.
    """

    def initial(self, patient: Patient) -> Belief[State]:
        """The belief before anything was observed."""
        ...

    def transition(self, state: State, action: object, days: float, seed: int) -> State:
        """Every sample, ``days`` later under an action (None: go on as planned)."""
        ...

    def observe(self, state: State) -> Mapping[str, Any]:
        """What could be measured, by name with the unit in it: arrays (samples, ...), or ensembles that know bands."""
        ...
