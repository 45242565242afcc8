"""Fractions on several anatomies summed up: dose in structures beside the planned one, and how sure the mapping is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.accumulation import VALIDITY, AccumulatedDose, DeliveredDose, accumulated
from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of, structure_dose_of
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.image_registration import (
    DENSITY_CHANGE_HU,
    RegistrationSettings,
    density_change_ratio,
    registered,
)
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.registration import Registration
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.report.dose_review import require_reach
from RTDigitalTwinLib.report.tables import ordered_structures

MUCH_CHANGED_RATIO = 0.05  # of the dose mask; noise alone and a slipped voxel at the skin change a part of this
NOT_MUCH_MM = 3.0  # an inconsistency above it is told


@dataclass(frozen=True, eq=False)
class FractionSet:
    """Fractions on one anatomy.

    Attributes
    ----------
    name : as results call it.
    dose : Gy in ``of_fractions`` fractions.
    fractions : delivered so.
    ct : of that day, to register with; None where the anatomy is that of the plan.
    """

    name: str
    dose: Volume
    fractions: int
    of_fractions: int
    ct: Volume | None = None


@dataclass(frozen=True)
class MappingRow:
    """How sure the mapping of one set of fractions is, over the dose mask.

    ``inconsistency_*_mm`` is how far places are from themselves after there and back; None without registration.
    ``density_changed_ratio`` is the share whose HU differ much after the mapping.
    """

    fractions: str
    count: int
    moved_mean_mm: float
    inconsistency_mean_mm: float | None
    inconsistency_95_mm: float | None
    density_changed_ratio: float | None


@dataclass(frozen=True)
class AccumulatedMetricRow:
    """A metric of the sum beside the planned one for as many fractions; None where the dose does not cover.

    ``inconsistency_mean_mm`` and ``dose_error_gy`` are means over the structure, the latter of the whole sum.
    """

    structure: str
    metric: str
    unit: str
    planned: float | None
    accumulated: float
    inconsistency_mean_mm: float | None
    dose_error_gy: float | None

    @property
    def difference(self) -> float | None:
        """Accumulated minus planned."""
        return None if self.planned is None else self.accumulated - self.planned


@dataclass(frozen=True, eq=False)
class Accumulation:
    """The sum with its tables; ``notes`` say what it does not hold for and what was left out."""

    sum: AccumulatedDose
    mappings: tuple[MappingRow, ...]
    metrics: tuple[AccumulatedMetricRow, ...]
    notes: tuple[str, ...]


def accumulate(
    patient: Patient,
    sets: Sequence[FractionSet],
    settings: RegistrationSettings | None = None,
    alpha_beta_gy: float | None = None,
    progress: Progress = silent,
) -> Accumulation:
    """Register every day's CT with the planning CT, map the doses there and sum them.

    ``settings`` None registers nothing: doses must then lie in the planning frame. Raises GeometryError where images
    cannot be registered or frames do not fit, PatientDataError where the sum is known nowhere in the patient.
    """
    parts, mappings, notes = [], [], [*patient.warnings]
    mask = patient.dose_mask.mask
    for k, one in enumerate(sets):
        registration = None
        if settings is not None and one.ct is not None:
            registration = registered(patient.ct, one.ct, settings, part(progress, k / len(sets), (k + 1) / len(sets)))
        parts.append(DeliveredDose(one.dose, one.fractions, one.of_fractions, registration))
        mappings.append(_mapping(patient, one, registration, mask))
        notes += _mapping_notes(mappings[-1])
    progress(1.0, "summing")
    total = accumulated(parts, patient.ct.grid, alpha_beta_gy)
    require_reach(patient, total.dose)
    unknown = float(np.isnan(total.dose.values[mask]).mean())
    if unknown > 0:
        notes.append(f"The sum is not known in {unknown:.1%} of the volume that can receive dose.")
    planned = _planned(patient, total)
    if planned is not None and total.fractions != patient.plan.prescription.fractions:
        notes.append(
            f"{total.fractions} of {patient.plan.prescription.fractions} fractions are summed; the planned dose beside "
            "them is that of as many."
        )
    rows: list[AccumulatedMetricRow] = []
    for structure in ordered_structures(patient):
        try:
            rows += _metrics(patient, structure, total, planned)
        except PatientDataError as error:
            notes.append(str(error))
    if any(p.registration is not None for p in parts):
        notes.append(VALIDITY)
    return Accumulation(total, tuple(mappings), tuple(rows), tuple(dict.fromkeys(notes)))


def _mapping(
    patient: Patient, one: FractionSet, registration: Registration | None, mask: NDArray[np.bool_]
) -> MappingRow:
    if registration is None or one.ct is None or registration.error is None:
        return MappingRow(one.name, one.fractions, 0.0, None, None, None)
    moved_mm = registration.moved_mm(patient.ct.grid).values[mask]
    away_mm = np.asarray(registration.error.values[mask], float)
    away_mm = away_mm[np.isfinite(away_mm)]
    mean_mm, most_mm = (float(away_mm.mean()), float(np.quantile(away_mm, 0.95))) if away_mm.size else (None, None)
    changed = density_change_ratio(patient.ct, one.ct, registration, mask)
    return MappingRow(one.name, one.fractions, float(np.nanmean(moved_mm)), mean_mm, most_mm, changed)


def _mapping_notes(row: MappingRow) -> list[str]:
    notes = []
    if row.density_changed_ratio is not None and row.density_changed_ratio > MUCH_CHANGED_RATIO:
        notes.append(
            f"{row.fractions}: the density differs by more than {DENSITY_CHANGE_HU:g} HU in "
            f"{row.density_changed_ratio:.0%} of the volume that can receive dose. Mapped dose is not valid there."
        )
    if row.inconsistency_95_mm is not None and row.inconsistency_95_mm > NOT_MUCH_MM:
        notes.append(
            f"{row.fractions}: the registration is off from its inverse by {row.inconsistency_95_mm:.1f} mm (95th "
            "percentile): do not rely on the mapped dose in steep gradients."
        )
    return notes


def _planned(patient: Patient, total: AccumulatedDose) -> Volume | None:
    """The planned dose of as many fractions as were summed; None where it is not known."""
    if not patient.plans or patient.plan.dose is None:
        return None
    part = DeliveredDose(patient.plan.dose, total.fractions, patient.plan.prescription.fractions)
    return accumulated([part], patient.ct.grid, total.alpha_beta_gy).dose


def _metrics(
    patient: Patient, structure: Structure, total: AccumulatedDose, planned: Volume | None
) -> list[AccumulatedMetricRow]:
    inside, reference = structure_dose_of(total.dose, structure), covered_dose_of(planned, structure)
    away_mm, wrong_gy = (_mean_in(structure, volume) for volume in (total.mapping_error, total.dose_error))
    rows = []
    for name in metrics_of(structure, target_levels_gy(patient).get(structure.name)):
        metric = DvhMetric.parse(name)
        before = None if reference is None else float(reference.metric(metric)[0])
        rows.append(
            AccumulatedMetricRow(
                structure.name, name, metric.unit, before, float(inside.metric(metric)[0]), away_mm, wrong_gy
            )
        )
    return rows


def _mean_in(structure: Structure, volume: Volume) -> float | None:
    values = np.asarray(volume.values[structure.box], float)
    weight = structure.box_occupancy * np.isfinite(values)
    whole = float(weight.sum())
    return float((weight * np.nan_to_num(values)).sum() / whole) if whole > 0 else None
