"""The commands dose and compare from end to end, and the files and errors around them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from rich.console import Console

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.cli_dosimetry import _print_review
from RTDigitalTwinLib.cli_tables import range_text
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import GeometryError, PatientDataError
from RTDigitalTwinLib.model.biology import load_biology, models_for
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.dose_file import read_dose_image
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume, write_nrrd
from RTDigitalTwinLib.report.dose_comparison import compare_doses
from RTDigitalTwinLib.report.dose_review import review_dose
from Testing.builders import ball, small_patient


@pytest.fixture(scope="module")
def reviewed(sample_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reviewed") / "out"
    assert main(["dose", str(sample_folder), "--out", str(out), "--goals", "rtog0225"]) == 0
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_dose_writes_what_the_engine_says(reviewed: Path, sample_folder: Path) -> None:
    patient = Patient.load(sample_folder)
    assert {p.name for p in reviewed.iterdir()} == {
        "metrics.csv", "plan_quality.csv", "goals.csv", "biology.csv", "dvh.csv", "summary.json",
    }  # fmt: skip
    assert patient.plan.dose is not None
    inside = structure_dose_of(patient.plan.dose, patient.structures["Parotid_L"])
    rows = {(r["structure"], r["metric"]): r for r in rows_of(reviewed / "metrics.csv")}
    for metric in ("mean", "V20", "D0.1cc", "max"):
        expected = inside.metric(DvhMetric.parse(metric))[0]
        assert float(rows["Parotid_L", metric]["value"]) == pytest.approx(expected, abs=1e-5)
    goals = rows_of(reviewed / "goals.csv")
    assert {row["protocol"] for row in goals} == {"RTOG 0225"} and len(goals) == 8
    assert {row["probability_met"] for row in goals} == {""}
    (model,) = models_for(load_biology(), "Parotid_L")
    (ntcp,) = [row for row in rows_of(reviewed / "biology.csv") if row["structure"] == "Parotid_L"]
    assert float(ntcp["probability"]) == pytest.approx(model.of(inside, 35)[0], abs=1e-5)
    curve = [row for row in rows_of(reviewed / "dvh.csv") if row["structure"] == "Parotid_L"]
    at_20 = next(row for row in curve if float(row["dose_gy"]) == 20)
    assert float(at_20["volume_ratio"]) == pytest.approx(inside.volume_at_dose_ratio(20)[0, 0], abs=1e-5)


def test_a_dose_as_prescribed_conforms_at_every_level(reviewed: Path, sample_folder: Path) -> None:
    """Of a boost in steps: the isodose of a lower level holds the targets above it, and that is no spill."""
    patient = Patient.load(sample_folder)
    gy = np.where(patient.dose_mask.mask, np.float32(5), np.float32(0))
    for name, level in sorted(dict(patient.plan.prescription.target_dose_gy).items(), key=lambda item: item[1]):
        gy[patient.structures[name].mask] = level
    rows = review_dose(patient, Volume(gy, patient.ct.grid, Quantity.DOSE_GY), (), ()).quality
    assert [row.conformity_with for row in rows] == [(), ("PTV_7000",), ("PTV_6300", "PTV_7000")]
    assert min(row.conformity or 0 for row in rows) > 0.85
    joined = {row["structure"]: row["conformity_with"] for row in rows_of(reviewed / "plan_quality.csv")}
    assert joined == {"PTV_7000": "", "PTV_6300": "PTV_7000", "PTV_5600": "PTV_6300; PTV_7000"}


def test_dose_says_what_biology_is_not(reviewed: Path) -> None:
    summary = json.loads((reviewed / "summary.json").read_text())
    assert any("not calibrated outcome probabilities" in note for note in summary["notes"])
    assert summary["notice"].startswith("Research use only")


def test_what_published_parameters_leave_open_is_explained(
    sample_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["dose", str(sample_folder)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if "│ NTCP" in line]
    intervals = {row[0].strip(): row[-1].strip() for row in rows}
    published = {name for model in load_biology() if model.sd for name in model.structures}
    assert {name for name, words in intervals.items() if words != "–"} == published & set(intervals)
    assert "–" in intervals.values() and " to " in intervals["Larynx"]
    assert "published standard deviations" in printed and "–: none were published" in printed


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.0, 0.0002, "below 0.1 %"), (0.0, 0.03, "below 0.1 to 3.0 %"), (0.1, 0.2, "10.0 to 20.0 %"), (None, None, "–")],
)
def test_an_interval_of_probabilities_in_words(low: float | None, high: float | None, words: str) -> None:
    assert range_text(low, high) == words


def test_the_outcome_reads_without_colour(sample_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dose", str(sample_folder), "--goals", "quantec_head_and_neck"]) == 0
    printed = capsys.readouterr().out
    assert "✓" in printed and "met" in printed and "Research use only" in printed


def test_compare_a_dose_with_a_warmer_one(
    sample_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = Patient.load(sample_folder)
    dose = patient.plan.dose
    assert dose is not None
    write_nrrd(replace(dose, values=dose.values * 1.02), str(tmp_path / "b.nrrd"))
    out = tmp_path / "compared.json"
    command = ["compare", str(sample_folder), str(tmp_path / "b.nrrd"), "--out", str(out), "--gamma", "1/2"]
    assert main(command) == 0
    found = json.loads(out.read_text())
    mean = next(m for m in found["metrics"] if (m["structure"], m["metric"]) == ("PTV_7000", "mean"))
    assert mean["b"] == pytest.approx(1.02 * mean["a"], rel=1e-4)
    assert mean["difference"] == pytest.approx(0.02 * mean["a"], rel=1e-3)
    assert found["largest_difference_gy"] == pytest.approx(0.02 * float(dose.values.max()), rel=1e-3)
    assert 0.5 < found["gamma"]["pass_ratio"] <= 1  # the gradient makes up for 2 % nearly everywhere
    assert {g["a_status"] for g in found["goals"]} >= {"met", "violated"}
    said, highest_gy = capsys.readouterr().out, float(dose.values.max())
    assert f"A, the first named: the plan's dose, highest dose {highest_gy:.2f} Gy" in said
    assert f"B, the second named: dose in a file, highest dose {1.02 * highest_gy:.2f} Gy" in said


def test_compared_goals_set_the_same_alternative_side_by_side(
    sample_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spares the left parotid gland and B the right one: that B's left gland is worse must be seen."""
    patient = Patient.load(sample_folder)
    doses = {}
    for dose, (left, right) in {"a": (20.0, 40.0), "b": (31.0, 25.0)}.items():
        gy = np.full(patient.ct.grid.shape, 5.0, np.float32)
        for name, level in (("PTV_7000", 70.0), ("Parotid_L", left), ("Parotid_R", right)):
            gy[patient.structures[name].mask] = level
        doses[dose] = Volume(gy * patient.dose_mask.mask, patient.ct.grid, Quantity.DOSE_GY)
    openkbp.write_patient(replace(patient, plans=(replace(patient.plan, dose=doses["a"]),)), tmp_path / "pt_1")
    write_nrrd(doses["b"], str(tmp_path / "b.nrrd"))
    out = tmp_path / "compared.json"
    command = ["compare", str(tmp_path / "pt_1"), str(tmp_path / "b.nrrd"), "--goals", "rtog0225", "--out", str(out)]
    assert main(command) == 0
    goals = json.loads(out.read_text())["goals"]
    (parotids,) = (goal for goal in goals if goal["goal"].startswith("Parotid_L mean"))
    assert (parotids["a_status"], parotids["b_status"]) == ("met", "met")
    seen = {v["criterion"]: (v["a"]["value"], v["b"]["value"], v["decides"]) for v in parotids["values"]}
    assert seen == {
        "Parotid_L mean ≤ 26 Gy": (pytest.approx(20.0), pytest.approx(31.0), "A"),
        "Parotid_R mean ≤ 26 Gy": (pytest.approx(40.0), pytest.approx(25.0), "B"),
    }
    for goal in goals:
        for value in goal["values"]:
            assert all(value[side] is None or value[side]["criterion"] == value["criterion"] for side in "ab")
    printed = capsys.readouterr().out
    assert "the upper decides the outcome of A, the lower that of B" in " ".join(printed.split())
    for words in ("20.0 Gy", "31.0 Gy", "40.0 Gy", "25.0 Gy"):
        assert words in printed


