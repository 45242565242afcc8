"""Augmentation: moved patients are the same patients, seen otherwise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.model.augmentation import Augmentation, Example
from RTDigitalTwinLib.model.crop import MARGIN_VOXELS, SIZE_MULTIPLE
from RTDigitalTwinLib.model.features import CHANNELS, FITTED_BEAMS
from RTDigitalTwinLib.model.training_data import TrainingCase
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import StructureKind

LEFT, RIGHT, FITTED = (CHANNELS.index(name) for name in ("Parotid_L", "Parotid_R", FITTED_BEAMS))


@pytest.fixture(scope="module")
def example(sample_folder: Path) -> Example:
    return TrainingCase.of(Patient.load(sample_folder)).example()


def inside(example: Example) -> torch.Tensor:
    """(voxels, names + 2) at the mask's voxels."""
    return example.values[example.mask[0]]


def test_unmoved_is_unchanged(example: Example) -> None:
    assert torch.equal(Augmentation()(example).values, example.values)


def test_mirroring_swaps_the_parotids(example: Example) -> None:
    mirrored = Augmentation(mirrored=True)(example)
    plain = example.values.flip(2)
    assert torch.equal(mirrored.values[..., LEFT], plain[..., RIGHT]) and plain[..., RIGHT].any()
    assert torch.equal(mirrored.values[..., RIGHT], plain[..., LEFT])
    others = [i for i in range(plain.shape[-1]) if i not in (LEFT, RIGHT)]
    assert torch.equal(mirrored.values[..., others], plain[..., others])
    assert torch.equal(Augmentation(mirrored=True)(mirrored).values, example.values)


def test_upending_turns_the_slices_round(example: Example) -> None:
    upended = Augmentation(upended=True)(example)
    assert torch.equal(upended.values, example.values.flip(0)) and not torch.equal(upended.values, example.values)
    assert torch.equal(Augmentation(upended=True)(upended).values, example.values)
    drawn = [Augmentation.draw(torch.Generator().manual_seed(i), 0.5, 0.5, 1.25, 0.3) for i in range(400)]
    assert np.mean([a.upended for a in drawn]) == pytest.approx(0.3, abs=0.07)
    assert not any(Augmentation.draw(torch.Generator().manual_seed(i), 0.5, 0.5).upended for i in range(50))


@pytest.mark.parametrize(("turns", "pixel_ratio"), [(1, 1.0), (4, 1.2)])
def test_an_even_dose_stays_even_up_to_the_masks_edge(example: Example, turns: int, pixel_ratio: float) -> None:
    """Also in blocks: what is interpolated across the edge would teach doses that are too low there."""
    even = Example(example.names, example.values.clone())
    even.values[..., -2] = 20 * even.values[..., -1]
    moved = Augmentation(turns=turns, pixel_ratio=pixel_ratio)(even)
    assert set(moved.share.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(moved.dose_gy[moved.mask], torch.tensor(20.0), atol=1e-3)
    seen = moved.in_blocks(2)
    assert torch.allclose(seen.dose_gy[seen.share > 0], torch.tensor(20.0), atol=1e-3)
    assert ((seen.share > 0) & (seen.share < 1)).any()


def test_the_dvh_loss_sees_every_structure(example: Example) -> None:
    masks = Augmentation(turns=2)(example).structure_masks()
    assert Counter(kind for kind, _ in masks) == {StructureKind.ORGAN: 7, StructureKind.TARGET: 3}
    for (_, turned), (_, plain) in zip(masks, example.structure_masks(), strict=True):
        assert turned.sum().item() == pytest.approx(plain.sum().item(), rel=0.06)  # thin ones lose corners


@pytest.mark.parametrize("place", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.9, 0.4)])
def test_moved_patients_keep_every_voxel(example: Example, place: tuple[float, float, float]) -> None:
    moved = Augmentation(place=place)(example)
    assert torch.equal(inside(moved), inside(example))
    voxels = moved.mask[0].nonzero()
    sizes = torch.tensor(moved.mask.shape[1:])
    assert all(size % SIZE_MULTIPLE == 0 for size in sizes)
    slack_before, slack_after = voxels.amin(0), sizes - 1 - voxels.amax(0)
    assert slack_before.min() >= MARGIN_VOXELS and slack_after.min() >= MARGIN_VOXELS
    if place[0] in (0.0, 1.0):
        assert torch.all((slack_after if place[0] else slack_before) == MARGIN_VOXELS)


def test_a_whole_turn_changes_nothing(example: Example) -> None:
    # 9 turns of 40 degrees are a whole one: nothing but the rounding of its interpolation is left.
    whole = Augmentation(turns=9, place=(0.5, 0.5, 0.5))(example)
    assert torch.allclose(inside(whole), inside(example), atol=2e-3)


