"""Doing again what a ledger tells, and comparing to the last bit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from RTDigitalTwinLib.calibration.belief import Belief, RecalibratedBelief, load_belief, prior_of, save_belief
from RTDigitalTwinLib.calibration.settings import calibrator_of
from RTDigitalTwinLib.calibration.simulated_fractions import SimulatedFractions
from RTDigitalTwinLib.decision.action_record import from_record
from RTDigitalTwinLib.decision.fluence import FluenceSettings
from RTDigitalTwinLib.decision.optimisation import optimised
from RTDigitalTwinLib.decision.protocol import decision_of
from RTDigitalTwinLib.errors import LedgerError, RTDigitalTwinError
from RTDigitalTwinLib.ledger import Entry, read_ledger, stored_array, verify
from RTDigitalTwinLib.ledger_entries import (
    ADOPTED,
    MEASURED,
    MODULATED,
    OBSERVED,
    OPENED,
    OPTIMISED,
    PREDICTED,
    RECOMMENDED,
    UNDONE,
    about_twin,
    belief_sha256,
    observations_from,
    observed,
    optimisation_entry,
    predicted,
    recommended,
    require_same_patient,
)
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.fingerprint import array_sha256
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.run import read_source
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.stopwatch import Stopwatch
from RTDigitalTwinLib.twin import Twin
from RTDigitalTwinLib.versions import machine
from RTDigitalTwinLib.words import counted

MADE_BY = (
    "weights_sha256",
    "bands_sha256",
    "software_version",
    "code_sha256",
    "library_versions",
    "device",
    "machine",
)


@dataclass(frozen=True)
class Repeated:
    """An entry done again.

    Attributes
    ----------
    equal : to the last bit; None where it could not be done again.
    words : what differs and by how much, or why it could not be done.
    """

    number: int
    kind: str
    equal: bool | None
    words: str = ""


@dataclass(frozen=True)
class Replay:
    """A ledger done again.

    Attributes
    ----------
    repeated : the entries that have a result.
    differences : of weights, versions and machine, between then and now.
    notes : what else the user must see.
    """

    patient: str
    repeated: tuple[Repeated, ...]
    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether there was something to do again, and all of it came out the same."""
        return bool(self.repeated) and all(row.equal for row in self.repeated)


def replay(
    path: Path,
    source: str | Path,
    *,
    weights: Path | None = None,
    device: str = "auto",
    belief: Path | None = None,
    choice: DicomChoice | None = None,
    progress: Progress = silent,
) -> Replay:
    """Do again what a ledger tells of a patient, with as many threads as then, and compare.

    ``belief`` is the file of a belief that the ledger began from, if it did. Nothing is written.
    Raises LedgerError where the ledger is broken, tells of another patient or other data, or began from a belief that
    is not given; PatientDataError and ModelError as a prediction does.
    """
    entries = read_ledger(path)
    opened = next((entry for entry in entries if entry.kind == OPENED), None)
    if opened is None:
        raise LedgerError("The ledger tells of no patient yet.", where=path.name)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(int(opened.content["machine"]["threads"]))
        progress(0.0, "reading the patient")
        patient = read_source(source, choice, Stopwatch(), part(progress, 0.0, 0.1))
        again = _Again(path, patient, weights, device, belief)
        for k, entry in enumerate(entries):
            again.take(entry, part(progress, 0.1 + 0.9 * k / len(entries), 0.1 + 0.9 * (k + 1) / len(entries)))
    finally:
        torch.set_num_threads(threads)
    progress(1.0, "done")
    return Replay(
        patient.pseudonym,
        tuple(again.repeated),
        tuple(dict.fromkeys(again.differences)),
        tuple(str(problem) for problem in verify(path)),
    )


