"""One patient from end to end: from a folder to a folder of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.dosimetry.openkbp_score import score_patient
from RTDigitalTwinLib.files import whole_folder
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import write_nrrd
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.report.charts import PAPER, dvh_figure
from RTDigitalTwinLib.report.provenance import collect_provenance
from RTDigitalTwinLib.report.report import write_report
from RTDigitalTwinLib.report.tables import metric_rows, write_dvh_csv, write_metrics_csv
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.stopwatch import Stopwatch
from RTDigitalTwinLib.twin import Twin

SAMPLE = "sample"
SCENE_PACKAGE = "slicer"
CHART_DPI = 150
NO_SCENE = "slicer-core is not installed, so there is no scene and no picture: pip install 'RTDigitalTwinLib[scene]'"
CAPTIONS = {"axial": "Axial", "coronal": "Coronal", "sagittal": "Sagittal"}
SHOWN = {"dose": "predicted dose", "spread": "sampled spread", "difference": "predicted minus reference dose"}


@dataclass(frozen=True)
class RunSettings:
    """How to predict: Monte Carlo samples (0 is deterministic), their seed, device, weights file (None: ours)."""

    samples: int = 32
    seed: int = 0
    device: str = "auto"
    weights: Path | None = None


def run_patient(
    source: str | Path,
    out: Path,
    settings: RunSettings | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Predict one patient and write everything there is to see of it; returns what ``summary.json`` holds.

    ``source`` is a patient's folder or ``sample``. The folder ``out`` appears when all of it is written, or not at all.
    Where slicer-core or off-screen drawing is missing, the run ends without scene or pictures and says so in the
    summary's warnings. Raises PatientDataError, ModelError or OutputError; Cancelled passes through from ``progress``.
    """
    settings = settings or RunSettings()
    watch = Stopwatch()
    with whole_folder(out, replaceable=_is_earlier_result if overwrite else None) as folder:
        with watch.stage("reading"):
            progress(0.0, "reading the patient")
            patient = Patient.sample() if source == SAMPLE else Patient.load(source)
        with watch.stage("weights"):
            progress(0.02, "loading the network")
            twin = Twin(patient, settings.weights, settings.device)
            device = twin.dose_model.surrogate.device
        with watch.stage("prediction"):
            prediction = twin.predict(settings.samples, settings.seed, part(progress, 0.05, 0.6))
        with watch.stage("tables and volumes"):
            progress(0.6, "tables and volumes")
            _write_tables(folder, prediction)
        scene = _write_scene(folder, patient, prediction, watch, part(progress, 0.65, 0.95))
        provenance = collect_provenance(prediction, device, watch.seconds)
        with watch.stage("report"):
            progress(0.95, "report")
            missing = {"Pictures": scene.problem} if scene.problem else None
            report = folder / "report.html"
            write_report(report, patient, prediction, scene.pictures, provenance, missing_pictures=missing)
        summary = _summary(patient, prediction)
        summary["warnings"] = [*patient.warnings, *([scene.problem] if scene.problem else [])]
        summary["provenance"] = provenance.as_dict() | {"stage_seconds": watch.rounded()}
        summary["files"] = sorted([*(path.name for path in folder.iterdir()), "summary.json"])
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        progress(1.0, "done")
    return summary


def _is_earlier_result(folder: Path) -> bool:
    """Whether a folder holds the results of an earlier run and nothing else."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        ours = summary["provenance"]["software"] == "RTDigitalTwin"
        return ours and {path.name for path in folder.iterdir()} <= set(summary["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class _SceneOutcome:
    pictures: Mapping[str, Path]
    problem: str = ""


def _write_tables(folder: Path, prediction: DoseEnsemble) -> None:
    write_nrrd(prediction.mean, str(folder / "dose_mean.nrrd"))
    if prediction.has_spread:
        write_nrrd(prediction.std, str(folder / "dose_std.nrrd"))
    write_dvh_csv(folder / "dvh.csv", prediction)
    write_metrics_csv(folder / "metrics.csv", metric_rows(prediction))
    dvh_figure(prediction).savefig(folder / "dvh.png", dpi=CHART_DPI, facecolor=PAPER)


def _write_scene(
    folder: Path, patient: Patient, prediction: DoseEnsemble, watch: Stopwatch, progress: Progress
) -> _SceneOutcome:
    if util.find_spec(SCENE_PACKAGE) is None:
        return _SceneOutcome({}, NO_SCENE)
    from RTDigitalTwinLib.scene.bundle import save_mrb
    from RTDigitalTwinLib.scene.nodes import show_prediction
    from RTDigitalTwinLib.scene.session import headless_session
    from RTDigitalTwinLib.scene.snapshot import rendering_problem, save_pictures

    with headless_session() as session:
        with watch.stage("scene"):
            nodes = show_prediction(session.scene, patient, prediction, progress=part(progress, 0.0, 0.3))
            save_mrb(session.scene, folder / "scene.mrb")
        with watch.stage("pictures"):
            problem = rendering_problem()
            if problem is not None:
                return _SceneOutcome({}, f"There are no pictures. {problem}")
            paths = save_pictures(nodes, folder, part(progress, 0.4, 1.0))
    return _SceneOutcome({_caption(path): path for path in paths})


def _caption(path: Path) -> str:
    orientation, _, shown = path.stem.partition("_")
    return f"{CAPTIONS[orientation]}: {SHOWN[shown]}" if shown else "Structures in space"


def _summary(patient: Patient, prediction: DoseEnsemble) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "patient": patient.pseudonym,
        "notice": "Research use only. Bands are of the sampled spread and not calibrated.",
        "prescription_gy": dict(patient.plan.prescription.target_dose_gy),
        "fractions": patient.plan.prescription.fractions,
        "structures_cc": {name: round(s.volume_cc, 3) for name, s in patient.structures.items()},
        "metrics": [asdict(row) for row in metric_rows(prediction)],
    }
    if patient.plan.dose is not None:
        score = score_patient(patient, prediction.mean.values)
        summary["dose_error_gy"], summary["dvh_error_gy"] = round(score.dose_error_gy, 4), round(score.dvh_error_gy, 4)
    return summary
