"""The contour rasteriser against areas known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.contours import Rasterised, rasterise, slabs
from RTDigitalTwinLib.patient.grid import Box, Grid
from RTDigitalTwinLib.patient.outlines import outlines
from RTDigitalTwinLib.patient.structure import Structure
from Testing.builders import GRIDS, ball

SHAPE = (10, 64, 72)


def circle(height: float, radius: float, row: float = 30.3, column: float = 33.8, points: int = 400) -> NDArray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack([np.full(points, height), row + radius * np.sin(angle), column + radius * np.cos(angle)])


def box(height: float, low: tuple[float, float], high: tuple[float, float]) -> NDArray:
    corners = [low, (low[0], high[1]), high, (high[0], low[1])]
    return np.column_stack([np.full(4, height), corners])


def box_of(drawn: Rasterised) -> Box:
    assert drawn.box is not None
    return drawn.box


def test_a_box_between_pixels_covers_their_shares_exactly_along_rows() -> None:
    drawn = rasterise([box(3, (10.5, 20.25), (12.5, 22.75))], SHAPE)
    assert drawn.box == (slice(3, 4), slice(11, 13), slice(20, 24))
    # pixel 20 spans 19.5 to 20.5, so a quarter of it lies beyond 20.25
    np.testing.assert_allclose(drawn.occupancy[0], [[0.25, 1, 1, 0.25]] * 2, atol=1e-6)


def test_rows_are_covered_in_steps_of_a_fifth() -> None:
    drawn = rasterise([box(3, (10.1, 19.5), (12.5, 22.5))], SHAPE)
    assert drawn.occupancy[0, 0] == pytest.approx(np.full(3, 0.4))  # 10.1 to 10.5 of the row from 9.5


@pytest.mark.parametrize(("radius", "tolerance"), [(2.0, 0.01), (8.0, 0.002), (25.0, 0.0005)])
def test_area_of_a_circle(radius: float, tolerance: float) -> None:
    assert rasterise([circle(5, radius)], SHAPE).occupancy.sum() == pytest.approx(np.pi * radius**2, rel=tolerance)


def test_a_hole_is_empty_whichever_way_its_contour_runs() -> None:
    for hole in (circle(5, 8), circle(5, 8)[::-1]):
        drawn = rasterise([circle(5, 20), hole], SHAPE)
        assert drawn.occupancy.sum() == pytest.approx(np.pi * (400 - 64), rel=0.002)
        assert drawn.occupancy[0, 30 - box_of(drawn)[1].start, 34 - box_of(drawn)[2].start] == 0


def test_an_island_in_a_hole_counts_again() -> None:
    drawn = rasterise([circle(5, 20), circle(5, 12), circle(5, 6)], SHAPE)
    assert drawn.occupancy.sum() == pytest.approx(np.pi * (400 - 144 + 36), rel=0.002)


def test_a_keyhole_is_the_same_as_a_hole() -> None:
    outer, inner = circle(5, 20), circle(5, 8)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    apart = rasterise([outer, inner], SHAPE)
    np.testing.assert_allclose(rasterise([keyhole], SHAPE).occupancy, apart.occupancy, atol=1e-5)


def test_what_two_contours_share_is_left_out_as_even_odd_says() -> None:
    drawn = rasterise([box(2, (9.5, 9.5), (19.5, 19.5)), box(2, (9.5, 14.5), (19.5, 24.5))], SHAPE)
    assert drawn.occupancy.sum() == pytest.approx(100)
    assert drawn.occupancy[0, 0, 5:10].sum() == 0


def test_a_figure_of_eight_fills_both_lobes() -> None:
    eight = np.array([(2, 9.5, 9.5), (2, 19.5, 19.5), (2, 19.5, 9.5), (2, 9.5, 19.5)], float)
    assert rasterise([eight], SHAPE).occupancy.sum() == pytest.approx(50, rel=0.01)


def test_contours_beyond_the_image_are_cut_at_its_edge() -> None:
    drawn = rasterise([circle(5, 20, row=0, column=0)], SHAPE)
    quarter = np.pi * 400 / 4
    edge = 20 + 20 + 0.25 + 0  # half a pixel beyond the centres of row and column 0
    assert drawn.occupancy.sum() == pytest.approx(quarter + edge * 0.5, rel=0.02)
    assert rasterise([circle(5, 5, row=-30)], SHAPE).box is None


def test_slabs_reach_half_a_step_past_the_ends_and_not_into_gaps() -> None:
    lower, upper, gaps = slabs(np.array([2.0, 3, 4, 8, 9]), np.tile([5.0, 5, 9, 9], (5, 1)))
    assert lower.tolist() == [1.5, 2.5, 3.5, 7.5, 8.5] and upper.tolist() == [2.5, 3.5, 4.5, 8.5, 9.5]
    assert gaps == 1


def test_a_wider_spacing_from_some_slice_on_is_no_gap() -> None:
    heights = [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15]
    drawn = rasterise([circle(k, 10) for k in heights], (20, 64, 72))
    assert drawn.gaps == 0 and box_of(drawn)[0] == slice(0, 17)
    # to half a step of two slices past the last, half a step of one before the first
    assert drawn.occupancy.sum() == pytest.approx(16.5 * np.pi * 100, rel=0.002)
    one_lost = rasterise([circle(k, 10) for k in (0, 1, 2, 3, 5, 6, 7)], SHAPE)
    assert one_lost.gaps == 1 and one_lost.occupancy.sum() == pytest.approx(7 * np.pi * 100, rel=0.002)


@pytest.mark.parametrize("away", [0.04, 0.08, -0.08, 0.15])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_a_hole_slightly_beside_the_plane_of_its_outline_is_a_hole(away: float, slices: int) -> None:
    heights = range(3, 3 + slices)
    drawn = rasterise([c for k in heights for c in (circle(k, 20), circle(k + away, 8))], SHAPE)
    assert drawn.occupancy.sum() == pytest.approx(slices * np.pi * (400 - 64), rel=0.002)


@pytest.mark.parametrize("column", [33.8, 65.0], ids=["inside", "beside"])
@pytest.mark.parametrize("height", [5.06, 5.3, 5.5])
@pytest.mark.parametrize("slices", [1, 5])
def test_a_speck_between_planes_takes_nothing_from_them(column: float, height: float, slices: int) -> None:
    cylinder = [circle(k, 20) for k in ([5] if slices == 1 else [3, 4, 5, 6, 7])]
    drawn = rasterise([*cylinder, circle(height, 1, column=column)], SHAPE)
    assert drawn.occupancy.sum() == pytest.approx(slices * np.pi * 400, rel=0.005)


def test_a_second_drawing_beside_the_first_neither_cancels_nor_doubles_it() -> None:
    heights = [2, 3, 4, 4.2, 5, 6]
    drawn = rasterise([circle(k, 12) for k in heights], SHAPE)
    assert drawn.occupancy.sum() == pytest.approx(5 * np.pi * 144, rel=0.002)


def test_parts_drawn_on_alternating_slices_keep_their_volumes() -> None:
    left = [circle(k, 8, column=15) for k in (1, 3, 5, 7)]
    right = [circle(k, 8, column=55) for k in (2, 4, 6)]
    drawn = rasterise([*left, *right], SHAPE)
    assert drawn.occupancy.sum() == pytest.approx((8 + 6) * np.pi * 64, rel=0.005)


def test_contours_on_every_slice_make_whole_slices() -> None:
    drawn = rasterise([circle(k, 10) for k in (3, 4, 5)], SHAPE)
    assert box_of(drawn)[0] == slice(3, 6) and drawn.off_slice_planes == drawn.gaps == 0
    assert drawn.occupancy.sum() == pytest.approx(3 * np.pi * 100, rel=0.002)


def test_contours_on_every_second_slice_fill_what_lies_between() -> None:
    drawn = rasterise([circle(k, 10) for k in (2, 4, 6)], SHAPE)
    assert drawn.occupancy.sum() == pytest.approx(6 * np.pi * 100, rel=0.002)
    # half of slice 1 and half of slice 7: half a step of two slices past the ends
    assert box_of(drawn)[0] == slice(1, 8)
    assert drawn.occupancy[0].max() == pytest.approx(0.5)


def test_contours_between_slices_count_by_their_overlap() -> None:
    drawn = rasterise([circle(k + 0.3, 10) for k in (3, 4)], SHAPE)
    assert drawn.off_slice_planes == 2
    assert drawn.occupancy.max(axis=(1, 2)).tolist() == pytest.approx([0.7, 1.0, 0.3])
    assert drawn.occupancy.sum() == pytest.approx(2 * np.pi * 100, rel=0.002)


def test_finer_contours_than_slices_are_averaged() -> None:
    drawn = rasterise([circle(4 + k / 3, 10 if k < 0 else 5) for k in (-1, 0, 1)], SHAPE)
    assert box_of(drawn)[0] == slice(4, 5)
    assert drawn.occupancy.sum() == pytest.approx(np.pi * (100 + 2 * 25) / 3, rel=0.005)


def test_rounded_positions_count_as_on_the_slice() -> None:
    drawn = rasterise([circle(k + 0.004, 10) for k in (3, 4)], SHAPE)
    assert box_of(drawn)[0] == slice(3, 5) and drawn.off_slice_planes == 0


def test_planes_beyond_the_grid_are_counted() -> None:
    drawn = rasterise([circle(k, 10) for k in (-3, -2, -1, 0, 1)], SHAPE)
    assert drawn.beyond_planes == 3 and box_of(drawn)[0] == slice(0, 2)


def test_contours_that_run_to_and_fro_without_end_are_refused() -> None:
    points = 60_000
    zigzag = np.column_stack([np.zeros(points), np.tile([-1e4, 1e4], points // 2), np.linspace(0, 500, points)])
    with pytest.raises(GeometryError, match="too often"):
        rasterise([zigzag], (1, 512, 512))


def test_a_cylinder_has_its_volume_on_every_phase_of_the_slices() -> None:
    for phase in (0.0, 0.25, 0.5):
        drawn = rasterise([circle(k + phase, 12) for k in range(2, 8)], SHAPE)
        assert drawn.occupancy.sum() == pytest.approx(6 * np.pi * 144, rel=0.001)


@pytest.mark.parametrize("name", GRIDS)
def test_outlines_lead_back_to_the_occupancy(name: str) -> None:
    grid = GRIDS[name]()
    shell = ball(grid, (0, 0, 0), (44, 40, 42)) & ~ball(grid, (2, 0, 0), (20, 18, 16))
    structure = Structure.from_array("Shell", smoothed(shell), grid)
    contours = [grid.to_index(points) for _, points in outlines(structure)]
    drawn = rasterise(contours, grid.shape)
    back = np.zeros(grid.shape, np.float32)
    back[box_of(drawn)] = drawn.occupancy
    # Volume within 2 %, and no voxel further off than the half that a threshold leaves open.
    assert back.sum() == pytest.approx(structure.occupancy.sum(), rel=0.02)
    assert np.abs(back - structure.occupancy).max() < 0.55
    assert ((back >= 0.5) == structure.mask).mean() > 0.995


def smoothed(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Borders of partial voxels within each slice: the mean over 3 x 3 pixels."""
    padded = np.pad(mask.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    rows, columns = mask.shape[1:]
    shifted = [padded[:, a : a + rows, b : b + columns] for a in range(3) for b in range(3)]
    return np.mean(shifted, axis=0)


def test_a_structure_in_index_coordinates_of_its_own_grid() -> None:
    grid = Grid(SHAPE, (1.5, 1.5, 3.0), (-40, -30, 12))
    points = grid.to_lps_mm(circle(4, 10))
    drawn = rasterise([grid.to_index(points)], SHAPE)
    volume_mm3 = drawn.occupancy.sum() * grid.voxel_volume_mm3
    assert volume_mm3 == pytest.approx(np.pi * 15**2 * 3, rel=0.002)
