"""A CT series as a volume: slices assembled by their position along the slice normal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_file import DicomItem, open_dicom, stored_pixels
from RTDigitalTwinLib.patient.dicom_index import IndexedFile
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.words import counted

LOWEST_HU = -1024
# What rounding of written positions and directions explains.
SAME_POSITION_MM = 0.01
UNEVEN_RATIO = 0.02
UNEVEN_MM = 0.02
SHEAR_MM = 0.5
SAME_DIRECTION = 1e-3
_MOST_FILLED_RATIO = 2
_HU_TYPES = ("HU", "HU_MOD", "US")  # US is "unspecified", as cone-beam CTs say
_RESCALE_TYPES = (*_HU_TYPES, "OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
_TOP_MM = 1e5


@dataclass(frozen=True, eq=False)
class _Slice:
    file: IndexedFile
    position: NDArray[np.float64]
    direction: NDArray[np.float64]  # (2, 3): along columns, along rows
    spacing: tuple[float, float]  # between columns, between rows
    size: tuple[int, int]  # rows, columns

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.direction[0], self.direction[1])

    @property
    def height_mm(self) -> float:
        return float(self.position @ self.normal)


def read_ct(
    files: Sequence[IndexedFile], overrides: Overrides, warnings: list[str], progress: Progress = silent
) -> Volume:
    """One series as HU on a right-handed grid, slices ascending along their normal.

    Values below -1024 HU (padding) are raised to it. Warnings are added to the list. Raises PatientDataError where
    slices are sheared, uneven, missing, of several orientations or sizes, or contradict each other; missing ones are
    interpolated linearly where ``overrides`` accept gaps.
    """
    slices = [_slice_of(file) for file in files if not _is_localizer(file)]
    if len(slices) < len(files):
        warnings.append(f"{len(files) - len(slices)} localizer images of the CT series were left out.")
    if len(slices) < 2:
        raise PatientDataError(
            f"The CT series has {len(slices)} slice{'' if len(slices) == 1 else 's'}; a volume needs two or more.",
            where=files[0].where,
            remedy="Export the whole series.",
        )
    first = slices[0]
    for one in slices[1:]:
        _require_alike(first, one)
    slices.sort(key=lambda one: one.height_mm)
    hu = []
    for i, one in enumerate(slices):
        progress(i / len(slices), f"reading slice {i + 1} of {len(slices)}")
        hu.append(_hu(one))
    slices, hu = _without_duplicates(slices, hu, warnings)
    _require_straight(slices)
    heights = np.array([one.height_mm for one in slices])
    step, stack = _evenly(heights, hu, slices, overrides, warnings)
    x, y, z = slices[0].position
    axes = np.stack([first.direction[0], first.direction[1], first.normal], axis=1)
    grid = Grid(
        (len(stack), *first.size),
        (*first.spacing, step),
        (float(x), float(y), float(z)),
        tuple(axes.ravel()),
        first.file.frame_uid,
    )
    if not first.file.frame_uid:
        warnings.append("The CT names no frame of reference; only positions tie the other files to it.")
    return Volume(stack, grid, Quantity.HU)


def directions(item: DicomItem) -> NDArray[np.float64]:
    """Unit vectors (2, 3) along columns and rows. Raises PatientDataError where they are not orthonormal."""
    axes = item.numbers("ImageOrientationPatient", 6, -1.01, 1.01).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=SAME_DIRECTION):
        raise item.error(
            "(0020,0037) ImageOrientationPatient: the directions are not perpendicular unit vectors.",
            "Export it anew.",
        )
    # Few written digits: straighten, so that the grid's axes are exactly orthonormal.
    along = axes[0] / np.linalg.norm(axes[0])
    down = axes[1] - (axes[1] @ along) * along
    return np.stack([along, down / np.linalg.norm(down)])


def pixel_spacing(item: DicomItem) -> tuple[float, float]:
    """mm between columns and between rows (DICOM gives the latter first)."""
    row_mm, column_mm = item.numbers("PixelSpacing", 2, 0.01, 50)
    return float(column_mm), float(row_mm)


def _slice_of(file: IndexedFile) -> _Slice:
    item = file.header
    if item.has("NumberOfFrames") and item.whole("NumberOfFrames", 1, 2**31) > 1:
        raise item.error("A CT file with several frames is not read.", "Export it as single slices.")
    if item.code("AnatomicalOrientationType", ("BIPED", "QUADRUPED"), "BIPED") != "BIPED":
        raise item.error("(0010,2210) AnatomicalOrientationType is that of animals, whose axes are others.")
    return _Slice(
        file,
        item.numbers("ImagePositionPatient", 3, -_TOP_MM, _TOP_MM),
        directions(item),
        pixel_spacing(item),
        (item.whole("Rows", 1, 65535), item.whole("Columns", 1, 65535)),
    )


def _is_localizer(file: IndexedFile) -> bool:
    return "LOCALIZER" in file.header.text("ImageType", "").upper()


def _require_alike(first: _Slice, one: _Slice) -> None:
    if np.abs(first.direction - one.direction).max() > SAME_DIRECTION:
        raise one.file.header.error(
            "The slices of one CT series have several orientations.", "Export the axial series alone."
        )
    if first.size != one.size or not np.allclose(first.spacing, one.spacing, rtol=1e-4):
        raise one.file.header.error(
            f"This slice has {one.size[0]} x {one.size[1]} pixels of {one.spacing[0]:g} x {one.spacing[1]:g} mm, "
            f"others of the series {first.size[0]} x {first.size[1]} of {first.spacing[0]:g} x "
            f"{first.spacing[1]:g} mm.",
            "Export one series at a time.",
        )
    if first.file.frame_uid != one.file.frame_uid:
        raise one.file.header.error(
            "The slices of one CT series have several frames of reference.", "Export one series at a time."
        )


def _hu(one: _Slice) -> NDArray:
    item = open_dicom(one.file.path, one.file.where)
    slope, intercept = item.number("RescaleSlope"), item.number("RescaleIntercept")
    if slope <= 0:
        raise item.error(f"(0028,1053) RescaleSlope is {slope:g}; it must be above 0.", "Export it anew.")
    _require_hu(item)
    pixels, rescaled = stored_pixels(item, one.file.path)
    if pixels.shape[1:] != one.size:
        raise item.error("The file changed while it was read.")
    values = pixels[0] if rescaled else _rescaled(pixels[0], slope, intercept)
    if float(values.max()) > 1e6 or not np.isfinite(values).all():
        raise item.error(f"CT values reach {float(values.max()):g} HU.", "Check slope and intercept, (0028,1052-1053).")
    return np.maximum(values, LOWEST_HU)


def _require_hu(item: DicomItem) -> None:
    """Raise PatientDataError where the values are of another kind, such as electron densities by dual energy."""
    kind = item.code("RescaleType", _RESCALE_TYPES, "")
    if kind not in ("", *_HU_TYPES):
        raise item.error(
            f"(0028,1054) RescaleType is {kind}: the values are no Hounsfield units.", "Take the CT in HU."
        )


def _rescaled(pixels: NDArray, slope: float, intercept: float) -> NDArray:
    """Slope and intercept applied, as int16 where all results are whole and fit."""
    if slope == int(slope) and intercept == int(intercept) and pixels.dtype.itemsize <= 2:
        low, high = (int(v) * int(slope) + int(intercept) for v in (pixels.min(), pixels.max()))
        if -(2**15) <= min(low, high) and max(low, high) < 2**15:
            return (pixels.astype(np.int32) * int(slope) + int(intercept)).astype(np.int16)
    return (pixels * slope + intercept).astype(np.float32)


def _without_duplicates(
    slices: list[_Slice], hu: list[NDArray], warnings: list[str]
) -> tuple[list[_Slice], list[NDArray]]:
    kept, values, dropped = [slices[0]], [hu[0]], 0
    for one, its in zip(slices[1:], hu[1:], strict=True):
        if one.height_mm - kept[-1].height_mm > SAME_POSITION_MM:
            kept.append(one)
            values.append(its)
        elif np.array_equal(its, values[-1]) and np.allclose(one.position, kept[-1].position, atol=SAME_POSITION_MM):
            dropped += 1
        else:
            raise one.file.header.error(
                f"Two different slices of one CT series lie at {one.height_mm:.2f} mm.",
                "Several scans are mixed: export one series at a time.",
            )
    if dropped:
        warnings.append(f"{counted(dropped, 'CT slice is', 'CT slices are')} there twice; copies were left out.")
    if len(kept) < 2:
        raise kept[0].file.header.error("All slices of the CT series lie at one position.", "Export the series anew.")
    return kept, values


def _require_straight(slices: Sequence[_Slice]) -> None:
    way = slices[-1].position - slices[0].position
    normal = slices[0].normal
    offsets = np.array([one.position for one in slices]) - slices[0].position
    sideways = offsets - np.outer(offsets @ normal, normal)
    if np.abs(sideways).max() > SHEAR_MM:
        tilt = np.degrees(np.arctan2(np.linalg.norm(way - (way @ normal) * normal), way @ normal))
        raise slices[0].file.header.error(
            f"The CT slices are shifted against each other, by {np.abs(sideways).max():.1f} mm in all: a gantry tilt "
            f"of {tilt:.1f} degrees, or several scans.",
            "Correct the tilt at the source, or resample the scan to straight slices.",
        )


def _evenly(
    heights: NDArray[np.float64],
    hu: list[NDArray],
    slices: Sequence[_Slice],
    overrides: Overrides,
    warnings: list[str],
) -> tuple[float, NDArray]:
    """Slice distance in mm and the stack, interpolated where gaps are accepted."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    allowed = max(UNEVEN_MM, UNEVEN_RATIO * usual)
    uneven = np.flatnonzero(np.abs(steps - usual) > allowed)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if not uneven.size and np.abs(even - heights).max() <= max(allowed, 0.1 * usual):
        return float((heights[-1] - heights[0]) / (len(heights) - 1)), np.stack(hu)
    worst = int(np.argmax(np.abs(steps - usual)))
    overrides.settle(
        "gaps",
        f"The CT slices are not evenly spaced: {uneven.size or 1} of {len(steps)} steps differ from {usual:.2f} mm, "
        f"the most at {heights[worst]:.1f} mm, where it is {steps[worst]:.2f} mm.",
        slices[worst].file.where,
        warnings,
    )
    count = round((heights[-1] - heights[0]) / usual) + 1
    if count > _MOST_FILLED_RATIO * len(heights):
        raise slices[worst].file.header.error(f"Filling the gaps would make {count} slices of {len(heights)}.")
    wanted = np.linspace(heights[0], heights[-1], count)
    below = np.clip(np.searchsorted(heights, wanted, side="right") - 1, 0, len(heights) - 2)
    share = (wanted - heights[below]) / (heights[below + 1] - heights[below])
    stack = np.empty((count, *hu[0].shape), np.float32)
    for k, (i, s) in enumerate(zip(below, share, strict=True)):
        stack[k] = (1 - s) * hu[i] + s * hu[i + 1]
    return float(wanted[1] - wanted[0]), stack
