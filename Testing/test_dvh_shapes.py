"""The DVH engine against shapes whose DVHs are known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from RTDigitalTwinLib.dosimetry.discretisation import discretisation_error
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import StructureVoxels, structure_dose_of
from RTDigitalTwinLib.patient.contours import rasterise
from RTDigitalTwinLib.patient.structure import Structure
from Testing.contours import occupancy_of_contours
from Testing.shapes import CASES, MIDDLE_GY, Shape

SPACINGS_MM = (0.5, 1.0, 2.0, 3.0)
OFFSETS = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.25, 0.1, 0.4), (0.33, 0.7, 0.15))
VOLUME_RATIOS = np.array([0.02, 0.05, 0.5, 0.95, 0.98])
DOSES_GY = np.linspace(4.5, 27.5, 47)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
@pytest.mark.parametrize("case", CASES)
def test_shapes_of_24_mm(case: str, spacing_mm: float, offset: tuple[float, float, float]) -> None:
    """Volume to 1 %, mean to 0.5 %, Dx to 2 % of itself and Vx to 2 points. 3.6 cc (the cone) to 10.9 cc.

    The engine's own error is far less at fine grids; at 3 mm a shape is eight voxels wide.
    """
    shape = Shape(case)
    inside = structure_dose_of(*shape.on_grid(spacing_mm, offset))
    assert inside.volume_cc == pytest.approx(shape.volume_cc, rel=0.01)
    assert inside.mean_gy()[0] == pytest.approx(MIDDLE_GY, rel=0.005)
    assert inside.doses_at_volume_gy(VOLUME_RATIOS)[0] == pytest.approx(
        shape.dose_at_volume_gy(VOLUME_RATIOS), rel=0.02
    )
    assert inside.volume_at_dose_ratio(DOSES_GY)[0] == pytest.approx(shape.volume_at_dose_ratio(DOSES_GY), abs=0.02)


@pytest.mark.parametrize("case", CASES)
def test_fine_grids_are_nearly_exact(case: str) -> None:
    """At 0.5 mm: 0.1 points of volume at any dose. Voxel centres alone would be off by the sheets of voxels."""
    inside = structure_dose_of(*Shape(case).on_grid(0.5, (0.25, 0.1, 0.4)))
    exact = Shape(case).volume_at_dose_ratio(DOSES_GY)
    assert inside.volume_at_dose_ratio(DOSES_GY)[0] == pytest.approx(exact, abs=0.001)
    centres = replace(inside, half_widths_gy=None)
    assert np.abs(centres.volume_at_dose_ratio(DOSES_GY)[0] - exact).max() > 0.005


def test_lowest_and_highest_dose_reach_the_surface() -> None:
    """A voxel's own size at most beside 4 and 28 Gy."""
    inside = structure_dose_of(*Shape("cylinder along").on_grid(1.0, (0.25, 0.1, 0.4)))
    assert inside.min_gy()[0] == pytest.approx(4, abs=0.5)
    assert inside.max_gy()[0] == pytest.approx(28, abs=0.5)


def test_a_flat_cut_is_known_exactly() -> None:
    """The ends of a cylinder cut a quarter of the voxels off: the part's middle and width follow."""
    _, structure = Shape("cylinder along").on_grid(3.0, (0.25, 0.0, 0.0))
    voxels = StructureVoxels.of(structure)
    slices, rows, columns = np.unravel_index(voxels.index, structure.grid.shape)
    middle = structure.grid.shape[1] / 2
    axial = (np.abs(rows + 0.5 - middle) < 1.1) & (np.abs(columns + 0.5 - middle) < 1.1)
    first = axial & (slices == slices.min())
    assert voxels.occupancy[first] == pytest.approx(0.25, abs=1e-5)
    assert voxels.offset[0, first] == pytest.approx(0.375, abs=0.002)
    assert voxels.variance[0, first] == pytest.approx(0.25**2 / 12, abs=0.0005)
    full = voxels.occupancy == 1
    assert not voxels.offset[:, full].any() and voxels.variance[:, full] == pytest.approx(1 / 12)


@pytest.mark.parametrize("as_mask", [False, True])
def test_the_discretisation_error_covers_small_spheres(as_mask: bool) -> None:
    """0.1 to 2 cc on grids of 1 to 3 mm: at least 85 % of all values lie within what is reported.

    Not 95 %: half of the spheres are but two to four voxels wide.
    """
    metrics = ("D2", "D50", "D95", "V16", "mean", "max")
    held = []
    for radius_mm, spacing_mm, offset in (
        (3.0, 1.0, OFFSETS[2]), (3.0, 1.0, OFFSETS[3]), (5.0, 2.0, OFFSETS[0]), (5.0, 2.0, OFFSETS[2]),
        (8.0, 3.0, OFFSETS[2]), (8.0, 2.0, OFFSETS[3]), (6.0, 3.0, OFFSETS[3]),
    ):  # fmt: skip
        shape = Shape("sphere", radius_mm)
        dose, structure = shape.on_grid(spacing_mm, offset)
        if as_mask:
            structure = Structure.from_array("sphere", structure.mask, structure.grid)
        error = discretisation_error(dose, structure, metrics)
        inside = structure_dose_of(dose, structure)
        exact = [*shape.dose_at_volume_gy([0.02, 0.5, 0.95]), 50.0, MIDDLE_GY, MIDDLE_GY + radius_mm]
        for metric, known in zip(metrics, exact, strict=True):
            held.append(abs(inside.metric(DvhMetric.parse(metric))[0] - known) <= error.metrics[metric] + 0.005)
        if as_mask:
            held.append(abs(inside.volume_cc - shape.volume_cc) <= error.volume_cc)
        else:
            # a few voxels at the poles are full beside empty ones by rounding
            assert error.volume_cc < 0.03 * shape.volume_cc
    assert np.mean(held) >= 0.85