@dataclass(eq=False)
class _Again:
    """What was done again so far."""

    path: Path
    patient: Patient
    weights: Path | None
    device: str
    belief_file: Path | None
    repeated: list[Repeated] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    beliefs: dict[str, Belief] = field(default_factory=dict)  # as they are now, by the hash they had then
    prediction: DoseEnsemble | None = None
    lost: int = 0  # the entry that could not be done again

    def take(self, entry: Entry, progress: Progress) -> None:
        steps: dict[str, Callable[[Mapping[str, Any], Progress], Repeated | None]] = {
            OPENED: self._open,
            ADOPTED: self._adopt,
            UNDONE: self._undo,
            MEASURED: self._measure,
            OBSERVED: self._observe,
            PREDICTED: self._predict,
            OPTIMISED: self._optimise,
            MODULATED: self._modulate,
            RECOMMENDED: self._recommend,
        }
        if entry.kind not in steps:
            return
        self.number = entry.number
        if self.lost:
            if entry.kind in (OBSERVED, PREDICTED, OPTIMISED, MODULATED, RECOMMENDED):
                self.repeated.append(Repeated(entry.number, entry.kind, None, f"it rests on entry {self.lost}"))
            return
        progress(0.0, f"entry {entry.number}: {entry.kind}")
        try:
            done = steps[entry.kind](entry.content, progress)
        except LedgerError:
            raise
        except RTDigitalTwinError as error:
            done = Repeated(entry.number, entry.kind, None, str(error))
            self.lost = entry.number
        if done is not None:
            self.repeated.append(done)

    def _open(self, then: Mapping[str, Any], progress: Progress) -> None:
        torch.set_num_threads(int(then["machine"]["threads"]))
        precision = then.get("precision", "single")  # earlier versions had no other
        self.twin = Twin(self.patient, self.weights, self.device, precision=precision)
        now = about_twin(self.patient, self.twin.dose_model) | {"machine": machine()}
        require_same_patient(then, now, self.path.name)
        for what in MADE_BY:
            self.differences += _different(what.replace("_", " "), then[what], now[what])

    def _adopt(self, then: Mapping[str, Any], progress: Progress) -> None:
        digest = then["belief_sha256"]
        prior = prior_of(self.twin.dose_belief)
        if digest in self.beliefs:
            known = self.beliefs[digest]
            assert isinstance(known, RecalibratedBelief)
            with tempfile.TemporaryDirectory() as folder:  # it went through a file then, so it does now
                save_belief(known, Path(folder) / "belief.npz")
                self.twin.adopt(load_belief(Path(folder) / "belief.npz", prior))
            return
        if self.belief_file is None:
            raise LedgerError(
                f"Entry {self.number} goes on from a belief that this ledger does not tell the making of.",
                where=self.path.name,
                remedy="Give the belief's file with --belief.",
            )
        given = load_belief(self.belief_file, prior)
        if belief_sha256(given) != digest:
            raise LedgerError(
                f"It is not the belief that entry {self.number} of the ledger goes on from.",
                where=self.belief_file.name,
            )
        self.twin.adopt(given)

    def _undo(self, then: Mapping[str, Any], progress: Progress) -> None:
        self.twin.undo()

    def _measure(self, then: Mapping[str, Any], progress: Progress) -> Repeated | None:
        if then["simulated"] is None:
            return None  # measured; there is nothing to do again
        simulation = SimulatedFractions.from_dict(then["simulated"])
        made = simulation.of(prior_of(self.twin.dose_belief).patient, then["fraction"])
        hashes = [array_sha256(observation.dose.values) for observation in made]
        wanted = [then["arrays"][f"dose {k}"] for k in range(len(made))]
        if hashes == wanted:
            return Repeated(self.number, MEASURED, True)
        off = max(
            float(np.nanmax(np.abs(o.dose.values - stored_array(self.path, digest))))
            for o, digest in zip(made, wanted, strict=True)
        )
        return Repeated(self.number, MEASURED, False, f"simulated doses differ by up to {off:.3g} Gy")

    def _observe(self, then: Mapping[str, Any], progress: Progress) -> Repeated:
        self.beliefs.setdefault(then["before_sha256"], self.twin.dose_belief)
        calibrator = calibrator_of(then["calibrator"])
        observations = observations_from(then, self.path, self.patient)
        update = self.twin.observe(
            observations,
            calibrator,
            absorb_outliers=then["absorb_outliers"],
            allow_overlap=True,  # it was allowed then
            progress=progress,
        )
        self.beliefs[then["after_sha256"]] = update.after
        now, _ = observed(update, calibrator, then["absorb_outliers"])
        differing = []
        if now["after_sha256"] != then["after_sha256"]:
            differing.append("the belief differs")
        if now["judgements"] != then["judgements"]:
            pairs = list(zip(now["judgements"], then["judgements"], strict=True))
            off = max(abs(a["expected"] - b["expected"]) for a, b in pairs)
            differing.append(f"expected values differ by up to {off:.3g}")
            if taken := sum(a["absorbed"] != b["absorbed"] for a, b in pairs):
                differing.append(
                    f"{counted(taken, 'observation is', 'observations are')} absorbed and not before, or the reverse"
                )
        return Repeated(self.number, OBSERVED, not differing, "; ".join(differing))

    def _predict(self, then: Mapping[str, Any], progress: Progress) -> Repeated:
        self.prediction = self.twin.predict(then["samples"], then["seed"], progress)
        now, arrays = predicted(self.prediction, self.twin.dose_belief)
        now["arrays"] = {name: array_sha256(values) for name, values in arrays.items()}
        same = ("samples_sha256", "deterministic_sha256", "metrics", "arrays")
        if all(now[name] == then[name] for name in same):
            return Repeated(self.number, PREDICTED, True)
        differing = []
        before = stored_array(self.path, then["arrays"]["mean_gy"])
        if before.shape == arrays["mean_gy"].shape:
            off = np.abs(arrays["mean_gy"] - before)
            differing.append(f"mean dose differs by up to {off.max():.3g} Gy, {off.mean():.3g} Gy on average")
        if now["samples_sha256"] != then["samples_sha256"]:
            differing.append("samples differ")
        metrics = [
            (abs(value - then["metrics"][name][metric]), f"{name} {metric}")
            for name, row in now["metrics"].items()
            for metric, value in row.items()
        ]
        size, which = max(metrics)
        if size > 0:
            differing.append(f"metrics differ by up to {size:.3g} Gy ({which})")
        return Repeated(self.number, PREDICTED, False, "; ".join(differing))

    def _optimise(self, then: Mapping[str, Any], progress: Progress) -> Repeated:
        if self.prediction is None:
            return Repeated(self.number, OPTIMISED, None, "there is no prediction before it")
        asked = then["settings"]
        known = {name: asked[name] for name in (field.name for field in fields(FluenceSettings)) if name in asked}
        now, arrays = optimisation_entry(optimised(self.prediction, FluenceSettings(**known), progress))
        if array_sha256(arrays["found"]) == then["arrays"]["found"] and now["objective"] == then["objective"]:
            return Repeated(self.number, OPTIMISED, True)
        before, after = min(then["objective"]), min(now["objective"])
        return Repeated(self.number, OPTIMISED, False, f"the objective reaches {after:.6g}, not {before:.6g}")

    def _modulate(self, then: Mapping[str, Any], progress: Progress) -> Repeated:
        return Repeated(self.number, MODULATED, None, "this version optimises over the fluence of beams")

    def _recommend(self, then: Mapping[str, Any], progress: Progress) -> Repeated:
        if untold := [told["name"] for told in then["actions"] if told["made"] is None]:
            words = f"the ledger cannot tell all of: {', '.join(untold)}"
            return Repeated(self.number, RECOMMENDED, None, words)
        actions = [from_record(told["made"]) for told in then["actions"]]
        protocol = decision_of(then["protocol"], self.path.name)
        samples, seed = then["samples"], then["seed"]
        ranking = self.twin.recommend(actions, then["risk"], samples, seed, protocol=protocol, progress=progress)
        now, arrays = recommended(ranking, actions, self.twin.dose_belief)
        same = array_sha256(arrays["benefit"]) == then["arrays"]["benefit"]
        if same and all(now[name] == then[name] for name in ("ranking", "refused", "recommended")):
            return Repeated(self.number, RECOMMENDED, True)
        differing = []
        if now["recommended"] != then["recommended"]:
            differing.append(
                f"{now['recommended'] or 'nothing'} is recommended, not {then['recommended'] or 'nothing'}"
            )
        before, order = ({row["action"]: row["utility"] for row in told["ranking"]} for told in (then, now))
        if [*before] != [*order]:
            differing.append("the actions are in another order")
        off = [abs(row["utility"] - before[row["action"]]) for row in now["ranking"] if row["action"] in before]
        differing.append(f"utilities differ by up to {max(off, default=0.0):.3g}")
        return Repeated(self.number, RECOMMENDED, False, "; ".join(differing))


def _different(what: str, then: Any, now: Any) -> list[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*then, *now])
        return [line for name in names for line in _different(f"{what}, {name}", then.get(name), now.get(name))]
    short = [text[:12] if len(text) == 64 else text for text in (str(then), str(now))]
    return [] if then == now else [f"{what}: {short[0]} then, {short[1]} now"]
