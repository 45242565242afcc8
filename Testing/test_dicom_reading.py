"""DICOM-RT as hospitals export it: what is read, and what each trap does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian, RLELossless, generate_uid

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.dicom_dose import read_dose
from RTDigitalTwinLib.patient.dicom_index import CT, RTDOSE, RTPLAN, RTSTRUCT, DicomIndex, index_folder
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, read_patient
from RTDigitalTwinLib.patient.dicom_plan import read_plan
from RTDigitalTwinLib.patient.dicom_structures import occupancies, read_rois
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Patient
from Testing.builders import GRIDS
from Testing.dicom_sets import contours_of, edit_all, edited, small_set


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Patient]:
    folder = tmp_path_factory.mktemp("dicom") / "set"
    return folder, small_set(folder)


@pytest.fixture
def folder(original: tuple[Path, Patient], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original[0], tmp_path / "set"))


def accepting(*checks: str) -> DicomChoice:
    return DicomChoice(overrides=Overrides(frozenset(checks)))


def only(index: DicomIndex, kind: str):  # noqa: ANN201
    (file,) = index.patient().of_kind(kind)
    return file


# What is read


def test_geometry_values_and_plan_come_back(original: tuple[Path, Patient]) -> None:
    folder, written = original
    read = read_patient(folder)
    assert read.ct.grid.same_as(written.ct.grid)
    np.testing.assert_array_equal(read.ct.values, np.maximum(written.ct.values, -1024))
    assert read.ct.values.dtype == np.int16
    assert list(read.structures) == list(written.structures)
    assert read.plan.prescription == written.plan.prescription
    assert read.pseudonym.startswith("patient-") and written.pseudonym not in read.pseudonym
    for name, structure in read.structures.items():
        assert structure.kind is written.structures[name].kind
        assert structure.volume_cc == pytest.approx(written.structures[name].volume_cc, rel=0.03), name
    step = written.plan.dose.values.max() / 65535
    np.testing.assert_allclose(read.plan.dose.values, written.plan.dose.values, atol=0.51 * step + 1e-6)
    assert (read.dose_mask.mask == written.dose_mask.mask).mean() > 0.999


@pytest.mark.parametrize("name", GRIDS)
def test_any_direction_is_read_by_its_cosines(name: str, tmp_path: Path) -> None:
    written = small_set(tmp_path / "set", GRIDS[name]())
    # Positions that a hospital may write wrongly or leave empty are never looked at.
    edit_all(tmp_path / "set", "CT*", lambda ds, i: setattr(ds, "PatientPosition", ("FFS", "", "HFDR")[i % 3]))
    read = read_patient(tmp_path / "set")
    assert read.ct.grid.same_as(written.ct.grid)
    for structure, name in ((read.structures[n], n) for n in read.structures):
        assert structure.centroid_mm == pytest.approx(written.structures[name].centroid_mm, abs=0.7)


def test_feet_first_and_prone_slices_lie_where_their_cosines_say(folder: Path) -> None:
    """The same scan with rows and columns reversed: the anatomy must not move."""
    before = read_patient(folder)

    def turn(ds: Dataset, i: int) -> None:
        pixels = ds.pixel_array
        rows, columns = (np.array(ds.ImageOrientationPatient[a : a + 3], float) for a in (3, 0))
        far = np.array(ds.ImagePositionPatient, float)
        far += rows * (ds.Rows - 1) * ds.PixelSpacing[0] + columns * (ds.Columns - 1) * ds.PixelSpacing[1]
        ds.ImagePositionPatient = [f"{v:.6g}" for v in far]
        ds.ImageOrientationPatient = [-v for v in ds.ImageOrientationPatient]
        ds.PixelData = pixels[::-1, ::-1].tobytes()
        ds.PatientPosition = "HFP"

    edit_all(folder, "CT*", turn)
    after = read_patient(folder)
    assert np.reshape(after.ct.grid.direction, (3, 3))[0, 0] == -1
    for name, structure in before.structures.items():
        assert after.structures[name].centroid_mm == pytest.approx(structure.centroid_mm, abs=0.05)
        assert after.structures[name].volume_cc == pytest.approx(structure.volume_cc, rel=1e-3)


def test_nesting_names_and_other_files_do_not_matter(folder: Path) -> None:
    deep = folder / "a" / "b c"
    deep.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.glob("*.dcm"))):
        path.rename((deep if i % 2 else folder / "a") / f"{(i * 7919) % 1000:03d}")
    (deep / "notes.txt").write_text("no DICOM")
    (folder / "empty").touch()
    (folder / "picture.png").write_bytes(b"\x89PNG" + bytes(200))
    index = index_folder(folder)
    assert index.other_files == 3 and not index.problems
    assert {k: len(index.patient().of_kind(k)) for k in (CT, RTSTRUCT, RTPLAN, RTDOSE)} == {
        CT: 24, RTSTRUCT: 1, RTPLAN: 1, RTDOSE: 1,
    }  # fmt: skip
    read_patient(folder)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "no preamble", "emptied"])
def test_one_bad_file_costs_only_itself(folder: Path, damage: str) -> None:
    good = (folder / "CT.0001.dcm").read_bytes()
    bad = {
        "garbage": bytes(128) + b"DICM" + bytes(range(256)) * 8,
        "truncated": good[:300],
        "no preamble": b"\x08\x00\x05\x00CS\xff\xff" + bytes(40),
        "emptied": good[:132],
    }[damage]
    (folder / "bad").write_bytes(bad)
    index = index_folder(folder)
    assert len(index.problems) + index.other_files >= 1
    assert all("bad" in problem.where for problem in index.problems)
    patient = read_patient(folder)
    assert patient.ct.grid.shape[0] == 24
    if index.problems:
        assert any("1 DICOM files have problems" in text for text in patient.warnings)


def test_several_patients_need_a_choice(folder: Path, tmp_path: Path) -> None:
    small_set(tmp_path / "set" / "second")
    with edited(tmp_path / "set" / "second" / "CT.0001.dcm") as ds:
        other = ds.StudyInstanceUID
    edit_all(tmp_path / "set" / "second", "*.dcm", lambda ds, i: setattr(ds, "PatientID", "other-1"))
    index = index_folder(folder)
    assert len(index.patients) == 2 and other
    with pytest.raises(PatientDataError, match="2 patients: patient-.*--patient"):
        read_patient(folder)
    for pseudonym in index.patients:
        assert read_patient(folder, DicomChoice(patient=pseudonym)).pseudonym == pseudonym
    assert read_patient(folder, DicomChoice(patient="other-1")).pseudonym in index.patients
    with pytest.raises(PatientDataError, match="no such patient"):
        read_patient(folder, DicomChoice(patient="patient-00000000"))


# CT slices


def test_a_missing_slice_is_named_with_its_gap(folder: Path) -> None:
    (folder / "CT.0007.dcm").unlink()
    with pytest.raises(PatientDataError, match=r"1 of 22 steps differ from 5\.00 mm.*10\.00 mm.*--accept gaps"):
        read_patient(folder)
    filled = read_patient(folder, accepting("gaps"))
    assert filled.ct.grid.shape[0] == 24
    assert any(text.startswith("Overridden by the user (gaps)") for text in filled.warnings)
    neighbours = [pydicom.dcmread(folder / f"CT.{k:04d}.dcm").pixel_array for k in (6, 8)]
    np.testing.assert_allclose(filled.ct.values[6], np.mean(neighbours, axis=0), atol=0.51)


def test_uneven_slices_are_refused(folder: Path) -> None:
    with edited(folder / "CT.0010.dcm") as ds:
        ds.ImagePositionPatient[2] += 1.5
    with pytest.raises(PatientDataError, match="2 of 23 steps differ"):
        read_patient(folder)


def test_gantry_tilt_is_refused_with_its_angle(folder: Path) -> None:
    def shear(ds: Dataset, i: int) -> None:
        ds.ImagePositionPatient[1] = float(ds.ImagePositionPatient[1]) + i * 5.0 * np.tan(np.deg2rad(10))

    edit_all(folder, "CT*", shear)
    with pytest.raises(PatientDataError, match=r"gantry tilt of 10\.0 degrees"):
        read_patient(folder)


def test_a_slice_twice_is_dropped_or_refused(folder: Path) -> None:
    copy = folder / "CT.copy.dcm"
    shutil.copy(folder / "CT.0005.dcm", copy)
    assert "copy of" in index_folder(folder).problems[0].what  # the same object
    with edited(copy) as ds:
        ds.SOPInstanceUID = generate_uid()
    assert "1 CT slices are there twice; the copies were left out." in read_patient(folder).warnings
    with edited(copy) as ds:
        ds.PixelData = bytes(len(ds.PixelData))
    with pytest.raises(PatientDataError, match="Two different slices"):
        read_patient(folder)


def test_several_orientations_or_sizes_are_refused(folder: Path) -> None:
    with edited(folder / "CT.0005.dcm") as ds:
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    with pytest.raises(PatientDataError, match="several orientations"):
        read_patient(folder)
    with edited(folder / "CT.0005.dcm") as ds:
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing = [1, 1]
    with pytest.raises(PatientDataError, match="pixels of 1 x 1 mm"):
        read_patient(folder)


def test_a_localizer_is_left_out(folder: Path) -> None:
    shutil.copy(folder / "CT.0005.dcm", folder / "scout.dcm")
    with edited(folder / "scout.dcm") as ds:
        ds.SOPInstanceUID, ds.ImageType = generate_uid(), ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    assert "1 localizer images of the CT series were left out." in read_patient(folder).warnings


def test_another_series_is_not_mixed_in(folder: Path) -> None:
    series = generate_uid()
    for path in sorted(folder.glob("CT*"))[:6]:
        shutil.copy(path, folder / f"other.{path.name}")
        with edited(folder / f"other.{path.name}") as ds:
            ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), series
    assert read_patient(folder).ct.grid.shape[0] == 24


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                                 "RescaleIntercept", "Rows", "PixelData", "BitsAllocated"])  # fmt: skip
def test_a_missing_ct_tag_is_named(folder: Path, tag: str) -> None:
    with edited(folder / "CT.0005.dcm") as ds:
        del ds[tag]
    with pytest.raises(PatientDataError, match=rf"CT\.0005\.dcm.*{tag} is missing"):
        read_patient(folder)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "not perpendicular"),
        ("PixelSpacing", [-1, 1], "PixelSpacing is -1"),
        ("RescaleSlope", 0, "RescaleSlope is 0"),
        ("BitsAllocated", 64, "cannot be read"),
        ("Rows", 60000, "60000 x 40 pixels"),
        ("NumberOfFrames", 7, "several frames"),
    ],
)
def test_an_absurd_ct_tag_is_named(folder: Path, tag: str, value: object, message: str) -> None:
    with edited(folder / "CT.0005.dcm") as ds:
        setattr(ds, tag, value)
    with pytest.raises(PatientDataError, match=message):
        read_patient(folder)


def test_pixels_cut_short_are_an_error_not_zeros(folder: Path) -> None:
    with edited(folder / "CT.0005.dcm") as ds:
        ds.PixelData = ds.PixelData[:1000]
    with pytest.raises(PatientDataError, match=r"CT\.0005\.dcm: \(7FE0,0010\) PixelData is cut short: 1000"):
        read_patient(folder)


def test_more_pixels_than_the_sizes_say_are_an_error(folder: Path) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.NumberOfFrames, ds.GridFrameOffsetVector = 12, ds.GridFrameOffsetVector[:12]
    with pytest.raises(PatientDataError, match=r"holds 69120 bytes, but 12 frames of 36 x 40 pixels need 34560"):
        dose_in(folder)


def test_nothing_is_logged_of_what_a_file_says(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "CT.0005.dcm"
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"PLANTED 77"))
    read_patient(folder)
    assert "PLANTED" not in caplog.text and not caplog.records


def test_rescaling_to_hu(folder: Path) -> None:
    before = read_patient(folder).ct.values

    def shift(ds: Dataset, i: int) -> None:
        ds.PixelData = ((np.maximum(ds.pixel_array.astype(np.int32), -1024) + 1024) * 2).astype("<u2").tobytes()
        ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope = 0, -1024, "0.5"

    edit_all(folder, "CT*", shift)
    np.testing.assert_array_equal(read_patient(folder).ct.values, before)


# Transfer syntaxes


def test_big_endian_and_rle_are_decoded(folder: Path) -> None:
    before = read_patient(folder).ct.values
    for path in sorted(folder.glob("CT*"))[::2]:
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless)
        ds.save_as(path)
    for path in sorted(folder.glob("CT*"))[1::2]:
        ds = pydicom.dcmread(path)
        ds.PixelData = ds.pixel_array.astype(">i2").tobytes()
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(read_patient(folder).ct.values, before)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_jpeg_is_decoded(folder: Path, compressor: str, tmp_path: Path) -> None:
    """Lossless JPEG and JPEG 2000 as GDCM writes them, put in the place of the pixels."""
    before = read_patient(folder).ct.values
    path = folder / "CT.0012.dcm"
    written = pydicom.dcmread(path)
    image = sitk.GetImageFromArray(written.pixel_array[None])
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "jpeg.dcm"))
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(image)
    packed = pydicom.dcmread(tmp_path / "jpeg.dcm")
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    written.PixelData = packed.PixelData
    written["PixelData"].VR = "OB"
    written["PixelData"].is_undefined_length = True
    written.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    written.save_as(path)
    np.testing.assert_array_equal(read_patient(folder).ct.values, before)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4.5", "1.2.840.10008.1.2.1.99"])
def test_a_syntax_that_cannot_be_decoded_is_named(folder: Path, syntax: str) -> None:
    path = folder / "CT.0012.dcm"
    ds = pydicom.dcmread(path)
    old = str(ds.file_meta.TransferSyntaxUID).encode()
    content = path.read_bytes()
    padded = syntax.encode() + b"\0" * (len(syntax) % 2)
    place = content.index(old)
    length = int.from_bytes(content[place - 2 : place], "little")
    changed = content[: place - 2] + len(padded).to_bytes(2, "little") + padded + content[place + length :]
    group = content.index(b"\x02\0\0\0UL\x04\0") + 8
    size = int.from_bytes(content[group : group + 4], "little") + len(padded) - length
    path.write_bytes(changed[:group] + size.to_bytes(4, "little") + changed[group + 4 :])
    with pytest.raises(PatientDataError) as caught:
        read_patient(folder)
    problems = " ".join(problem.what for problem in index_folder(folder).problems)
    assert syntax in f"{caught.value} {problems}"


# Structures


def set_of(folder: Path):  # noqa: ANN201
    """Structures drawn on the CT by name, and what was noticed."""
    index = index_folder(folder)
    warnings: list[str] = []
    rois = read_rois(only(index, RTSTRUCT))
    drawn = occupancies(rois, small_grid(index), warnings)
    return {roi.name: drawn[roi.number] for roi in rois if roi.number in drawn}, warnings


def small_grid(index: DicomIndex):  # noqa: ANN201
    from RTDigitalTwinLib.patient.dicom_ct import read_ct

    (series,) = index.patient().ct_series.values()
    return read_ct(series, Overrides(), []).grid


def test_contours_are_matched_by_position_never_by_index_or_reference(folder: Path) -> None:
    before, _ = set_of(folder)
    with edited(folder / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "Parotid_L")
        references = [contour.ContourImageSequence for contour in contours]
        for contour, reference in zip(contours, reversed(references), strict=True):
            contour.ContourImageSequence = reference
        contours.reverse()
    after, _ = set_of(folder)
    np.testing.assert_allclose(after["Parotid_L"].occupancy, before["Parotid_L"].occupancy, atol=1e-6)


def test_short_open_and_repeated_contours_are_left_out_with_a_count(folder: Path) -> None:
    before, _ = set_of(folder)
    with edited(folder / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "Parotid_L")
        for kind, count in (("POINT", 1), ("CLOSED_PLANAR", 2), ("OPEN_PLANAR", 3)):
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, count
            item.ContourData = [f"{v}" for v in np.arange(3 * count)]
            contours.append(item)
        contours.append(contours[0])
    after, warnings = set_of(folder)
    np.testing.assert_array_equal(after["Parotid_L"].occupancy, before["Parotid_L"].occupancy)
    assert warnings == [
        "Parotid_L: 1 contours of one or two points were left out; 2 points or open contours were left out; "
        "1 contours were there twice."
    ]


def test_contours_between_slices_count_by_overlap_and_are_told(folder: Path) -> None:
    before, _ = set_of(folder)
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for contour in contours_of(ds, "Parotid_L"):
            points = np.array(contour.ContourData, float).reshape(-1, 3) + (0, 0, 2.0)
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    after, warnings = set_of(folder)
    assert after["Parotid_L"].centroid_mm[2] == pytest.approx(before["Parotid_L"].centroid_mm[2] + 2.0, abs=1e-3)
    assert after["Parotid_L"].volume_cc == pytest.approx(before["Parotid_L"].volume_cc, rel=1e-4)
    assert "contour planes between CT slices count by their overlap" in warnings[0]


def test_contours_across_the_slices_are_refused(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for contour in contours_of(ds, "Parotid_L"):
            points = np.array(contour.ContourData, float).reshape(-1, 3)[:, [2, 0, 1]]
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    after, warnings = set_of(folder)
    assert "Parotid_L" not in after and len(after) == 4
    assert warnings == ["Parotid_L was left out: Its contours are not drawn parallel to the CT slices."]
    with pytest.raises(PatientDataError, match="Parotid_L: The structure is to be used, but cannot be drawn"):
        read_patient(folder)


def test_a_hole_as_a_contour_of_its_own_is_left_empty(folder: Path) -> None:
    before, _ = set_of(folder)
    with edited(folder / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "PTV_7000")
        for contour in list(contours):
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            middle = points.mean(axis=0)
            hole = Dataset()
            hole.ContourGeometricType, hole.NumberOfContourPoints = "CLOSEDPLANAR_XOR", len(points)
            hole.ContourData = [f"{v:.4f}" for v in (middle + (points - middle) / 2).ravel()]
            contours.append(hole)
    after, _ = set_of(folder)
    assert after["PTV_7000"].volume_cc == pytest.approx(0.75 * before["PTV_7000"].volume_cc, rel=0.01)


def test_a_gap_between_contours_stays_empty_and_is_told(folder: Path) -> None:
    before, _ = set_of(folder)
    with edited(folder / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "SpinalCord")
        del contours[10]
    after, warnings = set_of(folder)
    lost = before["SpinalCord"].occupancy.sum(axis=(1, 2)) - after["SpinalCord"].occupancy.sum(axis=(1, 2))
    assert np.count_nonzero(lost > 1e-3) == 1
    assert "SpinalCord: 1 gaps between its contours were left empty." in warnings


def test_contours_beyond_the_ct_are_counted(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for contour in contours_of(ds, "SpinalCord"):
            points = np.array(contour.ContourData, float).reshape(-1, 3) + (0, 0, 30.0)
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    _, warnings = set_of(folder)
    assert "SpinalCord: 6 contour planes lie beyond the CT." in warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "NumberOfContourPoints", 7), "NumberOfContourPoints is 7"),
        (lambda c: setattr(c, "ContourData", c.ContourData[:-1]), "no valid triples"),
        (lambda c: setattr(c, "ContourData", ["1e30"] * len(c.ContourData)), "no valid triples"),
    ],
)
def test_a_damaged_contour_costs_its_structure_only(
    folder: Path, change: Callable[[Dataset], None], message: str
) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        change(contours_of(ds, "Parotid_L")[0])
    after, warnings = set_of(folder)
    assert len(after) == 4
    assert "Parotid_L was left out" in warnings[0] and message in warnings[0]


def test_two_structures_of_one_name_block(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        ds.StructureSetROISequence[3].ROIName = "Parotid_R"
    with pytest.raises(PatientDataError, match="Parotid_R: Two structures of the source have this name"):
        read_patient(folder)


def test_swapped_sides_are_caught_by_the_geometry(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for roi in ds.StructureSetROISequence:
            roi.ROIName = {"Parotid_L": "Parotid_R", "Parotid_R": "Parotid_L"}.get(roi.ROIName, roi.ROIName)
    with pytest.raises(PatientDataError, match="Parotid_R must lie to the right of Parotid_L"):
        read_patient(folder)


def test_one_gland_alone_is_checked_against_the_middle(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for roi in ds.StructureSetROISequence:
            roi.ROIName = {"Parotid_L": "Parotid_R", "Parotid_R": "left over"}.get(roi.ROIName, roi.ROIName)
    with pytest.raises(PatientDataError, match="counts as Parotid_R, but lies 4. mm on the other side"):
        read_patient(folder)


# Who, which study, which frame


def test_a_structure_set_of_another_patient_stops_everything(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        ds.PatientID, ds.PatientName = "12345", "Doe^Jane"
    assert any("refers to an object of" in problem.what for problem in index_folder(folder).problems)
    main = max(index_folder(folder).patients.values(), key=lambda p: len(p.files)).pseudonym
    with pytest.raises(PatientDataError, match="another patient's identity.*--accept identity") as caught:
        read_patient(folder, DicomChoice(patient=main))
    assert "Doe" not in str(caught.value) and "12345" not in str(caught.value)
    choice = DicomChoice(patient=main, overrides=Overrides(frozenset({"identity"})))
    patient = read_patient(folder, choice)
    assert any(text.startswith("Overridden by the user (identity)") for text in patient.warnings)


def test_one_identifier_with_two_names_stops_everything(folder: Path) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.PatientName = "Doe^Jane"
    with pytest.raises(PatientDataError, match="differ in name or birth date"):
        read_patient(folder)


@pytest.mark.parametrize("file", ["RTSTRUCT.dcm", "RTDOSE.dcm", "RTPLAN.dcm"])
def test_another_frame_of_reference_blocks(folder: Path, file: str) -> None:
    other = generate_uid()
    with edited(folder / file) as ds:
        ds.FrameOfReferenceUID = other
        for frame in ds.get("ReferencedFrameOfReferenceSequence", []):
            frame.FrameOfReferenceUID = other
        for roi in ds.get("StructureSetROISequence", []):
            roi.ReferencedFrameOfReferenceUID = other
    with pytest.raises(PatientDataError, match="another frame of reference.*--accept frame") as caught:
        read_patient(folder)
    assert other not in str(caught.value)
    accepted = read_patient(folder, accepting("frame"))
    assert any(text.startswith("Overridden by the user (frame)") for text in accepted.warnings)
    assert accepted.plan.dose is not None


def test_one_structure_of_another_frame_blocks(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        ds.StructureSetROISequence[2].ReferencedFrameOfReferenceUID = generate_uid()
    with pytest.raises(PatientDataError, match="1 structures have another frame of reference"):
        read_patient(folder)


def test_another_study_without_a_reference_stops(folder: Path) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.StudyInstanceUID = generate_uid()
    tied = read_patient(folder)
    assert "The dose is of another study than the CT it refers to." in tied.warnings
    with edited(folder / "RTDOSE.dcm") as ds:
        del ds.ReferencedRTPlanSequence
    with pytest.raises(PatientDataError, match="another study.*--accept study"):
        read_patient(folder)


@pytest.mark.parametrize(
    ("lost", "message"),
    [("CT*", "There is no CT"), ("RTSTRUCT*", "no structure set"), ("RTPLAN*", "how many fractions.*--fractions")],
)
def test_what_is_missing_is_named(folder: Path, lost: str, message: str) -> None:
    for path in folder.glob(lost):
        path.unlink()
    with pytest.raises(PatientDataError, match=message):
        read_patient(folder)


def test_without_a_plan_the_user_states_the_fractions(folder: Path) -> None:
    (folder / "RTPLAN.dcm").unlink()
    patient = read_patient(folder, DicomChoice(fractions=35))
    assert patient.plan.prescription.fractions == 35
    assert "35 fractions were stated by the user." in patient.warnings


# The dose


def dose_in(folder: Path):  # noqa: ANN201
    return read_dose(only(index_folder(folder), RTDOSE))


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("DoseGridScaling", None, "DoseGridScaling is missing"),
        ("DoseGridScaling", 0, "must be above 0"),
        ("DoseGridScaling", "1000", "reaches"),
        ("DoseUnits", "RELATIVE", "DoseUnits is RELATIVE"),
        ("DoseUnits", None, "DoseUnits is missing"),
        ("DoseType", "ERROR", "DoseType is ERROR"),
        ("GridFrameOffsetVector", None, "GridFrameOffsetVector is missing"),
        ("GridFrameOffsetVector", [5.0 * i + 3 for i in range(24)], "neither 0 nor the position"),
        ("GridFrameOffsetVector", [0.0] + [5.0 * i + 1 for i in range(1, 24)], "not evenly"),
        ("GridFrameOffsetVector", [5.0 * i for i in range(23)], "23 entries for 24 frames"),
    ],
)
def test_a_dose_of_open_meaning_is_refused(folder: Path, tag: str, value: object, message: str) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        if value is None:
            del ds[tag]
        else:
            setattr(ds, tag, value)
    with pytest.raises(PatientDataError, match=message):
        dose_in(folder)
    patient = read_patient(folder)  # the rest is read, and it is told
    assert patient.plan.dose is None
    assert any(text.startswith("A dose was left out") for text in patient.warnings)


@pytest.mark.parametrize("summation", ["BEAM", "FRACTION", "MULTI_PLAN"])
def test_a_part_is_not_taken_for_the_plan(folder: Path, summation: str) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.DoseSummationType = summation
    assert dose_in(folder).summation == summation
    patient = read_patient(folder)
    assert patient.plan.dose is None
    assert any(f"summation {summation} was left out" in text for text in patient.warnings)


def test_effective_dose_is_labelled(folder: Path) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.DoseType = "EFFECTIVE"
    assert any("EFFECTIVE" in text for text in read_patient(folder).warnings)


def test_both_kinds_of_frame_offsets_and_either_sense(folder: Path) -> None:
    relative = dose_in(folder).dose
    z = relative.grid.origin_mm[2]
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.GridFrameOffsetVector = [z + 5.0 * i for i in range(24)]
    absolute = dose_in(folder).dose
    assert absolute.grid.same_as(relative.grid)
    np.testing.assert_array_equal(absolute.values, relative.values)
    with edited(folder / "RTDOSE.dcm") as ds:  # top frame first
        ds.ImagePositionPatient[2] = z + 5.0 * 23
        ds.GridFrameOffsetVector = [-5.0 * i for i in range(24)]
        ds.PixelData = ds.pixel_array[::-1].tobytes()
    downwards = dose_in(folder).dose
    assert downwards.grid.same_as(relative.grid)
    np.testing.assert_array_equal(downwards.values, relative.values)


def test_a_dose_on_a_smaller_grid_is_undefined_beyond_it(folder: Path) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        pixels = ds.pixel_array[6:18]
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 6 * 5.0
        ds.NumberOfFrames, ds.GridFrameOffsetVector = 12, [5.0 * i for i in range(12)]
        ds.PixelData = pixels.tobytes()
    patient = read_patient(folder)
    dose = patient.plan.dose.values
    assert np.isnan(dose[:5]).all() and np.isfinite(dose[6:18]).all()
    assert any("of SpinalCord; beyond it the dose is not known" in text for text in patient.warnings)
    assert not any("of PTV_7000; beyond" in text for text in patient.warnings)


def test_a_dose_that_misses_its_prescription_is_doubted(folder: Path) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.DoseGridScaling = f"{float(ds.DoseGridScaling) / 35:.10g}"
    assert any("does not fit its 70 Gy" in text for text in read_patient(folder).warnings)


# The plan


def plan_in(folder: Path):  # noqa: ANN201
    return read_plan(only(index_folder(folder), RTPLAN))


def test_a_plan_of_two_parts_is_refused(folder: Path) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.FractionGroupSequence.append(ds.FractionGroupSequence[0])
    with pytest.raises(PatientDataError, match="the plan has 2 parts"):
        read_patient(folder)


def test_names_and_plan_that_disagree_on_a_level(folder: Path) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.DoseReferenceSequence[0].TargetPrescriptionDose = 60
    with pytest.raises(PatientDataError, match=r"no planning target volume.*the name says 70 Gy, the plan 60 Gy"):
        read_patient(folder)


def beam(angle: float, **more: object) -> Dataset:
    item, point = Dataset(), Dataset()
    point.GantryAngle, point.GantryRotationDirection = angle, more.get("rotation", "NONE")
    point.PatientSupportAngle = more.get("couch", 0)
    item.TreatmentDeliveryType = more.get("delivery", "TREATMENT")
    item.ControlPointSequence = [point]
    return item


def test_beam_angles(folder: Path) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.BeamSequence = [beam(40), beam(320), beam(-40), beam(90, delivery="SETUP")]
    assert plan_in(folder).gantry_angles_deg == (40.0, 320.0)


@pytest.mark.parametrize(
    ("beams", "message"),
    [
        ([beam(10, rotation="CW")], "1 beams of the plan are arcs"),
        ([beam(10, couch=20)], "not coplanar"),
    ],
)
def test_beams_that_are_no_fixed_coplanar_fields(folder: Path, beams: list[Dataset], message: str) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.BeamSequence = beams
    plan = plan_in(folder)
    assert plan.gantry_angles_deg == () and message in plan.remarks[0]


def test_angles_of_a_patient_lying_otherwise_are_not_used(folder: Path) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.BeamSequence = [beam(40)]
        setup = Dataset()
        setup.PatientPosition = "FFS"
        ds.PatientSetupSequence = [setup]
    plan = plan_in(folder)
    assert plan.gantry_angles_deg == () and "position FFS" in plan.remarks[0]


# Safety


def test_errors_and_warnings_name_nobody(folder: Path) -> None:
    planted = {"PatientName": "Longstocking^Pippi", "PatientID": "PLANTED-7", "PatientBirthDate": "19450101"}
    edit_all(folder, "*.dcm", lambda ds, i: [setattr(ds, key, value) for key, value in planted.items()] and None)
    with edited(folder / "CT.0001.dcm") as ds:
        uids = [str(ds[k].value) for k in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")]
    patient = read_patient(folder)
    said = [patient.pseudonym, *patient.warnings, *(s.source_name for s in patient.structures.values())]
    for change in (lambda ds: delattr(ds, "Rows"), lambda ds: setattr(ds, "PixelSpacing", [0, 0])):
        with edited(folder / "CT.0001.dcm") as ds:
            change(ds)
        with pytest.raises(RTDigitalTwinError) as caught:
            read_patient(folder)
        said.append(str(caught.value))
    for text in said:
        for secret in (*planted.values(), *uids, str(folder)):
            assert secret not in text, text
