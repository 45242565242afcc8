"""A course from a folder to a folder: what is written, going on after an interruption, the scene, the study."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib import course_study as study_file
from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.course_record import CourseResult, CourseSettings
from RTDigitalTwinLib.course_run import CourseRunSettings, live_course
from RTDigitalTwinLib.course_study import CourseStudySettings, course_cases, run_course_study
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.errors import Cancelled, LedgerError, OutputError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.ledger import LEDGER_FILE, read_ledger, verify
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.report import course_figure as figure_file
from RTDigitalTwinLib.report.course_figure import course_figure
from RTDigitalTwinLib.report.course_tables import clopper_pearson, course_markdown, summarise_courses
from Testing.conftest import blurred_target_dose

FRACTIONS = 4


@pytest.fixture(scope="module")
def data(sample: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of the sample's target and a parotid with a mask around both."""
    target, parotid = sample.structures["PTV_7000"], sample.structures["Parotid_L"]
    inside = np.zeros(target.mask.shape, bool)
    inside[target.box] = True
    mask = Structure.from_array(sample.dose_mask.name, inside, sample.ct.grid, StructureKind.REGION)
    cut = replace(sample, structures={"PTV_7000": target, "Parotid_L": parotid}, dose_mask=mask)
    whole = blurred_target_dose(sample)
    dose = Volume(np.where(inside, whole.values, 0), whole.grid, whole.quantity)
    folder = tmp_path_factory.mktemp("cohort")
    for name in ("pt_1", "pt_2"):
        openkbp.write_patient(replace(cut, pseudonym=name), folder / name)
        openkbp.write_dose(dose, folder / name / "dose.csv")
    return folder


@pytest.fixture(scope="module")
def settings(narrow_weights: Path) -> CourseRunSettings:
    course = CourseSettings(
        fractions=FRACTIONS, shift_at=3, change=Change((0.0, 6.0, 0.0)), samples=4,
    )  # fmt: skip
    return CourseRunSettings(4, 0, "cpu", narrow_weights, course=course)


