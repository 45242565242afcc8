"""What a twin tells its ledger: the content of its entries, and observations back from them.

Free text of a measurement's source may hold anything, so that only its hash is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.calibration.belief import Belief, RecalibratedBelief, prior_of
from RTDigitalTwinLib.calibration.calibrator import Calibrator
from RTDigitalTwinLib.calibration.measurements import as_row, from_row
from RTDigitalTwinLib.calibration.recalibration import Update
from RTDigitalTwinLib.calibration.settings import settings_of
from RTDigitalTwinLib.decision.action_record import action_row
from RTDigitalTwinLib.decision.actions import Action
from RTDigitalTwinLib.decision.optimisation import Optimised
from RTDigitalTwinLib.decision.ranking import Ranking
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import LedgerError
from RTDigitalTwinLib.ledger import Entry, Ledger, canonical, stored_array
from RTDigitalTwinLib.patient.fingerprint import array_sha256, fingerprint
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.observation import DoseObservation, Observation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseState
from RTDigitalTwinLib.versions import code_sha256, described_device, library_versions, machine

OPENED, ADOPTED, UNDONE, MEASURED = "opened", "adopted", "undone", "measured"
OBSERVED, PREDICTED, OPTIMISED, RECOMMENDED = "observed", "predicted", "optimised", "recommended"
MODULATED = "modulated"  # by earlier versions, in place of optimised
TARGET_METRICS, ORGAN_METRICS = ("mean", "D95"), ("mean", "D0.1cc")

Arrays = dict[str, NDArray]


def open_for(ledger: Ledger, patient: Patient, model: DoseState, more: Mapping[str, Any] | None = None) -> Entry:
    """Tell a ledger who writes to it: patient, weights, software, machine; and ``more``.

    Raises LedgerError where it is of another patient, other data of this one, or other weights.
    """
    about = about_twin(patient, model)
    require_same_twin(ledger.entries, about, ledger.path.name)
    return ledger.append(OPENED, about | {"machine": machine()} | dict(more or {}))


def about_twin(patient: Patient, model: DoseState) -> dict[str, Any]:
    """Of which patient and by what the entries that follow are made."""
    bands = None if model.calibration is None else model.calibration.for_patient(patient.pseudonym)
    return {
        "patient": patient.pseudonym,
        "patient_sha256": fingerprint(patient),
        "weights_sha256": model.surrogate.weights_sha256,
        "bands_sha256": "" if bands is None else sha256(canonical(bands.as_dict())).hexdigest(),
        "software_version": __version__,
        "code_sha256": code_sha256(),
        "library_versions": dict(library_versions()),
        "device": described_device(model.surrogate.device),
        "precision": model.surrogate.precision,
    }


def require_same_twin(entries: tuple[Entry, ...], about: Mapping[str, Any], where: str) -> None:
    """Raise LedgerError where entries tell of another patient, other data of this one, or other weights."""
    before = next((entry.content for entry in reversed(entries) if entry.kind == OPENED), None)
    if before is None:
        return
    require_same_patient(before, about, where)
    if before["weights_sha256"] != about["weights_sha256"]:
        raise LedgerError(
            f"The ledger was made with other weights: {before['weights_sha256'][:12]}..., not "
            f"{about['weights_sha256'][:12]}....",
            where=where,
            remedy="Pass the weights it was made with.",
        )


def require_same_patient(before: Mapping[str, Any], about: Mapping[str, Any], where: str) -> None:
    """Raise LedgerError where two ``about_twin`` tell of different patients, or of different data of one."""
    if before["patient"] != about["patient"]:
        raise LedgerError(f"The ledger is of patient {before['patient']}, not {about['patient']}.", where=where)
    there, here = before["patient_sha256"], about["patient_sha256"]
    if other := [part.replace("_", " ") for part in here if there.get(part) != here[part]]:
        raise LedgerError(
            f"The patient's data are not those the ledger tells of: {', '.join(other)}.",
            where=where,
            remedy="Give the data that it was begun with, read with the same choices.",
        )


def belief_sha256(belief: Belief) -> str:
    """Of all that a belief's predictions depend on: weights, bands, what was absorbed and what that changed."""
    prior = prior_of(belief)
    bands = None if prior.calibration is None else prior.calibration.as_dict()
    parts: dict[str, Any] = {"weights": prior.surrogate.weights_sha256, "bands": bands}
    if isinstance(belief, RecalibratedBelief):
        parts |= {
            "method": belief.method,
            "absorbed": [_without_source(observation) for observation in belief.absorbed],
            "shift": None if belief.shift_gy is None else array_sha256(belief.shift_gy),
            "spread": None if belief.spread_ratio is None else array_sha256(belief.spread_ratio),
            "decoder": None if belief.decoder is None else belief.decoder.sha256,
        }
        if belief.paths is not None:
            parts["paths"] = [array_sha256(belief.paths.before_gy), array_sha256(belief.paths.after_gy)]
    return sha256(canonical(parts)).hexdigest()


def predicted(prediction: DoseEnsemble, belief: Belief) -> tuple[dict[str, Any], Arrays]:
    """Content and arrays of an entry on a prediction: hashes of all of it, its mean dose, and some metrics."""
    mean = prediction.mean.values.reshape(-1)[prediction.crop.mask_indices]
    content = {
        "samples": prediction.count,
        "seed": prediction.seed or 0,
        "belief_sha256": belief_sha256(belief),
        "samples_sha256": array_sha256(prediction.deviations_gy),
        "deterministic_sha256": array_sha256(prediction.deterministic_gy),
        "metrics": metrics_of(prediction),
    }
    return content, {"mean_gy": mean}


