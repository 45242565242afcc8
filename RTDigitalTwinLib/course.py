"""The course: fractions with set-up errors and a change on the way, and a twin that watches, learns, and decides.

The fractions are simulated (``dosimetry.fraction_delivery``): the network has no part in what is delivered. The twin
sees a few readings of every fraction, and where it asks for an image the dose volume of one. It believes a dose for
each stretch of fractions and never averages over a change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
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
from RTDigitalTwinLib.calibration.trial import customary_scalars
from RTDigitalTwinLib.calibration.watch import Watch
from RTDigitalTwinLib.course_deciding import factor_of, judged_decision, keeping, times
from RTDigitalTwinLib.course_projection import OnRemaining, Part, endpoints_of, known_dose, summed
from RTDigitalTwinLib.course_record import (
    RE_IMAGED,
    RECALIBRATED,
    REPLANNED,
    CourseResult,
    CourseSettings,
    DecisionRecord,
    FractionRecord,
)
from RTDigitalTwinLib.decision.actions import Action, ActionKind, Keep, Situation
from RTDigitalTwinLib.decision.policies import Decider
from RTDigitalTwinLib.dosimetry.fraction_delivery import READINGS, VOLUME, Deliveries, Treatment
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.observation import Moment
from RTDigitalTwinLib.patient.volume import Quantity
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.words import decimal

METHOD = "change of treatment"
LEVEL = 0.95
LEAST_MM2 = 1e-9
AFTER_IMAGE_RATIO = 0.25  # of the network's variance of readings, left after a dose volume


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
        lasting = self.known.lasting(self.known.mean_gy, self.settings.setup.systematic_mm)
        self.watch = Watch(self.settings.watch, self.known.base_gy, self.known.between + lasting)
        self.shift_mm: tuple[float, float, float] | None = None
        self.images = 0
        if self.decider is not None and self.actions:
            self.decider.require(self.drawn)
            if keeping(tuple(self.actions)) is None:
                self.actions = (Keep(), *self.actions)
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
        output = decimal(100 * float(fit.change[3]), 1, signed=True)
        reasons.append(f"{why}; shift {away:.1f} mm and output {output}% estimated" if after else why)
        if after:
            self.watch = self._watch(self._expected(), fit.covariance)
        if away >= self.settings.action_level_mm:
            reasons.append(f"the shift reaches {self.settings.action_level_mm:g} mm")
            self._image(fraction, since, events)
        elif fit.unexplained_ratio > self.settings.most_unexplained_ratio:
            reasons.append(f"the readings stay unexplained ({fit.unexplained_ratio:.1f} times their variance)")
            self._image(fraction, since, events)

    def _believe(self, fitted: FittedDose, readings: Sequence[NDArray], of: Sequence[int], fraction: int) -> None:
        """Adopt a fitted dose, for the fractions given and those to come."""
        self._adopt(self._believed(fitted, readings), of)

    def _believed(self, fitted: FittedDose, readings: Sequence[NDArray]) -> DoseEnsemble:
        belief = RecalibratedBelief(self.prior, METHOD, (), fitted.shift_gy, spread_for(self.drawn, fitted.variance))
        return replace(belief.applied(self.drawn), absorbed=len(readings) * self.known.count)

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
        stays, left = self._lasting(seen)
        self.treatment = self.truth.corrected(self.treatment, stays)
        self.lay_mm, self.lay_covariance = np.zeros(3), left
        self._adopt(self._moved_back(imaged, seen), ())
        self.images += 1
        events.append(RE_IMAGED)
        self._begin_anew()

    def _lasting(self, seen_mm: Sequence[float]) -> tuple[tuple[float, float, float], NDArray[np.float64]]:
        """What of a shift that was seen is likely to stay, weighed with what the readings told: days differ.

        LPS; and the covariance (3, 3) of what is left when the couch is moved by it, along the axes.
        """
        setup, grid = self.settings.setup, self.drawn.patient.ct.grid
        before = self.lay_covariance + setup.systematic_mm**2 * np.eye(3)
        day = (setup.random_mm**2 + setup.registration_mm**2) * np.eye(3)
        gain = np.linalg.solve(before + day + LEAST_MM2 * np.eye(3), before).T
        stays = self.lay_mm + gain @ (along_axes_mm(grid, seen_mm) - self.lay_mm)
        return in_lps_mm(grid, stays), before - gain @ before

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
        present = Situation(self.present)
        offered = [self._offered(action, present) for action in self.actions]
        made = self.decider.decide(self.projection, offered, self.settings.policy.uncertainty_weight)
        reasons += made.reasons
        name = None if made.action is None else made.action.name
        chosen = next((offer for offer in offered if offer.name == name), None)
        if name is not None and chosen is None:
            raise RTDigitalTwinError(f"The decision {name!r} is none of the actions offered.")
        kept = next(offer.name for offer in offered if offer.kind is ActionKind.KEEP)
        self.decisions.append(
            judged_decision(self.decider, self._true_outcomes(fraction, offered), fraction, name, kept, made.reasons)
        )
        if chosen is None or chosen.kind is ActionKind.KEEP:
            return
        events.append(chosen.name)
        if chosen.kind is ActionKind.RE_IMAGE:
            self._image(fraction, fraction, events)
        elif chosen.kind is ActionKind.REPLAN:
            self.treatment = self.truth.replanned(fraction, self.treatment)
            self._believe(self._as_planned, self.reference, (), fraction)
            if chosen.name != REPLANNED:
                events.append(REPLANNED)
            self.lay_mm, self.lay_covariance = np.zeros(3), np.zeros((3, 3))
            self._begin_anew()
        else:
            self._change_dose(chosen.of_remaining().prediction)

    def _offered(self, action: Action, present: Situation) -> OnRemaining:
        """An action on the fractions to come; an image moves the couch by the shift believed."""
        instead = None
        if action.kind is ActionKind.REPLAN:
            instead = self._believed(self._as_planned, self.reference)
        elif action.kind is ActionKind.RE_IMAGE:
            instead = self._moved_back(self.present, in_lps_mm(self.drawn.patient.ct.grid, self.lay_mm))
        return OnRemaining(
            action, self.delivered, present, self.remaining_ratio, self.watch.inflation_ratio, instead
        )  # fmt: skip

    @property
    def _as_planned(self) -> FittedDose:
        """What is believed of the dose on the anatomy as planned."""
        return self.planned or FittedDose(np.zeros_like(self.known.mean_gy), np.square(voxel_std(self.drawn)))

    def _true_outcomes(
        self, fraction: int, offered: Sequence[OnRemaining]
    ) -> dict[str, tuple[ActionKind, DoseEnsemble]]:
        """What every action that can be done makes of the true dose; an image is one with the couch corrected."""
        found = {}
        for offer in offered:
            after = self.treatment
            if offer.kind is ActionKind.RE_IMAGE:
                stays, _ = self._lasting(self.truth.seen_mm(fraction, self.treatment))
                after = self.truth.corrected(self.treatment, stays)
            elif offer.kind is ActionKind.REPLAN:
                after = self.truth.replanned(fraction, self.treatment)
            elif offer.kind is not ActionKind.KEEP:
                try:
                    factor = factor_of(self.present, offer.of_remaining().prediction)
                except RTDigitalTwinError:
                    continue  # refused, which the ranking told
                after = replace(self.treatment, dose_factor=times(self.treatment, factor, self.drawn))
            found[offer.name] = offer.kind, self.true_outlook(after)
        return found

    def _change_dose(self, after: DoseEnsemble) -> None:
        """Give another dose from now on: what the action makes of the belief's mean, made of the true planned dose."""
        factor = factor_of(self.present, after)
        self.treatment = replace(self.treatment, dose_factor=times(self.treatment, factor, self.drawn))
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

    def _expected(self) -> NDArray[np.float64]:
        mean = self.present.mean.values.reshape(-1)[self.drawn.crop.mask_indices]
        return self.known.base_gy + self.known.slopes.astype(float) @ (mean - self.known.mean_gy).astype(float)

    def _watch(self, expected: NDArray[np.float64], covariance: NDArray[np.float64]) -> Watch:
        """Begun anew, but for what is usual for the patient."""
        usual = self.watch.usual_ratio, self.watch.usual_weight
        return Watch(self.settings.watch, expected, covariance, usual_ratio=usual[0], usual_weight=usual[1])

    def _width(self) -> float:
        key = len(self.beliefs) - 1
        if key not in self._widths:
            present = self.beliefs[key]
            shown = present.half_width(LEVEL) if present.is_calibrated else present.std
            inside = np.any([s.mask for s in present.patient.structures.values()], axis=0)
            inside &= present.patient.dose_mask.mask
            self._widths[key] = float(shown.values[inside].mean())
        return self._widths[key]


def prepared(drawn: DoseEnsemble, settings: CourseSettings) -> tuple[DoseEnsemble, FractionReadings]:
    """The dose that the mean of many days gives, and how fractions are read: means of structures, three points.

    Both are alike for all courses of a patient with one set-up and one noise. ``drawn`` are samples of the network's
    own belief. Raises PatientDataError where the plan has no dose to deliver.
    """
    if drawn.patient.plans and drawn.patient.plan.dose is None:
        raise PatientDataError("There is no reference dose to deliver.", remedy="Use a patient whose plan has a dose.")
    given = blurred_by_setup(drawn, settings.setup)
    return given, FractionReadings.of(given, customary_scalars(drawn.patient), settings.noise, settings.setup)


def _days(fraction: int) -> float:
    """Since the first fraction, five a week."""
    return float((fraction - 1) // 5 * 7 + (fraction - 1) % 5)
