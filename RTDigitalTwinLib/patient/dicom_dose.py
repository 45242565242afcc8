"""RTDOSE: dose in Gy on its own grid, labelled for what it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.dicom_ct import directions, pixel_spacing
from RTDigitalTwinLib.patient.dicom_file import DicomItem, open_dicom, stored_pixels
from RTDigitalTwinLib.patient.dicom_index import IndexedFile
from RTDigitalTwinLib.patient.dicom_writing import PARTLY_UNKNOWN_NOTICES, PREDICTED_NOTICES, SIMULATED_NOTICES
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.volume import Quantity, Volume

HIGHEST_DOSE_GY = 300.0
EFFECTIVE_REMARK = "The dose is an EFFECTIVE one, corrected for biological effect: it is no physical dose."
_SMALLEST_NEGATIVE_RATIO = 0.005
_EVEN_RATIO = 0.01
_SAME_MM = 0.01
WHOLE_PLAN, ONE_FRACTION = "PLAN", "FRACTION"
PREDICTION_REMARK = "The dose is a prediction of this software: it is no plan's dose."
SIMULATION_REMARK = "Simulated deliveries or measurements are behind this dose: they stand in for real ones."
SUMMATIONS = (
    WHOLE_PLAN, "MULTI_PLAN", "PLAN_OVERVIEW", ONE_FRACTION, "BEAM", "BRACHY", "FRACTION_SESSION", "BEAM_SESSION",
    "BRACHY_SESSION", "CONTROL_POINT", "RECORD",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DicomDose:
    """A dose file.

    Attributes
    ----------
    dose : Gy on the file's own grid.
    summation : DoseSummationType: PLAN, or a part of one such as BEAM or FRACTION; OTHER where DICOM knows no such.
    remarks : what the user should know.
    is_predicted : whether this software wrote it as its prediction.
    is_effective : whether it is corrected for biological effect.
    """

    dose: Volume
    summation: str
    remarks: tuple[str, ...]
    is_predicted: bool = False
    is_effective: bool = False

    @property
    def is_plan(self) -> bool:
        """Whether it is the dose that a whole plan was calculated to give."""
        return self.summation == WHOLE_PLAN and not self.is_predicted


def read_dose(file: IndexedFile) -> DicomDose:
    """Read a dose. Raises PatientDataError where units, type, scaling or frame offsets leave its meaning open."""
    item = open_dicom(file.path, file.where)
    units = item.code("DoseUnits", ("GY", "RELATIVE"))
    if units != "GY":
        raise item.error(f"(3004,0002) DoseUnits is {units}: not in Gy.", "Export the dose as absolute dose in Gy.")
    dose_type = item.code("DoseType", ("PHYSICAL", "EFFECTIVE", "ERROR"))
    if dose_type not in ("PHYSICAL", "EFFECTIVE"):
        meaning = " (a spread or a difference of doses)" if dose_type == "ERROR" else ""
        raise item.error(f"(3004,0004) DoseType is {dose_type}{meaning}; PHYSICAL or EFFECTIVE is expected.")
    remarks = []
    comment = item.text("DoseComment", "")
    is_predicted = comment in PREDICTED_NOTICES
    if is_predicted:
        remarks.append(PREDICTION_REMARK)
    if comment in SIMULATED_NOTICES:
        remarks.append(SIMULATION_REMARK)
    if comment in PARTLY_UNKNOWN_NOTICES:
        remarks.append("The dose was not known everywhere when it was written: there the file holds 0 Gy.")
    if dose_type == "EFFECTIVE":
        remarks.append(EFFECTIVE_REMARK)
    summation = item.code("DoseSummationType", SUMMATIONS)
    scaling = item.number("DoseGridScaling")
    if scaling <= 0:
        raise item.error(f"(3004,000E) DoseGridScaling is {scaling:g}; it must be above 0.", "Export the dose anew.")
    offsets = _frame_offsets_mm(item)
    pixels, rescaled = stored_pixels(item, file.path)
    if rescaled:
        raise item.error("Doses in a compressed transfer syntax are not read.", "Export it uncompressed.")
    if len(pixels) != len(offsets):
        raise item.error(f"(3004,000C) GridFrameOffsetVector has {len(offsets)} entries for {len(pixels)} frames.")
    gy = pixels.astype(np.float32) * np.float32(scaling)
    if wrong := range_problem(gy):
        raise item.error(*wrong)
    placed = Volume(*_placed(item, file, np.maximum(gy, 0), offsets), Quantity.DOSE_GY)
    return DicomDose(placed, summation, tuple(remarks), is_predicted, dose_type == "EFFECTIVE")


def range_problem(gy: NDArray[np.floating]) -> tuple[str, str] | None:
    """Why values in Gy, of which some are finite, cannot be a dose, and what to do; None where they can."""
    highest, lowest = float(np.nanmax(gy)), float(np.nanmin(gy))
    if not 0 < highest <= HIGHEST_DOSE_GY:
        return (
            f"The dose reaches {highest:g} Gy; expected is more than 0 and at most {HIGHEST_DOSE_GY:g}.",
            "Check unit and scaling; in DICOM, (3004,000E) DoseGridScaling and (3004,0002) DoseUnits.",
        )
    if lowest < -_SMALLEST_NEGATIVE_RATIO * highest:
        return f"Doses go down to {lowest:g} Gy.", "A difference of doses is no dose, nor is a CT."
    return None


def _frame_offsets_mm(item: DicomItem) -> NDArray[np.float64]:
    """Offsets of the frames along the slice normal, from the first; evenly spaced, either sign."""
    offsets = item.numbers("GridFrameOffsetVector")
    if len(offsets) < 2:
        raise item.error("(3004,000C) GridFrameOffsetVector: a dose in a single plane is not read.")
    position = item.numbers("ImagePositionPatient", 3)
    normal = np.cross(*directions(item))
    if offsets[0] != 0:
        # Absolute z coordinates, which DICOM allows for axial planes only.
        if abs(offsets[0] - position[2]) > _SAME_MM or abs(abs(normal[2]) - 1) > 1e-3:
            raise item.error(
                f"(3004,000C) GridFrameOffsetVector begins with {offsets[0]:g}, which is neither 0 nor the position "
                f"{position[2]:g} of the first axial plane.",
                "Export the dose anew.",
            )
        offsets = (offsets - offsets[0]) * np.sign(normal[2])
    steps = np.diff(offsets)
    usual = float(np.median(steps))
    if usual == 0 or np.abs(steps - usual).max() > max(_SAME_MM, _EVEN_RATIO * abs(usual)):
        raise item.error(
            f"(3004,000C) GridFrameOffsetVector: the dose planes are {steps.min():g} to {steps.max():g} mm apart, not "
            "evenly.",
            "Export the dose on an even grid.",
        )
    return offsets


def _placed(
    item: DicomItem, file: IndexedFile, gy: NDArray[np.float32], offsets: NDArray[np.float64]
) -> tuple[NDArray[np.float32], Grid]:
    axes = directions(item)
    normal = np.cross(*axes)
    origin = item.numbers("ImagePositionPatient", 3, -1e5, 1e5)
    if offsets[-1] < 0:  # frames against the normal: turned over, so that the grid stays right-handed
        origin = origin + offsets[-1] * normal
        gy, offsets = gy[::-1], offsets[::-1] - offsets[-1]
    step = float(offsets[-1] / (len(offsets) - 1))
    grid = Grid(
        gy.shape,
        (*pixel_spacing(item), step),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        tuple(np.stack([*axes, normal], axis=1).ravel()),
        file.frame_uid,
    )
    return gy, grid
