"""Calibrators: ways to absorb observations into a belief, behind one Protocol; and the evidence they start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import Belief, RecalibratedBelief, absorbed_by, in_time, prior_of
from RTDigitalTwinLib.calibration.position import Position, moved
from RTDigitalTwinLib.calibration.readings import (
    Reading,
    VolumeReading,
    joined,
    read_scalars,
    read_volumes,
    sampled_doses,
)
from RTDigitalTwinLib.patient.observation import Observation, require_fit
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief

SAMPLES = 32  # what a calibrator looks at; bands are calibrated for that many


@dataclass(frozen=True, eq=False)
class Evidence:
    """What any calibrator starts from.

    Attributes
    ----------
    prior : the network's own belief.
    observations : absorbed before and now, in order of time.
    drawn : samples of the prior, where the patient lay when dose was measured.
    position : as it was observed.
    """

    prior: DoseBelief
    observations: tuple[Observation, ...]
    drawn: DoseEnsemble
    scalars: tuple[Reading, ...]
    volumes: tuple[VolumeReading, ...]
    position: Position = Position()

    @cached_property
    def joined_volumes(self) -> tuple[VolumeReading, ...]:
        """The volumes, those of one blur as one."""
        return joined(self.volumes)

    @property
    def doses_gy(self) -> NDArray[np.float32]:
        """(samples, mask voxels) of the prior."""
        return sampled_doses(self.drawn)

    @property
    def mean_gy(self) -> NDArray[np.float32]:
        """(mask voxels,) mean of the prior's samples."""
        return self.drawn.mean.values.reshape(-1)[self.drawn.crop.mask_indices].astype(np.float32)


def gather(
    belief: Belief, observations: Sequence[Observation], drawn: DoseEnsemble | None = None, progress: Progress = silent
) -> Evidence:
    """All that was and is to be absorbed, read against the network's own belief. Raises PatientDataError."""
    prior, before = prior_of(belief), absorbed_by(belief)
    require_fit(observations, prior.patient, before)
    if drawn is None:
        drawn = prior.sample(SAMPLES, 0, progress)
    together = in_time([*before, *observations])
    position = Position.of(together)
    drawn = moved(drawn, position.measured_mm)
    scalars = read_scalars(together, prior.patient, drawn.crop)
    volumes = read_volumes(together, prior.patient, drawn.crop)
    return Evidence(prior, together, drawn, tuple(scalars), tuple(volumes), position)


class Calibrator(Protocol):
    """A way to absorb observations.

    All work on the whole of what was ever absorbed, from the network's own belief on: the order in which observations
    were given does not matter, and one method may follow another.
    """

    @property
    def name(self) -> str: ...

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        """The network's belief with all of ``evidence`` absorbed. Raises RTDigitalTwinError where it cannot."""
        ...
