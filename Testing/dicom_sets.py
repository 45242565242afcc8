"""Small DICOM-RT sets to read, and to damage one tag at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pydicom
from pydicom import Dataset

from RTDigitalTwinLib.patient.dicom_export import write_patient
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from Testing.builders import small_patient


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
