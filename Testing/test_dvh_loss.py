"""The differentiable DVH loss against the benchmark's metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.model.dvh_loss import dvh_error_gy
from RTDigitalTwinLib.patient.structure import StructureKind

SHAPE = (20, 20, 20)


def doses() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dose = 60 + 3 * torch.randn(SHAPE, generator=generator)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[4:16, 4:16, 4:16] = True
    return dose, dose + torch.randn(SHAPE, generator=generator), mask


def error_of(predicted: torch.Tensor, dose: torch.Tensor, structures: list) -> torch.Tensor:
    error = dvh_error_gy(predicted, dose, structures)
    assert error is not None
    return error


def test_a_target_counts_its_percentiles() -> None:
    dose, predicted, mask = doses()
    expected = np.mean([abs(np.percentile(predicted[mask], q) - np.percentile(dose[mask], q)) for q in (1, 5, 99)])
    assert float(error_of(predicted, dose, [(StructureKind.TARGET, mask)])) == pytest.approx(expected, abs=0.1)


def test_an_organ_counts_its_mean_and_its_hottest_voxels() -> None:
    dose, predicted, mask = doses()
    mean = abs(float(predicted[mask].mean() - dose[mask].mean()))
    top = abs(float(predicted[mask].sort().values[-5:].mean() - dose[mask].sort().values[-5:].mean()))
    found = error_of(predicted, dose, [(StructureKind.ORGAN, mask)])
    assert float(found) == pytest.approx((mean + top) / 2, rel=1e-5)


def test_descending_it_mends_the_dvh() -> None:
    dose, predicted, mask = doses()
    structures = [(StructureKind.TARGET, mask)]
    moving = predicted.clone().requires_grad_()
    before = float(error_of(predicted, dose, structures))
    for _ in range(200):
        (gradient,) = torch.autograd.grad(error_of(moving, dose, structures), moving)
        moving = (moving - 0.5 * gradient / gradient.norm()).detach().requires_grad_()
    assert float(error_of(moving.detach(), dose, structures)) < 0.2 * before
    assert torch.equal(moving[~mask], predicted[~mask])


def test_without_a_structure_there_is_no_loss() -> None:
    dose, predicted, mask = doses()
    assert dvh_error_gy(predicted, dose, []) is None
    assert dvh_error_gy(predicted, dose, [(StructureKind.ORGAN, torch.zeros_like(mask))]) is None
