"""Which DVH metrics are customary for a structure."""

from __future__ import annotations

from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind

TARGET_METRICS = ("D99", "D95", "D1", "mean")
ORGAN_METRICS = ("D0.1cc", "mean")
PAROTID_METRICS = ("V20", "V30")


def target_levels_gy(patient: Patient) -> dict[str, float]:
    """Prescribed dose in Gy by target; empty without a plan."""
    return dict(patient.plan.prescription.target_dose_gy) if patient.plans else {}


def metrics_of(structure: Structure, level_gy: float | None = None) -> tuple[str, ...]:
    """Names of the metrics to show: of a target also the volume at its own dose level, where it has one."""
    if structure.kind is StructureKind.TARGET:
        return TARGET_METRICS if level_gy is None else (*TARGET_METRICS, f"V{level_gy:g}")
    return ORGAN_METRICS + (PAROTID_METRICS if structure.name.startswith("Parotid") else ())