def test_compare_a_folder_with_itself(sample_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "same.json"
    assert main(["compare", str(sample_folder), str(sample_folder), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["gamma"]["pass_ratio"] == 1 and found["largest_difference_gy"] == 0
    assert (found["a"], found["b"]) == ("the plan's dose", "the plan's dose")
    said = capsys.readouterr().out
    assert "A, the first named: the plan's dose, highest dose " in said
    assert "B, the second named: the plan's dose, highest dose " in said
    assert str(sample_folder) not in said


@pytest.fixture
def quickly_planned(sample: Patient, monkeypatch: pytest.MonkeyPatch) -> Patient:
    """The built-in patient with a dose that takes no planning."""
    dose = Volume(np.where(sample.dose_mask.mask, np.float32(40), 0), sample.ct.grid, Quantity.DOSE_GY)
    patient = replace(sample, plans=(replace(sample.plan, dose=dose),))
    monkeypatch.setattr("RTDigitalTwinLib.dosimetry.planning.planned", lambda given, progress: patient)
    return patient


def test_the_word_sample_means_the_built_in_patient(
    quickly_planned: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert quickly_planned.plan.dose is not None
    write_nrrd(quickly_planned.plan.dose, "other.nrrd", predicted=True)
    assert main(["dose", "sample", "--out", "reviewed"]) == 0
    assert json.loads(Path("reviewed/summary.json").read_text())["patient"] == quickly_planned.pseudonym
    assert main(["compare", "sample", "other.nrrd", "--out", "compared.json"]) == 0
    found = json.loads(Path("compared.json").read_text())
    assert (found["a"], found["b"]) == ("the plan's dose", "predicted dose in a file")
    assert found["largest_difference_gy"] == 0
    assert main(["compare", "sample", "sample"]) == 0
    summed = ["accumulate", "sample", "sample=30", "other.nrrd=5/35", "--register", "none", "--out", "summed"]
    assert main(summed) == 0
    assert json.loads(Path("summed/summary.json").read_text())["fractions"] == 35
    capsys.readouterr()
    for command in ("inspect", "anonymize"):
        assert main([command, "sample", *(["--out", "copy"] if command == "anonymize" else [])]) == 1
        assert "rt-digital-twin sample --out" in " ".join(capsys.readouterr().err.split())
    Path("sample").mkdir()
    for arguments in (["dose", "sample"], ["compare", "sample", "other.nrrd"]):
        assert main(arguments) == 1
        assert "but there is a folder of this name too" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dose", "{folder}", "--goals", "rtog9999"], "rtog9999: There are no goals of this name"),
        (["dose", "{folder}", "--goals", "{folder}/absent.toml"], "Error: {folder}/absent.toml: There are no goals"),
        (["dose", "{folder}", "--out", "{folder}/inside"], "would lie in the patient's folder"),
        (["dose", "{folder}", "--dose", "{folder}/ct.csv"], "ct.csv: The file cannot be read as an image"),
        (["dose", "{folder}", "--dose", "{plain}"], "plain.nrrd: The file does not say the unit"),
        (["dose", "{empty}"], "holds no dose"),
        (["compare", "{folder}", "{empty}"], "Error: {empty}: "),
        (["compare", "{folder}", "{folder}", "--gamma", "3%2mm"], "'3%2mm' are no gamma criteria"),
        (["compare", "{folder}", "{folder}", "--gamma", "0/2"], "Gamma cannot be judged"),
    ],
)
def test_errors_say_what_is_wrong(
    arguments: list[str], message: str, sample_folder: Path, sample: Patient, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    empty, plain = tmp_path / "pt_2", tmp_path / "plain.nrrd"
    if "{empty}" in arguments:
        openkbp.write_patient(sample, empty)
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5), np.float32)), str(plain))
    places = {"folder": sample_folder, "empty": empty, "plain": plain}
    assert main([argument.format(**places) for argument in arguments]) == 1
    assert message.format(**places) in " ".join(capsys.readouterr().err.split())


