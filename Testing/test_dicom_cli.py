"""DICOM folders on the command line: inspect, sample, and run from names to results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from pydicom.uid import generate_uid

from RTDigitalTwinLib import Twin
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.patient.patient import Patient
from Testing.builders import axial_grid
from Testing.dicom_sets import edit_all, edited, roi_number, set_identity, small_set
from Testing.test_network_patient import FINE

NAMES = {
    "Parotid_L": "Parotida Izq",
    "Parotid_R": "Glandula Parotida Dcha",
    "SpinalCord": "Médula",
    "PTV_7000": "PTV70",
}
CONFIRMED = [f"{clinical}={name}" for name, clinical in NAMES.items()]
PLANTED = {"PatientName": "Longstocking^Pippi", "PatientID": "PLANTED-7", "PatientBirthDate": "19450101"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine scan of a named patient with Spanish structures, in a folder that bears the name."""
    folder = tmp_path_factory.mktemp("clinic") / "Longstocking"
    small_set(folder, FINE)
    set_identity(folder, PLANTED)
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for roi in ds.StructureSetROISequence:
            roi.ROIName = NAMES.get(roi.ROIName, roi.ROIName)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "Longstocking"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32))), path, {})
    return path


def maps() -> list[str]:
    return [part for text in CONFIRMED for part in ("--map", text)]


# inspect


def test_inspect_shows_what_is_there(original: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(original)]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "1 patients, 0 files that are no DICOM",
        "80 x 72 x 24 voxels of 2 x 2 x 5 mm, axes LPS",
        "70 Gy to targets in 35 fractions",
        "Parotida Izq = Parotid_L: proposed 0.95 (synonym, left by its name)",
        "PTV70 = PTV_7000: proposed 0.90 (70 Gy by its digits and the plan)",
        "Can be used once the proposed names are confirmed.",
    ):
        assert text in said, said
    for secret in PLANTED.values():
        assert secret not in said
    assert main(["inspect", str(original), "--show-identity", *maps()]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "PLANTED-7" in said and "CT and structures fit together." in said


def test_inspect_tells_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "CT.0007.dcm").unlink()
    (folder / "bad.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.DoseUnits = "RELATIVE"
    assert main(["inspect", str(folder)]) == 0  # structures and plan could be read
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("not evenly spaced", "DoseUnits is RELATIVE", "bad.dcm", "Cannot be used"):
        assert text in said, said


def swap_parotids(folder: Path) -> None:
    with edited(folder / "RTSTRUCT.dcm") as ds:
        left, right = (roi_number(ds, NAMES[name]) for name in ("Parotid_L", "Parotid_R"))
        for roi in ds.StructureSetROISequence:
            roi.ROINumber = {left: right, right: left}.get(roi.ROINumber, roi.ROINumber)


def forget_fractions(folder: Path) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        del ds.FractionGroupSequence


def prescribe_too_much(folder: Path) -> None:
    with edited(folder / "RTPLAN.dcm") as ds:
        ds.FractionGroupSequence[0].NumberOfFractionsPlanned = 10


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_parotids, "The anatomy contradicts"),
        (forget_fractions, "how many fractions"),
        (prescribe_too_much, "is too far"),
    ],
)
def test_inspect_refuses_what_run_refuses(
    folder: Path, damage: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture
) -> None:
    damage(folder)
    assert main(["inspect", str(folder), *maps()]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "fit together" not in said and "Cannot be used: " in said and message in said, said


def test_inspect_of_nothing_usable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert main(["inspect", str(tmp_path)]) == 1
    assert "0 patients, 1 files that are no DICOM" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "absent")]) == 1


