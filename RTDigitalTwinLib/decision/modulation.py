"""A smooth, bounded change of a predicted dose in space that lessens the penalties of clinical goals.

The change at each voxel is most_change_ratio x tanh(f) of the mean dose there, f a uniform cubic B-spline over the
crop. Its coefficients are found by gradient descent (Adam; Kingma and Ba 2015) on the penalties of the dose samples,
and shrunk after each step as far as the bound of the slope wants it.

It says where a planner might ask for less or more. It knows no beams: dose taken from one voxel comes back nowhere;
``beam_changes`` finds what beams make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.decision.objective import KeptPart, Part, mean_gy, penalty_parts
from RTDigitalTwinLib.decision.penalties import Penalty, penalties_for
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.crop import Crop
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

NOTICE = "The modulation changes the dose as such and knows no beams: it may be nothing that beams can make."


@dataclass(frozen=True)
class ModulationSettings:
    """How to look for a modulation.

    Attributes
    ----------
    steps : of the descent.
    most_change_ratio : of the mean dose at any voxel.
    steepest_ratio_per_cm : most slope of that share, in any direction.
    spacing_mm : of the B-spline's knots: nothing finer than about this is changed.
    step_size : of a coefficient in the first steps.
    change_weight : of the mean square of f, which keeps what no goal asks for as it is.
    tail_ratio : share of the samples, those of the highest penalty, whose mean counts; 1 for all.
    """

    steps: int = 30
    most_change_ratio: float = 0.1
    steepest_ratio_per_cm: float = 0.1
    spacing_mm: float = 20.0
    step_size: float = 0.2
    change_weight: float = 1e-4
    tail_ratio: float = 1.0

    def __post_init__(self) -> None:
        positive = (self.most_change_ratio, self.steepest_ratio_per_cm, self.spacing_mm, self.step_size)
        bounded = self.most_change_ratio < 1 and 0 < self.tail_ratio <= 1
        if self.steps < 1 or not all(np.isfinite(v) and v > 0 for v in positive) or not bounded:
            raise RTDigitalTwinError(f"No modulation can be looked for like this: {self}.")


@dataclass(frozen=True, eq=False)
class Modulation:
    """What was found.

    Attributes
    ----------
    coefficients : of the B-spline: (slices, rows, columns) of its knots, float32.
    crop : where the change lies.
    objective : before the first step and after each.
    penalties : what was penalised, with the values, weighted, before and with the modulation.
    """

    settings: ModulationSettings
    coefficients: NDArray[np.float32]
    crop: Crop
    objective: tuple[float, ...]
    penalties: tuple[tuple[str, float, float], ...]

    def change_ratio(self) -> NDArray[np.float32]:
        """(mask voxels,) the change of the dose as a share of it, within the most allowed."""
        field = _field(torch.from_numpy(self.coefficients), _bases(self.crop, self.settings.spacing_mm))
        changed = self.settings.most_change_ratio * torch.tanh(field)
        return changed.numpy()[self.crop.mask]

    def change_gy(self, prediction: DoseEnsemble) -> NDArray[np.float32]:
        """(mask voxels,) the change of the prediction's mean dose."""
        return self.change_ratio() * mean_gy(prediction)


def modulate(
    prediction: DoseEnsemble,
    settings: ModulationSettings | None = None,
    penalties: Sequence[Penalty] | None = None,
    progress: Progress = silent,
    kept: Sequence[KeptPart] = (),
) -> Modulation:
    """Look for the modulation of a predicted dose that lessens the penalties (by default the patient's) most.

    ``kept`` are penalties of the change itself, beside those.

    Raises RTDigitalTwinError where there is nothing to lessen: no prescription and no goal of a structure.
    """
    settings = settings or ModulationSettings()
    asked = penalties_for(prediction) if penalties is None else tuple(penalties)
    penalised = penalty_parts(prediction, asked, settings.tail_ratio)
    if not penalised:
        raise RTDigitalTwinError(
            "Nothing is asked of the dose: there is no prescription, and no structure has a goal.",
            where=prediction.patient.pseudonym,
        )
    parts: tuple[Part, ...] = (*penalised, *kept)
    present_gy = torch.from_numpy(mean_gy(prediction))
    inside = torch.from_numpy(np.flatnonzero(prediction.crop.mask))
    bases = _bases(prediction.crop, settings.spacing_mm)
    coefficients = torch.zeros([basis.shape[1] for basis in bases], requires_grad=True)
    optimiser = torch.optim.Adam([coefficients], lr=settings.step_size)
    objective: list[float] = []
    best: tuple[float, Tensor, list[float]] | None = None
    first: list[float] = []
    for step in range(settings.steps + 1):
        progress(step / (settings.steps + 1), f"optimisation step {step} of {settings.steps}")
        field = _field(coefficients, bases)
        change_gy = settings.most_change_ratio * torch.tanh(field.reshape(-1)[inside]) * present_gy
        values = [part.value(change_gy) for part in parts]
        total = torch.stack(values).sum() + settings.change_weight * field.square().mean()
        objective.append(float(total.detach()))
        seen = [float(value.detach()) for value in values]
        first = first or seen
        if best is None or objective[-1] < best[0]:
            best = objective[-1], coefficients.detach().clone(), seen
        if step < settings.steps:
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            with torch.no_grad():
                coefficients *= _shrinkage(coefficients, settings)
    assert best is not None
    told = [(part.label, before, after) for part, before, after in zip(parts, first, best[2], strict=True)]
    return Modulation(settings, best[1].numpy(), prediction.crop, tuple(objective), tuple(told))


def _shrinkage(coefficients: Tensor, settings: ModulationSettings) -> float:
    """Factor that brings the change's slope within its bound.

    A cubic B-spline's slope along an axis is at most the largest difference of neighbouring coefficients over the
    knots' distance, and tanh is nowhere steeper than 1.
    """
    steps = [coefficients.diff(dim=axis).abs().max() for axis in range(3)]
    slope_per_mm = settings.most_change_ratio * float(torch.stack(steps).norm()) / settings.spacing_mm
    return min(1.0, settings.steepest_ratio_per_cm / 10 / slope_per_mm) if slope_per_mm else 1.0


def _bases(crop: Crop, spacing_mm: float) -> list[Tensor]:
    """For slices, rows, columns: the cubic B-splines at each voxel, (voxels, knots)."""
    return [
        _basis(count, voxel_mm / spacing_mm)
        for count, voxel_mm in zip(crop.shape, reversed(crop.grid.spacing_mm), strict=True)
    ]


def _basis(count: int, step: float) -> Tensor:
    """(count, knots) of uniform cubic B-splines at 0, step, 2 step ...; rows sum to 1."""
    at = np.arange(count) * step
    knots = int(np.floor(at[-1])) + 4
    away = np.abs(at[:, None] - (np.arange(knots) - 1)[None])
    near = 2 / 3 - away**2 + away**3 / 2
    far = np.maximum(2 - away, 0) ** 3 / 6
    return torch.from_numpy(np.where(away < 1, near, far).astype(np.float32))


def _field(coefficients: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """(slices, rows, columns) of the spline."""
    slices, rows, columns = bases
    along_columns = coefficients @ columns.T
    along_rows = torch.einsum("yj,ijx->iyx", rows, along_columns)
    return torch.einsum("zi,iyx->zyx", slices, along_rows)
