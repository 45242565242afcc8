"""Doses from files and second folders: whose they are, what they say of themselves, and where results may go."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import OutputError, PatientDataError
from RTDigitalTwinLib.patient.dicom_dose import PREDICTION_REMARK
from RTDigitalTwinLib.patient.dicom_export import write_dose
from RTDigitalTwinLib.patient.dicom_patient import source_origin
from RTDigitalTwinLib.patient.dose_file import OTHER_PLAN_REMARK, SIMULATION_REMARK, read_dose_image
from RTDigitalTwinLib.patient.identity import Identity, require_same_person
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume, write_nrrd
from Testing.builders import small_patient
from Testing.dicom_sets import dose_of, edited, set_identity

SOMEBODY = Identity("H-1", "Doe^Jane", "19500203")
ANOTHER = {"PatientID": "sample-0", "PatientName": "Roe^Richard", "PatientBirthDate": "19610708"}


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def twice(dicom_set: tuple[Path, Patient], tmp_path: Path) -> tuple[Path, Path]:
    """A patient's folder, and a copy of it that says to be another person's of the same identifier."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, identity in ((one, {**ANOTHER, "PatientName": "Doe^Jane"}), (other, ANOTHER)):
        shutil.copytree(dicom_set[0], folder)
        set_identity(folder, identity)
    return one, other


# Whose


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Identity("H-2", "Doe^Jane", "19500203"), "by identifier"),
        (Identity("H-1", "Roe^Jane", "19500203"), "by name or birth date"),
        (Identity("H-1", "Doe^Jane", "19500204"), "by name or birth date"),
        (Identity("", "Doe^Jane", "19500203"), "by identifier"),
        (Identity("", "", ""), "by identifier"),
    ],
)
def test_another_person_is_refused_unless_accepted(other: Identity, said: str) -> None:
    with pytest.raises(PatientDataError, match=f"day: The data are of another patient, {said}") as refused:
        require_same_person(SOMEBODY, other, Overrides(), "day", [])
    assert "--accept identity" in refused.value.remedy and "Doe" not in str(refused.value)
    warnings: list[str] = []
    require_same_person(SOMEBODY, other, Overrides(frozenset({"identity"})), "day", warnings)
    assert len(warnings) == 1 and warnings[0].startswith("Overridden by the user (identity)")


def test_without_identifiers_names_and_birth_dates_count() -> None:
    nameless = Identity("", "Doe^Jane", "19500203")
    warnings: list[str] = []
    require_same_person(nameless, Identity("", "DOE^JANE", "19500203"), Overrides(), "day", warnings)
    require_same_person(SOMEBODY, Identity("H-1", "", ""), Overrides(), "day", warnings)
    assert not warnings
    for other in (Identity("", "Roe^Jane", "19500203"), Identity("", "", "19500203"), Identity("", "", "")):
        with pytest.raises(PatientDataError, match="another patient"):
            require_same_person(nameless, other, Overrides(), "day", [])
    require_same_person(Identity("", "", ""), Identity("", "", ""), Overrides(), "day", warnings)
    assert "could not be checked" in warnings[0]


