"""The course: fractions with set-up errors and a change on the way, and a twin that watches, learns, and decides.

The fractions are simulated (``dosimetry.fraction_delivery``): the network has no part in what is delivered. The twin sees
a few readings of every fraction, and where it asks for an image the dose volume of one. It believes a dose for each
stretch of fractions and never averages over a change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import SAMPLES
from RTDigitalTwinLib.calibration.change_fit import FittedDose, fit_change
from RTDigitalTwinLib.calibration.fraction_readings import (
    FractionReadings,
    along_axes_mm,
    blurred_by_setup,
    in_lps_mm,
    moved_unscaled,
)
from RTDigitalTwinLib.calibration.gaussian_process import spread_for
from RTDigitalTwinLib.calibration.measuring import measure_volume
from RTDigitalTwinLib.calibration.readings import voxel_std
from RTDigitalTwinLib.calibration.recalibration import recalibrate
from RTDigitalTwinLib.calibration.trial import BLUR_MM, customary_scalars
from RTDigitalTwinLib.calibration.watch import Watch, WatchSettings
from RTDigitalTwinLib.course_projection import Endpoint, OnRemaining, Part, endpoints_of, known_dose, summed
from RTDigitalTwinLib.decision.actions import Action, ActionKind, Situation
from RTDigitalTwinLib.decision.policies import Decider, Policy, Triggered
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.dosimetry.fraction_delivery import READINGS, VOLUME, Deliveries, SetupErrors, Treatment
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.observation import Moment, NoiseModel
from RTDigitalTwinLib.patient.volume import Quantity
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief

METHOD = "change of treatment"
RE_IMAGED, REPLANNED, RECALIBRATED = "re-imaged", "replanned", "recalibrated"
LEAST_GY = 1.0  # below this dose an action's factor is not taken from
FACTORS = (0.5, 1.5)  # that an action may change a dose by
AFTER_IMAGE_RATIO = 0.25  # of the network's variance of readings, left after a dose volume


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
    alarm_sum : the watch's cumulative sum, the alarm at its threshold.
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
    alarm_sum: float
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
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**plain | {"endpoints": tuple(Endpoint(**e) for e in stored["endpoints"])})


@dataclass(frozen=True)
class DecisionRecord:
    """An action chosen among others; regret is in utility, of the fractions to come, against who knows the true dose.

    Attributes
    ----------
    action : its name; None where the twin abstained.
    violated : constraints that the true dose with the action violates, of ``constraints``.
    """

    fraction: int
    action: str | None
    reasons: tuple[str, ...]
    best_action: str | None
    regret: float | None
    violated: int | None
    constraints: int | None


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
        acted = [r for r in self.records if RECALIBRATED in r.events and r.alarm_sum >= threshold]
        return sum(start is None or r.fraction < start for r in acted)


@dataclass(eq=False)
class Course:
    """A course at work: ``fractions()`` lives through it.

    Attributes
    ----------
    prior : the network's belief of the patient.
    drawn, known : of its samples, as ``prepared`` makes them.
    actions : what may be done besides going on, whenever the twin recalibrated; needs a ``decider``.
    """

    prior: DoseBelief
    drawn: DoseEnsemble
    settings: CourseSettings
    known: FractionReadings
    decider: Decider | None = None
    actions: Sequence[Action] = ()
    daily: list[NDArray[np.float16]] = field(default_factory=list)
    decisions: list[DecisionRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prescribed = self.drawn.patient.plan.prescription.fractions
        if self.settings.fractions > self.prescribed:
            raise RTDigitalTwinError(
                f"{self.settings.fractions} fractions are more than the {self.prescribed} prescribed.",
                remedy=f"Ask for up to {self.prescribed}.",
            )
        self.truth = Deliveries(self.drawn.patient, self.drawn.crop.mask_indices, self.settings.change,
                                self.settings.shift_at, self.settings.setup, self.settings.seed)  # fmt: skip
        self.treatment, self.true_gy = Treatment(), np.zeros(self.drawn.deterministic_gy.shape)
        self.beliefs: list[DoseEnsemble] = [self.drawn]
        self.of_fraction: list[int] = []  # which belief
        self.reference: list[NDArray] = []  # readings of the anatomy as planned
        self.recent: list[tuple[int, NDArray]] = []  # those after, or since it was last corrected
        self.planned: FittedDose | None = None  # what ``reference`` says
        self.watch = self._watch(self.known.base_gy, self.known.between
                                 + self.known.lasting(self.known.mean_gy, self.settings.setup.systematic_mm))  # fmt: skip
        self.shift_mm: tuple[float, float, float] | None = None
        self.images = 0
        # Where the anatomy lies against the plan, along slices, rows, columns, as believed.
        self.lay_mm, self.lay_covariance = np.zeros(3), np.zeros((3, 3))
        self._widths: dict[int, float] = {}

    def fractions(self, known_until: int = 0) -> Iterator[FractionRecord]:
        """Fraction after fraction, each told when it is over; up to ``known_until`` without a projection."""
        for fraction in range(1, self.settings.fractions + 1):
            yield self._live(fraction, fraction > known_until)

    def result(self, records: Sequence[FractionRecord]) -> CourseResult:
        return CourseResult(self.settings, tuple(records), tuple(self.decisions), self.projection,
                            self.true_gy.astype(np.float32), np.stack(self.daily))  # fmt: skip

    @property
    def present(self) -> DoseEnsemble:
        """What the fractions to come are believed to give, as a whole course of them."""
        return self.beliefs[-1]

    @property
    def delivered(self) -> tuple[Part, ...]:
        used = sorted(set(self.of_fraction))
        return tuple(Part(self.beliefs[k], self.of_fraction.count(k) / self.prescribed) for k in used)

    @property
    def remaining_ratio(self) -> float:
        return 1 - len(self.of_fraction) / self.prescribed

    @property
    def projection(self) -> DoseEnsemble:
        """The dose of the whole course: what was delivered, and what is to come if nothing is done."""
        rest = [Part(self.present, self.remaining_ratio, self.watch.inflation_ratio)] if self.remaining_ratio else []
        return summed([*self.delivered, *rest])

    def true_outlook(self, treatment: Treatment | None = None) -> DoseEnsemble:
        """The true dose of the whole course, the fractions to come without errors of the day."""
        rest = self.truth.expected_gy(max(len(self.of_fraction), 1), treatment or self.treatment)
        return known_dose(self.drawn, (self.true_gy + self.remaining_ratio * rest).astype(np.float32))

    def _live(self, fraction: int, projected: bool) -> FractionRecord:
        self._deliver(fraction)
        lay = self.truth.lasting_mm(fraction) + self.treatment.couch_mm
        events: list[str] = []
        reasons: list[str] = []
        why = self.settings.policy.due(fraction, self.watch)
        shown = self.watch
        if why:
            self._recalibrate(fraction, why, events, reasons)
            self._decide(fraction, events, reasons)
        is_last = fraction == self.settings.fractions
        wanted = projected and (events or is_last or fraction % self.settings.project_every == 0)
        endpoints = endpoints_of(self.projection, self.true_outlook()) if wanted else ()
        x, y, z = (round(float(v), 3) for v in lay)
        width = self._width() * self.watch.inflation_ratio
        return FractionRecord(
            fraction, _days(fraction), shown.innovation_ratio, shown.total, width, tuple(events), tuple(reasons),
            self.shift_mm, (x, y, z), self.images, endpoints,
        )  # fmt: skip

    def _deliver(self, fraction: int) -> None:
        given = self.truth.dose_gy(fraction, self.treatment)
        self.true_gy += given.astype(float) / self.prescribed
        self.daily.append((given / self.prescribed).astype(np.float16))
        readings = self.known.measured(given, self.truth.chance(READINGS, fraction))
        present = self.present.mean.values.reshape(-1)[self.drawn.crop.mask_indices].astype(np.float32)
        self.watch = self.watch.after(fraction, readings, self.known.daily(present))
        self.recent.append((fraction, readings))
        self.of_fraction.append(len(self.beliefs) - 1)

    def _recalibrate(self, fraction: int, why: str, events: list[str], reasons: list[str]) -> None:
        """Believe anew, and take an image where readings are not enough."""
        since = self.watch.since
        if since is None or not self.watch.alarm:
            since = self.recent[0][0] if self.reference else fraction + 1
        before = [*self.reference, *(r for k, r in self.recent if k < since)]
        after = [r for k, r in self.recent if k >= since]
        if not before:
            before, after, since = after, [], fraction + 1
        fit = fit_change(self.known, np.stack(before), np.reshape(after, (-1, self.known.count)))
        self.planned = fit.before
        own = {k for k, _ in self.recent}
        if any(k in own and k < since for k in own) or not after:
            self._believe(fit.before, before, [k for k in own if k < since], fraction)
        if after:
            self._believe(fit.after, after, [k for k in own if k >= since], fraction)
        events.append(RECALIBRATED)
        if not self.reference:
            self.reference = before
        elif any(k < since for k in own) and self.images:
            self.reference = before
        self.recent = [(k, r) for k, r in self.recent if k >= since]
        self.shift_mm = in_lps_mm(self.drawn.patient.ct.grid, fit.change[:3]) if after else None
        self.lay_mm, self.lay_covariance = fit.change[:3], fit.change_covariance[:3, :3]
        away = float(np.linalg.norm(fit.change[:3]))
        reasons.append(f"{why}; shift {away:.1f} mm and output {fit.change[3]:+.1%} estimated" if after else why)
        self.watch = self._watch(self._expected(), fit.covariance)
        if away >= self.settings.action_level_mm:
            reasons.append(f"the shift reaches {self.settings.action_level_mm:g} mm")
            self._image(fraction, since, events)
        elif fit.unexplained_ratio > self.settings.most_unexplained_ratio:
            reasons.append(f"the readings stay unexplained ({fit.unexplained_ratio:.1f} times their variance)")
            self._image(fraction, since, events)

    def _believe(self, fitted: FittedDose, readings: Sequence[NDArray], of: Sequence[int], fraction: int) -> None:
        """Adopt a fitted dose, for the fractions given and those to come."""
        belief = RecalibratedBelief(self.prior, METHOD, (), fitted.shift_gy, spread_for(self.drawn, fitted.variance))
        self._adopt(replace(belief.applied(self.drawn), absorbed=len(readings) * self.known.count), of)

    def _adopt(self, believed: DoseEnsemble, of: Sequence[int]) -> None:
        self.beliefs.append(believed)
        for k in of:
            self.of_fraction[k - 1] = len(self.beliefs) - 1

    def _image(self, fraction: int, since: int, events: list[str]) -> None:
        """The dose volume of this fraction, and the couch corrected by the shift that is seen."""
        patient, crop = self.drawn.patient, self.drawn.crop
        given = crop.spread(self.truth.dose_gy(fraction, self.treatment), Quantity.DOSE_GY)
        seed = int(self.truth.chance(VOLUME, fraction).integers(2**31))
        volume = measure_volume(patient, given, Moment(_days(fraction), fraction), self.settings.volume_noise,
                                self.settings.change, seed, self.settings.blur_mm)  # fmt: skip
        update = recalibrate(self.prior, [volume], None, self.drawn, absorb_outliers=True)
        assert isinstance(update.after, RecalibratedBelief)
        imaged = update.after.applied(self.drawn)
        self._adopt(imaged, [k for k, _ in self.recent if k >= since] or [fraction])
        seen = self.truth.seen_mm(fraction, self.treatment)
        self.treatment = self.truth.corrected(self.treatment, self._lasting(seen))
        self._adopt(self._moved_back(imaged, seen), ())
        self.images += 1
        events.append(RE_IMAGED)
        self._begin_anew()

    def _lasting(self, seen_mm: Sequence[float]) -> tuple[float, float, float]:
        """What of a shift that was seen is likely to stay: it is weighed with what the readings told, for days differ."""
        setup, grid = self.settings.setup, self.drawn.patient.ct.grid
        before = self.lay_covariance + setup.systematic_mm**2 * np.eye(3)
        day = (setup.random_mm**2 + setup.registration_mm**2) * np.eye(3)
        gain = np.linalg.solve(before + day, before).T
        stays = self.lay_mm + gain @ (along_axes_mm(grid, seen_mm) - self.lay_mm)
        self.lay_mm, self.lay_covariance = np.zeros(3), before - gain @ before
        return in_lps_mm(grid, stays)

    def _moved_back(self, imaged: DoseEnsemble, seen_mm: Sequence[float]) -> DoseEnsemble:
        """The dose of an image's fraction as it is at tissue that was moved back by the shift that was seen."""
        back = -along_axes_mm(self.drawn.patient.ct.grid, seen_mm)
        mean, ratio = imaged.mean.values.reshape(-1)[self.drawn.crop.mask_indices], imaged.floor_ratio
        inside = moved_unscaled(self.known.box, np.ones_like(mean), back) > 0.999
        instead = self.known.mean_gy if self.planned is None else self.known.mean_gy + self.planned.shift_gy
        moved = np.where(inside, moved_unscaled(self.known.box, mean, back), instead)
        spread = voxel_std(self.drawn) * (1.0 if ratio is None else ratio)
        variance = np.square(np.where(inside, moved_unscaled(self.known.box, spread, back), voxel_std(self.drawn)))
        slopes = self.known.box.slopes(moved).astype(float)
        variance = variance + np.einsum("kx,kl,lx->x", slopes, self.lay_covariance, slopes, optimize=True)
        belief = RecalibratedBelief(
            self.prior, METHOD, (), (moved - self.known.mean_gy).astype(np.float32), spread_for(self.drawn, variance)
        )
        return replace(belief.applied(self.drawn), absorbed=imaged.absorbed)

    def _begin_anew(self) -> None:
        """Watch from here on: the anatomy was put back, or another dose is given."""
        self.recent = []
        left = self.known.slopes.astype(float) @ self.known.box.slopes(self.known.mean_gy).T.astype(float)
        covariance = AFTER_IMAGE_RATIO * self.known.between + left @ self.lay_covariance @ left.T
        self.watch = self._watch(self._expected(), covariance)

    def _decide(self, fraction: int, events: list[str], reasons: list[str]) -> None:
        if self.decider is None or not self.actions or not self.remaining_ratio:
            return
        weight = self.settings.policy.uncertainty_weight
        offered = [OnRemaining(a, self.delivered, self.present, self.remaining_ratio, self.watch.inflation_ratio)
                   for a in self.actions]  # fmt: skip
        made = self.decider.decide(self.projection, offered, weight)
        reasons += made.reasons
        chosen = next((a for a in self.actions if made.action is not None and a.name == made.action.name), None)
        if made.action is not None and chosen is None:
            raise RTDigitalTwinError(f"The decision {made.action.name!r} is none of the actions offered.")
        self._judge(fraction, chosen, made.reasons)
        if chosen is None or chosen.kind is ActionKind.KEEP:
            return
        events.append(chosen.name)
        if chosen.kind is ActionKind.RE_IMAGE:
            self._image(fraction, fraction, events)
        elif chosen.kind is ActionKind.REPLAN:
            self.treatment = self.truth.replanned(fraction, self.treatment)
            planned = self.planned or FittedDose(np.zeros_like(self.known.mean_gy), np.square(voxel_std(self.drawn)))
            self._believe(planned, self.reference, (), fraction)
            events.append(REPLANNED)
            self._begin_anew()
        else:
            self._change_dose(chosen)

    def _change_dose(self, action: Action) -> None:
        """Give another dose from now on: what the action makes of the belief's mean, made of the true planned dose."""
        before = self.present
        after = action.outcome(Situation(before)).prediction
        factor = _factor(before, after)
        self.treatment = self._times(factor)
        self.drawn = replace(
            self.drawn,
            deterministic_gy=self.drawn.deterministic_gy * factor,
            deviations_gy=(self.drawn.deviations_gy * factor).astype(np.float16),
        )
        self.known = FractionReadings.of(self.drawn, customary_scalars(self.drawn.patient), self.settings.noise,
                                         self.settings.setup)  # fmt: skip
        self._adopt(after, ())
        self.reference, self.planned = [], None
        self._begin_anew()

    def _times(self, factor: NDArray[np.float32]) -> Treatment:
        full = np.ones(self.drawn.crop.grid.voxel_count, np.float32)
        full[self.drawn.crop.mask_indices] = factor
        known, field_ = self.treatment.dose_factor, full.reshape(self.drawn.crop.grid.shape)
        return replace(self.treatment, dose_factor=field_ if known is None else known * field_)

    def _judge(self, fraction: int, chosen: Action | None, reasons: tuple[str, ...]) -> None:
        """What the decision is worth, by who knows the true dose: the same actions, ranked alike."""
        assert self.decider is not None
        weight, true = self.settings.policy.uncertainty_weight, self.true_outlook()
        worth, best = {}, None
        for action in self.actions:
            if action.kind in (ActionKind.RE_IMAGE, ActionKind.REPLAN):
                after = self.truth.replanned(fraction, self.treatment)
                outcome = self.true_outlook(after)
            else:
                factor = _factor(self.present, action.outcome(Situation(self.present)).prediction)
                outcome = self.true_outlook(self._times(factor))
            worth[action.name] = self.decider.utility(outcome, weight), outcome
        best = max(worth, key=lambda name: worth[name][0])
        if chosen is None:
            made, regret = self.decider.violated(true), None
        else:
            made, regret = self.decider.violated(worth[chosen.name][1]), worth[best][0] - worth[chosen.name][0]
        self.decisions.append(
            DecisionRecord(fraction, None if chosen is None else chosen.name, reasons, best, regret,
                           sum(bad for _, bad in made), len(made))
        )  # fmt: skip

    def _expected(self) -> NDArray[np.float64]:
        mean = self.present.mean.values.reshape(-1)[self.drawn.crop.mask_indices]
        return self.known.base_gy + self.known.slopes.astype(float) @ (mean - self.known.mean_gy).astype(float)

    def _watch(self, expected: NDArray[np.float64], covariance: NDArray[np.float64]) -> Watch:
        return Watch(self.settings.watch, expected, covariance)

    def _width(self) -> float:
        key = len(self.beliefs) - 1
        if key not in self._widths:
            present = self.beliefs[key]
            shown = present.half_width(LEVEL) if present.is_calibrated else present.std
            inside = (
                np.any([s.mask for s in present.patient.structures.values()], axis=0) & present.patient.dose_mask.mask
            )
            self._widths[key] = float(shown.values[inside].mean())
        return self._widths[key]


