"""One patient from end to end: from a folder to a folder of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from RTDigitalTwinLib.doctor import INSTALL_SCENE
from RTDigitalTwinLib.dosimetry.goals import GoalSet
from RTDigitalTwinLib.errors import LedgerError, OutputError, SceneError
from RTDigitalTwinLib.files import require_apart, whole_folder
from RTDigitalTwinLib.ledger import LEDGER_FILE, REPAIRED, Ledger, read_ledger
from RTDigitalTwinLib.ledger_entries import OPENED
from RTDigitalTwinLib.model.features import assumptions
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.loading import require_outside_patients
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Volume, write_nrrd
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.record import record_origin, write_record
from RTDigitalTwinLib.report.charts import PAPER
from RTDigitalTwinLib.report.dvh_panels import findings_dvh_figure
from RTDigitalTwinLib.report.provenance import Provenance, collect_provenance
from RTDigitalTwinLib.report.report import write_report
from RTDigitalTwinLib.report.tables import (
    Findings,
    MetricRow,
    write_biology_csv,
    write_dvh_csv,
    write_goals_csv,
    write_metrics_csv,
)
from RTDigitalTwinLib.source import SAMPLE, patient_of, require_one_meaning
from RTDigitalTwinLib.stopwatch import Stopwatch
from RTDigitalTwinLib.twin import Twin

CHART_DPI = 150
IN_HALF = "Convolutions of the samples, and of a refit of the decoder, were in half precision (bfloat16)."
NO_SCENE = "There is no scene and no picture."


@dataclass(frozen=True)
class RunSettings:
    """How to predict: Monte Carlo samples (0 is deterministic), their seed, device, weights file (None: ours).

    ``goals`` are the protocols to judge by; None for those that fit the prescription. ``precision`` is that of the
    samples (DoseSurrogate).
    """

    samples: int = 32
    seed: int = 0
    device: str = "auto"
    weights: Path | None = None
    goals: tuple[GoalSet, ...] | None = field(default=None, kw_only=True)
    precision: str = field(default="single", kw_only=True)


def run_patient(
    source: str | Path,
    out: Path,
    settings: RunSettings | None = None,
    *,
    choice: DicomChoice | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Predict one patient and write everything there is to see of it; returns what ``summary.json`` holds.

    ``source`` is a patient's folder, or the word ``sample`` for the built-in one, whose reference dose is planned here
    (``dosimetry.planning``); ``choice`` says which of its DICOM files are meant. The dose of a patient that was
    resampled for the network is written on its CT too. ``record`` is a folder for the mean and the spread
    as RTDOSE and the structures as RTSTRUCT with the source's identity, for its record; it may not lie among the other
    results.
    The folder ``out`` appears when all of it is written, or not at all; it may neither lie in the patient's folder nor
    around it. Where slicer-core or off-screen drawing is missing, the run ends without scene or pictures and says so
    in the summary's warnings.
    Raises PatientDataError, ModelError or OutputError; Cancelled passes through from ``progress``.
    """
    settings = settings or RunSettings()
    check_places(source, out, overwrite)
    origin = None if record is None else record_origin(source, out, record, choice)
    watch = Stopwatch()
    with ExitStack() as folders:
        folder = folders.enter_context(whole_folder(out, replaceable=is_earlier_result if overwrite else None))
        record_folder = None if record is None else folders.enter_context(whole_folder(record))
        patient = read_source(source, choice, watch, part(progress, 0.0, 0.15))
        with watch.stage("weights"):
            progress(0.15, "loading the network")
            twin = Twin(patient, settings.weights, settings.device, precision=settings.precision)
            device = twin.dose_model.surrogate.device
        with watch.stage("prediction"), Ledger(folder / LEDGER_FILE) as ledger:
            twin.tell(ledger)
            prediction = twin.predict(settings.samples, settings.seed, part(progress, 0.17, 0.6))
        verdict = twin.familiarity
        findings = Findings(prediction, more_notes=remarks(twin), chosen_goals=settings.goals)
        with watch.stage("tables and volumes"):
            progress(0.6, "tables and volumes")
            write_tables(folder, findings)
            if not prediction.mean.grid.same_as(patient.ct.grid):
                on_the_ct = on_ct(prediction.mean, patient.ct.grid)
                write_nrrd(on_the_ct, str(folder / "dose_mean_on_ct.nrrd"), predicted=True)
        provenance, problems = write_views(folder, findings, device, watch, part(progress, 0.65, 0.99))
        summary = _summary(findings)
        summary["warnings"] = [*findings.notes, *problems]
        if verdict is not None:
            summary["familiarity"] = {"score": round(verdict.score, 3), "threshold": round(verdict.threshold, 3)}
        summary["ledger"] = {"entries": len(ledger.entries), "sha256": ledger.head_sha256}
        summary["provenance"] = provenance.as_dict() | {
            "stage_seconds": watch.rounded(),
            "stage_processor_seconds": watch.rounded_processor(),
        }
        summary["files"] = sorted([*(path.name for path in folder.iterdir()), "summary.json"])
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        if record_folder is not None and origin is not None:
            write_record(record_folder, prediction, origin)
        progress(1.0, "done")
    return summary


