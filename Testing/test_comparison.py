"""Gamma and dose difference against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from RTDigitalTwinLib.dosimetry.comparison import GammaCriteria, dose_difference, gamma_index
from RTDigitalTwinLib.errors import GeometryError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from Testing.builders import oblique_grid

GRID = Grid((6, 10, 14), (2.0, 2.0, 2.0), (-10.0, 5.0, 0.0))
INNER = (slice(2, -2), slice(2, -2), slice(3, -3))  # beyond, a shifted dose cannot be found


def ramp(grid: Grid = GRID, gy_per_mm: float = 1.0, shift_mm: float = 0.0) -> Volume:
    """20 Gy and more, rising along x of the patient."""
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    x = grid.to_lps_mm(indices)[..., 0]
    return Volume((40 + gy_per_mm * (x - shift_mm)).astype(np.float32), grid, Quantity.DOSE_GY)


def test_a_dose_agrees_with_itself() -> None:
    found = gamma_index(ramp(), ramp())
    assert found.pass_ratio == 1 and found.left_out_ratio == 0
    assert found.judged_voxels == ramp().values.size
    assert np.nanmax(found.values) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("percent", "expected"), [(1.0, 1 / 3), (2.4, 0.8), (3.3, 1.1)])
def test_a_uniform_dose_that_is_too_high(percent: float, expected: float) -> None:
    """No distance helps: gamma is the difference over the criterion of 3 %."""
    even = Volume(np.full(GRID.shape, 50.0), GRID, Quantity.DOSE_GY)
    high = replace(even, values=even.values * (1 + percent / 100))
    assert gamma_index(even, high).values == pytest.approx(np.full(GRID.shape, expected), abs=1e-6)


def test_a_shifted_ramp() -> None:
    """1 Gy/mm, 1.5 mm off, at a criterion of 3 % of 88 Gy and 2 mm: 1.5 / sqrt(2^2 + 2.64^2)."""
    reference = ramp()
    found = gamma_index(reference, ramp(shift_mm=1.5))
    dose_gy = 0.03 * float(reference.values.max())
    expected = 1.5 / np.hypot(2.0, dose_gy)
    assert np.nanmean(found.values[INNER]) == pytest.approx(expected, abs=0.03)  # steps of 0.2 mm in the search
    assert found.pass_ratio == 1


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("distance_mm", [1.0, 2.0, 5.0])
def test_asking_for_passing_only_gives_the_same_voxels(distance_mm: float, local: bool) -> None:
    """A smooth dose against one with errors of several Gy, a part of it not known, on its grid and on another."""
    rng = np.random.default_rng(int(distance_mm))
    grid = replace(GRID, shape=(4, 6, 7))
    reference = ramp(grid)
    gy = reference.values + 4 * np.sin(np.indices(grid.shape).sum(axis=0) / 3) + rng.normal(0, 1, grid.shape)
    gy[0, :2] = np.nan
    other = replace(reference, values=gy)
    elsewhere = replace(other, grid=replace(grid, origin_mm=(-9.3, 5.4, 0.2)))
    criteria = GammaCriteria(3, distance_mm, 10, local)
    for evaluated in (other, elsewhere):
        whole = gamma_index(reference, evaluated, criteria)
        quick = gamma_index(reference, evaluated, criteria, passing_only=True)
        assert 0.1 < whole.pass_ratio < 0.99 and quick.pass_ratio == whole.pass_ratio
        assert np.array_equal(quick.values <= 1, whole.values <= 1)
        assert np.array_equal(np.isnan(quick.values), ~np.isfinite(evaluated.resampled(grid).values))
        passing = quick.values <= 1
        assert (quick.values[passing] >= whole.values[passing] - 1e-9).all()


def test_a_dose_that_is_wrong_everywhere_passes_nowhere() -> None:
    high = replace(ramp(), values=ramp().values + 30)
    quick = gamma_index(ramp(), high, passing_only=True)
    assert quick.pass_ratio == 0 and np.isinf(quick.values).all() and quick.judged_voxels == high.values.size


def test_local_criteria_are_stricter_where_dose_is_low() -> None:
    reference = ramp()
    other = replace(reference, values=reference.values + 1.5)
    whole, local = (gamma_index(reference, other, GammaCriteria(3, 0.1, 10, local)) for local in (False, True))
    assert local.pass_ratio < whole.pass_ratio


def test_the_cutoff_leaves_low_dose_out() -> None:
    gy = np.full(GRID.shape, 50.0)
    gy[:, :, :7] = 4.0
    reference = Volume(gy, GRID, Quantity.DOSE_GY)
    found = gamma_index(reference, reference)
    assert found.judged_voxels == gy.size // 2 and np.isnan(found.values[:, :, :7]).all()


def test_grids_may_differ() -> None:
    fine = Grid((16, 28, 40), (1.0, 1.0, 1.0), (-15.0, 2.0, -2.0))
    found = gamma_index(ramp(), ramp(fine))
    assert found.pass_ratio == 1 and np.nanmax(found.values) < 0.01
    turned = oblique_grid()
    plain = ramp(turned, gy_per_mm=0.1)
    assert gamma_index(plain, plain).pass_ratio == 1
    with pytest.raises(GeometryError, match="turned against each other"):
        gamma_index(ramp(replace(GRID, frame_of_reference=turned.frame_of_reference)), plain)


def test_what_is_not_known_is_left_out_and_counted() -> None:
    gy = ramp().values.copy()
    gy[:3] = np.nan
    found = gamma_index(ramp(), replace(ramp(), values=gy))
    assert found.left_out_ratio == pytest.approx(0.5) and found.pass_ratio == 1
    with pytest.raises(PatientDataError, match="no voxel in common"):
        gamma_index(ramp(), replace(ramp(), values=np.full_like(gy, np.nan)))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(PatientDataError, match="evaluated volume holds HU"):
        gamma_index(ramp(), replace(ramp(), quantity=Quantity.HU))
    with pytest.raises(PatientDataError, match="reference has no dose"):
        gamma_index(replace(ramp(), values=np.zeros(GRID.shape)), ramp())
    with pytest.raises(GeometryError, match="frames of reference differ"):
        dose_difference(ramp(), ramp(replace(GRID, frame_of_reference="1.2.3")))
    for wrong in ((0, 2, 10), (3, -1, 10), (3, 2, 100), (float("nan"), 2, 10)):
        with pytest.raises(RTDigitalTwinError, match="cannot be judged"):
            GammaCriteria(*wrong)


def test_difference() -> None:
    reference = ramp()
    gy = reference.values + 1
    gy[0, 0, 0] -= 6
    found = dose_difference(reference, replace(reference, values=gy))
    assert found.volume.quantity is Quantity.DOSE_DIFFERENCE_GY
    assert found.largest_gy == pytest.approx(-5, abs=1e-4)
    assert found.mean_gy == pytest.approx(1 - 6 / gy.size, abs=1e-4)
    assert found.mean_absolute_gy == pytest.approx(1 + 4 / gy.size, abs=1e-4)
