"""The decoder refitted, and the rest by the Gaussian process: a trend and what it leaves (regression kriging).

A decoder of shared weights cannot follow a measured dose voxel by voxel, and what it cannot give it trades: a lower
error on the whole for a worse cord. So the dose that the refitted network expects is taken for the mean of a Gaussian
process, which absorbs the same observations anew (Hengl, Heuvelink and Rossiter, Computers & Geosciences 33, 1301,
2007). How unsure the belief is afterwards, and how treatment changed, is what the Gaussian process alone would say:
about the refitted dose errors look smaller than they were, for the decoder has seen the observations too, and it takes
some of a change for its own error. The spread of the refitted network's samples is brought to that; where a fit has
strained the decoder its dropout spreads far too much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess, spread_for
from RTDigitalTwinLib.calibration.readings import voxel_std
from RTDigitalTwinLib.progress import Progress, part, silent


@dataclass(frozen=True)
class DecoderWithRest(DecoderMap):
    """See the module. Its steps are coarser than the decoder's alone, for what they leave is not lost."""

    fewest_steps: int = 20
    tolerance_ratio: float = 0.02
    name: str = "decoder MAP and Gaussian process"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        self.require_possible(evidence)
        known = GaussianProcess().absorb(evidence, part(progress, 0.0, 0.1))
        fitted, before = super().absorb(evidence, part(progress, 0.1, 0.7)), evidence.drawn
        if fitted.decoder is None:
            return replace(known, method=self.name)
        samples, seed = before.count, before.seed or 0
        drawn = fitted.drawn(samples, seed, part(progress, 0.7, 1.0))
        moved_gy = replace(evidence, drawn=drawn).mean_gy - evidence.mean_gy
        about = replace(before, deterministic_gy=before.deterministic_gy + moved_gy)
        rest = GaussianProcess(paths=0).absorb(replace(evidence, drawn=about))
        assert known.spread_ratio is not None
        spread = spread_for(drawn, np.square(known.spread_ratio * voxel_std(before)))
        found = replace(known, method=self.name, decoder=fitted.decoder, shift_gy=rest.shift_gy, spread_ratio=spread)
        found.keep_drawn(drawn, samples, seed)
        return found
