"""Which calibrator to use: by name, or by what was observed."""

from __future__ import annotations

from collections.abc import Sequence

from RTDigitalTwinLib.calibration.calibrator import Calibrator
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.kalman import EnsembleKalman
from RTDigitalTwinLib.calibration.linear import GlobalScale, StructureOffsets
from RTDigitalTwinLib.calibration.persistence import Persistence
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.observation import DoseObservation, Observation

METHODS = ("scale", "offsets", "kalman", "persistence", "decoder")


def calibrator_named(method: str) -> Calibrator:
    """One of ``METHODS`` with its customary settings. Raises RTDigitalTwinError."""
    if method == "scale":
        return GlobalScale()
    if method == "offsets":
        return StructureOffsets()
    if method == "kalman":
        return EnsembleKalman()
    if method == "persistence":
        return Persistence()
    if method == "decoder":
        return DecoderMap()
    raise RTDigitalTwinError(f"There is no calibrator {method!r}.", remedy=f"Use {', '.join(METHODS)}.")


def customary_calibrator(observations: Sequence[Observation]) -> Calibrator:
    """The ensemble update where a dose volume was observed, offsets a structure for metrics and points alone."""
    return EnsembleKalman() if any(isinstance(o, DoseObservation) for o in observations) else StructureOffsets()
