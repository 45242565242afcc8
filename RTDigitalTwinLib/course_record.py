"""What a course is asked for and what is told of it: settings, a record a fraction, decisions, the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.calibrator import SAMPLES
from RTDigitalTwinLib.calibration.trial import BLUR_MM
from RTDigitalTwinLib.calibration.watch import WatchSettings
from RTDigitalTwinLib.course_projection import Endpoint
from RTDigitalTwinLib.decision.policies import Policy, Triggered
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.dosimetry.fraction_delivery import SetupErrors
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.observation import NoiseModel
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

RE_IMAGED, REPLANNED, RECALIBRATED = "re-imaged", "replanned", "recalibrated"


@dataclass(frozen=True)
class CourseSettings:
    """What is lived through, and how it is watched.

    Attributes
    ----------
    fractions : from the first of the plan on.
    shift_at : the first fraction with the change; None for a course without.
    change : of anatomy and machine.
    noise : of the readings of a fraction, in Gy of it.
    volume_noise, blur_mm : of a dose volume, which an image comes with.
    action_level_mm : an estimated shift at or beyond it calls for an image.
    most_unexplained_ratio : chi-square over its degrees of freedom of what a recalibration leaves; more calls for one.
    seed : of all chance in the delivery; the dropout's is 0.
    samples : of the belief.
    project_every : fractions between projections to the end; every decision and the last fraction have one anyway.
    """

    fractions: int = 35
    shift_at: int | None = 10
    change: Change = Change(shift_mm=(0.0, 4.0, -3.0), parotid_shrinkage_ratio=0.15)
    setup: SetupErrors = SetupErrors()
    noise: NoiseModel = NoiseModel(0.03, 0.005)
    volume_noise: NoiseModel = NoiseModel(0.02, 0.005)
    blur_mm: float = BLUR_MM
    watch: WatchSettings = WatchSettings()
    policy: Policy = Triggered()
    action_level_mm: float = 2.0
    most_unexplained_ratio: float = 3.0
    seed: int = 0
    samples: int = SAMPLES
    project_every: int = 1

    def __post_init__(self) -> None:
        if self.fractions < 2 or self.samples < 2 or self.project_every < 1:
            raise RTDigitalTwinError("A course needs at least two fractions and two samples.", remedy="Ask for more.")
        if self.shift_at is not None and not 2 <= self.shift_at <= self.fractions:
            raise RTDigitalTwinError(
                f"The change cannot come at fraction {self.shift_at} of {self.fractions}.",
                remedy=f"Give a fraction from 2 to {self.fractions}: the twin learns the patient on the first.",
            )
        if not (self.action_level_mm > 0 and self.most_unexplained_ratio > 0):
            raise RTDigitalTwinError("The levels at which an image is called for must be above 0.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, by which two courses are told apart."""
        policy = {"name": self.policy.name} | {k: v for k, v in vars(self.policy).items() if not k.startswith("_")}
        values = {f: getattr(self, f) for f in self.__dataclass_fields__ if f != "policy"}
        plain = {k: asdict(v) if hasattr(v, "__dataclass_fields__") else v for k, v in values.items()}
        plain["change"]["shift_mm"] = list(self.change.shift_mm)
        return plain | {"policy": policy}


@dataclass(frozen=True)
class FractionRecord:
    """What a fraction was like, seen by the twin after it; ``true_`` is what the simulator knows besides.

    Attributes
    ----------
    days : since the first fraction, five a week.
    innovation_ratio : chi-square of the readings over its degrees of freedom.
    alarm_value : how far the innovations' fading mean is off (``Watch.total``), the alarm at its threshold.
    uncertainty_gy : half the calibrated 95 % band of the dose believed for the fractions to come, the mean over
        targets and organs, times what the innovations say it is too narrow by.
    events : what was done: recalibrated, re-imaged, replanned, or an action by its name.
    reasons : why, in words.
    estimated_shift_mm : LPS, of the change by the last recalibration; None before one.
    true_shift_mm : LPS, where the anatomy lay against the plan, but for the day's error.
    images : so far.
    endpoints : projected to the end of treatment; empty where it was not.
    """

    fraction: int
    days: float
    innovation_ratio: float
    alarm_value: float
    uncertainty_gy: float
    events: tuple[str, ...]
    reasons: tuple[str, ...]
    estimated_shift_mm: tuple[float, float, float] | None
    true_shift_mm: tuple[float, float, float]
    images: int
    endpoints: tuple[Endpoint, ...]

    def as_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain | {k: list(v) for k, v in plain.items() if isinstance(v, tuple)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> FractionRecord:
        """The record that ``as_dict`` told of."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        plain["endpoints"] = tuple(Endpoint(**e) for e in stored["endpoints"])
        return cls(**plain)


@dataclass(frozen=True)
class DecisionRecord:
    """An action chosen among others, and what who knows the true dose says of it, by the same protocol.

    The true dose of a decision goes on as it lies: that a change will come later is not known to anybody.

    Attributes
    ----------
    action : its name; None where the twin abstained, and went on as planned.
    best_action : of those that violate no constraint the one of the highest utility; None where all do.
    regret : its utility less that of what was done; None where all actions violate constraints, or what was done does.
    gain : utility of what was done less that of keeping.
    violated : constraints that the true dose with what was done violates, of ``constraints``.
    possible : number of actions whose true dose violates no constraint: with none, abstaining was right.
    """

    fraction: int
    action: str | None
    reasons: tuple[str, ...]
    best_action: str | None
    regret: float | None
    gain: float
    violated: int
    constraints: int
    possible: int


@dataclass(frozen=True, eq=False)
class CourseResult:
    """A course that was lived through.

    Attributes
    ----------
    projection : the dose of the course as believed at the end: all delivered, where it was gone through to its end.
    true_gy : (mask voxels,) what the simulator delivered, fractions that were not gone through left out.
    daily_gy : (fractions, mask voxels) float16, what each delivered, in Gy of one fraction.
    """

    settings: CourseSettings
    records: tuple[FractionRecord, ...]
    decisions: tuple[DecisionRecord, ...]
    projection: DoseEnsemble
    true_gy: NDArray[np.float32]
    daily_gy: NDArray[np.float16]

    def fractions_with(self, event: str) -> tuple[int, ...]:
        return tuple(r.fraction for r in self.records if event in r.events)

    @property
    def delay_fractions(self) -> int | None:
        """From the change to the first recalibration at or after it; None without a change or one."""
        start = self.settings.shift_at
        after = [f for f in self.fractions_with(RECALIBRATED) if start is not None and f >= start]
        return after[0] - start if after and start is not None else None

    @property
    def false_alarms(self) -> int:
        """Alarms that were acted on before there was a change, or without one."""
        start, threshold = self.settings.shift_at, self.settings.watch.threshold
        acted = [r for r in self.records if RECALIBRATED in r.events and r.alarm_value >= threshold]
        return sum(start is None or r.fraction < start for r in acted)
