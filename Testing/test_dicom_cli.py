"""DICOM folders on the command line: inspect, sample, and run from names to results."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch

from RTDigitalTwinLib import Twin
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.patient.patient import Patient
from Testing.builders import FINE
from Testing.dicom_sets import (
    CONFIRMED,
    NAMES,
    PLANTED,
    dose_of,
    edit_all,
    edited,
    maps,
    small_set,
)
from Testing.test_dicom_export import errors_found


@pytest.fixture
def folder(clinical_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clinical_set, tmp_path / "Longstocking"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32))), path, {})
    return path


# run


@pytest.fixture(scope="module")
def results(clinical_set: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("results")
    out, record = place / "out", place / "record"
    command = [
        "run",
        str(clinical_set),
        "--out",
        str(out),
        "--samples",
        "2",
        "--device",
        "cpu",
        "--weights",
        str(weights),
    ]
    assert main([*command, *maps(), "--dicom-out", str(record)]) == 0
    return out, record


def test_run_predicts_a_dicom_patient(results: tuple[Path, Path]) -> None:
    out, _ = results
    summary = json.loads((out / "summary.json").read_text())
    assert summary["prescription_gy"] == {"PTV_7000": 70.0} and summary["fractions"] == 35
    assert any(text.startswith("Predicted on 41 x 37 x 24 voxels") for text in summary["warnings"])
    assert summary["dose_error_gy"] > 0  # the plan's dose is the reference
    on_ct = sitk.ReadImage(str(out / "dose_mean_on_ct.nrrd"))
    coarse = sitk.ReadImage(str(out / "dose_mean.nrrd"))
    assert on_ct.GetMetaData("predicted") == coarse.GetMetaData("predicted") == "yes"
    assert on_ct.GetSize() == (80, 72, 24) and on_ct.GetOrigin() == pytest.approx(FINE.origin_mm)
    assert coarse.GetSize() == (41, 37, 24)
    fine = sitk.GetArrayFromImage(on_ct)
    values = sitk.GetArrayFromImage(coarse)
    assert np.isfinite(fine).all() and 0 < fine.max() <= values.max()
    assert fine.sum() * 20.0 == pytest.approx(values.sum() * np.prod(coarse.GetSpacing()), rel=0.02)  # Gy mm3


def test_a_dose_on_a_smaller_grid_is_compared_where_it_is_known(folder: Path, weights: Path, tmp_path: Path) -> None:
    with edited(folder / "RTDOSE.dcm") as ds:
        pixels = ds.pixel_array[6:18]
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 6 * 5.0
        ds.NumberOfFrames, ds.GridFrameOffsetVector = 12, [5.0 * i for i in range(12)]
        ds.PixelData = pixels.tobytes()
    out = tmp_path / "out"
    command = ["run", str(folder), "--out", str(out), "--samples", "2", "--device", "cpu", "--weights", str(weights)]
    assert main([*command, *maps()]) == 0
    summary = json.loads((out / "summary.json").read_text())
    references = {(row["structure"], row["metric"]): row["reference"] for row in summary["metrics"]}
    assert references["SpinalCord", "D0.1cc"] is None and references["PTV_7000", "D95"] > 0
    assert 0 < summary["dose_error_gy"] < 70 and summary["dvh_error_gy"] > 0
    assert any("The reference dose is known in" in text for text in summary["warnings"])
    report = (out / "report.html").read_text()
    numbers = [i for i, name in enumerate(dict.fromkeys(name for name, _ in references), start=1)
               if name in ("SpinalCord", "PTV_7000")]  # fmt: skip
    drawn = [f'id="reference-{number}"' in report for number in numbers]
    assert sorted(drawn) == [False, True]
    assert (out / "scene.mrb").is_file()


def secrets_of(folder: Path) -> list[bytes]:
    """What nobody may find in a result: identity, names of structures, UIDs, path."""
    uids = {
        str(ds[key].value)
        for ds in (pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob("*.dcm"))
        for key in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
    return [text.encode() for text in (*PLANTED.values(), "Longstocking", "Pippi", *NAMES.values(), str(folder), *uids)]


def test_nothing_of_the_patient_is_in_any_result(results: tuple[Path, Path], clinical_set: Path) -> None:
    out, _ = results
    secrets = secrets_of(clinical_set)
    for path in (p for p in out.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".mrb":
            shutil.unpack_archive(path, out.parent / "unpacked", "zip")
            unpacked = [p for p in (out.parent / "unpacked").rglob("*") if p.is_file()]
            content = b"".join(p.read_bytes() + p.name.encode() for p in unpacked)
        # As pictures are, not as they are spelt: five letters turn up by chance in megabytes of base 64.
        content = re.sub(rb"base64,([A-Za-z0-9+/=]+)", lambda found: base64.b64decode(found[1]), content)
        for secret in secrets:
            assert secret not in content, (path.name, secret)


def test_dose_spread_and_structures_go_back_with_the_sources_identity(
    results: tuple[Path, Path], clinical_set: Path
) -> None:
    out, record = results
    plan = pydicom.dcmread(clinical_set / "RTPLAN.dcm")
    # Weights of no calibration and two samples: the spread is the plain one, and says so.
    assert {path.name for path in record.iterdir()} == {"RTDOSE.mean.dcm", "RTDOSE.std.dcm", "RTSTRUCT.dcm"}
    meanings = {
        "mean": ("PHYSICAL", "Predicted, not calculated. Research use only, not for treatment."),
        "std": ("ERROR", "Standard deviation of samples of predicted dose; research"),
    }
    for kind, (dose_type, comment) in meanings.items():
        back = pydicom.dcmread(record / f"RTDOSE.{kind}.dcm")
        assert (back.PatientID, back.StudyInstanceUID) == (plan.PatientID, plan.StudyInstanceUID)
        assert back.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
        assert (back.DoseType, back.DoseComment, back.DoseUnits) == (dose_type, comment, "GY")
        image = sitk.ReadImage(str(record / f"RTDOSE.{kind}.dcm"))
        expected = sitk.ReadImage(str(out / f"dose_{kind}.nrrd"))
        scaling = float(back.DoseGridScaling)
        gy = sitk.GetArrayFromImage(image).astype(float)
        gy *= scaling if gy.max() > 1000 else 1  # this reader may leave the scaling to its caller
        np.testing.assert_allclose(gy, sitk.GetArrayFromImage(expected), atol=0.51 * scaling + 1e-6)
        assert image.GetOrigin() == pytest.approx(expected.GetOrigin())
        assert errors_found(record / f"RTDOSE.{kind}.dcm") == []
    structures = pydicom.dcmread(record / "RTSTRUCT.dcm")
    assert structures.PatientID == plan.PatientID and structures.SOPInstanceUID != plan.ReferencedStructureSetSequence[
        0].ReferencedSOPInstanceUID  # fmt: skip
    assert {roi.ROIName for roi in structures.StructureSetROISequence} == {*NAMES, "FeasibleDose"}
    assert errors_found(record / "RTSTRUCT.dcm") == []


def test_results_among_the_patients_files_are_not_taken_for_its_plan(
    results: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    for path in results[1].iterdir():
        shutil.copy(path, folder / f"result.{path.name}")
    choice = DicomChoice(names=dict(text.split("=") for text in CONFIRMED))
    read = load_patient(folder, choice)
    (folder / "RTDOSE.dcm").unlink()
    assert read.plan.dose is not None and load_patient(folder, choice).plan.dose is None
    assert "A dose that this software predicted was left out: it is no plan's dose." in read.warnings
    assert any("DoseType is ERROR (a spread or a difference of doses)" in text for text in read.warnings)
    assert main(["inspect", str(folder), *maps()]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "The dose is a prediction of this software" in said and "CT and structures fit together." in said


def test_structures_as_used_lie_where_they_were_drawn(results: tuple[Path, Path], folder: Path) -> None:
    """On 41 x 37 pixels instead of 80 x 72: each structure overlaps its own by half of a border voxel's width."""
    choice = DicomChoice(names=dict(text.split("=") for text in CONFIRMED))
    before = load_patient(folder, choice)
    written = pydicom.dcmread(results[1] / "RTSTRUCT.dcm")
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID = written.SOPInstanceUID
    shutil.copy(results[1] / "RTSTRUCT.dcm", folder / "RTSTRUCT.dcm")
    after = load_patient(folder)
    for name, structure in before.structures.items():
        theirs = after.structures[name]
        assert theirs.volume_cc == pytest.approx(structure.volume_cc, rel=0.1), name
        shared = np.minimum(theirs.occupancy, structure.occupancy).sum()
        assert 2 * shared / (theirs.occupancy.sum() + structure.occupancy.sum()) > 0.9, name


