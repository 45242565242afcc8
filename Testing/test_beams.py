"""Coplanar beams: geometry, attenuation, linearity, adjoint, fitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.dosimetry.beams import (
    SIX_MV,
    CoplanarBeams,
    fitted_fluence,
    prescribed_fluence,
    relative_density,
)
from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.grid import Grid
from Testing.builders import oblique_grid

GRID = Grid((20, 64, 64), (3.0, 3.0, 3.0))
NINE = tuple(range(0, 360, 40))


def water_box() -> np.ndarray:
    """150 mm of water in air."""
    hu = np.full(GRID.shape, -1000.0)
    hu[:, 7:57, 7:57] = 0
    return hu


@pytest.mark.parametrize(
    ("angle_deg", "enters"), [(0, (7, 32)), (180, (56, 32)), (90, (32, 56)), (270, (32, 7))], ids=str
)
def test_beams_enter_where_the_gantry_stands(angle_deg: float, enters: tuple[int, int]) -> None:
    """IEC 61217, head first supine: 0 from anterior (row 0), 90 from the patient's left (last column)."""
    beams = CoplanarBeams(water_box(), GRID, [angle_deg])
    plane = beams.transmission[0, 10]
    inwards = 10 * np.sign(np.array((32, 32)) - enters)
    row, column = enters + inwards  # 30 mm under the skin, behind the build-up
    near, far = plane[row, column], plane[63 - row, 63 - column]
    assert near > 1.3 * far


def test_depth_dose_in_water_is_the_formula() -> None:
    beams = CoplanarBeams(water_box(), GRID, [0])
    depth_mm = (np.arange(1, 50) + 0.5) * 3  # the skin's own voxel is blurred by the turning
    expected = (1 - np.exp(-SIX_MV.build_up_per_mm * depth_mm)) * np.exp(-SIX_MV.attenuation_per_mm * depth_mm)
    assert beams.transmission[0, 10, 8:57, 32].numpy() == pytest.approx(expected, abs=1e-3)


def test_the_beam_is_about_one_of_six_mv() -> None:
    """Near 15 mm and 67 % of a 10 x 10 cm field at 100 cm."""
    depth_mm = np.linspace(0, 150, 1501)
    dose = (1 - np.exp(-SIX_MV.build_up_per_mm * depth_mm)) * np.exp(-SIX_MV.attenuation_per_mm * depth_mm)
    assert depth_mm[dose.argmax()] == pytest.approx(17.9, abs=0.1)
    assert dose[1000] / dose.max() == pytest.approx(0.68, abs=0.005)


def test_bone_attenuates_more_and_lung_less_than_water() -> None:
    assert relative_density(torch.tensor([-1000.0, -700.0, 0.0, 1000.0])).tolist() == pytest.approx(
        [0, 0.3, 1, 1 + 1000 / 1950]
    )
    behind = []
    for hu in (-700, 0, 1000):
        ct = water_box()
        ct[:, 20:30] = np.where(ct[:, 20:30] > -1000, hu, ct[:, 20:30])
        behind.append(float(CoplanarBeams(ct, GRID, [0]).transmission[0, 10, 50, 32]))
    assert behind[0] > behind[1] > behind[2]


def test_an_open_field_is_flat_inside_and_half_at_its_edge() -> None:
    beams = CoplanarBeams(water_box(), GRID, [0])
    fluence = torch.zeros(beams.fluence_shape)
    middle = (beams.rays - 1) // 2
    fluence[0, :, middle - 10 : middle + 10] = 1.0
    profile = beams.dose(fluence)[10, 32] / beams.transmission[0, 10, 32].clamp(min=1e-3)
    assert float(profile[32]) == pytest.approx(1, abs=0.15)
    assert float(profile[41]) == pytest.approx(float(profile[32]) / 2, rel=0.05)  # rays -10 to 9, columns from 31.5


def test_dose_is_linear_and_its_adjoint_true() -> None:
    beams = CoplanarBeams(water_box(), GRID, NINE)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(beams.fluence_shape, generator=generator) for _ in range(2))
    assert torch.allclose(beams.dose(2 * a + 3 * b), 2 * beams.dose(a) + 3 * beams.dose(b), rtol=1e-4, atol=1e-3)
    weights = torch.rand(beams.shape, generator=generator)
    a.requires_grad_()
    (gradient,) = torch.autograd.grad((beams.dose(a) * weights).sum(), a)
    assert float((gradient * b).sum()) == pytest.approx(float((beams.dose(b) * weights).sum()), rel=1e-4)
    assert torch.allclose(beams.transposed(weights), gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("angle_deg", [0, 40, 90, 135])
def test_every_ray_through_a_target_sees_it(angle_deg: float) -> None:
    target = torch.zeros(GRID.shape)
    target[10, 24:40, 20:44] = 70.0
    seen = CoplanarBeams(water_box(), GRID, [angle_deg]).projection(target)[0, 10]
    rays = seen.nonzero()[:, 0]
    assert torch.all(seen[rays.min() : rays.max() + 1] == 70.0)
    turn = np.deg2rad(angle_deg)
    width = (24 - 1) * abs(np.cos(turn)) + (16 - 1) * abs(np.sin(turn))  # between the outermost voxels' middles
    assert len(rays) == pytest.approx(width + 1, abs=1.1)


def test_a_window_gives_the_same_dose() -> None:
    window = (slice(4, 16), slice(10, 50), slice(20, 60))
    whole, part = CoplanarBeams(water_box(), GRID, NINE), CoplanarBeams(water_box(), GRID, NINE, window=window)
    fluence = torch.zeros(whole.fluence_shape)
    fluence[:, 8:12, 30:60] = 1
    assert torch.allclose(part.dose(fluence[:, 4:16]), whole.dose(fluence)[window], rtol=1e-3, atol=2e-2)


def test_fitting_spares_the_organ_beside_the_target() -> None:
    z, y, x = np.indices(GRID.shape)
    target = (np.abs(z - 10) <= 4) & ((y - 32) ** 2 + (x - 26) ** 2 <= 8**2)
    organ = (np.abs(z - 10) <= 4) & ((y - 32) ** 2 + (x - 42) ** 2 <= 4**2)
    beams = CoplanarBeams(water_box(), GRID, NINE)
    prescribed = torch.from_numpy(70.0 * target).float()
    reach = torch.from_numpy(water_box() > -1000)
    start = prescribed_fluence(beams, prescribed)
    fluence = fitted_fluence(beams, start, prescribed, torch.from_numpy(organ).float(), reach, iterations=40)
    plain, fitted = (beams.dose(f).numpy() for f in (start, fluence))
    assert fluence.min() >= 0
    assert fitted[target].mean() == pytest.approx(70, abs=2)
    assert fitted[target].std() < plain[target].std()
    assert fitted[organ].mean() < 0.8 * plain[organ].mean()


def test_what_the_beams_cannot_take_is_refused() -> None:
    with pytest.raises(GeometryError, match="No beam angles"):
        CoplanarBeams(water_box(), GRID, [])
    grid = oblique_grid()
    with pytest.raises(GeometryError, match="posterior"):
        CoplanarBeams(np.zeros(grid.shape), grid, NINE)
    with pytest.raises(GeometryError, match="square pixels"):
        CoplanarBeams(np.zeros((4, 8, 8)), Grid((4, 8, 8), (2.0, 3.0, 3.0)), NINE)
