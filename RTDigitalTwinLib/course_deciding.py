"""Decisions on the way through a course: what a decision was worth, by who knows the true dose."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.course_record import DecisionRecord
from RTDigitalTwinLib.decision.actions import Action, ActionKind
from RTDigitalTwinLib.decision.policies import Decider
from RTDigitalTwinLib.dosimetry.fraction_delivery import Treatment
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

LEAST_GY = 1.0  # below this dose an action's factor is not taken from
FACTORS = (0.5, 1.5)  # that an action may change a dose by


def judged_decision(
    decider: Decider,
    truth: Mapping[str, tuple[ActionKind, DoseEnsemble]],
    fraction: int,
    chosen: str | None,
    keep: str,
    reasons: tuple[str, ...],
) -> DecisionRecord:
    """What a decision is worth to who knows the true dose of every action, ranks alike, and abstains where none does.

    Parameters
    ----------
    truth : by the names of the actions that can be done: kind, and true dose of the whole course with it.
    chosen : an action's name; None where the twin abstained, which is to go on as with ``keep``.
    """
    worth = {name: decider.utility(dose, kind) for name, (kind, dose) in truth.items()}
    broken = {name: [words for words, bad in decider.violated(dose) if bad] for name, (_, dose) in truth.items()}
    possible = [name for name in worth if not broken[name]]
    best = max(possible, key=lambda name: worth[name], default=None)
    done = keep if chosen is None else chosen
    regret = None if best is None or broken[done] else worth[best] - worth[done]
    return DecisionRecord(
        fraction, chosen, reasons, best, regret, worth[done] - worth[keep], len(broken[done]),
        len(decider.violated(truth[done][1])), len(possible),
    )  # fmt: skip


def factor_of(before: DoseEnsemble, after: DoseEnsemble) -> NDArray[np.float32]:
    """(mask voxels,) of the mean doses, within ``FACTORS``; 1 where there is next to no dose."""
    one, other = (e.mean.values.reshape(-1)[e.crop.mask_indices] for e in (before, after))
    ratio = np.divide(other, one, out=np.ones_like(one), where=one > LEAST_GY)
    return np.clip(ratio, *FACTORS).astype(np.float32)


def times(treatment: Treatment, factor: NDArray[np.float32], like: DoseEnsemble) -> NDArray[np.float32]:
    """The factor on the planned dose (grid's shape) with one more of the mask's voxels in it."""
    full = np.ones(like.crop.grid.voxel_count, np.float32)
    full[like.crop.mask_indices] = factor
    field, known = full.reshape(like.crop.grid.shape), treatment.dose_factor
    return field if known is None else known * field


def keeping(actions: tuple[Action, ...]) -> Action | None:
    """The action that goes on as planned."""
    return next((action for action in actions if action.kind is ActionKind.KEEP), None)