@pytest.fixture(scope="module")
def whole(data: Path, settings: CourseRunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course without interruption."""
    out = tmp_path_factory.mktemp("course") / "whole"
    live_course(data / "pt_1", out, settings)
    return out


def fractions_of(out: Path) -> list[Any]:
    return json.loads((out / "course.json").read_text())["fractions"]


def test_what_is_written(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary["files"]) == {path.name for path in whole.iterdir()}
    assert summary["simulated"] and "simulated: shift 0, 6, 0 mm" in summary["warnings"][0]
    with (whole / "trajectory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["fraction"]) for row in rows] == [1, 2, 3, 4]
    parotid = next(name for name in rows[0] if name.startswith("Parotid_L NTCP") and name.endswith("mean"))
    (told,) = (e for e in summary["endpoints"] if e["effect"] == "NTCP")
    assert float(rows[-1][parotid]) == pytest.approx(told["mean"], abs=1e-6)
    assert told["low"] <= told["mean"] <= told["high"] and "salivary" in told["endpoint"]
    images = {name: sitk.ReadImage(str(whole / f"dose_accumulated{name}.nrrd")) for name in ("", "_truth")}
    assert all(image.GetMetaData("simulated") == "yes" for image in images.values())
    assert 0 < sitk.GetArrayFromImage(images["_truth"]).max() < 80 * FRACTIONS / 35
    assert not verify(whole / LEDGER_FILE)
    text = "".join(path.read_text() for path in whole.glob("*.json*"))
    assert str(whole) not in text
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(whole / "adaptation.png"))).std() > 10  # not blank


def test_an_interrupted_course_goes_on_alike(
    data: Path, settings: CourseRunSettings, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def stop(done: float, message: str) -> None:
        if message == "fraction 3":
            raise Cancelled

    with pytest.raises(Cancelled):
        live_course(data / "pt_1", out, settings, progress=stop)
    assert (out / "trajectory.csv").is_file() and not (out / "summary.json").exists()
    told = [e for e in read_ledger(out / LEDGER_FILE) if e.kind == "fraction"]
    assert [e.content["fraction"] for e in told] == [1, 2]
    other = replace(settings, course=replace(settings.course, seed=7, fractions=5))
    with pytest.raises(LedgerError, match=r"other settings: fractions, seed"):
        live_course(data / "pt_1", out, other)
    with pytest.raises(LedgerError, match="is of patient pt_1"):
        live_course(data / "pt_2", out, settings)
    said: list[str] = []
    live_course(data / "pt_1", out, settings, tell=said.append)
    assert said == ["Going on behind fraction 2: what was before is lived through again and must come out alike."]
    assert fractions_of(out) == fractions_of(whole)
    assert (out / "trajectory.csv").read_bytes() == (whole / "trajectory.csv").read_bytes()
    with pytest.raises(OutputError, match="earlier run"):
        live_course(data / "pt_1", out, settings)


def test_bad_requests_leave_nothing(data: Path, settings: CourseRunSettings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(PatientDataError, match="no NTCP of this structure"):
        live_course(data / "pt_1", out, replace(settings, ntcp="PTV_7000"))
    with pytest.raises(PatientDataError, match="no structure of this name"):
        live_course(data / "pt_1", out, replace(settings, ntcp="Larynx"))
    with pytest.raises(RTDigitalTwinError, match="36 fractions are more than the 35"):
        live_course(data / "pt_1", out, replace(settings, course=replace(settings.course, fractions=36)))
    assert not out.exists()
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="something else than an interrupted course"):
        live_course(data / "pt_1", out, settings)
    assert [path.name for path in out.iterdir()] == ["letter.txt"]


def test_the_commands(data: Path, narrow_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [
        "--samples",
        "4",
        "--actions",
        "none",
        "--weights",
        str(narrow_weights),
        "--device",
        "cpu",
        "--fractions",
        "3",
    ]
    out = tmp_path / "c"
    asked = ["course", str(data / "pt_1"), "--out", str(out), "--shift-at", "2", "--shift-mm", "0", "10", "0"]
    assert main([*asked, "--policy", "scheduled", "--every", "2", *common]) == 0
    said = capsys.readouterr().out
    assert "Fractions recalibrated after: 2" in said and "Parotid_L NTCP" in said
    assert main([*asked[:3], str(tmp_path / "d"), *common]) == 1  # the change would come at fraction 10
    assert "fraction 10 of 3" in capsys.readouterr().err
    study = ["course-study", str(data), "--out", str(tmp_path / "s"), "--patients", "pt_1", "--shift-at", "2", *common]
    assert main([*study, "--policies", "static"]) == 0
    assert "Simulated courses, 1 patient" in capsys.readouterr().out


@pytest.fixture(scope="module")
def study(narrow_weights: Path) -> CourseStudySettings:
    return CourseStudySettings(
        policies=("static", "triggered"), fractions=3, shift_at=2, samples=4, device="cpu", weights=narrow_weights
    )


def test_a_study_goes_on_where_it_stopped(data: Path, study: CourseStudySettings, tmp_path: Path) -> None:
    out = tmp_path / "study"
    summary = run_course_study(data, out, ["pt_1"], study)
    files = sorted((out / "cases" / "pt_1").iterdir())
    assert len(files) == len(course_cases(study)) == 4 == len(summary["cases"])
    kept = {path.name: path.stat().st_mtime_ns for path in files}
    files[1].write_text(files[1].read_text()[:30])
    assert run_course_study(data, out, ["pt_1"], study) == summary
    now = {path.name: path.stat().st_mtime_ns for path in (out / "cases" / "pt_1").iterdir()}
    assert {name for name in kept if now[name] != kept[name]} == {files[1].name}
    with pytest.raises(OutputError, match=r"other settings \(course\)"):
        run_course_study(data, out, ["pt_1"], replace(study, seed=3))
    both = run_course_study(data, tmp_path / "two", 2, replace(study, policies=("static",), processes=2))
    assert both["patients"] == ["pt_1", "pt_2"]
    alone = {c["scenario"]: c["true_ntcp"] for c in summary["cases"] if c["policy"].startswith("static")}
    for case in both["cases"]:
        assert case["true_ntcp"] == alone[case["scenario"]]  # the same anatomy and chance under two names


def test_a_study_that_is_ended_says_how_to_go_on(
    data: Path,
    narrow_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*unused: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(study_file.Course, "fractions", interrupted)
    command = ["course-study", str(data), "--out", str(tmp_path / "s"), "--patients", "pt_1", "--shift-at", "2"]
    command += ["--fractions", "3", "--samples", "4", "--actions", "none", "--weights", str(narrow_weights)]
    assert main([*command, "--device", "cpu"]) == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("Cancelled. What is done is kept. Go on with the same command.")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(study_file.DoseSurrogate, "load", interrupted)
    assert main([*command[:3], str(tmp_path / "t"), *command[4:]]) == 130  # nothing was begun
    assert "Go on" not in capsys.readouterr().err


def test_without_dask_the_study_says_so(data: Path, study: CourseStudySettings, tmp_path: Path) -> None:
    try:
        import distributed  # noqa: F401
    except ImportError:
        with pytest.raises(RTDigitalTwinError, match="Dask is not installed"):
            run_course_study(data, tmp_path / "study", ["pt_1"], replace(study, dask="tcp://127.0.0.1:1"))
    else:
        with pytest.raises(RTDigitalTwinError, match="does not answer"):
            run_course_study(data, tmp_path / "study", ["pt_1"], replace(study, dask="tcp://127.0.0.1:1"))


def row(patient: str, policy: str, ntcp: float, delay: int | None, violated: int = 0) -> dict[str, Any]:
    decision = {
        "action": "keep", "best_action": "keep", "regret": 0.1, "gain": 0.2, "violated": violated,
        "constraints": 2, "possible": 1,
    }  # fmt: skip
    return {
        "patient": patient, "scenario": "change", "policy": policy, "true_ntcp": {"a": ntcp, "b": 0.0},
        "target_d95_gy": 60.0, "covered_at_end": [True, False], "covered": [3, 4], "recalibrated": [], "images": 1,
        "false_alarms": 0, "delay_fractions": delay, "decisions": [decision, decision | {"action": None}],
    }  # fmt: skip


def test_tables_by_hand() -> None:
    """Two patients; the exact interval of 1 of 4 is 0.6 to 80.6 % (tabulated)."""
    rows = [row("p", "static, risk-neutral", 0.4, None), row("q", "static, risk-neutral", 0.2, None)]
    rows += [row("p", "triggered, risk-neutral", 0.3, 2), row("q", "triggered, risk-neutral", 0.22, None, 1)]
    summary = {"patients": ["p", "q"]} | summarise_courses(rows)
    mean = summary["means"][1]
    assert mean["ntcp_mean_ratio"] == pytest.approx(0.13) and mean["ntcp_against_static_ratio"] == pytest.approx(-0.02)
    assert (mean["better_than_static"], mean["delay_fractions"], mean["undetected"]) == (1, 2.0, 1)
    assert (mean["violated"], mean["constraints"], mean["abstentions"]) == (1, 4, 2)
    assert (mean["decisions"], mean["as_best"], mean["recommended_violating"]) == (4, 2, 1)
    assert clopper_pearson(1, 4) == pytest.approx((0.0063, 0.8059), abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    text = course_markdown(summary)
    assert "| triggered, risk-neutral | 2 | 13.00 % | -2.00 % | 1 of 2 |" in text and "2.0 (1 never)" in text


@pytest.fixture(scope="module")
def result(data: Path, settings: CourseRunSettings, tmp_path_factory: pytest.TempPathFactory) -> CourseResult:
    kept: list[CourseResult] = []
    with pytest.MonkeyPatch.context() as patch:
        import RTDigitalTwinLib.course_run as run

        def keep(found: CourseResult, path: Path, structure: str | None) -> None:
            kept.append(found)
            figure_file.write_course_figure(found, path, structure)

        patch.setattr(run, "write_course_figure", keep)
        live_course(data / "pt_1", tmp_path_factory.mktemp("kept") / "out", settings)
    return kept[0]


def test_the_figure_has_its_elements(result: CourseResult) -> None:
    figure = course_figure(result)
    above, below = figure.axes
    found = {artist.get_gid() for axes in (above, below) for artist in axes.get_children()}
    assert {"uncertainty", "projection", "band", "truth", "limit", "change"} <= found
    lines = {line.get_gid(): line for line in (*above.lines, *below.lines)}
    assert np.asarray(lines["uncertainty"].get_ydata()).tolist() == [r.uncertainty_gy for r in result.records]
    assert np.asarray(lines["limit"].get_ydata())[0] == 15 and np.asarray(lines["change"].get_xdata())[0] == 2.5
    with pytest.raises(PatientDataError, match="It is of Parotid_L"):
        course_figure(result, "Larynx")


@pytest.fixture
def scene() -> Iterator[Any]:
    pytest.importorskip("slicer", reason="slicer-core is not installed: NOTHING of the scene was tested")
    from RTDigitalTwinLib.scene.session import headless_session

    with headless_session() as session:
        yield session.scene


def test_the_scene_keeps_the_course(scene: Any, result: CourseResult, tmp_path: Path) -> None:
    import slicer.util
    from vtk.util import numpy_support

    from RTDigitalTwinLib.scene.bundle import load_mrb, save_mrb
    from RTDigitalTwinLib.scene.course_nodes import show_course

    nodes = show_course(scene, result)
    assert nodes.trajectory is not None and nodes.accumulated is not None
    names = (nodes.trajectory.GetName(), nodes.accumulated.GetName(), nodes.browser.GetName())
    save_mrb(scene, tmp_path / "course.mrb")
    load_mrb(tmp_path / "course.mrb", scene)
    table, sequence, browser = (scene.GetFirstNodeByName(name) for name in names)
    column = table.GetTable().GetColumnByName("Uncertainty (Gy)")
    assert numpy_support.vtk_to_numpy(column) == pytest.approx([r.uncertainty_gy for r in result.records], abs=1e-3)
    assert sequence.GetNumberOfDataNodes() == FRACTIONS and sequence.GetIndexName() == "fraction"
    last = slicer.util.arrayFromVolume(sequence.GetDataNodeAtValue(str(FRACTIONS)))
    expected = result.projection.crop.spread(result.true_gy, result.projection.mean.quantity).values
    assert np.abs(last - expected).max() < 0.01  # fractions are kept in half precision
    assert browser.GetNumberOfSynchronizedSequenceNodes(True) == 2
    charts = scene.GetNodesByClass("vtkMRMLPlotChartNode")
    assert charts.GetNumberOfItems() == 2
    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    doses = [node for node in volumes if node.GetAttribute("DicomRtImport.DoseVolume")]
    assert len(doses) == 3  # the plan's, and what the browser shows of two sequences
