"""DICOM-RT folders and CT: what is read, and what each trap of files, slices and transfer syntaxes does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient import dicom_file, dicom_index
from RTDigitalTwinLib.patient.dicom_file import DicomItem, transfer_syntax
from RTDigitalTwinLib.patient.dicom_index import CT, RTDOSE, RTPLAN, RTSTRUCT, index_folder
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, read_patient
from RTDigitalTwinLib.patient.patient import Patient
from Testing.builders import GRIDS, axial_grid
from Testing.dicom_sets import accepting, compress_by_gdcm, dose_in, dose_of, edit_all, edited, small_set

# What is read


def test_geometry_values_and_plan_come_back(dicom_set: tuple[Path, Patient]) -> None:
    folder, written = dicom_set
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
    step = dose_of(written).max() / 65535
    np.testing.assert_allclose(dose_of(read), dose_of(written), atol=0.51 * step + 1e-6)
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


def test_feet_first_and_prone_slices_lie_where_their_cosines_say(damaged_set: Path) -> None:
    """The same scan with rows and columns reversed: the anatomy must not move."""
    before = read_patient(damaged_set)

    def turn(ds: Dataset, i: int) -> None:
        pixels = ds.pixel_array
        rows, columns = (np.array(ds.ImageOrientationPatient[a : a + 3], float) for a in (3, 0))
        far = np.array(ds.ImagePositionPatient, float)
        far += rows * (ds.Rows - 1) * ds.PixelSpacing[0] + columns * (ds.Columns - 1) * ds.PixelSpacing[1]
        ds.ImagePositionPatient = [f"{v:.6g}" for v in far]
        ds.ImageOrientationPatient = [-v for v in ds.ImageOrientationPatient]
        ds.PixelData = pixels[::-1, ::-1].tobytes()
        ds.PatientPosition = "HFP"

    edit_all(damaged_set, "CT*", turn)
    after = read_patient(damaged_set)
    assert np.reshape(after.ct.grid.direction, (3, 3))[0, 0] == -1
    for name, structure in before.structures.items():
        assert after.structures[name].centroid_mm == pytest.approx(structure.centroid_mm, abs=0.05)
        assert after.structures[name].volume_cc == pytest.approx(structure.volume_cc, rel=1e-3)


def test_nesting_names_and_other_files_do_not_matter(damaged_set: Path) -> None:
    deep = damaged_set / "a" / "b c"
    deep.mkdir(parents=True)
    for i, path in enumerate(sorted(damaged_set.glob("*.dcm"))):
        path.rename((deep if i % 2 else damaged_set / "a") / f"{(i * 7919) % 1000:03d}")
    (deep / "notes.txt").write_text("no DICOM")
    (damaged_set / "empty").touch()
    (damaged_set / "picture.png").write_bytes(b"\x89PNG" + bytes(200))
    index = index_folder(damaged_set)
    assert index.other_files == 3 and not index.problems
    assert {k: len(index.patient().of_kind(k)) for k in (CT, RTSTRUCT, RTPLAN, RTDOSE)} == {
        CT: 24, RTSTRUCT: 1, RTPLAN: 1, RTDOSE: 1,
    }  # fmt: skip
    read_patient(damaged_set)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "no preamble", "emptied"])
def test_one_bad_file_costs_only_itself(damaged_set: Path, damage: str) -> None:
    good = (damaged_set / "CT.0001.dcm").read_bytes()
    bad = {
        "garbage": bytes(128) + b"DICM" + bytes(range(256)) * 8,
        "truncated": good[:300],
        "no preamble": b"\x08\x00\x05\x00CS\xff\xff" + bytes(40),
        "emptied": good[:132],
    }[damage]
    (damaged_set / "bad").write_bytes(bad)
    index = index_folder(damaged_set)
    assert len(index.problems) + index.other_files >= 1
    assert all("bad" in problem.where for problem in index.problems)
    patient = read_patient(damaged_set)
    assert patient.ct.grid.shape[0] == 24
    if index.problems:
        assert any("1 DICOM file has problems" in text for text in patient.warnings)


def test_several_patients_need_a_choice(damaged_set: Path, tmp_path: Path) -> None:
    small_set(tmp_path / "set" / "second", replace(axial_grid(), frame_of_reference=str(generate_uid())))
    edit_all(tmp_path / "set" / "second", "*.dcm", lambda ds, i: setattr(ds, "PatientID", "other-1"))
    index = index_folder(damaged_set)
    assert len(index.patients) == 2
    with pytest.raises(PatientDataError, match="2 patients: patient-.*--patient"):
        read_patient(damaged_set)
    for pseudonym in index.patients:
        assert read_patient(damaged_set, DicomChoice(patient=pseudonym)).pseudonym == pseudonym
    assert read_patient(damaged_set, DicomChoice(patient="other-1")).pseudonym in index.patients
    with pytest.raises(PatientDataError, match="no such patient"):
        read_patient(damaged_set, DicomChoice(patient="patient-00000000"))


def test_a_file_without_a_stated_syntax_is_implicit_little_endian() -> None:
    dataset = Dataset()
    assert transfer_syntax(DicomItem(dataset, "x")) == ImplicitVRLittleEndian
    dataset.file_meta = FileMetaDataset()
    assert transfer_syntax(DicomItem(dataset, "x")) == ImplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = RLELossless
    assert transfer_syntax(DicomItem(dataset, "x")) == RLELossless


# CT slices


def test_a_missing_slice_is_named_with_its_gap(damaged_set: Path) -> None:
    (damaged_set / "CT.0007.dcm").unlink()
    with pytest.raises(PatientDataError, match=r"1 of 22 steps differ from 5\.00 mm.*10\.00 mm.*--accept gaps"):
        read_patient(damaged_set)
    filled = read_patient(damaged_set, accepting("gaps"))
    assert filled.ct.grid.shape[0] == 24
    assert any(text.startswith("Overridden by the user (gaps)") for text in filled.warnings)
    neighbours = [pydicom.dcmread(damaged_set / f"CT.{k:04d}.dcm").pixel_array for k in (6, 8)]
    np.testing.assert_allclose(filled.ct.values[6], np.mean(neighbours, axis=0), atol=0.51)


def test_uneven_slices_are_refused(damaged_set: Path) -> None:
    with edited(damaged_set / "CT.0010.dcm") as ds:
        ds.ImagePositionPatient[2] += 1.5
    with pytest.raises(PatientDataError, match="2 of 23 steps differ"):
        read_patient(damaged_set)


def test_gantry_tilt_is_refused_with_its_angle(damaged_set: Path) -> None:
    def shear(ds: Dataset, i: int) -> None:
        ds.ImagePositionPatient[1] = float(ds.ImagePositionPatient[1]) + i * 5.0 * np.tan(np.deg2rad(10))

    edit_all(damaged_set, "CT*", shear)
    with pytest.raises(PatientDataError, match=r"gantry tilt of 10\.0 degrees"):
        read_patient(damaged_set)


def test_a_slice_twice_is_dropped_or_refused(damaged_set: Path) -> None:
    copy = damaged_set / "CT.copy.dcm"
    shutil.copy(damaged_set / "CT.0005.dcm", copy)
    assert "copy of" in index_folder(damaged_set).problems[0].what  # the same object
    with edited(copy) as ds:
        ds.SOPInstanceUID = generate_uid()
    assert "1 CT slice is there twice; copies were left out." in read_patient(damaged_set).warnings
    with edited(copy) as ds:
        ds.PixelData = bytes(len(ds.PixelData))
    with pytest.raises(PatientDataError, match="Two different slices"):
        read_patient(damaged_set)


def test_several_orientations_or_sizes_are_refused(damaged_set: Path) -> None:
    with edited(damaged_set / "CT.0005.dcm") as ds:
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    with pytest.raises(PatientDataError, match="several orientations"):
        read_patient(damaged_set)
    with edited(damaged_set / "CT.0005.dcm") as ds:
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing = [1, 1]
    with pytest.raises(PatientDataError, match="pixels of 1 x 1 mm"):
        read_patient(damaged_set)


def test_a_localizer_is_left_out(damaged_set: Path) -> None:
    shutil.copy(damaged_set / "CT.0005.dcm", damaged_set / "scout.dcm")
    with edited(damaged_set / "scout.dcm") as ds:
        ds.SOPInstanceUID, ds.ImageType = generate_uid(), ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    assert "1 localizer images of the CT series were left out." in read_patient(damaged_set).warnings


def test_another_series_is_not_mixed_in(damaged_set: Path) -> None:
    series = generate_uid()
    for path in sorted(damaged_set.glob("CT*"))[:6]:
        shutil.copy(path, damaged_set / f"other.{path.name}")
        with edited(damaged_set / f"other.{path.name}") as ds:
            ds.SOPInstanceUID, ds.SeriesInstanceUID = generate_uid(), series
    assert read_patient(damaged_set).ct.grid.shape[0] == 24


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
                                 "RescaleIntercept", "Rows", "PixelData", "BitsAllocated"])  # fmt: skip
def test_a_missing_ct_tag_is_named(damaged_set: Path, tag: str) -> None:
    with edited(damaged_set / "CT.0005.dcm") as ds:
        del ds[tag]
    with pytest.raises(PatientDataError, match=rf"CT\.0005\.dcm.*{tag} is missing"):
        read_patient(damaged_set)


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
def test_an_absurd_ct_tag_is_named(damaged_set: Path, tag: str, value: object, message: str) -> None:
    with edited(damaged_set / "CT.0005.dcm") as ds:
        setattr(ds, tag, value)
    with pytest.raises(PatientDataError, match=message):
        read_patient(damaged_set)


def test_pixels_cut_short_are_an_error_not_zeros(damaged_set: Path) -> None:
    with edited(damaged_set / "CT.0005.dcm") as ds:
        ds.PixelData = ds.PixelData[:1000]
    with pytest.raises(PatientDataError, match=r"CT\.0005\.dcm: \(7FE0,0010\) PixelData is cut short: 1000"):
        read_patient(damaged_set)


def test_more_pixels_than_the_sizes_say_are_an_error(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.NumberOfFrames, ds.GridFrameOffsetVector = 12, ds.GridFrameOffsetVector[:12]
    with pytest.raises(PatientDataError, match=r"holds 69120 bytes, but 12 frames of 36 x 40 pixels need 34560"):
        dose_in(damaged_set)


def test_nothing_is_logged_of_what_a_file_says(damaged_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = damaged_set / "CT.0005.dcm"
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"PLANTED 77"))
    read_patient(damaged_set)
    assert "PLANTED" not in caplog.text and not caplog.records


def test_rescaling_to_hu(damaged_set: Path) -> None:
    before = read_patient(damaged_set).ct.values

    def shift(ds: Dataset, i: int) -> None:
        ds.PixelData = ((np.maximum(ds.pixel_array.astype(np.int32), -1024) + 1024) * 2).astype("<u2").tobytes()
        ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope = 0, -1024, "0.5"

    edit_all(damaged_set, "CT*", shift)
    np.testing.assert_array_equal(read_patient(damaged_set).ct.values, before)


# Transfer syntaxes


def test_big_endian_and_rle_are_decoded(damaged_set: Path) -> None:
    before = read_patient(damaged_set).ct.values
    for path in sorted(damaged_set.glob("CT*"))[::2]:
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless)
        ds.save_as(path)
    for path in sorted(damaged_set.glob("CT*"))[1::2]:
        ds = pydicom.dcmread(path)
        ds.PixelData = ds.pixel_array.astype(">i2").tobytes()
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(read_patient(damaged_set).ct.values, before)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_jpeg_is_decoded(damaged_set: Path, compressor: str, tmp_path: Path) -> None:
    """Lossless JPEG and JPEG 2000 as GDCM writes them, put in the place of the pixels."""
    before = read_patient(damaged_set).ct.values
    path = damaged_set / "CT.0012.dcm"
    compress_by_gdcm(path, compressor, tmp_path)
    np.testing.assert_array_equal(read_patient(damaged_set).ct.values, before)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4.5", "1.2.840.10008.1.2.1.99"])
def test_a_syntax_that_cannot_be_decoded_is_named(damaged_set: Path, syntax: str) -> None:
    path = damaged_set / "CT.0012.dcm"
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
        read_patient(damaged_set)
    problems = " ".join(problem.what for problem in index_folder(damaged_set).problems)
    assert syntax in f"{caught.value} {problems}"


def test_an_enhanced_ct_is_named_with_its_syntax(damaged_set: Path) -> None:
    for path in sorted(damaged_set.glob("CT*"))[1:]:
        path.unlink()
    with edited(damaged_set / "CT.0001.dcm") as ds:
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
        ds.NumberOfFrames = 24
    with pytest.raises(PatientDataError) as caught:
        read_patient(damaged_set)
    said = str(caught.value)
    assert "CT.0001.dcm" in said and "an enhanced one" in said and "1.2.840.10008.1.2.1 (Explicit VR Little" in said
    assert "as classic CT" in said


def test_files_and_folders_beyond_the_limits_are_refused(damaged_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(path.stat().st_size for path in damaged_set.iterdir())
    monkeypatch.setattr(dicom_file, "LARGEST_FILE_BYTES", largest)
    with (damaged_set / "CT.0005.dcm").open("ab") as file:
        file.truncate(largest + 1)
    (problem,) = index_folder(damaged_set).problems
    assert problem.where == "CT.0005.dcm" and "GiB; at most 1 is read" in problem.what
    monkeypatch.setattr(dicom_index, "MOST_FILES", 20)
    with pytest.raises(PatientDataError, match="more than 20 files"):
        read_patient(damaged_set)