@pytest.mark.parametrize("file", ["", "RTDOSE.dcm"])
def test_another_persons_dose_is_not_compared(
    file: str, twice: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = twice
    command = ["compare", str(one), str(other / file), "--cutoff", "90", "--out", str(tmp_path / "found.json")]
    assert main(command) == 1
    error = one_line(capsys.readouterr().err)
    assert f"{file or 'other'}: The data are of another patient" in error
    assert "Roe" not in error and not (tmp_path / "found.json").exists()
    assert main([*command, "--accept", "identity"]) == 0
    notes = json.loads((tmp_path / "found.json").read_text())["notes"]
    assert any(note.startswith("B: Overridden by the user (identity): The data are of another") for note in notes)


def test_another_persons_dose_is_not_judged(
    twice: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = twice
    command = ["dose", str(one), "--dose", str(other / "RTDOSE.dcm"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "RTDOSE.dcm: The data are of another patient" in one_line(capsys.readouterr().err)
    assert main([*command, "--accept", "identity"]) == 0
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert any("Overridden by the user (identity)" in note for note in notes)
    assert OTHER_PLAN_REMARK not in notes


def test_a_dose_of_another_plan_is_told(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    dose = Path(shutil.copy(dicom_set[0] / "RTDOSE.dcm", tmp_path / "dose.dcm"))
    with edited(dose) as ds:
        ds.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    assert main(["dose", str(dicom_set[0]), "--dose", str(dose), "--out", str(tmp_path / "out")]) == 0
    assert OTHER_PLAN_REMARK in json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]


def test_openkbp_patients_are_told_apart(
    sample_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "pt_2"
    shutil.copytree(sample_folder, other)
    assert main(["compare", str(sample_folder), str(other)]) == 1
    assert "pt_2: The data are of another patient, by identifier" in one_line(capsys.readouterr().err)


# What a file says of itself


def test_what_a_file_says_goes_before_the_unit(tmp_path: Path) -> None:
    patient = small_patient()
    dose = patient.plan.dose
    assert dose is not None
    path = str(tmp_path / "file.nrrd")
    for quantity in (Quantity.DOSE_STD_GY, Quantity.DOSE_WIDTH_GY, Quantity.DOSE_DIFFERENCE_GY):
        write_nrrd(replace(dose, quantity=quantity), path)
        with pytest.raises(PatientDataError, match=f"The file holds {quantity.value}, not a dose"):
            read_dose_image(Path(path), unit="Gy")
    write_nrrd(patient.ct, path)
    with pytest.raises(PatientDataError, match="The file holds HU, not a dose"):
        read_dose_image(Path(path), unit="Gy")
    write_nrrd(dose, path)
    with pytest.raises(PatientDataError, match="says that its values are in Gy, not cGy"):
        read_dose_image(Path(path), unit="cGy")
    assert read_dose_image(Path(path), unit="Gy").dose.values == pytest.approx(dose.values)


@pytest.mark.parametrize(
    ("value", "said"), [(-800.0, "Doses go down to -800 Gy"), (np.inf, "reaches inf Gy"), (900.0, "reaches 900 Gy")]
)
def test_values_that_no_dose_has(value: float, said: str, tmp_path: Path) -> None:
    """A CT or a dose in cGy that does not say so, taken for Gy."""
    values = np.full((3, 4, 5), 60, np.float32)
    values[1, 1, 1] = value
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "file.nrrd"))
    with pytest.raises(PatientDataError, match=said):
        read_dose_image(tmp_path / "file.nrrd", unit="Gy")


def test_an_eqd2_is_no_physical_dose(
    dicom_set: tuple[Path, Patient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, patient = dicom_set
    eqd2 = Volume(dose_of(patient), patient.ct.grid, Quantity.EQD2_GY)
    path = str(tmp_path / "eqd2.nrrd")
    with pytest.raises(OutputError, match="alpha/beta"):
        write_nrrd(eqd2, path)
    write_nrrd(eqd2, path, alpha_beta_gy=3)
    assert sitk.ReadImage(path).GetMetaData("alpha_beta_gy") == "3"
    for command in (["dose", str(folder), "--dose", path], ["compare", str(folder), path, "--unit", "Gy"]):
        assert main(command) == 1
        assert "eqd2.nrrd: The file holds EQD2 (alpha/beta 3 Gy)" in one_line(capsys.readouterr().err)


def test_a_prediction_is_told(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    folder, patient = dicom_set
    dose = Volume(dose_of(patient), patient.ct.grid, Quantity.DOSE_GY)
    image, rtdose = tmp_path / "predicted.nrrd", tmp_path / "predicted.dcm"
    write_nrrd(dose, str(image), predicted=True)
    write_dose(dose, rtdose, source_origin(folder), "Predicted dose", predicted=True)
    for path in (image, rtdose):
        read = read_dose_image(path)
        assert read.is_predicted and PREDICTION_REMARK in read.remarks
        out = tmp_path / f"{path.suffix}.json"
        assert main(["compare", str(folder), str(path), "--cutoff", "90", "--out", str(out)]) == 0
        assert f"B: {PREDICTION_REMARK}" in json.loads(out.read_text())["notes"]
    write_nrrd(dose, str(image))
    assert read_dose_image(image).remarks == () and not read_dose_image(image).is_predicted
    write_nrrd(dose, str(image), predicted=True, simulated=True)
    assert read_dose_image(image).remarks == (PREDICTION_REMARK, SIMULATION_REMARK)


@pytest.mark.parametrize("predicted", [False, True])
def test_dose_that_is_not_known_is_told_in_the_comment(
    predicted: bool, dicom_set: tuple[Path, Patient], tmp_path: Path
) -> None:
    folder, patient = dicom_set
    gy = dose_of(patient).copy()
    gy[:3] = np.nan
    path = tmp_path / "dose.dcm"
    dose = Volume(gy, patient.ct.grid, Quantity.DOSE_GY)
    write_dose(dose, path, source_origin(folder), "Part of a dose", predicted=predicted)
    comment = pydicom.dcmread(path).DoseComment
    assert "0 Gy" in comment and "known" in comment and len(comment) <= 64
    read = read_dose_image(path)
    assert read.is_predicted is predicted
    assert any("not known everywhere" in remark for remark in read.remarks)


def test_a_part_of_a_treatment_is_read_where_it_may_be(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    dose = Path(shutil.copy(dicom_set[0] / "RTDOSE.dcm", tmp_path / "dose.dcm"))
    with edited(dose) as ds:
        ds.DoseSummationType = "FRACTION"
    with pytest.raises(PatientDataError, match="summation FRACTION, not a whole plan's"):
        read_dose_image(dose)
    assert read_dose_image(dose, summations=("PLAN", "FRACTION")).summation == "FRACTION"


def test_an_effective_dose_of_a_folder_is_known_as_one(damaged_set: Path) -> None:
    assert not Patient.load(damaged_set).plan.dose_is_effective
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.DoseType = "EFFECTIVE"
    assert Patient.load(damaged_set).plan.dose_is_effective


# Where results go


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["compare", "{one}", "{two}", "--out", "{one}/found.json"], "inside the folder the data are read from"),
        (["compare", "{one}", "{two}", "--out", "{two}/found.json"], "inside the folder the data are read from"),
        (["compare", "{one}", "{file}", "--out", "{file}"], "This is the file the data are read from"),
        (["dose", "{one}", "--out", "{one}/out"], "inside the folder the data are read from"),
        (["dose", "{one}", "--dose", "{file}", "--out", "{around}"], "a folder around the data"),
    ],
)
def test_results_stay_apart_from_what_they_are_made_of(
    command: list[str], said: str, damaged_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two, around = tmp_path / "two", tmp_path / "around"
    shutil.copytree(damaged_set, two)
    around.mkdir()
    file = Path(shutil.copy(damaged_set / "RTDOSE.dcm", around / "dose.dcm"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.dcm")}
    places = {"one": damaged_set, "two": two, "file": file, "around": around}
    assert main([part.format(**places) for part in command]) == 1
    assert said in one_line(capsys.readouterr().err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
