"""Forward in time: any state model, from its belief to the days ahead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from numpy.typing import NDArray

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.state import Belief, StateModel
from RTDigitalTwinLib.solver.ensemble import Ensemble, Forecast

State = TypeVar("State")


def forecast(
    model: StateModel[State],
    belief: Belief[State],
    days: Sequence[float],
    samples: int,
    seed: int = 0,
    actions: Sequence[object] | None = None,
) -> Forecast:
    """Observables of a state at each of ``days`` (the first is now), under one action an interval (None: as planned).

    Raises RTDigitalTwinError where days do not increase or actions do not match the intervals.
    """
    if not days or any(b <= a for a, b in pairwise(days)):
        raise RTDigitalTwinError("The days of a forecast must increase.")
    if actions is None:
        actions = [None] * (len(days) - 1)
    if len(actions) != len(days) - 1:
        raise RTDigitalTwinError(f"{len(days)} days need {len(days) - 1} actions, not {len(actions)}.")
    state = belief.sample(samples, seed)
    seen = [model.observe(state)]
    for step, ((before, after), action) in enumerate(zip(pairwise(days), actions, strict=True), start=1):
        state = model.transition(state, action, after - before, seed + step)
        seen.append(model.observe(state))
    return Forecast(tuple(days), {name: tuple(_ensemble(s[name]) for s in seen) for name in seen[0]})


def _ensemble(seen: NDArray | Ensemble) -> Ensemble:
    return seen if isinstance(seen, Ensemble) else Ensemble(seen)