def metrics_of(prediction: DoseEnsemble) -> dict[str, dict[str, float]]:
    """Samples' mean and standard deviation ("... std") of some metrics of every structure, in Gy."""
    found: dict[str, dict[str, float]] = {}
    for name, structure in prediction.patient.structures.items():
        inside = prediction.structure_dose(name)
        found[name] = {}
        for metric in told_metrics(structure):
            values = prediction.metric(name, metric, inside)
            found[name][metric] = float(values.mean)
            if prediction.has_spread:
                found[name][f"{metric} std"] = float(values.std)
    return found


def metrics_of_dose(dose: Volume, patient: Patient) -> dict[str, dict[str, float]]:
    """The same metrics of a dose that is known, in Gy."""
    found: dict[str, dict[str, float]] = {}
    for name, structure in patient.structures.items():
        inside = structure_dose_of(dose, structure)
        found[name] = {m: float(inside.metric(DvhMetric.parse(m))[0]) for m in told_metrics(structure)}
    return found


def told_metrics(structure: Structure) -> tuple[str, ...]:
    """Which metrics of a structure are told."""
    return TARGET_METRICS if structure.kind is StructureKind.TARGET else ORGAN_METRICS


def observed(update: Update, calibrator: Calibrator, absorb_outliers: bool) -> tuple[dict[str, Any], Arrays]:
    """Content and arrays of an entry on observations absorbed or left out."""
    told, arrays = measured([judgement.observation for judgement in update.judgements], None)
    content = {
        "observations": told["observations"],
        "judgements": [
            {
                "observed": j.observed,
                "expected": j.expected,
                "reach": j.reach,
                "outlier": bool(j.is_outlier),
                "absorbed": any(j.observation is o for o in update.absorbed),
            }
            for j in update.judgements
        ],
        "calibrator": settings_of(calibrator),
        "absorb_outliers": absorb_outliers,
        "before_sha256": belief_sha256(update.before),
        "after_sha256": belief_sha256(update.after),
    }
    return content, arrays


def measured(observations: Sequence[Observation], simulated: Mapping[str, Any] | None) -> tuple[dict[str, Any], Arrays]:
    """Content and arrays of an entry on a set of observations; ``simulated`` says how, where they are."""
    arrays = {f"dose {k}": o.dose.values for k, o in enumerate(observations) if isinstance(o, DoseObservation)}
    return {"observations": [observation_row(o) for o in observations], "simulated": simulated}, arrays


def optimisation_entry(found: Optimised) -> tuple[dict[str, Any], Arrays]:
    """Content and arrays of an entry on an optimisation of the last prediction."""
    content: dict[str, Any] = {
        "method": found.method,
        "settings": dict(found.settings),
        "objective": list(found.objective),
        "penalties": [{"penalty": label, "before": before, "after": after} for label, before, after in found.penalties],
    }
    if found.explained is not None:
        content["explained_correlation"], content["explained_mean_absolute_error_gy"] = found.explained
    return content, {"found": found.found}


def recommended(ranking: Ranking, actions: Sequence[Action], belief: Belief) -> tuple[dict[str, Any], Arrays]:
    """Content and arrays of an entry on a ranking of ``actions``: by what, how each was judged, what is recommended."""
    best = ranking.recommended
    content = {
        "samples": ranking.prediction.count,
        "seed": ranking.prediction.seed or 0,
        "belief_sha256": belief_sha256(belief),
        "protocol": dict(ranking.protocol.content),
        "risk": ranking.protocol.risk,
        "actions": [action_row(action) for action in actions],
        "ranking": [
            {
                "action": a.action.name,
                "acceptable": a.is_acceptable,
                "utility": a.utility.value,
                "expected": a.utility.expected,
                "uncertainty": a.utility.uncertainty,
                "constraints": [
                    {"constraint": str(c.constraint), "violated": c.violated, "most_probability": c.most_probability}
                    for c in a.chances
                ],
            }
            for a in ranking.assessed
        ],
        "refused": [{"action": one.name, "reason": one.reason} for one in ranking.refused],
        "recommended": None if best is None else best.action.name,
    }
    return content, {"benefit": np.concatenate([a.utility.benefit for a in ranking.assessed])}


def observation_row(observation: Observation) -> dict[str, Any]:
    """An observation's plain values; of a dose volume its grid, not its values."""
    row = _without_source(observation)
    row["source_sha256"] = sha256(observation.source.encode()).hexdigest()
    if isinstance(observation, DoseObservation):
        grid = observation.dose.grid
        row["grid"] = {name: list(getattr(grid, name)) for name in ("shape", "spacing_mm", "origin_mm", "direction")}
    return row


def observations_from(content: Mapping[str, Any], path: Path, patient: Patient) -> tuple[Observation, ...]:
    """The observations of an entry of the ledger in ``path``. Raises LedgerError for arrays lost or changed."""
    found: list[Observation] = []
    for k, entry in enumerate(content["observations"]):
        row = {key: value for key, value in entry.items() if key not in ("grid", "source_sha256")}
        row["source"] = f"SHA-256 {entry['source_sha256']}"
        dose = None
        if entry["kind"] == "dose":
            grid = Grid(**entry["grid"], frame_of_reference=patient.ct.grid.frame_of_reference)
            # Grids that only a rounding tells apart are one, as where it was first read.
            grid = patient.ct.grid if patient.ct.grid.same_as(grid) else grid
            dose = Volume(stored_array(path, content["arrays"][f"dose {k}"]), grid, Quantity.DOSE_GY)
            row["file"] = "stored"
        found.append(from_row(row, dose))
    return tuple(found)


def _without_source(observation: Observation) -> dict[str, Any]:
    row = as_row(replace(observation, source=""))
    del row["source"]
    return row
