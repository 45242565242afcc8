"""The calibration of a network's bands on disk: JSON beside the weights it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.errors import ModelError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.model.weights import default_weights
from RTDigitalTwinLib.solver.bands import BandCalibration

SUFFIX = ".calibration.json"


@dataclass(frozen=True)
class StoredCalibration:
    """A calibration with those that leave out a part of its patients each.

    Attributes
    ----------
    whole : from all patients.
    without : by pseudonym, a calibration that this patient had no part in.
    """

    whole: BandCalibration
    without: Mapping[str, BandCalibration]

    def for_patient(self, pseudonym: str) -> BandCalibration:
        """The calibration that may be judged on a patient: one it had no part in."""
        return self.without.get(pseudonym, self.whole)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, each calibration once with those it leaves out."""
        folds: dict[int, dict] = {}
        for pseudonym, calibration in self.without.items():
            fold = folds.setdefault(id(calibration), {"patients": [], "calibration": calibration.as_dict()})
            fold["patients"].append(pseudonym)
        return {"whole": self.whole.as_dict(), "folds": list(folds.values())}


def calibration_path(weights: Path | None = None) -> Path:
    """Where the calibration of a weights file lies; by default of the one that comes with the software."""
    return (weights or default_weights()).with_suffix(SUFFIX)


def save_calibration(stored: StoredCalibration, path: Path, weights_sha256: str) -> None:
    """Write it whole. Raises OutputError where it cannot be written."""
    content = {"weights_sha256": weights_sha256} | stored.as_dict()
    with whole_file(path) as aside:
        aside.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def load_calibration(weights: Path | None, weights_sha256: str) -> StoredCalibration | None:
    """The calibration that belongs to a weights file (by default ours); None where there is none.

    Raises ModelError where it is damaged or was measured with other weights.
    """
    path = calibration_path(weights)
    if not path.is_file():
        return None
    remedy = "Run rt-digital-twin calibrate, or take the file away: bands are then not calibrated."
    try:
        content = json.loads(path.read_text())
        belongs_to = content["weights_sha256"]
        whole = BandCalibration.from_dict(content["whole"])
        without: dict[str, BandCalibration] = {}
        for fold in content["folds"]:
            calibration = BandCalibration.from_dict(fold["calibration"])
            without |= {pseudonym: calibration for pseudonym in fold["patients"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError("The calibration is damaged.", where=path.name, remedy=remedy) from error
    if belongs_to != weights_sha256:
        raise ModelError("The calibration was measured with other weights.", where=path.name, remedy=remedy)
    return StoredCalibration(whole, without)
