"""Shapes with soft edges: signed distances in anatomy coordinates, combined, and painted on a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.grid import Box, Grid

Field = NDArray[np.float32]
Point = tuple[float, float, float]
_TINY = np.float32(1e-6)


@dataclass(frozen=True)
class Shape:
    """A solid given by its signed distance, negative inside.

    Attributes
    ----------
    distance_mm : (x, y, z) arrays in mm -> signed distance in mm, exact at the surface only.
    lower_mm, upper_mm : corners of a box that holds the solid.
    """

    distance_mm: Callable[[Field, Field, Field], Field]
    lower_mm: Point
    upper_mm: Point

    def __or__(self, other: Shape) -> Shape:
        return Shape(
            lambda x, y, z: np.minimum(self.distance_mm(x, y, z), other.distance_mm(x, y, z)),
            _each(min, self.lower_mm, other.lower_mm),
            _each(max, self.upper_mm, other.upper_mm),
        )

    def __and__(self, other: Shape) -> Shape:
        return Shape(
            lambda x, y, z: np.maximum(self.distance_mm(x, y, z), other.distance_mm(x, y, z)),
            _each(max, self.lower_mm, other.lower_mm),
            _each(min, self.upper_mm, other.upper_mm),
        )

    def __sub__(self, other: Shape) -> Shape:
        return Shape(
            lambda x, y, z: np.maximum(self.distance_mm(x, y, z), -other.distance_mm(x, y, z)),
            self.lower_mm,
            self.upper_mm,
        )

    def grown(self, margin_mm: float) -> Shape:
        """The solid with its surface moved outwards, or inwards where the margin is negative."""
        pad = max(margin_mm, 0.0)
        return Shape(
            lambda x, y, z: self.distance_mm(x, y, z) - np.float32(margin_mm),
            (self.lower_mm[0] - pad, self.lower_mm[1] - pad, self.lower_mm[2] - pad),
            (self.upper_mm[0] + pad, self.upper_mm[1] + pad, self.upper_mm[2] + pad),
        )


def ellipsoid(centre: Point, radii: Point) -> Shape:
    """An ellipsoid along the axes."""

    def distance(x: Field, y: Field, z: Field) -> Field:
        p, q, r = (_f32(v - c) / _f32(s) for v, c, s in zip((x, y, z), centre, radii, strict=True))
        norm = np.sqrt(p * p + q * q + r * r)
        slope = np.sqrt((p / radii[0]) ** 2 + (q / radii[1]) ** 2 + (r / radii[2]) ** 2)
        return _f32(np.where(slope > _TINY, norm * (norm - 1) / np.maximum(slope, _TINY), -min(radii)))

    return Shape(distance, _each(lambda c, r: c - r, centre, radii), _each(lambda c, r: c + r, centre, radii))


def tube(points: Sequence[Point], radii: Sequence[float], flat: tuple[float, float] = (1.0, 1.0)) -> Shape:
    """A round-ended tube along a polyline, its radius linear between the points.

    ``flat`` divides distances along x and y, so that a section becomes an ellipse of radius times ``flat``.
    """
    line, size = np.asarray(points, np.float32), np.asarray(radii, np.float32)
    scale = np.array([1 / flat[0], 1 / flat[1], 1.0], np.float32)
    worth = np.float32(min(flat))

    def distance(x: Field, y: Field, z: Field) -> Field:
        nearest = np.full(x.shape, np.inf, np.float32)
        for a, b, ra, rb in zip(line[:-1] * scale, line[1:] * scale, size[:-1], size[1:], strict=True):
            along = b - a
            px, py, pz = x * scale[0] - a[0], y * scale[1] - a[1], z - a[2]
            t = np.clip((px * along[0] + py * along[1] + pz * along[2]) / (along @ along), 0, 1)
            gap = np.sqrt((px - t * along[0]) ** 2 + (py - t * along[1]) ** 2 + (pz - t * along[2]) ** 2)
            np.minimum(nearest, gap - (ra + t * (rb - ra)), out=nearest)
        return nearest * worth

    reach = float(size.max()) * np.array([*flat, 1.0])
    return Shape(distance, tuple(line.min(0) - reach), tuple(line.max(0) + reach))


def loft(levels: Sequence[tuple[float, float, float, float, float]]) -> Shape:
    """Elliptic sections, linear between levels (z, centre x, centre y, half-width, half-depth), ascending in z."""
    table = np.asarray(levels, float)
    knots = table[:, 0]

    def distance(x: Field, y: Field, z: Field) -> Field:
        cx, cy, a, b = (_f32(np.interp(z, knots, table[:, i])) for i in (1, 2, 3, 4))
        p, q = (x - cx) / a, (y - cy) / b
        norm = np.sqrt(p * p + q * q)
        slope = np.sqrt((p / a) ** 2 + (q / b) ** 2)
        section = np.where(slope > _TINY, norm * (norm - 1) / np.maximum(slope, _TINY), -np.minimum(a, b))
        return _f32(np.maximum(section, np.maximum(knots[0] - z, z - knots[-1])))

    lower = ((table[:, 1] - table[:, 3]).min(), (table[:, 2] - table[:, 4]).min(), knots[0])
    upper = ((table[:, 1] + table[:, 3]).max(), (table[:, 2] + table[:, 4]).max(), knots[-1])
    return Shape(distance, lower, upper)


def wall(
    path: Sequence[tuple[float, float]],
    half_thickness_mm: float,
    floor: tuple[float, float],
    height_mm: float,
    front_y_mm: float,
    back_y_mm: float,
) -> Shape:
    """An upright wall along a polyline in the (x, y) plane.

    ``floor`` is its lower edge in z at ``front_y_mm`` and at ``back_y_mm``, linear between.
    """
    flat = tube([(x, y, 0.0) for x, y in path], [half_thickness_mm] * len(path))

    def distance(x: Field, y: Field, z: Field) -> Field:
        bottom = _f32(np.interp(y, (front_y_mm, back_y_mm), floor))
        upright = np.abs(z - bottom - np.float32(height_mm / 2)) - np.float32(height_mm / 2)
        return np.maximum(flat.distance_mm(x, y, np.zeros_like(z)), upright)

    (x0, y0, _), (x1, y1, _) = flat.lower_mm, flat.upper_mm
    return Shape(distance, (x0, y0, min(floor)), (x1, y1, max(floor) + height_mm))


def egg_norm(x: Field, y: Field, z: Field, levels: Sequence[tuple[float, ...]]) -> Field:
    """1 on the surface of stacked egg-shaped sections, below 1 inside.

    Each level is (z, front y, back y, half-width, y of the widest point, front exponent, back exponent), ascending
    in z: two half superellipses that meet at the widest point.
    """
    table = np.asarray(levels, float)
    front, back, half, widest, n_front, n_back = (_f32(np.interp(z, table[:, 0], c)) for c in table.T[1:])
    ahead = y < widest
    depth = np.where(ahead, widest - front, back - widest)
    n = np.where(ahead, n_front, n_back)
    p, q = np.abs(x) / half + _TINY, np.abs(y - widest) / depth + _TINY
    return _f32((p**n + q**n) ** (1 / n))


def soft_edge(distance_mm: Field, edge_mm: float) -> Field:
    """Occupancy 0..1 of a signed distance: the share of a voxel ``edge_mm`` wide that lies inside."""
    return np.clip(np.float32(0.5) - distance_mm / np.float32(edge_mm), 0, 1)


@dataclass(frozen=True, eq=False)
class AnatomyFrame:
    """Where the anatomy's coordinates (LPS-like, mm) lie on a grid of identity direction.

    Attributes
    ----------
    grid : the voxels.
    to_lps : 3x3, anatomy to LPS: scaling and rotation.
    origin_lps_mm : LPS position of the anatomy's origin.
    edge_mm : width over which a surface is blurred: about a voxel.
    """

    grid: Grid
    to_lps: NDArray[np.float64]
    origin_lps_mm: NDArray[np.float64]
    edge_mm: float

    def box(self, shape: Shape) -> Box | None:
        """The voxels a shape and its soft edge can touch; None where it lies off the grid."""
        bounds = np.array([shape.lower_mm, shape.upper_mm]) + np.array([[-1], [1]]) * self.edge_mm
        corners = np.stack(np.meshgrid(*bounds.T), -1).reshape(-1, 3)
        index = self.grid.to_index(corners @ self.to_lps.T + self.origin_lps_mm)
        starts = np.maximum(np.floor(index.min(0)), 0).astype(int)
        stops = np.minimum(np.ceil(index.max(0)) + 1, self.grid.shape).astype(int)
        if (starts >= stops).any():
            return None
        slices, rows, columns = (slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
        return slices, rows, columns

    @property
    def whole(self) -> Box:
        """The box of the whole grid."""
        slices, rows, columns = (slice(0, n) for n in self.grid.shape)
        return slices, rows, columns

    def coordinates(self, box: Box) -> tuple[Field, Field, Field]:
        """Anatomy coordinates (x, y, z) in mm of the voxels of a box, each of the box's shape."""
        from_lps = np.linalg.inv(self.to_lps)
        axes = []
        for axis, part in enumerate(reversed(box)):
            lps = self.grid.origin_mm[axis] + np.arange(part.start, part.stop) * self.grid.spacing_mm[axis]
            sizes = [1, 1, 1]
            sizes[2 - axis] = -1
            axes.append(_f32(lps - self.origin_lps_mm[axis]).reshape(sizes))
        x, y, z = (_f32(r[0]) * axes[0] + _f32(r[1]) * axes[1] + _f32(r[2]) * axes[2] for r in from_lps)
        return x, y, z

    def occupancy(self, shape: Shape) -> tuple[Box, Field] | None:
        """The box of a shape with its occupancy there; None where it lies off the grid."""
        box = self.box(shape)
        if box is None:
            return None
        return box, soft_edge(shape.distance_mm(*self.coordinates(box)), self.edge_mm)

    def full(self, shape: Shape) -> Field:
        """Occupancy over the whole grid."""
        values = np.zeros(self.grid.shape, np.float32)
        found = self.occupancy(shape)
        if found is not None:
            values[found[0]] = found[1]
        return values

    def paint(self, values: Field, shape: Shape, value: float) -> None:
        """Set ``values`` to ``value`` inside a shape, mixed by occupancy at its edge."""
        found = self.occupancy(shape)
        if found is not None:
            box, share = found
            values[box] += share * (np.float32(value) - values[box])


def _f32(values) -> Field:
    return np.asarray(values, np.float32)


def _each(function: Callable[[float, float], float], a: Point, b: Point) -> Point:
    x, y, z = (float(function(p, q)) for p, q in zip(a, b, strict=True))
    return x, y, z