def on_ct(dose: Volume, grid: Grid) -> Volume:
    """A predicted dose on the grid of a CT: interpolated linearly, 0 Gy where the network says nothing."""
    moved = dose.resampled(grid)
    return Volume(np.nan_to_num(moved.values, nan=0.0), grid, dose.quantity)


def check_places(source: str | Path, out: Path, overwrite: bool) -> None:
    """Before anything is read: that it is clear what is meant, and that nothing read can be overwritten."""
    require_one_meaning(source)
    require_outside_patients(out)
    if source != SAMPLE:
        require_apart(out, Path(source))
    if not overwrite and is_earlier_result(out):
        raise OutputError(
            "The output folder holds the results of an earlier run.",
            where=str(out),
            remedy="Choose another, or pass --overwrite to replace them.",
        )


def remarks(twin: Twin) -> tuple[str, ...]:
    """What the network says of a twin's patient: that it is unlike those it was trained on, and what was assumed.

    That it decodes in half precision, too.
    """
    verdict = twin.familiarity
    unlike = (verdict.warning(),) if verdict is not None and not verdict.is_familiar else ()
    half = (IN_HALF,) if twin.dose_model.surrogate.precision == "half" else ()
    return (*unlike, *half, *assumptions(twin.patient))


def read_source(source: str | Path, choice: DicomChoice | None, watch: Stopwatch, progress: Progress) -> Patient:
    """The patient in a folder, or the built-in one, for which a reference dose is planned."""
    progress(0.0, "reading the patient")
    with watch.stage("planning" if source == SAMPLE else "reading"):
        return patient_of(source, choice, progress)


def is_earlier_result(folder: Path) -> bool:
    """Whether a folder holds the results of an earlier run and nothing else."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        ours = summary["provenance"]["software"] == "RTDigitalTwin"
        return ours and {path.name for path in folder.iterdir()} <= set(summary["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require_place(out: Path, kind: str, overwrite: bool) -> None:
    """Raises OutputError where the folder holds anything but interrupted work of this kind, or results to replace.

    ``kind`` is of an entry that the ledger of such work has.
    """
    if overwrite and is_earlier_result(out):
        return
    if out.is_file():
        raise OutputError("The output is a file, not a folder.", where=out.name, remedy="Choose another folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / LEDGER_FILE).is_file():
        raise OutputError(
            f"The output folder holds something else than an interrupted {kind}.",
            where=str(out),
            remedy="Choose another folder.",
        )
    if (out / LEDGER_FILE).is_file():
        kinds = {entry.kind for entry in read_ledger(out / LEDGER_FILE)} - {OPENED, REPAIRED}
        if kinds and kind not in kinds:
            raise OutputError(
                f"The ledger in this folder is of no {kind}.", where=str(out), remedy="Choose another folder."
            )


def has_entries(out: Path, kinds: Iterable[str]) -> bool:
    """Whether the ledger of interrupted work tells of any of these: then it is worth going on with."""
    try:
        return bool({entry.kind for entry in read_ledger(out / LEDGER_FILE)} & set(kinds))
    except LedgerError:
        return (out / LEDGER_FILE).is_file()


def can_go_on(out: Path, kinds: Iterable[str]) -> bool:
    """Whether a folder holds interrupted work that told of any of these, and no finished result."""
    return out.is_dir() and not is_earlier_result(out) and has_entries(out, kinds)


def write_views(
    folder: Path, findings: Findings, device: torch.device, watch: Stopwatch, progress: Progress
) -> tuple[Provenance, tuple[str, ...]]:
    """Scene, pictures and report; returns the report's provenance, and why scene or pictures are missing if so."""
    scene = _write_scene(folder, findings, watch, part(progress, 0.0, 0.9))
    provenance = collect_provenance(findings.prediction, device, watch.seconds)
    with watch.stage("report"):
        progress(0.9, "report")
        missing = {"Pictures": scene.problem} if scene.problem else None
        write_report(folder / "report.html", findings, scene.pictures, provenance, missing_pictures=missing)
    return provenance, (scene.problem,) if scene.problem else ()


