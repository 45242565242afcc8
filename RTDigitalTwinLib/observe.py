"""Measurements of one patient absorbed, from a file to a folder: what was believed before and is believed after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief, in_time, load_belief, prior_of, save_belief
from RTDigitalTwinLib.calibration.choice import calibrator_named
from RTDigitalTwinLib.calibration.measurements import as_row, read_measurements
from RTDigitalTwinLib.calibration.outliers import Judgement
from RTDigitalTwinLib.calibration.recalibration import Update
from RTDigitalTwinLib.errors import LedgerError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_folder
from RTDigitalTwinLib.ledger import LEDGER_FILE, Ledger, ledger_files, read_ledger
from RTDigitalTwinLib.ledger_entries import ADOPTED, OBSERVED, UNDONE, belief_sha256
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.identity import Identity
from RTDigitalTwinLib.patient.new_ct import read_new_ct, seen_shift
from RTDigitalTwinLib.patient.observation import CouchShiftObservation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, write_nrrd
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.report.observing import observing_of, update_notes
from RTDigitalTwinLib.report.tables import Findings, write_rows
from RTDigitalTwinLib.run import (
    RunSettings,
    check_places,
    is_earlier_result,
    read_source,
    remarks,
    write_tables,
    write_views,
)
from RTDigitalTwinLib.source import belonging_of_source
from RTDigitalTwinLib.stopwatch import Stopwatch
from RTDigitalTwinLib.twin import Twin

FEWEST_SAMPLES = 2
BELIEF_FILE = "belief.npz"


@dataclass(frozen=True)
class ComparedMetric:
    """A metric before and after observing, each with the limits of its band; ``reference`` is of the plan's dose."""

    structure: str
    metric: str
    unit: str
    before: float
    low_before: float | None
    high_before: float | None
    after: float
    low_after: float | None
    high_after: float | None
    reference: float | None


@dataclass(frozen=True)
class ObserveSettings(RunSettings):
    """How to observe, and to predict before and after.

    Attributes
    ----------
    method : a calibrator's name; None for the default.
    absorb_outliers : take in what the belief cannot explain.
    belief : file to go on from; None begins from the network's own belief.
    allow_overlap : take in observations of the same thing whose fractions overlap.
    new_cts : folders or image files of CTs taken since, each with the fraction from which on the patient lay so.
    """

    method: str | None = None
    absorb_outliers: bool = False
    belief: Path | None = None
    allow_overlap: bool = False
    new_cts: tuple[tuple[Path, int], ...] = ()


