"""The command accumulate from end to end, and the errors around it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.image_registration import RegistrationSettings, registered
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume, write_nrrd
from RTDigitalTwinLib.report.accumulation import FractionSet, accumulate
from Testing.builders import small_patient
from Testing.conftest import blurred_target_dose
from Testing.dicom_sets import edited, maps, set_identity, small_set


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_anatomy_every_day(
    dicom_set: tuple[Path, Patient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """30 of 35 fractions from the folder and 5 from an image file give the plan's dose, exactly."""
    folder, _ = dicom_set
    planned = Patient.load(folder).plan.dose
    assert planned is not None
    write_nrrd(planned, str(tmp_path / "day.nrrd"))
    out = tmp_path / "out"
    command = ["accumulate", str(folder), f"{folder}=30", f"{tmp_path / 'day.nrrd'}=5/35", "--register", "none"]
    assert main([*command, "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {"dose_accumulated.nrrd", "metrics.csv", "mapping.csv", "summary.json"}
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "dose_accumulated.nrrd")))
    assert np.array_equal(found, planned.values, equal_nan=True)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["fractions"], summary["registration"], summary["eqd2_alpha_beta_gy"]) == (35, "none", None)
    assert all(row["difference"] == 0 for row in summary["metrics"]) and summary["metrics"]
    assert [(m["count"], m["of_fractions"]) for m in summary["mappings"]] == [(30, 35), (5, 35)]
    assert {row["dose_error_gy"] for row in summary["metrics"]} == {None}  # nothing was mapped
    assert sum("the anatomy is taken to be that of the planning CT" in note for note in summary["notes"]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    highest_gy = np.nanmax(planned.values) * 5 / 35
    assert f"set 2: 5 fractions delivered, counted as a dose of 35 fractions: {highest_gy:.1f} Gy at most" in printed
    assert "By mapping" not in printed


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
    rows = rows_of(out / "metrics.csv")
    assert {row["unit"] for row in rows} == {"Gy EQD2"} and not any(row["metric"].startswith("V") for row in rows)
    mean = next(r for r in rows if (r["structure"], r["metric"]) == ("PTV_7000", "mean"))
    assert float(mean["accumulated"]) == pytest.approx(float(mean["planned"]), abs=0.05)
    assert 0 < float(mean["dose_error_gy"]) < 0.5
    printed = " ".join(capsys.readouterr().out.split())
    assert "EQD2, alpha/beta 3 Gy" in printed and "inconsistent" in printed and "Research use only" in printed
    image = sitk.ReadImage(str(out / "dose_accumulated.nrrd"))
    assert (image.GetMetaData("quantity"), image.GetMetaData("alpha_beta_gy")) == ("Gy, EQD2", "3")
    again = ["accumulate", str(folder), f"{out / 'dose_accumulated.nrrd'}=20/20", "--out", str(tmp_path / "again")]
    assert main(again) == 1 and "The file holds EQD2" in " ".join(capsys.readouterr().err.split())


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
        (["{folder}=1/0"], "'1/0' is no number of fractions"),
        (["{folder}=1/35/2"], "'1/35/2' is no number of fractions"),
        (["{folder}=36"], "36 fractions are summed, but 35 are prescribed. If you know better, say --accept fractions"),
        (["{folder}=20", "{folder}=16"], "36 fractions are summed, but 35 are prescribed"),
        (["{folder}=5/1"], "It is said to be a dose of 1 fraction, but its files make it one of 35"),
        (["{folder}/RTDOSE.dcm=5"], "RTDOSE.dcm: Nothing says how many fractions the dose stands for. Say it"),
        (["{folder}", "--eqd2", "-3"], "--eqd2: -3 has no meaning"),
        (["{folder}/absent.nrrd"], "absent.nrrd: There is no such file or folder"),
    ],
)
def test_errors_say_what_is_wrong(
    arguments: list[str], message: str, dicom_set: tuple[Path, Patient], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    filled = [argument.format(folder=dicom_set[0]) for argument in arguments]
    assert main(["accumulate", str(dicom_set[0]), *filled, "--out", str(tmp_path / "out")]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_single_fractions_are_counted_as(
    dicom_set: tuple[Path, Patient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dose of one fraction counts 35 times as the plan's once; as one of 35 it is a 35th of that, and said to be."""
    folder, _ = dicom_set
    planned = Patient.load(folder).plan.dose
    assert planned is not None
    single = str(tmp_path / "single.nrrd")
    write_nrrd(replace(planned, values=planned.values / np.float32(35)), single)
    command = ["accumulate", str(folder), "--register", "none", "--out"]
    for of_fractions, ratio in ((1, 1.0), (35, 1 / 35)):
        out = tmp_path / f"of_{of_fractions}"
        assert main([*command, str(out), f"{single}=35/{of_fractions}"]) == 0
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "dose_accumulated.nrrd")))
        known = np.isfinite(planned.values)
        assert found[known] == pytest.approx(planned.values[known] * ratio, rel=1e-5)
        row = rows_of(out / "mapping.csv")[0]
        assert row["of_fractions"] == str(of_fractions)
        assert float(row["highest_gy"]) == pytest.approx(np.nanmax(planned.values) * ratio, rel=1e-5)
    assert main([*command, str(tmp_path / "out"), f"{single}=35"]) == 1
    assert "single.nrrd: Nothing says how many fractions" in " ".join(capsys.readouterr().err.split())
    assert main([*command, str(tmp_path / "out"), f"{single}=40/1", "--accept", "fractions"]) == 0
    notes = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert "Overridden by the user (fractions): 40 fractions are summed, but 35 are prescribed." in notes


@pytest.fixture
def clinical_day(clinical_set: Path, tmp_path: Path) -> Path:
    """CT and dose of a single fraction of the named patient, without structures and plan, in a folder of the name."""
    day = Path(shutil.copytree(clinical_set, tmp_path / "Longstocking_day3"))
    (day / "RTSTRUCT.dcm").unlink()
    (day / "RTPLAN.dcm").unlink()
    with edited(day / "RTDOSE.dcm") as ds:
        ds.DoseSummationType = "FRACTION"
        ds.DoseGridScaling = ds.DoseGridScaling / 35
    return day


def test_a_clinical_day_of_ct_and_dose(clinical_set: Path, clinical_day: Path, tmp_path: Path) -> None:
    """Names need a map, and the day has neither structures nor plan; nothing written tells who it is."""
    out = tmp_path / "out"
    command = ["accumulate", str(clinical_set), f"{clinical_day}=35", "--out", str(out)]
    assert main([*command]) == 1  # names wait to be confirmed
    assert main([*command, "--register", "none", *maps()]) == 0
    summary = json.loads((out / "summary.json").read_text())
    (row,) = summary["mappings"]
    assert (row["fractions"], row["count"], row["of_fractions"]) == ("set 1", 35, 1)
    assert all(abs(m["difference"]) < 0.05 for m in summary["metrics"]) and summary["metrics"]
    for path in out.iterdir():
        content = path.read_bytes().lower()
        assert not any(word.lower().encode() in content for word in ("Longstocking", "PLANTED-7", "19450101"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"DoseType": "EFFECTIVE"}, "EFFECTIVE one, which cannot be summed"),
        ({"DoseSummationType": "BEAM"}, "no doses (RTDOSE) of a plan or a fraction; one is expected"),
        ({"DoseSummationType": "PLAN"}, "Nothing says how many fractions the dose stands for"),
        ({"FrameOfReferenceUID": "1.2.3"}, "The dose has another frame of reference than the CT"),
        ({"PatientID": "somebody-else"}, "bears another patient's identity"),
    ],
)
def test_unfit_days_are_refused(
    change: dict[str, str], message: str, clinical_set: Path, clinical_day: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with edited(clinical_day / "RTDOSE.dcm") as ds:
        for keyword, value in change.items():
            setattr(ds, keyword, value)
    out = tmp_path / "out"
    options = ["--register", "none", "--patient", "PLANTED-7", "--out", str(out), *maps()]
    assert main(["accumulate", str(clinical_set), f"{clinical_day}=5", *options]) == 1
    assert message in " ".join(capsys.readouterr().err.split()) and not out.exists()


def test_what_a_source_warns_of_is_told_with_its_set(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    """A predicted dose is no delivered one; the second set's own files lack slices."""
    folder, _ = dicom_set
    planned = Patient.load(folder).plan.dose
    assert planned is not None
    write_nrrd(planned, str(tmp_path / "predicted.nrrd"), predicted=True)
    day = Path(shutil.copytree(folder, tmp_path / "day"))
    sorted(day.glob("CT*.dcm"))[10].unlink()
    out = tmp_path / "out"
    command = ["accumulate", str(folder), f"{tmp_path / 'predicted.nrrd'}=5/35", f"{day}=5", "--register", "none"]
    assert main([*command, "--out", str(out)]) == 1
    assert main([*command, "--accept", "gaps", "--out", str(out)]) == 0
    notes = json.loads((out / "summary.json").read_text())["notes"]
    assert any(note.startswith("set 1: The dose is a prediction of this software") for note in notes)
    assert any(note.startswith("set 2: Overridden by the user (gaps)") for note in notes)


def test_results_do_not_land_among_any_sources(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    folder, _ = dicom_set
    day = Path(shutil.copytree(folder, tmp_path / "day"))
    assert main(["accumulate", str(folder), f"{day}=1", "--out", str(day / "out")]) == 1
    assert not (day / "out").exists()


def test_a_failed_registration_is_refused(sample: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient turned by 180 degrees about z, which the registration does not find; passed over on record only."""
    planned = blurred_target_dose(sample)
    patient = replace(sample, plans=(replace(sample.plan, dose=planned),))
    turned, dose = (replace(v, values=v.values[:, ::-1, ::-1].copy()) for v in (patient.ct, planned))
    sets, rigid = [FractionSet("fractions 1", dose, 35, 35, turned)], RegistrationSettings(deformable=False)
    wrong = registered(patient.ct, turned, rigid)
    monkeypatch.setattr("RTDigitalTwinLib.report.accumulation.registered", lambda *_: wrong)  # takes long: once
    with pytest.raises(PatientDataError, match=r"fractions 1: the registration looks failed: .*--accept registration"):
        accumulate(patient, sets, rigid)
    found = accumulate(patient, sets, rigid, overrides=Overrides(frozenset({"registration"})))
    assert any(note.startswith("Overridden by the user (registration): fractions 1") for note in found.notes)


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
