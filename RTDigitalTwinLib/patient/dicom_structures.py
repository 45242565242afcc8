"""RTSTRUCT: regions of interest as contours in patient coordinates, and as partial-volume structures on a grid."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError, RTDigitalTwinError
from RTDigitalTwinLib.patient.contours import rasterise
from RTDigitalTwinLib.patient.dicom_file import DicomItem, decoding, open_dicom
from RTDigitalTwinLib.patient.dicom_index import IndexedFile
from RTDigitalTwinLib.patient.grid import Grid, bounding_box
from RTDigitalTwinLib.patient.structure import Structure, StructureKind

LEFT_OUT = "left out. "
NO_CONTOURS = "It has no closed contours."
CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_TARGET_TYPES = ("PTV", "CTV", "GTV", "TREATED_VOLUME", "IRRAD_VOLUME", "BOLUS_TARGET")
_FARTHEST_MM = 1e5
_SAME_POINT_DIGITS = 2  # of mm
# A contour spread over more of a slice than this is not drawn parallel to the slices.
_PLANAR_RATIO = 0.25


@dataclass(frozen=True, eq=False)
class Roi:
    """A region of interest of a structure set.

    Attributes
    ----------
    contours : closed ones, each (points, 3) in LPS mm.
    frame_uid : frame of reference of its coordinates; "" where the file names none.
    interpreted_type : such as PTV, ORGAN, EXTERNAL; "" where not given.
    remarks : what was left out, in words with counts.
    problem : why it cannot be used; "" where it can.
    """

    number: int
    name: str
    interpreted_type: str
    frame_uid: str
    contours: tuple[NDArray[np.float64], ...]
    remarks: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was drawn, as in what a template leaves behind; what is damaged is not empty."""
        return self.problem == NO_CONTOURS

    @property
    def kind(self) -> StructureKind:
        if self.interpreted_type in _TARGET_TYPES:
            return StructureKind.TARGET
        return StructureKind.REGION if self.interpreted_type == "EXTERNAL" else StructureKind.ORGAN


def read_rois(file: IndexedFile) -> list[Roi]:
    """All regions of a structure set; one that is damaged costs only itself. Raises PatientDataError."""
    item = open_dicom(file.path, file.where)
    sequences: dict[int, DicomItem] = {}
    repeated = set()
    for one in item.items("ROIContourSequence"):
        number = one.whole("ReferencedROINumber", -(2**31), 2**31)
        repeated |= {number} & sequences.keys()
        sequences[number] = one
    types: dict[int, str] = {}
    for one in item.items("RTROIObservationsSequence"):
        if one.has("ReferencedROINumber"):
            number = one.whole("ReferencedROINumber", -(2**31), 2**31)
            kind = one.text("RTROIInterpretedType", "").upper()
            types[number] = kind if types.get(number, kind) == kind else ""  # of two that differ neither counts
    rois = []
    for one in item.items("StructureSetROISequence"):
        number = one.whole("ROINumber", -(2**31), 2**31)
        name = one.text("ROIName", "") or f"ROI {number}"
        frame = one.text("ReferencedFrameOfReferenceUID", "") or file.frame_uid
        contours: list[NDArray[np.float64]] = []
        remarks: tuple[str, ...] = ()
        problem = "" if number in sequences else NO_CONTOURS
        if number in repeated:
            problem = "Two sets of contours claim its number."
        elif number in sequences:
            try:
                contours, remarks = _contours(sequences[number])
            except RTDigitalTwinError as error:
                problem = error.what
            if not contours and not problem:
                problem = NO_CONTOURS
        rois.append(Roi(number, name, types.get(number, ""), frame, tuple(contours), remarks, problem))
    if not rois:
        raise item.error("(3006,0020) StructureSetROISequence: the structure set is empty.", "Export it anew.")
    numbers = [roi.number for roi in rois]
    if len(set(numbers)) < len(numbers):
        raise item.error("(3006,0022) ROINumber: two structures have one number.", "Export it anew.")
    return rois


def _contours(sequence: DicomItem) -> tuple[list[NDArray[np.float64]], tuple[str, ...]]:
    kept: list[NDArray[np.float64]] = []
    outlines = _Outlines()
    short = other = copies = 0
    for contour in sequence.items("ContourSequence"):
        points = _points(contour)
        if contour.text("ContourGeometricType", "CLOSED_PLANAR").upper() not in CLOSED_TYPES:
            other += 1
        elif len(points) < 3:
            short += 1
        elif not outlines.is_new(points):
            copies += 1  # even-odd would cancel it with its original
        else:
            kept.append(points)
    remarks = []
    if short:
        remarks.append(f"{short} contours of one or two points were left out")
    if other:
        remarks.append(f"{other} points or open contours were left out")
    if copies:
        remarks.append(f"{copies} contours were there twice")
    return kept, tuple(remarks)


