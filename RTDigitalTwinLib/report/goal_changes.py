"""Clinical goals whose status an action changes, as the report, the command line and the JSON files tell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from RTDigitalTwinLib.dosimetry.goals import GoalResult
from RTDigitalTwinLib.report.goal_table import GoalRow, goal_row


@dataclass(frozen=True)
class GoalChange:
    """One goal with keeping the plan and with an action, of different status."""

    keep: GoalRow
    action: GoalRow

    @property
    def words(self) -> str:
        """``Larynx max ≤ 66 Gy: ? unsure → ✗ violated; 69.5 Gy → 71.3 Gy, met with probability 7 % → 3 %``."""
        said = f"{self.keep.goal}: {self.keep.outcome} → {self.action.outcome}"
        if self.keep.value is None or self.action.value is None:
            return f"{said}. {self.keep.note or self.action.note}".rstrip(". ")
        numbers = " → ".join(dict.fromkeys((self.keep.value_words, self.action.value_words)))  # once where they agree
        return (
            f"{said}; {numbers}, met with probability {self.keep.probability_words} → {self.action.probability_words}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it; probabilities are 0..1, values those of ``criterion``."""
        told: dict[str, Any] = {
            "goal": self.keep.goal,
            "label": self.keep.label,
            "words": self.words,
        }
        for name, row in (("keep", self.keep), ("action", self.action)):
            told[name] = {
                "status": row.status,
                "criterion": row.criterion,
                "value": row.value,
                "unit": row.unit,
                "probability_met": row.probability_met,
                "probability_acceptable": row.probability_acceptable,
                "calibrated": row.calibrated,
            }
        return told


def goal_changes(keep: Sequence[GoalResult], action: Sequence[GoalResult]) -> tuple[GoalChange, ...]:
    """The goals of different status, of the same goals in the same order on two doses."""
    pairs = zip(keep, action, strict=True)
    return tuple(
        GoalChange(goal_row(before, ""), goal_row(after, ""))
        for before, after in pairs
        if before.status != after.status
    )