def test_a_dose_with_identity_stays_out_of_the_results(clinical_set: Path, tmp_path: Path) -> None:
    command = ["run", str(clinical_set), "--out", str(tmp_path / "out"), *maps(), "--dicom-out"]
    for place in (tmp_path / "out", tmp_path / "out" / "record", tmp_path, clinical_set / "record"):
        assert main([*command, str(place)]) == 1
    assert main(["run", "sample", "--out", str(tmp_path / "out"), "--dicom-out", str(tmp_path / "record")]) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "record").exists()


def test_a_dose_that_could_refer_to_nothing_is_refused_before_predicting(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["run", str(folder), "--out", str(tmp_path / "out"), *maps(), "--dicom-out", str(tmp_path / "record")]
    edit_all(folder, "CT*.dcm", lambda ds, _: setattr(ds, "FrameOfReferenceUID", ""))
    assert main(command) == 1
    assert "names no frame of reference" in " ".join(capsys.readouterr().err.split())
    with edited(folder / "RTPLAN.dcm") as ds:
        del ds.ReferencedStructureSetSequence
    assert main(command) == 1
    assert "does not refer to the structure set" in " ".join(capsys.readouterr().err.split())
    (folder / "RTPLAN.dcm").unlink()
    assert main([*command, "--fractions", "35"]) == 1
    assert "There is no plan that the dose could refer to" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists() and not (tmp_path / "record").exists()


def test_a_prescription_too_far_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.FractionGroupSequence[0].NumberOfFractionsPlanned = 10
    assert main(["run", str(folder), "--out", str(tmp_path / "out"), *maps()]) == 1
    assert "70 Gy in 10 fractions is too far" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_scaled_prescription_scales_the_dose(small: tuple[Patient, Patient], weights: Path) -> None:
    plain, scaled = (Twin(patient, weights, "cpu").predict(samples=2) for patient in small)
    factor = 66 / 70
    # Samples are kept as deviations in half precision, cut at 0 Gy.
    np.testing.assert_allclose(scaled.mean.values, factor * plain.mean.values, rtol=2e-3, atol=0.02)
    assert scaled.patient.warnings[-1].startswith("Extrapolation") and not scaled.is_calibrated
    assert "PTV_6600" in scaled.patient.structures


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Patient, Patient]:
    """One patient twice: with 70 Gy in 35 fractions, and with 66 Gy in 33."""
    folder = tmp_path_factory.mktemp("twice") / "set"
    small_set(folder)
    plain = load_patient(folder)
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.DoseReferenceSequence[0].TargetPrescriptionDose = 66
        ds.FractionGroupSequence[0].NumberOfFractionsPlanned = 33
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for roi in ds.StructureSetROISequence:
            roi.ROIName = roi.ROIName.replace("PTV_7000", "PTV_6600")
    return plain, load_patient(folder)


