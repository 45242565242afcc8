"""A smooth, bounded change of a predicted dose in space that lessens the penalties of clinical goals.

The dose at each voxel is multiplied by 1 + most_change_ratio x tanh(f), f a uniform cubic B-spline over the crop. Its
coefficients are found by gradient descent (Adam; Kingma and Ba 2015) on the penalties' mean over the dose samples.

It says where a planner might ask for less or more, and how much the goals would gain at best. It knows no beams: dose
taken from one voxel comes back nowhere, and what it asks for is not deliverable as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.decision.penalties import Penalty, penalties_for
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.crop import Crop
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

NOTICE = "The modulation changes the dose as such and knows no beams: it is not deliverable as it stands."


@dataclass(frozen=True)
class ModulationSettings:
    """How to look for a modulation.

    Attributes
    ----------
    steps : of the descent.
    most_change_ratio : of the dose at any voxel.
    spacing_mm : of the B-spline's knots: nothing finer than about this is changed.
    step_size : of a coefficient in the first steps.
    change_weight : of the mean square of f, which keeps what no goal asks for as it is.
    """

    steps: int = 30
    most_change_ratio: float = 0.1
    spacing_mm: float = 20.0
    step_size: float = 0.2
    change_weight: float = 1e-4

    def __post_init__(self) -> None:
        positive = (self.most_change_ratio, self.spacing_mm, self.step_size)
        if self.steps < 1 or not all(np.isfinite(v) and v > 0 for v in positive) or self.most_change_ratio >= 1:
            raise RTDigitalTwinError(f"No modulation can be looked for like this: {self}.")


@dataclass(frozen=True, eq=False)
class Modulation:
    """What was found.

    Attributes
    ----------
    coefficients : of the B-spline: (slices, rows, columns) of its knots, float32.
    crop : where the change lies.
    objective : before the first step and after each.
    penalties : with their values, weighted, before and with the modulation.
    """

    settings: ModulationSettings
    coefficients: NDArray[np.float32]
    crop: Crop
    objective: tuple[float, ...]
    penalties: tuple[tuple[Penalty, float, float], ...]

    def change_ratio(self) -> NDArray[np.float32]:
        """(mask voxels,) the change of the dose as a share of it, within the most allowed."""
        field = _field(torch.from_numpy(self.coefficients), _bases(self.crop, self.settings.spacing_mm))
        changed = self.settings.most_change_ratio * torch.tanh(field)
        return changed.numpy()[self.crop.mask]

    def applied(self, prediction: DoseEnsemble) -> DoseEnsemble:
        """A prediction with its dose changed; without a calibration, for no band was measured on changed doses."""
        factor = 1 + self.change_ratio()
        return replace(
            prediction,
            deterministic_gy=prediction.deterministic_gy * factor,
            deviations_gy=(prediction.deviations_gy * factor).astype(np.float16),
            calibration=None,
        )


def modulate(
    prediction: DoseEnsemble,
    settings: ModulationSettings | None = None,
    penalties: Sequence[Penalty] | None = None,
    progress: Progress = silent,
) -> Modulation:
    """Look for the modulation of a predicted dose that lessens the penalties (by default the patient's) most.

    Raises RTDigitalTwinError where there is nothing to lessen: no prescription and no goal of a structure.
    """
    settings = settings or ModulationSettings()
    asked = penalties_for(prediction) if penalties is None else tuple(penalties)
    parts = [part for penalty in asked if (part := _part(prediction, penalty)) is not None]
    if not parts:
        raise RTDigitalTwinError(
            "Nothing is asked of the dose: there is no prescription, and no structure has a goal.",
            where=prediction.patient.pseudonym,
        )
    bases = _bases(prediction.crop, settings.spacing_mm)
    coefficients = torch.zeros([basis.shape[1] for basis in bases], requires_grad=True)
    optimiser = torch.optim.Adam([coefficients], lr=settings.step_size)
    objective: list[float] = []
    best: tuple[float, Tensor, list[float]] | None = None
    first: list[float] = []
    for step in range(settings.steps + 1):
        progress(step / (settings.steps + 1), f"optimisation step {step} of {settings.steps}")
        field = _field(coefficients, bases)
        factor = 1 + settings.most_change_ratio * torch.tanh(field.reshape(-1))
        values = [part.penalty.weight * part.value(factor) for part in parts]
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
    assert best is not None
    told = [(part.penalty, before, after) for part, before, after in zip(parts, first, best[2], strict=True)]
    return Modulation(settings, best[1].numpy(), prediction.crop, tuple(objective), tuple(told))


@dataclass(frozen=True, eq=False)
class _Part:
    """A penalty with the doses (samples, voxels) of its structure, where these lie in the crop, and their shares."""

    penalty: Penalty
    doses_gy: Tensor
    places: Tensor
    shares: Tensor

    def value(self, factor: Tensor) -> Tensor:
        return self.penalty.of(self.doses_gy * factor[self.places], self.shares)


def _part(prediction: DoseEnsemble, penalty: Penalty) -> _Part | None:
    """None where no dose is predicted in the structure."""
    occupancy = prediction.patient.structure(penalty.structure).occupancy
    shares = occupancy.reshape(-1)[prediction.crop.mask_indices]
    inside = np.flatnonzero(shares)
    if not inside.size:
        return None
    # Voxels outside the mask have no dose, and none that could be changed, but they count in a mean.
    whole = float(occupancy.sum()) if penalty.of_mean else float(shares.sum())
    doses = torch.from_numpy(prediction.deterministic_gy[inside])[None]
    if prediction.count:
        doses = (doses + torch.from_numpy(prediction.deviations_gy[:, inside]).float()).clamp(min=0)
    places = np.flatnonzero(prediction.crop.mask)[inside]
    return _Part(penalty, doses, torch.from_numpy(places), torch.from_numpy(shares[inside] / np.float32(whole)))


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
