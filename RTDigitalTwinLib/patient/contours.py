"""The contour rasteriser: planar contours to the share of each voxel inside them.

In its plane a set of contours means the region that an even number of crossings separates from the outside
(even-odd, DICOM's CLOSEDPLANAR_XOR), so holes as contours of their own, keyholes and overlaps come out right. Every
pixel row is cut into scan lines; along each the covered length of every pixel is exact. Across planes each contour
stands for the slab half-way to the neighbours that continue it, and half a step past the first and last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.grid import Box, Shape

LINES_PER_ROW = 5
# Within this share of a slice a contour counts as lying on it: positions are written with few digits.
ON_SLICE_RATIO = 0.05
_PLANES_AT_ONCE_PIXELS = 4_000_000
# A step between two planes wider than so many of the steps around it is a gap in the structure.
_WIDEST_STEP_RATIO = 1.5
# Of a step or a slice, the smaller: a hole drawn no further from its outline than this lies in the outline's plane.
_SAME_PLANE_RATIO = 0.25
# One in the plane of the other, and no second drawing of it, by the boxes around them.
_NESTED_RATIO, _REPEATED_RATIO = 0.98, 0.9
# Outlines that share less of the larger one's box than this do not continue each other from plane to plane.
_CONTINUED_RATIO = 0.2
_MOST_BETWEEN = 8  # planes of other parts of a structure between two that continue each other
# The outline of a body drawn point by point crosses some 5,000 scan lines a slice; a hostile file would ask for more.
_MOST_CROSSINGS = 20_000_000


@dataclass(frozen=True, eq=False)
class Rasterised:
    """What contours cover.

    Attributes
    ----------
    box : slices of the grid (slice, row, column) that hold all of it; None where nothing lies on the grid.
    occupancy : share of each voxel of the box inside, 0..1, float32.
    off_slice_planes : planes of contours that do not lie on a slice; they count by physical overlap.
    gaps : places where planes are missing between others; nothing is filled in there.
    beyond_planes : planes whose slabs do not reach the grid.
    """

    box: Box | None
    occupancy: NDArray[np.float32]
    off_slice_planes: int
    gaps: int
    beyond_planes: int


def rasterise(contours: Sequence[NDArray[np.float64]], shape: Shape) -> Rasterised:
    """Occupancy of contours on a grid.

    Parameters
    ----------
    contours : each (points, 3) of (slice, row, column) index coordinates, planar in the slice direction, at least
        three points; closed by joining the last to the first.
    shape : of the grid.

    Raises GeometryError where the contours run to and fro more often than any outline.
    """
    nothing = Rasterised(None, np.zeros((0, 0, 0), np.float32), 0, 0, 0)
    if not contours:
        return nothing
    heights = np.array([float(c[:, 0].mean()) for c in contours])
    on_slice = np.abs(heights - np.round(heights)) <= ON_SLICE_RATIO
    heights = np.where(on_slice, np.round(heights), heights)
    boxes = np.array([[*c[:, 1:].min(axis=0), *c[:, 1:].max(axis=0)] for c in contours])
    planes, plane_of, boxes = _grouped(heights, boxes)
    lower, upper, gaps = slabs(planes, boxes)
    first = np.maximum(np.floor(lower + 0.5 + 1e-9), 0).astype(int)
    last = np.minimum(np.ceil(upper + 0.5 - 1e-9), shape[0]).astype(int)  # exclusive
    off = int((np.abs(planes - np.round(planes)) > ON_SLICE_RATIO).sum())
    beyond = int((first >= last).sum())
    window = _window(contours, shape)
    if window is None or beyond == len(planes):
        return Rasterised(None, nothing.occupancy, off, gaps, beyond)
    rows, columns = window
    bottom, top = int(first[first < last].min()), int(last[first < last].max())
    occupancy = np.zeros((top - bottom, rows.stop - rows.start, columns.stop - columns.start), np.float32)
    for part in _parts(len(planes), occupancy[0].size):
        chosen = [i for i, p in enumerate(plane_of) if part.start <= p < part.stop]
        moved = [contours[i][:, 1:] - (rows.start, columns.start) for i in chosen]
        covered = plane_coverage(moved, plane_of[chosen] - part.start, (part.stop - part.start, *occupancy.shape[1:]))
        for plane in range(part.start, part.stop):
            for k in range(first[plane], last[plane]):
                share = min(upper[plane], k + 0.5) - max(lower[plane], k - 0.5)
                if share > 1 - 1e-6:
                    occupancy[k - bottom] += covered[plane - part.start]
                elif share > 1e-6:
                    occupancy[k - bottom] += np.float32(share) * covered[plane - part.start]
    np.clip(occupancy, 0, 1, out=occupancy)
    return Rasterised((slice(bottom, top), rows, columns), occupancy, off, gaps, beyond)


def slabs(
    planes: NDArray[np.float64], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Lower and upper end of the slab that each plane stands for, and the number of gaps.

    A slab reaches half-way to the nearest planes on both sides that continue it; past an end or into a gap as far as on
    its other side, and half the usual step where there is none. So an outline apart from the others, or much
    smaller than they are, takes nothing from them. A step is a gap where it is wider than both steps next to
    it: what is drawn on every second slice from somewhere on has none.

    Parameters
    ----------
    planes : (planes,) ascending positions in slices.
    boxes : (planes, 4) the least row and column, then the greatest, of what is drawn in each.
    """
    up, above = np.full(len(planes), np.inf), np.zeros(len(planes), np.int64)
    down, below = up.copy(), above.copy()
    for away in range(1, min(_MOST_BETWEEN, len(planes) - 1) + 1):
        continues = _shared(boxes[:-away], boxes[away:]) >= _CONTINUED_RATIO * np.maximum(
            _area(boxes[:-away]), _area(boxes[away:])
        )
        lower = np.flatnonzero(continues & np.isinf(up[:-away]))
        upper = np.flatnonzero(continues & np.isinf(down[away:])) + away
        above[lower], below[upper] = lower + away, upper - away
        up[lower], down[upper] = planes[lower + away] - planes[lower], planes[upper] - planes[upper - away]
    usual = _usual_step(up[np.isfinite(up)])

    def halves(step: NDArray, back: NDArray, onwards: NDArray) -> tuple[NDArray, NDArray]:
        """Half of each step, NaN where it leads nowhere or over a gap, and which are gaps."""
        around = np.fmax.reduce([np.full(len(step), usual), *(np.where(np.isinf(s), 0, s) for s in (back, onwards))])
        is_gap = np.isfinite(step) & (step > _WIDEST_STEP_RATIO * around)
        return np.where(np.isfinite(step) & ~is_gap, step / 2, np.nan), is_gap

    half_up, is_gap = halves(up, down, up[above])
    half_down, _ = halves(down, up, down[below])
    alone = np.where(np.isnan(half_up) & np.isnan(half_down), usual / 2, np.nan)
    return (
        planes - np.fmax(alone, np.where(np.isnan(half_down), half_up, half_down)),
        planes + np.fmax(alone, np.where(np.isnan(half_up), half_down, half_up)),
        int(is_gap.sum()),
    )


