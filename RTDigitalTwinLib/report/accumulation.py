"""Fractions on several anatomies summed up: dose in structures beside the planned one, and how sure the mapping is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.accumulation import VALIDITY, AccumulatedDose, DeliveredDose, accumulated
from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of, structure_dose_of
from RTDigitalTwinLib.errors import PatientDataError, told_of
from RTDigitalTwinLib.patient.dicom_dose import EFFECTIVE_REMARK
from RTDigitalTwinLib.patient.image_registration import (
    DENSITY_CHANGE_HU,
    MOST_CHANGED_RATIO,
    MOST_MM,
    RegistrationSettings,
    density_change_ratio,
    registered,
)
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.registration import Registration
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.report.dose_review import require_reach
from RTDigitalTwinLib.report.tables import ordered_structures

MUCH_CHANGED_RATIO = 0.05  # of the dose mask; noise alone and a slipped voxel at the skin change a part of this
NOT_MUCH_MM = 3.0  # an inconsistency above it is told
EQD2_UNIT = "Gy EQD2"
UNCHANGED = "not registered: the anatomy is taken to be that of the planning CT, with no error of mapping."


@dataclass(frozen=True, eq=False)
class FractionSet:
    """Fractions on one anatomy.

    Attributes
    ----------
    name : as results call it.
    dose : Gy in ``of_fractions`` fractions.
    fractions : delivered so.
    ct : of that day, to register with; None where the anatomy is that of the plan.
    warnings : of its source, which the user must see.
    """

    name: str
    dose: Volume
    fractions: int
    of_fractions: int
    ct: Volume | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class MappingRow:
    """What one set of fractions counted as, and how sure its mapping is, over the dose mask.

    ``of_fractions`` is how many the dose was taken to stand for, ``highest_gy`` the highest of those delivered.
    ``inconsistency_*_mm`` is how far places are from themselves after there and back, ``density_changed_ratio`` the
    share whose HU differ much after the mapping; these and ``moved_mean_mm`` are None without registration.
    """

    fractions: str
    count: int
    of_fractions: int
    highest_gy: float
    moved_mean_mm: float | None
    inconsistency_mean_mm: float | None
    inconsistency_95_mm: float | None
    density_changed_ratio: float | None


@dataclass(frozen=True)
class AccumulatedMetricRow:
    """A metric of the sum beside the planned one for as many fractions; None where the dose does not cover.

    ``inconsistency_mean_mm`` and ``dose_error_gy`` are means over the structure, the latter of the whole sum; None
    where nothing was mapped.
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
    overrides: Overrides | None = None,
) -> Accumulation:
    """Register every day's CT with the planning CT, map the doses there and sum them.

    ``settings`` None registers nothing: doses must then lie in the planning frame. Raises GeometryError where images
    cannot be registered or frames do not fit, PatientDataError where the sum is known nowhere in the patient, or has
    values that no dose has; and, unless ``overrides`` accept them, where a registration looks failed or there are more
    fractions than prescribed.
    """
    overrides = overrides or Overrides()
    notes = [*patient.warnings]
    require_prescribed(patient, sum(one.fractions for one in sets), overrides, notes)
    parts, mappings = [], []
    mask = patient.dose_mask.mask
    for k, one in enumerate(sets):
        notes += [f"{one.name}: {warning}" for warning in one.warnings]
        registration = None
        if settings is not None and one.ct is not None:
            registration = registered(patient.ct, one.ct, settings, part(progress, k / len(sets), (k + 1) / len(sets)))
        with told_of(one.name):
            parts.append(DeliveredDose(one.dose, one.fractions, one.of_fractions, registration))
        mappings.append(_mapping(patient, one, registration, mask))
        if registration is None:
            notes.append(f"{one.name}: {UNCHANGED}")
        _require_registered(mappings[-1], overrides, notes)
        notes += _mapping_notes(mappings[-1])
    progress(1.0, "summing")
    total = accumulated(parts, patient.ct.grid, alpha_beta_gy)
    require_reach(patient, total.dose)
    unknown = float(np.isnan(total.dose.values[mask]).mean())
    if unknown > 0:
        notes.append(f"The sum is not known in {unknown:.1%} of the volume that can receive dose.")
    planned = _planned(patient, total, notes)
    rows: list[AccumulatedMetricRow] = []
    for structure in ordered_structures(patient):
        try:
            rows += _metrics(patient, structure, total, planned)
        except PatientDataError as error:
            notes.append(str(error))
    if any(p.registration is not None for p in parts):
        notes.append(VALIDITY)
    return Accumulation(total, tuple(mappings), tuple(rows), tuple(dict.fromkeys(notes)))


