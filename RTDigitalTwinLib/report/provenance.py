"""Provenance: by what a result was made, so that it can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.versions import described_device, library_versions


@dataclass(frozen=True)
class Provenance:
    """What made a prediction. Holds no path and no name of a user, patient or machine.

    Attributes
    ----------
    software_version : of RTDigitalTwin.
    library_versions : (name, version), Python first.
    weights_sha256 : of the network; "" for weights that came from no file.
    seed : of the dropout; None in deterministic mode.
    samples : number of dropout samples; 0 in deterministic mode.
    device : what computed it, such as ``cpu`` or ``cuda (NVIDIA ...)``.
    stage_seconds : (stage, wall-clock seconds) in their order.
    created_utc : ISO 8601, to the second.
    """

    software_version: str
    library_versions: tuple[tuple[str, str], ...]
    weights_sha256: str
    seed: int | None
    samples: int
    device: str
    stage_seconds: tuple[tuple[str, float], ...]
    created_utc: str

    def as_dict(self) -> dict[str, object]:
        """As JSON takes it."""
        return {
            "software": "RTDigitalTwin",
            "software_version": self.software_version,
            "library_versions": dict(self.library_versions),
            "weights_sha256": self.weights_sha256,
            "seed": self.seed,
            "samples": self.samples,
            "device": self.device,
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.stage_seconds},
            "created_utc": self.created_utc,
        }


def collect_provenance(
    prediction: DoseEnsemble,
    device: torch.device | str,
    stage_seconds: Mapping[str, float] | None = None,
    now: datetime | None = None,
) -> Provenance:
    """Provenance of a prediction made on ``device``; ``now`` (with its time zone) is the present by default."""
    now = datetime.now(UTC) if now is None else now
    return Provenance(
        software_version=__version__,
        library_versions=library_versions(),
        weights_sha256=prediction.weights_sha256,
        seed=prediction.seed,
        samples=prediction.count,
        device=described_device(device),
        stage_seconds=tuple((stage_seconds or {}).items()),
        created_utc=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