# Doses from image files


def test_image_files_keep_place_and_unit(tmp_path: Path) -> None:
    patient = small_patient()
    assert patient.plan.dose is not None
    write_nrrd(patient.plan.dose, str(tmp_path / "dose.nrrd"))
    found = read_dose_image(tmp_path / "dose.nrrd", patient.ct.grid.frame_of_reference).dose
    assert found.grid.same_as(patient.ct.grid) and found.quantity is Quantity.DOSE_GY
    assert found.values == pytest.approx(patient.plan.dose.values)
    write_nrrd(replace(patient.plan.dose, quantity=Quantity.DOSE_STD_GY), str(tmp_path / "std.nrrd"))
    with pytest.raises(PatientDataError, match="std.nrrd: The file holds Gy, standard deviation, not a dose"):
        read_dose_image(tmp_path / "std.nrrd")
    with pytest.raises(PatientDataError, match="The file says that its values are in Gy, not cGy"):
        read_dose_image(tmp_path / "dose.nrrd", unit="cGy")
    with pytest.raises(PatientDataError, match="std.nrrd: The file holds Gy, standard deviation, not a dose"):
        read_dose_image(tmp_path / "std.nrrd", unit="Gy")
    bare = sitk.ReadImage(str(tmp_path / "dose.nrrd"))
    bare.EraseMetaData("quantity")
    sitk.WriteImage(bare, str(tmp_path / "bare.nrrd"))
    hundredth = read_dose_image(tmp_path / "bare.nrrd", unit="cGy").dose
    assert hundredth.values.max() == pytest.approx(patient.plan.dose.values.max() / 100)
    with pytest.raises(PatientDataError, match="'rad' is no unit"):
        read_dose_image(tmp_path / "dose.nrrd", unit="rad")


