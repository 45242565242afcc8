"""A prediction in the scene: what is shown, what SlicerRT finds, what a bundle keeps, what pictures show."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed: NOTHING of the scene was tested")

import slicer
import vtk
from vtk.util import numpy_support

from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import OutputError, RTDigitalTwinError, SceneError
from RTDigitalTwinLib.patient.colours import structure_colour
from RTDigitalTwinLib.patient.volume import Quantity
from RTDigitalTwinLib.scene.bundle import load_mrb, save_mrb
from RTDigitalTwinLib.scene.from_nodes import structures_from_segmentation, volume_from_node
from RTDigitalTwinLib.scene.hierarchy import hierarchy
from RTDigitalTwinLib.scene.nodes import PredictionNodes, show_prediction
from RTDigitalTwinLib.scene.patient_nodes import show_patient
from RTDigitalTwinLib.scene.session import headless_session
from RTDigitalTwinLib.scene.snapshot import rendering_problem, save_pictures
from Testing.builders import FRAME, hand_made_calibration, hand_made_ensemble, oblique_grid, small_patient

STRUCTURES = ("PTV_7000", "SpinalCord", "Parotid_R", "Parotid_L")
SHOWN = {"dose": "predicted dose", "isodose": "isodose lines of the predicted dose", "spread": "sampled spread",
         "difference": "predicted minus reference dose"}  # fmt: skip
SLICES = {f"{o.capitalize()}: {words}": f"{o}_{what}.png"
          for what, words in SHOWN.items() for o in ("axial", "coronal", "sagittal")}  # fmt: skip
SOLIDS = {"Structures in space": "view3d.png", "The 95 % isodose in space": "view3d_isodose.png"}


@pytest.fixture
def scene() -> Iterator[Any]:
    with headless_session() as session:
        yield session.scene


@pytest.fixture
def nodes(scene: Any) -> PredictionNodes:
    patient = small_patient(oblique_grid())
    return show_prediction(scene, patient, hand_made_ensemble(patient))


def column(table: Any, name: str) -> np.ndarray:
    return numpy_support.vtk_to_numpy(table.GetTable().GetColumnByName(name))


def nodes_of(scene: Any, class_name: str) -> dict[str, Any]:
    found = [scene.GetNthNodeByClass(i, class_name) for i in range(scene.GetNumberOfNodesByClass(class_name))]
    return {node.GetName(): node for node in found}


def test_structure_colours_are_distinct_and_stable() -> None:
    known = [structure_colour(name) for name in (*STRUCTURES, "Brainstem", "Larynx", "PTV_6300", "PTV_5600")]
    assert len(set(known)) == len(known)
    assert structure_colour("PTV_7000") == (1.0, 50 / 255, 50 / 255)
    assert structure_colour("Spleen") == structure_colour("Spleen")
    assert all(0 <= part <= 1 for part in structure_colour("Spleen"))


def test_volumes_hold_the_prediction(nodes: PredictionNodes) -> None:
    prediction = nodes.prediction
    reference = prediction.patient.plan.dose
    assert reference is not None and nodes.std is not None and nodes.difference is not None
    assert nodes.patient.reference_dose is not None
    assert nodes.patient.reference_dose.GetDescription() == prediction.patient.plan.label
    shown = {
        nodes.mean: prediction.mean.values,
        nodes.std: prediction.std.values,
        nodes.difference: prediction.mean.values - reference.values,
        nodes.absolute_difference: np.abs(prediction.mean.values - reference.values),
        nodes.patient.reference_dose: reference.values,
    }
    for node, values in shown.items():
        assert np.array_equal(volume_from_node(node, Quantity.DOSE_GY).values, values), node.GetName()
        assert node.GetVoxelValueUnits().GetCodeValue() == "Gy"


def test_overlays_have_colours_limits_and_legends_in_gy(nodes: PredictionNodes) -> None:
    titles = {}
    for node in nodes.volumes:
        display = node.GetDisplayNode()
        titles[display.GetColorNode().GetName()] = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(
            node
        ).GetTitleText()
    assert set(titles) == {"RTDigitalTwin dose", "RTDigitalTwin spread", "RTDigitalTwin difference"}
    assert titles["RTDigitalTwin dose"] == "Dose [Gy]" and all("[Gy]" in title for title in titles.values())
    dose = nodes.mean.GetDisplayNode()
    assert (dose.GetWindowLevelMin(), dose.GetWindowLevelMax()) == pytest.approx((0, 77))
    assert dose.GetApplyThreshold() and dose.GetLowerThreshold() == pytest.approx(7)
    assert nodes.difference is not None
    difference = nodes.difference.GetDisplayNode()
    assert difference.GetWindowLevelMin() == -difference.GetWindowLevelMax()
    ct = nodes.patient.ct.GetDisplayNode()
    assert (ct.GetWindow(), ct.GetLevel()) == (400, 40)


def test_structures_have_names_colours_and_tags(nodes: PredictionNodes) -> None:
    segmentation = nodes.patient.segmentation.GetSegmentation()
    display = nodes.patient.segmentation.GetDisplayNode()
    target, *organs = STRUCTURES
    assert list(segmentation.GetSegmentIDs()) == [*organs, "FeasibleDose", target]  # the target is drawn on top
    for number, name in enumerate(STRUCTURES, start=1):
        segment = segmentation.GetSegment(name)
        assert segment.GetName() == name and segment.GetColor() == pytest.approx(structure_colour(name))
        tag = vtk.reference("")
        assert segment.GetTag("DicomRtImport.RoiNumber", tag) and str(tag) == str(number)
        assert display.GetSegmentVisibility(name)
    assert not display.GetSegmentVisibility("FeasibleDose")
    assert display.GetSegmentOpacity3D("PTV_7000") == 1 > display.GetSegmentOpacity3D("Parotid_L")
    geometry = segmentation.GetConversionParameter("Reference image geometry")
    assert geometry.endswith("0;39;0;35;0;23;")


def test_dvh_tables_are_the_prediction_s(nodes: PredictionNodes) -> None:
    prediction = nodes.prediction
    reference = prediction.patient.plan.dose
    assert reference is not None and tuple(nodes.dvh.tables) == STRUCTURES
    for row, (name, table) in enumerate(nodes.dvh.tables.items()):
        dvh = prediction.dvh(name)
        low, high = dvh.band(0.95)
        assert np.array_equal(column(table, "Dose"), dvh.dose_gy)
        assert np.array_equal(column(table, "Volume"), 100 * dvh.mean)
        assert np.array_equal(column(table, "Volume band low"), 100 * low)
        assert np.array_equal(column(table, "Volume band high"), 100 * high)
        known = structure_dose_of(reference, prediction.patient.structures[name])
        assert np.array_equal(column(table, "Volume reference"), 100 * known.volume_at_dose_ratio(dvh.dose_gy)[0])
        assert table.GetAttribute("DoseVolumeHistogram.DVH") == "1"
        assert table.GetAttribute("DoseVolumeHistogram.SegmentID") == name
        volume_cc = float(table.GetAttribute("DoseVolumeHistogram.Volume (cc)"))
        assert volume_cc == pytest.approx(prediction.patient.structures[name].volume_cc, rel=1e-5)
        assert table.GetNodeReference("doseVolumeRef") is nodes.mean
        assert table.GetNodeReference("segmentationRef") is nodes.patient.segmentation
        assert table.GetNodeReference("dvhMetricsTableRef") is nodes.dvh.metrics
        metric = nodes.dvh.metrics.GetTable()
        assert metric.GetValueByName(row, "Structure").ToString() == name
        mean = metric.GetValueByName(row, "Mean dose (Gy)").ToDouble()
        assert mean == pytest.approx(float(prediction.metric(name, "mean").mean))


def test_one_chart_shows_means_and_bands(nodes: PredictionNodes) -> None:
    chart = nodes.dvh.chart
    plot = slicer.vtkMRMLPlotSeriesNode
    lines = {"Volume": plot.LineStyleSolid, "Volume band low": plot.LineStyleDash,
             "Volume band high": plot.LineStyleDash, "Volume reference": plot.LineStyleDot}  # fmt: skip
    assert len(nodes.dvh.series) == 16
    for index, one in enumerate(nodes.dvh.series):
        name = STRUCTURES[index % 4]
        assert one.GetTableNode() is nodes.dvh.tables[name]
        assert one.GetColor() == pytest.approx(structure_colour(name))
        assert one.GetLineStyle() == lines[one.GetYColumnName()]
        assert one.GetName() == (name if one.GetYColumnName() == "Volume" else "")
    shown = [chart.GetNthPlotSeriesNode(i) for i in range(chart.GetNumberOfPlotSeriesNodes())]
    assert shown == [one for one in nodes.dvh.series if "reference" not in one.GetYColumnName()]
    assert "sampled 95 % band (not calibrated)" in chart.GetTitle() and "reference" not in chart.GetTitle()
    assert (chart.GetXAxisTitle(), chart.GetYAxisTitle()) == ("Dose [Gy]", "Volume [%]")
    high = nodes.dvh.tables["PTV_7000"]
    highest_gy = column(high, "Dose")[column(high, "Volume band high") > 0.5].max()
    assert 0 <= chart.GetXAxisRange()[1] - 1.45 * highest_gy < 10  # room for the legend, to a round number


def test_slicerrt_finds_the_dose_under_a_study(scene: Any, nodes: PredictionNodes) -> None:
    tree = hierarchy(scene)
    study = nodes.patient.study
    assert tree.GetItemAttribute(study, "DicomRtImport.DoseUnitName") == "GY"
    assert tree.GetItemAttribute(study, "DicomRtImport.DoseUnitValue") == "1.0"
    assert tree.GetItemLevel(study) == "Study" and tree.GetItemName(tree.GetItemParent(study)) == "small-patient"
    for node in (nodes.mean, nodes.patient.reference_dose):
        assert node is not None and node.GetAttribute("DicomRtImport.DoseVolume") == "1"
        assert tree.GetItemAncestorAtLevel(tree.GetItemByDataNode(node), "Study") == study
    for node in (nodes.std, nodes.difference, nodes.absolute_difference):
        assert node is not None and node.GetAttribute("DicomRtImport.DoseVolume") is None
    for node in (*nodes.dvh.tables.values(), nodes.dvh.chart, nodes.dvh.metrics, *nodes.dvh.series[:4], nodes.std):
        assert tree.GetItemParent(tree.GetItemByDataNode(node)) == nodes.folder


def test_calibrated_bands_are_shown_as_such(scene: Any) -> None:
    patient = small_patient()
    prediction = replace(hand_made_ensemble(patient), calibration=hand_made_calibration())
    shown = show_prediction(scene, patient, prediction)
    assert shown.width is not None and shown.width in shown.volumes
    scalars = shown.width.GetImageData().GetPointData().GetScalars()
    half = numpy_support.vtk_to_numpy(scalars).reshape(patient.ct.grid.shape)
    assert half == pytest.approx(prediction.half_width(0.95).values, abs=1e-4)
    inside = patient.dose_mask.mask
    assert half[inside] == pytest.approx(2 * np.hypot(prediction.std.values, 0.25)[inside], rel=1e-4)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(shown.width)
    assert legend.GetTitleText() == "95 % half width [Gy]"
    assert "calibrated 95 % band" in shown.dvh.chart.GetTitle() and "not" not in shown.dvh.chart.GetTitle()
    assert show_prediction(scene, patient, hand_made_ensemble(patient)).width is None


def test_a_second_prediction_stands_beside_the_first(scene: Any, nodes: PredictionNodes) -> None:
    again = small_patient(oblique_grid())
    other = show_prediction(scene, again, hand_made_ensemble(again, seed=5))
    assert other.patient.ct is nodes.patient.ct and other.patient.segmentation is nodes.patient.segmentation
    assert other.mean is not nodes.mean and other.folder != nodes.folder
    stranger = small_patient()
    third = show_patient(scene, stranger)
    assert third.ct is not nodes.patient.ct


@pytest.mark.parametrize("samples", [0, 1])
def test_without_samples_there_is_no_spread(scene: Any, samples: int) -> None:
    patient = small_patient(with_dose=False)
    shown = show_prediction(scene, patient, hand_made_ensemble(patient, samples))
    assert shown.std is shown.difference is shown.absolute_difference is shown.patient.reference_dose is None
    assert shown.dvh.chart.GetNumberOfPlotSeriesNodes() == 4
    assert [shown.dvh.tables["PTV_7000"].GetTable().GetColumnName(i) for i in range(2)] == ["Dose", "Volume"]
    assert "band" not in shown.dvh.chart.GetTitle()


def test_a_prediction_of_another_patient_is_refused(scene: Any) -> None:
    with pytest.raises(SceneError, match="small-patient: The prediction was made for another patient"):
        show_prediction(scene, small_patient(), hand_made_ensemble(small_patient(oblique_grid())))


def test_a_bundle_keeps_everything(nodes: PredictionNodes, tmp_path: Path) -> None:
    path = save_mrb(nodes.mean.GetScene(), tmp_path / "demo.mrb")
    assert [p.name for p in tmp_path.iterdir()] == ["demo.mrb"]
    volumes = nodes_of(nodes.mean.GetScene(), "vtkMRMLScalarVolumeNode")
    patient = nodes.prediction.patient
    with headless_session() as session:
        scene = load_mrb(path)
        assert scene is session.scene
        loaded = nodes_of(scene, "vtkMRMLScalarVolumeNode")
        assert loaded.keys() == volumes.keys() and len(loaded) == 6
        for name, node in volumes.items():
            before, after = (volume_from_node(n, Quantity.DOSE_GY) for n in (node, loaded[name]))
            assert np.array_equal(before.values, after.values) and before.values.dtype == after.values.dtype, name
            assert np.abs(before.grid.affine - after.grid.affine).max() < 1e-6, name
            display, kept = (n.GetDisplayNode() for n in (node, loaded[name]))
            assert display.GetColorNode().GetName() == kept.GetColorNode().GetName()
            assert display.GetWindowLevelMax() == pytest.approx(kept.GetWindowLevelMax())
        mean = loaded["Predicted dose"]
        assert mean.GetAttribute("DicomRtImport.DoseVolume") == "1"
        assert mean.GetAttribute("RTDigitalTwin.Samples") == "8" and mean.GetAttribute("RTDigitalTwin.Seed") == "0"
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(mean)
        assert legend is not None and legend.GetTitleText() == "Dose [Gy]"

        segmentation = nodes_of(scene, "vtkMRMLSegmentationNode")["Structures"]
        structures = structures_from_segmentation(segmentation, patient.ct.grid)
        for name, structure in patient.structures.items():
            assert np.array_equal(structures[name].mask, structure.mask) and structures[name].kind is structure.kind
            segment = segmentation.GetSegmentation().GetSegment(name)
            assert segment.GetColor() == pytest.approx(structure_colour(name), abs=1e-5)
            tag = vtk.reference("")
            assert segment.GetTag("DicomRtImport.RoiNumber", tag) and int(str(tag)) >= 1
        assert not segmentation.GetDisplayNode().GetSegmentVisibility("FeasibleDose")

        tables = nodes_of(scene, "vtkMRMLTableNode")
        assert len(tables) == 6
        for name, table in nodes.dvh.tables.items():
            for title in ("Dose", "Volume", "Volume band low", "Volume band high", "Volume reference"):
                # Slicer writes tables as text of six digits.
                assert column(tables[f"DVH {name}"], title) == pytest.approx(column(table, title), abs=1e-4)
            assert tables[f"DVH {name}"].GetAttribute("DoseVolumeHistogram.SegmentID") == name
            assert tables[f"DVH {name}"].GetNodeReference("doseVolumeRef") is mean
        chart = nodes_of(scene, "vtkMRMLPlotChartNode")["DVH"]
        assert chart.GetNumberOfPlotSeriesNodes() == 12
        assert chart.GetNthPlotSeriesNode(0).GetTableNode() is tables["DVH PTV_7000"]
        named = [chart.GetNthPlotSeriesNode(k).GetName() for k in range(12)]
        assert named == [*STRUCTURES, *[""] * 8]  # else Slicer's legend lists limits of bands

        tree = hierarchy(scene)
        study = tree.GetItemAncestorAtLevel(tree.GetItemByDataNode(mean), "Study")
        assert tree.GetItemAttribute(study, "DicomRtImport.DoseUnitName") == "GY"
        assert tree.GetItemName(tree.GetItemParent(study)) == "small-patient"
        assert tree.GetItemByDataNode(chart) and tree.GetItemByDataNode(segmentation)


def test_a_bundle_holds_no_path_user_or_identifier(nodes: PredictionNodes, tmp_path: Path) -> None:
    path = save_mrb(nodes.mean.GetScene(), tmp_path / "demo.mrb")
    telling = [FRAME, str(tmp_path), tempfile.gettempdir() + os.sep, str(Path.home()) + os.sep, str(Path.cwd())]
    if getpass.getuser() != "root":
        telling.append(getpass.getuser())
    with zipfile.ZipFile(path) as bundle:
        assert bundle.testzip() is None
        names = bundle.namelist()
        assert all(name.startswith("demo/") and ".." not in name for name in names)
        for name in names:
            content = bundle.read(name)
            for word in telling:
                assert word.encode() not in content, f"{word} in {name}"


def test_bundles_that_cannot_be_are_refused(scene: Any, nodes: PredictionNodes, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="ends in .mrb"):
        save_mrb(scene, tmp_path / "demo.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write here"):
        save_mrb(scene, tmp_path / "file" / "demo.mrb")
    with pytest.raises(SceneError, match="absent.mrb: The scene bundle is not there"):
        load_mrb(tmp_path / "absent.mrb", scene)
    whole = save_mrb(scene, tmp_path / "whole.mrb").read_bytes()
    (tmp_path / "half.mrb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SceneError, match="half.mrb: The scene bundle cannot be read"):
        load_mrb(tmp_path / "half.mrb", scene)


def test_pictures_show_dose_spread_difference_and_structures(nodes: PredictionNodes, tmp_path: Path) -> None:
    problem = rendering_problem()
    if problem:
        pytest.skip(f"PICTURES WERE NOT TESTED: {problem}")
    scene = nodes.mean.GetScene()
    before = [scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())]
    seen: list[float] = []
    paths = save_pictures(nodes, tmp_path, lambda ratio, message: seen.append(ratio))
    assert {caption: path.name for caption, path in paths.items()} == SLICES | SOLIDS
    assert list(paths) == [*SLICES, *SOLIDS] and seen == sorted(seen) and seen[-1] == 1
    assert before == [scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())]
    pictures = {path.name: read_png(path) for path in paths.values()}
    for name in SLICES.values():
        middle = pictures[name][100:700, 200:920].astype(int)
        coloured = middle.max(axis=-1) - middle.min(axis=-1) > 40
        assert 0.03 < coloured.mean() < 0.9, name
        assert pictures[name].shape == (800, 1120, 3)
    # The target at 70 Gy is red; where dose falls to a third it is blue.
    red, green, blue = np.moveaxis(pictures["axial_dose.png"][100:700, 200:920].astype(int), -1, 0)
    assert ((red > green + 60) & (red > blue + 40)).sum() > 1000
    assert ((blue > red + 40) & (blue > green)).sum() > 1000
    assert not np.array_equal(pictures["axial_dose.png"], pictures["axial_spread.png"])
    solid = pictures["view3d.png"].astype(int)
    assert ((solid[..., 0] > 150) & (solid[..., 1] < 110)).sum() > 3000  # the opaque target


def test_pictures_without_spread_or_reference(scene: Any, tmp_path: Path) -> None:
    problem = rendering_problem()
    if problem:
        pytest.skip(f"PICTURES WERE NOT TESTED: {problem}")
    patient = small_patient(with_dose=False)
    paths = save_pictures(show_prediction(scene, patient, hand_made_ensemble(patient, 0)), tmp_path)
    expected = [f"{o}_{what}.png" for what in ("dose", "isodose") for o in ("axial", "coronal", "sagittal")]
    assert [p.name for p in paths.values()] == [*expected, *SOLIDS.values()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="EGL is Linux's")
def test_missing_drivers_are_named_and_crash_nothing(tmp_path: Path) -> None:
    code = "from RTDigitalTwinLib.scene.rendering import rendering_problem; print(rendering_problem())"
    (tmp_path / "libEGL.so.1").write_bytes(b"")
    faults = {
        "libegl1": {"LD_LIBRARY_PATH": str(tmp_path)},
        "no driver draws": {"__EGL_VENDOR_LIBRARY_FILENAMES": str(tmp_path / "absent.json")},
    }
    for words, fault in faults.items():
        environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | fault
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 and words in done.stdout and "libegl-mesa0" in done.stdout, done.stdout


def test_colour_tables_that_cannot_be_read_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from RTDigitalTwinLib.patient import colours

    broken = tmp_path / "structure_colours.toml"
    monkeypatch.setattr(colours, "resource_path", lambda *parts: broken)
    for text in ("[colours]\nA = [1, 2]\n[palette]\ncolours = [[0, 0, 0]]", "[colours]\nA = [1, 2, 300]", "["):
        broken.write_text(text)
        colours._colours.cache_clear()
        with pytest.raises(RTDigitalTwinError, match="structure_colours.toml: The structure colours cannot be read"):
            structure_colour("A")
    colours._colours.cache_clear()


def read_png(path: Path) -> np.ndarray:
    """Pixels (rows, columns, 3), uint8, from the top."""
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    columns, rows, _ = image.GetDimensions()
    pixels = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return pixels.reshape(rows, columns, -1)[::-1, :, :3]