def test_a_mapping_file_from_inspect_to_run(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "names.toml"
    assert main(["inspect", str(original), "--write-map", str(path)]) == 0
    assert main(["run", str(original), "--out", str(tmp_path / "out"), "--map-file", str(path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "4 names of structures wait to be confirmed" in said and '--map "Parotida Izq=Parotid_L"' in said
    text = path.read_text(encoding="utf-8").replace("confirmed = false", "confirmed = true")
    path.write_text(text, encoding="utf-8")
    assert main(["inspect", str(original), "--map-file", str(path)]) == 0
    assert "fit together" in " ".join(capsys.readouterr().out.split())


def test_the_mapping_file_is_of_the_patient_and_the_set_that_were_chosen(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = folder / "other"
    small_set(other, replace(axial_grid(), frame_of_reference=str(generate_uid())))
    set_identity(other, {"PatientID": "other-1"})
    path = tmp_path / "names.toml"
    command = ["inspect", str(folder), "--write-map", str(path), "--patient"]
    assert main([*command, "nobody"]) == 1 and not path.exists()
    assert "no such patient" in capsys.readouterr().err
    assert main([*command, "PLANTED-7"]) == 0 and "Parotida Izq" in path.read_text(encoding="utf-8")
    assert main([*command, "other-1"]) == 0 and "Parotida Izq" not in path.read_text(encoding="utf-8")
    shutil.rmtree(other)
    shutil.copy(folder / "RTSTRUCT.dcm", folder / "Z second.dcm")
    with edited(folder / "Z second.dcm") as ds:
        ds.SOPInstanceUID, ds.StructureSetLabel = generate_uid(), "Second"
        for roi in ds.StructureSetROISequence:
            roi.ROIName = f"second {roi.ROINumber}"
    assert main(command[:-1]) == 0 and "Parotida Izq" in path.read_text(encoding="utf-8")  # the plan's set
    second = [*command[:-1], "--structure-set", "Second"]
    assert main(second) == 1  # the plan is of the other set
    assert main([*second, "--accept", "plan"]) == 0 and "second 2" in path.read_text(encoding="utf-8")
    (folder / "RTPLAN.dcm").unlink()
    path.unlink()
    assert main(command[:-1]) == 1 and not path.exists()
    assert "--structure-set" in capsys.readouterr().err


# run


@pytest.fixture(scope="module")
def results(original: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("results")
    out, dose = place / "out", place / "record" / "dose.dcm"
    command = ["run", str(original), "--out", str(out), "--samples", "2", "--device", "cpu", "--weights", str(weights)]
    assert main([*command, *maps(), "--dose-dicom", str(dose)]) == 0
    return out, dose


def test_run_predicts_a_dicom_patient(results: tuple[Path, Path]) -> None:
    out, _ = results
    summary = json.loads((out / "summary.json").read_text())
    assert summary["prescription_gy"] == {"PTV_7000": 70.0} and summary["fractions"] == 35
    assert any(text.startswith("Predicted on 41 x 37 x 24 voxels") for text in summary["warnings"])
    assert summary["dose_error_gy"] > 0  # the plan's dose is the reference
    on_ct = sitk.ReadImage(str(out / "dose_mean_on_ct.nrrd"))
    coarse = sitk.ReadImage(str(out / "dose_mean.nrrd"))
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


def test_nothing_of_the_patient_is_in_any_result(results: tuple[Path, Path], original: Path) -> None:
    out, _ = results
    uids = {
        str(ds[key].value)
        for ds in (pydicom.dcmread(path, stop_before_pixels=True) for path in original.glob("*.dcm"))
        for key in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    }
    secrets = [
        text.encode() for text in (*PLANTED.values(), "Longstocking", "Pippi", *NAMES.values(), str(original), *uids)
    ]
    for path in (p for p in out.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix == ".mrb":
            shutil.unpack_archive(path, out.parent / "unpacked", "zip")
            unpacked = [p for p in (out.parent / "unpacked").rglob("*") if p.is_file()]
            content = b"".join(p.read_bytes() + p.name.encode() for p in unpacked)
        for secret in secrets:
            assert secret not in content, (path.name, secret)


def test_the_dose_goes_back_with_the_sources_identity(results: tuple[Path, Path], original: Path) -> None:
    out, dose = results
    back, plan = pydicom.dcmread(dose), pydicom.dcmread(original / "RTPLAN.dcm")
    assert (back.PatientID, back.StudyInstanceUID) == (plan.PatientID, plan.StudyInstanceUID)
    assert back.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    mean = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "dose_mean.nrrd")))
    scaling = float(back.DoseGridScaling)
    np.testing.assert_allclose(back.pixel_array * scaling, mean, atol=0.51 * scaling)


def test_a_dose_with_identity_stays_out_of_the_results(original: Path, tmp_path: Path) -> None:
    command = ["run", str(original), "--out", str(tmp_path / "out"), *maps(), "--dose-dicom"]
    assert main([*command, str(tmp_path / "out" / "dose.dcm")]) == 1
    assert main(["run", "sample", "--out", str(tmp_path / "out"), "--dose-dicom", str(tmp_path / "dose.dcm")]) == 1
    assert not (tmp_path / "out").exists()


def test_a_dose_that_could_refer_to_nothing_is_refused_before_predicting(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["run", str(folder), "--out", str(tmp_path / "out"), *maps(), "--dose-dicom", str(tmp_path / "dose.dcm")]
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
    assert not (tmp_path / "out").exists() and not (tmp_path / "dose.dcm").exists()


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


# sample


def test_sample_writes_a_set_that_can_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "sample"
    assert main(["sample", "--out", str(out)]) == 0
    assert {path.name for path in out.glob("RT*")} == {"RTDOSE.dcm", "RTPLAN.dcm", "RTSTRUCT.dcm"}
    assert main(["inspect", str(out)]) == 0
    assert "CT and structures fit together." in capsys.readouterr().out
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
    original: Path, tmp_path: Path, option: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["run", str(original), "--out", str(tmp_path / "out"), *option]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
