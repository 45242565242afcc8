"""A calibrator as a record tells of it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from RTDigitalTwinLib.calibration.calibrator import Calibrator
from RTDigitalTwinLib.calibration.choice import METHODS, calibrator_named
from RTDigitalTwinLib.errors import RTDigitalTwinError


def settings_of(calibrator: Calibrator) -> dict[str, Any]:
    """Plain values: the method by its word in ``METHODS`` ("" for a calibrator of the user's own), name, settings."""
    word = next((word for word in METHODS if type(calibrator_named(word)) is type(calibrator)), "")
    known: dict[str, Any] = {}
    if word and is_dataclass(calibrator):
        known = {f.name: getattr(calibrator, f.name) for f in fields(calibrator) if f.compare}
    return {"method": word, "name": calibrator.name, "settings": known}


def calibrator_of(stored: Mapping[str, Any]) -> Calibrator:
    """The calibrator that ``settings_of`` told of. Raises RTDigitalTwinError for one that is none of ours."""
    if stored["method"] not in METHODS:
        raise RTDigitalTwinError(f"The calibrator {stored['name']!r} is none of this software's.")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["settings"].items()}
    try:
        return type(calibrator_named(stored["method"]))(**given)
    except TypeError as error:
        raise RTDigitalTwinError(f"The calibrator {stored['name']!r} has other settings in this version.") from error
