"""A copy of a DICOM folder for handing on: nothing of whose it is, anywhere, and as usable as before."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import DicomDictionary
from pydicom.uid import ExplicitVRBigEndian, RLELossless, UID_dictionary, generate_uid

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.cli_dicom import EXIT_LEFT_OUT
from RTDigitalTwinLib.errors import OutputError, PatientDataError
from RTDigitalTwinLib.patient.dicom_anonymize import anonymize_folder
from RTDigitalTwinLib.patient.dicom_export import write_dose
from RTDigitalTwinLib.patient.dicom_index import index_folder
from RTDigitalTwinLib.patient.dicom_patient import read_patient, source_origin
from RTDigitalTwinLib.patient.patient import Patient
from Testing.builders import axial_grid
from Testing.dicom_sets import accepting, compress_by_gdcm, dose_of, edited, set_identity, small_set
from Testing.test_dicom_export import errors_found

IDENTITY = {
    "PatientName": "Longstocking^Pippi", "PatientID": "H-4711", "PatientBirthDate": "19450521",
    "ReferringPhysicianName": "Settergren^Annika", "InstitutionName": "Villa Villekulla", "AccessionNumber": "ACC-0815",
    "StudyDate": "20190405", "StudyID": "STUDY-9", "OperatorsName": "Nilsson^Herr",
}  # fmt: skip
MARK = "Kurrekurredutt"
MARKED = {
    "DA": "19230117", "DT": "19230117101500.000001", "TM": "101517.123456", "AS": "073Y", "UI": "1.2.276.4711.815.1",
    "AE": "KURREKURREDUTTAE", "CS": MARK.upper(), "UR": f"http://{MARK}.example",
}  # fmt: skip
TEXT_VRS = ("AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
BYTES_VRS = ("OB", "OW", "UN", "OB or OW")
# What a file is, how it is read and what belongs to what; elements of files' own heads.
NEEDED = re.compile(
    r"SOPClassUID|ImageType|Modality|SpecificCharacterSet|.*Pixel.*|PhotometricInterpretation|DoseUnits|DoseType|"
    r"DoseSummationType|(Series|Study|SOP)InstanceUID|FrameOfReferenceUID|TransferSyntaxUID|BurnedInAnnotation|"
    r"Manufacturer|ManufacturerModelName|SoftwareVersions"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A named patient's set in a folder that bears the name."""
    folder = tmp_path / "Longstocking"
    small_set(folder, replace(axial_grid(), frame_of_reference=str(generate_uid(prefix=None))))
    set_identity(folder, IDENTITY)
    return folder


def mark_everywhere(dataset: Dataset, mark: Dataset) -> None:
    """Give a data set, and the first item of every sequence at any depth, all elements of another that it lacks."""
    for element in list(dataset):
        if element.VR == "SQ" and element.value:
            mark_everywhere(element.value[0], mark)
    for element in mark:
        if element.tag not in dataset:
            dataset[element.tag] = element


def all_marks() -> Dataset:
    """Every text, date, UID and binary element that DICOM knows, and private ones, with a mark in it."""
    mark = Dataset()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if tag >> 16 in (0, 2, 4, 0xFFFA, 0xFFFC, 0xFFFE) or not keyword or NEEDED.fullmatch(keyword):
            continue
        if vr in TEXT_VRS:
            mark.add_new(tag, vr, MARKED.get(vr, MARK))
        elif vr in BYTES_VRS:
            mark.add_new(tag, "OB", MARK.encode())
    block = mark.private_block(0x0009, f"{MARK} creator", create=True)
    block.add_new(1, "LO", MARK)
    hidden = Dataset()
    hidden.PatientName = hidden.PatientComments = MARK
    for keyword in ("ReferencedPatientSequence", "RequestAttributesSequence", "OriginalAttributesSequence",
                    "ReferencedImageSequence", "ROICreatorSequence", "BeamSequence",
                    "AnatomicRegionSequence"):  # fmt: skip
        mark[keyword] = pydicom.DataElement(pydicom.datadict.tag_for_keyword(keyword) or 0, "SQ", [hidden])
    return mark


