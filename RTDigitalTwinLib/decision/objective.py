"""What a change of the dose is judged by: penalties of the sampled doses, and what is to be kept as it is.

A change in Gy is added to every sample. The dose is linear in the fluence, so what a change of the fluence adds is the
same whatever the present dose turns out to be; a share of each sample would be a change that no one fluence makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.decision.penalties import HIGHEST_RATIO, TARGET_WEIGHT, Penalty
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

KEEP_WEIGHT = 1.0  # of an organ that is to get no more than it does


@dataclass(frozen=True, eq=False)
class PenaltyPart:
    """A penalty with the samples it is taken of.

    Attributes
    ----------
    samples_gy : (samples, voxels) of its structure, where these lie in the mask; (samples, 1) where it is of the mean.
    places : (voxels,) of the structure among the mask's.
    shares : (voxels,) of the structure in each.
    tail_ratio : of the samples that counts, the worst.
    """

    penalty: Penalty
    samples_gy: Tensor
    places: Tensor
    shares: Tensor
    tail_ratio: float

    @property
    def label(self) -> str:
        return self.penalty.label

    def value(self, change_gy: Tensor) -> Tensor:
        """Weighted, of a change (mask voxels,)."""
        return self._of(self._changed_gy(change_gy))

    def slope(self, change_gy: Tensor, total: Tensor) -> None:
        """Add to ``total`` (mask voxels,) the derivative of ``value`` by the change."""
        found = self.penalty.slope(self._changed_gy(change_gy), self._weights, self.tail_ratio)
        total[self.places] += self.penalty.weight * (self.shares * found if self.penalty.of_mean else found)

    def _changed_gy(self, change_gy: Tensor) -> Tensor:
        change = change_gy[self.places]
        return self.samples_gy + ((self.shares * change).sum() if self.penalty.of_mean else change)

    @property
    def _weights(self) -> Tensor:
        return self.samples_gy.new_ones(1) if self.penalty.of_mean else self.shares

    def scaled(self, factor: float) -> float:
        """Weighted, of the samples times a factor."""
        return float(self._of(self.samples_gy * factor))

    def _of(self, doses_gy: Tensor) -> Tensor:
        return self.penalty.weight * self.penalty.of(doses_gy.clamp(min=0), self._weights, self.tail_ratio)

    def curvature(self, open_dose_gy: Tensor, bound: Tensor) -> None:
        """Add to ``bound`` (mask voxels,) what bounds the curvature along fluences, as A^T bound does."""
        open_dose = open_dose_gy[self.places]
        if self.penalty.of_mean:
            open_dose = (self.shares * open_dose).sum()
        bound[self.places] += 2 * self.penalty.weight / self.penalty.limit_gy**2 * self.shares * open_dose


@dataclass(frozen=True, eq=False)
class KeptPart:
    """A structure whose dose shall change at no voxel beyond bounds: squares of what does, as a share of a dose.

    Attributes
    ----------
    places, shares : (voxels,) as of a penalty.
    lowest_gy, highest_gy : (voxels,) bounds of the change.
    dose_gy : of which it is a share.
    """

    label: str
    weight: float
    dose_gy: float
    places: Tensor
    shares: Tensor
    lowest_gy: Tensor
    highest_gy: Tensor

    def value(self, change_gy: Tensor) -> Tensor:
        change = change_gy[self.places]
        beyond = (change - self.highest_gy).clamp(min=0) + (self.lowest_gy - change).clamp(min=0)
        return self.weight * (self.shares * (beyond / self.dose_gy).square()).sum()

    def slope(self, change_gy: Tensor, total: Tensor) -> None:
        """As of a penalty."""
        change = change_gy[self.places]
        beyond = (change - self.highest_gy).clamp(min=0) - (self.lowest_gy - change).clamp(min=0)
        total[self.places] += 2 * self.weight / self.dose_gy**2 * self.shares * beyond

    def curvature(self, open_dose_gy: Tensor, bound: Tensor) -> None:
        bound[self.places] += 2 * self.weight / self.dose_gy**2 * self.shares * open_dose_gy[self.places]


Part = PenaltyPart | KeptPart


def penalty_parts(
    prediction: DoseEnsemble, penalties: Sequence[Penalty], tail_ratio: float = 1.0
) -> tuple[PenaltyPart, ...]:
    """Penalties with a prediction's samples, spread as was calibrated; without those of structures without dose."""
    return tuple(part for p in penalties if (part := _penalty_part(prediction, p, tail_ratio)) is not None)


