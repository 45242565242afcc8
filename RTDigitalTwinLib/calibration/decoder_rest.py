"""The decoder refitted, and the rest by the Gaussian process: a trend and what it leaves (regression kriging).

A decoder of shared weights cannot follow a measured dose voxel by voxel, and what it cannot give it trades: a lower
error on the whole for a worse cord. So the dose that the refitted network expects is taken for the mean of a Gaussian
process, which absorbs the same observations anew (Hengl, Heuvelink and Rossiter, Computers & Geosciences 33, 1301,
2007). How unsure the belief is before that comes of the refitted network's samples, with the factors of bands measured
before observing: that the decoder has seen the observations too does not count as knowledge. How treatment changed is
told by the Gaussian process about the dose before, for the decoder takes some of a change for its own error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.progress import Progress, part, silent


@dataclass(frozen=True)
class DecoderWithRest(DecoderMap):
    """See the module. Its steps are coarser than the decoder's alone, for what they leave is not lost."""

    fewest_steps: int = 20
    tolerance_ratio: float = 0.02
    name: str = "decoder MAP and Gaussian process"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        if not evidence.drawn.has_spread:
            raise RTDigitalTwinError("A Gaussian-process update needs samples.", remedy="Draw some.")
        fitted = super().absorb(evidence, part(progress, 0.0, 0.6))
        samples, seed = evidence.drawn.count, evidence.drawn.seed or 0
        drawn = evidence.drawn
        if fitted.decoder is not None:
            drawn = fitted.drawn(samples, seed, part(progress, 0.6, 0.9))
        rest = GaussianProcess().absorb(replace(evidence, drawn=drawn), part(progress, 0.9, 1.0))
        found = replace(rest, method=self.name, decoder=fitted.decoder)
        if fitted.decoder is not None:
            found = replace(found, change=GaussianProcess(paths=0).absorb(evidence).change)
            found.keep_drawn(drawn, samples, seed)
        return found
