"""The loop of a twin over the first fractions: observe, recalibrate, predict, optimise; then again.

The work is fixed, so that times can be compared: a fraction has one set of observations, at least 20 steps of the
decoder, whose rest the Gaussian process absorbs, a prediction of 32 samples and an optimisation of 30 steps. Each stage
is told to the ledger when it is done; a loop that was interrupted goes on behind the last of them, in the same folder
with the same settings.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief, load_belief, prior_of, save_belief
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.decoder_rest import DecoderWithRest
from RTDigitalTwinLib.calibration.measurements import read_measurements
from RTDigitalTwinLib.calibration.settings import settings_of
from RTDigitalTwinLib.calibration.simulated_fractions import SimulatedFractions
from RTDigitalTwinLib.decision.fluence import FluenceSettings
from RTDigitalTwinLib.decision.optimisation import Optimised, optimised
from RTDigitalTwinLib.dosimetry.delivery import delivered_dose
from RTDigitalTwinLib.errors import LedgerError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.files import drop_aside, put_back, set_aside, sha256_of, whole_file, whole_folder
from RTDigitalTwinLib.ledger import LEDGER_FILE, Entry, Ledger, canonical
from RTDigitalTwinLib.ledger_entries import (
    MEASURED,
    OBSERVED,
    OPTIMISED,
    PREDICTED,
    Arrays,
    belief_sha256,
    measured,
    metrics_of_dose,
    observed,
    open_for,
    optimisation_entry,
    predicted,
)
from RTDigitalTwinLib.loop_summary import (
    DELIVERED,
    ERROR,
    STAGES,
    behind_words,
    fraction_rows,
    left_out_notes,
    loop_summary,
    observing_in_ledger,
    told,
)
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.dicom_writing import Origin
from RTDigitalTwinLib.patient.fingerprint import array_sha256
from RTDigitalTwinLib.patient.observation import Observation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume, write_nrrd
from RTDigitalTwinLib.progress import Progress, Tell, part, silent, untold
from RTDigitalTwinLib.record import record_origin, write_dose_record, write_structures_record
from RTDigitalTwinLib.report.provenance import collect_provenance
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.run import (
    RunSettings,
    check_places,
    has_entries,
    is_earlier_result,
    read_source,
    remarks,
    require_place,
    write_tables,
    write_views,
)
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.stopwatch import Stopwatch
from RTDigitalTwinLib.twin import Twin
from RTDigitalTwinLib.words import counted

LOOP = "loop"
FEWEST_SAMPLES = 2
SUMMARY = "summary.json"


@dataclass(frozen=True)
class LoopSettings(RunSettings):
    """What to loop over, and how.

    Attributes
    ----------
    fractions : how many.
    measurements : file with those of each fraction; None for a simulated delivery.
    simulation : of the delivery, where there is no file.
    calibrator, optimisation : of each fraction.
    absorb_outliers : take in what the belief cannot explain.
    views : whether report, scene and pictures are made at the end.
    """

    fractions: int = 3
    measurements: Path | None = None
    simulation: SimulatedFractions = field(default_factory=SimulatedFractions)
    calibrator: DecoderMap = field(default_factory=DecoderWithRest)
    optimisation: FluenceSettings = field(default_factory=FluenceSettings)
    absorb_outliers: bool = False
    views: bool = True


def loop_patient(
    source: str | Path,
    out: Path,
    settings: LoopSettings | None = None,
    *,
    choice: DicomChoice | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    tell: Tell = untold,
) -> dict[str, Any]:
    """Go through the loop of one patient, or go on with one that was interrupted; returns what ``summary.json`` holds.

    The folder ``out`` holds the ledger and the beliefs from the first fraction on; the summary, doses, tables, report,
    scene and pictures of what the fractions changed at the end.
    Results to be overwritten are kept beside it, hidden, until then; they are put back where the loop ends before its
    first prediction. ``record`` is a folder for the doses at the end as RTDOSE with the identity of a DICOM source, for
    its record; it appears with them, or not at all, and may not lie among the other results. ``tell`` gets where an
    interrupted loop goes on.
    Raises PatientDataError, ModelError, OutputError; LedgerError where ``out`` holds an interrupted loop of another
    patient, other weights or other settings.
    """
    settings = settings or LoopSettings()
    if settings.samples < FEWEST_SAMPLES or settings.fractions < 1:
        raise RTDigitalTwinError(f"A loop needs a fraction and {FEWEST_SAMPLES} samples.", remedy="Ask for more.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        put_back(out)  # a crash before the ledger was begun
    check_places(source, out, overwrite)
    require_place(out, LOOP, overwrite)
    origin = None if record is None else record_origin(source, out, record, choice)
    loop = _Loop(out, settings, tell)
    loop.read(source, choice, part(progress, 0.0, 0.1))
    replaces = overwrite and is_earlier_result(out)
    if replaces:
        set_aside(out)
    try:
        with ExitStack() as folders, Ledger(out / LEDGER_FILE) as ledger:
            record_folder = None if record is None else folders.enter_context(whole_folder(record))
            loop.begin(ledger, part(progress, 0.1, 0.2))
            for fraction in range(1, settings.fractions + 1):
                first, last = ((fraction - k) / settings.fractions for k in (1, 0))
                loop.go_through(fraction, part(progress, 0.2 + 0.7 * first, 0.2 + 0.7 * last))
            if record_folder is not None and origin is not None:
                loop.write_record(record_folder, origin)
            progress(0.9, "writing the results")
            summary = loop.finish(part(progress, 0.9, 1.0))
    except BaseException:
        if replaces and not has_entries(out, STAGES):
            put_back(out)
        raise
    drop_aside(out)
    progress(1.0, "done")
    return summary


@dataclass(eq=False)
class _Loop:
    """A loop at work. What is in the ledger already is not told twice, but must come out the same."""

    out: Path
    settings: LoopSettings
    tell: Tell = untold
    before: DoseEnsemble | None = None
    prediction: DoseEnsemble | None = None
    seen: list[tuple[Observation, ...]] = field(default_factory=list)
    truth: Volume | None = None
    optimised: Optimised = field(init=False)

    def read(self, source: str | Path, choice: DicomChoice | None, progress: Progress) -> None:
        """All that can fail before anything is written."""
        watch = Stopwatch()
        with watch.stage("patient"):
            self.patient = read_source(source, choice, Stopwatch(), part(progress, 0.0, 0.5))
        with watch.stage("network"):
            progress(0.5, "loading the network")
            settings = self.settings
            self.twin = Twin(self.patient, settings.weights, settings.device, precision=settings.precision)
            self.prior = prior_of(self.twin.dose_belief)
            surrogate = self.prior.surrogate
        if self.prior.prepared.is_extrapolated:
            raise RTDigitalTwinError(
                "The decoder cannot be recalibrated under a prescription that the network does not know.",
                where=self.patient.pseudonym,
                remedy="Use rt-digital-twin observe, which has other methods.",
            )
        with watch.stage("features"):
            progress(0.6, "features")
            surrogate.features(self.prior.prepared.seen)
        with watch.stage("encoding"):
            surrogate.encoded(self.prior.prepared.seen)
        self.seconds = watch.rounded()
        self.observations = self._from_file()
        if self.simulated:
            self.truth = delivered_dose(self.shown, self.settings.simulation.change)

    def begin(self, ledger: Ledger, progress: Progress) -> None:
        """Tell the ledger who begins or goes on. Raises LedgerError where it is of another loop."""
        self.ledger = ledger
        about = self._about()
        before = next((e.content for e in self.ledger.entries if e.kind == LOOP), None)
        if before is not None:
            before = {"precision": "single", **before}  # which loops begun before it could be chosen have not told
        if before is not None and canonical(before) != canonical(about):
            other = sorted(k for k in about if canonical(about[k]) != canonical(before.get(k)))
            raise LedgerError(
                f"The folder holds an interrupted loop of other settings: {', '.join(other)}.",
                where=str(self.out.name),
                remedy="Go on with those settings, or choose another folder.",
            )
        open_for(self.ledger, self.patient, self.twin.dose_model, {"seconds": self.seconds})
        if before is None:
            self.ledger.append(LOOP, about)
        elif words := behind_words(self.ledger.entries):
            self.tell(words)
        self._predict(0, progress)
        self.before = self.prediction

    @property
    def simulated(self) -> bool:
        return self.settings.measurements is None

    @property
    def shown(self) -> Patient:
        return self.prior.patient

    def _about(self) -> dict[str, Any]:
        wanted = self.settings
        return {
            "fractions": wanted.fractions,
            "samples": wanted.samples,
            "seed": wanted.seed,
            "precision": wanted.precision,
            "calibrator": settings_of(wanted.calibrator),
            "optimisation": asdict(wanted.optimisation),
            "absorb_outliers": wanted.absorb_outliers,
            "simulated": wanted.simulation.as_dict() if self.simulated else None,
            "measurements_sha256": "" if wanted.measurements is None else sha256_of(wanted.measurements),
        }

    def _from_file(self) -> list[tuple[Observation, ...]]:
        """The observations of each fraction in the file; the first fractions it has, in their order."""
        if self.settings.measurements is None:
            return []
        found: dict[int, list[Observation]] = {}
        for observation in read_measurements(self.settings.measurements, self.patient):
            found.setdefault(observation.moment.fraction, []).append(observation)
        if len(found) < self.settings.fractions:
            raise PatientDataError(
                f"The file has measurements of {counted(len(found), 'fraction')}, not {self.settings.fractions}.",
                where=self.settings.measurements.name,
                remedy="Ask for fewer fractions, or measure more.",
            )
        return [tuple(of_one) for of_one in list(found.values())[: self.settings.fractions]]

    def go_through(self, fraction: int, progress: Progress) -> None:
        progress(0.0, f"fraction {fraction}: observing")
        observations = self._observe(fraction)
        self._recalibrate(fraction, observations, part(progress, 0.05, 0.6))
        is_last = fraction == self.settings.fractions
        if not is_last and self._told(fraction, OPTIMISED):
            progress(1.0, f"fraction {fraction}: done before")
        else:
            self._predict(fraction, part(progress, 0.6, 0.9))
            self._optimise(fraction, part(progress, 0.9, 1.0))

    def _observe(self, fraction: int) -> tuple[Observation, ...]:
        start = time.perf_counter()
        simulation = None
        if self.simulated:
            simulation = self.settings.simulation.as_dict()
            observations: tuple[Observation, ...] = self.settings.simulation.of(self.shown, fraction)
        else:
            observations = self.observations[fraction - 1]
        content, arrays = measured(observations, simulation)
        self._tell(fraction, MEASURED, content, arrays, start, ("observations",))
        self.seen.append(observations)
        return observations

    def _recalibrate(self, fraction: int, observations: tuple[Observation, ...], progress: Progress) -> None:
        path = self.out / f"fraction_{fraction}.belief.npz"
        before = self._told(fraction, OBSERVED)
        if before is not None and before.content["after_sha256"] == belief_sha256(self.twin.dose_belief):
            return  # nothing was absorbed
        if before is not None and path.is_file():
            belief = load_belief(path, self.prior)
            if belief_sha256(belief) != before.content["after_sha256"]:
                raise LedgerError(
                    f"The belief of fraction {fraction} is not the one that the ledger tells of.",
                    where=path.name,
                    remedy="Take the file away: it is then made again.",
                )
            self.twin.adopt(belief)
            progress(1.0, f"fraction {fraction}: recalibrated before")
            return
        start = time.perf_counter()
        calibrator = self.settings.calibrator
        update = self.twin.observe(
            observations, calibrator, absorb_outliers=self.settings.absorb_outliers, progress=progress
        )
        content, arrays = observed(update, calibrator, self.settings.absorb_outliers)
        if update.absorbed:
            fit = calibrator.fits[-1]
            content["decoder"] = {"steps": fit.steps, "reason": fit.reason, "objective": list(fit.objective)}
        if isinstance(update.after, RecalibratedBelief):
            save_belief(update.after, path)
        self._tell(fraction, OBSERVED, content, arrays, start, ("before_sha256", "after_sha256"))

    def _predict(self, fraction: int, progress: Progress) -> None:
        start = time.perf_counter()
        self.prediction = self.twin.predict(self.settings.samples, self.settings.seed, progress)
        content, arrays = predicted(self.prediction, self.twin.dose_belief)
        if self.truth is not None:
            inside = self.prediction.crop.mask_indices
            off = arrays["mean_gy"] - self.truth.values.reshape(-1)[inside]
            content[ERROR] = float(np.abs(off).mean())
            if not fraction:
                content[DELIVERED] = metrics_of_dose(self.truth, self.shown)
        self._tell(fraction, PREDICTED, content, arrays, start, ("samples_sha256", "belief_sha256", "metrics"))

    def _optimise(self, fraction: int, progress: Progress) -> None:
        assert self.prediction is not None
        start = time.perf_counter()
        self.optimised = optimised(self.prediction, self.settings.optimisation, progress)
        self._tell(fraction, OPTIMISED, *optimisation_entry(self.optimised), start, ("objective",))

    def _told(self, fraction: int, kind: str) -> Entry | None:
        return told(self.ledger.entries, fraction, kind)

    def _tell(
        self, fraction: int, kind: str, content: dict[str, Any], arrays: Arrays, start: float, same: tuple[str, ...]
    ) -> None:
        """Tell the ledger of a stage; where it knows it already, that it came out the same."""
        before = self._told(fraction, kind)
        if before is None:
            seconds = round(time.perf_counter() - start, 3)
            self.ledger.append(kind, content | {"fraction": fraction, "seconds": seconds}, arrays)
            return
        now = {name: content[name] for name in same} | {"arrays": {k: array_sha256(v) for k, v in arrays.items()}}
        then = {name: before.content[name] for name in same} | {"arrays": before.content.get("arrays", {})}
        if canonical(now) != canonical(then):
            raise LedgerError(
                f"Going on, the {STAGES[kind]} stage of fraction {fraction} gives other numbers than before.",
                where=f"{self.ledger.path.name}, entry {before.number}",
                remedy="Go on with the same software, machine and number of threads, or begin anew.",
            )

    def write_record(self, folder: Path, origin: Origin) -> None:
        """The doses at the end with their spreads, and the structures as used."""
        for name, dose in self._doses.items():
            simulated = self._is_simulated
            write_dose_record(folder, dose, origin, f"Loop, {name}", label=name, simulated=simulated)
        write_structures_record(folder, self.shown, origin)

    @property
    def _doses(self) -> dict[str, DoseEnsemble]:
        assert self.prediction is not None
        return {"recalibrated": self.prediction, "optimised": self.optimised.applied(self.prediction)}

    @property
    def _is_simulated(self) -> bool:
        return self.simulated or any(o.simulated for of_one in self.seen for o in of_one)

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return fraction_rows(self.ledger.entries, self.settings.fractions)

    def finish(self, progress: Progress) -> dict[str, Any]:
        """Write the summary, the doses and what shows them before and after."""
        assert self.prediction is not None and self.before is not None
        watch = Stopwatch()
        rows = self._rows
        change = self.settings.simulation.change.words if self.simulated else ""
        notes = [*remarks(self.twin), self.optimised.notice, *left_out_notes(rows)]
        if self.simulated:
            notes.insert(0, f"Deliveries and their measurements are {change}; they stand in for real ones.")
        observing = observing_in_ledger(
            self.ledger.entries, self.seen, self.before, self.prediction, self.settings.calibrator.name
        )
        findings = Findings(self.prediction, more_notes=tuple(dict.fromkeys(notes)), observing=observing)
        with watch.stage("tables and volumes"):
            write_tables(self.out, findings)
            moved = self.prediction.mean.minus(self.before.mean, Quantity.DOSE_DIFFERENCE_GY)
            write_nrrd(moved, str(self.out / "dose_change.nrrd"), simulated=self._is_simulated)
            optimum = self._doses["optimised"].mean
            write_nrrd(optimum, str(self.out / "dose_optimised.nrrd"), predicted=True, simulated=self._is_simulated)
        problems: tuple[str, ...] = ()
        device = self.prior.surrogate.device
        if self.settings.views:
            _, problems = write_views(self.out, findings, device, watch, part(progress, 0.2, 1.0))
        summary: dict[str, Any] = {
            "patient": self.patient.pseudonym,
            "notice": f"Research use only. {self.optimised.notice}",
            "simulated": self._is_simulated,
            "simulation": change,
            **loop_summary(self.ledger, rows),
            "warnings": list(dict.fromkeys([*notes, *findings.notes, *problems])),
        }
        provenance = collect_provenance(self.prediction, device, summary["seconds"] | watch.rounded())
        summary["provenance"] = provenance.as_dict()
        summary["files"] = sorted({*(path.name for path in self.out.iterdir()), SUMMARY})
        with whole_file(self.out / SUMMARY) as aside:
            aside.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        return summary
