"""Which calibrator to use: by name, or the default."""

from __future__ import annotations

from RTDigitalTwinLib.calibration.calibrator import Calibrator
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.decoder_rest import DecoderWithRest
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.calibration.kalman import EnsembleKalman
from RTDigitalTwinLib.calibration.linear import GlobalScale, StructureOffsets
from RTDigitalTwinLib.calibration.persistence import Persistence
from RTDigitalTwinLib.errors import RTDigitalTwinError

METHODS = ("scale", "offsets", "persistence", "decoder", "decoder-gp", "kalman", "gp")


def calibrator_named(method: str) -> Calibrator:
    """One of ``METHODS`` with its customary settings. Raises RTDigitalTwinError."""
    if method == "scale":
        return GlobalScale()
    if method == "offsets":
        return StructureOffsets()
    if method == "gp":
        return GaussianProcess()
    if method == "kalman":
        return EnsembleKalman()
    if method == "persistence":
        return Persistence()
    if method == "decoder":
        return DecoderMap()
    if method == "decoder-gp":
        return DecoderWithRest()
    raise RTDigitalTwinError(f"There is no calibrator {method!r}.", remedy=f"Use {', '.join(METHODS)}.")


def default_calibrator() -> Calibrator:
    """The Gaussian-process update: least error where nothing was observed, and about the least where something was.

    On validation patients with simulated deliveries: docs/recalibration.md. The command recalibration-study measures.
    """
    return GaussianProcess()
