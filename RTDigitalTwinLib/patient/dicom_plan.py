"""RTPLAN: what was prescribed, in how many fractions, by which beams."""

from __future__ import annotations

from dataclasses import dataclass, replace

from RTDigitalTwinLib.patient.dicom_file import DicomItem, open_dicom
from RTDigitalTwinLib.patient.dicom_index import IndexedFile
from RTDigitalTwinLib.patient.plan import MOST_FRACTIONS, Approval
from RTDigitalTwinLib.words import counted

_HIGHEST_DOSE_GY = 200.0
_APPROVAL_REMARKS = {
    Approval.UNAPPROVED: "The plan is UNAPPROVED: it may not be the one that is given.",
    Approval.REJECTED: "The plan is REJECTED: it was judged not fit to be given.",
}
_INTENTS = ("CURATIVE", "PALLIATIVE", "PROPHYLACTIC", "VERIFICATION", "MACHINE_QA", "RESEARCH", "SERVICE")
_CLINICAL_INTENTS = ("", "CURATIVE", "PALLIATIVE", "PROPHYLACTIC")
_POSITIONS = tuple(f"{end}{side}" for end in ("HF", "FF", "LF", "RF", "AF", "PF") for side in ("S", "P", "DR", "DL"))


@dataclass(frozen=True)
class DicomPlan:
    """What a plan file says.

    Attributes
    ----------
    fractions : None where the plan does not say.
    roi_dose_gy : (ROI number, prescribed dose in Gy) where the plan ties doses to structures.
    site_doses_gy : prescribed doses in Gy tied to no structure.
    gantry_angles_deg : of fixed coplanar fields of a head-first supine patient; empty where that does not describe it.
    remarks : what the user should know.
    not_fixed_fields : why the beams are no such fields, where the plan says so.
    intent : such as CURATIVE or RESEARCH; OTHER where DICOM knows no such, "" where the plan does not say.
    """

    fractions: int | None
    roi_dose_gy: tuple[tuple[int, float], ...]
    site_doses_gy: tuple[float, ...]
    gantry_angles_deg: tuple[float, ...]
    approval: Approval
    remarks: tuple[str, ...]
    intent: str = ""
    not_fixed_fields: str = ""

    @property
    def is_clinical(self) -> bool:
        """Whether nothing says that it was made for another purpose than to treat."""
        return self.intent in _CLINICAL_INTENTS

    def without_structures(self) -> DicomPlan:
        """The same for a structure set that the plan was not made on: numbers of structures mean nothing there."""
        doses = (*self.site_doses_gy, *(gy for _, gy in self.roi_dose_gy))
        return replace(self, roi_dose_gy=(), site_doses_gy=doses)


def read_plan(file: IndexedFile) -> DicomPlan:
    """Read a plan. Raises PatientDataError naming the tag."""
    item = open_dicom(file.path, file.where)
    remarks: list[str] = []
    by_roi: dict[int, float] = {}
    sites: list[float] = []
    for reference in item.items("DoseReferenceSequence"):
        if reference.text("DoseReferenceType", "").upper() != "TARGET":
            continue
        if not reference.has("TargetPrescriptionDose"):
            continue
        gy = reference.number("TargetPrescriptionDose", 0)
        if gy > _HIGHEST_DOSE_GY:
            raise item.error(
                f"(300A,0026) TargetPrescriptionDose is {gy:g} Gy; at most {_HIGHEST_DOSE_GY:g} are read.",
                "If it is in cGy, have the plan exported in Gy.",
            )
        if gy == 0:
            continue
        if reference.has("ReferencedROINumber"):
            number = reference.whole("ReferencedROINumber", -(2**31), 2**31)
            if by_roi.setdefault(number, gy) != gy:
                raise item.error(
                    f"(300A,0010) DoseReferenceSequence: one structure has two doses, {by_roi[number]:g} and {gy:g} Gy."
                )
        elif reference.text("DoseReferenceStructureType", "").upper() in ("SITE", "VOLUME", ""):
            sites.append(gy)
    fractions, (angles, not_fixed_fields) = _fractions(item, remarks), _angles(item, remarks)
    intent, approval = item.code("PlanIntent", _INTENTS, ""), _approval(item)
    if intent not in _CLINICAL_INTENTS:
        remarks.append(
            f"This is no clinical plan: its intent is {intent}. A comparison with its dose does not show how good a "
            "prediction is."
        )
    if approval in _APPROVAL_REMARKS:
        remarks.append(_APPROVAL_REMARKS[approval])
    return DicomPlan(
        fractions,
        tuple(by_roi.items()),
        tuple(sites),
        angles,
        approval,
        tuple(remarks),
        intent,
        not_fixed_fields,
    )


def _fractions(item: DicomItem, remarks: list[str]) -> int | None:
    groups = item.items("FractionGroupSequence")
    if len(groups) > 1:
        raise item.error(
            f"(300A,0070) FractionGroupSequence: the plan has {len(groups)} parts.",
            "Give a plan of one fraction group.",
        )
    if not groups or not groups[0].has("NumberOfFractionsPlanned"):
        remarks.append("The plan does not say in how many fractions.")
        return None
    return groups[0].whole("NumberOfFractionsPlanned", 1, MOST_FRACTIONS)


def _angles(item: DicomItem, remarks: list[str]) -> tuple[tuple[float, ...], str]:
    """Angles of fixed coplanar photon fields, and why the beams are none where the plan says so."""
    angles: list[float] = []
    arcs = turned = others = 0
    for beam in item.items("BeamSequence"):
        if beam.text("TreatmentDeliveryType", "TREATMENT").upper() not in ("TREATMENT", "CONTINUATION"):
            continue
        points = beam.items("ControlPointSequence")
        if not points or not points[0].has("GantryAngle"):
            remarks.append("A beam of the plan names no gantry angle.")
            return (), ""
        others += beam.text("RadiationType", "").upper() != "PHOTON"
        visited = {round(p.number("GantryAngle", -360, 360) % 360, 1) % 360 for p in points if p.has("GantryAngle")}
        rotates = any(p.text("GantryRotationDirection", "NONE").upper() not in ("NONE", "") for p in points)
        arcs += rotates or len(visited) > 1
        if points[0].has("PatientSupportAngle"):
            couch = points[0].number("PatientSupportAngle", -360, 360) % 360
            turned += min(couch, 360 - couch) > 1
        angles.append(points[0].number("GantryAngle", -360, 360) % 360)
    unlike: list[str] = []
    if arcs:
        unlike.append(f"{counted(arcs, 'beam of the plan is an arc', 'beams of the plan are arcs')}, no fixed fields.")
    if others:
        unlike.append(
            f"{counted(others, 'beam of the plan is', 'beams of the plan are')} of no photons, or of what is not said."
        )
    if turned:
        unlike.append(f"{counted(turned, 'beam of the plan is', 'beams of the plan are')} not coplanar.")
    positions = {setup.code("PatientPosition", _POSITIONS, "") for setup in item.items("PatientSetupSequence")} - {
        "",
        "HFS",
    }
    if positions and angles:
        unlike.append(
            f"The plan treats in position {', '.join(sorted(positions))}; gantry angles are read for HFS only."
        )
    remarks += unlike
    return () if unlike or positions else tuple(sorted(set(angles))), " ".join(unlike)


def _approval(item: DicomItem) -> Approval:
    text = item.text("ApprovalStatus", "").upper()
    return next((state for state in Approval if state.value == text), Approval.UNKNOWN)
