"""What a training does when: schedules that run on the elapsed share of its time budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

SETTLED_SHARE = 0.3


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    minutes : the budget of training time; the schedules run on its elapsed share, over all resumed parts.
    learning_rate : reached after ``warm_up_ratio`` of the budget, held up to ``hold_ratio`` of it, then a cosine to 0.
    average_decay : of the moving average of weights, at its end.
    turned_ratio : share of steps on a patient turned by a multiple of 40 degrees.
    pixel_range : turned or deformed patients are seen in pixels up to so many times larger or smaller than their own.
    mirrored_ratio : share of steps on a patient with left and right exchanged.
    upended_ratio : share of steps on a patient with superior and inferior exchanged.
    deformed_ratio : share of steps on a patient whose anatomy, and dose with it, is deformed at random.
    settled_from_ratio : from that share of the budget on none is deformed, and ``SETTLED_SHARE`` of the turned and the
        upended are left: what a network learns last is patients as they lie. 1 for never.
    dvh_weight, dvh_from_ratio : of the DVH loss beside the masked L1, rising from that share of the budget on over the
        next fifth.
    validations : how often to score the validation patients on the way.
    begun_from : SHA-256 of the weights it began from; "" for random ones.
    """

    minutes: float
    seed: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up_ratio: float = 0.02
    hold_ratio: float = 0.5
    gradient_norm: float = 1.0
    average_decay: float = 0.999
    turned_ratio: float = 0.5
    pixel_range: float = 1.25
    mirrored_ratio: float = 0.5
    upended_ratio: float = 0.0
    deformed_ratio: float = 0.0
    settled_from_ratio: float = 1.0
    dvh_weight: float = 0.15
    dvh_from_ratio: float = 0.4
    validations: int = 8
    checkpoint_minutes: float = 5.0
    begun_from: str = ""

    def rate_at(self, elapsed_ratio: float) -> float:
        """Learning rate after a share of the budget: linear warm-up, its peak, then a cosine to zero."""
        if elapsed_ratio < self.warm_up_ratio:
            return self.learning_rate * max(elapsed_ratio / self.warm_up_ratio, 0.01)
        along = (min(elapsed_ratio, 1.0) - self.hold_ratio) / (1 - self.hold_ratio)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * max(along, 0.0)))

    def moves_at(self, elapsed_ratio: float) -> tuple[float, float, float]:
        """Shares of turned, upended and deformed patients after a share of the budget."""
        if elapsed_ratio < self.settled_from_ratio:
            return self.turned_ratio, self.upended_ratio, self.deformed_ratio
        return SETTLED_SHARE * self.turned_ratio, SETTLED_SHARE * self.upended_ratio, 0.0

    def dvh_weight_at(self, elapsed_ratio: float) -> float:
        """Weight of the DVH loss after a share of the budget."""
        return self.dvh_weight * min(max((elapsed_ratio - self.dvh_from_ratio) / 0.2, 0.0), 1.0)