LEVEL = 0.95


def prepared(drawn: DoseEnsemble, settings: CourseSettings) -> tuple[DoseEnsemble, FractionReadings]:
    """The dose that the mean of many days gives, and how fractions are read: means of structures, three points.

    Both are alike for all courses of a patient with one set-up and one noise. ``drawn`` are samples of the network's
    own belief. Raises PatientDataError where the plan has no dose to deliver.
    """
    if drawn.patient.plans and drawn.patient.plan.dose is None:
        raise PatientDataError("There is no reference dose to deliver.", remedy="Use a patient whose plan has a dose.")
    given = blurred_by_setup(drawn, settings.setup)
    return given, FractionReadings.of(given, customary_scalars(drawn.patient), settings.noise, settings.setup)


def _factor(before: DoseEnsemble, after: DoseEnsemble) -> NDArray[np.float32]:
    """(mask voxels,) of the mean doses, within ``FACTORS``; 1 where there is next to no dose."""
    one, other = (e.mean.values.reshape(-1)[e.crop.mask_indices] for e in (before, after))
    ratio = np.divide(other, one, out=np.ones_like(one), where=one > LEAST_GY)
    return np.clip(ratio, *FACTORS).astype(np.float32)


def _days(fraction: int) -> float:
    """Since the first fraction, five a week."""
    return float((fraction - 1) // 5 * 7 + (fraction - 1) % 5)
