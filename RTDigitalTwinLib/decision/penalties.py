"""Clinical goals as smooth penalties of a dose, for an optimiser to lessen.

A goal is met or not, and between has no slope. Its penalty has: of a mean, how far it is beyond the limit; of all
others, which ask for volumes at a dose, how far each voxel is beyond that dose, as inverse planning has it (Bortfeld et
al., Physics in Medicine and Biology 35, 1423 (1990)). Both as a share of the limit, squared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetricKind
from RTDigitalTwinLib.dosimetry.goals import Criterion, GoalSet, fitting_goals
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

TARGET_WEIGHT = 100.0  # 2 % below in a target weigh as much as 20 % beyond in an organ
HIGHEST_RATIO = 1.07  # of the prescription in a target (ICRU Report 50)
_VOLUMES = (DvhMetricKind.VOLUME_AT_DOSE, DvhMetricKind.CC_AT_DOSE)


@dataclass(frozen=True)
class Penalty:
    """On the dose of one structure.

    Attributes
    ----------
    limit_gy : positive.
    upper : whether the dose must stay at or below it; else at or above.
    of_mean : the structure's mean dose; else the dose of each voxel.
    weight : times the penalty in the objective.
    """

    structure: str
    limit_gy: float
    upper: bool
    of_mean: bool
    weight: float

    @property
    def label(self) -> str:
        return (
            f"{self.structure} {'mean' if self.of_mean else 'dose'} {'≤' if self.upper else '≥'} {self.limit_gy:g} Gy"
        )

    def of(self, doses_gy: Tensor, weights: Tensor, tail_ratio: float = 1.0) -> Tensor:
        """Of doses (samples, voxels) and the voxels' shares, of sum 1; without ``weight``.

        Its mean over the ``tail_ratio`` of the samples where it is highest: over all of them by default.
        """
        if self.of_mean:
            doses_gy = (doses_gy * weights).sum(dim=1, keepdim=True)
            weights = weights.new_ones(1)
        beyond = (doses_gy - self.limit_gy) if self.upper else (self.limit_gy - doses_gy)
        return tail_mean(((beyond.clamp(min=0) / self.limit_gy).square() * weights).sum(dim=1), tail_ratio)

    def slope(self, doses_gy: Tensor, weights: Tensor, tail_ratio: float = 1.0) -> Tensor:
        """(voxels,) derivative of ``of``, of doses kept above 0, by a dose added to all samples.

        By hand: for a search it takes a third of what automatic differentiation does. Of a mean, ``doses_gy`` are the
        means (samples, 1).
        """
        beyond = (doses_gy.clamp(min=0) - self.limit_gy).mul_((1 if self.upper else -1) / self.limit_gy).clamp_(min=0)
        counted = beyond.new_full((len(beyond),), 1 / len(beyond))
        if tail_ratio < 1:
            counted = tail_shares(beyond.square() @ weights, tail_ratio)
        if not self.upper:
            beyond.masked_fill_(doses_gy < 0, 0)
        return (2 if self.upper else -2) / self.limit_gy * weights * (counted @ beyond)


def tail_shares(values: Tensor, tail_ratio: float) -> Tensor:
    """(samples,) derivative of ``tail_mean``: how much each sample counts where the tail is not all."""
    wanted = max(tail_ratio * len(values), 1.0)
    shares = torch.empty_like(values)
    order = values.argsort(descending=True)
    shares[order] = (wanted - torch.arange(len(values), device=values.device)).clamp(0, 1).to(values) / wanted
    return shares


def tail_mean(values: Tensor, tail_ratio: float) -> Tensor:
    """Conditional value at risk: the mean of the highest ``tail_ratio`` of samples (samples,), differentiable.

    It is min over t of t + mean(max(values - t, 0)) / tail_ratio (Rockafellar and Uryasev, Journal of Risk 2, 21
    (2000)), solved exactly: at their t, the quantile, the sample on the tail's border counts in part. Kept at or below
    0 it bounds the probability of values above 0 by ``tail_ratio``: the chance constraint's convex and safe side. Of
    samples too few for the tail it is the highest.
    """
    if tail_ratio >= 1:
        return values.mean()
    wanted = max(tail_ratio * len(values), 1.0)
    counted = (wanted - torch.arange(len(values), device=values.device)).clamp(0, 1)
    return (values.sort(descending=True).values * counted).sum() / wanted


def penalties_for(prediction: DoseEnsemble, goal_sets: Sequence[GoalSet] | None = None) -> tuple[Penalty, ...]:
    """Of a patient's prescription, and of the goals of its organs weighted by one over their priority.

    Targets: at least their dose level, and the highest at most 107 % of it. Of a goal with alternatives the one that
    the predicted dose is nearest to meeting. ``goal_sets`` are by default those that fit the prescription.
    """
    patient = prediction.patient
    if goal_sets is None:
        goal_sets = fitting_goals(max(target_levels_gy(patient).values(), default=None)).sets
    levels = {name: level for name, level in target_levels_gy(patient).items() if name in patient.structures}
    found = [Penalty(name, level, False, False, TARGET_WEIGHT) for name, level in levels.items()]
    if levels:
        highest = max(levels.values())
        hottest = [name for name, level in levels.items() if level == highest]
        found += [Penalty(name, HIGHEST_RATIO * highest, True, False, TARGET_WEIGHT) for name in hottest]
    for goal in (goal for goals in goal_sets for goal in goals.goals):
        possible = [c for c in goal.criteria if all(n in patient.organs for n in c.structures) and _limit_gy(c) > 0]
        if possible:
            chosen = possible[0] if len(possible) == 1 else min(possible, key=lambda c: _excess_ratio(c, prediction))
            of_mean, limit_gy = chosen.metric.kind is DvhMetricKind.MEAN, _limit_gy(chosen)
            found += [Penalty(n, limit_gy, chosen.upper, of_mean, 1 / goal.priority) for n in chosen.structures]
    return tuple(dict.fromkeys(found))


def _excess_ratio(criterion: Criterion, prediction: DoseEnsemble) -> float:
    """How far a dose is beyond a criterion's limit, as a share of it; negative where it keeps it."""
    values = [float(prediction.metric(name, str(criterion.metric)).mean) for name in criterion.structures]
    away = [(v - criterion.limit) if criterion.upper else (criterion.limit - v) for v in values]
    return max(away) / max(criterion.limit, 1e-9)


def _limit_gy(criterion: Criterion) -> float:
    return criterion.metric.argument if criterion.metric.kind in _VOLUMES else criterion.limit
