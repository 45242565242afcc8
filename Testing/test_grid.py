"""Geometry: grids, volumes and structures."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.grid import Grid, bounding_box
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume, to_sitk
from Testing.builders import small_patient

# A rotation of 30 degrees about z, columns being the axes of columns, rows and slices.
C, S = np.cos(np.pi / 6), np.sin(np.pi / 6)
OBLIQUE = Grid((4, 5, 6), (2.0, 3.0, 4.0), (10.0, -20.0, 30.0), (C, -S, 0, S, C, 0, 0, 0, 1))


def test_positions_agree_with_simpleitk() -> None:
    image = to_sitk(np.zeros(OBLIQUE.shape), OBLIQUE)
    expected = image.TransformIndexToPhysicalPoint((5, 2, 1))  # (column, row, slice)
    assert OBLIQUE.to_lps_mm((1, 2, 5)) == pytest.approx(expected, abs=1e-9)


def test_positions_and_indices_are_inverse() -> None:
    indices = np.random.default_rng(0).uniform(-3, 9, (50, 3))
    assert OBLIQUE.to_index(OBLIQUE.to_lps_mm(indices)) == pytest.approx(indices, abs=1e-9)


def test_a_cropped_grid_keeps_positions() -> None:
    cropped = OBLIQUE.cropped((slice(1, 4), slice(2, 5), slice(0, 2)))
    assert cropped.shape == (3, 3, 2)
    assert cropped.to_lps_mm((0, 0, 0)) == pytest.approx(OBLIQUE.to_lps_mm((1, 2, 0)), abs=1e-9)


def test_a_box_outside_the_grid_is_refused() -> None:
    with pytest.raises(GeometryError, match="does not lie inside"):
        OBLIQUE.cropped((slice(0, 5), slice(0, 5), slice(0, 6)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (0, 5, 6)}, "positive sizes"),
        ({"spacing_mm": (1, 1, -1)}, "positive numbers"),
        ({"spacing_mm": (1, 1, np.nan)}, "positive numbers"),
        ({"origin_mm": (0, np.inf, 0)}, "finite"),
        ({"direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)}, "left-handed"),
        ({"direction": (1, 0.1, 0, 0, 1, 0, 0, 0, 1)}, "sheared"),
    ],
)
def test_impossible_grids_are_refused(change: dict, message: str) -> None:
    good: dict = {"shape": (4, 5, 6), "spacing_mm": (1, 1, 1)}
    with pytest.raises(GeometryError, match=message):
        Grid(**{**good, **change})


def test_grids_differ_by_position_and_frame() -> None:
    grid = Grid((4, 5, 6), (1, 1, 1))
    assert grid.same_as(Grid((4, 5, 6), (1, 1, 1), (1e-4, 0, 0)))
    assert not grid.same_as(Grid((4, 5, 6), (1, 1, 1), (0.01, 0, 0)))
    assert not grid.same_as(Grid((4, 5, 6), (1, 1, 1), frame_of_reference="1.2.3"))


def test_resampling_reproduces_a_linear_field_and_is_undefined_outside() -> None:
    source = Grid((10, 10, 10), (2, 2, 2))
    positions = source.to_lps_mm(np.argwhere(np.ones(source.shape))).reshape(*source.shape, 3)
    field = Volume((positions @ [0.5, -1.0, 2.0]).astype(np.float32), source, Quantity.DOSE_GY)
    target = Grid((6, 6, 6), (3, 3, 3), (1.5, 1.5, 4.5))
    moved = field.resampled(target)
    expected = (target.to_lps_mm(np.argwhere(np.ones(target.shape))) @ [0.5, -1.0, 2.0]).reshape(target.shape)
    inside = ~np.isnan(moved.values)
    assert np.abs(moved.values - expected)[inside].max() < 1e-4  # float32 of values up to 50
    # the last slice lies at 19.5 mm, beyond the source's last centre at 18 mm and its edge at 19 mm
    assert np.isnan(moved.values[-1]).all() and inside[0].all()


def test_resampling_between_frames_is_refused() -> None:
    volume = Volume(np.zeros((2, 2, 2)), Grid((2, 2, 2), (1, 1, 1), frame_of_reference="a"), Quantity.HU)
    with pytest.raises(GeometryError, match="registration"):
        volume.resampled(Grid((2, 2, 3), (1, 1, 1), frame_of_reference="b"))


def test_a_volume_cannot_be_changed() -> None:
    volume = Volume(np.zeros((2, 2, 2)), Grid((2, 2, 2), (1, 1, 1)), Quantity.HU)
    with pytest.raises(ValueError, match="read-only"):
        volume.values[0, 0, 0] = 1


def test_a_structure_keeps_partial_volumes_in_its_box() -> None:
    occupancy = np.zeros((4, 5, 6), np.float32)
    occupancy[1, 2, 3:5] = (0.5, 1.0)
    structure = Structure.from_array("Larynx", occupancy, OBLIQUE)
    assert structure.box == (slice(1, 2), slice(2, 3), slice(3, 5))
    assert np.array_equal(structure.occupancy, occupancy)
    assert structure.volume_cc == pytest.approx(1.5 * 24 / 1000)
    assert structure.mask.sum() == 2
    weighted = (0.5 * OBLIQUE.to_lps_mm((1, 2, 3)) + OBLIQUE.to_lps_mm((1, 2, 4))) / 1.5
    assert structure.centroid_mm == pytest.approx(weighted)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_occupancy_outside_0_to_1_is_refused(value: float) -> None:
    occupancy = np.ones((4, 5, 6), np.float32)
    occupancy[0, 0, 0] = value
    with pytest.raises(GeometryError, match=r"Larynx.*0\.\.1"):
        Structure.from_array("Larynx", occupancy, OBLIQUE)


def test_an_empty_structure_is_refused() -> None:
    with pytest.raises(GeometryError, match="Larynx.*empty"):
        Structure.from_array("Larynx", np.zeros((4, 5, 6)), OBLIQUE)


def test_a_resampled_sphere_keeps_its_volume() -> None:
    grid = Grid((40, 40, 40), (1, 1, 1))
    distance = np.linalg.norm(np.argwhere(np.ones(grid.shape)) - 19.5, axis=1).reshape(grid.shape)
    sphere = Structure.from_array("PTV_7000", np.clip(12.5 - distance, 0, 1), grid)
    moved = sphere.resampled(Grid((16, 16, 16), (2.5, 2.5, 2.5), (0.7, 0.7, 0.7)))
    # linear interpolation at 2.5 mm of a 12 mm sphere: well inside 2 %
    assert moved.volume_cc == pytest.approx(sphere.volume_cc, rel=0.02)


def test_bounding_box_of_nothing() -> None:
    assert bounding_box(np.zeros((2, 2, 2), bool)) is None


def test_to_sitk_keeps_array_order() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    image = to_sitk(values, Grid((2, 3, 4), (1, 1, 1)))
    assert image.GetSize() == (4, 3, 2)
    assert np.array_equal(sitk.GetArrayFromImage(image), values)


def test_volumes_and_patients_say_what_they_are_in_a_line() -> None:
    patient = small_patient()
    assert repr(patient) == "<Patient small-patient: PTV_7000, SpinalCord, Parotid_R, Parotid_L; with a plan's dose>"
    assert patient.plan.dose is not None
    said = repr(patient.plan.dose)
    assert said.startswith("<Volume 24 x 36 x 40 (slices, rows, columns), 4 x 4 x 5 mm (x, y, z), 0 to 6")
    assert said.endswith(" Gy>")
