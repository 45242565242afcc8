"""Observations: what was measured of a patient's dose, when, how surely, and by what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.words import counted

WIDEST_SHIFT_MM = 50.0
MOST_OF_PRESCRIPTION = 5.0  # beyond so many times the prescribed dose a value is taken for another unit
LEAST_COVERED_RATIO = 0.5


@dataclass(frozen=True)
class NoiseModel:
    """Independent Gaussian errors: a share of the value and a floor, added in quadrature.

    Attributes
    ----------
    ratio : of the value, 0.02 for 2 %.
    floor : in the value's unit.

    Raises PatientDataError where either is negative or no number, or both are 0: nothing is measured exactly.
    """

    ratio: float
    floor: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.ratio, self.floor]).all() and min(self.ratio, self.floor) >= 0):
            raise PatientDataError(
                f"The noise must be numbers of 0 or more, not {self.ratio} and {self.floor}.",
                remedy="Give a share of the value and a floor in its unit.",
            )
        if self.ratio == self.floor == 0:
            raise PatientDataError("A measurement without noise is none.", remedy="Give a share, a floor, or both.")

    def std(self, values: ArrayLike) -> NDArray[np.float64]:
        """Standard deviation of the error at given values, in their unit."""
        return np.hypot(self.ratio * np.abs(np.asarray(values, dtype=float)), self.floor)


@dataclass(frozen=True)
class Moment:
    """When something was measured.

    Attributes
    ----------
    days : since treatment started.
    fraction : number of the last treatment fraction in the value, from 1.
    fractions : how many fractions the value sums over, ``fraction`` the last of them.
    """

    days: float
    fraction: int
    fractions: int = 1

    def __post_init__(self) -> None:
        if not (np.isfinite(self.days) and self.days >= 0):
            raise PatientDataError(f"Days since treatment started must be 0 or more, not {self.days}.")
        if not 1 <= self.fractions <= self.fraction:
            raise PatientDataError(
                f"A value cannot sum over {counted(self.fractions, 'fraction')} up to fraction {self.fraction}.",
                remedy="Fractions count from 1; a value of one fraction sums over 1.",
            )


@dataclass(frozen=True)
class MetricObservation:
    """A DVH metric of a structure, of the dose summed over the moment's fractions.

    Attributes
    ----------
    metric : D95, D0.1cc, V20 or mean; V20 asks for the volume that those fractions gave 20 Gy.
    value : in Gy, or % of the volume for V.
    source : by what it was measured.
    simulated : whether it stands in for a measurement.
    """

    structure: str
    metric: str
    value: float
    moment: Moment
    noise: NoiseModel
    source: str
    simulated: bool = False

    @property
    def label(self) -> str:
        return f"{self.structure} {self.metric}"

    @property
    def unit(self) -> str:
        return "%" if self.metric.startswith("V") else "Gy"

    @property
    def key(self) -> tuple:
        """What two observations of the same thing share."""
        return ("metric", self.structure, self.metric.lower(), self.moment.fraction, self.moment.fractions)


@dataclass(frozen=True)
class PointObservation:
    """Dose at a point (LPS, mm, in the frame of the planning CT), in Gy over the moment's fractions."""

    position_mm: tuple[float, float, float]
    value: float
    moment: Moment
    noise: NoiseModel
    source: str
    simulated: bool = False

    @property
    def label(self) -> str:
        return "point ({:g}, {:g}, {:g}) mm".format(*self.position_mm)

    @property
    def unit(self) -> str:
        return "Gy"

    @property
    def key(self) -> tuple:
        return ("point", self.position_mm, self.moment.fraction, self.moment.fractions)


