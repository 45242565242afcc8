"""The twin in the scene without its window: patients from nodes, bad input, jobs, outcomes, measurements, batch."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from RTDigitalTwinLib import background, jobs
from RTDigitalTwinLib.errors import Cancelled, MemoryShortage, ModelError, RTDigitalTwinError, SceneError
from RTDigitalTwinLib.job_process import EXIT_ERROR, EXIT_FAULT, do, error_in
from RTDigitalTwinLib.outcome import BAND_LEVELS, Outcome, band_columns, load_outcome, save_outcome
from RTDigitalTwinLib.patient.fingerprint import fingerprint
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.patient_file import load_patient_file, save_patient
from RTDigitalTwinLib.patient.structure_matching import MatchState
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.report.outcomes import outcome_of
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.scene.measurement_nodes import (
    add_measurement,
    measurement_table,
    measurements,
    remove_measurements,
    set_measurements,
    write_waiting,
)
from RTDigitalTwinLib.scene.outcome_nodes import add_outcome, find_outcome, remove_outcome
from RTDigitalTwinLib.scene.scene_twin import SceneTwin, TwinState
from RTDigitalTwinLib.scene.session import headless_session
from RTDigitalTwinLib.scene.twin_nodes import TwinNodes, tell
from RTDigitalTwinLib.scene.twin_patient import confirm_names, patient_in_scene, segment_matches, show_loaded
from RTDigitalTwinLib.scene.volume_nodes import add_ct, add_dose
from Testing.builders import hand_made_ensemble, small_patient

ROOT = Path(__file__).resolve().parent.parent
BATCH = ROOT / "RTDigitalTwin/Resources/RTDigitalTwin/Examples/batch.py"


@pytest.fixture
def scene() -> Iterator[Any]:
    with headless_session() as session:
        yield session.scene


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return outcome_of(Findings(hand_made_ensemble(small_patient())), device="cpu")


def moved(patient: Patient, shift_mm: float) -> Patient:
    """A patient as if lying elsewhere: all of it on a shifted grid."""
    grid = patient.ct.grid
    x, y, z = grid.origin_mm
    other = replace(grid, origin_mm=(x + shift_mm, y, z), frame_of_reference="")

    def put(structure: Any) -> Any:
        return replace(structure, grid=other)

    image = replace(patient.images[0], volume=Volume(patient.ct.values, other, Quantity.HU))
    structures = {name: put(s) for name, s in patient.structures.items()}
    return replace(
        patient, images=(image,), structures=structures, dose_mask=put(patient.dose_mask), plans=(), pseudonym="other"
    )


def turning(patient: Patient) -> Patient:
    """Treated with arcs."""
    return replace(patient, plans=(replace(patient.plan, not_fixed_fields="Arcs."),))


# Files between processes


def test_a_patient_s_file_holds_all_of_it(tmp_path: Path) -> None:
    patient = turning(replace(small_patient(), warnings=("seen",)))
    save_patient(patient, tmp_path / "patient.npz")
    back = load_patient_file(tmp_path / "patient.npz")
    assert fingerprint(back) == fingerprint(patient)
    assert (back.pseudonym, back.warnings, back.plan.label) == ("small-patient", ("seen",), patient.plan.label)
    assert back.plan.not_fixed_fields == "Arcs."
    assert back.ct.grid == patient.ct.grid and back.plan.gantry_angles_deg == patient.plan.gantry_angles_deg
    (tmp_path / "cut.npz").write_bytes((tmp_path / "patient.npz").read_bytes()[:2000])
    with pytest.raises(RTDigitalTwinError, match=r"cut\.npz: The patient's file cannot be read"):
        load_patient_file(tmp_path / "cut.npz")


def test_an_outcome_s_file_holds_all_of_it(outcome: Outcome, tmp_path: Path) -> None:
    save_outcome(outcome, tmp_path / "outcome.npz")
    back = load_outcome(tmp_path / "outcome.npz")
    assert back.volumes.keys() == outcome.volumes.keys() and back.curves.keys() == outcome.curves.keys()
    for role, volume in outcome.volumes.items():
        assert np.array_equal(back.volumes[role].values, volume.values)
        assert back.volumes[role].quantity is volume.quantity
    assert np.array_equal(back.shown, outcome.shown)
    for name, curve in outcome.curves.items():
        assert back.curves[name].columns.keys() == curve.columns.keys()
        assert {title for level in BAND_LEVELS for title in band_columns(level)} <= curve.columns.keys()
    assert back.goals.columns == outcome.goals.columns and back.goals.description == outcome.goals.description
    assert (back.samples, back.seed, back.device, back.notes) == (8, 0, "cpu", outcome.notes)
    (tmp_path / "cut.npz").write_bytes(b"PK")
    with pytest.raises(ModelError, match="cannot be read"):
        load_outcome(tmp_path / "cut.npz")


def test_a_job_is_read_as_it_was_told(tmp_path: Path) -> None:
    for job in (
        jobs.Read("folder", jobs.Choice("p", {"a": "Larynx"}, 30)),
        jobs.Observe(4, 1, "cpu", method="gp", absorb_outliers=True),
        jobs.Report(out="o", samples=3),
    ):
        jobs.write_job(job, tmp_path)
        assert jobs.read_job(tmp_path) == job
    (tmp_path / jobs.JOB_FILE).write_text('{"kind": "predict", "strange": 1}')
    with pytest.raises(RTDigitalTwinError, match="tells no job"):
        jobs.read_job(tmp_path)


# The patient that nodes show


def test_the_scene_s_patient_is_the_one_loaded(scene: Any) -> None:
    patient = turning(small_patient())
    nodes = show_loaded(scene, patient)
    back = patient_in_scene(nodes.ct, nodes.segmentation, nodes.reference_dose)
    assert back.plan.not_fixed_fields == "Arcs."
    assert fingerprint(back) == fingerprint(patient) and back.pseudonym == patient.pseudonym


def test_an_edited_segment_counts(scene: Any) -> None:
    nodes = show_loaded(scene, small_patient())
    nodes.segmentation.GetSegmentation().RemoveSegment("Parotid_R")
    back = patient_in_scene(nodes.ct, nodes.segmentation)
    assert "Parotid_R" not in back.structures and back.plan.dose is None


def test_what_is_missing_is_said(scene: Any) -> None:
    nodes = show_loaded(scene, small_patient())
    with pytest.raises(SceneError, match=r"no CT.*structures and dose are not enough"):
        patient_in_scene(None, nodes.segmentation, nodes.reference_dose)
    with pytest.raises(SceneError, match="no segmentation"):
        patient_in_scene(nodes.ct, None)
    for name in ("PTV_7000",):
        nodes.segmentation.GetSegmentation().RemoveSegment(name)
    with pytest.raises(SceneError, match="no planning target volume"):
        patient_in_scene(nodes.ct, nodes.segmentation)


def test_fractions_are_asked_where_no_plan_tells(scene: Any) -> None:
    patient = small_patient()
    nodes = show_loaded(scene, replace(patient, plans=()))
    with pytest.raises(SceneError, match="how many fractions"):
        patient_in_scene(nodes.ct, nodes.segmentation)
    back = patient_in_scene(nodes.ct, nodes.segmentation, fractions=30)
    assert back.plan.prescription.fractions == 30 and back.plan.prescription.highest_gy == 70


def test_another_patient_s_nodes_are_refused(scene: Any) -> None:
    mine = show_loaded(scene, small_patient())
    theirs = show_loaded(scene, replace(small_patient(), pseudonym="other", warnings=("x",)))
    with pytest.raises(SceneError, match="another patient's than the CT"):
        patient_in_scene(mine.ct, theirs.segmentation)


@pytest.mark.parametrize(("shift_mm", "said"), [(400.0, "No part of the segment lies on the CT"), (95.0, "in the air")])
def test_structures_far_from_the_ct_are_refused(scene: Any, shift_mm: float, said: str) -> None:
    patient = small_patient()
    grid = patient.ct.grid
    shape = (grid.shape[0], grid.shape[1], grid.shape[2] + 30)  # air beside the body
    wide = Grid(shape, grid.spacing_mm, grid.origin_mm)
    values = np.full(shape, -1000, np.int16)
    values[:, :, : grid.shape[2]] = patient.ct.values
    ct = add_ct(scene, Volume(values, wide, Quantity.HU))
    theirs = show_loaded(scene, moved(patient, shift_mm))
    with pytest.raises(SceneError, match=said):
        patient_in_scene(ct, theirs.segmentation, fractions=35)


def test_a_dose_that_does_not_reach_is_refused(scene: Any) -> None:
    patient = small_patient()
    nodes = show_loaded(scene, patient)
    far = Grid((5, 5, 5), (4.0, 4.0, 5.0), (500.0, 500.0, 500.0))
    stray = add_dose(scene, Volume(np.ones((5, 5, 5), np.float32), far, Quantity.DOSE_GY), "Stray", 70)
    with pytest.raises(SceneError, match="Stray: The reference dose covers 0 %"):
        patient_in_scene(nodes.ct, nodes.segmentation, stray)


def test_empty_segments_are_named_and_do_not_count(scene: Any) -> None:
    nodes = show_loaded(scene, small_patient())
    nodes.segmentation.GetSegmentation().AddEmptySegment("Larynx", "Larynx")
    match = next(m for m in segment_matches(nodes.segmentation) if m.source == "Larynx")
    assert match.state is MatchState.EMPTY
    assert "Larynx" not in patient_in_scene(nodes.ct, nodes.segmentation).structures


def test_confirmed_names_stay_with_the_segments(scene: Any) -> None:
    nodes = show_loaded(scene, small_patient())
    confirm_names(nodes.segmentation, {"Parotid_L": "", "Parotid_R": "Larynx"})
    back = patient_in_scene(nodes.ct, nodes.segmentation)
    assert "Larynx" in back.structures and not {"Parotid_L", "Parotid_R"} & back.structures.keys()
    with pytest.raises(RTDigitalTwinError):
        confirm_names(nodes.segmentation, {"Parotid_L": "Knee"})


def test_a_patient_shown_again_keeps_what_was_confirmed(scene: Any) -> None:
    nodes = show_loaded(scene, small_patient())
    confirm_names(nodes.segmentation, {"Parotid_L": "", "Parotid_R": "Larynx"})
    nodes.segmentation.GetSegmentation().AddEmptySegment("Drawn", "Knee")
    again = show_loaded(scene, small_patient())
    assert again.segmentation is nodes.segmentation
    meant = {m.source: m for m in segment_matches(again.segmentation)}
    assert meant["Parotid_R"].name == "Larynx" and meant["Parotid_R"].state is MatchState.CONFIRMED
    assert not meant["Parotid_L"].counts and not meant["Knee"].counts
    assert meant["PTV_7000"].counts and meant["SpinalCord"].counts


# Outcomes and measurements as nodes


def test_an_outcome_lands_whole_or_not_at_all(scene: Any, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = show_loaded(scene, small_patient())
    before = {scene.GetNthNode(k).GetID() for k in range(scene.GetNumberOfNodes())}

    def fail(*unused: Any, **named: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("RTDigitalTwinLib.scene.outcome_nodes.show_isodoses", fail)
    with pytest.raises(MemoryError):
        add_outcome(scene, outcome, nodes.ct, nodes.segmentation, nodes.reference_dose, nodes.study)
    left = {scene.GetNthNode(k).GetID() for k in range(scene.GetNumberOfNodes())} - before
    assert {scene.GetNodeByID(one).GetClassName() for one in left} <= {"vtkMRMLColorTableNode"}


def test_a_removed_outcome_leaves_nothing(scene: Any, outcome: Outcome) -> None:
    nodes = show_loaded(scene, small_patient())
    given = (nodes.ct, nodes.segmentation, nodes.reference_dose, nodes.study)
    counts = []
    for _ in range(3):
        added = add_outcome(scene, outcome, *given)
        assert find_outcome(scene, added.nodes.mean).chart is added.dvh.chart
        remove_outcome(scene, added.nodes.mean)
        counts.append(scene.GetNumberOfNodes())
    assert counts[0] == counts[1] == counts[2]


def test_absorbed_measurements_cannot_be_removed(scene: Any, tmp_path: Path) -> None:
    table = measurement_table(scene)
    add_measurement(table, structure="PTV_7000", value="2", fraction="2", days="1")
    add_measurement(table, structure="SpinalCord", value="1")
    assert write_waiting(table, "p", tmp_path / "m.csv") == [1, 0]  # by time
    set_measurements(table, [row | {"outcome": "absorbed", "step": "1"} for row in measurements(table)])
    with pytest.raises(SceneError, match="absorbed cannot be removed"):
        remove_measurements(table, [0])
    with pytest.raises(SceneError, match="no measurement that was not absorbed"):
        write_waiting(table, "p", tmp_path / "m.csv")


# Work beside the application


def test_a_gpu_without_memory_gives_way_to_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[str, ...]]] = []

    class Twins:
        def of(self, patient: Path, belief: Path, weights: str, device: str, progress: Any) -> Any:
            return device

    def work(job: Any, folder: Path, twin_of: Any, notes: tuple[str, ...], progress: Any) -> None:
        device = twin_of(progress)
        asked.append((device, notes))
        if device != "cpu":
            raise MemoryShortage("Not enough memory to predict.")

    monkeypatch.setattr(jobs, "_has_gpu", lambda: True)
    monkeypatch.setattr(jobs, "_predict", work)
    jobs.Predict(device="auto").run(tmp_path, lambda done, words: None, Twins())  # type: ignore[arg-type]
    assert asked == [("auto", ()), ("cpu", (jobs.CPU_INSTEAD,))]
    monkeypatch.setattr(jobs, "_has_gpu", lambda: False)
    with pytest.raises(MemoryShortage):
        jobs.Predict(device="auto").run(tmp_path, lambda done, words: None, Twins())  # type: ignore[arg-type]


def test_errors_of_the_process_are_told_in_words(tmp_path: Path) -> None:
    def fail(error: BaseException, code: int = EXIT_FAULT) -> RTDigitalTwinError | None:
        def work() -> None:
            raise error

        assert do(tmp_path, work) == code
        return error_in(tmp_path)

    told = fail(SceneError("What.", where="here", remedy="Do."), EXIT_ERROR)
    assert isinstance(told, SceneError) and str(told) == "here: What. Do."
    assert "enough memory" in str(fail(MemoryError()))
    assert "Free space" in str(fail(OSError(errno.ENOSPC, "No space left on device"), EXIT_ERROR))
    assert "A package is missing (torch)" in str(fail(ImportError("no", name="torch")))


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(RTDigitalTwinError, match=r"ended by itself \(exit code -9\)"):
        background.require_done(tmp_path, -9)


def test_work_in_a_thread_is_cancelled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "python_executable", lambda: None)
    jobs.write_job(jobs.Read("sample"), tmp_path)
    work = background.start(tmp_path)

    def stop(done: float, words: str) -> None:
        if words:
            raise Cancelled

    with pytest.raises(Cancelled):
        background.wait(work, stop)
    assert work.poll() and not (tmp_path / jobs.PATIENT_FILE).exists()


def test_a_thread_s_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "python_executable", lambda: None)
    jobs.write_job(jobs.Read(str(tmp_path / "nowhere")), tmp_path)
    with pytest.raises(RTDigitalTwinError, match="There is no such folder"):
        background.wait(background.start(tmp_path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_told(scene: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RTDigitalTwinError, match="Cannot write here"):
        SceneTwin(scene).save_scene(tmp_path / "scene.mrb")


def test_a_temporary_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**unused: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(background.tempfile, "mkdtemp", full)
    with pytest.raises(RTDigitalTwinError, match="No temporary folder can be made"):
        background.new_folder()


def test_a_job_is_of_what_the_scene_shows(scene: Any, tmp_path: Path) -> None:
    nodes = show_loaded(scene, small_patient())
    told = tell(TwinNodes(nodes.ct, nodes.segmentation), jobs.Predict(2), tmp_path)
    assert load_patient_file(tmp_path / jobs.PATIENT_FILE).plan.dose is None and told.positions == ()
    with pytest.raises(SceneError, match="There are no measurements"):
        tell(TwinNodes(nodes.ct, nodes.segmentation), jobs.Observe(2), tmp_path)


def test_a_belief_is_told_of_its_own_ct_alone(scene: Any, outcome: Outcome, tmp_path: Path) -> None:
    bare = small_patient(with_dose=False)
    mine, other = (show_loaded(scene, patient) for patient in (bare, replace(bare, pseudonym="other")))
    mean = add_outcome(scene, outcome, mine.ct, mine.segmentation, None, mine.study).nodes.mean
    belief = scene.AddNewNodeByClass("vtkMRMLTextNode", "Belief")
    belief.SetText("YmVsaWVm")
    mean.SetNodeReferenceID("RTDigitalTwin.belief", belief.GetID())
    tell(TwinNodes(mine.ct, mine.segmentation, mean=mean), jobs.Predict(2), tmp_path)
    assert (tmp_path / jobs.BELIEF_FILE).read_bytes() == b"belief"
    with pytest.raises(SceneError, match="of another CT than the one chosen"):
        tell(TwinNodes(other.ct, other.segmentation, mean=mean), jobs.Predict(2), tmp_path)


def test_a_twin_without_prediction_says_so(scene: Any) -> None:
    twin = SceneTwin(scene, TwinState())
    with pytest.raises(SceneError, match="There is no patient"):
        _ = twin.pseudonym
    for verb in (twin.show, twin.undo, lambda: twin.write_report("out")):
        with pytest.raises(RTDigitalTwinError):
            verb()


@pytest.mark.slow
def test_the_dose_goes_back_to_its_dicom_record(scene: Any, dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    folder, _ = dicom_set
    twin = SceneTwin(scene)
    twin.load(folder)
    twin.predict(2, device="cpu")
    out = twin.export_dose(tmp_path / "rtdose", folder)
    assert {"RTDOSE.mean.dcm", "RTDOSE.std.dcm", "RTSTRUCT.dcm"} == {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_a_batch_goes_on_where_it_was_broken_off(target_folder: Path, tmp_path: Path) -> None:
    patients, out = tmp_path / "patients", tmp_path / "out"
    patients.mkdir()
    (patients / "one").symlink_to(target_folder)
    (patients / "two").mkdir()
    (patients / "two" / "notes.txt").write_text("no patient")

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(BATCH), str(patients), str(out), "--samples", "2", "--device", "cpu"]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    first = run()
    assert first.returncode == 1, first.stderr
    assert "patient-001 done" in first.stdout and "patient-002 failed" in first.stdout
    assert (out / "patient-001.mrb").is_file() and (out / "patient-001" / "report.html").is_file()
    stamp = (out / "patient-001.mrb").stat().st_mtime_ns
    (patients / "two").rename(tmp_path / "elsewhere")
    second = run()
    assert second.returncode == 0 and "patient-001 done before" in second.stdout
    assert (out / "patient-001.mrb").stat().st_mtime_ns == stamp
    assert (out / "batch.csv").read_text().splitlines()[1] == "patient-001,done before,"
    assert run_wrongly(tmp_path) == 2


def run_wrongly(folder: Path) -> int:
    return subprocess.run([sys.executable, str(BATCH), str(folder / "nowhere"), "out"], capture_output=True).returncode
