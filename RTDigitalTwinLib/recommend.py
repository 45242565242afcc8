"""What to do next for one patient, from a folder to a folder: actions ranked under chance constraints, or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief, load_belief, prior_of, save_belief
from RTDigitalTwinLib.calibration.choice import calibrator_named
from RTDigitalTwinLib.calibration.measurements import read_measurements
from RTDigitalTwinLib.decision.action_file import read_actions
from RTDigitalTwinLib.decision.actions import Action
from RTDigitalTwinLib.decision.chance import percent
from RTDigitalTwinLib.decision.protocol import DecisionProtocol, load_decision
from RTDigitalTwinLib.decision.ranking import FEWEST_SAMPLES, Ranking, require_samples, required_samples
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.files import whole_file, whole_folder
from RTDigitalTwinLib.observe import BELIEF_FILE, continued_ledger
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.dose_file import ReadDose, require_belongs
from RTDigitalTwinLib.patient.loading import belonging_of
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, write_nrrd
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.record import SAMPLE, record_origin, write_dose_record, write_structures_record
from RTDigitalTwinLib.report.charts import PAPER
from RTDigitalTwinLib.report.deciding import Deciding, RankedRow
from RTDigitalTwinLib.report.observing import belief_notes
from RTDigitalTwinLib.report.tables import Findings, write_rows
from RTDigitalTwinLib.report.utility_chart import utility_figure
from RTDigitalTwinLib.run import (
    CHART_DPI,
    RunSettings,
    check_places,
    is_earlier_result,
    on_ct,
    read_source,
    remarks,
    write_tables,
    write_views,
)
from RTDigitalTwinLib.stopwatch import Stopwatch
from RTDigitalTwinLib.twin import Twin

RECOMMENDED_DOSE, KEPT_DOSE = "dose_recommended.nrrd", "dose_keep.nrrd"
NO_RECORD = "Nothing is recommended, so nothing was written as DICOM."


@dataclass(frozen=True)
class RecommendSettings(RunSettings):
    """How to rank; ``samples`` None takes 64, or as many as the risk needs.

    Attributes
    ----------
    risk : allowed probability that a constraint is violated; None for the protocol's.
    actions : to rank, or a file of them; None for the customary ones. Keeping the plan is always among them.
    protocol : file of utility and constraints; None for the one that comes with the software.
    belief : file to go on from; None begins from the network's own belief.
    measurements : file of what to absorb before; None for nothing.
    method : a calibrator's name, for the measurements; None for the default.
    absorb_outliers : take in what the belief cannot explain.
    """

    samples: int | None = None  # type: ignore[assignment]
    risk: float | None = None
    actions: Sequence[Action] | Path | None = None
    protocol: Path | None = None
    belief: Path | None = None
    measurements: Path | None = None
    method: str | None = None
    absorb_outliers: bool = False


def recommend_patient(
    source: str | Path,
    out: Path,
    settings: RecommendSettings | None = None,
    *,
    choice: DicomChoice | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Rank what could be done next and write everything there is to see of it; returns what ``summary.json`` holds.

    The tables, report and scene are of the recommended action's dose, beside that of keeping the plan; where the twin
    abstains, of the latter alone. Each says of which (``Findings.dose_words``). ``record`` is a folder for the
    recommended dose as RTDOSE with the source's identity.
    The folder ``out`` appears when all of it is written, or not at all.
    Raises RTDigitalTwinError for a risk or a number of samples that cannot be; ProtocolError, PatientDataError,
    ModelError, LedgerError or OutputError.
    """
    settings = settings or RecommendSettings()
    check_places(source, out, overwrite)
    origin = None if record is None else record_origin(source, out, record, choice)
    protocol = load_decision(settings.protocol).with_risk(settings.risk)
    samples, notes = _samples(settings.samples, protocol)
    watch = Stopwatch()
    with ExitStack() as opened:
        folder = opened.enter_context(whole_folder(out, replaceable=is_earlier_result if overwrite else None))
        patient = read_source(source, choice, watch, part(progress, 0.0, 0.03))
        with watch.stage("weights"):
            progress(0.03, "loading the network")
            twin = Twin(patient, settings.weights, settings.device)
            prior = prior_of(twin.dose_belief)
            actions = _actions(settings.actions, prior.patient, source, choice)
            earlier = None if settings.belief is None else load_belief(settings.belief, prior)
            ledger = opened.enter_context(continued_ledger(folder, settings.belief, earlier))
            twin.tell(ledger)
            if earlier is not None:
                twin.adopt(earlier)
        if settings.measurements is not None:
            with watch.stage("recalibration"):
                notes += _absorb(twin, settings, patient, part(progress, 0.05, 0.2))
        with watch.stage("ranking"):
            ranking = twin.recommend(
                actions,
                None,
                samples,
                settings.seed,
                protocol=protocol,
                goals=settings.goals,
                progress=part(progress, 0.2, 0.65),
            )
        belief = twin.dose_belief
        simulated = isinstance(belief, RecalibratedBelief) and belief.is_simulated
        notes += belief_notes(belief)
        deciding = Deciding(ranking, simulated)
        with watch.stage("tables and volumes"):
            progress(0.65, "tables and volumes")
            shown = deciding.shown.outcome.prediction
            findings = Findings(
                shown, more_notes=(*notes, *remarks(twin)), deciding=deciding, chosen_goals=settings.goals
            )
            _write_tables(folder, findings, deciding)
            if not shown.mean.grid.same_as(patient.ct.grid):
                aside = folder / f"{_dose_file(ranking).removesuffix('.nrrd')}_on_ct.nrrd"
                write_nrrd(on_ct(shown.mean, patient.ct.grid), str(aside), predicted=True, simulated=simulated)
            if isinstance(belief, RecalibratedBelief):
                save_belief(belief, folder / BELIEF_FILE)
        device = twin.dose_model.surrogate.device
        provenance, problems = write_views(folder, findings, device, watch, part(progress, 0.7, 0.98))
        if origin is not None and record is not None:
            if ranking.recommended is None:
                problems = (*problems, NO_RECORD)
            else:
                place = opened.enter_context(whole_folder(record))
                write_dose_record(
                    place, shown, origin, ranking.recommended.action.name, label="recommended", simulated=simulated
                )
                write_structures_record(place, shown.patient, origin)
        summary = _summary(deciding) | {"dose": findings.dose_words}
        summary["warnings"] = list(dict.fromkeys([*findings.notes, *ranking.notes, *problems]))
        summary["provenance"] = provenance.as_dict() | {"stage_seconds": watch.rounded()}
        summary["ledger"] = {"entries": len(ledger.entries), "sha256": ledger.head_sha256}
        summary["files"] = sorted([*(path.name for path in folder.iterdir()), "summary.json"])
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        progress(1.0, "done")
    return summary


