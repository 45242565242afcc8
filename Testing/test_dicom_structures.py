"""RTSTRUCT as hospitals export it: contours, their traps, and names against the geometry."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_index import RTSTRUCT
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, read_patient
from RTDigitalTwinLib.patient.dicom_structures import read_rois
from Testing.dicom_sets import add_copy, contours_of, edited, only, set_of


def test_contours_are_matched_by_position_never_by_index_or_reference(damaged_set: Path) -> None:
    before, _ = set_of(damaged_set)
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "Parotid_L")
        references = [contour.ContourImageSequence for contour in contours]
        for contour, reference in zip(contours, reversed(references), strict=True):
            contour.ContourImageSequence = reference
        contours.reverse()
    after, _ = set_of(damaged_set)
    np.testing.assert_allclose(after["Parotid_L"].occupancy, before["Parotid_L"].occupancy, atol=1e-6)


def test_short_open_and_repeated_contours_are_left_out_with_a_count(damaged_set: Path) -> None:
    before, _ = set_of(damaged_set)
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "Parotid_L")
        for kind, count in (("POINT", 1), ("CLOSED_PLANAR", 2), ("OPEN_PLANAR", 3)):
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, count
            item.ContourData = [f"{v}" for v in np.arange(3 * count)]
            contours.append(item)
        contours.append(contours[0])
    after, warnings = set_of(damaged_set)
    np.testing.assert_array_equal(after["Parotid_L"].occupancy, before["Parotid_L"].occupancy)
    assert warnings == [
        "Parotid_L: 1 contours of one or two points were left out; 2 points or open contours were left out; "
        "1 contours were there twice."
    ]


@pytest.mark.parametrize(
    "again",
    [
        lambda points: np.roll(points, 3, axis=0),
        lambda points: np.roll(points[::-1], 2, axis=0),
        lambda points: np.concatenate([points, points[:1]]),
        lambda points: points + 0.0004,
    ],
    ids=["elsewhere", "backwards", "closed", "rounded"],
)
def test_a_repeated_contour_never_cancels_its_original(damaged_set: Path, again: Callable[[NDArray], NDArray]) -> None:
    before, _ = set_of(damaged_set)
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "Parotid_L")
        for contour in list(contours):
            points = again(np.array(contour.ContourData, float).reshape(-1, 3).round(2))
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            item.ContourData = [f"{v:.4f}" for v in points.ravel()]
            contours.append(item)
    after, warnings = set_of(damaged_set)
    assert after["Parotid_L"].volume_cc == pytest.approx(before["Parotid_L"].volume_cc, rel=1e-6)
    assert "contours were there twice" in warnings[0]


def test_contours_between_slices_count_by_overlap_and_are_told(damaged_set: Path) -> None:
    before, _ = set_of(damaged_set)
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        for contour in contours_of(ds, "Parotid_L"):
            points = np.array(contour.ContourData, float).reshape(-1, 3) + (0, 0, 2.0)
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    after, warnings = set_of(damaged_set)
    assert after["Parotid_L"].centroid_mm[2] == pytest.approx(before["Parotid_L"].centroid_mm[2] + 2.0, abs=1e-3)
    assert after["Parotid_L"].volume_cc == pytest.approx(before["Parotid_L"].volume_cc, rel=1e-4)
    assert "contour planes between CT slices count by their overlap" in warnings[0]


def test_contours_across_the_slices_are_refused(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        for contour in contours_of(ds, "Parotid_L"):
            points = np.array(contour.ContourData, float).reshape(-1, 3)[:, [2, 0, 1]]
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    after, warnings = set_of(damaged_set)
    assert "Parotid_L" not in after and len(after) == 4
    assert warnings == ["Parotid_L: left out. Its contours are not drawn parallel to the CT slices."]
    with pytest.raises(PatientDataError, match="Parotid_L: The structure is to be used, but cannot be drawn"):
        read_patient(damaged_set)


def test_a_hole_as_a_contour_of_its_own_is_left_empty(damaged_set: Path) -> None:
    before, _ = set_of(damaged_set)
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "PTV_7000")
        for contour in list(contours):
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            middle = points.mean(axis=0)
            hole = Dataset()
            hole.ContourGeometricType, hole.NumberOfContourPoints = "CLOSEDPLANAR_XOR", len(points)
            hole.ContourData = [f"{v:.4f}" for v in (middle + (points - middle) / 2).ravel()]
            contours.append(hole)
    after, _ = set_of(damaged_set)
    assert after["PTV_7000"].volume_cc == pytest.approx(0.75 * before["PTV_7000"].volume_cc, rel=0.01)


def test_a_gap_between_contours_stays_empty_and_is_told(damaged_set: Path) -> None:
    before, _ = set_of(damaged_set)
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        contours = contours_of(ds, "SpinalCord")
        del contours[10]
    after, warnings = set_of(damaged_set)
    lost = before["SpinalCord"].occupancy.sum(axis=(1, 2)) - after["SpinalCord"].occupancy.sum(axis=(1, 2))
    assert np.count_nonzero(lost > 1e-3) == 1
    assert "SpinalCord: 1 gaps between its contours were left empty." in warnings


def test_contours_beyond_the_ct_are_counted(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        for contour in contours_of(ds, "SpinalCord"):
            points = np.array(contour.ContourData, float).reshape(-1, 3) + (0, 0, 30.0)
            contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
    _, warnings = set_of(damaged_set)
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
    damaged_set: Path, change: Callable[[Dataset], None], message: str
) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        change(contours_of(ds, "Parotid_L")[0])
    after, warnings = set_of(damaged_set)
    assert len(after) == 4
    assert "Parotid_L: left out." in warnings[0] and message in warnings[0]


def test_two_structures_of_one_name_block(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        ds.StructureSetROISequence[3].ROIName = "Parotid_R"
    with pytest.raises(PatientDataError, match="Parotid_R: Two structures of the source have this name"):
        read_patient(damaged_set)


def test_swapped_sides_are_caught_by_the_geometry(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        for roi in ds.StructureSetROISequence:
            roi.ROIName = {"Parotid_L": "Parotid_R", "Parotid_R": "Parotid_L"}.get(roi.ROIName, roi.ROIName)
    with pytest.raises(PatientDataError, match="Parotid_R must lie to the right of Parotid_L"):
        read_patient(damaged_set)


def test_one_gland_alone_is_checked_against_the_middle(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        for roi in ds.StructureSetROISequence:
            roi.ROIName = {"Parotid_L": "Parotid_R", "Parotid_R": "left over"}.get(roi.ROIName, roi.ROIName)
    with pytest.raises(PatientDataError, match="counts as Parotid_R, but lies 4. mm on the other side"):
        read_patient(damaged_set)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("PTV_63Gy_35fx", 'Proposed: --map "PTV_63Gy_35fx=PTV_6300"'),
        ("PTV boost", r"it is open what they are: PTV boost \(a target of no known dose level\)"),
        ("Boost", r"Boost \(a target of no known dose level\)"),
        ("PTV63_opt", r"PTV63_opt \(a helper of planning by its name"),
    ],
)
def test_a_second_target_is_named_or_left_out_but_never_lost(damaged_set: Path, name: str, told: str) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        add_copy(ds, "Parotid_L", name, "PTV")
    with pytest.raises(PatientDataError, match=told):
        read_patient(damaged_set)
    named = read_patient(damaged_set, DicomChoice(names={name: "PTV_6300"}))
    assert set(named.targets) == {"PTV_6300", "PTV_7000"}
    left_out = read_patient(damaged_set, DicomChoice(names={name: ""}))
    assert set(left_out.targets) == {"PTV_7000"}
    assert any(text.startswith("1 structure of the set is not used (1 ") for text in left_out.warnings)


def test_a_target_written_with_a_stroke_is_no_helper(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        add_copy(ds, "Parotid_L", "PTV-6300", "PTV")
    assert set(read_patient(damaged_set).targets) == {"PTV_6300", "PTV_7000"}


@pytest.mark.parametrize(
    ("name", "copy_of", "told"),
    [
        ("Brainstem", "Parotid_L", "Brainstem is absent: nothing of it is drawn."),
        ("Kehlkopf", "Parotid_L", "Larynx is absent: nothing of it is drawn."),
        ("PTV_6300", "PTV_7000", "PTV_6300 is absent: nothing of it is drawn."),
        ("PTV boost", "PTV_7000", "1 structure of the set is not used (1 without contours)"),
        ("SpinalCord", "Parotid_L", "1 structure of the set is not used (1 without contours)"),
    ],
)
def test_what_a_template_left_empty_is_absent(damaged_set: Path, name: str, copy_of: str, told: str) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        add_copy(ds, copy_of, name, "PTV" if name.startswith("PTV") else "ORGAN")
        del ds.ROIContourSequence[-1].ContourSequence
    patient = read_patient(damaged_set)
    assert len(patient.structures) == 4
    assert any(text.startswith(told) for text in patient.warnings), patient.warnings
    if name != "SpinalCord":
        mapped = read_patient(damaged_set, DicomChoice(shared_names={name: "Esophagus"}))
        assert "Esophagus is absent: nothing of it is drawn." in mapped.warnings


def test_a_contour_that_is_to_be_moved_is_refused(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        contours_of(ds, "Parotid_L")[0].ContourOffsetVector = [0, 0, 0]
    assert len(read_patient(damaged_set).structures) == 4
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        contours_of(ds, "Parotid_L")[0].ContourOffsetVector = [0, 0, 10]
    with pytest.raises(PatientDataError, match=r"cannot be drawn\. \(3006,0045\) ContourOffsetVector moves a contour"):
        read_patient(damaged_set)


def test_of_two_types_of_one_structure_neither_counts(damaged_set: Path) -> None:
    """The last one would make an outline of the body of a gland."""
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        number = add_copy(ds, "Parotid_L", "Something", "EXTERNAL")
        ds.RTROIObservationsSequence.insert(0, deepcopy(ds.RTROIObservationsSequence[-1]))
        ds.RTROIObservationsSequence[0].RTROIInterpretedType = "ORGAN"
    (roi,) = (roi for roi in read_rois(only(damaged_set, RTSTRUCT)) if roi.number == number)
    assert roi.interpreted_type == ""


@pytest.mark.parametrize(
    ("charset", "name"),
    [(["", "ISO 2022 IR 87"], "左耳下腺"), ("ISO_IR 100", "Glándula"), ("ISO_IR 144", "мозг"), ("GB18030", "左腮腺")],
)
def test_names_in_any_character_set(damaged_set: Path, charset: str | list[str], name: str) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        ds.SpecificCharacterSet = charset
        next(roi for roi in ds.StructureSetROISequence if roi.ROIName == "Parotid_L").ROIName = name
    assert name in {roi.name for roi in read_rois(only(damaged_set, RTSTRUCT))}
    assert "Parotid_L" in read_patient(damaged_set, DicomChoice(names={name: "Parotid_L"})).structures