class _Outlines:
    """Which outlines were there already, wherever and whichever way each begins."""

    def __init__(self) -> None:
        self._by_ends: dict[bytes, NDArray[np.float64] | None] = {}
        self._edges: set[bytes] = set()

    def is_new(self, points: NDArray[np.float64]) -> bool:
        points = points.round(_SAME_POINT_DIGITS) + 0.0  # no -0
        ends = points.min(axis=0).tobytes() + points.max(axis=0).tobytes()
        if ends not in self._by_ends:
            self._by_ends[ends] = points
            return True
        first = self._by_ends[ends]
        if first is not None:  # edges take time, so they are looked at where the ends are the same
            self._edges.add(_edges(first))
            self._by_ends[ends] = None
        edges = _edges(points)
        is_new = edges not in self._edges
        self._edges.add(edges)
        return is_new


def _edges(points: NDArray[np.float64]) -> bytes:
    """The edges of a closed contour, in an order that does not depend on where it begins."""
    corners, numbers = np.unique(points, axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)
    edges = np.sort(np.stack([numbers, np.roll(numbers, -1)], axis=1), axis=1)
    edges = edges[edges[:, 0] != edges[:, 1]]  # a first point that is repeated to close the contour
    return corners.tobytes() + edges[np.lexsort(edges.T)].tobytes()


def _points(contour: DicomItem) -> NDArray[np.float64]:
    """Points (points, 3) of a contour; parsed at once, for pydicom's decimal strings take most of the time."""
    raw = contour.raw("ContourData")
    if raw is None:
        values = contour.numbers("ContourData") if contour.has("ContourData") else np.zeros(0)
    else:
        with decoding(contour.where, "ContourData"), python_warnings.catch_warnings():
            python_warnings.simplefilter("error")
            text = raw.decode("ascii").strip(" \0")
            values = np.fromstring(text, sep="\\") if text else np.zeros(0)
    if values.size % 3 or not np.isfinite(values).all() or (np.abs(values) > _FARTHEST_MM).any():
        raise contour.error("(3006,0050) ContourData holds no valid triples of coordinates.", "Export it anew.")
    points = values.reshape(-1, 3)
    if contour.has("ContourOffsetVector") and contour.numbers("ContourOffsetVector", 3).any():
        raise contour.error(
            "(3006,0045) ContourOffsetVector moves a contour, which was retired and is read in several ways.",
            "Export the structures anew.",
        )
    if contour.has("NumberOfContourPoints"):
        told = contour.whole("NumberOfContourPoints", 0, 2**31)
        if told != len(points):
            raise contour.error(f"(3006,0046) NumberOfContourPoints is {told}, but there are {len(points)} points.")
    return points


def roi_structure(roi: Roi, grid: Grid, remarks: dict[int, str]) -> Structure:
    """A region as occupancy on the grid of a CT. Adds what was left out, with counts, under its number.

    Contours must be parallel to the grid's slices, whatever their direction in space. Raises GeometryError where none
    are, or nothing of it lies on the grid.
    """
    if roi.problem:
        raise GeometryError(roi.problem, where=roi.name)
    counted = list(roi.remarks)
    in_index = [grid.to_index(points) for points in roi.contours]
    flat = [points for points in in_index if np.ptp(points[:, 0]) <= _PLANAR_RATIO]
    if not flat:
        raise GeometryError(
            "Its contours are not drawn parallel to the CT slices.",
            where=roi.name,
            remedy="Export it as contours on the CT's slices.",
        )
    if len(flat) < len(in_index):
        counted.append(f"{len(in_index) - len(flat)} contours not parallel to the CT slices were left out")
    try:
        drawn = rasterise(flat, grid.shape)
    except GeometryError as error:
        raise GeometryError(error.what, where=roi.name, remedy=error.remedy) from error
    tight = None if drawn.box is None else bounding_box(drawn.occupancy > 0)
    if drawn.box is None or tight is None:
        raise GeometryError("No part of it lies on the CT.", where=roi.name)
    if drawn.off_slice_planes:
        counted.append(f"{drawn.off_slice_planes} contour planes between CT slices count by their overlap")
    if drawn.beyond_planes:
        counted.append(f"{drawn.beyond_planes} contour planes lie beyond the CT")
    if drawn.gaps:
        counted.append(f"{drawn.gaps} gaps between its contours were left empty")
    if counted:
        remarks[roi.number] = f"{'; '.join(counted)}."
    box = tuple(
        slice(part.start + inner.start, part.start + inner.stop) for part, inner in zip(drawn.box, tight, strict=True)
    )
    return Structure(roi.name, grid, (box[0], box[1], box[2]), drawn.occupancy[tight], roi.kind, roi.name)


def occupancies(rois: Sequence[Roi], grid: Grid, remarks: dict[int, str]) -> dict[int, Structure]:
    """Structures by ROI number; a region that cannot be drawn is left out.

    ``remarks`` gets what is to be said of a region, by its number: names in a file are free text, which may not go into
    results.
    """
    drawn = {}
    for roi in rois:
        try:
            drawn[roi.number] = roi_structure(roi, grid, remarks)
        except GeometryError as error:
            remarks[roi.number] = f"{LEFT_OUT}{error.what}"
    return drawn
