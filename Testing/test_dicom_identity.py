"""Whose files they are: patients, studies and frames of reference that contradict each other, and what is told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.dicom_index import index_folder
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, read_patient
from RTDigitalTwinLib.patient.overrides import Overrides
from Testing.dicom_sets import (
    accepting,
    add_copy,
    contours_of,
    dose_of,
    edit_all,
    edited,
    set_identity,
)

# Who, which study, which frame


def test_a_structure_set_of_another_patient_stops_everything(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        ds.PatientID, ds.PatientName = "12345", "Doe^Jane"
    assert any("refers to an object of" in problem.what for problem in index_folder(damaged_set).problems)
    main = max(index_folder(damaged_set).patients.values(), key=lambda p: len(p.files)).pseudonym
    with pytest.raises(PatientDataError, match="another patient's identity.*--accept identity") as caught:
        read_patient(damaged_set, DicomChoice(patient=main))
    assert "Doe" not in str(caught.value) and "12345" not in str(caught.value)
    choice = DicomChoice(patient=main, overrides=Overrides(frozenset({"identity"})))
    patient = read_patient(damaged_set, choice)
    assert any(text.startswith("Overridden by the user (identity)") for text in patient.warnings)


@pytest.mark.parametrize("tie", ["series", "study", "frame"])
def test_a_slice_of_another_patient_stops_everything(damaged_set: Path, tie: str) -> None:
    """It is tied to the others by one UID only."""
    with edited(damaged_set / "CT.0001.dcm") as ds:  # an end slice: without it the rest would still be even
        ds.PatientID, ds.PatientName = "12345", "Doe^Jane"
        if tie != "series":
            ds.SeriesInstanceUID = generate_uid()
        if tie != "study":
            ds.StudyInstanceUID = generate_uid()
        if tie != "frame":
            ds.FrameOfReferenceUID = generate_uid()
    main = max(index_folder(damaged_set).patients.values(), key=lambda p: len(p.files)).pseudonym
    with pytest.raises(PatientDataError, match="another patient's identity.*--accept identity"):
        read_patient(damaged_set, DicomChoice(patient=main))


def test_an_intact_copy_is_taken_before_a_damaged_one(damaged_set: Path) -> None:
    intact = read_patient(damaged_set)
    content = (damaged_set / "RTDOSE.dcm").read_bytes()
    (damaged_set / "A first.dcm").write_bytes(content[:-5000])
    index = index_folder(damaged_set)
    assert [(p.where, "damaged copy of RTDOSE.dcm" in p.what) for p in index.problems] == [("A first.dcm", True)]
    read = read_patient(damaged_set)
    np.testing.assert_array_equal(dose_of(read), dose_of(intact))


@pytest.mark.parametrize("file", ["RTSTRUCT.dcm", "RTPLAN.dcm", "RTDOSE.dcm", "CT.0003.dcm"])
def test_two_contents_of_one_object_stop_where_it_is_used(damaged_set: Path, file: str) -> None:
    shutil.copy(damaged_set / file, damaged_set / "A first.dcm")
    with edited(damaged_set / "A first.dcm") as ds:
        ds.SeriesDescription = "changed"
    with pytest.raises(PatientDataError, match="different content.*--accept copies"):
        read_patient(damaged_set)
    accepted = read_patient(damaged_set, accepting("copies"))
    assert any(text.startswith("Overridden by the user (copies)") for text in accepted.warnings)


def test_objects_of_two_patients_are_no_copies_of_each_other(damaged_set: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(damaged_set, both / "a")
    shutil.copytree(damaged_set, both / "b")
    set_identity(both / "b", {"PatientID": "12345", "PatientName": "Doe^Jane"})
    assert [len(patient.files) for patient in index_folder(both).patients.values()] == [27, 27]


def test_one_identifier_with_two_names_stops_everything(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.PatientName = "Doe^Jane"
    with pytest.raises(PatientDataError, match="differ in name or birth date"):
        read_patient(damaged_set)


@pytest.mark.parametrize("file", ["RTSTRUCT.dcm", "RTDOSE.dcm", "RTPLAN.dcm"])
def test_another_frame_of_reference_blocks(damaged_set: Path, file: str) -> None:
    other = generate_uid()
    with edited(damaged_set / file) as ds:
        ds.FrameOfReferenceUID = other
        for frame in ds.get("ReferencedFrameOfReferenceSequence", []):
            frame.FrameOfReferenceUID = other
        for roi in ds.get("StructureSetROISequence", []):
            roi.ReferencedFrameOfReferenceUID = other
    with pytest.raises(PatientDataError, match="another frame of reference.*--accept frame") as caught:
        read_patient(damaged_set)
    assert other not in str(caught.value)
    accepted = read_patient(damaged_set, accepting("frame"))
    assert any(text.startswith("Overridden by the user (frame)") for text in accepted.warnings)
    assert accepted.plan.dose is not None


@pytest.mark.parametrize("blank", [False, True], ids=["same frame", "no frame"])
def test_structures_of_another_series_need_an_override(damaged_set: Path, blank: bool) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        (frame,) = ds.ReferencedFrameOfReferenceSequence
        frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
        if blank:
            frame.FrameOfReferenceUID = ds.FrameOfReferenceUID = ""
    with pytest.raises(PatientDataError, match="another CT series.*--accept series"):
        read_patient(damaged_set)
    accepted = read_patient(damaged_set, accepting("series"))
    assert any(text.startswith("Overridden by the user (series)") for text in accepted.warnings)


@pytest.mark.parametrize(("file", "what"), [("RTSTRUCT.dcm", "structure set"), ("RTDOSE.dcm", "dose")])
def test_a_frame_that_cannot_be_compared_is_told(damaged_set: Path, file: str, what: str) -> None:
    with edited(damaged_set / file) as ds:
        ds.FrameOfReferenceUID = ""
        for frame in ds.get("ReferencedFrameOfReferenceSequence", []):
            frame.FrameOfReferenceUID = ""
    unsure = f"Whether the {what} has the CT's frame of reference could not be checked: one of them names none."
    assert unsure in read_patient(damaged_set).warnings


def test_one_structure_of_another_frame_blocks(damaged_set: Path) -> None:
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        ds.StructureSetROISequence[2].ReferencedFrameOfReferenceUID = generate_uid()
    with pytest.raises(PatientDataError, match="1 structure has another frame of reference"):
        read_patient(damaged_set)


def test_another_study_without_a_reference_stops(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.StudyInstanceUID = generate_uid()
    tied = read_patient(damaged_set)
    assert "The dose is of another study than the CT it refers to." in tied.warnings
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        del ds.ReferencedRTPlanSequence
    with pytest.raises(PatientDataError, match="another study.*--accept study"):
        read_patient(damaged_set)


@pytest.mark.parametrize(
    ("lost", "message"),
    [("CT*", "There is no CT"), ("RTSTRUCT*", "no structure set"), ("RTPLAN*", "how many fractions.*--fractions")],
)
def test_what_is_missing_is_named(damaged_set: Path, lost: str, message: str) -> None:
    for path in damaged_set.glob(lost):
        path.unlink()
    with pytest.raises(PatientDataError, match=message):
        read_patient(damaged_set)


def test_without_a_plan_the_user_states_the_fractions(damaged_set: Path) -> None:
    (damaged_set / "RTPLAN.dcm").unlink()
    patient = read_patient(damaged_set, DicomChoice(fractions=35))
    assert patient.plan.prescription.fractions == 35
    assert "35 fractions were stated by the user." in patient.warnings


# Safety


def test_free_text_of_the_files_stays_out_of_what_is_told(damaged_set: Path) -> None:
    """Names of structures, labels, names of files and codes can hold anything: here each holds a person's name."""
    who = "Longstocking"
    for path in list(damaged_set.glob("*.dcm")):
        path.rename(path.with_name(f"{who}.{path.name}"))
    with edited(damaged_set / f"{who}.RTSTRUCT.dcm") as ds:
        ds.StructureSetLabel = who
        del contours_of(ds, "Parotid_L")[3]  # something to remark on
        ds.StructureSetROISequence[2].ReferencedFrameOfReferenceUID = generate_uid()
        for name in ("PTV", "ring", "Heart"):
            add_copy(ds, "Parotid_L", f"{who} {name}")
        for roi in ds.StructureSetROISequence:
            roi.ROIName = {"Parotid_L": f"{who} left"}.get(roi.ROIName, roi.ROIName)
    with edited(damaged_set / f"{who}.RTPLAN.dcm") as ds:
        ds.RTPlanLabel, ds.ApprovalStatus = who, who.upper()
        beam, point, setup = Dataset(), Dataset(), Dataset()
        point.GantryAngle, beam.ControlPointSequence = 40, [point]
        setup.PatientPosition = who.upper()
        ds.BeamSequence, ds.PatientSetupSequence = [beam], [setup]
    names = {f"{who} left": "Parotid_L", f"{who} PTV": ""}
    told: list[str] = []
    for key in ("DoseSummationType", "DoseType", "DoseUnits"):
        with edited(damaged_set / f"{who}.RTDOSE.dcm") as ds:
            setattr(ds, key, who.upper())
        patient = read_patient(damaged_set, replace(accepting("frame"), names=names))
        told += patient.warnings
    for text in ("gaps between its contours", "position OTHER", "summation OTHER", "DoseType is OTHER", "DoseUnits is",
                 "3 structures of the set are not used", "another frame"):  # fmt: skip
        assert any(text in said for said in told), (text, told)
    assert not [said for said in told if who.casefold() in said.casefold()]


