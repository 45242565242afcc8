"""Small DICOM-RT sets to read, and to damage one tag at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset

from RTDigitalTwinLib.patient.dicom_ct import read_ct
from RTDigitalTwinLib.patient.dicom_dose import DicomDose, read_dose
from RTDigitalTwinLib.patient.dicom_export import write_patient
from RTDigitalTwinLib.patient.dicom_index import RTDOSE, RTPLAN, RTSTRUCT, IndexedFile, index_folder
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.dicom_plan import DicomPlan, read_plan
from RTDigitalTwinLib.patient.dicom_structures import occupancies, read_rois
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from Testing.builders import small_patient

NAMES = {
    "Parotid_L": "Parotida Izq",
    "Parotid_R": "Glandula Parotida Dcha",
    "SpinalCord": "Médula",
    "PTV_7000": "PTV70",
}
CONFIRMED = [f"{clinical}={name}" for name, clinical in NAMES.items()]
PLANTED = {"PatientName": "Longstocking^Pippi", "PatientID": "PLANTED-7", "PatientBirthDate": "19450101"}


def maps() -> list[str]:
    return [part for text in CONFIRMED for part in ("--map", text)]


def small_set(folder: Path, grid: Grid | None = None) -> Patient:
    """Write the hand-made patient, with its dose and a dose mask that leaves the end slices free; returns it."""
    made = small_patient(grid)
    patient = replace(
        made, dose_mask=Structure.from_array("FeasibleDose", made.dose_mask.mask, made.ct.grid, made.dose_mask.kind)
    )
    write_patient(patient, folder)
    return patient


@contextmanager
def edited(path: Path) -> Iterator[Dataset]:
    """A file's data set to change; written back as it is, however wrong."""
    dataset = pydicom.dcmread(path)
    yield dataset
    with pydicom.config.disable_value_validation():
        dataset.save_as(path)


def edit_all(folder: Path, pattern: str, change: Callable[[Dataset, int], None]) -> None:
    """Change every file of a pattern; the function also gets its place in the order of names."""
    for i, path in enumerate(sorted(folder.glob(pattern))):
        with edited(path) as dataset:
            change(dataset, i)


def roi_number(dataset: Dataset, name: str) -> int:
    return next(roi.ROINumber for roi in dataset.StructureSetROISequence if roi.ROIName == name)


def contours_of(dataset: Dataset, name: str) -> list[Dataset]:
    """Contour items of a structure."""
    number = roi_number(dataset, name)
    return next(r.ContourSequence for r in dataset.ROIContourSequence if r.ReferencedROINumber == number)


def add_copy(dataset: Dataset, name: str, copy_name: str, interpreted_type: str = "ORGAN") -> int:
    """Give a structure set a copy of a structure; returns its number."""
    number, new = roi_number(dataset, name), 1 + max(roi.ROINumber for roi in dataset.StructureSetROISequence)
    for sequence, key in (
        (dataset.StructureSetROISequence, "ROINumber"),
        (dataset.ROIContourSequence, "ReferencedROINumber"),
        (dataset.RTROIObservationsSequence, "ReferencedROINumber"),
    ):
        copy = deepcopy(next(item for item in sequence if getattr(item, key) == number))
        setattr(copy, key, new)
        sequence.append(copy)
    dataset.StructureSetROISequence[-1].ROIName = copy_name
    dataset.RTROIObservationsSequence[-1].RTROIInterpretedType = interpreted_type
    return new


def set_identity(folder: Path, identity: dict[str, str]) -> None:
    """Give all files of a set the elements of an identity by keyword."""

    def change(dataset: Dataset, _: int) -> None:
        for keyword, value in identity.items():
            setattr(dataset, keyword, value)

    edit_all(folder, "*.dcm", change)


def accepting(*checks: str) -> DicomChoice:
    return DicomChoice(overrides=Overrides(frozenset(checks)))


def dose_of(patient: Patient) -> NDArray:
    """Values of the plan's dose, which is there."""
    assert patient.plan.dose is not None
    return patient.plan.dose.values


def only(folder: Path, kind: str) -> IndexedFile:
    (file,) = index_folder(folder).patient().of_kind(kind)
    return file


def set_of(folder: Path) -> tuple[dict[str, Structure], list[str]]:
    """Structures drawn on the CT by name, and what was noticed."""
    (series,) = index_folder(folder).patient().ct_series.values()
    grid = read_ct(series, Overrides(), []).grid
    remarks: dict[int, str] = {}
    rois = read_rois(only(folder, RTSTRUCT))
    drawn = occupancies(rois, grid, remarks)
    noticed = [f"{roi.name}: {remarks[roi.number]}" for roi in rois if roi.number in remarks]
    return {roi.name: drawn[roi.number] for roi in rois if roi.number in drawn}, noticed


def dose_in(folder: Path) -> DicomDose:
    return read_dose(only(folder, RTDOSE))


def plan_in(folder: Path) -> DicomPlan:
    return read_plan(only(folder, RTPLAN))


def compress_by_gdcm(path: Path, compressor: str, aside: Path) -> None:
    """Put a file's pixels in JPEG or JPEG2000, lossless, as GDCM writes them."""
    written = pydicom.dcmread(path)
    image = sitk.GetImageFromArray(written.pixel_array[None])
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(aside / "jpeg.dcm"))
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(image)
    packed = pydicom.dcmread(aside / "jpeg.dcm")
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    written.PixelData = packed.PixelData
    written["PixelData"].VR = "OB"
    written["PixelData"].is_undefined_length = True
    written.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    written.save_as(path)
