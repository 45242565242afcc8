"""The best change of a predicted dose for all goals at once: over the fluence, or without beams that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.decision.actions import Situation, added
from RTDigitalTwinLib.decision.beam_changes import NOTICE as BEAM_NOTICE
from RTDigitalTwinLib.decision.fluence import FluenceSettings, optimised_fluence
from RTDigitalTwinLib.decision.modulation import NOTICE as MODULATION_NOTICE, ModulationSettings, modulate
from RTDigitalTwinLib.decision.objective import kept_parts
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

FLUENCE, MODULATION = "fluence", "modulation"


@dataclass(frozen=True, eq=False)
class Optimised:
    """What an optimisation for all goals found.

    Attributes
    ----------
    method : ``fluence``, or ``modulation`` where the plan's beams are known to be no fixed coplanar fields.
    settings : of the method, as plain values.
    found : fluence (beams, slices, rays), or coefficients of the modulation (slices, rows, columns) of knots.
    change_gy : (mask voxels,) to add to the dose.
    objective : before the first step and after each.
    penalties : what was penalised, with the values, weighted, before and after.
    explained : correlation and mean absolute error in Gy of the fluence's dose with the present one; None without.
    """

    method: str
    settings: Mapping[str, Any]
    found: NDArray[np.float32]
    change_gy: NDArray[np.float32]
    objective: tuple[float, ...]
    penalties: tuple[tuple[str, float, float], ...]
    explained: tuple[float, float] | None = None

    @property
    def notice(self) -> str:
        """What must be said of it."""
        return BEAM_NOTICE if self.method == FLUENCE else MODULATION_NOTICE

    def applied(self, prediction: DoseEnsemble) -> DoseEnsemble:
        """A prediction with its dose changed; without a calibration, for no band was measured on changed doses."""
        return added(prediction, self.change_gy, calibrated=False)


def optimised(
    prediction: DoseEnsemble, settings: FluenceSettings | None = None, progress: Progress = silent
) -> Optimised:
    """Optimise a predicted dose for the goals of its patient, as a new plan with the same beams would be.

    Raises RTDigitalTwinError where nothing is asked of the dose, GeometryError where the CT is not axial.
    """
    settings = settings or FluenceSettings()
    plans = prediction.patient.plans
    if plans and plans[0].not_fixed_fields:
        smooth = ModulationSettings(steps=settings.steps, tail_ratio=settings.tail_ratio)
        wave = modulate(prediction, smooth, progress=progress)
        change_gy = wave.change_gy(prediction)
        return Optimised(MODULATION, asdict(smooth), wave.coefficients, change_gy, wave.objective, wave.penalties)
    explained = Situation(prediction).explained(part(progress, 0.0, 0.4))
    found = optimised_fluence(
        prediction, explained, settings, kept=kept_parts(prediction), progress=part(progress, 0.4, 1.0)
    )
    return Optimised(
        FLUENCE,
        asdict(settings),
        found.fluence,
        found.change_gy,
        found.objective,
        found.penalties,
        (explained.correlation, explained.mean_absolute_error_gy),
    )
