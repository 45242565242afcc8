"""Ensemble Kalman update of the sampled doses.

Dropout's spread is far too narrow, so each voxel's deviations are first widened to its calibrated band. Observations
are absorbed one after the other by the square-root form without perturbed observations (Whitaker and Hamill 2002), each
with its gain tapered by the distance from what was observed (Gaspari and Cohn 1999): 32 samples know nothing of far
places. A dose volume observes every voxel by itself and is absorbed so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.linear import distance_mm
from RTDigitalTwinLib.calibration.readings import voxel_std
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.correlation import unseen_ratio

MOST_WIDENING = 50.0  # of deviations that are almost nothing


@dataclass(frozen=True)
class EnsembleKalman:
    """See the module.

    Attributes
    ----------
    reach_mm : distance from what was observed beyond which nothing changes.
    relaxation_ratio : share of the narrowing by metrics and points that is given back, for covariances of a few samples
        overstate it (relaxation to the prior spread; Whitaker and Hamill 2012).
    """

    reach_mm: float = 60.0
    relaxation_ratio: float = 0.5
    name: str = "ensemble Kalman"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        if not evidence.drawn.has_spread:
            raise RTDigitalTwinError("An ensemble update needs samples.", remedy="Draw some.")
        doses = evidence.doses_gy
        mean = doses.mean(axis=0)
        wanted = voxel_std(evidence.drawn).astype(np.float32)
        spread = np.maximum(doses.std(axis=0, ddof=1), 1e-6)
        away = (doses - mean) * np.minimum(wanted / spread, MOST_WIDENING)
        now, moved = mean.copy(), away.copy()
        before = away.std(axis=0, ddof=1)
        for volume in evidence.volumes:
            variance = np.square(moved.std(axis=0, ddof=1))
            # As float64: an enormous noise must give an enormous variance, and so a gain of 0.
            gain = (variance / (variance + np.square(volume.std.astype(float)))).astype(np.float32)
            gain[~volume.known] = 0
            now += gain * np.where(volume.known, volume.values - volume.of(now), 0)
            # What the blur hides stays as unsure as it was.
            seen_ratio = 1 - unseen_ratio(evidence.drawn.correlation, volume.blur_mm)
            moved *= np.sqrt(1 - seen_ratio * gain)
        between = moved.std(axis=0, ddof=1)
        for reading in evidence.scalars:
            # Where the dose is 0 it stays there, so what is observed is worked out from doses that can be.
            seen = reading.of(np.maximum(now + moved, 0))
            off, seen = reading.value - seen.mean(), seen - seen.mean()
            count = len(seen) - 1
            variance = float(seen @ seen) / count
            if not variance:
                continue
            total = variance + reading.std**2
            taper = gaspari_cohn(distance_mm(reading, evidence.drawn, self.reach_mm) / self.reach_mm)
            gain = (taper * (seen.astype(np.float32) @ moved / count) / total).astype(np.float32)
            now += gain * np.float32(off)
            lessened = 1 / (1 + np.sqrt(reading.std**2 / total))
            moved -= np.outer(lessened * seen, gain).astype(np.float32)
        after = moved.std(axis=0, ddof=1)
        after += self.relaxation_ratio * np.maximum(between - after, 0)
        ratio = np.divide(after, before, out=np.ones_like(after), where=before > 0)
        return RecalibratedBelief(
            evidence.prior,
            self.name,
            evidence.observations,
            (np.maximum(now, 0) - mean).astype(np.float32),
            np.minimum(ratio, 1).astype(np.float32),
        )


def gaspari_cohn(distance_ratio: NDArray) -> NDArray[np.float64]:
    """The compactly supported fifth-order taper (Gaspari and Cohn 1999, equation 4.10): 1 at 0, 0 from 1 on."""
    z = 2 * np.abs(np.asarray(distance_ratio, dtype=float))
    near = 1 - 5 / 3 * z**2 + 5 / 8 * z**3 + z**4 / 2 - z**5 / 4
    with np.errstate(divide="ignore"):
        far = 4 - 5 * z + 5 / 3 * z**2 + 5 / 8 * z**3 - z**4 / 2 + z**5 / 12 - 2 / (3 * np.maximum(z, 1e-9))
    return np.where(z <= 1, near, np.where(z < 2, np.maximum(far, 0), 0))
