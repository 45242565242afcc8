"""Minimising a smooth function of very many numbers in few evaluations: limited-memory BFGS.

Torch has one, whose first use imports its compiler (seconds).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, add, zeros_like

from RTDigitalTwinLib.errors import ModelError
from RTDigitalTwinLib.progress import Progress, silent

STEPS_A_LINE = 4  # evaluations of one line search, at most
LINES_IN_VAIN = 3  # one after the other, until it gives up
HISTORY = 5  # pairs of vectors
LEAST_SHARE = 1e-4  # of the fall that the slope promises: the condition of Armijo
LEAST_BEND = 1e-6  # along a step, for its pair to be kept: less is rounding
Pair = tuple[Tensor, Tensor, float]  # a step, what it changed of the gradient, and their product
MOST_STEPS, SETTLED = "the most steps were taken", "the objective no longer falls"


@dataclass(frozen=True)
class Descent:
    """What was found.

    Attributes
    ----------
    position : of the least value.
    values : before the first step and after each evaluation.
    reason : why it stopped.
    """

    position: Tensor
    values: tuple[float, ...]
    reason: str


def descend(
    function: Callable[[Tensor], tuple[float, Tensor]],
    value: float,
    gradient: Tensor,
    first: float,
    most_steps: int,
    fewest_steps: int,
    tolerance_ratio: float,
    progress: Progress = silent,
) -> Descent:
    """Minimise from the origin on, by limited-memory BFGS with a backtracking line search.

    Parameters
    ----------
    function : value and gradient (n,) at a position (n,).
    value, gradient : at the origin.
    first : length of the first step, in units of the gradient.
    most_steps, fewest_steps : evaluations.
    tolerance_ratio : it stops when a line search lessens the value by no more than this share.

    Raises ModelError where the function gives no finite number.
    """
    position, values = zeros_like(gradient), [value]
    history: deque[Pair] = deque(maxlen=HISTORY)
    in_vain = 0
    while len(values) - 1 < most_steps:
        direction = downhill(gradient, history, first)
        slope = float(direction @ gradient)
        if slope >= 0:
            history.clear()
            direction = downhill(gradient, history, first)
            slope = float(direction @ gradient)
        before, length, went = value, 1.0, False
        for _ in range(min(STEPS_A_LINE, most_steps + 1 - len(values))):
            there = add(position, direction, alpha=length)
            found, gradient_there = function(there)
            if not np.isfinite(found):
                raise ModelError("The decoder's fit gives no finite numbers.", remedy="Look at the observations.")
            values.append(found)
            progress((len(values) - 1) / (most_steps + 1), f"decoder step {len(values) - 1}")
            if found <= before + LEAST_SHARE * length * slope:
                step, bend = there - position, gradient_there - gradient
                product = float(step @ bend)
                if product > LEAST_BEND * float(step @ step):
                    history.append((step, bend, product))
                position, value, gradient, went = there, found, gradient_there, True
                break
            # To the bottom of the parabola through both values and the slope, within bounds.
            bottom = -slope * length**2 / (2 * (found - before - slope * length))
            length = min(max(bottom, 0.1 * length), 0.5 * length)
        if went:
            in_vain = 0
            if len(values) - 1 >= fewest_steps and before - value <= tolerance_ratio * before:
                return Descent(position, tuple(values), SETTLED)
        elif len(values) - 1 < most_steps:
            in_vain += 1
            if in_vain == LINES_IN_VAIN:
                return Descent(position, tuple(values), SETTLED)
            # What was learned of the bends may mislead: steepest descent is tried before it gives up, ever shorter.
            first = first if history else first * length
            history.clear()
    return Descent(position, tuple(values), MOST_STEPS)


def downhill(gradient: Tensor, history: Sequence[Pair], first: float) -> Tensor:
    """The direction of limited-memory BFGS (Nocedal and Wright 2006, algorithm 7.4); steepest descent at first."""
    direction, shares = -gradient, []
    for step, bend, product in reversed(history):
        shares.append(float(step @ direction) / product)
        direction.add_(bend, alpha=-shares[-1])
    if history:
        _, bend, product = history[-1]
        first = product / float(bend @ bend)
    direction.mul_(first)
    for (step, bend, product), share in zip(history, reversed(shares), strict=True):
        direction.add_(step, alpha=share - float(bend @ direction) / product)
    return direction
