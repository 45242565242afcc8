"""The twin recommends: its ledger and replay, and the command from a file to a folder, bad input included."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib.calibration.belief import load_belief, prior_of, save_belief
from RTDigitalTwinLib.calibration.measurements import write_measurements
from RTDigitalTwinLib.calibration.treatment_change import FoundChange
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.decision.actions import ActionKind, Outcome, Scale, Situation
from RTDigitalTwinLib.decision.protocol import load_decision
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.ledger import Ledger, canonical, read_ledger
from RTDigitalTwinLib.ledger_entries import RECOMMENDED
from RTDigitalTwinLib.patient.observation import MetricObservation, Moment, NoiseModel
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.replay import replay
from RTDigitalTwinLib.report.deciding import GAIN, NEAREST, NO_BAND, ORDER
from RTDigitalTwinLib.report.goal_table import ROUNDING
from RTDigitalTwinLib.report.observing import SIMULATED_NOTE
from RTDigitalTwinLib.twin import Twin
from Testing.dicom_sets import edited, maps

# An untrained network gives doses of no meaning: limits that any of them keeps, and effort that decides.
LAX = """
name = "lax"
title = "for tests"
citation = "made up"
dose_unit = "Gy"
[chance]
risk = 0.05
confidence = 0.95
[utility]
uncertainty_weight = 0.5
effort = {{ keep = {keep} }}
[[utility.control]]
structures = ["PTV_7000"]
endpoint = "local control, as of carcinoma of the larynx T2"
weight = 1.0
[[constraints]]
label = "anything"
criteria = [{{ structures = ["PTV_7000"], metric = "mean", at_most = {most}, unit = "Gy" }}]
"""
GOALS = """
name = "own"
title = "for tests"
citation = "made up"
dose_unit = "Gy"
[[goals]]
label = "ours"
priority = 1
criteria = [{{ structures = ["PTV_7000"], metric = "mean", at_most = {most}, unit = "Gy" }}]
"""
ACTIONS = '[[action]]\nkind = "keep"\n[[action]]\nkind = "scale"\nfactor = 1.02\n'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decision")
    (folder / "lax.toml").write_text(LAX.format(keep=0.2, most=199))
    (folder / "strict.toml").write_text(LAX.format(keep=0.0, most=0))
    (folder / "actions.toml").write_text(ACTIONS)
    (folder / "replan.toml").write_text('[[action]]\nkind = "replan"\nsteps = 2\n')
    return folder


@pytest.fixture(scope="module")
def patient(target_folder: Path) -> Patient:
    return Patient.load(target_folder)


def recommend(source: Path, weights: Path, out: Path, *more: str) -> int:
    return main(["recommend", str(source), "--out", str(out), "--device", "cpu", "--weights", str(weights), *more])


@dataclass(frozen=True)
class Foreign:
    """An action from outside of the library."""

    name: str = "foreign"
    kind: ActionKind = ActionKind.REPLAN

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        return Outcome(situation.prediction)


# The twin


def test_a_ranking_is_told_and_comes_out_the_same(
    patient: Patient, target_folder: Path, narrow_weights: Path, files: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    protocol = load_decision(files / "lax.toml")
    with Ledger(path) as ledger:
        twin = Twin(patient, narrow_weights, "cpu", ledger=ledger)
        ranking = twin.recommend([Scale(1.02), Scale(0.98)], risk=0.1, samples=40, seed=5, protocol=protocol)
        assert ranking.prediction.count == 40 and ranking.prediction.seed == 5
    (entry,) = (e for e in read_ledger(path) if e.kind == RECOMMENDED)
    best = ranking.recommended
    assert best is not None and entry.content["recommended"] == best.action.name and entry.content["risk"] == 0.1
    assert [row["action"] for row in entry.content["ranking"]] == [a.action.name for a in ranking.assessed]
    assert entry.content["actions"][0]["made"]["with"] == {"factor": 1.02}
    done = replay(path, target_folder, weights=narrow_weights, device="cpu")
    assert done.is_equal and [row.kind for row in done.repeated] == [RECOMMENDED]


def test_a_ranking_that_differs_or_cannot_be_made_again_is_told(
    patient: Patient, target_folder: Path, narrow_weights: Path, files: Path, tmp_path: Path
) -> None:
    protocol = load_decision(files / "lax.toml")
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        twin = Twin(patient, narrow_weights, "cpu", ledger=ledger)
        twin.recommend([Foreign()], protocol=protocol)
        twin.recommend([Scale(1.02)], protocol=protocol)
    told = [dict(e.content) for e in read_ledger(path)]
    again = tmp_path / "again.jsonl"
    with Ledger(again) as ledger:
        for content, kind in zip(told, ("opened", RECOMMENDED, RECOMMENDED), strict=True):
            arrays = {"benefit": np.zeros(128)} if kind == RECOMMENDED else None
            if kind == RECOMMENDED:
                content["ranking"] = [row | {"utility": row["utility"] + 0.5} for row in content["ranking"][::-1]]
                content["recommended"] = "keep"
            ledger.append(kind, content, arrays)
    done = replay(again, target_folder, weights=narrow_weights, device="cpu")
    foreign, changed = done.repeated
    assert foreign.equal is None and "cannot tell all of: foreign" in foreign.words
    assert changed.equal is False and "utilities differ by up to 0.5" in changed.words
    assert "scale by 1.02 is recommended, not keep" in changed.words and "in another order" in changed.words


def test_samples_of_the_twin(patient: Patient, narrow_weights: Path, files: Path) -> None:
    twin = Twin(patient, narrow_weights, "cpu")
    protocol = load_decision(files / "lax.toml")
    assert twin.recommend([], protocol=protocol).prediction.count == 64
    assert twin.recommend([], 0.04, protocol=protocol).prediction.count == 74  # 0.96^74 is the first below 5 %
    with pytest.raises(RTDigitalTwinError, match="64 samples cannot certify a risk of 4 %.*at least 74"):
        twin.recommend([], 0.04, 64, protocol=protocol)
    with pytest.raises(RTDigitalTwinError, match="risk must lie between 0 and 1, not 0"):
        twin.recommend([], 0.0, protocol=protocol)


# The command


@pytest.fixture(scope="module")
def results(target_folder: Path, narrow_weights: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    more = ("--protocol", str(files / "lax.toml"), "--actions", str(files / "actions.toml"))
    assert recommend(target_folder, narrow_weights, out, *more) == 0
    return out


def test_recommend_writes_everything(results: Path) -> None:
    summary = json.loads((results / "summary.json").read_text())
    assert {path.name for path in results.iterdir()} == set(summary["files"])
    assert {"ranking.json", "ranking.csv", "utility.png", "dose_recommended.nrrd", "dose_keep.nrrd", "dose_change.nrrd",
            "report.html", "ledger.jsonl", "dvh.csv", "goals.csv"} <= set(summary["files"])  # fmt: skip
    if not any("no scene" in warning for warning in summary["warnings"]):
        assert "scene.mrb" in summary["files"]
    assert summary["recommended"] == "scale by 1.02" and not summary["abstains"] and summary["samples"] == 64
    assert any("TG-166" in warning for warning in summary["warnings"]) and "Research use only" in summary["notice"]
    told = json.loads((results / "ranking.json").read_text())
    rows = list(csv.DictReader((results / "ranking.csv").open()))
    assert [r["action"] for r in rows] == [a["action"] for a in told["actions"]] == ["scale by 1.02", "keep"]
    assert [r["outcome"] for r in rows] == ["recommended", "acceptable"]
    for row, action in zip(rows, told["actions"], strict=True):
        assert float(row["utility"]) == pytest.approx(action["utility"], abs=1e-6)
        assert action["utility"] == pytest.approx(action["expected"] - action["penalty"])
        assert action["expected"] == pytest.approx(sum(t["contribution"] for t in action["terms"]) - action["effort"])
    keep = sitk.ReadImage(str(results / "dose_keep.nrrd"))
    best = sitk.ReadImage(str(results / "dose_recommended.nrrd"))
    assert keep.GetMetaData("predicted") == best.GetMetaData("predicted") == "yes"
    before, after = (sitk.GetArrayFromImage(image) for image in (keep, best))
    assert np.allclose(after, 1.02 * before, atol=0.02) and after.max() > before.max()
    change = sitk.GetArrayFromImage(sitk.ReadImage(str(results / "dose_change.nrrd")))
    assert np.allclose(change, after - before, atol=1e-4)
    entries = read_ledger(results / "ledger.jsonl")
    assert [e.kind for e in entries] == ["opened", RECOMMENDED] and summary["ledger"]["sha256"] == entries[-1].sha256


def test_every_table_says_of_which_dose_it_is(results: Path) -> None:
    dose = "predicted with action scale by 1.02, not delivered"
    assert json.loads((results / "summary.json").read_text())["dose"] == dose
    for name in ("metrics.csv", "goals.csv", "dvh.csv", "biology.csv"):
        rows = list(csv.DictReader((results / name).open()))
        assert next(iter(rows[0])) == "dose" and {row["dose"] for row in rows} == {dose}, name


def test_the_goals_asked_for_are_those_whose_change_is_told(
    target_folder: Path,
    narrow_weights: Path,
    files: Path,
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = {(row["structure"], row["metric"]): row for row in csv.DictReader((results / "metrics.csv").open())}
    kept = float(metrics["PTV_7000", "mean"]["mean"]) / 1.02
    (tmp_path / "ten.toml").write_text('[[action]]\nkind = "scale"\nfactor = 1.1\n')
    for share, changes in ((1.05, True), (2.0, False)):  # between keeping and 10 % more, and beyond both
        (tmp_path / "own.toml").write_text(GOALS.format(most=kept * share))
        out = tmp_path / f"out{share}"
        more = ["--protocol", str(files / "lax.toml"), "--actions", str(tmp_path / "ten.toml")]
        assert recommend(target_folder, narrow_weights, out, *more, "--goals", str(tmp_path / "own.toml")) == 0
        lines = capsys.readouterr().out.splitlines()
        first = json.loads((out / "summary.json").read_text())["actions"][0]
        assert first["action"] == "scale by 1.1" and bool(first["goal_changes"]) is changes
        assert all(change["label"] == "ours" and f"- {change['words']}." in lines for change in first["goal_changes"])
        assert ("No clinical goal changes its status by it." in lines) is not changes
        assert (ROUNDING in lines) is changes


def test_the_terminal_says_how_to_read_the_table(
    target_folder: Path, narrow_weights: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--protocol", str(files / "lax.toml"), "--actions", str(files / "replan.toml")]
    assert recommend(target_folder, narrow_weights, tmp_path / "out", *more) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "- PTV_7000 mean ≤ 199 Gy: of actions 1, 2" in lines
    assert {GAIN, NEAREST, ORDER, f"* {NO_BAND}."} <= set(lines)
    (replan,) = [line for line in lines if "replan" in line and "│" in line]
    assert " * " in replan
    assert "Doses and tables in it are of the dose predicted if nothing is changed, not delivered." in lines
    assert "not all verified: TCP of PTV_7000" in " ".join(printed.err.split())


def test_the_report_shows_the_ranking(results: Path) -> None:
    html = (results / "report.html").read_text()
    for words in (
        "What to do next",
        "Recommended: scale by 1.02",
        "It gives 2 % more dose everywhere, to organs as well as targets, as if 71.4 Gy were prescribed in place of 70",
        "0 of 64 samples; below 4.6 % with 95 % confidence",
        "if nothing is changed",
        "PTV_7000 mean ≤ 199 Gy",
        "TG-166",
        "Research use only",
        "The constraints",
        "What is weighed",
        "it was computed by no treatment planning system",
    ):
        assert words in html, words
    assert "before observing" not in html and "Against the reference dose" not in html


def test_the_ledger_of_the_command_is_replayed(
    results: Path, target_folder: Path, narrow_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(results / "ledger.jsonl"), str(target_folder), "--weights", str(narrow_weights), "--device", "cpu"]
    assert main(["replay", *common]) == 0
    assert "1 of 1 results equal to the last bit" in capsys.readouterr().out


def test_recommend_abstains(
    clinical_set: Path, narrow_weights: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, record = tmp_path / "out", tmp_path / "record"
    more = [*maps(), "--protocol", str(files / "strict.toml"), "--actions", str(files / "actions.toml")]
    more += ["--risk", "0.04", "--dicom-out", str(record)]
    assert recommend(clinical_set, narrow_weights, out, *more) == 0
    printed = capsys.readouterr()
    assert "No recommendation: none of 2 actions is acceptable." in printed.out
    assert "The nearest is" in printed.out and "Research use only" in printed.out
    said = " ".join(printed.out.split())
    assert "violated in 74 of 74 samples, where 4 % is allowed" in said  # all of them bound nothing
    assert "below with 95 % confidence, as far as so many samples can tell" in said
    assert "74 samples are drawn rather than 64" in " ".join(printed.err.split())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["abstains"] and summary["recommended"] is None and summary["obstacles"]
    assert "dose_keep.nrrd" in summary["files"] and "dose_recommended.nrrd" not in summary["files"]
    assert "What stands in the way" in (out / "report.html").read_text()
    assert not record.exists() and any("nothing was written as DICOM" in warning for warning in summary["warnings"])
    assert recommend(clinical_set, narrow_weights, out, *more) == 1  # not over earlier results
    assert "earlier" in capsys.readouterr().err


def test_recommend_refuses_bad_input(
    target_folder: Path, narrow_weights: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    lax = ["--protocol", str(files / "lax.toml")]
    (tmp_path / "broken.toml").write_text("name = ")
    (tmp_path / "cgy.toml").write_text('dose_unit = "cGy"')
    both = LAX.format(keep=0, most=60) + (
        '[[constraints]]\nlabel = "more"\n'
        'criteria = [{ structures = ["PTV_7000"], metric = "mean", at_least = 70, unit = "Gy" }]\n'
    )
    (tmp_path / "both.toml").write_text(both)
    (tmp_path / "no.toml").write_text('[[action]]\nkind = "pray"\n')
    absent = tmp_path / "absent.toml"
    cases = [
        ([*lax, "--risk", "0"], "risk must lie between 0 and 1"),
        ([*lax, "--risk", "1.5"], "risk must lie between 0 and 1"),
        ([*lax, "--risk", "nan"], "risk must lie between 0 and 1"),
        ([*lax, "--samples", "58"], "58 samples cannot certify a risk of 5 %"),
        ([*lax, "--samples", "0"], "0 samples cannot certify"),
        (["--protocol", str(absent)], f"Error: {absent}: There is no such file"),
        (["--protocol", str(tmp_path / "broken.toml")], "broken.toml: The file cannot be read"),
        (["--protocol", str(tmp_path / "cgy.toml")], 'dose_unit must be "Gy"'),
        (["--protocol", str(tmp_path / "both.toml")], "Two constraints contradict each other in PTV_7000"),
        ([*lax, "--actions", str(absent)], f"Error: {absent}: There is no such file"),
        ([*lax, "--actions", str(tmp_path / "no.toml")], "no.toml, action 1"),
        ([*lax, "--belief", str(tmp_path / "broken.toml")], "broken.toml"),
        ([*lax, "--measurements", str(absent)], f"Error: {absent}: There is no such file"),
        ([*lax, "--dicom-out", str(tmp_path / "record")], "Only the dose of a DICOM patient can go back"),
        ([*lax, "--goals", "nonsense"], "no goals of this name"),
    ]
    for more, message in cases:
        assert recommend(target_folder, narrow_weights, out, *more) == 1, more
        assert message in " ".join(capsys.readouterr().err.split()), more
        assert not out.exists() and not (tmp_path / "record").exists()
    with pytest.raises(SystemExit) as stopped:
        recommend(target_folder, narrow_weights, out, "--risk", "much")
    assert stopped.value.code == 2


def test_recommend_goes_on_from_measurements(
    patient: Patient, target_folder: Path, narrow_weights: Path, files: Path, tmp_path: Path
) -> None:
    drawn = Twin(patient, narrow_weights, "cpu").predict(32)
    value = float(drawn.metric("PTV_7000", "mean").mean + 0.5) / 35
    good = MetricObservation(
        "PTV_7000", "mean", value, Moment(0.0, 1), NoiseModel(0.001, 0.001), "made up", simulated=True
    )
    write_measurements([good], patient.pseudonym, tmp_path / "day.csv")
    lax = ("--protocol", str(files / "lax.toml"))
    first, second = tmp_path / "first", tmp_path / "second"
    assert recommend(target_folder, narrow_weights, first, *lax, "--measurements", str(tmp_path / "day.csv")) == 0
    summary = json.loads((first / "summary.json").read_text())
    assert summary["simulated"] and "belief.npz" in summary["files"]
    assert any("calibrated before 1 observation" in warning for warning in summary["warnings"])
    assert SIMULATED_NOTE in summary["warnings"]
    assert sitk.ReadImage(str(first / "dose_recommended.nrrd")).GetMetaData("simulated") == "yes"
    assert recommend(target_folder, narrow_weights, second, *lax, "--belief", str(first / "belief.npz")) == 0
    kinds = [e.kind for e in read_ledger(second / "ledger.jsonl")]
    assert kinds == ["opened", "observed", RECOMMENDED, "opened", "adopted", RECOMMENDED]
    prior = prior_of(Twin(patient, narrow_weights, "cpu").dose_belief)
    shift = FoundChange(0.63, (4.0, 0.0, -3.0), 0.0, 0.0)
    (tmp_path / "shifted").mkdir()
    save_belief(replace(load_belief(first / "belief.npz", prior), change=shift), tmp_path / "shifted" / "belief.npz")
    third, told = tmp_path / "third", ("--belief", str(tmp_path / "shifted" / "belief.npz"))
    assert recommend(target_folder, narrow_weights, third, *lax, *told) == 0
    assert {*shift.words, SIMULATED_NOTE} <= set(json.loads((third / "summary.json").read_text())["warnings"])
    assert "explains part of what was measured, with probability 63%" in (third / "report.html").read_text()
    one, two = (json.loads((out / "ranking.json").read_text())["actions"] for out in (first, second))
    assert canonical({"a": [a["action"] for a in one]}) == canonical({"a": [a["action"] for a in two]})
    assert [a["utility"] for a in one] == pytest.approx([a["utility"] for a in two], abs=1e-6)


def test_the_recommended_dose_goes_back_to_the_record(
    clinical_set: Path, narrow_weights: Path, files: Path, tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    record = tmp_path / "record"
    more = [*maps(), "--protocol", str(files / "lax.toml"), "--actions", str(files / "actions.toml")]
    assert recommend(clinical_set, narrow_weights, tmp_path / "out", *more, "--dicom-out", str(record)) == 0
    dose = pydicom.dcmread(record / "RTDOSE.recommended.mean.dcm")
    assert dose.SeriesDescription == "scale by 1.02, mean (RTDigitalTwin, research)"
    assert "not" in dose.DoseComment.lower() and dose.DoseUnits == "GY"
    best = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "dose_recommended.nrrd")))
    assert dose.pixel_array.max() * float(dose.DoseGridScaling) == pytest.approx(best.max(), rel=1e-3)
    assert (tmp_path / "out" / "dose_recommended_on_ct.nrrd").is_file()


def test_a_plan_of_another_person_is_refused(
    clinical_set: Path, narrow_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydicom")
    (tmp_path / "other.dcm").write_bytes((clinical_set / "RTDOSE.dcm").read_bytes())
    with edited(tmp_path / "other.dcm") as ds:
        ds.PatientID, ds.PatientName = "somebody-else", "Else^Somebody"
    text = '[[action]]\nkind = "library"\ntitle = "of the day"\ndose = "other.dcm"\n'
    (tmp_path / "actions.toml").write_text(text)
    actions = tmp_path / "actions.toml"
    assert recommend(clinical_set, narrow_weights, tmp_path / "out", *maps(), "--actions", str(actions)) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert "The data are of another patient, by identifier" in told and "Else" not in told
    assert not (tmp_path / "out").exists()
