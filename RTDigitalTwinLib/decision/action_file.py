"""Which actions are asked for: those of a file, or the customary ones."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.decision.actions import Action, Keep, Scale
from RTDigitalTwinLib.dosimetry.protocol_file import reading, require_known
from RTDigitalTwinLib.errors import ProtocolError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

CUSTOMARY_FACTORS = (0.95, 0.97, 1.03, 1.05)


def customary_actions(patient: Patient, prediction: DoseEnsemble | None = None) -> tuple[Action, ...]:
    """Keeping, and a little more or less of all the dose."""
    return (Keep(), *(Scale(factor) for factor in CUSTOMARY_FACTORS))


def read_actions(path: Path, patient: Patient) -> tuple[Action, ...]:
    """The actions of a TOML file. Raises ProtocolError that names file and entry."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("action")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProtocolError(f"The file cannot be read ({error}).", where=path.name) from error
    if not isinstance(entries, list) or not entries:
        raise ProtocolError("There are no actions.", where=path.name, remedy="Write each under [[action]].")
    return tuple(_action(entry, f"{path.name}, action {k}") for k, entry in enumerate(entries, start=1))


def _action(entry: dict[str, Any], where: str) -> Action:
    with reading(where):
        if (kind := entry["kind"]) == "keep":
            require_known(entry, {"kind"})
            return Keep()
        if kind == "scale":
            require_known(entry, {"kind", "factor"})
            return Scale(float(entry["factor"]))
        raise ValueError(f"kind is {kind!r}")