def test_errors_and_warnings_name_nobody(damaged_set: Path) -> None:
    planted = {"PatientName": "Longstocking^Pippi", "PatientID": "PLANTED-7", "PatientBirthDate": "19450101"}
    set_identity(damaged_set, planted)
    with edited(damaged_set / "CT.0001.dcm") as ds:
        uids = [str(ds[k].value) for k in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")]
    patient = read_patient(damaged_set)
    said = [patient.pseudonym, *patient.warnings, *(s.source_name for s in patient.structures.values())]
    for change in (lambda ds: delattr(ds, "Rows"), lambda ds: setattr(ds, "PixelSpacing", [0, 0])):
        with edited(damaged_set / "CT.0001.dcm") as ds:
            change(ds)
        with pytest.raises(RTDigitalTwinError) as caught:
            read_patient(damaged_set)
        said.append(str(caught.value))
    for text in said:
        for secret in (*planted.values(), *uids, str(damaged_set)):
            assert secret not in text, text


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
            ("ISO_IR 192", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
            True,
        ),
        ((["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO_IR 6", "YAMADA^TAROU^^^"), True),
        (("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "MU\u0308LLER^JÖRG"), True),
        ((["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO_IR 192", "Yamada^Tarou=山本^太郎"), False),
        (("ISO_IR 192", "Yamada^Tarou=山田^太郎"), ("ISO_IR 6", "Yamada^Hanako"), False),
        (("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "Möller^Jörg"), False),
    ],
)
def test_a_name_is_compared_in_the_writings_that_both_files_give(
    damaged_set: Path, one: tuple[Any, str], other: tuple[Any, str], same: bool
) -> None:
    for pattern, (charset, name) in (("CT*", one), ("RT*", other)):

        def rename(ds: Dataset, _: int, charset: Any = charset, name: str = name) -> None:
            ds.SpecificCharacterSet, ds.PatientName = charset, name

        edit_all(damaged_set, pattern, rename)
    if same:
        read_patient(damaged_set)
    else:
        with pytest.raises(PatientDataError, match="differ in name or birth date"):
            read_patient(damaged_set)
