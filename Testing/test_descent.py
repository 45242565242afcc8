"""The descent of a recalibration, on functions whose least values are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from RTDigitalTwinLib.calibration.descent import MOST_STEPS, SETTLED, descend
from RTDigitalTwinLib.errors import ModelError


def quadratic(bends: Tensor, lowest: Tensor):  # noqa: ANN201
    def function(position: Tensor) -> tuple[float, Tensor]:
        off = position - lowest
        return float(0.5 * (bends * off.square()).sum()), bends * off

    return function


BENDS, LOWEST = (torch.tensor(v).double() for v in ([1.0, 4.0, 20.0, 100.0], [1.0, -2.0, 0.5, 3.0]))


def test_a_quadratic_is_solved() -> None:
    function = quadratic(BENDS, LOWEST)
    value, gradient = function(torch.zeros(4).double())
    found = descend(function, value, gradient, 0.01, 60, 0, 1e-9)
    assert torch.allclose(found.position, LOWEST, atol=1e-3)
    assert found.reason == SETTLED and found.values[0] == value and min(found.values) < 1e-6 * value


def test_a_first_step_far_too_long_is_shortened() -> None:
    function = quadratic(BENDS, LOWEST)
    value, gradient = function(torch.zeros(4).double())
    found = descend(function, value, gradient, 1e3, 60, 20, 1e-9)
    assert torch.allclose(found.position, LOWEST, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_no_more_evaluations_than_allowed(steps: int) -> None:
    function = quadratic(BENDS, LOWEST)
    value, gradient = function(torch.zeros(4).double())
    found = descend(function, value, gradient, 1e3, steps, steps, 1e-9)
    assert len(found.values) - 1 == steps and found.reason == MOST_STEPS


def test_it_stops_where_little_is_won() -> None:
    function = quadratic(BENDS, LOWEST)
    value, gradient = function(torch.zeros(4).double())
    few = descend(function, value, gradient, 0.01, 60, 0, 0.5)
    more = descend(function, value, gradient, 0.01, 60, 12, 0.5)
    assert few.reason == SETTLED and len(few.values) < 12 <= len(more.values) - 1


def test_a_history_that_misleads_is_dropped() -> None:
    """The curved valley of Rosenbrock: directions of the history are rejected on the way."""

    def function(position: Tensor) -> tuple[float, Tensor]:
        x = (position + torch.tensor([-1.2, 1.0])).double().requires_grad_()
        value = 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient

    value, gradient = function(torch.zeros(2).double())
    found = descend(function, value, gradient, 1e-3, 300, 300, 0.0)
    assert torch.allclose(found.position, torch.tensor([2.2, 0.0]).double(), atol=0.02)


def test_values_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="no finite numbers"):
        descend(lambda position: (float("nan"), position), 1.0, torch.ones(2), 1.0, 5, 0, 0.1)