def kept_parts(prediction: DoseEnsemble, free: str = "") -> tuple[KeptPart, ...]:
    """All structures but the one that an action is for, as they are.

    Targets get no less than their prescription, or than they have where that is less already, and no more than 107 % of
    the highest, or than they have; organs no more than they have. In voxels that several share, each of them holds.
    """
    levels = target_levels_gy(prediction.patient)
    highest_gy = HIGHEST_RATIO * max(levels.values(), default=np.inf)
    present = mean_gy(prediction)
    parts = []
    for name, structure in prediction.patient.structures.items():
        inside, shares = _inside(prediction, name)
        if name == free or not inside.size or structure.kind is StructureKind.REGION:
            continue
        now = present[inside]
        if structure.kind is StructureKind.TARGET:
            level_gy = levels.get(name, float(now.mean()))
            lowest = -np.maximum(now - level_gy, 0)
            highest = np.maximum(highest_gy - now, 0)
            weight, dose_gy = TARGET_WEIGHT, level_gy
        else:  # an organ
            lowest, highest = np.full_like(now, -np.inf), np.zeros_like(now)
            weight, dose_gy = KEEP_WEIGHT, max(float(np.average(now, weights=shares)), 1.0)
        tensors = (torch.from_numpy(np.asarray(a, np.float32)) for a in (shares / shares.sum(), lowest, highest))
        parts.append(KeptPart(f"{name} kept", weight, max(dose_gy, 1.0), torch.from_numpy(inside), *tensors))
    return tuple(parts)


def _penalty_part(prediction: DoseEnsemble, penalty: Penalty, tail_ratio: float) -> PenaltyPart | None:
    inside, shares = _inside(prediction, penalty.structure)
    if not inside.size:
        return None
    # Voxels outside the mask have no dose, and none that could be changed, but they count in a mean.
    structure = prediction.patient.structure(penalty.structure)
    whole = float(structure.box_occupancy.sum(dtype=float)) if penalty.of_mean else float(shares.sum())
    ratios = torch.from_numpy(shares / np.float32(whole))
    if penalty.of_mean:
        means = prediction.metric(penalty.structure, "mean")
        samples = torch.from_numpy(np.asarray(means.calibrated_samples(), np.float32))[:, None]
    else:
        samples = _sampled_gy(prediction, penalty, inside)
    return PenaltyPart(penalty, samples, torch.from_numpy(inside), ratios, tail_ratio)


def _sampled_gy(prediction: DoseEnsemble, penalty: Penalty, inside: NDArray) -> Tensor:
    """(samples, voxels), spread so much more than sampled as the calibrated band of a metric near the limit is."""
    doses = torch.from_numpy(prediction.deterministic_gy[inside])[None]
    if not prediction.count:
        return doses
    doses = doses + torch.from_numpy(prediction.deviations_gy[:, inside]).float()
    if prediction.is_calibrated:
        values = prediction.metric(penalty.structure, "D1" if penalty.upper else "D95")
        wider = float(np.std(values.calibrated_samples())) / max(float(np.std(values.samples)), 1e-6)
        mean = doses.mean(dim=0, keepdim=True)
        doses = mean + wider * (doses - mean)
    return doses.clamp(min=0)


def _inside(prediction: DoseEnsemble, name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Voxels of a structure among the mask's, and how much of each is in it."""
    shares = prediction.patient.structure(name).occupancy.reshape(-1)[prediction.crop.mask_indices]
    inside = np.flatnonzero(shares)
    return inside, shares[inside]


def mean_gy(prediction: DoseEnsemble) -> NDArray[np.float32]:
    """(mask voxels,) of a prediction's mean dose."""
    return prediction.mean.values.reshape(-1)[prediction.crop.mask_indices].astype(np.float32)