# Reviews of doses that are not as they should be


def test_a_dose_that_leaves_structures_out() -> None:
    patient = small_patient()
    assert patient.plan.dose is not None
    gy = patient.plan.dose.values.copy()
    gy[:12] = np.nan  # the spinal cord runs through all slices, the parotid glands are above
    found = review_dose(patient, Volume(gy, patient.ct.grid, Quantity.DOSE_GY))
    assert "SpinalCord" not in {row.structure for row in found.metrics}
    assert any(note.startswith("SpinalCord: The dose covers 50.0 % of the structure") for note in found.notes)
    rtog = next(table for table in found.goals if table.title.startswith("RTOG"))
    cord = next(row for row in rtog.rows if row.goal.startswith("SpinalCord"))
    assert cord.status == "not evaluated" and "covers 50.0 %" in cord.note


def test_small_structures_come_with_their_discretisation_error() -> None:
    patient = small_patient()
    grid = patient.ct.grid
    lone = np.zeros(grid.shape, bool)
    lone[12, 14, 25] = True
    dot = Structure.from_array("Lens_L", lone, grid)
    patient = replace(patient, structures={**patient.structures, "Lens_L": dot})
    assert patient.plan.dose is not None
    rows = {(r.structure, r.metric): r for r in review_dose(patient, patient.plan.dose).metrics}
    for (structure, _), row in rows.items():
        assert (row.discretisation is not None) == (row.volume_cc < 5), structure
    single = rows["Lens_L", "mean"]
    assert single.value == pytest.approx(float(patient.plan.dose.values[12, 14, 25]), rel=0.01)
    assert single.discretisation is not None and single.discretisation > 0


