"""Deformed anatomies: the dose goes along, nothing folds, and blocks keep the doses of their part of the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.model.augmentation import Augmentation, Example
from RTDigitalTwinLib.model.crop import MARGIN_VOXELS, SIZE_MULTIPLE
from RTDigitalTwinLib.model.deformation import Deformation, resampled
from RTDigitalTwinLib.model.features import CHANNELS, FITTED_BEAMS
from RTDigitalTwinLib.model.training_data import TrainingCase
from RTDigitalTwinLib.patient.patient import Patient

FITTED, TARGET = CHANNELS.index(FITTED_BEAMS), CHANNELS.index("PTV_7000")
SOME = Deformation(1.15, 0.95, 7)


@pytest.fixture(scope="module")
def example(sample_folder: Path) -> Example:
    return TrainingCase.of(Patient.load(sample_folder)).example()


def inside(example: Example) -> torch.Tensor:
    return example.values[example.mask[0]]


def test_resampling_is_linear_and_knows_the_outside() -> None:
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in (4, 5, 6)), indexing="ij")
    values = torch.stack([z + 10 * y + 100 * x, torch.ones_like(z)], -1)
    at = [torch.tensor([1.25, 3.0, -1.0, 3.5]), torch.tensor([2.5, 4.0, 2.0, 0.0]), torch.tensor([0.75, 5.0, 2.0, 0.0])]
    found = resampled(values, at, torch.tensor([-7.0, 3.0]))
    assert found[0].tolist() == pytest.approx([1.25 + 25 + 75, 1.0])
    assert found[1].tolist() == pytest.approx([3 + 40 + 500, 1.0])
    assert found[2].tolist() == pytest.approx([-7.0, 3.0])
    assert found[3].tolist() == pytest.approx([(3 - 7) / 2, 2.0])


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_folds(seed: int, block: int) -> None:
    """Along every direction positions go up, at a pace near the ratio."""
    deformation = Deformation(1.2, 1.05, seed)
    ratios = deformation.ratios(0.9)
    assert ratios == pytest.approx((1.2, 0.9 * 1.05, 0.9 / 1.05))
    high = [30 / block, 40 / block, 40 / block]
    for axis, positions in enumerate(deformation.positions([-h for h in high], high, ratios, block)):
        paces = positions.diff(dim=axis) / ratios[axis]
        assert paces.min() > 0.4 and paces.max() < 1.8
        assert float(paces.mean()) == pytest.approx(1, abs=0.1) and paces.std() > 0.005


def test_the_dose_goes_along_with_the_anatomy(example: Example) -> None:
    deformed = Augmentation(deformation=SOME, turns=2, pixel_ratio=1.1)(example)
    volume = 1.15 * 1.1**2
    assert len(inside(deformed)) * volume == pytest.approx(len(inside(example)), rel=0.1)
    assert deformed.values[..., TARGET].sum() * volume == pytest.approx(
        float(example.values[..., TARGET].sum()), rel=0.15
    )
    for ratio in (0.1, 0.5, 0.9):
        was, now = (np.quantile(e.values[..., -2][e.values[..., TARGET] >= 0.5], ratio) for e in (example, deformed))
        assert now == pytest.approx(was, abs=2), ratio
    was, now = (np.corrcoef(inside(e)[:, -2], inside(e)[:, FITTED])[0, 1] for e in (example, deformed))
    assert now == pytest.approx(was, abs=0.02)
    other = Augmentation(deformation=Deformation(1.15, 0.95, 8), turns=2, pixel_ratio=1.1)(example)
    assert other.values.shape != deformed.values.shape or (other.values - deformed.values).abs().max() > 0.5
    assert torch.equal(Augmentation(deformation=SOME, turns=2, pixel_ratio=1.1)(example).values, deformed.values)


@pytest.mark.parametrize("block", [1, 2])
def test_an_even_dose_stays_even_up_to_the_masks_edge(example: Example, block: int) -> None:
    even = Example(example.names, example.values.clone())
    even.values[..., -2] = 20 * even.values[..., -1]
    for augmentation in (Augmentation(deformation=SOME), Augmentation(turns=3, pixel_ratio=0.9)):
        deformed = augmentation(even.in_blocks(block))
        assert torch.allclose(deformed.dose_gy[deformed.share > 0], torch.tensor(20.0), atol=1e-2)
        assert not deformed.dose_gy[deformed.share == 0].any()
        shares = deformed.share.unique().tolist()
        assert (set(shares) == {0.0, 1.0}) == (block == 1) and min(shares) == 0 and max(shares) == pytest.approx(1)


@pytest.mark.parametrize("block", [1, 2])
def test_the_crop_is_the_smallest_with_the_mask(example: Example, block: int) -> None:
    margin, multiple = MARGIN_VOXELS // block, SIZE_MULTIPLE // block
    for augmentation in (Augmentation(deformation=SOME, place=(0.0, 1.0, 0.3)), Augmentation(place=(0.0, 1.0, 0.3))):
        deformed = augmentation(example.in_blocks(block))
        voxels = (deformed.share[0] > 0).nonzero()
        sizes = torch.tensor(deformed.share.shape[1:])
        before, after = voxels.amin(0), sizes - 1 - voxels.amax(0)
        assert all(size % multiple == 0 for size in sizes)
        assert before[0] == margin and after[1] == margin and before.min() >= margin and after.min() >= margin
        assert torch.all(before + after < multiple + 2 * margin)


def test_blocks_may_begin_anywhere(example: Example) -> None:
    shifted = example.in_blocks(2, first=(1, 0, 1))
    assert all(size % (SIZE_MULTIPLE // 2) == 0 for size in shifted.values.shape[:3])
    assert float(shifted.share.sum()) * 8 == pytest.approx(float(example.mask.sum()))
    z, y, x = (shifted.share[0] == 1).nonzero()[5].tolist()
    part = np.s_[2 * z - 1 : 2 * z + 1, 2 * y : 2 * y + 2, 2 * x - 1 : 2 * x + 1]
    assert torch.allclose(shifted.values[z, y, x, :-1], example.values[part][..., :-1].mean((0, 1, 2)), atol=1e-5)
    plain = example.in_blocks(2)
    assert shifted.share.shape != plain.share.shape or not torch.equal(shifted.share, plain.share)


def test_draws_follow_the_ratio() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = [Augmentation.draw(generator, 0.5, 0.5, 1.25, 0.5, 0.7) for _ in range(400)]
    deformations = [a.deformation for a in drawn if a.deformation is not None]
    assert len(deformations) / 400 == pytest.approx(0.7, abs=0.06)
    assert (
        0.8 <= min(d.slice_ratio for d in deformations) < 0.85 < 1.2 < max(d.slice_ratio for d in deformations) <= 1.25
    )
    assert len({d.seed for d in deformations}) == len(deformations)
    assert all((a.pixel_ratio == 1) == (not a.turns and a.deformation is None) for a in drawn)
    assert all(Augmentation.draw(generator, 0.5, 0.5).deformation is None for _ in range(50))