@dataclass(frozen=True, eq=False)
class DoseObservation:
    """A delivered dose volume, mapped to the anatomy of the planning CT, in Gy over the moment's fractions.

    Attributes
    ----------
    dose : NaN where it was not measured.
    noise : of each voxel, independent of the others.
    blur_mm : standard deviation of the Gaussian that the measurement blurs the dose by; 0 for none.
    """

    dose: Volume
    moment: Moment
    noise: NoiseModel
    source: str
    simulated: bool = False
    blur_mm: float = field(default=0.0)

    def __post_init__(self) -> None:
        if self.dose.quantity is not Quantity.DOSE_GY:
            raise PatientDataError("A delivered dose must be in Gy.", where=self.source)
        if not (np.isfinite(self.blur_mm) and self.blur_mm >= 0):
            raise PatientDataError(f"A blur must be 0 mm or more, not {self.blur_mm}.", where=self.source)

    @property
    def label(self) -> str:
        return "dose volume"

    @property
    def unit(self) -> str:
        return "Gy"

    @property
    def key(self) -> tuple:
        return ("dose", self.moment.fraction, self.moment.fractions)


@dataclass(frozen=True)
class CouchShiftObservation:
    """Where the patient lies in the room against the plan, from a fraction on: LPS in mm.

    Attributes
    ----------
    shift_mm : of the patient, left, to the back and up to the head positive.
    noise : its floor in mm along each axis.
    """

    shift_mm: tuple[float, float, float]
    moment: Moment
    noise: NoiseModel
    source: str
    simulated: bool = False

    def __post_init__(self) -> None:
        if not np.isfinite(self.shift_mm).all() or max(map(abs, self.shift_mm)) > WIDEST_SHIFT_MM:
            raise PatientDataError(
                "A couch shift of {:g}, {:g}, {:g} mm cannot be".format(*self.shift_mm)
                + f": along each axis it is at most {WIDEST_SHIFT_MM:g} mm.",
                where=self.source,
                remedy="Give mm, in patient coordinates (LPS), against the planned position.",
            )

    @property
    def label(self) -> str:
        return "couch shift {:g}, {:g}, {:g} mm".format(*self.shift_mm)

    @property
    def value(self) -> float:
        """Its length in mm."""
        return float(np.linalg.norm(self.shift_mm))

    @property
    def unit(self) -> str:
        return "mm"

    @property
    def key(self) -> tuple:
        return ("couch shift", self.moment.fraction, self.moment.fractions)


ScalarObservation: TypeAlias = MetricObservation | PointObservation
Observation: TypeAlias = MetricObservation | PointObservation | DoseObservation | CouchShiftObservation


def same_observation(one: Observation, other: Observation) -> bool:
    """Whether two observations agree in everything, values of volumes included."""
    if not isinstance(one, DoseObservation) or not isinstance(other, DoseObservation):
        return one == other
    return (
        (one.moment, one.noise, one.source, one.simulated, one.blur_mm)
        == (other.moment, other.noise, other.source, other.simulated, other.blur_mm)
        and one.dose.grid.same_as(other.dose.grid)
        and np.array_equal(one.dose.values, other.dose.values, equal_nan=True)
    )


def course_ratio(observation: Observation, patient: Patient) -> float:
    """The share of the course's dose that an observation's fractions give."""
    return observation.moment.fractions / patient.plan.prescription.fractions


