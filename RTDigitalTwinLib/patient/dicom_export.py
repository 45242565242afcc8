"""Writing a patient as a DICOM-RT set: CT, RTSTRUCT, RTPLAN and RTDOSE with fresh UIDs.

Says in each file that it is research and, of a dose, how it came about. A patient of no hospital gets its pseudonym
for name and identifier; results for a hospital's patient carry the source's identity, for they go back to its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.files import whole_folder
from RTDigitalTwinLib.patient.dicom_writing import (
    CT_CLASS,
    DIFFERENCE_NOTICE,
    DOSE_CLASS,
    NOTICE,
    PARTLY_UNKNOWN_NOTICE,
    PARTLY_UNKNOWN_PREDICTED_NOTICE,
    PARTLY_UNKNOWN_SIMULATED_NOTICE,
    PLAN_CLASS,
    PREDICTED_NOTICE,
    SIMULATED_NOTICE,
    STD_NOTICE,
    STRUCTURES_CLASS,
    STUDY_CLASS,
    WIDTH_NOTICE,
    Origin,
    common_elements,
    decimal,
    fresh_origin,
    new_uid,
    place_on,
    reference_to,
    save,
    store_pixels,
)
from RTDigitalTwinLib.patient.outlines import outlines
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import Plan
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, silent

if TYPE_CHECKING:
    from pydicom import Dataset

SIMULATED = "Simulated: "  # before the description of a series
_HIGHEST_STORED = 2**16 - 1
# DICOM has no type of dose for a spread: ERROR, a difference of doses, keeps a reader from taking it for a dose.
_SPREADS = {
    Quantity.DOSE_WIDTH_GY: WIDTH_NOTICE,
    Quantity.DOSE_STD_GY: STD_NOTICE,
    Quantity.DOSE_DIFFERENCE_GY: DIFFERENCE_NOTICE,
}
_DOSES = {  # by whether it is predicted, and not known everywhere
    (False, False): NOTICE,
    (False, True): PARTLY_UNKNOWN_NOTICE,
    (True, False): PREDICTED_NOTICE,
    (True, True): PARTLY_UNKNOWN_PREDICTED_NOTICE,
}
_SIMULATED_DOSES = {False: SIMULATED_NOTICE, True: PARTLY_UNKNOWN_SIMULATED_NOTICE}  # by the latter
_ROI_TYPES = {StructureKind.TARGET: "PTV", StructureKind.ORGAN: "ORGAN", StructureKind.REGION: "CONTROL"}


def write_patient(patient: Patient, folder: Path, progress: Progress = silent) -> Origin:
    """Write CT, structures and plan, and its dose where it has one, into a folder that appears whole or not at all.

    Structures are written as outlines of half occupancy. The dose mask goes along as a structure of its name. Raises
    OutputError where it cannot be written, PatientDataError where the CT does not fit 16 bits.
    """
    origin = fresh_origin(patient)
    with whole_folder(folder) as aside:
        _write_ct(patient.ct, origin, aside, progress)
        progress(0.7, "writing structures")
        every = (*patient.structures.values(), patient.dose_mask)
        save(_structure_set(every, origin, "Structures", on_slices=True), aside / "RTSTRUCT.dcm")
        if patient.plans:
            save(_plan(patient, origin), aside / "RTPLAN.dcm")
            if patient.plan.dose is not None:
                write_dose(patient.plan.dose, aside / "RTDOSE.dcm", origin, "Plan dose")
    return origin


def write_dose(
    dose: Volume,
    path: Path,
    origin: Origin,
    description: str,
    *,
    predicted: bool = False,
    simulated: bool = False,
) -> None:
    """Write a dose in Gy, or the spread of one, that refers to the origin's plan; steps of its maximum over 65535.

    A spread gets the dose type ERROR and a comment that says which it is. NaN, where the dose is not known, is written
    as 0, for DICOM has no word for it; of a dose the comment says so. ``simulated`` says of a prediction that simulated
    deliveries or measurements are behind it. ``path`` is written in place. Raises PatientDataError where values are
    below 0 Gy, none is above, they are no doses, or simulated ones that are not said to be predicted.
    """
    from pydicom.tag import Tag
    from pydicom.valuerep import format_number_as_ds

    if dose.quantity is not Quantity.DOSE_GY and dose.quantity not in _SPREADS:
        raise PatientDataError(f"Values in {dose.quantity.value} are no doses, so they cannot be written as such.")
    if simulated and not predicted:
        raise PatientDataError("Of a dose that is not predicted, the file could not say that it is simulated.")
    gy = np.nan_to_num(np.asarray(dose.values, dtype=np.float64), nan=0.0)
    if gy.min() < 0 or not gy.max() > 0:
        raise PatientDataError("A dose to write must have no value below 0 Gy and one above.")
    scaling = format_number_as_ds(float(gy.max()) / _HIGHEST_STORED)
    stored = np.minimum(np.round(gy / float(scaling)), _HIGHEST_STORED).astype("<u2")
    grid = dose.grid
    ds = common_elements(
        origin, DOSE_CLASS, new_uid(), "RTDOSE", new_uid(), f"{SIMULATED}{description}" if simulated else description
    )
    place_on(ds, grid, origin)
    ds.SliceThickness = decimal(grid.spacing_mm[2])
    ds.NumberOfFrames = grid.shape[0]
    ds.FrameIncrementPointer = Tag("GridFrameOffsetVector")
    ds.GridFrameOffsetVector = [decimal(k * grid.spacing_mm[2]) for k in range(grid.shape[0])]
    store_pixels(ds, stored, signed=False)
    ds.DoseUnits, ds.DoseSummationType = "GY", "PLAN"
    ds.DoseType = "ERROR" if dose.quantity in _SPREADS else "PHYSICAL"
    partly_unknown = bool(np.isnan(dose.values).any())
    notice = _SIMULATED_DOSES[partly_unknown] if simulated else _DOSES[predicted, partly_unknown]
    ds.DoseComment = _SPREADS.get(dose.quantity, notice)
    ds.DoseGridScaling = scaling
    ds.InstanceNumber = 1
    if origin.plan_uid:
        ds.ReferencedRTPlanSequence = [reference_to(PLAN_CLASS, origin.plan_uid)]
    # The structure set follows from the plan: named by itself, DICOM wants its DVHs along with it.
    save(ds, path)


def write_structures(structures: Sequence[Structure], path: Path, origin: Origin, label: str) -> None:
    """Write structures as outlines of half occupancy, in a structure set of their own beside the origin's.

    They may lie on another grid than the CT, in its frame of reference. One that fills no voxel by half is written
    without contours. ``path`` is written in place; ``label`` has 16 characters at most.
    """
    save(_structure_set(structures, replace(origin, structure_set_uid=new_uid()), label, on_slices=False), path)


def _write_ct(ct: Volume, origin: Origin, folder: Path, progress: Progress) -> None:
    hu = np.round(ct.values)
    if hu.min() < -(2**15) or hu.max() >= 2**15:
        raise PatientDataError("CT values beyond 16 bits cannot be written.", remedy="Clip them to -1024..3071 HU.")
    grid = ct.grid
    for k, uid in enumerate(origin.ct_uids):
        if k % 16 == 0:
            progress(0.7 * k / len(origin.ct_uids), f"writing slice {k + 1} of {len(origin.ct_uids)}")
        ds = common_elements(origin, CT_CLASS, uid, "CT", origin.ct_series_uid, "Planning CT")
        place_on(ds, grid, origin, k)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.SliceThickness = decimal(grid.spacing_mm[2])
        ds.InstanceNumber, ds.AcquisitionNumber = k + 1, 1
        ds.KVP, ds.PatientPosition, ds.Laterality = None, "", ""
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
        store_pixels(ds, hu[k].astype("<i2"), signed=True)
        save(ds, folder / f"CT.{k + 1:04d}.dcm")


def _structure_set(structures: Sequence[Structure], origin: Origin, label: str, *, on_slices: bool) -> Dataset:
    """``on_slices``: whether the structures' slices are the CT's, which their contours then name."""
    from pydicom import Dataset

    ds = common_elements(origin, STRUCTURES_CLASS, origin.structure_set_uid, "RTSTRUCT", new_uid(), label)
    ds.StructureSetLabel, ds.InstanceNumber = label, 1
    ds.StructureSetDescription = NOTICE
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = origin.frame_uid, ""
    ds.StructureSetDate, ds.StructureSetTime = ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.ApprovalStatus = "UNAPPROVED"
    images = [reference_to(CT_CLASS, uid) for uid in origin.ct_uids]
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = origin.ct_series_uid, images
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_CLASS, origin.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = origin.frame_uid, [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, structure in enumerate(structures, start=1):
        roi, observation = Dataset(), Dataset()
        roi.ROINumber, roi.ReferencedFrameOfReferenceUID = number, origin.frame_uid
        roi.ROIName, roi.ROIGenerationAlgorithm = structure.name, "AUTOMATIC"
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType, observation.ROIInterpreter = _ROI_TYPES[structure.kind], ""
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(_contours(structure, number, origin.ct_uids if on_slices else ()))
        ds.RTROIObservationsSequence.append(observation)
    return ds


def _contours(structure: Structure, number: int, slice_uids: Sequence[str]) -> Dataset:
    from pydicom import Dataset

    from RTDigitalTwinLib.patient.colours import structure_colour

    item = Dataset()
    item.ROIDisplayColor = [round(255 * part) for part in structure_colour(structure.name)]
    item.ReferencedROINumber = number
    contours = []
    for k, points in outlines(structure):
        contour = Dataset()
        if slice_uids:
            contour.ContourImageSequence = [reference_to(CT_CLASS, slice_uids[k])]
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
        contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
        contours.append(contour)
    if contours:
        item.ContourSequence = contours
    elif slice_uids:
        raise PatientDataError("No voxel is half inside, so there is no outline to write.", where=structure.name)
    return item


def _plan(patient: Patient, origin: Origin) -> Dataset:
    from pydicom import Dataset

    plan = patient.plan
    ds = common_elements(origin, PLAN_CLASS, origin.plan_uid, "RTPLAN", new_uid(), "Plan")
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = origin.frame_uid, ""
    ds.RTPlanLabel, ds.RTPlanGeometry, ds.InstanceNumber = "Plan", "PATIENT", 1
    ds.RTPlanDescription = f"{plan.label}. {NOTICE}" if plan.label else NOTICE
    ds.PlanIntent = "RESEARCH"
    ds.RTPlanDate, ds.RTPlanTime = ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.ApprovalStatus = "UNAPPROVED"
    ds.ReferencedStructureSetSequence = [reference_to(STRUCTURES_CLASS, origin.structure_set_uid)]
    numbers = {name: i for i, name in enumerate(patient.structures, start=1)}
    ds.DoseReferenceSequence = []
    for i, (name, gy) in enumerate(plan.prescription.target_dose_gy, start=1):
        reference = Dataset()
        reference.DoseReferenceNumber, reference.DoseReferenceStructureType = i, "VOLUME"
        reference.ReferencedROINumber, reference.DoseReferenceType = numbers[name], "TARGET"
        reference.DoseReferenceDescription, reference.TargetPrescriptionDose = name, decimal(gy)
        ds.DoseReferenceSequence.append(reference)
    group = Dataset()
    group.FractionGroupNumber, group.NumberOfFractionsPlanned = 1, plan.prescription.fractions
    group.NumberOfBeams, group.NumberOfBrachyApplicationSetups = len(plan.gantry_angles_deg), 0
    ds.FractionGroupSequence = [group]
    if plan.gantry_angles_deg:
        _add_beams(ds, group, plan, patient)
    return ds


def _add_beams(ds: Dataset, group: Dataset, plan: Plan, patient: Patient) -> None:
    """Open fields of the plan's angles: angles are known, apertures and monitor units are not."""
    from pydicom import Dataset

    target = patient.targets[max(plan.prescription.target_dose_gy, key=lambda level: level[1])[0]]
    setup = Dataset()
    setup.PatientSetupNumber, setup.PatientPosition = 1, "HFS"
    ds.PatientSetupSequence = [setup]
    group.ReferencedBeamSequence, ds.BeamSequence = [], []
    for number, angle in enumerate(plan.gantry_angles_deg, start=1):
        referenced, beam, start, end = Dataset(), Dataset(), Dataset(), Dataset()
        referenced.ReferencedBeamNumber = number
        group.ReferencedBeamSequence.append(referenced)
        beam.BeamNumber, beam.BeamName, beam.BeamType = number, f"Field {number}", "STATIC"
        beam.RadiationType, beam.TreatmentDeliveryType = "PHOTON", "TREATMENT"
        beam.TreatmentMachineName, beam.PrimaryDosimeterUnit, beam.SourceAxisDistance = "", "MU", 1000
        beam.NumberOfWedges = beam.NumberOfCompensators = beam.NumberOfBoli = beam.NumberOfBlocks = 0
        beam.FinalCumulativeMetersetWeight, beam.NumberOfControlPoints = 1, 2
        devices, jaws = [], []
        for kind in ("X", "Y"):
            device, jaw = Dataset(), Dataset()
            device.RTBeamLimitingDeviceType, device.NumberOfLeafJawPairs = kind, 1
            jaw.RTBeamLimitingDeviceType, jaw.LeafJawPositions = kind, [-100, 100]
            devices.append(device)
            jaws.append(jaw)
        beam.BeamLimitingDeviceSequence = devices
        start.ControlPointIndex, start.CumulativeMetersetWeight, start.NominalBeamEnergy = 0, 0, 6
        start.BeamLimitingDevicePositionSequence = jaws
        start.GantryAngle, start.GantryRotationDirection = decimal(angle), "NONE"
        start.BeamLimitingDeviceAngle, start.BeamLimitingDeviceRotationDirection = 0, "NONE"
        start.PatientSupportAngle, start.PatientSupportRotationDirection = 0, "NONE"
        start.TableTopEccentricAngle, start.TableTopEccentricRotationDirection = 0, "NONE"
        start.TableTopVerticalPosition = start.TableTopLongitudinalPosition = start.TableTopLateralPosition = None
        start.TableTopPitchAngle, start.TableTopPitchRotationDirection = 0, "NONE"
        start.TableTopRollAngle, start.TableTopRollRotationDirection = 0, "NONE"
        start.IsocenterPosition = [decimal(v) for v in target.centroid_mm]
        end.ControlPointIndex, end.CumulativeMetersetWeight = 1, 1
        beam.ControlPointSequence = [start, end]
        beam.ReferencedPatientSetupNumber = 1
        ds.BeamSequence.append(beam)