def observe_patient(
    source: str | Path,
    measurements: Path | None,
    out: Path,
    settings: ObserveSettings | None = None,
    *,
    choice: DicomChoice | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Absorb the measurements in a file and what new CTs show; returns what ``summary.json`` holds.

    The folder ``out`` appears when all of it is written, or not at all. Where every measurement is an outlier that is
    left out, there is no belief to write and the method is None. The reference in the tables is the plan's dose, not
    what was delivered. Raises PatientDataError, ModelError or OutputError.
    """
    settings = settings or ObserveSettings()
    if settings.samples < FEWEST_SAMPLES:
        raise RTDigitalTwinError(f"Observing needs at least {FEWEST_SAMPLES} samples.", remedy="Ask for more.")
    if measurements is None and not settings.new_cts:
        raise RTDigitalTwinError("There is nothing to observe.", remedy="Give measurements, a new CT, or both.")
    check_places(source, out, overwrite)
    watch = Stopwatch()
    with ExitStack() as open_files:
        folder = open_files.enter_context(whole_folder(out, replaceable=is_earlier_result if overwrite else None))
        patient = read_source(source, choice, watch, part(progress, 0.0, 0.02))
        measured = () if measurements is None else read_measurements(measurements, patient)
        with watch.stage("registration of new CTs"):
            shifts, told = _shifts(source, patient, settings.new_cts, choice, part(progress, 0.0, 0.02))
        observations = in_time([*measured, *shifts])
        with watch.stage("weights"):
            progress(0.02, "loading the network")
            twin = Twin(patient, settings.weights, settings.device, precision=settings.precision)
            earlier = None if settings.belief is None else load_belief(settings.belief, prior_of(twin.dose_belief))
            ledger = open_files.enter_context(continued_ledger(folder, settings.belief, earlier))
            twin.tell(ledger)
            if earlier is not None:
                twin.adopt(earlier)
        with watch.stage("prediction before"):
            before = twin.predict(settings.samples, settings.seed, part(progress, 0.05, 0.2))
        with watch.stage("recalibration"):
            update = twin.observe(
                observations,
                None if settings.method is None else calibrator_named(settings.method),
                absorb_outliers=settings.absorb_outliers,
                allow_overlap=settings.allow_overlap,
                progress=part(progress, 0.2, 0.55),
            )
        with watch.stage("prediction after"):
            after = twin.predict(settings.samples, settings.seed, part(progress, 0.55, 0.65))
        with watch.stage("tables and volumes"):
            progress(0.65, "tables and volumes")
            observing = observing_of(update, before, after)
            findings = Findings(after, more_notes=(*told, *update_notes(update), *remarks(twin)), observing=observing)
            write_tables(folder, findings)
            change = after.mean.minus(before.mean, Quantity.DOSE_DIFFERENCE_GY)
            write_nrrd(change, str(folder / "dose_change.nrrd"), simulated=observing.simulated)
            rows = _compared(findings)
            write_rows(folder / "metrics.csv", ComparedMetric, rows)
            if isinstance(update.after, RecalibratedBelief):
                save_belief(update.after, folder / BELIEF_FILE)
        device = twin.dose_model.surrogate.device
        provenance, problems = write_views(folder, findings, device, watch, part(progress, 0.7, 0.99))
        summary = _summary(update, findings, rows)
        summary["warnings"] = [*findings.notes, *problems]
        summary["provenance"] = provenance.as_dict() | {"stage_seconds": watch.rounded()}
        summary["ledger"] = {"entries": len(ledger.entries), "sha256": ledger.head_sha256}
        summary["files"] = sorted([*(path.name for path in folder.iterdir()), "summary.json"])
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        progress(1.0, "done")
    return summary


def _shifts(
    source: str | Path,
    patient: Patient,
    given: Sequence[tuple[Path, int]],
    choice: DicomChoice | None,
    progress: Progress,
) -> tuple[tuple[CouchShiftObservation, ...], tuple[str, ...]]:
    """What new CTs say of where the patient lay, and what is to be told of it."""
    shifts, notes = [], []
    identity = belonging_of_source(source, choice).identity if given else Identity("", "", "")
    overrides = (choice or DicomChoice()).overrides
    for k, (path, fraction) in enumerate(given):
        warnings: list[str] = []
        new = read_new_ct(path, overrides)
        shown = part(progress, k / len(given), (k + 1) / len(given))
        found = seen_shift(new, patient, identity, fraction, overrides, warnings, where=path.name, progress=shown)
        shifts.append(found.observation)
        notes += [found.words, *warnings]
    return tuple(shifts), tuple(dict.fromkeys(notes))


def continued_ledger(folder: Path, belief_file: Path | None, earlier: RecalibratedBelief | None) -> Ledger:
    """A new ledger, or the one beside an earlier belief, copied to be gone on with.

    Raises LedgerError where that one does not end with the belief.
    """
    before = None if belief_file is None else belief_file.with_name(LEDGER_FILE)
    if before is not None and earlier is not None and before.is_file():
        held = [e.content for e in read_ledger(before) if e.kind in (OBSERVED, ADOPTED, UNDONE)]
        last = (held[-1].get("after_sha256") or held[-1].get("belief_sha256")) if held else None
        if last != belief_sha256(earlier):
            raise LedgerError(
                "The ledger beside the belief does not end with it.",
                where=before.name,
                remedy="Give the belief that belongs to it, or put the belief in a folder of its own.",
            )
        for path in ledger_files(before):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / path.name)
    return Ledger(folder / LEDGER_FILE)


def _compared(findings: Findings) -> list[ComparedMetric]:
    return [
        ComparedMetric(
            now.structure, now.metric, now.unit, then.mean, then.low, then.high, now.mean, now.low, now.high,
            now.reference,
        )
        for then, now in zip(findings.rows_before, findings.rows, strict=True)
    ]  # fmt: skip


def _judged(findings: Findings) -> list[dict[str, bool | None]]:
    """Of each metric whether its bands say anything, and whether the later one holds the reference."""
    return [
        {
            "informative_before": then.is_informative,
            "informative": now.is_informative,
            "covers_reference": now.covers_reference,
        }
        for then, now in zip(findings.rows_before, findings.rows, strict=True)
    ]


def _summary(update: Update, findings: Findings, rows: list[ComparedMetric]) -> dict[str, Any]:
    after = findings.prediction
    belief = update.after if isinstance(update.after, RecalibratedBelief) else None
    return {
        "patient": after.patient.pseudonym,
        "notice": f"Research use only. Bands: {after.band_words()}.",
        "method": None if belief is None else belief.method,
        "simulated": belief is not None and belief.is_simulated,
        "change": None if belief is None or belief.change is None else asdict(belief.change),
        "absorbed_in_all": 0 if belief is None else len(belief.absorbed),
        "observations": [_told(judgement, update) for judgement in update.judgements],
        "bands": after.band_words(),
        "metrics": [asdict(row) | judged for row, judged in zip(rows, _judged(findings), strict=True)],
    }


def _told(judgement: Judgement, update: Update) -> dict[str, Any]:
    return {
        **as_row(judgement.observation),
        "label": judgement.observation.label,
        "observed_course": round(judgement.observed, 6),
        "expected_course": round(judgement.expected, 6),
        "explicable_difference": round(judgement.reach, 6),
        "outlier": judgement.is_outlier,
        "absorbed": any(judgement.observation is o for o in update.absorbed),
        "words": judgement.words,
    }