def plane_coverage(
    polygons: Sequence[NDArray[np.float64]], planes: NDArray[np.int64], shape: Shape
) -> NDArray[np.float32]:
    """Share of each pixel inside the polygons of its plane, even-odd.

    Parameters
    ----------
    polygons : each (points, 2) of (row, column), pixel centres at whole numbers.
    planes : plane of each polygon.
    shape : (planes, rows, columns); what lies beyond is cut off.

    Raises GeometryError where the polygons run to and fro more often than any outline.
    """
    _, rows, columns = shape
    sizes = np.array([len(p) for p in polygons])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    points = np.concatenate(polygons)
    following = np.arange(1, len(points) + 1)
    following[starts[1:] - 1] = starts[:-1]
    # Scan lines in the middles of equal parts of each row, numbered across rows: y = (line + 0.5) / lines - 0.5.
    y = (points[:, 0] + 0.5) * LINES_PER_ROW - 0.5
    x = points[:, 1] + 0.5  # pixel c spans c .. c + 1
    y0, y1, x0, x1 = y, y[following], x, x[following]
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    # A line crosses an edge where low <= line < high: a vertex on a line counts once, a horizontal edge never.
    first = np.clip(np.ceil(low), 0, rows * LINES_PER_ROW).astype(np.int64)
    count = np.clip(np.ceil(high), 0, rows * LINES_PER_ROW).astype(np.int64) - first
    if count.sum() > _MOST_CROSSINGS:
        raise GeometryError(
            "The contours cross the pixel rows too often to be an outline.", remedy="Export the structure anew."
        )
    edge = np.repeat(np.arange(len(points)), count)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossing = np.clip(x0[edge] + (line - y0[edge]) * slope, 0.0, columns)
    owner = np.repeat(planes, sizes)[edge]
    scan = owner * (rows * LINES_PER_ROW) + line
    order = np.lexsort((crossing, scan))
    crossing, scan = crossing[order], scan[order]
    # Closed polygons cross every line an even number of times, so entries and exits alternate over the whole list.
    sign = np.where(np.arange(len(scan)) % 2 == 0, 1.0, -1.0) / LINES_PER_ROW
    column = np.floor(crossing)
    after = crossing - column
    width = columns + 2
    place = (scan // LINES_PER_ROW) * width + column.astype(np.int64)
    total = shape[0] * rows * width
    change = np.bincount(place, sign * (1 - after), total)
    change += np.bincount(place + 1, sign * after, total)
    covered = np.cumsum(change.reshape(shape[0], rows, width), axis=2, dtype=np.float32)
    # Sums of entries and exits that cancel leave rounding of 1e-7.
    return np.clip(np.where(covered < 1e-5, 0, covered), 0, 1)[:, :, :columns]


def _grouped(
    heights: NDArray[np.float64], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Distinct heights, ascending, the index of each contour's, and the box around what is drawn there.

    Heights within a rounding error are one plane, and so is a hole drawn slightly beside the plane of its outline.
    """
    order = np.argsort(heights, kind="stable")
    starts = np.concatenate([[True], np.diff(heights[order]) > ON_SLICE_RATIO])
    plane_of = np.empty(len(heights), np.int64)
    plane_of[order] = np.cumsum(starts) - 1
    planes = np.bincount(plane_of, heights) / np.bincount(plane_of)
    first = np.flatnonzero(starts)
    boxes = np.hstack([np.minimum.reduceat(boxes[order, :2], first), np.maximum.reduceat(boxes[order, 2:], first)])
    near = _SAME_PLANE_RATIO * min(_usual_step(np.diff(planes)), 1.0)
    if not (np.diff(planes) <= near).any():
        return planes, plane_of, boxes
    area = _area(boxes)
    outermost, joined = [0], np.zeros(len(planes), np.int64)
    for plane in range(1, len(planes)):
        small, large = sorted((plane, outermost[-1]), key=lambda one: float(area[one]))
        nested = _shared(boxes[small], boxes[large]) >= _NESTED_RATIO * area[small]
        if planes[plane] - planes[outermost[-1]] <= near and nested and area[small] < _REPEATED_RATIO * area[large]:
            outermost[-1] = large
        else:
            outermost.append(plane)
        joined[plane] = len(outermost) - 1
    return planes[outermost], joined[plane_of], boxes[outermost]


def _usual_step(steps: NDArray[np.float64]) -> float:
    """Median step in slices, without those between contours that were meant for one plane; a slice where few tell."""
    wide = steps[steps > _SAME_PLANE_RATIO]
    if 4 * len(wide) >= max(len(steps), 1):
        return float(np.median(wide))
    return float(np.median(steps)) if len(steps) >= 4 else 1.0


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)


def _shared(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area that boxes share."""
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    return np.prod(np.maximum(sides, 0), axis=-1)


def _window(contours: Sequence[NDArray[np.float64]], shape: Shape) -> tuple[slice, slice] | None:
    ends = np.array([(c[:, 1:].min(axis=0), c[:, 1:].max(axis=0)) for c in contours])
    low = np.maximum(np.floor(ends[:, 0].min(axis=0) + 0.5), 0).astype(int)
    high = np.minimum(np.ceil(ends[:, 1].max(axis=0) + 0.5), shape[1:]).astype(int)
    if (low >= high).any():
        return None
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))


def _parts(planes: int, pixels: int) -> list[range]:
    size = max(1, _PLANES_AT_ONCE_PIXELS // max(pixels, 1))
    return [range(a, min(a + size, planes)) for a in range(0, planes, size)]
