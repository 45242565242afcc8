"""The decoder refitted, and the rest by the Gaussian process: a trend and what it leaves (regression kriging).

A decoder of shared weights cannot follow a measured dose voxel by voxel, and what it cannot give it trades: a lower
error on the whole for a worse cord. So the dose that the refitted network expects is taken for the mean of a Gaussian
process, which absorbs the same observations anew (Hengl, Heuvelink and Rossiter, Computers & Geosciences 33, 1301,
2007). How unsure the belief is comes from the bands before observing and the Gaussian process alone: that the decoder
has seen the observations too makes it no surer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.progress import Progress, part, silent


@dataclass(frozen=True)
class DecoderWithRest(DecoderMap):
    """See the module. Its steps are coarser than the decoder's alone, for what they leave is not lost."""

    fewest_steps: int = 20
    tolerance_ratio: float = 0.02
    name: str = "decoder MAP and Gaussian process"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        fitted = super().absorb(evidence, part(progress, 0.0, 0.6))
        samples, seed = evidence.drawn.count, evidence.drawn.seed or 0
        drawn = evidence.drawn
        if fitted.decoder is not None:
            drawn = fitted.drawn(samples, seed, part(progress, 0.6, 0.9))
        rest = GaussianProcess().absorb(replace(evidence, drawn=drawn), part(progress, 0.9, 1.0))
        found = replace(rest, method=self.name, decoder=fitted.decoder)
        if fitted.decoder is not None:
            found.keep_drawn(drawn, samples, seed)
        return found
