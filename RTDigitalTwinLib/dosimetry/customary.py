"""What is customary: the DVH metrics of a structure, the dose levels of targets."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.grid import Box
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind

TARGET_METRICS = ("D99", "D95", "D1", "mean")
ORGAN_METRICS = ("D0.1cc", "mean")
PAROTID_METRICS = ("V20", "V30")


def target_levels_gy(patient: Patient) -> dict[str, float]:
    """Prescribed dose in Gy by target; empty without a plan."""
    return dict(patient.plan.prescription.target_dose_gy) if patient.plans else {}


def required_levels_gy(patient: Patient, targets: Iterable[str]) -> dict[str, float]:
    """Prescribed dose in Gy of each target named; raises PatientDataError where one has none."""
    levels, names = target_levels_gy(patient), tuple(targets)
    without = [name for name in names if name not in levels]
    if without:
        raise PatientDataError(
            f"No dose is prescribed to {', '.join(without)}.",
            where=patient.pseudonym,
            remedy="Give the plan a dose level for each target.",
        )
    return {name: levels[name] for name in names}


def prescribed_dose(patient: Patient, targets: Iterable[str], box: Box) -> NDArray[np.float32]:
    """Gy prescribed at each voxel of a box of the CT's grid, the highest where targets overlap; 0 outside them.

    Raises PatientDataError where a target has no dose level.
    """
    prescribed = np.zeros(patient.ct.grid.cropped(box).shape, np.float32)
    for name, level_gy in required_levels_gy(patient, targets).items():
        inside = patient.structures[name].mask[box]
        prescribed[inside] = np.maximum(prescribed[inside], np.float32(level_gy))
    return prescribed


def metrics_of(structure: Structure, level_gy: float | None = None) -> tuple[str, ...]:
    """Names of the metrics to show: of a target also the volume at its own dose level, where it has one."""
    if structure.kind is StructureKind.TARGET:
        return TARGET_METRICS if level_gy is None else (*TARGET_METRICS, f"V{level_gy:g}")
    return ORGAN_METRICS + (PAROTID_METRICS if structure.name.startswith("Parotid") else ())
