"""What slice pictures list, and the body in pictures in space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

pytest.importorskip("slicer", reason="slicer-core is not installed: NOTHING of the scene was tested")

import slicer
import vtk

from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.scene.body import body_surface
from RTDigitalTwinLib.scene.patient_nodes import PatientNodes, show_patient
from RTDigitalTwinLib.scene.rendering import rendering_problem
from RTDigitalTwinLib.scene.session import headless_session
from RTDigitalTwinLib.scene.structure_nodes import binary_voxels, cut_by
from RTDigitalTwinLib.scene.views import PANEL_PIXELS, SliceView
from RTDigitalTwinLib.scene.volume_nodes import add_ct, add_dose


@pytest.fixture(scope="module")
def shown(sample: Patient) -> Iterator[PatientNodes]:
    with headless_session() as session:
        yield show_patient(session.scene, sample)


@pytest.mark.parametrize("height", [0.3, 0.5, 0.7])
def test_only_what_a_slice_cuts_is_listed(shown: PatientNodes, sample: Patient, height: float) -> None:
    grid = sample.ct.grid
    number = round(height * (grid.shape[0] - 1))
    x, y, z = grid.to_lps_mm((number, 0, 0))
    expected = set()
    for structure in (*sample.structures.values(), sample.dose_mask):
        inside = number - structure.box[0].start
        if 0 <= inside < structure.box_occupancy.shape[0] and binary_voxels(structure)[inside].any():
            expected.add(structure.name)
    found = cut_by(shown.segmentation, (-x, -y, z), (0, 0, 1))
    assert found == expected and 1 < len(found) < len(sample.structures) + 1


def test_nothing_is_cut_beyond_the_patient(shown: PatientNodes) -> None:
    assert cut_by(shown.segmentation, (0, 0, 1e4), (0, 0, 1)) == set()


def test_a_mask_that_dissolves_is_drawn_as_one_smooth_body(sample: Patient) -> None:
    """The end of the benchmark's masks: ever fewer single voxels, slice by slice."""
    chance = np.random.default_rng(0)
    whole = np.zeros(sample.ct.grid.shape, bool)
    whole[26:80, 40:90, 30:100] = True  # to about where half of the voxels are gone
    frayed = whole.copy()
    for k in range(8):
        frayed[29 - k, 40:90, 30:100] = chance.random((50, 70)) < 0.9 - 0.12 * k
    assert ndimage.label(frayed)[1] > 20
    found, expected = (body_surface(_region(mask, sample)) for mask in (frayed, whole))
    assert _area_mm2(found) == pytest.approx(_area_mm2(expected), rel=0.02)
    assert found.GetBounds() == pytest.approx(expected.GetBounds(), abs=max(sample.ct.grid.spacing_mm))


@pytest.mark.parametrize("dose_gy", [14.0, 49.0, 70.0])
def test_the_legend_has_the_colours_of_the_wash_over_soft_tissue(dose_gy: float, tmp_path: Path) -> None:
    if rendering_problem():
        pytest.skip(f"PICTURES WERE NOT TESTED: {rendering_problem()}")
    grid = Grid((20, 40, 40), (4.0, 4.0, 4.0))
    with headless_session() as session:
        ct = add_ct(session.scene, Volume(np.full(grid.shape, 40.0, np.float32), grid, Quantity.HU))
        even = Volume(np.full(grid.shape, dose_gy, np.float32), grid, Quantity.DOSE_GY)
        dose = add_dose(session.scene, even, "Dose", 70.0)
        view = SliceView(session.scene, slicer.app.applicationLogic())
        corners = grid.to_lps_mm(np.argwhere(np.ones(grid.shape))) * (-1, -1, 1)
        view.frame("Axial", corners, corners.mean(axis=0), 4.0)
        view.show(ct, dose, 0.5)
        view.save(tmp_path / "drawn.png")
        view.close()
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "drawn.png")))[..., :3].astype(int)
    height, width = pixels.shape[:2]
    wash = pixels[height // 2 + 20, width // 2 + 20]
    column = pixels[:, round(width - PANEL_PIXELS / 2 - 10)]
    bar = column[height // 4 + 6 : -height // 4 - 6]  # from 77 Gy down to 0
    off = np.abs(bar - wash).max(axis=1)
    assert off.min() <= 8  # of 255
    assert 77 * (1 - off.argmin() / len(bar)) == pytest.approx(dose_gy, abs=3)


def _region(mask: np.ndarray, patient: Patient) -> Structure:
    return Structure.from_array("Mask", mask, patient.ct.grid, StructureKind.REGION)


def _area_mm2(surface: Any) -> float:
    properties = vtk.vtkMassProperties()
    properties.SetInputData(surface)
    return float(properties.GetSurfaceArea())