@dataclass(frozen=True)
class _SceneOutcome:
    pictures: Mapping[str, Path]
    problem: str = ""


def write_tables(folder: Path, findings: Findings, dose: str = "dose_mean.nrrd") -> None:
    """The prediction's volumes, its mean dose under the name ``dose``, its tables as CSV, and its DVH chart."""
    prediction = findings.prediction
    simulated = findings.simulated
    write_nrrd(prediction.mean, str(folder / dose), predicted=True, simulated=simulated)
    if prediction.has_spread:
        write_nrrd(prediction.std, str(folder / "dose_std.nrrd"), simulated=simulated)
    if prediction.is_calibrated:
        half_width = prediction.half_width(findings.level)
        write_nrrd(half_width, str(folder / "dose_half_width_95.nrrd"), simulated=simulated)
    write_dvh_csv(folder / "dvh.csv", prediction, dose=findings.dose_words)
    write_metrics_csv(folder / "metrics.csv", findings.rows, findings.dose_words)
    write_goals_csv(folder / "goals.csv", findings.goals, findings.dose_words)
    write_biology_csv(folder / "biology.csv", findings.biology, findings.dose_words)
    findings_dvh_figure(findings).savefig(folder / "dvh.png", dpi=CHART_DPI, facecolor=PAPER)


def _write_scene(folder: Path, findings: Findings, watch: Stopwatch, progress: Progress) -> _SceneOutcome:
    try:
        from RTDigitalTwinLib.scene.bundle import save_mrb
        from RTDigitalTwinLib.scene.nodes import show_prediction
        from RTDigitalTwinLib.scene.session import headless_session
        from RTDigitalTwinLib.scene.snapshot import rendering_problem, save_pictures
    except SceneError as error:
        return _SceneOutcome({}, f"{NO_SCENE} {error}")
    except Exception as error:  # another build of Slicer's libraries fails in its own way, naming paths
        failed = f"Slicer's libraries do not work here ({type(error).__name__})."
        return _SceneOutcome({}, f"{NO_SCENE} {failed} Install them: {INSTALL_SCENE}")

    prediction = findings.prediction
    with headless_session() as session:
        with watch.stage("scene"):
            shown = part(progress, 0.0, 0.3)
            nodes = show_prediction(session.scene, prediction.patient, prediction, progress=shown, findings=findings)
            save_mrb(session.scene, folder / "scene.mrb")
        with watch.stage("pictures"):
            problem = rendering_problem()
            if problem is not None:
                return _SceneOutcome({}, f"There are no pictures. {problem}")
            return _SceneOutcome(save_pictures(nodes, folder, part(progress, 0.4, 1.0)))


def _judged(row: MetricRow) -> dict[str, bool | None]:
    return {"informative": row.is_informative, "covers_reference": row.covers_reference}


def _summary(findings: Findings) -> dict[str, Any]:
    prediction = findings.prediction
    patient = prediction.patient
    claim = "A single dose says nothing of how sure it is."
    if prediction.has_spread:
        claim = f"Bands: {prediction.band_words(findings.level)}."
    summary: dict[str, Any] = {
        "patient": patient.pseudonym,
        "notice": f"Research use only. {claim}",
        "prescription_gy": dict(patient.plan.prescription.target_dose_gy),
        "fractions": patient.plan.prescription.fractions,
        "bands": prediction.band_words(findings.level) if prediction.has_spread else None,
        "structures_cc": {name: round(s.volume_cc, 3) for name, s in patient.structures.items()},
        "metrics": [asdict(row) | _judged(row) for row in findings.rows],
        "goals": [asdict(row) for table in findings.goals for row in table.rows],
        "goal_reasons": dict(findings.goal_choice.reasons),
        "goals_left_out": list(findings.goal_choice.left_out),
        "biology": [asdict(row) for row in findings.biology.rows],
        "biology_notes": list(findings.biology.notes),
    }
    if (score := findings.score) is not None:
        summary["dose_error_gy"], summary["dvh_error_gy"] = round(score.dose_error_gy, 4), round(score.dvh_error_gy, 4)
    return summary
