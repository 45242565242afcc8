"""A dose with structures, reviewed: DVH metrics, plan quality, clinical goals and biology, without any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.discretisation import SMALL_CC, discretisation_error
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, StructureDose, dose_axis_gy
from RTDigitalTwinLib.dosimetry.goals import GoalSet
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.dosimetry.plan_quality import integral_dose_gy_l, plan_quality
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.biology import NOTICE, DoseResponse, applicable, load_biology
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, joined
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.report.biology_table import DRAWS, central_band
from RTDigitalTwinLib.report.goal_table import GoalTable, goal_choice, goal_tables, metrics_of_dose
from RTDigitalTwinLib.report.tables import ordered_structures

LEVEL = 0.95


@dataclass(frozen=True)
class DoseMetricRow:
    """A metric of one structure; ``discretisation`` is its half width from the voxels, given below 5 cc."""

    structure: str
    volume_cc: float
    metric: str
    unit: str
    value: float
    discretisation: float | None


@dataclass(frozen=True)
class QualityRow:
    """Indices of one target at its prescribed dose; None where they cannot be had.

    ``conformity_with`` names the other targets of this dose level and above, which the conformity is of too.
    """

    structure: str
    prescribed_gy: float
    conformity: float | None
    homogeneity: float | None
    gradient: float | None
    conformity_with: tuple[str, ...]


@dataclass(frozen=True)
class BiologyRow:
    """TCP or NTCP of one endpoint; ``low`` and ``high`` are the central 95 % of its published parameters, if any."""

    structure: str
    effect: str
    endpoint: str
    eud_gy: float
    probability: float
    low: float | None
    high: float | None
    citation: str


@dataclass(frozen=True)
class DoseReview:
    """All there is to say of a dose. ``notes`` name what was left out and why."""

    metrics: tuple[DoseMetricRow, ...]
    quality: tuple[QualityRow, ...]
    integral_dose_gy_l: float | None
    goals: tuple[GoalTable, ...]
    biology: tuple[BiologyRow, ...]
    notes: tuple[str, ...]


def review_dose(
    patient: Patient,
    dose: Volume,
    goals: Sequence[GoalSet] | None = None,
    models: Sequence[DoseResponse] | None = None,
) -> DoseReview:
    """Review a dose on the grid of the patient's CT; goals and models by default those that come with the software.

    A structure that the dose does not cover is named in the notes. Raises GeometryError for another grid,
    PatientDataError where the volume is no dose, has negative values or is known nowhere in the patient.
    """
    patient.ct.grid.require_same(dose.grid, "The planning CT and the dose")
    require_reach(patient, dose)
    notes = list(patient.warnings)
    inside: dict[str, StructureDose] = {}
    rows: list[DoseMetricRow] = []
    levels = target_levels_gy(patient)
    for structure in ordered_structures(patient):
        try:
            inside[structure.name], found = _metric_rows(dose, structure, levels.get(structure.name))
            rows += found
        except PatientDataError as error:
            notes.append(str(error))
    body = structure_dose_of(dose, patient.dose_mask)
    quality = tuple(_quality(patient, dose, levels, doses, body, notes) for doses in _targets_first(levels, inside))
    notes += overlaps(patient, levels)
    fractions = patient.plan.prescription.fractions if patient.plans else None
    choice = goal_choice(patient, goals)
    tables = goal_tables(patient, metrics_of_dose(dose, patient), choice)
    notes += choice.left_out
    pairs, unknown = applicable(load_biology() if models is None else models, inside, fractions)
    notes += unknown
    biology = [_biology(model, name, inside[name], fractions or 1) for name, model in pairs]
    if biology:
        notes.append(NOTICE)
    try:
        integral = float(integral_dose_gy_l(body)[0])
    except PatientDataError as error:
        integral = None
        notes.append(str(error))
    return DoseReview(tuple(rows), quality, integral, tuple(tables), tuple(biology), tuple(dict.fromkeys(notes)))


def require_reach(patient: Patient, dose: Volume) -> None:
    """Raises PatientDataError where a dose on the CT's grid is known nowhere in the volume that can receive it."""
    if not np.isfinite(dose.values[patient.dose_mask.mask]).any():
        raise PatientDataError(
            "The dose is known nowhere in the patient: it lies elsewhere, or holds no numbers.",
            where=patient.pseudonym,
            remedy="Check its position and frame of reference.",
        )


