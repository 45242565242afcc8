"""Plan: what was prescribed, by which beams, with which dose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from RTDigitalTwinLib.patient.volume import Volume

# Of every OpenKBP plan, and so of the sample patient's.
OPENKBP_FRACTIONS = 35
MOST_FRACTIONS = 100  # of a course; more is a slip
OPENKBP_GANTRY_ANGLES_DEG = tuple(float(angle) for angle in range(0, 360, 40))


class Approval(Enum):
    """Approval state of a plan (DICOM (300E,0002))."""

    UNKNOWN = "unknown"
    UNAPPROVED = "UNAPPROVED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"


@dataclass(frozen=True)
class Prescription:
    """Dose levels in Gy by target name, given in ``fractions`` equal parts."""

    target_dose_gy: tuple[tuple[str, float], ...]
    fractions: int

    @property
    def highest_gy(self) -> float:
        return max(dose for _, dose in self.target_dose_gy)


@dataclass(frozen=True, eq=False)
class Plan:
    """A treatment plan.

    Attributes
    ----------
    prescription : dose levels and fractions.
    gantry_angles_deg : coplanar beam angles where known (IEC 61217).
    dose : planned dose in Gy where known.
    dose_is_effective : whether that is corrected for biological effect, so no physical dose.
    not_fixed_fields : why the beams are no fixed coplanar photon fields (arcs, a turned couch), where that is known.
    """

    prescription: Prescription
    gantry_angles_deg: tuple[float, ...] = ()
    dose: Volume | None = None
    approval: Approval = Approval.UNKNOWN
    label: str = ""
    dose_is_effective: bool = False
    not_fixed_fields: str = ""
