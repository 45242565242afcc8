"""Writing a patient as a DICOM-RT set: CT, RTSTRUCT, RTPLAN and RTDOSE with fresh UIDs.

Says in each file that it is research and, of a dose, how it came about. A patient of no hospital gets its pseudonym
for name and identifier; results for a hospital's patient carry the source's identity, for they go back to its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.files import whole_folder
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.outlines import outlines
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import Plan
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, silent

if TYPE_CHECKING:
    from pydicom import Dataset

SOFTWARE = "RTDigitalTwin"
NOTICE = "Research use only. Not for clinical decisions."
PREDICTED_NOTICE = "Predicted, not calculated. Research use only, not for treatment."  # 64 characters, all there are
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
DOSE_CLASS = "1.2.840.10008.5.1.4.1.1.481.2"
STRUCTURES_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
PLAN_CLASS = "1.2.840.10008.5.1.4.1.1.481.5"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # detached study management, retired, as RTSTRUCT wants it
_DATE, _TIME = "%Y%m%d", "%H%M%S"
_HIGHEST_STORED = 2**16 - 1
_ROI_TYPES = {StructureKind.TARGET: "PTV", StructureKind.ORGAN: "ORGAN", StructureKind.REGION: "CONTROL"}


@dataclass(frozen=True)
class Origin:
    """Whose record a file belongs to, and what it refers to.

    Attributes
    ----------
    ct_uids : SOP instance UIDs of the CT's slices; of a set to be written ascending along the normal.
    plan_uid : "" where there is no plan.
    """

    patient_name: str
    patient_id: str
    birth_date: str
    sex: str
    study_uid: str
    frame_uid: str
    ct_series_uid: str
    ct_uids: tuple[str, ...]
    structure_set_uid: str
    plan_uid: str
    study_date: str = ""
    study_time: str = ""
    study_id: str = ""
    accession_number: str = ""
    referring_physician: str = ""


def fresh_origin(patient: Patient) -> Origin:
    """An origin with fresh UIDs under the patient's pseudonym; the CT's frame of reference where it has one."""
    name = patient.pseudonym[:64]
    frame = patient.ct.grid.frame_of_reference or _uid()
    slices = tuple(_uid() for _ in range(patient.ct.grid.shape[0]))
    now = datetime.now()
    return Origin(
        f"{name}^research", name, "", "O", _uid(), frame, _uid(), slices, _uid(), _uid(),
        now.strftime(_DATE), now.strftime(_TIME), "1",
    )  # fmt: skip


def write_patient(patient: Patient, folder: Path, progress: Progress = silent) -> Origin:
    """Write CT, structures and plan, and its dose where it has one, into a folder that appears whole or not at all.

    Structures are written as outlines of half occupancy. The dose mask goes along as a structure of its name. Raises
    OutputError where it cannot be written, PatientDataError where the CT does not fit 16 bits.
    """
    origin = fresh_origin(patient)
    with whole_folder(folder) as aside:
        _write_ct(patient.ct, origin, aside, progress)
        progress(0.7, "writing structures")
        save(_structure_set(patient, origin), aside / "RTSTRUCT.dcm")
        if patient.plans:
            save(_plan(patient, origin), aside / "RTPLAN.dcm")
            if patient.plan.dose is not None:
                write_dose(patient.plan.dose, aside / "RTDOSE.dcm", origin, "Plan dose")
    return origin


def write_dose(dose: Volume, path: Path, origin: Origin, description: str, *, predicted: bool = False) -> None:
    """Write a dose in Gy that refers to the origin's plan; steps of its highest value over 65535.

    NaN, where the dose is not known, is written as 0 for DICOM has no word for it. ``path`` is written in place.
    """
    from pydicom.tag import Tag
    from pydicom.valuerep import format_number_as_ds

    gy = np.nan_to_num(np.asarray(dose.values, dtype=np.float64), nan=0.0)
    if gy.min() < 0 or not gy.max() > 0:
        raise PatientDataError("A dose to write must have no value below 0 Gy and one above.")
    scaling = format_number_as_ds(float(gy.max()) / _HIGHEST_STORED)
    stored = np.minimum(np.round(gy / float(scaling)), _HIGHEST_STORED).astype("<u2")
    grid = dose.grid
    ds = _common(origin, DOSE_CLASS, _uid(), "RTDOSE", _uid(), description)
    _place(ds, grid, origin)
    ds.SliceThickness = _ds(grid.spacing_mm[2])
    ds.NumberOfFrames = grid.shape[0]
    ds.FrameIncrementPointer = Tag("GridFrameOffsetVector")
    ds.GridFrameOffsetVector = [_ds(k * grid.spacing_mm[2]) for k in range(grid.shape[0])]
    _pixels(ds, stored, signed=False)
    ds.DoseUnits, ds.DoseType, ds.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    ds.DoseComment = PREDICTED_NOTICE if predicted else NOTICE
    ds.DoseGridScaling = scaling
    ds.InstanceNumber = 1
    if origin.plan_uid:
        ds.ReferencedRTPlanSequence = [_reference(PLAN_CLASS, origin.plan_uid)]
    # The structure set follows from the plan: named by itself, DICOM wants its DVHs along with it.
    save(ds, path)


def _write_ct(ct: Volume, origin: Origin, folder: Path, progress: Progress) -> None:
    hu = np.round(ct.values)
    if hu.min() < -(2**15) or hu.max() >= 2**15:
        raise PatientDataError("CT values beyond 16 bits cannot be written.", remedy="Clip them to -1024..3071 HU.")
    grid = ct.grid
    for k, uid in enumerate(origin.ct_uids):
        if k % 16 == 0:
            progress(0.7 * k / len(origin.ct_uids), f"writing slice {k + 1} of {len(origin.ct_uids)}")
        ds = _common(origin, CT_CLASS, uid, "CT", origin.ct_series_uid, "Planning CT")
        _place(ds, grid, origin, k)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.SliceThickness = _ds(grid.spacing_mm[2])
        ds.InstanceNumber, ds.AcquisitionNumber = k + 1, 1
        ds.KVP, ds.PatientPosition, ds.Laterality = None, "", ""
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
        _pixels(ds, hu[k].astype("<i2"), signed=True)
        save(ds, folder / f"CT.{k + 1:04d}.dcm")


def _structure_set(patient: Patient, origin: Origin) -> Dataset:
    from pydicom import Dataset

    ds = _common(origin, STRUCTURES_CLASS, origin.structure_set_uid, "RTSTRUCT", _uid(), "Structures")
    ds.StructureSetLabel, ds.InstanceNumber = "Structures", 1
    ds.StructureSetDescription = NOTICE
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = origin.frame_uid, ""
    ds.StructureSetDate, ds.StructureSetTime = ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.ApprovalStatus = "UNAPPROVED"
    images = [_reference(CT_CLASS, uid) for uid in origin.ct_uids]
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = origin.ct_series_uid, images
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_CLASS, origin.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = origin.frame_uid, [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, structure in enumerate((*patient.structures.values(), patient.dose_mask), start=1):
        roi, observation = Dataset(), Dataset()
        roi.ROINumber, roi.ReferencedFrameOfReferenceUID = number, origin.frame_uid
        roi.ROIName, roi.ROIGenerationAlgorithm = structure.name, "AUTOMATIC"
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType, observation.ROIInterpreter = _ROI_TYPES[structure.kind], ""
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(_contours(structure, number, origin))
        ds.RTROIObservationsSequence.append(observation)
    return ds


def _contours(structure: Structure, number: int, origin: Origin) -> Dataset:
    from pydicom import Dataset

    from RTDigitalTwinLib.patient.colours import structure_colour

    item = Dataset()
    item.ROIDisplayColor = [round(255 * part) for part in structure_colour(structure.name)]
    item.ReferencedROINumber = number
    item.ContourSequence = []
    for k, points in outlines(structure):
        contour = Dataset()
        contour.ContourImageSequence = [_reference(CT_CLASS, origin.ct_uids[k])]
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
        contour.ContourData = [f"{v:.4f}" for v in points.ravel()]
        item.ContourSequence.append(contour)
    if not item.ContourSequence:
        raise PatientDataError("No voxel is half inside, so there is no outline to write.", where=structure.name)
    return item


def _plan(patient: Patient, origin: Origin) -> Dataset:
    from pydicom import Dataset

    plan = patient.plan
    ds = _common(origin, PLAN_CLASS, origin.plan_uid, "RTPLAN", _uid(), "Plan")
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = origin.frame_uid, ""
    ds.RTPlanLabel, ds.RTPlanGeometry, ds.InstanceNumber = "Plan", "PATIENT", 1
    ds.RTPlanDescription = NOTICE
    ds.RTPlanDate, ds.RTPlanTime = ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.ApprovalStatus = "UNAPPROVED"
    ds.ReferencedStructureSetSequence = [_reference(STRUCTURES_CLASS, origin.structure_set_uid)]
    numbers = {name: i for i, name in enumerate(patient.structures, start=1)}
    ds.DoseReferenceSequence = []
    for i, (name, gy) in enumerate(plan.prescription.target_dose_gy, start=1):
        reference = Dataset()
        reference.DoseReferenceNumber, reference.DoseReferenceStructureType = i, "VOLUME"
        reference.ReferencedROINumber, reference.DoseReferenceType = numbers[name], "TARGET"
        reference.DoseReferenceDescription, reference.TargetPrescriptionDose = name, _ds(gy)
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
        start.GantryAngle, start.GantryRotationDirection = _ds(angle), "NONE"
        start.BeamLimitingDeviceAngle, start.BeamLimitingDeviceRotationDirection = 0, "NONE"
        start.PatientSupportAngle, start.PatientSupportRotationDirection = 0, "NONE"
        start.TableTopEccentricAngle, start.TableTopEccentricRotationDirection = 0, "NONE"
        start.TableTopVerticalPosition = start.TableTopLongitudinalPosition = start.TableTopLateralPosition = None
        start.TableTopPitchAngle, start.TableTopPitchRotationDirection = 0, "NONE"
        start.TableTopRollAngle, start.TableTopRollRotationDirection = 0, "NONE"
        start.IsocenterPosition = [_ds(v) for v in target.centroid_mm]
        end.ControlPointIndex, end.CumulativeMetersetWeight = 1, 1
        beam.ControlPointSequence = [start, end]
        beam.ReferencedPatientSetupNumber = 1
        ds.BeamSequence.append(beam)


def _common(origin: Origin, sop_class: str, sop_uid: str, modality: str, series_uid: str, description: str) -> Dataset:
    from pydicom import Dataset

    now = datetime.now()
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, sop_uid, modality
    ds.InstanceCreationDate = ds.SeriesDate = now.strftime(_DATE)
    ds.InstanceCreationTime = ds.SeriesTime = now.strftime(_TIME)
    ds.StudyDate, ds.StudyTime, ds.StudyID = origin.study_date, origin.study_time, origin.study_id
    ds.AccessionNumber, ds.ReferringPhysicianName = origin.accession_number, origin.referring_physician
    ds.OperatorsName = ""
    ds.Manufacturer = ds.ManufacturerModelName = SOFTWARE
    ds.SoftwareVersions, ds.DeviceSerialNumber = __version__, "0"
    ds.SeriesDescription = f"{description} ({SOFTWARE}, research)"[:64]
    ds.PatientName, ds.PatientID = origin.patient_name, origin.patient_id
    ds.PatientBirthDate, ds.PatientSex = origin.birth_date, origin.sex
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = origin.study_uid, series_uid, 1
    return ds


def _place(ds: Dataset, grid: Grid, origin: Origin, k: int = 0) -> None:
    axes = np.reshape(grid.direction, (3, 3))
    ds.ContentDate, ds.ContentTime = ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = origin.frame_uid, ""
    ds.ImagePositionPatient = [_ds(v) for v in grid.to_lps_mm((k, 0, 0))]
    ds.ImageOrientationPatient = [_ds(v) for v in (*axes[:, 0], *axes[:, 1])]
    ds.PixelSpacing = [_ds(grid.spacing_mm[1]), _ds(grid.spacing_mm[0])]
    ds.Rows, ds.Columns = grid.shape[1:]


def _pixels(ds: Dataset, stored: NDArray, *, signed: bool) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(signed)
    ds.PixelData = np.ascontiguousarray(stored).tobytes()
    ds["PixelData"].VR = "OW"


def _reference(sop_class: str, uid: str) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def save(ds: Dataset, path: Path) -> None:
    """Write a data set in place, little endian: implicit of a structure set, explicit of others."""
    from pydicom.dataset import FileMetaDataset

    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    # Contours may be longer than the 64 KiB that explicit VR has for decimal strings.
    meta.TransferSyntaxUID = IMPLICIT_LITTLE_ENDIAN if ds.SOPClassUID == STRUCTURES_CLASS else EXPLICIT_LITTLE_ENDIAN
    ds.file_meta = meta
    ds.save_as(path, enforce_file_format=True)


def _ds(value: float | Sequence[float]) -> str:
    """A number as DICOM writes it: at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(np.round(value, 9)) + 0.0)


def _uid() -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))