def test_a_uniform_dose_has_no_discretisation_error() -> None:
    dose, structure = Shape("sphere", 5.0).on_grid(2.0, OFFSETS[2])
    uniform = replace(dose, values=np.full(dose.values.shape, 50, np.float32))
    error = discretisation_error(uniform, structure, ("D2", "mean", "max"))
    assert list(error.metrics.values()) == pytest.approx([0, 0, 0], abs=1e-4)


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("spacing_mm", [1.0, 3.0])
def test_a_sphere_from_contours(spacing_mm: float, phase: float) -> None:
    """Contours stand for slabs. Their own error is that of the slabs, by the contours' phase; ours comes on top."""
    shape = Shape("sphere")
    dose, structure = shape.on_grid(spacing_mm, (phase, 0.3, 0.1))
    grid = structure.grid
    heights = grid.origin_mm[2] + spacing_mm * np.arange(grid.shape[0])
    angles = np.linspace(0, 2 * np.pi, 361)
    radii = [(z, np.sqrt(144 - z**2)) for z in heights if abs(z) < 12]
    contours = [np.stack([r * np.cos(angles), r * np.sin(angles), np.full(361, z)], axis=1) for z, r in radii]
    drawn = Structure.from_array("sphere", occupancy_of_contours(contours, grid), grid)
    inside = structure_dose_of(dose, drawn)
    slabs_cc = sum(np.pi * r**2 * spacing_mm for _, r in radii) / 1000
    slabs_mean_gy = MIDDLE_GY + sum(z * r**2 for z, r in radii) / sum(r**2 for _, r in radii)
    assert inside.volume_cc == pytest.approx(slabs_cc, rel=0.001)  # the engine's
    assert inside.mean_gy()[0] == pytest.approx(slabs_mean_gy, rel=0.001)
    assert slabs_cc == pytest.approx(shape.volume_cc, rel=0.017 if spacing_mm == 3 else 0.002)  # the contours'
    slab_doses = np.array([MIDDLE_GY + z for z, _ in radii])
    weights = np.array([r**2 for _, r in radii])
    for gy in (8.3, 16.0, 23.1):
        share = np.clip((slab_doses + spacing_mm / 2 - gy) / spacing_mm, 0, 1)
        expected = (share * weights).sum() / weights.sum()
        assert inside.volume_at_dose_ratio(gy)[0, 0] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("offset", OFFSETS[1:])
@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_shapes_from_contours(case: str, spacing_mm: float, offset: tuple[float, float, float]) -> None:
    """All shapes drawn as circles on the grid's slices, by the rasteriser of the DICOM reader.

    Against the slabs that the contours stand for the engine keeps the tolerances of the shapes themselves; how far the
    slabs are from the shape is the contours' own error: at 3 mm up to 2 % of a sphere, and half a slab at a flat end.
    """
    shape = Shape(case)
    dose, structure = shape.on_grid(spacing_mm, offset)
    grid = structure.grid
    heights = grid.origin_mm[2] + spacing_mm * np.arange(grid.shape[0])
    heights = heights[np.abs(heights) < shape.radius_mm]
    radii = {"sphere": np.sqrt(144 - heights**2), "cone across": (12 - heights) / 2}.get(
        case, np.full(heights.size, 12.0)
    )
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    contours = [
        grid.to_index(np.stack([r * np.cos(angles), r * np.sin(angles), np.full(angles.size, z)], axis=1))
        for z, r in zip(heights, radii, strict=True)
    ]
    drawn = rasterise(contours, grid.shape)
    assert drawn.box is not None
    inside = structure_dose_of(dose, Structure(case, grid, drawn.box, drawn.occupancy))
    slabs_cc = float((np.pi * radii**2).sum() * spacing_mm) / 1000
    weights = radii**2 / (radii**2).sum()
    along = CASES[case] == 0
    slabs_mean_gy = MIDDLE_GY + (float((weights * heights).sum()) if along else 0.0)
    assert inside.volume_cc == pytest.approx(slabs_cc, rel=0.005)
    assert inside.mean_gy()[0] == pytest.approx(slabs_mean_gy, rel=0.005)
    for gy in (8.3, 16.0, 23.1):
        if along:
            share = np.clip((MIDDLE_GY + heights + spacing_mm / 2 - gy) / spacing_mm, 0, 1)
        else:
            reach = np.clip((gy - MIDDLE_GY) / radii, -1, 1)
            share = (np.arccos(reach) - reach * np.sqrt(1 - reach**2)) / np.pi
        assert inside.volume_at_dose_ratio(gy)[0, 0] == pytest.approx(float((weights * share).sum()), abs=0.02)
    own_ratio = abs(slabs_cc / shape.volume_cc - 1)
    half_a_slab_at_the_flat_ends = {"sphere": 0.0, "cone across": spacing_mm / 16}.get(case, spacing_mm / 24)
    assert own_ratio < half_a_slab_at_the_flat_ends + (0.02 if spacing_mm == 3 else 0.01)