def uids_of(folder: Path) -> set[str]:
    """Every UID that is not DICOM's own, in the files of a folder."""

    def walk(dataset: Dataset) -> Iterator[str]:
        for element in dataset.iterall():
            if element.VR == "UI":
                values = (
                    element.value if isinstance(element.value, (list, pydicom.multival.MultiValue)) else [element.value]
                )
                yield from (str(v) for v in values if v)

    found = {uid for path in folder.rglob("*.dcm") for uid in walk(pydicom.dcmread(path, stop_before_pixels=True))}
    return found - set(UID_dictionary)


def test_nothing_planted_anywhere_is_left(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mark = all_marks()
    assert len(mark) > 1500
    with pydicom.config.disable_value_validation():
        for path in (folder / "CT.0002.dcm", *sorted(folder.glob("RT*.dcm"))):
            with edited(path) as ds:
                for roi in ds.get("StructureSetROISequence", []):
                    roi.ROIName = roi.ROIName if roi.ROIName != "SpinalCord" else "Cord Longstocking 20190405"
                mark_everywhere(ds, mark)
                ds.preamble = MARK.encode().ljust(128, b"\0")
                ds.SoftwareVersions = ["1.0", "of Annika Settergren"]
    assert MARK.encode() in (folder / "RTPLAN.dcm").read_bytes()
    before = uids_of(folder)
    out = tmp_path / "out"
    assert main(["anonymize", str(folder), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    secrets = [MARK, *MARKED.values(), *IDENTITY.values(), "Longstocking", "Pippi", "Settergren", "Annika", "Nilsson",
               *(before - {""})]  # fmt: skip
    files = sorted(path for path in out.rglob("*") if path.is_file())
    assert len(files) == len(list(folder.glob("*.dcm")))
    for path in files:
        content = path.read_bytes().lower() + str(path.relative_to(out)).lower().encode()
        for secret in secrets:
            assert secret.lower().encode() not in content, (path.name, secret)
    for secret in (*IDENTITY.values(), MARK):
        assert secret not in shown.out + shown.err
    assert " names of structures held a word of a person" in " ".join(shown.out.replace("│", " ").split())
    assert not before & uids_of(out)


@pytest.mark.parametrize("person", ["Longstocking^Pippi", "Plan^Axial", "Target^Organ Primary"])
def test_the_copy_reads_as_the_original_does(folder: Path, tmp_path: Path, person: str) -> None:
    """Whatever the patient is called: planning systems are tested with patients of such names."""
    set_identity(folder, {"PatientName": person})
    done = anonymize_folder(folder, tmp_path / "out")
    original, copy = read_patient(folder), read_patient(tmp_path / "out")
    same_patient(copy, original)
    assert copy.warnings == original.warnings and copy.plan.approval == original.plan.approval
    assert copy.pseudonym != original.pseudonym
    assert set(original.structures) <= set(done.patients[0].structure_names)
    for path in (tmp_path / "out").rglob("*.dcm"):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert ds.PatientIdentityRemoved == "YES" and ds.LongitudinalTemporalInformationModified == "REMOVED"
        assert "PS3.15" in ds.DeidentificationMethod and len(ds.DeidentificationMethod) <= 64
        assert ds.PatientName == ds.PatientID == done.patients[0].identifier
        if not path.name.startswith("CT") or path.name == "CT.0001.dcm":
            assert errors_found(path) == []


def same_patient(copy: Patient, original: Patient) -> None:
    np.testing.assert_array_equal(copy.ct.values, original.ct.values)
    assert copy.ct.grid.origin_mm == original.ct.grid.origin_mm
    assert copy.plan.prescription == original.plan.prescription
    assert copy.plan.gantry_angles_deg == original.plan.gantry_angles_deg
    np.testing.assert_array_equal(dose_of(copy), dose_of(original))
    assert list(copy.structures) == list(original.structures)
    for name, structure in original.structures.items():
        np.testing.assert_array_equal(copy.structures[name].occupancy, structure.occupancy)


@pytest.mark.parametrize(
    ("person", "name", "kept"),
    [
        ("Longstocking^Pippi", "GTV Pippi", False), ("Longstocking^Pippi", "gtvLONGSTOCKING2", False),
        ("Yamada^Tarou=山田^太郎", "山田GTV", False), ("Ek^Bo", "Bow", True), ("Ek^Bo", "Parotis links", True),
        ("Patient^Research", "Patient outline", True), ("", "GTV 1.2.840.113619.2.55.3", False),
        ("", "Boost 19450521", False),
        ("Berg^Tina", "Retina_L", True), ("Berg^Tina", "Tina boost", False), ("Berg^Tina", "gtvtina", False),
        ("Berg^Tina", "GTV_Tina2", False), ("Lara^Rip", "Laryngeal strip", True), ("Ян^Ева", "Сева", True),
        ("Ян^Ева", "ГТВ Ева", False), ("Kiefer^Jo", "Unterkiefer", True), ("Kiefer^Jo", "GTVkiefers", False),
    ],
)  # fmt: skip
def test_names_of_structures_lose_the_patients(
    folder: Path, tmp_path: Path, person: str, name: str, kept: bool
) -> None:
    set_identity(folder, {"PatientName": person})
    with edited(folder / "RTSTRUCT.dcm") as ds:
        ds.StructureSetROISequence[1].ROIName = name
    (done,) = anonymize_folder(folder, tmp_path / "out").patients
    assert (name in done.structure_names, done.renamed) == (kept, 0 if kept else 1)
    assert kept or "Structure 2" in done.structure_names


NAMING = (
    # as somebody writes a name
    "gtv Longstock", "gtvlongst", "Longstöcking", "LONG-STOCKING", "pippi's boost", "PTVPippi2", "GTVTom", "Boost tom",
    "Mueller boost", "GTV Muller", "MÜLLER", "Wright 2", "Villa Villekulla",
    # a number, whole or in part
    "GTVH471", "CTV H-471", "GTV4711", "ptv 0815", "h4711 neck", "PTV70 471",
    # a day, of the files or any
    "Boost 21.05.1945", "Boost 1945-05-21", "21/5/45", "05/21/1945", "Boost 210545", "450521", "21May1945",
    "May 21, 1945", "21. Mai 45", "GTV_2019_04_05", "Boost 5.4.19", "CTV 3.12.2017", "Dec 12 2017", "12 août 2017",
)  # fmt: skip
NAMING_NOBODY = (
    "Parotid_L", "PTV_7000", "Parotid right", "Parotis rechts", "PTV54", "PTV5400", "PTV 56 Gy", "PTV_70_63_56",
    "CTV 54.25", "Oral_Cavity", "Submandibular_R", "Ring 3-5 cm", "z_opt_1_2_3", "Nodes II-IV", "Hals rechts", "Neck",
    "SpinalCord_PRV05", "Body", "GTVp", "Lips", "Cochlea_L", "Couch 12.5.3", "March",
)  # fmt: skip


def test_however_a_person_is_written_in_a_name(folder: Path, tmp_path: Path) -> None:
    """And what names nobody stays: a structure set without names says nothing."""
    others = {"OperatorsName": "Wright^Tom", "PhysiciansOfRecord": "Müller^Jo", "SpecificCharacterSet": "ISO_IR 192"}
    set_identity(folder, {**others, "InstitutionalDepartmentName": "Head and Neck"})
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for i, name in enumerate((*NAMING, *NAMING_NOBODY)):
            if name not in {roi.ROIName for roi in ds.StructureSetROISequence}:
                roi = Dataset()
                roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm = 100 + i, name, ""
                roi.ReferencedFrameOfReferenceUID = ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID
                ds.StructureSetROISequence.append(roi)
    (done,) = anonymize_folder(folder, tmp_path / "out").patients
    assert set(NAMING) & set(done.structure_names) == set()
    assert set(NAMING_NOBODY) - set(done.structure_names) == set()
    assert done.renamed == len(NAMING)


def test_that_a_dose_is_predicted_does_not_get_lost(folder: Path, tmp_path: Path) -> None:
    dose = read_patient(folder).plan.dose
    assert dose is not None
    write_dose(dose, folder / "back.dcm", source_origin(folder), "mean", predicted=True)
    anonymize_folder(folder, tmp_path / "out")
    assert any("this software predicted" in text for text in read_patient(tmp_path / "out").warnings)


def test_twice_gives_two_strangers(folder: Path, tmp_path: Path) -> None:
    first, second = (anonymize_folder(folder, tmp_path / name).patients[0].identifier for name in ("one", "two"))
    assert first != second and not uids_of(tmp_path / "one") & uids_of(tmp_path / "two")


def test_one_bad_file_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    content = (folder / "RTDOSE.dcm").read_bytes()
    (folder / "RTDOSE.dcm").write_bytes(content[:3000])
    (folder / "bad.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    (folder / "letter.txt").write_text("Dear Pippi")
    with edited(folder / "CT.0003.dcm") as ds:
        ds.BurnedInAnnotation = "YES"
    done = anonymize_folder(folder, tmp_path / "out")
    assert {problem.where for problem in done.left_out} == {"RTDOSE.dcm", "bad.dcm", "CT.0003.dcm"}
    assert done.other_files == 1
    names = {path.name for path in (tmp_path / "out").rglob("*.*")}
    assert {"RTPLAN.1.dcm", "RTSTRUCT.1.dcm"} <= names and "RTDOSE.1.dcm" not in names
    assert sum(name.startswith("CT") for name in names) == len(list(folder.glob("CT*"))) - 1


def test_what_is_left_out_ends_otherwise_and_names_no_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    inner = folder / "Longstocking_Pippi"
    inner.mkdir()
    (inner / "Pippi bad.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    for i in (1, 2):
        (folder / f"CT.000{i}.dcm").rename(inner / f"Pippi {i}.dcm")
        shutil.copy(inner / f"Pippi {i}.dcm", inner / f"Pippi {i} again.dcm")
    assert main(["anonymize", str(folder), "--out", str(tmp_path / "out")]) == EXIT_LEFT_OUT
    shown = capsys.readouterr()
    text = " ".join(shown.out.replace("│", " ").split())
    assert "Left out: 2 files: This file is a copy of another file" in text and "Left out: 1 file: " in text
    assert "Pippi" not in shown.out + shown.err and "Longstocking" not in shown.out + shown.err
    assert main(["anonymize", str(folder), "--out", str(tmp_path / "two"), "--show-files"]) == EXIT_LEFT_OUT
    assert "Pippi bad.dcm" in capsys.readouterr().out


def test_other_objects_are_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "CT.0001.dcm", folder / "capture.dcm")
    with edited(folder / "capture.dcm") as ds:
        ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", generate_uid()
    done = anonymize_folder(folder, tmp_path / "out")
    assert [problem.where for problem in done.left_out] == ["capture.dcm"]
    assert "not covered" in done.left_out[0].what


def test_patients_get_folders_of_their_own(folder: Path, tmp_path: Path) -> None:
    small_set(folder / "second", replace(axial_grid(), frame_of_reference="1.2.3"))
    set_identity(folder / "second", {"PatientID": "other", "PatientName": "Other^One"})
    done = anonymize_folder(folder, tmp_path / "out")
    assert sorted(p.identifier for p in done.patients) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert {p.pseudonym for p in done.patients} == set(index_folder(folder).patients)
    copy = read_patient(tmp_path / "out" / done.patients[0].identifier)
    assert copy.plan.prescription.highest_gy == 70


def test_two_persons_of_one_identifier_stay_two(folder: Path, tmp_path: Path) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.PatientName = "Somebody^Else"
    anonymize_folder(folder, tmp_path / "out")
    for place in (folder, tmp_path / "out"):
        with pytest.raises(PatientDataError, match="differ in name or birth date"):
            read_patient(place)
    same_patient(read_patient(tmp_path / "out", accepting("identity")), read_patient(folder, accepting("identity")))


@pytest.mark.parametrize("syntax", [RLELossless, ExplicitVRBigEndian, "JPEG2000"])
def test_other_transfer_syntaxes_come_out_plain(folder: Path, tmp_path: Path, syntax: str) -> None:
    original = read_patient(folder)
    for path in folder.glob("CT*"):
        ds = pydicom.dcmread(path)
        if syntax == "JPEG2000":
            compress_by_gdcm(path, syntax, tmp_path)
        elif syntax == RLELossless:
            ds.compress(RLELossless, generate_instance_uid=False)
            ds.save_as(path)
        else:
            ds.PixelData = ds.pixel_array.astype(">i2").tobytes()
            ds.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False)
    anonymize_folder(folder, tmp_path / "out")
    np.testing.assert_array_equal(read_patient(tmp_path / "out").ct.values, original.ct.values)
    (first,) = (tmp_path / "out").rglob("CT.0001.dcm")
    assert pydicom.dcmread(first).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_the_source_is_never_written_to(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for out in (folder, folder / "inside", folder.parent):
        with pytest.raises(OutputError):
            anonymize_folder(folder, out)
    anonymize_folder(folder, tmp_path / "out")
    with pytest.raises(OutputError, match="not empty"):
        anonymize_folder(folder, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_to_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(PatientDataError, match="could be written"):
        anonymize_folder(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