@pytest.mark.parametrize("turns", range(1, 9))
def test_turned_patients_keep_their_dose(example: Example, turns: int) -> None:
    turned = Augmentation(turns=turns, place=(0.0, 0.0, 0.0))(example)
    plain_dose, turned_dose = inside(example)[:, -2], inside(turned)[:, -2]
    assert len(turned_dose) == pytest.approx(len(plain_dose), rel=0.005)
    for ratio in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(turned_dose, ratio) == pytest.approx(np.quantile(plain_dose, ratio), abs=0.6), ratio
    # Beams and dose turn together: they agree as well as before.
    for seen in (example, turned):
        dose, beams = inside(seen)[:, -2], inside(seen)[:, FITTED]
        seen_r = np.corrcoef(dose, beams)[0, 1]
        plain_r = np.corrcoef(inside(example)[:, -2], inside(example)[:, FITTED])[0, 1]
        assert seen_r == pytest.approx(plain_r, abs=0.01)
    # A marked voxel lands where the turn takes it, from left to posterior and so on.
    marked = Example(example.names, example.values.clone())
    marked.values[..., FITTED] = 0
    middle = (torch.tensor(example.mask.shape[1:]) - 1) / 2
    at = (middle + torch.tensor([0.0, 6.0, 14.0])).int()
    marked.values[at[0], at[1], at[2], FITTED] = 1
    seen_at = Augmentation(turns=turns, place=(0.5, 0.5, 0.5))(marked)
    still = Augmentation(turns=turns, place=(0.5, 0.5, 0.5))(example)
    weights = seen_at.values[..., FITTED].clamp(min=0)
    found = torch.stack([(weights * i).sum() / weights.sum() for i in torch.meshgrid(
        *(torch.arange(n) for n in weights.shape), indexing="ij")])  # fmt: skip
    angle = np.deg2rad(40 * turns)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    voxels = (example.mask[0].nonzero() - middle)[:, 1:].numpy() @ turn.T
    low, target = voxels.min(axis=0), ((at - middle)[1:].numpy()) @ turn.T
    mask_low = still.mask[0].nonzero()[:, 1:].numpy().min(axis=0)
    assert found[1:].numpy() - mask_low == pytest.approx(target - low, abs=1.2)
    # There and back again, within what interpolating twice takes from the edges.
    back = Augmentation(turns=9 - turns, place=(0.5, 0.5, 0.5))(turned)
    assert inside(back)[:, -2].mean().item() == pytest.approx(plain_dose.mean().item(), abs=0.2)


@pytest.mark.parametrize(("turns", "pixel_ratio"), [(0, 0.8), (0, 1.25), (4, 1.25), (7, 0.8)])
def test_in_other_pixels_it_is_the_same_patient(example: Example, turns: int, pixel_ratio: float) -> None:
    """Volumes, doses and distances to the targets stay; the number of pixels does not."""
    seen = Augmentation(turns=turns, pixel_ratio=pixel_ratio, place=(0.0, 0.0, 0.0))(example)
    assert len(inside(seen)) * pixel_ratio**2 == pytest.approx(len(inside(example)), rel=0.01)
    distance = CHANNELS.index("Distance PTV_7000")
    for channel, most in ((-2, 0.8), (distance, 0.02), (FITTED, 0.02)):
        for ratio in (0.1, 0.5, 0.9):
            was, now = (np.quantile(inside(e)[:, channel], ratio) for e in (example, seen))
            assert now == pytest.approx(was, abs=most), (channel, ratio)
    assert all(size % SIZE_MULTIPLE == 0 for size in seen.mask.shape[1:])
    extents = [e.mask[0].nonzero().float().amax(0) - e.mask[0].nonzero().float().amin(0) for e in (example, seen)]
    assert extents[0][0] == extents[1][0]
    if not turns:
        assert (extents[1][1:] * pixel_ratio).tolist() == pytest.approx(extents[0][1:].tolist(), abs=2)


def test_beyond_the_crop_is_air_far_from_targets(example: Example) -> None:
    one_voxel = example.values[:16, :16, :16].clone()
    one_voxel[..., -1] = 0
    one_voxel[8, 8, 8, -1] = 1
    corner = Augmentation(turns=1, place=(0.0, 0.0, 0.0))(Example(example.names, one_voxel))
    far = corner.values[0, -1, -1]
    assert far[0] == -1 and far[FITTED] == 0 and far[-1] == 0
    assert torch.all(far[[i for i, n in enumerate(example.names) if n.startswith("Distance")]] == 2)


def test_draws_follow_the_seed_and_the_ratio() -> None:
    def drawn(seed: int) -> list[Augmentation]:
        generator = torch.Generator().manual_seed(seed)
        return [Augmentation.draw(generator, 0.5, 0.5) for _ in range(800)]

    assert drawn(3) == drawn(3) != drawn(4)
    turns = Counter(a.turns for a in drawn(3))
    assert 0.45 < turns[0] / 800 < 0.55 and set(turns) == set(range(9))
    assert 0.45 < sum(a.mirrored for a in drawn(3)) / 800 < 0.55
    generator = torch.Generator().manual_seed(0)
    assert all(Augmentation.draw(generator, 0.0, 0.0).turns == 0 for _ in range(50))
    several = [Augmentation.draw(generator, 0.5, 0.5, pixel_range=1.25) for _ in range(400)]
    assert all((a.pixel_ratio == 1) == (a.turns == 0) for a in several)
    ratios = np.log([a.pixel_ratio for a in several if a.turns]) / np.log(1.25)
    assert ratios.min() < -0.9 and ratios.max() > 0.9 and abs(ratios.mean()) < 0.15 and abs(ratios).max() <= 1
