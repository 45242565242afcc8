"""How pixels of a CT become HU: bits, signs, slopes, kinds of values, as scanners and converters write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_patient import read_patient
from Testing.dicom_sets import accepting, compress_by_gdcm, edit_all, edited


def twelve_bits(ds: Dataset, signed: bool, above: int = 0) -> None:
    """The pixels in twelve of sixteen bits; ``above`` fills the others, as overlays once did."""
    values = np.clip(ds.pixel_array.astype(np.int32), -1024, 2047) + (0 if signed else 1024)
    ds.PixelData = ((values & 0xFFF) | above << 12).astype("<u2").tobytes()
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, int(signed)
    ds.RescaleIntercept = 0 if signed else -1024


@pytest.mark.parametrize("above", [0, 1, 9])
@pytest.mark.parametrize("signed", [False, True])
def test_twelve_bits_are_read_whatever_is_above_them(damaged_set: Path, signed: bool, above: int) -> None:
    before = read_patient(damaged_set).ct.values
    edit_all(damaged_set, "CT*", lambda ds, _: twelve_bits(ds, signed, above))
    np.testing.assert_array_equal(read_patient(damaged_set).ct.values, before)


def test_slopes_of_their_own_in_every_slice(damaged_set: Path) -> None:
    before = read_patient(damaged_set).ct.values

    def rescale(ds: Dataset, i: int) -> None:
        slope = (0.5, 1, 2)[i % 3]
        values = np.maximum(ds.pixel_array.astype(np.int32), -1024) // 2 * 2
        ds.PixelData = ((values + 1024) / slope).astype("<u2").tobytes()
        ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope = 0, -1024, f"{slope:g}"

    edit_all(damaged_set, "CT*", rescale)
    np.testing.assert_array_equal(read_patient(damaged_set).ct.values, before // 2 * 2)


def test_low_values_shown_white_are_the_same_values(damaged_set: Path, tmp_path: Path) -> None:
    """How an image is shown says nothing of its HU; a decoder that turns it over for showing is not used for it."""
    before = read_patient(damaged_set).ct.values
    edit_all(damaged_set, "CT*", lambda ds, _: setattr(ds, "PhotometricInterpretation", "MONOCHROME1"))
    np.testing.assert_array_equal(read_patient(damaged_set).ct.values, before)
    compress_by_gdcm(damaged_set / "CT.0012.dcm", "JPEG2000", tmp_path)
    with pytest.raises(PatientDataError, match=r"CT\.0012\.dcm.*4\.90 .*with low values shown white cannot be decoded"):
        read_patient(damaged_set)


@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [
        ("HighBit", 14, "HighBit is 14 with 16 bits stored"),
        ("PhotometricInterpretation", "PALETTE COLOR", "image is in colour"),
        ("RescaleSlope", -1, "RescaleSlope is -1; it must be above 0"),
        ("RescaleType", "ED", "RescaleType is ED: the values are no Hounsfield units"),
        ("RescaleType", "PIPPI", "RescaleType is OTHER"),
        ("AnatomicalOrientationType", "QUADRUPED", "that of animals"),
    ],
)
def test_values_of_another_meaning_are_no_hu(damaged_set: Path, tag: str, value: object, told: str) -> None:
    edit_all(damaged_set, "CT*", lambda ds, _: setattr(ds, tag, value))
    with pytest.raises(PatientDataError, match=told):
        read_patient(damaged_set)


def test_positions_count_not_the_thickness_of_slices(damaged_set: Path) -> None:
    before = read_patient(damaged_set)
    edit_all(damaged_set, "CT*", lambda ds, i: setattr(ds, "SliceThickness", (5, 2.5, 10)[i % 3]))
    after = read_patient(damaged_set)
    assert after.ct.grid.same_as(before.ct.grid)
    for path in sorted(damaged_set.glob("CT*"))[12::2]:  # 5 mm below, 10 mm above
        path.unlink()
    with pytest.raises(PatientDataError, match="6 of 17 steps differ from 5.00 mm"):
        read_patient(damaged_set)
    filled = read_patient(damaged_set, accepting("gaps"))
    assert filled.ct.grid.spacing_mm == before.ct.grid.spacing_mm and filled.ct.grid.shape[0] == 24
    np.testing.assert_array_equal(filled.ct.values[1:12], before.ct.values[1:12])


def test_slices_that_share_an_instance_uid_are_not_dropped(damaged_set: Path) -> None:
    uid = generate_uid()
    for name in ("CT.0005.dcm", "CT.0009.dcm", "CT.0017.dcm"):
        with edited(damaged_set / name) as ds:
            ds.SOPInstanceUID = uid
    with pytest.raises(PatientDataError, match="several files of different content"):
        read_patient(damaged_set)
    with pytest.raises(PatientDataError, match="not evenly spaced"):
        read_patient(damaged_set, accepting("copies"))