def test_overlapping_targets_are_named() -> None:
    patient = small_patient()
    wide = ball(patient.ct.grid, (18, -12, 2), (24, 24, 26))
    target = Structure.from_array("PTV_5600", wide, patient.ct.grid, patient.structures["PTV_7000"].kind)
    levels = (("PTV_7000", 70.0), ("PTV_5600", 56.0))
    plan = replace(patient.plan, prescription=replace(patient.plan.prescription, target_dose_gy=levels))
    patient = replace(patient, structures={**patient.structures, "PTV_5600": target}, plans=(plan,))
    assert plan.dose is not None
    found = review_dose(patient, plan.dose)
    shared_cc = patient.structures["PTV_7000"].volume_cc
    assert any(note.startswith(f"PTV_5600 and PTV_7000 share {shared_cc:.1f} cc") for note in found.notes)
    assert {row.structure for row in found.quality} == {"PTV_7000", "PTV_5600"}


def two_targets(other_gy: float) -> Patient:
    """A second target away from the first."""
    patient = small_patient()
    grid = patient.ct.grid
    other = Structure.from_array("PTV_b", ball(grid, (-22, -12, 2), (12, 12, 14)), grid, StructureKind.TARGET)
    levels = (("PTV_7000", 70.0), ("PTV_b", other_gy))
    plan = replace(patient.plan, prescription=replace(patient.plan.prescription, target_dose_gy=levels))
    return replace(patient, structures={**patient.structures, "PTV_b": other}, plans=(plan,))


def test_a_target_that_is_not_covered_takes_only_the_conformity_of_others() -> None:
    patient = two_targets(30.0)
    assert patient.plan.dose is not None
    whole = {row.structure: row for row in review_dose(patient, patient.plan.dose).quality}["PTV_b"]
    gy = patient.plan.dose.values.copy()
    part = patient.structures["PTV_7000"].mask.copy()
    part[:12] = False
    gy[part] = np.nan
    found = review_dose(patient, Volume(gy, patient.ct.grid, Quantity.DOSE_GY))
    (row,) = found.quality
    assert row.structure == "PTV_b" and row.conformity is None and whole.conformity is not None
    assert row.homogeneity == whole.homogeneity is not None and row.gradient is not None
    assert any(
        note.startswith("No conformity of PTV_b, which counts together with others. PTV_b with PTV_7000: The dose")
        for note in found.notes
    )


@pytest.mark.parametrize(("other_gy", "told"), [(70.0, False), (56.0, True)])
def test_joining_is_told_where_a_lower_level_is_joined_with_a_higher(
    other_gy: float, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = two_targets(other_gy)
    assert patient.plan.dose is not None
    review = review_dose(patient, patient.plan.dose)
    assert {row.structure: row.conformity_with for row in review.quality}["PTV_b"] == ("PTV_7000",)
    _print_review(Console(width=200), patient, review)
    assert ("must enclose too" in " ".join(capsys.readouterr().out.split())) is told


def test_doses_of_another_grid_or_quantity() -> None:
    patient = small_patient()
    dose = patient.plan.dose
    assert dose is not None
    moved = replace(dose.grid, origin_mm=(0.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="different grids"):
        review_dose(patient, Volume(dose.values, moved, Quantity.DOSE_GY))
    with pytest.raises(PatientDataError, match="not a dose in Gy"):
        compare_doses(patient, dose, replace(dose, quantity=Quantity.HU))


@pytest.mark.parametrize("kind", ["elsewhere", "no numbers"])
@pytest.mark.parametrize("command", ["dose", "compare", "accumulate"])
def test_a_dose_that_is_known_nowhere(
    command: str, kind: str, dicom_set: tuple[Path, Patient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, patient = dicom_set
    dose = patient.plan.dose
    assert dose is not None
    wrong = replace(dose, values=np.full_like(dose.values, np.nan))
    if kind == "elsewhere":
        wrong = replace(dose, grid=replace(dose.grid, origin_mm=(900.0, 900.0, 900.0)))
    write_nrrd(wrong, str(tmp_path / "wrong.nrrd"))
    file, out = str(tmp_path / "wrong.nrrd"), str(tmp_path / "out")
    more = {"dose": ["--dose", file, "--out", out], "compare": [file], "accumulate": [f"{file}=1/35", "--out", out]}[
        command
    ]
    assert main([command, str(folder), *more]) == 1
    said = "no voxel in common" if command == "compare" else "The dose is known nowhere in the patient"
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
