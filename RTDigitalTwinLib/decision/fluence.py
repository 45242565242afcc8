"""Optimisation over the fluence: the non-negative fluence of a plan's beams that lessens penalties of sampled doses.

What is looked for is a change of the fluence that explains the present dose (``beam_changes``); the change's dose is
added to every sample, so that whatever is found is beam-consistent. The objective is convex: squares of what lies
beyond limits, their mean over the worst samples (``penalties.tail_mean``), and squares of dose that is nowhere asked
for. It is lessened by the accelerated projected gradient of ``dosimetry.beams``, in a fixed number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.decision.beam_changes import ExplainedDose
from RTDigitalTwinLib.decision.objective import KeptPart, Part, penalty_parts
from RTDigitalTwinLib.decision.penalties import Penalty, penalties_for
from RTDigitalTwinLib.dosimetry.beams import non_negative_minimum
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble


@dataclass(frozen=True)
class FluenceSettings:
    """How to look for a fluence.

    Attributes
    ----------
    steps : of the descent.
    tail_ratio : share of the samples, those of the highest penalty, whose mean counts; 1 for all.
    change_weight : of the mean square of the dose's change over the mask, as a share of ``change_scale_gy``.
    """

    steps: int = 30
    tail_ratio: float = 1.0
    change_weight: float = 0.1
    change_scale_gy: float = 10.0

    def __post_init__(self) -> None:
        numbers = (self.change_weight, self.change_scale_gy)
        sound = all(np.isfinite(v) and v >= 0 for v in numbers) and self.change_scale_gy > 0
        if self.steps < 1 or not 0 < self.tail_ratio <= 1 or not sound:
            raise RTDigitalTwinError(f"No fluence can be looked for like this: {self}.")


@dataclass(frozen=True, eq=False)
class FluenceChange:
    """What was found.

    Attributes
    ----------
    fluence : (beams, slices, rays).
    change_gy : (mask voxels,) float32, by which its dose differs from that of the fluence before.
    objective : before the first step and after each.
    penalties : what was penalised, with the values, weighted, before and after.
    """

    settings: FluenceSettings
    fluence: NDArray[np.float32]
    change_gy: NDArray[np.float32]
    objective: tuple[float, ...]
    penalties: tuple[tuple[str, float, float], ...]


def optimised_fluence(
    prediction: DoseEnsemble,
    explained: ExplainedDose,
    settings: FluenceSettings | None = None,
    penalties: Sequence[Penalty] | None = None,
    kept: Sequence[KeptPart] = (),
    progress: Progress = silent,
) -> FluenceChange:
    """Look for the fluence that lessens the penalties (by default the patient's) of a predicted dose most.

    ``explained`` is the mean dose of the prediction. ``kept`` are penalties of the change itself, beside those.
    Raises RTDigitalTwinError where there is nothing to lessen: no prescription and no goal of a structure.
    """
    settings = settings or FluenceSettings()
    asked = penalties_for(prediction) if penalties is None else tuple(penalties)
    penalised = penalty_parts(prediction, asked, settings.tail_ratio)
    if not penalised:
        raise RTDigitalTwinError(
            "Nothing is asked of the dose: there is no prescription, and no structure has a goal.",
            where=prediction.patient.pseudonym,
        )
    search = _Search(explained, (*penalised, *kept), settings)
    search.see(explained.fluence, explained.dose_gy)
    with torch.no_grad():
        non_negative_minimum(
            explained.fluence,
            explained.beams.dose,
            search.gradient,
            search.majoriser(),
            settings.steps,
            progress,
            seen=search.see,
        )
    return search.found()


class _Search:
    """The objective, and the best that was seen of it."""

    def __init__(self, explained: ExplainedDose, parts: Sequence[Part], settings: FluenceSettings) -> None:
        self.explained, self.parts, self.settings = explained, parts, settings
        self.change_weight = settings.change_weight / settings.change_scale_gy**2 / explained.beams.voxels
        self.objective: list[float] = []
        self.first: list[float] = []
        self.best: tuple[Tensor, Tensor, list[float]] | None = None

    def _total(self, change_gy: Tensor) -> tuple[Tensor, list[Tensor]]:
        values = [part.value(change_gy) for part in self.parts]
        return torch.stack(values).sum() + self.change_weight * change_gy.square().sum(), values

    def see(self, fluence: Tensor, dose_gy: Tensor) -> None:
        change_gy = dose_gy - self.explained.dose_gy
        total, values = self._total(change_gy)
        seen = [float(value) for value in values]
        self.first = self.first or seen
        if self.best is None or float(total) < min(self.objective):
            self.best = fluence, change_gy, seen
        self.objective.append(float(total))

    def gradient(self, _: Tensor, dose_gy: Tensor) -> Tensor:
        change_gy = dose_gy - self.explained.dose_gy
        slope = 2 * self.change_weight * change_gy
        for part in self.parts:
            part.slope(change_gy, slope)
        return self.explained.beams.transposed(slope)

    def majoriser(self) -> Tensor:
        """Of non-negative A and squares, A^T (w A 1). Of the worst samples' mean it holds as long as these stay."""
        beams = self.explained.beams
        open_dose_gy = beams.dose(beams.open_fluence())
        bound = 2 * self.change_weight * open_dose_gy
        for part in self.parts:
            part.curvature(open_dose_gy, bound)
        return beams.transposed(bound)

    def found(self) -> FluenceChange:
        assert self.best is not None
        fluence, change_gy, after = self.best
        told = tuple((part.label, b, a) for part, b, a in zip(self.parts, self.first, after, strict=True))
        return FluenceChange(self.settings, fluence.numpy(), change_gy.numpy(), tuple(self.objective), told)