def require_fit(observations: Sequence[Observation], patient: Patient, absorbed: Iterable[Observation] = ()) -> None:
    """Raise PatientDataError where observations cannot be of this patient, or were given before.

    Checked are: structures, fractions within the prescription, finite values, magnitudes that betray another unit,
    points and volumes where there is dose, and duplicates among themselves or with those already ``absorbed``.
    """
    known = {observation.key for observation in absorbed}
    for observation in observations:
        where = observation.label
        if observation.key in known:
            raise PatientDataError(
                f"Fraction {observation.moment.fraction} holds this more than once.",
                where=where,
                remedy="Give each measurement once, and only those not yet absorbed.",
            )
        known.add(observation.key)
        prescribed = patient.plan.prescription
        if observation.moment.fraction > prescribed.fractions:
            raise PatientDataError(
                f"There is no fraction {observation.moment.fraction}: {prescribed.fractions} are prescribed.",
                where=where,
            )
        if isinstance(observation, CouchShiftObservation):
            continue
        limit_gy = MOST_OF_PRESCRIPTION * prescribed.highest_gy * course_ratio(observation, patient)
        if isinstance(observation, DoseObservation):
            _require_volume_fits(observation, patient, limit_gy)
            continue
        if not np.isfinite(observation.value):
            raise PatientDataError("The value is no finite number.", where=where)
        limit = 100.0 if observation.unit == "%" else limit_gy
        if not 0 <= observation.value <= limit:
            raise PatientDataError(
                f"{observation.value:g} {observation.unit} cannot be: it lies outside 0 to {limit:.4g} "
                f"{observation.unit} for {observation.moment.fractions} of {prescribed.fractions} fractions.",
                where=where,
                remedy="Give Gy, not cGy, and say how many fractions the value sums over.",
            )
        if isinstance(observation, MetricObservation):
            patient.structure(observation.structure)
        else:
            _require_inside(observation, patient)


def require_apart(observations: Sequence[Observation], absorbed: Iterable[Observation] = ()) -> None:
    """Raise PatientDataError where two observations tell of the same fractions in a way that would count twice.

    That is: the same metric, point or dose volume over fractions that overlap; a metric or point beside a dose volume
    of overlapping fractions and the same source, of which it was surely read off.
    """
    known = list(absorbed)
    for observation in observations:
        for other in known:
            if _overlap(observation.moment, other.moment) and _alike(observation, other):
                raise PatientDataError(
                    f"Fractions {_span(observation.moment)} overlap with fractions {_span(other.moment)} of "
                    f"{other.label}, so that what they share would count twice.",
                    where=observation.label,
                    remedy="Give one of the two, or allow the overlap where their errors are independent.",
                )
        known.append(observation)


def _overlap(one: Moment, other: Moment) -> bool:
    latest_start = max(one.fraction - one.fractions, other.fraction - other.fractions)
    return latest_start < min(one.fraction, other.fraction)


def _alike(one: Observation, other: Observation) -> bool:
    if one.key[:-2] == other.key[:-2]:
        return True
    has_volume = isinstance(one, DoseObservation) != isinstance(other, DoseObservation)
    return has_volume and bool(one.source) and one.source == other.source and not one.simulated


def _span(moment: Moment) -> str:
    first = moment.fraction - moment.fractions + 1
    return str(first) if moment.fractions == 1 else f"{first} to {moment.fraction}"


def _require_inside(observation: PointObservation, patient: Patient) -> None:
    grid = patient.ct.grid
    index = np.round(grid.to_index(observation.position_mm)).astype(int)
    inside = bool((index >= 0).all() and (index < grid.shape).all())
    if not inside or not patient.dose_mask.mask[tuple(index)]:
        raise PatientDataError(
            "The point lies where no dose is predicted.",
            where=observation.label,
            remedy="Give patient coordinates in mm, LPS, in the frame of the planning CT.",
        )


def _require_volume_fits(observation: DoseObservation, patient: Patient, limit_gy: float) -> None:
    moved = observation.dose.resampled(patient.ct.grid).values[patient.dose_mask.mask]
    known = moved[np.isfinite(moved)]
    if known.size < LEAST_COVERED_RATIO * moved.size:
        raise PatientDataError(
            f"The volume covers {known.size / moved.size:.0%} of the voxels that can receive dose.",
            where=observation.label,
            remedy="Give a volume in the frame of the planning CT, finite over most of the patient.",
        )
    if known.min() < 0 or np.quantile(known, 0.99) > limit_gy:
        raise PatientDataError(
            f"Doses from {known.min():g} to {known.max():g} Gy cannot be: below 0 or above {limit_gy:.4g} Gy for "
            f"{observation.moment.fractions} of {patient.plan.prescription.fractions} fractions.",
            where=observation.label,
            remedy="Give Gy, not cGy, and say how many fractions the volume sums over.",
        )
