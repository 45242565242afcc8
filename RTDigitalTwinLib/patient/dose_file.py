"""A dose from a file (RTDOSE, NRRD, NIfTI, MetaImage), written by this software or exported by another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_dose import (
    PREDICTION_REMARK,
    SIMULATION_REMARK,
    WHOLE_PLAN,
    range_problem,
    read_dose,
)
from RTDigitalTwinLib.patient.dicom_file import looks_like_dicom
from RTDigitalTwinLib.patient.dicom_index import RTDOSE, index_file
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.identity import Belonging, Identity, require_same_person
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.volume import (
    ALPHA_BETA_KEY,
    PREDICTED,
    PREDICTED_KEY,
    QUANTITY_KEY,
    SIMULATED,
    SIMULATED_KEY,
    Quantity,
    Volume,
)

if TYPE_CHECKING:
    import SimpleITK as sitk

UNITS_GY = {"Gy": 1.0, "cGy": 0.01}
OTHER_PLAN_REMARK = "The dose refers to another plan than the folder's, whose prescription and goals are used."


@dataclass(frozen=True, eq=False)
class ReadDose:
    """A dose read from a file.

    Attributes
    ----------
    dose : Gy, physical, on the file's own grid.
    remarks : what the user must see.
    is_predicted : whether this software wrote it as its prediction.
    summation : DoseSummationType of an RTDOSE, such as PLAN or FRACTION; "" of image files, which do not say.
    identity : whose an RTDOSE says it is; None of image files.
    plan_uids : plans that an RTDOSE refers to.
    """

    dose: Volume
    remarks: tuple[str, ...] = ()
    is_predicted: bool = False
    summation: str = ""
    identity: Identity | None = None
    plan_uids: tuple[str, ...] = ()


def read_dose_image(
    path: Path,
    frame_of_reference: str = "",
    unit: str | None = None,
    *,
    summations: Sequence[str] = (WHOLE_PLAN,),
) -> ReadDose:
    """Read a dose.

    Parameters
    ----------
    frame_of_reference : that the file is known to be in, for image files name none. An RTDOSE keeps its own.
    unit : ``Gy`` or ``cGy``, of a file that does not say it. What a file says of itself must not be contradicted.
    summations : that an RTDOSE may be of.

    Raises
    ------
    PatientDataError : the file cannot be read, is no 3D image, holds another quantity than physical dose, values that
        no dose has, no unit or another than ``unit``.
    GeometryError : its axes are sheared or left-handed.
    """
    if unit is not None and unit not in UNITS_GY:
        raise PatientDataError(f"{unit!r} is no unit of dose.", where=path.name, remedy="Use Gy or cGy.")
    if path.is_file() and looks_like_dicom(path):
        return _rtdose(path, unit, summations)

    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise PatientDataError("The file cannot be read as an image.", where=path.name) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise PatientDataError("The image is not a single 3D volume.", where=path.name)
    factor = np.float32(UNITS_GY[_unit_of(image, unit, path)])
    columns, rows, slices = image.GetSize()
    grid = Grid((slices, rows, columns), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    gy = sitk.GetArrayFromImage(image).astype(np.float32) * factor
    if not np.isnan(gy).all() and (wrong := range_problem(gy)):
        raise PatientDataError(wrong[0], where=path.name, remedy=wrong[1])
    dose = Volume(np.maximum(gy, 0), replace(grid, frame_of_reference=frame_of_reference), Quantity.DOSE_GY)
    predicted = _said(image, PREDICTED_KEY) == PREDICTED
    remarks = (PREDICTION_REMARK,) if predicted else ()
    if _said(image, SIMULATED_KEY) == SIMULATED:
        remarks = (*remarks, SIMULATION_REMARK)
    return ReadDose(dose, remarks, predicted)


def require_belongs(read: ReadDose, to: Belonging, overrides: Overrides, where: str) -> tuple[str, ...]:
    """What is to be told of a dose used with a patient's folder, where it may be.

    Raises PatientDataError where the dose is of another person and that is not overridden. Image files name nobody.
    """
    if read.identity is None:
        return ()
    remarks: list[str] = []
    require_same_person(to.identity, read.identity, overrides, where, remarks)
    if to.plan_uid and read.plan_uids and to.plan_uid not in read.plan_uids:
        remarks.append(OTHER_PLAN_REMARK)
    return tuple(remarks)


def require_physical_dose(image: sitk.Image, where: str) -> None:
    """Raises PatientDataError where an image file says that it holds something else than physical dose in Gy."""
    quantity = _said(image, QUANTITY_KEY)
    if quantity == Quantity.EQD2_GY.value:
        raise PatientDataError(
            f"The file holds EQD2 (alpha/beta {_said(image, ALPHA_BETA_KEY) or 'unknown'} Gy), not a physical dose.",
            where=where,
            remedy="Take the physical dose.",
        )
    if quantity not in ("", Quantity.DOSE_GY.value):
        raise PatientDataError(f"The file holds {quantity}, not a dose.", where=where)


def _rtdose(path: Path, unit: str | None, summations: Sequence[str]) -> ReadDose:
    """The physical dose of an RTDOSE."""
    file = index_file(path, path.name)
    if file.kind != RTDOSE:
        raise PatientDataError(f"The file is a DICOM {file.kind}, not an RTDOSE.", where=path.name)
    found = read_dose(file)
    if unit not in (None, "Gy"):
        raise PatientDataError("An RTDOSE says its unit itself.", where=path.name, remedy="Leave --unit out.")
    if found.summation not in summations:
        expected = "a whole plan's" if tuple(summations) == (WHOLE_PLAN,) else " or ".join(summations)
        raise PatientDataError(f"It is a dose of summation {found.summation}, not {expected}.", where=path.name)
    if found.is_effective:
        raise PatientDataError("It is an EFFECTIVE dose, which is no physical one.", where=path.name)
    return ReadDose(found.dose, found.remarks, found.is_predicted, found.summation, file.identity, file.references)


def _said(image: sitk.Image, key: str) -> str:
    return str(image.GetMetaData(key)) if image.HasMetaDataKey(key) else ""


def _unit_of(image: sitk.Image, unit: str | None, path: Path) -> str:
    """The unit that the file states, or else the user."""
    require_physical_dose(image, path.name)
    quantity = _said(image, QUANTITY_KEY)
    if not quantity:
        if unit is None:
            raise PatientDataError(
                "The file does not say the unit of its values.",
                where=path.name,
                remedy="Say it: --unit Gy or --unit cGy.",
            )
        return unit
    if unit not in (None, quantity):
        raise PatientDataError(
            f"The file says that its values are in {quantity}, not {unit}.", where=path.name, remedy="Leave --unit out."
        )
    return quantity
