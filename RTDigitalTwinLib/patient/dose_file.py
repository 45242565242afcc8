"""A dose from a file (RTDOSE, NRRD, NIfTI, MetaImage), written by this software or exported by another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_dose import WHOLE_PLAN, read_dose
from RTDigitalTwinLib.patient.dicom_file import looks_like_dicom
from RTDigitalTwinLib.patient.dicom_index import RTDOSE, index_file
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.volume import QUANTITY_KEY, Quantity, Volume

UNITS_GY = {"Gy": 1.0, "cGy": 0.01}


def read_dose_image(path: Path, frame_of_reference: str = "", unit: str | None = None) -> Volume:
    """Read a dose.

    Parameters
    ----------
    frame_of_reference : that the file is known to be in, for image files name none. An RTDOSE keeps its own.
    unit : ``Gy`` or ``cGy``; None where the file itself says it, as an RTDOSE does and what the software wrote.

    Raises
    ------
    PatientDataError : the file cannot be read, is no 3D image, holds another quantity, or no unit is known.
    GeometryError : its axes are sheared or left-handed.
    """
    if path.is_file() and looks_like_dicom(path):
        return _rtdose(path, unit)

    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise PatientDataError("The file cannot be read as an image.", where=path.name) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise PatientDataError("The image is not a single 3D volume.", where=path.name)
    if unit is None:
        unit = _unit_of(image.GetMetaData(QUANTITY_KEY) if image.HasMetaDataKey(QUANTITY_KEY) else "", path)
    if unit not in UNITS_GY:
        raise PatientDataError(f"{unit!r} is no unit of dose.", where=path.name, remedy="Use Gy or cGy.")
    columns, rows, slices = image.GetSize()
    grid = Grid((slices, rows, columns), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    values = sitk.GetArrayFromImage(image).astype(np.float32) * np.float32(UNITS_GY[unit])
    return Volume(values, replace(grid, frame_of_reference=frame_of_reference), Quantity.DOSE_GY)


def _rtdose(path: Path, unit: str | None) -> Volume:
    """The physical dose of a whole plan: there is nobody here to tell of any other."""
    file = index_file(path, path.name)
    if file.kind != RTDOSE:
        raise PatientDataError(f"The file is a DICOM {file.kind}, not an RTDOSE.", where=path.name)
    found = read_dose(file)
    if unit not in (None, "Gy"):
        raise PatientDataError("An RTDOSE says its unit itself.", where=path.name, remedy="Leave --unit out.")
    if found.summation != WHOLE_PLAN:
        raise PatientDataError(f"It is a dose of summation {found.summation}, not a whole plan's.", where=path.name)
    if found.is_effective:
        raise PatientDataError("It is an EFFECTIVE dose, which is no physical one.", where=path.name)
    return found.dose


def _unit_of(quantity: str, path: Path) -> str:
    if not quantity:
        raise PatientDataError(
            "The file does not say the unit of its values.", where=path.name, remedy="Say it: --unit Gy or --unit cGy."
        )
    if quantity != Quantity.DOSE_GY.value:
        raise PatientDataError(f"The file holds {quantity}, not a dose.", where=path.name)
    return quantity
