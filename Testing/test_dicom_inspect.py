"""Inspecting a DICOM folder, and the mapping file between inspect and run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from RTDigitalTwinLib.cli import main
from Testing.builders import axial_grid
from Testing.dicom_sets import (
    NAMES,
    PLANTED,
    edited,
    maps,
    roi_number,
    set_identity,
    small_set,
)


@pytest.fixture
def folder(clinical_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clinical_set, tmp_path / "Longstocking"))


def test_inspect_shows_what_is_there(clinical_set: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(clinical_set)]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "1 patient, 0 files that are no DICOM",
        "80 x 72 x 24 voxels of 2 x 2 x 5 mm, axes LPS",
        "70 Gy to targets in 35 fractions",
        "Parotida Izq = Parotid_L: proposed 0.95 (synonym, left by its name)",
        "PTV70 = PTV_7000: proposed 0.90 (70 Gy by its digits and the plan)",
        "Can be used once the proposed names are confirmed.",
    ):
        assert text in said, said
    for secret in PLANTED.values():
        assert secret not in said
    assert main(["inspect", str(clinical_set), "--show-identity", *maps()]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "PLANTED-7" in said and "CT and structures fit together." in said


def test_inspect_tells_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "CT.0007.dcm").unlink()
    (folder / "bad.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    with edited(folder / "RTDOSE.dcm") as ds:
        ds.DoseUnits = "RELATIVE"
    assert main(["inspect", str(folder)]) == 1
    out, told = capsys.readouterr()
    said = " ".join(out.replace("│", " ").split())
    assert "Error: Longstocking: Nothing here can be used as it is. patient-" in told and "not evenly spaced" in told
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
    assert main(["inspect", str(folder), *maps()]) == 1
    out, told = capsys.readouterr()
    said = " ".join(out.replace("│", " ").split())
    assert "fit together" not in said and "Cannot be used: " in said and message in said, said
    assert message in " ".join(told.split())


def test_inspect_of_a_usable_patient_beside_an_unusable_one(folder: Path, capsys: pytest.CaptureFixture) -> None:
    other = folder / "other"
    small_set(other, replace(axial_grid(), frame_of_reference=str(generate_uid())))
    set_identity(other, {"PatientID": "other-1"})
    (other / "RTSTRUCT.dcm").unlink()
    assert main(["inspect", str(folder)]) == 0 and main(["inspect", str(folder), "--patient", "PLANTED-7"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(folder), "--patient", "other-1"]) == 1
    assert "no structure set" in " ".join(capsys.readouterr().err.split())
    (folder / "RTSTRUCT.dcm").unlink()
    assert main(["inspect", str(folder)]) == 1
    assert capsys.readouterr().err.count("no structure set") == 2


def test_inspect_of_nothing_usable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert main(["inspect", str(tmp_path)]) == 1
    out, told = capsys.readouterr()
    assert "0 patients, 1 file that is no DICOM" in out and "nothing can be used" in told
    assert main(["inspect", str(tmp_path / "absent")]) == 1


def test_inspect_of_an_openkbp_patient_says_so(sample_folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(sample_folder)]) == 1
    assert "looks like an OpenKBP patient" in " ".join(capsys.readouterr().err.split())


def test_a_mapping_file_from_inspect_to_run(clinical_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "names.toml"
    assert main(["inspect", str(clinical_set), "--write-map", str(path)]) == 0
    assert main(["run", str(clinical_set), "--out", str(tmp_path / "out"), "--map-file", str(path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "4 names of structures wait to be confirmed" in said and '--map "Parotida Izq=Parotid_L"' in said
    text = path.read_text(encoding="utf-8").replace("confirmed = false", "confirmed = true")
    path.write_text(text, encoding="utf-8")
    assert main(["inspect", str(clinical_set), "--map-file", str(path)]) == 0
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
