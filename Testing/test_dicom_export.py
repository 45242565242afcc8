"""What is written as DICOM-RT, judged by dciodvfy and read back by SimpleITK and plastimatch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib import Twin
from RTDigitalTwinLib.dosimetry.planning import planned
from RTDigitalTwinLib.errors import OutputError, PatientDataError
from RTDigitalTwinLib.model.network_patient import network_patient
from RTDigitalTwinLib.patient.dicom_dose import read_dose
from RTDigitalTwinLib.patient.dicom_export import write_dose, write_patient, write_structures
from RTDigitalTwinLib.patient.dicom_index import index_file
from RTDigitalTwinLib.patient.dicom_patient import read_patient, source_origin
from RTDigitalTwinLib.patient.dicom_structures import read_rois, roi_structure
from RTDigitalTwinLib.patient.dicom_writing import NOTICE
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from Testing.builders import FRAME, small_patient
from Testing.dicom_sets import contours_of, dose_of

FILES = ("CT.0064", "RTSTRUCT", "RTPLAN", "RTDOSE")


@pytest.fixture(scope="module")
def dosed(sample: Patient) -> Patient:
    return planned(sample)


@pytest.fixture(scope="module")
def written(dosed: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "set"
    write_patient(dosed, folder)
    return folder


@pytest.fixture(scope="module")
def read(written: Path) -> Patient:
    return read_patient(written)


def test_the_sample_comes_back_as_it_was(dosed: Patient, read: Patient) -> None:
    assert read.ct.grid.same_as(replace(dosed.ct.grid, frame_of_reference=read.ct.grid.frame_of_reference))
    np.testing.assert_array_equal(read.ct.values, dosed.ct.values)
    assert list(read.structures) == list(dosed.structures)
    assert [text.split(":")[0] for text in read.warnings] == ["This is no clinical plan", "The plan is UNAPPROVED"]
    assert any("no clinical plan" in text for text in dosed.warnings) and "no clinical plan" in read.plan.label
    assert read.plan.prescription == dosed.plan.prescription
    assert read.plan.gantry_angles_deg == dosed.plan.gantry_angles_deg
    step = dose_of(dosed).max() / 65535
    assert np.abs(dose_of(read) - dose_of(dosed)).max() <= 0.51 * step
    np.testing.assert_array_equal(read.dose_mask.mask, dosed.dose_mask.mask)


@pytest.mark.parametrize(
    ("name", "volume", "voxels"),
    [("Brainstem", 0.02, 0.05), ("SpinalCord", 0.01, 0.08), ("Parotid_R", 0.01, 0.06), ("Parotid_L", 0.01, 0.07),
     ("Esophagus", 0.03, 0.09), ("Larynx", 0.05, 0.07), ("Bone_Mandible", 0.01, 0.10), ("PTV_7000", 0.005, 0.04),
     ("PTV_6300", 0.005, 0.10), ("PTV_5600", 0.005, 0.08)],
)  # fmt: skip
def test_occupancy_comes_back_within_the_outlines_reach(
    dosed: Patient, read: Patient, name: str, volume: float, voxels: float
) -> None:
    """An outline keeps no partial thickness of slices and rounds corners: shares of the volume that may be off."""
    before, after = dosed.structures[name], read.structures[name]
    assert after.volume_cc == pytest.approx(before.volume_cc, rel=volume)
    assert np.abs(after.occupancy - before.occupancy).sum() / before.occupancy.sum() < voxels
    assert 2 * (after.mask & before.mask).sum() / (after.mask.sum() + before.mask.sum()) > 0.96


def test_the_read_sample_goes_to_the_network_unchanged(read: Patient) -> None:
    prepared = network_patient(read)
    assert not prepared.is_extrapolated and prepared.seen.ct.grid is read.ct.grid


def test_the_read_sample_gets_the_same_dose(dosed: Patient, read: Patient) -> None:
    """Measured: 0.13 Gy apart on average, 1.0 Gy in the 99th percentile, for outlines keep partial volumes roughly."""
    directly, again = (Twin(patient, device="cpu").predict(samples=0).mean.values for patient in (dosed, read))
    apart = np.abs(directly - again)[directly > 0]
    assert apart.mean() < 0.2 and np.percentile(apart, 99) < 1.5


def test_uids_are_fresh_and_references_hold(written: Path, dosed: Patient, tmp_path: Path) -> None:
    plan, dose, structures = (pydicom.dcmread(written / f"{name}.dcm") for name in ("RTPLAN", "RTDOSE", "RTSTRUCT"))
    assert dose.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID
    slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(written.glob("CT*"))]
    assert {ds.FrameOfReferenceUID for ds in (*slices, dose, structures)} == {plan.FrameOfReferenceUID}
    uids = [ds.SOPInstanceUID for ds in (*slices, plan, dose, structures)]
    assert len(set(uids)) == len(uids) == 131
    again = write_patient(dosed, tmp_path / "again")
    assert not {again.study_uid, again.plan_uid, again.ct_uids[0]} & {*uids, plan.StudyInstanceUID}
    assert NOTICE in dose.DoseComment and "RTDigitalTwin" in dose.Manufacturer and dose.SoftwareVersions
    assert dose.PatientID == "sample-0"


def errors_found(path: Path) -> list[str]:
    """What dciodvfy finds wrong; nothing where it is not installed."""
    if shutil.which("dciodvfy") is None:
        return []
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert any(line.startswith(("CTImage", "RTStructureSet", "RTPlan", "RTDose")) for line in said), said
    return [line for line in said if line.startswith("Error")]


@pytest.mark.parametrize("name", FILES)
def test_dciodvfy_finds_no_error(written: Path, name: str) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian dicom3tools) is not installed")
    assert errors_found(written / f"{name}.dcm") == []


def test_a_contour_of_more_than_64_kilobytes_stays_readable(tmp_path: Path) -> None:
    """Explicit VR has two bytes for the length of decimal strings: there, it would become an element of unknown VR."""
    grid = Grid((3, 140, 240), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), frame_of_reference=FRAME)
    comb = np.zeros(grid.shape, bool)
    comb[1, 10:130:3, 20:220] = comb[1, 10:130, 20:22] = True
    made = small_patient(grid)
    patient = replace(made, structures={**made.structures, "SpinalCord": Structure.from_array(
        "SpinalCord", comb, grid, StructureKind.ORGAN)})  # fmt: skip
    write_patient(patient, tmp_path / "set")
    (contour,) = contours_of(pydicom.dcmread(tmp_path / "set" / "RTSTRUCT.dcm"), "SpinalCord")
    assert contour["ContourData"].VR == "DS"
    assert sum(len(str(v)) + 1 for v in contour.ContourData) > 2**16
    assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
    if shutil.which("plastimatch") is not None:
        masks = tmp_path / "masks"
        command = ["plastimatch", "convert", "--input", str(tmp_path / "set"), "--output-prefix", str(masks)]
        subprocess.run([*command, "--prefix-format", "mha"], check=True, capture_output=True)
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(masks / "SpinalCord.mha"))) > 0
        np.testing.assert_array_equal(theirs, comb)


def test_simpleitk_reads_the_same_dose_and_ct(written: Path, dosed: Patient) -> None:
    image = sitk.ReadImage(str(written / "RTDOSE.dcm"))
    scaling = float(pydicom.dcmread(written / "RTDOSE.dcm").DoseGridScaling)
    gy = sitk.GetArrayFromImage(image).astype(float)
    if gy.max() > 1000:  # stored values: this reader leaves the scaling to its caller
        gy *= scaling
    assert np.abs(gy - dose_of(dosed)).max() <= 0.51 * scaling + 1e-6
    assert image.GetOrigin() == pytest.approx(dosed.ct.grid.origin_mm)
    assert image.GetSpacing() == pytest.approx(dosed.ct.grid.spacing_mm)
    reader = sitk.ImageSeriesReader()
    series = pydicom.dcmread(written / "CT.0001.dcm", stop_before_pixels=True).SeriesInstanceUID
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(written), series))
    ct = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), dosed.ct.values)
    assert ct.GetOrigin() == pytest.approx(dosed.ct.grid.origin_mm)
    assert ct.GetSpacing() == pytest.approx(dosed.ct.grid.spacing_mm)


def test_plastimatch_reads_the_same_masks_and_dose(
    written: Path, dosed: Patient, read: Patient, tmp_path: Path
) -> None:
    if shutil.which("plastimatch") is None:
        pytest.skip("plastimatch is not installed")
    masks, dose = tmp_path / "masks", tmp_path / "dose.mha"
    subprocess.run(
        ["plastimatch", "convert", "--input", str(written), "--output-prefix", str(masks), "--prefix-format", "mha",
         "--output-dose-img", str(dose)],
        check=True, capture_output=True,
    )  # fmt: skip
    gy = sitk.GetArrayFromImage(sitk.ReadImage(str(dose)))
    step = dose_of(dosed).max() / 65535
    assert np.abs(gy - dose_of(dosed)).max() <= 0.51 * step + 1e-4
    for name, structure in read.structures.items():
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(masks / f"{name}.mha"))) > 0
        # Theirs takes the voxel's centre, ours half of its area: border voxels differ, of a cord in 4 mm pixels many.
        dice = 2 * (theirs & structure.mask).sum() / (theirs.sum() + structure.mask.sum())
        assert dice > 0.96, (name, dice)
        assert theirs.sum() * structure.grid.voxel_volume_mm3 / 1000 == pytest.approx(structure.volume_cc, rel=0.1)


def test_a_dose_goes_back_to_the_record_it_came_from(written: Path, dosed: Patient, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "set"))
    for path in folder.glob("*.dcm"):
        ds = pydicom.dcmread(path)
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "H-77", "19500203", "F"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20190405", "101500", "S7", "A-1"
        ds.ReferringPhysicianName = "Roe^Richard"
        ds.save_as(path)
    origin = source_origin(folder)
    write_dose(
        Volume(dose_of(dosed), dosed.ct.grid, Quantity.DOSE_GY),
        tmp_path / "back.dcm",
        origin,
        "Predicted dose",
        predicted=True,
    )
    back, plan = pydicom.dcmread(tmp_path / "back.dcm"), pydicom.dcmread(folder / "RTPLAN.dcm")
    for key in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        assert back[key].value == plan[key].value
    assert back.FrameOfReferenceUID == plan.FrameOfReferenceUID
    assert back.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    structures = pydicom.dcmread(folder / "RTSTRUCT.dcm")
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID
    assert errors_found(tmp_path / "back.dcm") == []
    assert back.DoseComment.startswith("Predicted, not calculated.")
    assert back.SOPInstanceUID not in [pydicom.dcmread(p).SOPInstanceUID for p in folder.glob("RT*")]


@pytest.mark.parametrize(
    ("quantity", "comment"),
    [(Quantity.DOSE_WIDTH_GY, "Half width of calibrated 95 %"), (Quantity.DOSE_STD_GY, "Standard deviation"),
     (Quantity.DOSE_DIFFERENCE_GY, "Difference of doses")],
)  # fmt: skip
def test_a_spread_says_what_it_is_and_is_read_as_no_dose(
    written: Path, dosed: Patient, tmp_path: Path, quantity: Quantity, comment: str
) -> None:
    path = tmp_path / "spread.dcm"
    write_dose(Volume(0.1 * dose_of(dosed), dosed.ct.grid, quantity), path, source_origin(written), "Spread")
    back = pydicom.dcmread(path)
    assert back.DoseType == "ERROR" and back.DoseComment.startswith(comment) and len(back.DoseComment) <= 64
    assert errors_found(path) == []
    with pytest.raises(PatientDataError, match="DoseType is ERROR"):
        read_dose(index_file(path, path.name))
    gy = back.pixel_array * float(back.DoseGridScaling)
    np.testing.assert_allclose(gy, 0.1 * dose_of(dosed), atol=0.51 * float(back.DoseGridScaling))


def test_structures_on_another_grid_are_a_set_of_their_own(written: Path, dosed: Patient, tmp_path: Path) -> None:
    path = tmp_path / "structures.dcm"
    speck = np.zeros(dosed.ct.grid.shape, np.float32)
    speck[60, 60, 60] = 0.3
    empty = Structure.from_array("Larynx", speck, dosed.ct.grid, StructureKind.ORGAN)
    write_structures([dosed.structures["PTV_7000"], empty], path, source_origin(written), "As used")
    assert errors_found(path) == []
    back, plan = pydicom.dcmread(path), pydicom.dcmread(written / "RTPLAN.dcm")
    assert back.SOPInstanceUID != plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID
    assert back.FrameOfReferenceUID == plan.FrameOfReferenceUID
    rois = read_rois(index_file(path, path.name))
    assert [(roi.name, roi.is_empty) for roi in rois] == [("PTV_7000", False), ("Larynx", True)]
    drawn = roi_structure(rois[0], dosed.ct.grid, {})
    assert drawn.volume_cc == pytest.approx(dosed.structures["PTV_7000"].volume_cc, rel=0.005)


def test_what_is_no_dose_is_not_written(dosed: Patient, written: Path, tmp_path: Path) -> None:
    origin = source_origin(written)
    grid = dosed.ct.grid
    for values in (np.zeros(grid.shape), np.full(grid.shape, -1.0)):
        with pytest.raises(PatientDataError, match="below 0 Gy"):
            write_dose(Volume(values, grid, Quantity.DOSE_GY), tmp_path / "dose.dcm", origin, "none")
    with pytest.raises(PatientDataError, match="HU are no doses"):
        write_dose(dosed.ct, tmp_path / "dose.dcm", origin, "none")


def test_a_folder_with_content_is_left_alone(dosed: Patient, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").touch()
    with pytest.raises(OutputError, match="not empty"):
        write_patient(dosed, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