def require_prescribed(patient: Patient, count: int, overrides: Overrides, notes: list[str]) -> None:
    """Raise PatientDataError where more fractions were delivered than prescribed, unless that is overridden."""
    if patient.plans and count > patient.plan.prescription.fractions:
        what = f"{count} fractions are summed, but {patient.plan.prescription.fractions} are prescribed."
        overrides.settle("fractions", what, patient.pseudonym, notes)


def _require_registered(row: MappingRow, overrides: Overrides, notes: list[str]) -> None:
    changed, away_mm = row.density_changed_ratio, row.inconsistency_95_mm
    wrong = []
    if changed is not None and changed > MOST_CHANGED_RATIO:
        wrong.append(
            f"the density differs by more than {DENSITY_CHANGE_HU:g} HU, or is not known, in {changed:.0%} of the "
            f"volume that can receive dose (at most {MOST_CHANGED_RATIO:.0%})"
        )
    if row.moved_mean_mm is not None and (away_mm is None or away_mm > MOST_MM):
        known = "is not known" if away_mm is None else f"is {away_mm:.1f} mm"
        wrong.append(f"its distance from its inverse {known} (95th percentile; at most {MOST_MM:g} mm)")
    if wrong:
        what = f"{row.fractions}: the registration looks failed: {', and '.join(wrong)}."
        overrides.settle("registration", what, "", notes)


def _mapping(
    patient: Patient, one: FractionSet, registration: Registration | None, mask: NDArray[np.bool_]
) -> MappingRow:
    highest_gy = float(np.nanmax(one.dose.values, initial=0.0)) * one.fractions / one.of_fractions
    counted = one.name, one.fractions, one.of_fractions, highest_gy
    if registration is None or one.ct is None or registration.error is None:
        return MappingRow(*counted, None, None, None, None)
    moved_mm = registration.moved_mm(patient.ct.grid).values[mask]
    away_mm = np.asarray(registration.error.values[mask], float)
    away_mm = away_mm[np.isfinite(away_mm)]
    mean_mm, most_mm = (float(away_mm.mean()), float(np.quantile(away_mm, 0.95))) if away_mm.size else (None, None)
    changed = density_change_ratio(patient.ct, one.ct, registration, mask)
    return MappingRow(*counted, float(np.nanmean(moved_mm)), mean_mm, most_mm, changed)


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


def _planned(patient: Patient, total: AccumulatedDose, notes: list[str]) -> Volume | None:
    """The planned dose of as many fractions as were summed; None where it is not known."""
    if not patient.plans or patient.plan.dose is None:
        return None
    if EFFECTIVE_REMARK in patient.warnings:
        notes.append("The planned dose is an EFFECTIVE one, so the sum is not set beside it.")
        return None
    prescribed = patient.plan.prescription.fractions
    if total.fractions != prescribed:
        notes.append(
            f"{total.fractions} of {prescribed} fractions are summed; the planned dose beside them is that of as many."
        )
    part = DeliveredDose(patient.plan.dose, total.fractions, prescribed)
    return accumulated([part], patient.ct.grid, total.alpha_beta_gy).dose


def _metrics(
    patient: Patient, structure: Structure, total: AccumulatedDose, planned: Volume | None
) -> list[AccumulatedMetricRow]:
    inside = structure_dose_of(replace(total.dose, quantity=Quantity.DOSE_GY), structure)  # of an EQD2 too
    reference = covered_dose_of(planned and replace(planned, quantity=Quantity.DOSE_GY), structure)
    away_mm, wrong_gy = (_mean_in(structure, volume) for volume in (total.mapping_error, total.dose_error))
    rows = []
    for name in metrics_of(structure, target_levels_gy(patient).get(structure.name)):
        metric = DvhMetric.parse(name)
        if total.alpha_beta_gy is not None and metric.unit == "%":
            continue  # the volume at a level of physical dose says nothing in EQD2
        before = None if reference is None else float(reference.metric(metric)[0])
        unit = metric.unit if total.alpha_beta_gy is None else EQD2_UNIT
        rows.append(
            AccumulatedMetricRow(structure.name, name, unit, before, float(inside.metric(metric)[0]), away_mm, wrong_gy)
        )
    return rows


def _mean_in(structure: Structure, volume: Volume | None) -> float | None:
    if volume is None:
        return None
    values = np.asarray(volume.values[structure.box], float)
    weight = structure.box_occupancy * np.isfinite(values)
    whole = float(weight.sum())
    return float((weight * np.nan_to_num(values)).sum() / whole) if whole > 0 else None
