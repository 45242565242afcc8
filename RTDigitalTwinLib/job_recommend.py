"""What the job of ranking does: candidate actions from what was chosen before anything was computed, judged, shown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.decision.action_file import customary_actions, read_actions
from RTDigitalTwinLib.decision.actions import Action, Keep, Scale
from RTDigitalTwinLib.decision.chance import percent
from RTDigitalTwinLib.decision.protocol import DecisionProtocol, load_decision
from RTDigitalTwinLib.decision.ranking import required_samples
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.job_twins import TwinOf
from RTDigitalTwinLib.jobs import OUTCOME_FILE, Recommend
from RTDigitalTwinLib.outcome import save_outcome
from RTDigitalTwinLib.progress import Progress, part
from RTDigitalTwinLib.report.deciding import Deciding
from RTDigitalTwinLib.report.observing import belief_notes
from RTDigitalTwinLib.report.outcomes import outcome_of
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.run import remarks
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.versions import described_device

ADDED_FILE = "added-actions.toml"


def recommend(job: Recommend, folder: Path, twin_of: TwinOf, notes: tuple[str, ...], progress: Progress) -> None:
    """Do the job; the answer lies in the folder. Raises as ``Twin.recommend`` does."""
    twin = twin_of(progress)
    protocol = _protocol(job)
    samples = max(job.samples, required_samples(protocol), 2)
    if samples > job.samples:
        risk = percent(protocol.risk)
        notes += (
            f"{samples} samples were drawn rather than {job.samples}: no fewer can certify a risk of {risk} or less.",
        )
    prediction = twin.predict(samples, job.seed, part(progress, 0.05, 0.5))
    candidates = candidates_of(job, prediction, folder)
    if job.shown:
        candidates = tuple(action for action in candidates if action.name == job.shown)
    ranking = twin.recommend(candidates, None, samples, job.seed, protocol=protocol, progress=part(progress, 0.5, 0.85))
    belief = twin.dose_belief
    deciding = Deciding(ranking, isinstance(belief, RecalibratedBelief) and belief.is_simulated, job.shown)
    shown = deciding.shown.outcome
    more = (*belief_notes(belief), *remarks(twin), *notes, *shown.notes)
    findings = Findings(shown.prediction, more_notes=more, deciding=deciding)
    used = described_device(twin.dose_model.surrogate.device)
    save_outcome(outcome_of(findings, part(progress, 0.85, 1.0), device=used), folder / OUTCOME_FILE)
    progress(1.0, "done")


def candidates_of(job: Recommend, prediction: DoseEnsemble, folder: Path) -> tuple[Action, ...]:
    """What is weighed, each once; keeping the plan goes first. Raises ProtocolError as ``read_actions`` does."""
    if job.actions:
        return read_actions(Path(job.actions), prediction.patient)
    customary = customary_actions(prediction.patient, prediction)
    chosen: list[Action] = [action for action in customary if isinstance(action, Keep) or _key(action) in job.customary]
    entries = [("spare", of) for of in job.spare] + [("boost", of) for of in job.boost]
    if entries:
        file = folder / ADDED_FILE
        told = (f'[[action]]\nkind = "{kind}"\nstructure = {json.dumps(of)}\n' for kind, of in dict.fromkeys(entries))
        file.write_text("\n".join(told), encoding="utf-8")
        chosen += read_actions(file, prediction.patient)
    return _each_once(chosen)


def _each_once(actions: Sequence[Action]) -> tuple[Action, ...]:
    """An action that is customary and was added goes once: one name is one action."""
    return tuple({action.name: action for action in actions}.values())


def _key(action: Action) -> str:
    return f"scale {action.factor:g}" if isinstance(action, Scale) else action.kind.value


def _protocol(job: Recommend) -> DecisionProtocol:
    protocol = load_decision(Path(job.protocol) if job.protocol else None).with_risk(job.risk)
    weight = job.uncertainty_weight
    if weight is None:
        return protocol
    if not (math.isfinite(weight) and weight >= 0):
        raise RTDigitalTwinError(f"{weight:g} is no weight of uncertainty.", remedy="Give 0 or more.")
    return replace(protocol, uncertainty_weight=weight)
