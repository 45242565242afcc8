"""Slicer nodes to the library's types: geometry, transforms, representations of segments."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("slicer", reason="slicer-core is not installed: NOTHING of the scene was tested")

import slicer
import vtk

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.scene.from_nodes import patient_from_nodes, structures_from_segmentation, volume_from_node
from RTDigitalTwinLib.scene.geometry import pseudonymous_frame, vtk_matrix
from RTDigitalTwinLib.scene.patient_nodes import PatientNodes, show_patient
from RTDigitalTwinLib.scene.session import HeadlessApplication, headless_session
from RTDigitalTwinLib.scene.structure_nodes import add_structures
from RTDigitalTwinLib.scene.volume_nodes import add_ct, add_volume
from Testing.builders import FRAME, GRIDS, axial_grid, ball, small_patient

ROOT = Path(__file__).resolve().parent.parent
CLOSED_SURFACE = "Closed surface"
BINARY = "Binary labelmap"
FRACTIONAL = "Fractional labelmap"


@pytest.fixture
def scene() -> Iterator[Any]:
    with headless_session() as session:
        yield session.scene


@pytest.fixture(params=GRIDS)
def patient(request: pytest.FixtureRequest) -> Patient:
    return small_patient(GRIDS[request.param]())


@pytest.fixture
def shown(scene: Any) -> PatientNodes:
    return show_patient(scene, small_patient())


def dice(a: NDArray, b: NDArray) -> float:
    """Overlap of two occupancies."""
    return float(2 * np.minimum(a, b).sum() / (a.sum() + b.sum()))


def put_under(scene: Any, node: Any, matrix: NDArray) -> None:
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    transform.SetMatrixTransformToParent(vtk_matrix(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())


def turn_and_shift() -> NDArray:
    angle = np.deg2rad(12)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = (6.0, -4.0, 3.0)
    return matrix


def test_sessions_follow_and_nest_and_leave_nothing() -> None:
    for _ in range(3):
        with headless_session() as outer:
            assert slicer.mrmlScene is outer.scene
            with headless_session() as inner:
                assert slicer.mrmlScene is inner.scene and inner.scene is not outer.scene
                assert isinstance(slicer.app, HeadlessApplication)
                assert slicer.app.applicationLogic() is inner.application_logic
            assert slicer.mrmlScene is outer.scene
    assert not hasattr(slicer, "app")


def test_a_volume_comes_back_as_it_went(scene: Any, patient: Patient) -> None:
    back = volume_from_node(add_ct(scene, patient.ct), Quantity.HU)
    assert np.array_equal(back.values, patient.ct.values) and back.values.dtype == patient.ct.values.dtype
    assert back.grid.shape == patient.ct.grid.shape
    assert np.abs(back.grid.affine - patient.ct.grid.affine).max() < 1e-9
    assert back.grid.frame_of_reference == pseudonymous_frame(FRAME) != FRAME


def test_a_node_is_in_ras(scene: Any) -> None:
    grid = axial_grid()
    node = add_ct(scene, small_patient().ct)
    assert node.GetOrigin() == (75.0, 68.5, -31.25)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    ras = matrix.MultiplyPoint((7, 5, 3, 1))[:3]
    x, y, z = grid.to_lps_mm((3, 5, 7))
    assert ras == pytest.approx((-x, -y, z))


def test_a_left_handed_volume_is_turned_round(scene: Any, patient: Patient) -> None:
    node = add_ct(scene, patient.ct)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    last = matrix.MultiplyPoint((0, 0, patient.ct.grid.shape[0] - 1, 1))
    for row in range(3):
        matrix.SetElement(row, 2, -matrix.GetElement(row, 2))
        matrix.SetElement(row, 3, last[row])
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(patient.ct.values[::-1]))
    node.SetIJKToRASMatrix(matrix)
    back = volume_from_node(node, Quantity.HU)
    assert np.abs(back.grid.affine - patient.ct.grid.affine).max() < 1e-9
    assert np.array_equal(back.values, patient.ct.values)


def test_a_linear_transform_moves_the_grid_and_no_value(scene: Any, patient: Patient) -> None:
    node = add_ct(scene, patient.ct)
    moved = turn_and_shift()
    put_under(scene, node, moved)
    back = volume_from_node(node, Quantity.HU)
    assert np.array_equal(back.values, patient.ct.values)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    assert np.abs(back.grid.affine - lps @ moved @ lps @ patient.ct.grid.affine).max() < 1e-9


def test_transforms_that_no_grid_follows_are_refused(scene: Any, shown: PatientNodes) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    put_under(scene, shown.ct, sheared)
    with pytest.raises(SceneError, match="CT: The axes are sheared.*Resample"):
        volume_from_node(shown.ct, Quantity.HU)
    spline = vtk.vtkThinPlateSplineTransform()
    points = vtk.vtkPoints()
    landmarks = vtk.vtkPoints()
    for corner in np.random.default_rng(0).uniform(-50, 50, (6, 3)):
        points.InsertNextPoint(*corner)
        landmarks.InsertNextPoint(*(corner + np.sin(corner)))
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(landmarks)
    spline.SetBasisToR()
    bent = scene.AddNewNodeByClass("vtkMRMLTransformNode", "Bent")
    bent.SetAndObserveTransformToParent(spline)
    for node in (shown.ct, shown.segmentation):
        node.SetAndObserveTransformNodeID(bent.GetID())
    with pytest.raises(SceneError, match="CT: It lies under the transform 'Bent', which is not linear.*Harden"):
        volume_from_node(shown.ct, Quantity.HU)
    with pytest.raises(SceneError, match="Structures: It lies under the transform 'Bent'"):
        structures_from_segmentation(shown.segmentation, axial_grid())


def test_volumes_without_values_are_refused(scene: Any) -> None:
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing")
    with pytest.raises(SceneError, match="Nothing: The volume has no voxels"):
        volume_from_node(empty, Quantity.HU)
    vectors = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Vectors")
    slicer.util.updateVolumeFromArray(vectors, np.zeros((3, 4, 5, 3)))
    with pytest.raises(SceneError, match="Vectors: The volume has 3 values a voxel"):
        volume_from_node(vectors, Quantity.HU)


def test_structures_come_back_mask_by_mask(scene: Any, patient: Patient) -> None:
    shown = show_patient(scene, patient)
    back = structures_from_segmentation(shown.segmentation, patient.ct.grid)
    # In the order of drawing: targets on top of all else.
    assert sorted(back) == sorted([*patient.structures, patient.dose_mask.name])
    assert set(list(back)[-len(patient.targets) :]) == set(patient.targets)
    for name, structure in patient.structures.items():
        assert np.array_equal(back[name].occupancy, structure.occupancy), name
        assert back[name].kind is structure.kind
    assert np.array_equal(back[patient.dose_mask.name].mask, patient.dose_mask.mask)


def test_partial_voxels_become_a_mask_at_one_half(scene: Any, sample: Patient) -> None:
    shown = show_patient(scene, sample)
    back = structures_from_segmentation(shown.segmentation, sample.ct.grid)
    for name, structure in sample.structures.items():
        assert np.array_equal(back[name].mask, structure.mask), name


def test_segments_that_share_a_labelmap_are_told_apart(scene: Any, shown: PatientNodes) -> None:
    shown.segmentation.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert shown.segmentation.GetSegmentation().GetNumberOfLayers() == 2
    back = structures_from_segmentation(shown.segmentation, axial_grid())
    for name, structure in shown.patient.structures.items():
        assert np.array_equal(back[name].mask, structure.mask), name


def test_a_closed_surface_alone_becomes_occupancy(scene: Any, patient: Patient) -> None:
    segmentation = show_patient(scene, patient).segmentation
    segmentation.SetSourceRepresentationToClosedSurface()
    segmentation.RemoveBinaryLabelmapRepresentation()
    back = structures_from_segmentation(segmentation, patient.ct.grid)
    for name, structure in patient.structures.items():
        # A cord three voxels wide is all edge.
        assert dice(back[name].occupancy, structure.occupancy) > (0.85 if name == "SpinalCord" else 0.9), name
        surface = vtk.vtkPolyData()
        segmentation.GetClosedSurfaceRepresentation(name, surface)
        measure = vtk.vtkMassProperties()
        measure.SetInputData(surface)
        # The cord's surface ends beyond the grid's last slices, which cut it.
        assert back[name].volume_cc == pytest.approx(measure.GetVolume() / 1000, rel=0.03), name
        assert back[name].volume_cc > 0.9 * structure.volume_cc, name
        assert np.linalg.norm(np.subtract(back[name].centroid_mm, structure.centroid_mm)) < 1.0, name


@pytest.mark.parametrize("kept_as", [CLOSED_SURFACE, BINARY])
def test_a_sphere_s_surface_has_the_sphere_s_volume(scene: Any, patient: Patient, kept_as: str) -> None:
    radius = 21.0
    centre = patient.structures["PTV_7000"].centroid_mm
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(radius)
    sphere.SetCenter(-centre[0], -centre[1], centre[2])
    sphere.SetThetaResolution(96)
    sphere.SetPhiResolution(96)
    sphere.Update()
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Drawn")
    segmentation.GetSegmentation().SetSourceRepresentationName(kept_as)
    segmentation.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "PTV_7000", (1, 0, 0))
    structure = structures_from_segmentation(segmentation, patient.ct.grid)["PTV_7000"]
    # 27 places a voxel: the count's error is well under a percent for 480 voxels.
    assert structure.volume_cc == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.01)
    assert structure.centroid_mm == pytest.approx(centre, abs=0.1)
    assert structure.kind is StructureKind.TARGET
    assert 0 < (structure.box_occupancy[structure.box_occupancy > 0]).min() < 0.1


def test_a_fractional_labelmap_keeps_its_fractions(scene: Any, shown: PatientNodes) -> None:
    segmentation = shown.segmentation.GetSegmentation()
    assert segmentation.CreateRepresentation(FRACTIONAL)
    segmentation.SetSourceRepresentationName(FRACTIONAL)
    shown.segmentation.RemoveBinaryLabelmapRepresentation()
    back = structures_from_segmentation(shown.segmentation, axial_grid())
    for name in ("PTV_7000", "Parotid_L", "Parotid_R"):
        assert dice(back[name].occupancy, shown.patient.structures[name].occupancy) > 0.9, name
        assert ((back[name].occupancy > 0.1) & (back[name].occupancy < 0.9)).any()


def test_a_moved_segmentation_lands_where_it_was_moved(scene: Any, shown: PatientNodes) -> None:
    one_voxel = np.eye(4)
    one_voxel[:3, 3] = (-4.0, 0.0, 5.0)  # RAS: a column to the left, a slice up
    put_under(scene, shown.segmentation, one_voxel)
    back = structures_from_segmentation(shown.segmentation, axial_grid())
    expected = np.roll(shown.patient.structures["PTV_7000"].mask, (1, 1), axis=(0, 2))
    assert np.array_equal(back["PTV_7000"].mask, expected)


def test_a_turned_segmentation_lands_where_it_was_turned(scene: Any) -> None:
    grid = axial_grid()
    structure = small_patient(grid).structures["PTV_7000"]
    moved = turn_and_shift()
    shown = show_patient(scene, small_patient(grid))
    put_under(scene, shown.segmentation, moved)
    back = structures_from_segmentation(shown.segmentation, grid)["PTV_7000"]
    x, y, z = structure.centroid_mm
    ras = (moved @ (-x, -y, z, 1))[:3]
    assert back.centroid_mm == pytest.approx((-ras[0], -ras[1], ras[2]), abs=0.3)
    assert back.volume_cc == pytest.approx(structure.volume_cc, rel=0.02)


def test_another_geometry_is_resampled_onto_the_ct(scene: Any) -> None:
    grid = axial_grid()
    fine = Grid((60, 100, 110), (1.7, 1.6, 2.3), (-80.0, -70.0, -60.0), frame_of_reference=FRAME)
    fine_patient = small_patient(fine, with_dose=False)
    middle = np.subtract(fine.to_lps_mm((np.array(fine.shape) - 1) / 2), grid.to_lps_mm((np.array(grid.shape) - 1) / 2))
    ct = add_ct(scene, fine_patient.ct)
    segmentation = add_structures(scene, [fine_patient.structures["PTV_7000"]], [], None, ct, "Fine")
    back = structures_from_segmentation(segmentation, grid)["PTV_7000"]
    expected = ball(grid, tuple(middle + (18, -12, 2)), (16, 16, 18))
    assert dice(back.mask, expected) > 0.95
    assert back.grid is grid


def test_unusable_segmentations_are_refused(scene: Any, shown: PatientNodes) -> None:
    grid = axial_grid()
    none = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "None yet")
    with pytest.raises(SceneError, match="None yet: The segmentation has no segments"):
        structures_from_segmentation(none, grid)
    segmentation = shown.segmentation.GetSegmentation()
    segmentation.AddEmptySegment("Larynx", "Larynx")
    with pytest.raises(SceneError, match="Larynx: The segment is empty"):
        structures_from_segmentation(shown.segmentation, grid)
    segmentation.RemoveSegment("Larynx")
    segmentation.GetSegment("Parotid_L").SetName("Parotid_R")
    with pytest.raises(SceneError, match="Parotid_R: Two segments have this name"):
        structures_from_segmentation(shown.segmentation, grid)
    segmentation.GetSegment("Parotid_L").SetName("Parotid_L")
    away = np.eye(4)
    away[0, 3] = 900
    put_under(scene, shown.segmentation, away)
    with pytest.raises(SceneError, match="SpinalCord: No part of the segment lies on the CT"):
        structures_from_segmentation(shown.segmentation, grid)


def test_a_patient_comes_back_from_the_scene(scene: Any, patient: Patient) -> None:
    shown = show_patient(scene, patient)
    back = patient_from_nodes(
        shown.ct, shown.segmentation, {"PTV_7000": 70.0}, 35, dose_node=shown.reference_dose, pseudonym="again"
    )
    assert back.pseudonym == "again"
    assert np.array_equal(back.ct.values, patient.ct.values)
    assert set(back.structures) == set(patient.structures)
    assert np.array_equal(back.dose_mask.mask, patient.dose_mask.mask)
    assert back.plan.prescription == patient.plan.prescription
    assert back.plan.dose is not None and patient.plan.dose is not None
    assert np.array_equal(back.plan.dose.values, patient.plan.dose.values)


def test_a_patient_needs_mask_targets_and_one_frame(scene: Any, shown: PatientNodes) -> None:
    with pytest.raises(SceneError, match="no segment 'Body'"):
        patient_from_nodes(shown.ct, shown.segmentation, {"PTV_7000": 70.0}, 35, dose_mask="Body")
    with pytest.raises(SceneError, match="missing: PTV_6300"):
        patient_from_nodes(shown.ct, shown.segmentation, {"PTV_6300": 63.0}, 35)
    dose = shown.patient.plan.dose
    assert dose is not None
    elsewhere = Grid(dose.grid.shape, dose.grid.spacing_mm, dose.grid.origin_mm, frame_of_reference="1.2.3")
    stray = add_volume(scene, Volume(dose.values, elsewhere, Quantity.DOSE_GY), "Stray dose")
    with pytest.raises(SceneError, match="Stray dose: The dose has another frame of reference"):
        patient_from_nodes(shown.ct, shown.segmentation, {"PTV_7000": 70.0}, 35, dose_node=stray)


def test_of_vtk_only_what_is_used_is_imported() -> None:
    code = (
        "import sys\nfrom RTDigitalTwinLib.scene import bundle, nodes, session, snapshot\nprint('vtk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