def overlaps(patient: Patient, levels: dict[str, float]) -> list[str]:
    """What to know where targets of different dose levels share volume: its dose counts in both of them."""
    notes = []
    for a, b in combinations([patient.structures[name] for name in levels if name in patient.structures], 2):
        shared_cc = a.shared_cc(b)
        if shared_cc > 0.01 and levels[a.name] != levels[b.name]:
            low, high = sorted((a.name, b.name), key=levels.__getitem__)
            percent = 100 * shared_cc / patient.structures[low].volume_cc
            notes.append(
                f"{low} and {high} share {shared_cc:.1f} cc ({percent:.0f} % of {low}), so hot spots of {low} are "
                f"partly the dose of {high}."
            )
    return notes


def _metric_rows(
    dose: Volume, structure: Structure, level_gy: float | None
) -> tuple[StructureDose, list[DoseMetricRow]]:
    doses = structure_dose_of(dose, structure)
    names = list(dict.fromkeys([*metrics_of(structure, level_gy), "min", "max"]))
    errors: dict[str, float] = {}
    if doses.volume_cc < SMALL_CC and doses.covered_ratio == 1:
        errors = discretisation_error(dose, structure, names).metrics
    rows = []
    for name in names:
        metric = DvhMetric.parse(name)
        value = float(doses.metric(metric)[0])
        rows.append(DoseMetricRow(structure.name, doses.volume_cc, name, metric.unit, value, errors.get(name)))
    return doses, rows


def _targets_first(levels: Mapping[str, float], inside: Mapping[str, StructureDose]) -> list[StructureDose]:
    """Doses in the targets that the dose covers, the highest level first."""
    return [inside[name] for name in sorted(levels, key=levels.__getitem__, reverse=True) if name in inside]


def _quality(
    patient: Patient,
    dose: Volume,
    levels: Mapping[str, float],
    target: StructureDose,
    body: StructureDose,
    notes: list[str],
) -> QualityRow:
    """Of one target; the conformity is of all targets that at least its dose is prescribed to."""
    gy = levels[target.name]
    others = tuple(n for n in levels if levels[n] >= gy and n != target.name and n in patient.structures)
    try:
        found = plan_quality(target, body, gy)
    except PatientDataError as error:
        notes.append(str(error))
        return QualityRow(target.name, gy, None, None, None, others)
    conformity = found.conformity
    if others:
        names = (target.name, *others)
        together = joined([patient.structures[name] for name in names], " with ".join(names))
        try:
            conformity = plan_quality(target, body, gy, structure_dose_of(dose, together)).conformity
        except PatientDataError as error:  # homogeneity and gradient are of this target and the isodoses
            notes.append(f"No conformity of {target.name}, which counts together with others. {error}")
            conformity = np.array([np.nan])
    numbers = (conformity, found.homogeneity, found.gradient)
    shown = [float(n[0]) if np.isfinite(n[0]) else None for n in numbers]
    return QualityRow(target.name, gy, shown[0], shown[1], shown[2], others)


def _biology(model: DoseResponse, name: str, doses: StructureDose, fractions: int) -> BiologyRow:
    low = high = None
    if model.sd:
        drawn = model.drawn(doses, fractions, DRAWS)
        low, high = central_band(drawn, LEVEL)
    eud, probability = float(model.eud_gy(doses, fractions)[0]), float(model.of(doses, fractions)[0])
    return BiologyRow(name, model.effect.value, model.endpoint, eud, probability, low, high, model.source)


@dataclass(frozen=True)
class SingleDvhRow:
    """One point of the DVH of a single dose: share of the volume (0..1) and cc receiving at least ``dose_gy``."""

    structure: str
    dose_gy: float
    volume_ratio: float
    volume_cc: float


def single_dvh_rows(patient: Patient, dose: Volume) -> list[SingleDvhRow]:
    """Cumulative DVHs, 0.1 Gy apart, of every structure that the dose covers."""
    axis = dose_axis_gy(float(np.nanmax(dose.values)))
    rows = []
    for structure in ordered_structures(patient):
        inside = structure_dose_of(dose, structure)
        if inside.is_covered:
            share = inside.volume_at_dose_ratio(axis)[0].tolist()
            rows += [
                SingleDvhRow(structure.name, d, v, v * inside.volume_cc)
                for d, v in zip(axis.tolist(), share, strict=True)
            ]
    return rows
