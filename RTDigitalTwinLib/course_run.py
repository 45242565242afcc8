"""A patient's course from a folder to a folder: lived through, told to a ledger, gone on with where it was interrupted.

Every fraction is an entry of the ledger. All chance follows from the seed and the fraction, so that a course that goes
on lives through the fractions before again, without their projections, and they must come out the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.calibration.belief import prior_of
from RTDigitalTwinLib.course import Course, prepared
from RTDigitalTwinLib.course_projection import require_ntcp
from RTDigitalTwinLib.course_record import (
    RE_IMAGED,
    RECALIBRATED,
    REPLANNED,
    CourseResult,
    CourseSettings,
    FractionRecord,
)
from RTDigitalTwinLib.decision.action_file import chosen_actions
from RTDigitalTwinLib.decision.action_record import action_row
from RTDigitalTwinLib.decision.actions import Action
from RTDigitalTwinLib.decision.policies import Decider
from RTDigitalTwinLib.doctor import INSTALL_SCENE
from RTDigitalTwinLib.errors import LedgerError, SceneError
from RTDigitalTwinLib.files import drop_aside, put_back, set_aside, whole_file
from RTDigitalTwinLib.ledger import LEDGER_FILE, Entry, Ledger, canonical
from RTDigitalTwinLib.ledger_entries import open_for
from RTDigitalTwinLib.model.biology import NOTICE
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.volume import Quantity, write_nrrd
from RTDigitalTwinLib.progress import Progress, Tell, part, silent, untold
from RTDigitalTwinLib.report.course_figure import trajectory_rows, write_course_figure
from RTDigitalTwinLib.report.provenance import collect_provenance
from RTDigitalTwinLib.run import (
    RunSettings,
    check_places,
    has_entries,
    is_earlier_result,
    read_source,
    remarks,
    require_place,
)
from RTDigitalTwinLib.stopwatch import Stopwatch
from RTDigitalTwinLib.twin import Twin

COURSE, FRACTION = "course", "fraction"
SUMMARY, TRAJECTORY, FIGURE = "summary.json", "trajectory.csv", "adaptation.png"
NO_SCENE = "There is no scene."


@dataclass(frozen=True)
class CourseRunSettings(RunSettings):
    """What to live through, and by what.

    Attributes
    ----------
    course : its ``samples`` are those that are drawn.
    ntcp : structure whose NTCP the figure follows; None for a parotid.
    decider, actions : what is chosen, and from what, whenever the twin recalibrated; actions may be a file of them.
    """

    course: CourseSettings = field(default_factory=CourseSettings, kw_only=True)
    ntcp: str | None = field(default=None, kw_only=True)
    decider: Decider | None = field(default=None, kw_only=True)
    actions: tuple[Action, ...] | Path = field(default=(), kw_only=True)


def live_course(
    source: str | Path,
    out: Path,
    settings: CourseRunSettings | None = None,
    *,
    choice: DicomChoice | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    tell: Tell = untold,
) -> dict[str, Any]:
    """Live through the course of one patient, or go on with one that was interrupted; returns the summary.

    The folder ``out`` holds the ledger and the trajectory from the first fraction on, the rest at the end. ``tell``
    gets where an interrupted course goes on. Raises
    PatientDataError, ModelError, OutputError; LedgerError where ``out`` holds an interrupted course of another patient,
    other weights or other settings.
    """
    settings = settings or CourseRunSettings()
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        put_back(out)  # a crash before the ledger was begun
    check_places(source, out, overwrite)
    require_place(out, COURSE, overwrite)
    watch = Stopwatch()
    patient = read_source(source, choice, watch, part(progress, 0.0, 0.1))
    with watch.stage("network"):
        twin = Twin(patient, settings.weights, settings.device)
        prior = prior_of(twin.dose_belief)
    require_ntcp(prior.patient, settings.ntcp)
    actions = chosen_actions(settings.actions, prior.patient)
    with watch.stage("prediction"):
        drawn = prior.sample(settings.course.samples, 0, part(progress, 0.1, 0.35))
    with watch.stage("readings"):
        progress(0.35, "how fractions are read")
        given, known = prepared(drawn, settings.course)
        course = Course(prior, given, settings.course, known, settings.decider, actions)
    replaces = overwrite and is_earlier_result(out)
    if replaces:
        set_aside(out)
    try:
        with Ledger(out / LEDGER_FILE) as ledger:
            with watch.stage("fractions"):
                open_for(ledger, patient, twin.dose_model)
                result = _live(course, ledger, settings, part(progress, 0.4, 0.9), tell)
            summary = _write(course, result, twin, out, settings, watch, ledger, part(progress, 0.9, 1.0))
    except BaseException:
        if replaces and not has_entries(out, (FRACTION,)):
            put_back(out)
        raise
    drop_aside(out)
    progress(1.0, "done")
    return summary


def _live(course: Course, ledger: Ledger, settings: CourseRunSettings, progress: Progress, tell: Tell) -> CourseResult:
    about = {
        "course": settings.course.as_dict(),
        "actions": [action_row(action) for action in course.actions],
        "decider": None if course.decider is None else course.decider.as_dict(),
    }
    begun = next((e.content for e in ledger.entries if e.kind == COURSE), None)
    if begun is None:
        ledger.append(COURSE, json.loads(json.dumps(about)))
    elif other := _differing(begun, about):
        raise LedgerError(
            f"The folder holds an interrupted course of other settings: {', '.join(other)}.",
            where=ledger.path.parent.name,
            remedy="Go on with those settings, or choose another folder.",
        )
    told = {e.content["fraction"]: e for e in ledger.entries if e.kind == FRACTION}
    if told:
        tell(f"Going on behind fraction {len(told)}: what was before is lived through again and must come out alike.")
    records: list[FractionRecord] = []
    for record in course.fractions(known_until=len(told)):
        progress(record.fraction / settings.course.fractions, f"fraction {record.fraction}")
        if record.fraction in told:
            record = _same(record, told[record.fraction], ledger)
        else:
            ledger.append(FRACTION, json.loads(json.dumps(record.as_dict())))
        records.append(record)
        write_trajectory(tuple(records), ledger.path.with_name(TRAJECTORY))
    return course.result(records)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    flat_before, flat_now = (
        dict(of["course"]) | {key: of.get(key) for key in ("actions", "decider")} for of in (before, now)
    )
    plain = json.loads(json.dumps(flat_now))
    return sorted(k for k in {*flat_before, *plain} if canonical(flat_before.get(k)) != canonical(plain.get(k)))


def _same(record: FractionRecord, entry: Entry, ledger: Ledger) -> FractionRecord:
    """The record as it was told. Raises LedgerError where it comes out otherwise now."""
    now = json.loads(json.dumps(record.as_dict()))
    if canonical({k: v for k, v in now.items() if k != "endpoints"}) != canonical(
        {k: v for k, v in entry.content.items() if k != "endpoints"}
    ):
        raise LedgerError(
            f"Going on, fraction {record.fraction} gives other numbers than before.",
            where=f"{ledger.path.name}, entry {entry.number}",
            remedy="Go on with the same software, machine and number of threads, or begin anew.",
        )
    return FractionRecord.from_dict(entry.content)


def write_trajectory(records: tuple[FractionRecord, ...], path: Path) -> None:
    """A row a fraction. Raises OutputError."""
    rows = trajectory_rows(records)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as aside, aside.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write(
    course: Course, result: CourseResult, twin: Twin, out: Path, settings: CourseRunSettings, watch: Stopwatch,
    ledger: Ledger, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    with watch.stage("volumes and figure"):
        progress(0.0, "volumes and figure")
        crop = result.projection.crop
        write_nrrd(result.projection.mean, str(out / "dose_accumulated.nrrd"), predicted=True, simulated=True)
        true = crop.spread(result.true_gy, Quantity.DOSE_GY)
        write_nrrd(true, str(out / "dose_accumulated_truth.nrrd"), simulated=True)
        if any(e.effect == "NTCP" for e in result.records[-1].endpoints):
            write_course_figure(result, out / FIGURE, settings.ntcp)
    problems = _write_scene(result, out, settings, watch, part(progress, 0.2, 1.0))
    with whole_file(out / "course.json") as aside:
        aside.write_text(json.dumps(_told(result), indent=1, allow_nan=False) + "\n")
    patient = result.projection.patient
    last = result.records[-1]
    notes = [
        f"Deliveries and their readings are {settings.course.change.words}; they stand in for real ones.",
        *patient.warnings, *remarks(twin), NOTICE, *problems,
    ]  # fmt: skip
    summary: dict[str, Any] = {
        "patient": patient.pseudonym,
        "notice": "Research use only. Simulated.",
        "simulated": True,
        "policy": settings.course.policy.name,
        "bands": result.projection.band_words(),
        "endpoints": [asdict(e) for e in last.endpoints],
        **counts_of(result),
        "actions": [action.name for action in course.actions],
        "decisions": [asdict(d) for d in result.decisions],
        "warnings": list(dict.fromkeys(notes)),
        "ledger": {"entries": len(ledger.entries), "sha256": ledger.head_sha256},
    }
    device = twin.dose_model.surrogate.device
    summary["provenance"] = collect_provenance(result.projection, device, watch.seconds).as_dict()
    summary["files"] = sorted({*(path.name for path in out.iterdir()), SUMMARY})
    with whole_file(out / SUMMARY) as aside:
        aside.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def counts_of(result: CourseResult) -> dict[str, Any]:
    """What was done how often, and when."""
    return {
        "recalibrated": list(result.fractions_with(RECALIBRATED)),
        "re_imaged": list(result.fractions_with(RE_IMAGED)),
        "replanned": list(result.fractions_with(REPLANNED)),
        "images": result.records[-1].images,
        "readings": result.records[-1].fraction,
        "false_alarms": result.false_alarms,
        "delay_fractions": result.delay_fractions,
    }


def _told(result: CourseResult) -> dict[str, Any]:
    return {
        "patient": result.projection.patient.pseudonym,
        "simulated": True,
        "settings": result.settings.as_dict(),
        **counts_of(result),
        "fractions": [record.as_dict() for record in result.records],
        "decisions": [asdict(d) for d in result.decisions],
    }


def _write_scene(
    result: CourseResult, out: Path, settings: CourseRunSettings, watch: Stopwatch, progress: Progress
) -> Sequence[str]:
    """Why it is missing, if so."""
    try:
        from RTDigitalTwinLib.scene.bundle import save_mrb
        from RTDigitalTwinLib.scene.course_nodes import show_course
        from RTDigitalTwinLib.scene.session import headless_session
    except SceneError as error:
        return (f"{NO_SCENE} {error}",)
    except Exception as error:  # another build of Slicer's libraries fails in its own way, naming paths
        return (f"{NO_SCENE} Slicer's libraries do not work here ({type(error).__name__}). {INSTALL_SCENE}",)
    with watch.stage("scene"), headless_session() as session:
        progress(0.0, "scene")
        show_course(session.scene, result, settings.ntcp, progress)
        save_mrb(session.scene, out / "scene.mrb")
    return ()