def _samples(asked: int | None, protocol: DecisionProtocol) -> tuple[int, list[str]]:
    """How many to draw, and what is said where they are more than usual. Raises where too few were asked for."""
    if asked is not None:
        require_samples(asked, protocol)
        return asked, []
    fewest = required_samples(protocol)
    if fewest <= FEWEST_SAMPLES:
        return FEWEST_SAMPLES, []
    said = f"{fewest} samples are drawn rather than {FEWEST_SAMPLES}: no fewer can certify the risk allowed"
    return fewest, [f"{said}, {percent(protocol.risk)} or less."]


def _actions(
    asked: Sequence[Action] | Path | None, patient: Patient, source: str | Path, choice: DicomChoice | None
) -> Sequence[Action] | None:
    def belongs(read: ReadDose, where: str) -> tuple[str, ...]:
        if read.identity is None:
            return ()
        if source == SAMPLE:
            raise PatientDataError("The dose is of a person, and the sample patient is none.", where=where)
        return require_belongs(read, belonging_of(Path(source), choice), (choice or DicomChoice()).overrides, where)

    return read_actions(asked, patient, belongs) if isinstance(asked, Path) else asked


def _absorb(twin: Twin, settings: RecommendSettings, patient: Patient, progress: Progress) -> list[str]:
    """Take the measurements in; what must be said of outliers."""
    assert settings.measurements is not None
    update = twin.observe(
        read_measurements(settings.measurements, patient),
        None if settings.method is None else calibrator_named(settings.method),
        absorb_outliers=settings.absorb_outliers,
        progress=progress,
    )
    return [f"Outlier. {judgement.words}." for judgement in update.judgements if judgement.is_outlier]


def _write_tables(folder: Path, findings: Findings, deciding: Deciding) -> None:
    ranking, simulated = deciding.ranking, deciding.simulated
    write_tables(folder, findings, _dose_file(ranking))
    if deciding.before is not None:
        keep = deciding.before.mean
        write_nrrd(keep, str(folder / KEPT_DOSE), predicted=True, simulated=simulated)
        change = findings.prediction.mean.minus(keep, Quantity.DOSE_DIFFERENCE_GY)
        write_nrrd(change, str(folder / "dose_change.nrrd"), simulated=simulated)
    with whole_file(folder / "ranking.json") as aside:
        aside.write_text(json.dumps(deciding.as_dict(), indent=1, allow_nan=False) + "\n")
    write_rows(folder / "ranking.csv", RankedRow, deciding.rows)
    utility_figure(ranking).savefig(folder / "utility.png", dpi=CHART_DPI, facecolor=PAPER)


def _dose_file(ranking: Ranking) -> str:
    return KEPT_DOSE if ranking.abstains else RECOMMENDED_DOSE


def _summary(deciding: Deciding) -> dict[str, Any]:
    ranking = deciding.ranking
    told = deciding.as_dict()
    kept = ("patient", "simulated", "recommended", "words", "obstacles", "samples", "seed", "protocol", "refused")
    rows = [
        {key: value for key, value in action.items() if key not in ("goals", "changes")} for action in told["actions"]
    ]
    bands = ranking.prediction.band_words()
    return {
        **{key: told[key] for key in kept},
        "notice": f"Research use only. Bands: {bands}.",
        "abstains": ranking.abstains,
        "actions": rows,
    }