# dose and compare


def test_doses_of_a_dicom_patient_are_judged_and_compared(
    results: tuple[Path, Path], clinical_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["dose", str(clinical_set)]) == 1
    assert "4 names of structures wait to be confirmed" in " ".join(capsys.readouterr().err.split())
    assert main(["dose", str(clinical_set), *maps(), "--out", str(tmp_path / "dose")]) == 0
    patient = load_patient(clinical_set, DicomChoice(names=dict(text.split("=") for text in CONFIRMED)))
    gland = patient.structures["Parotid_L"]

    def mean_of(gy: np.ndarray) -> float:
        return float((gland.occupancy * gy).sum() / gland.occupancy.sum())

    with (tmp_path / "dose" / "metrics.csv").open(newline="") as file:
        rows = {(row["structure"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    # Doses are judged inside the voxels, not at their centres.
    assert rows["Parotid_L", "mean"] == pytest.approx(mean_of(dose_of(patient)), rel=0.02)
    compared = tmp_path / "compared.json"
    command = ["compare", str(clinical_set), str(results[1] / "RTDOSE.mean.dcm"), *maps(), "--cutoff", "50"]
    assert main([*command, "--gamma", "10/5", "--out", str(compared)]) == 0
    found = {(m["structure"], m["metric"]): m for m in json.loads(compared.read_text())["metrics"]}["Parotid_L", "mean"]
    predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(results[0] / "dose_mean_on_ct.nrrd")))
    assert found["a"] == pytest.approx(rows["Parotid_L", "mean"])
    assert found["b"] == pytest.approx(mean_of(predicted), rel=0.02)
    assert main(["compare", str(clinical_set), str(clinical_set), *maps(), "--cutoff", "90"]) == 0
    said = capsys.readouterr()
    results_of = b"".join(path.read_bytes() for path in (compared, *(tmp_path / "dose").iterdir()))
    for secret in secrets_of(clinical_set):
        assert secret not in results_of + said.out.encode() + said.err.encode(), secret


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DoseType": "ERROR"}, "DoseType is ERROR"),
        ({"DoseType": "EFFECTIVE"}, "no physical one"),
        ({"DoseSummationType": "BEAM"}, "summation BEAM"),
        ({"FrameOfReferenceUID": "1.2.3"}, "frames of reference differ"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "a DICOM CT, not an RTDOSE"),
    ],
)
def test_a_dose_file_of_another_meaning_is_not_judged(
    folder: Path, tmp_path: Path, change: dict[str, str], message: str, capsys: pytest.CaptureFixture
) -> None:
    other = Path(shutil.copy(folder / "RTDOSE.dcm", tmp_path / "other.dcm"))
    with edited(other) as ds:
        for keyword, value in change.items():
            setattr(ds, keyword, value)
    assert main(["dose", str(folder), *maps(), "--dose", str(other)]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


# sample


def test_sample_writes_a_set_that_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "sample"
    assert main(["sample", "--out", str(out)]) == 0
    assert {path.name for path in out.glob("RT*")} == {"RTDOSE.dcm", "RTPLAN.dcm", "RTSTRUCT.dcm"}
    assert main(["inspect", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "CT and structures fit together." in said
    (drawn,) = re.findall(r"= PTV_6300: .*? ([0-9.]+) cc", said)
    (left, whole) = re.findall(r"In predictions: PTV_6300: .*? ([0-9.]+) of ([0-9.]+) cc are left", said)[0]
    assert float(left) < float(drawn) == float(whole)  # the contours of neighbours overlap a little
    assert main(["sample", "--out", str(out)]) == 1  # not empty


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--map", "Parotid_L"], "is no mapping"),
        (["--map-file", "absent.toml"], "absent.toml"),
        (["--fractions", "0"], "Fractions must be 1 to 100"),
        (["--patient", "nobody"], "no such patient"),
        (["--plan", "other"], "no RTPLAN of the label"),
    ],
)
def test_unfit_options(
    clinical_set: Path, tmp_path: Path, option: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["run", str(clinical_set), "--out", str(tmp_path / "out"), *option]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_checks_are_offered_where_they_are_made(capsys: pytest.CaptureFixture) -> None:
    """Those of summing days by the command that sums days; those of files by all."""
    for command in ("run", "inspect", "dose", "compare", "observe", "loop", "replay", "accumulate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "frames of reference that differ" in said
        assert ("a registration that looks failed" in said) == (command == "accumulate")
    with pytest.raises(SystemExit):
        main(["inspect", "folder", "--accept", "registration"])
