"""The simulated delivery: exact where there is an exact answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose, displacement_mm
from RTDigitalTwinLib.errors import GeometryError, PatientDataError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Volume
from Testing.builders import GRIDS, small_patient


@pytest.fixture(scope="module", params=GRIDS)
def patient(request: pytest.FixtureRequest) -> Patient:
    return small_patient(GRIDS[request.param]())


@pytest.fixture(scope="module")
def axial() -> Patient:
    return small_patient()


def planned(patient: Patient) -> np.ndarray:
    assert patient.plan.dose is not None
    return patient.plan.dose.values


def test_no_change_is_the_plan_bit_for_bit(patient: Patient) -> None:
    assert np.array_equal(delivered_dose(patient, Change()).values, planned(patient))


def test_a_shift_by_whole_voxels_is_exact(patient: Patient) -> None:
    """Two voxels along columns, one against slices, wherever the axes point."""
    grid = patient.ct.grid
    shift = grid.to_lps_mm((-1, 0, 2)) - grid.to_lps_mm((0, 0, 0))
    got = delivered_dose(patient, Change(shift_mm=tuple(shift))).values
    expected = np.zeros_like(planned(patient))
    expected[1:, :, :-2] = planned(patient)[:-1, :, 2:]
    assert np.array_equal(got, np.where(patient.dose_mask.mask, expected, 0))


def test_a_shift_reads_the_dose_where_the_tissue_is(axial: Patient) -> None:
    """In a dose that rises by 0.1 Gy per mm, tissue 3 mm further along gets 0.3 Gy more."""
    grid = axial.ct.grid
    x = grid.to_lps_mm(np.moveaxis(np.indices(grid.shape), 0, -1))[..., 0]
    assert axial.plan.dose is not None
    rising = Volume((20 + 0.1 * x).astype(np.float32), grid, axial.plan.dose.quantity)
    moving = replace(axial, plans=(replace(axial.plan, dose=rising),))
    got = delivered_dose(moving, Change(shift_mm=(3.0, 0.0, 0.0))).values
    inner = axial.dose_mask.mask & (x < x.max() - 4)
    assert np.abs(got - rising.values - 0.3)[inner].max() < 1e-5


def test_output_error_scales(axial: Patient) -> None:
    got = delivered_dose(axial, Change(output_error_ratio=0.05)).values
    assert np.allclose(got, 1.05 * planned(axial), rtol=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_shrinking_parotids_lose_the_share_asked_for(patient: Patient, ratio: float) -> None:
    """The determinant of the map inside a gland is the share of volume, and so of mass, that is left."""
    grid = patient.ct.grid
    moved = displacement_mm(patient, Change(parotid_shrinkage_ratio=ratio))
    gland = patient.structures["Parotid_L"]
    inner = np.zeros(grid.shape, bool)
    mask = gland.mask
    inner[1:-1, 1:-1, 1:-1] = mask[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    slopes = np.stack(list(np.gradient(moved, *reversed(grid.spacing_mm), axis=(0, 1, 2))), axis=-1)[..., ::-1]
    # From derivatives along (columns, rows, slices) to those along LPS.
    jacobian = np.eye(3) + slopes @ np.reshape(grid.direction, (3, 3)).T
    left = np.linalg.det(jacobian)[inner]
    assert inner.sum() > 20
    # 0.02: the other gland is 84 mm away, but its Gaussian reaches everywhere.
    assert np.abs(left - (1 - ratio)).max() < 0.02
    centre = np.round(grid.to_index(gland.centroid_mm)).astype(int)
    assert np.linalg.norm(moved[tuple(centre)]) < 0.3  # the centroid stays, to half a voxel times the shrinkage


def test_shrinkage_leaves_distant_tissue(axial: Patient) -> None:
    moved = np.linalg.norm(displacement_mm(axial, Change(parotid_shrinkage_ratio=0.3)), axis=-1)
    assert moved[axial.structures["Parotid_L"].mask].max() > 1.0
    assert moved[axial.structures["SpinalCord"].mask].max() < 0.2


def test_weight_loss_moves_the_skin_inwards_and_the_middle_little(patient: Patient) -> None:
    moved = displacement_mm(patient, Change(weight_loss_mm=6.0))
    grid = patient.ct.grid
    middle = tuple(n // 2 for n in grid.shape)
    assert np.linalg.norm(moved[middle]) < 0.5
    body = patient.dose_mask.mask
    towards = grid.to_lps_mm((np.array(grid.shape) - 1) / 2) - grid.to_lps_mm(
        np.moveaxis(np.indices(grid.shape), 0, -1)
    )
    size = np.linalg.norm(moved, axis=-1)
    assert size.max() <= 6.0 + 1e-9
    assert size[body].max() > 5.9  # at the skin
    skin = body & (size > 5)
    # A long body cut by an oblique grid: at its corners inwards is not towards the grid's middle.
    assert (np.sum(moved * towards, axis=-1)[skin] > 0).mean() > 0.98
    assert not moved[patient.ct.values < -500].any()


def test_changes_add_and_are_told(axial: Patient) -> None:
    change = Change((0.0, 0.0, 5.0), 0.2, 4.0, -0.03)
    assert change.words == "simulated: shift 0, 0, 5 mm, parotids 20% smaller, skin 4 mm inwards, output -3.0%"
    apart = displacement_mm(axial, Change(parotid_shrinkage_ratio=0.2)) + displacement_mm(
        axial, Change(weight_loss_mm=4.0)
    )
    assert np.allclose(displacement_mm(axial, change), apart + [0, 0, 5])


def test_impossible_changes_and_no_dose_are_refused() -> None:
    for wrong in ({"parotid_shrinkage_ratio": 1.0}, {"output_error_ratio": -1.0}, {"shift_mm": (np.nan, 0, 0)}):
        with pytest.raises(GeometryError):
            Change(**wrong)
    with pytest.raises(PatientDataError, match="no reference dose"):
        delivered_dose(small_patient(with_dose=False), Change())
