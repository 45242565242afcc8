"""Persistence: what was measured last is what will be. The yardstick that any calibrator must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.readings import voxel_std
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.patient.observation import MetricObservation
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.correlation import unseen_ratio


@dataclass(frozen=True)
class Persistence:
    """The last dose volume as it is; without one, the dose in each structure scaled to its last mean, and no further.

    A measurement less sure than the belief is not trusted: of a volume voxel by voxel. Points and metrics other than
    means say nothing of a whole dose and change nothing.
    """

    name: str = "persistence"

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        mean, spread = evidence.mean_gy, voxel_std(evidence.drawn)
        now, ratio = mean.copy(), np.ones_like(mean)
        if evidence.volumes:
            last = evidence.volumes[-1]
            trusted = last.known & (last.std < spread)
            now[trusted] = last.values[trusted]
            hidden = unseen_ratio(evidence.drawn.correlation, last.blur_mm)
            ratio[trusted] = np.sqrt(hidden + np.square(last.std / np.maximum(spread, 1e-6)))[trusted]
        else:
            lasting = {
                reading.observation.structure: reading
                for reading in evidence.scalars
                if isinstance(reading.observation, MetricObservation) and reading.metric == DvhMetric.parse("mean")
            }
            for reading in lasting.values():
                expected = float(reading.of(mean[None])[0])
                if expected > 0 and reading.std < reading.belief_std(evidence.drawn):
                    inside = reading.places[reading.places >= 0]
                    now[inside] = mean[inside] * (reading.value / expected)
        return RecalibratedBelief(
            evidence.prior, self.name, evidence.observations, (now - mean).astype(np.float32), ratio.astype(np.float32)
        )
