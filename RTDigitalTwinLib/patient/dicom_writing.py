"""What all DICOM files that are written have in common: whose record they belong to, who made them, where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient

if TYPE_CHECKING:
    from pydicom import Dataset

SOFTWARE = "RTDigitalTwin"
NOTICE = "Research use only. Not for clinical decisions."
# 64 characters are all there are.
PREDICTED_NOTICE = "Predicted, not calculated. Research use only, not for treatment."
# Of doses that are not known everywhere: DICOM has no word for it.
PARTLY_UNKNOWN_NOTICE = "Research use only, not for clinical use. 0 Gy where not known."
PARTLY_UNKNOWN_PREDICTED_NOTICE = "Predicted, not calculated; 0 Gy if unknown. Not for treatment."
# Of predictions that simulated deliveries or measurements are behind.
SIMULATED_NOTICE = "Predicted from simulated measurements. Not for treatment."
PARTLY_UNKNOWN_SIMULATED_NOTICE = "Predicted of simulated data; 0 Gy if unknown. Not for treatment."
WIDTH_NOTICE = "Half width of calibrated 95 % band of predicted dose; research"
STD_NOTICE = "Standard deviation of samples of predicted dose; research"
DIFFERENCE_NOTICE = "Difference of doses; research"
SIMULATED_NOTICES = (SIMULATED_NOTICE, PARTLY_UNKNOWN_SIMULATED_NOTICE)
PREDICTED_NOTICES = (PREDICTED_NOTICE, PARTLY_UNKNOWN_PREDICTED_NOTICE, *SIMULATED_NOTICES)
PARTLY_UNKNOWN_NOTICES = (
    PARTLY_UNKNOWN_NOTICE,
    PARTLY_UNKNOWN_PREDICTED_NOTICE,
    PARTLY_UNKNOWN_SIMULATED_NOTICE,
)
DOSE_NOTICES = (
    NOTICE, *PREDICTED_NOTICES, PARTLY_UNKNOWN_NOTICE, WIDTH_NOTICE, STD_NOTICE, DIFFERENCE_NOTICE,
)  # fmt: skip
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
DOSE_CLASS = "1.2.840.10008.5.1.4.1.1.481.2"
STRUCTURES_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
PLAN_CLASS = "1.2.840.10008.5.1.4.1.1.481.5"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # detached study management, retired, as RTSTRUCT wants it
_LONGEST_TEXT = 64
_OURS = f" ({SOFTWARE}, research)"
LONGEST_DESCRIPTION = _LONGEST_TEXT - len(_OURS)
_DATE, _TIME = "%Y%m%d", "%H%M%S"


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
    frame = patient.ct.grid.frame_of_reference or new_uid()
    slices = tuple(new_uid() for _ in range(patient.ct.grid.shape[0]))
    now = datetime.now()
    return Origin(
        f"{name}^research", name, "", "O", new_uid(), frame, new_uid(), slices, new_uid(), new_uid(),
        now.strftime(_DATE), now.strftime(_TIME), "1",
    )  # fmt: skip


def common_elements(
    origin: Origin, sop_class: str, sop_uid: str, modality: str, series_uid: str, description: str
) -> Dataset:
    """Elements of patient, study, series and equipment; a description too long for DICOM is cut, what we say is not."""
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
    ds.SeriesDescription = f"{description[:LONGEST_DESCRIPTION].rstrip()}{_OURS}"
    ds.PatientName, ds.PatientID = origin.patient_name, origin.patient_id
    ds.PatientBirthDate, ds.PatientSex = origin.birth_date, origin.sex
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber = origin.study_uid, series_uid, 1
    return ds


def place_on(ds: Dataset, grid: Grid, origin: Origin, k: int = 0) -> None:
    """Size, spacing, directions and frame of a grid, and the position of its slice ``k``."""
    axes = np.reshape(grid.direction, (3, 3))
    ds.ContentDate, ds.ContentTime = ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = origin.frame_uid, ""
    ds.ImagePositionPatient = [decimal(v) for v in grid.to_lps_mm((k, 0, 0))]
    ds.ImageOrientationPatient = [decimal(v) for v in (*axes[:, 0], *axes[:, 1])]
    ds.PixelSpacing = [decimal(grid.spacing_mm[1]), decimal(grid.spacing_mm[0])]
    ds.Rows, ds.Columns = grid.shape[1:]


def store_pixels(ds: Dataset, stored: NDArray, *, signed: bool) -> None:
    """Grey values of 16 bits."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(signed)
    ds.PixelData = np.ascontiguousarray(stored).tobytes()
    ds["PixelData"].VR = "OW"


def reference_to(sop_class: str, uid: str) -> Dataset:
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


def decimal(value: float | Sequence[float]) -> str:
    """A number as DICOM writes it: at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(np.round(value, 9)) + 0.0)


def new_uid() -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))
