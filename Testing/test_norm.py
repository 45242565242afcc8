"""Instance normalisation: exact where a channel has many voxels, whatever the layout, sizes and threads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from RTDigitalTwinLib.model.norm import InstanceNorm, moments, normalise_

LAYOUTS = (torch.channels_last_3d, torch.contiguous_format)
SIZES = ((8, 48, 40, 36), (6, 5, 7, 9), (1, 16, 16, 16), (512, 2, 3, 4), (3000, 2, 2, 2))  # channels, then the field


def made(sizes: tuple[int, ...], layout: torch.memory_format) -> torch.Tensor:
    torch.manual_seed(0)
    width = sizes[0]
    values = torch.randn(1, *sizes) * torch.linspace(0.1, 3, width)[:, None, None, None]
    return (values + torch.linspace(-5, 20, width)[:, None, None, None]).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", SIZES)
def test_moments_and_norms_are_those_in_double_precision(sizes: tuple[int, ...], layout: torch.memory_format) -> None:
    values = made(sizes, layout)
    exact = values.double()
    mean, variance = moments(values)
    assert torch.allclose(mean.double(), exact.mean((0, 2, 3, 4)), rtol=1e-6, atol=1e-6)
    assert torch.allclose(variance.double(), exact.var((0, 2, 3, 4), correction=0), rtol=1e-5, atol=0)
    wanted = functional.instance_norm(exact)
    assert float((InstanceNorm()(values) - wanted).abs().max()) < 5e-5  # of values up to 70 deviations from 0
    factors = torch.linspace(0, 2, sizes[0])
    changed = values.clone(memory_format=torch.preserve_format)
    normalise_(changed, factors)
    assert float((changed - wanted * factors[:, None, None, None]).abs().max()) < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [1, 2])
def test_gradients_are_those_in_double_precision(samples: int, layout: torch.memory_format) -> None:
    values = torch.cat([made((8, 16, 20, 12), layout), made((8, 16, 20, 12), layout) ** 2][:samples])
    values = values.contiguous(memory_format=layout)
    towards = torch.randn_like(values)
    ours, exact = values.clone().requires_grad_(), values.double().contiguous().requires_grad_()
    (found,) = torch.autograd.grad(InstanceNorm()(ours), ours, towards)
    (wanted,) = torch.autograd.grad(functional.instance_norm(exact), exact, towards.double().contiguous())
    assert float((found - wanted).norm()) < 1e-5 * float(wanted.norm())


def test_sums_over_many_voxels_keep_their_digits() -> None:
    """torch's, one voxel after the other, lose two more."""
    values = (made((8, 112, 64, 96), torch.channels_last_3d) ** 2).contiguous(memory_format=torch.channels_last_3d)
    exact = values.double().var((0, 2, 3, 4), correction=0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = (moments(values)[1], torch.batch_norm_update_stats(values, None, None, 0.0)[1])
    finally:
        torch.set_num_threads(before)
    ours, torchs = (float(((one - exact) / exact).abs().max()) for one in found)
    assert ours < 1e-5 and ours < torchs / 10
