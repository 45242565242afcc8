"""The command accumulate from end to end, and the errors around it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.patient.image_registration import RegistrationSettings
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume, write_nrrd
from RTDigitalTwinLib.report.accumulation import FractionSet, accumulate
from Testing.builders import small_patient
from Testing.dicom_sets import set_identity, small_set


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_anatomy_every_day(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    """30 of 35 fractions from the folder and 5 from an image file give the plan's dose, exactly."""
    folder, _ = dicom_set
    planned = Patient.load(folder).plan.dose
    assert planned is not None
    write_nrrd(planned, str(tmp_path / "day.nrrd"))
    out = tmp_path / "out"
    command = ["accumulate", str(folder), f"{folder}=30", f"{tmp_path / 'day.nrrd'}=5", "--register", "none"]
    assert main([*command, "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {
        "dose_accumulated.nrrd", "mapping_inconsistency.nrrd", "dose_mapping_error.nrrd", "metrics.csv", "mapping.csv",
        "summary.json",
    }  # fmt: skip
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "dose_accumulated.nrrd")))
    assert np.array_equal(found, planned.values, equal_nan=True)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["fractions"], summary["registration"], summary["eqd2_alpha_beta_gy"]) == (35, "none", None)
    assert all(row["difference"] == 0 for row in summary["metrics"]) and summary["metrics"]
    assert [m["count"] for m in summary["mappings"]] == [30, 5]


def test_a_registered_day(dicom_set: tuple[Path, Patient], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same CT twice: registered to within an eighth of a voxel, and what it cannot do is said."""
    folder, _ = dicom_set
    out = tmp_path / "out"
    assert main(["accumulate", str(folder), f"{folder}=20", "--out", str(out), "--eqd2", "3"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mappings"][0]["inconsistency_95_mm"] < 0.5 and summary["mappings"][0]["moved_mean_mm"] < 0.5
    assert summary["mappings"][0]["density_changed_ratio"] < 0.05 and summary["eqd2_alpha_beta_gy"] == 3
    assert any("not for protons" in note for note in summary["notes"])
    assert any("20 of 35 fractions" in note for note in summary["notes"])
    mean = next(r for r in rows_of(out / "metrics.csv") if (r["structure"], r["metric"]) == ("PTV_7000", "mean"))
    assert float(mean["accumulated"]) == pytest.approx(float(mean["planned"]), abs=0.05)
    assert 0 < float(mean["dose_error_gy"]) < 0.5
    printed = " ".join(capsys.readouterr().out.split())
    assert "EQD2, alpha/beta 3 Gy" in printed and "inconsistent" in printed and "Research use only" in printed


def test_another_patient_is_refused(
    dicom_set: tuple[Path, Patient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_set(tmp_path / "other")
    set_identity(tmp_path / "other", {"PatientID": "somebody-else"})
    assert main(["accumulate", str(dicom_set[0]), str(tmp_path / "other"), "--out", str(tmp_path / "out")]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "other: The data are of another patient" in error and "somebody-else" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}=x"], "'x' is no number of fractions"),
        (["{folder}=0"], "'0' is no number of fractions"),
        (["{folder}", "--dose-of", "0"], "--dose-of: 0 has no meaning"),
        (["{folder}", "--eqd2", "-3"], "--eqd2: -3 has no meaning"),
        (["{folder}/absent.nrrd"], "absent.nrrd: The file cannot be read as an image"),
    ],
)
def test_errors_say_what_is_wrong(
    arguments: list[str], message: str, dicom_set: tuple[Path, Patient], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    filled = [argument.format(folder=dicom_set[0]) for argument in arguments]
    assert main(["accumulate", str(dicom_set[0]), *filled, "--out", str(tmp_path / "out")]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_changed_density_and_inconsistency_are_told() -> None:
    """A day whose air cavity is where tissue was, in an anatomy that a registration cannot tell along the body."""
    patient = small_patient()
    planned = patient.plan.dose
    assert planned is not None
    hu = patient.ct.values.copy()
    hu[patient.structures["Parotid_L"].mask | patient.structures["PTV_7000"].mask] = -900
    day = replace(patient.ct, values=np.roll(hu, 2, axis=0))
    sets = [FractionSet("day 12", planned, 35, 35, Volume(day.values, day.grid, Quantity.HU))]
    found = accumulate(patient, sets, RegistrationSettings(deformable=False))
    assert any(note.startswith("day 12: the density differs by more than 300 HU") for note in found.notes)
    same = accumulate(patient, [FractionSet("day 1", planned, 35, 35)])
    assert not any("density" in note or "inverse" in note for note in same.notes)
    assert {row.difference for row in same.metrics} == {0.0} and same.mappings[0].inconsistency_mean_mm is None
