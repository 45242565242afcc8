"""What a dose means for the observations: the observation operator, in terms of the whole course.

An observation of some fractions is brought to the course: doses times (prescribed fractions / fractions summed), and a
volume at a dose is asked for at that many times the dose. Predictions are doses at the voxels of the mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, DvhMetricKind, StructureDose
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.crop import Crop
from RTDigitalTwinLib.patient.observation import (
    CouchShiftObservation,
    DoseObservation,
    MetricObservation,
    Observation,
    PointObservation,
    ScalarObservation,
    course_ratio,
)
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import to_sitk
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble, doses_in_structure

REACH_STD = 5  # standard deviations: further off, a Gaussian's kernel is cut

SOFT_VOLUME_RATIO = 0.01  # a differentiable D95 is the mean over D94 to D96
SOFT_POINTS = 5
SOFT_DOSE_GY = 1.0  # a differentiable V20 counts a voxel by a logistic of this width


@dataclass(frozen=True, eq=False)
class Reading:
    """A metric or a point, of the whole course.

    Attributes
    ----------
    value, std : what was observed and its noise, in Gy of the course or % of the volume.
    metric : of the course; None for a point.
    places : position of each voxel among the mask's; -1 outside it, where there is no dose.
    weights : occupancy of a structure's voxels, or a point's interpolation weights.
    structure : of the metric; None for a point.
    place_in_mask : (voxels of the grid,) position among the mask's; -1 outside.
    """

    observation: ScalarObservation
    value: float
    std: float
    metric: DvhMetric | None
    places: NDArray[np.int64]
    weights: NDArray[np.float32]
    voxel_volume_cc: float
    structure: Structure | None
    place_in_mask: NDArray[np.int64]

    def of(self, doses_gy: NDArray[np.float32]) -> NDArray[np.float64]:
        """(samples,) values that doses (samples, mask voxels) give."""
        if self.metric is None:
            inside = np.where(self.places >= 0, doses_gy[:, self.places], np.float32(0))
            return inside.astype(float) @ self.weights
        return self._in_structure(doses_gy).metric(self.metric)

    def _in_structure(self, doses_gy: NDArray[np.float32]) -> StructureDose:
        assert self.structure is not None

        def gy(rows: slice, needed: NDArray) -> Tensor:
            return torch.from_numpy(doses_gy[rows][:, needed])

        return doses_in_structure(self.structure, self.place_in_mask, len(doses_gy), gy)

    def soft(self, dose_gy: Tensor) -> Tensor:
        """The same of one dose (mask voxels,), smoothed so that a gradient reaches more than two voxels."""
        places = torch.from_numpy(self.places).to(dose_gy.device)
        weights = torch.from_numpy(self.weights).to(dose_gy.device)
        inside = torch.where(places >= 0, dose_gy[places.clamp(min=0)], 0.0)
        if self.metric is None:
            return (inside * weights).sum()
        total = weights.sum()
        if self.metric.kind is DvhMetricKind.MEAN:
            return (inside * weights).sum() / total
        if self.metric.kind is DvhMetricKind.VOLUME_AT_DOSE:
            return 100 * (torch.sigmoid((inside - self.metric.argument) / SOFT_DOSE_GY) * weights).sum() / total
        wanted = self.metric.argument / 100
        if self.metric.kind is DvhMetricKind.DOSE_AT_CC:
            wanted = min(1.0, self.metric.argument / (float(total) * self.voxel_volume_cc))
        doses, order = inside.sort(descending=True)
        share = weights[order].cumsum(0) / total
        middle = (share + torch.cat([share.new_zeros(1), share[:-1]])) / 2
        around = min(SOFT_VOLUME_RATIO, wanted, 1 - wanted)
        ratios = torch.linspace(wanted - around, wanted + around, SOFT_POINTS, device=dose_gy.device)
        above = torch.searchsorted(middle, ratios).clamp(1, len(middle) - 1) if len(middle) > 1 else None
        if above is None:
            return doses[0]
        left, right = middle[above - 1], middle[above]
        lean = ((ratios - left) / (right - left)).clamp(0, 1)
        return ((1 - lean) * doses[above - 1] + lean * doses[above]).mean()

    def belief_std(self, drawn: DoseEnsemble) -> float:
        """How unsure a belief is of the value: half its calibrated 95 % band over 1.96; of plain samples without."""
        if self.metric is None:
            return float(voxel_std(drawn)[np.maximum(self.places, 0)] @ (self.weights * (self.places >= 0)))
        assert isinstance(self.observation, MetricObservation)
        return drawn.metric(self.observation.structure, _name(self.metric)).calibrated_std


@dataclass(frozen=True, eq=False)
class VolumeReading:
    """A dose volume at the mask's voxels, of the whole course.

    Attributes
    ----------
    values, std : (mask voxels,) in Gy; values NaN where nothing was measured.
    blur_mm : standard deviation of the measurement's Gaussian.
    """

    observation: DoseObservation
    values: NDArray[np.float32]
    std: NDArray[np.float32]
    blur_mm: float
    crop: Crop

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.values)

    def of(self, dose_gy: NDArray[np.float32]) -> NDArray[np.float32]:
        """A dose (mask voxels,) as this measurement would see it without noise."""
        if not self.blur_mm:
            return dose_gy
        full = np.zeros(self.crop.grid.voxel_count, np.float32)
        full[self.crop.mask_indices] = dose_gy
        return blurred(full.reshape(self.crop.grid.shape), self.crop, self.blur_mm)


def read_scalars(observations: Sequence[Observation], patient: Patient, crop: Crop) -> list[Reading]:
    """Readings of the metrics and points among observations. Raises PatientDataError for absent structures."""
    place = np.full(crop.grid.voxel_count, -1, np.int64)
    place[crop.mask_indices] = np.arange(crop.mask_indices.size)
    place_grid = place.reshape(crop.grid.shape)
    voxel_cc = crop.grid.voxel_volume_mm3 / 1000
    readings = []
    for observation in observations:
        if isinstance(observation, DoseObservation | CouchShiftObservation):
            continue
        times = 1 / course_ratio(observation, patient)
        metric: DvhMetric | None = None
        structure: Structure | None = None
        std = float(observation.noise.std(observation.value))
        value = observation.value
        if isinstance(observation, MetricObservation):
            metric = DvhMetric.parse(observation.metric)
            structure = patient.structure(observation.structure)
            inside = structure.box_occupancy > 0
            places, weights = place_grid[structure.box][inside], structure.box_occupancy[inside]
            if not (places >= 0).any():
                raise PatientDataError("The structure lies where no dose is predicted.", where=structure.name)
            if metric.kind is DvhMetricKind.VOLUME_AT_DOSE:
                metric = replace(metric, argument=metric.argument * times)
                times = 1.0
        else:
            places, weights = _corners(observation, place_grid, crop)
        readings.append(
            Reading(observation, value * times, std * times, metric, places, weights, voxel_cc, structure, place)
        )
    return readings


def read_volumes(observations: Sequence[Observation], patient: Patient, crop: Crop) -> list[VolumeReading]:
    """Readings of the dose volumes among observations."""
    readings = []
    for observation in observations:
        if isinstance(observation, DoseObservation):
            times = 1 / course_ratio(observation, patient)
            seen = observation.dose.resampled(crop.grid).values.reshape(-1)[crop.mask_indices]
            std = observation.noise.std(np.nan_to_num(seen)) * times
            values = (seen * times).astype(np.float32)
            readings.append(VolumeReading(observation, values, std.astype(np.float32), observation.blur_mm, crop))
    return readings


def joined(volumes: Sequence[VolumeReading]) -> tuple[VolumeReading, ...]:
    """Volumes of one blur as one, voxels weighed by their precision: a sufficient statistic of them.

    Its observation is the last of them.
    """
    by_blur: dict[float, list[VolumeReading]] = {}
    for volume in volumes:
        by_blur.setdefault(volume.blur_mm, []).append(volume)
    return tuple(of_one[0] if len(of_one) == 1 else _joined(of_one) for of_one in by_blur.values())


def _joined(volumes: Sequence[VolumeReading]) -> VolumeReading:
    precisions = [np.where(v.known, 1 / np.square(v.std.astype(float)), 0) for v in volumes]
    total = np.sum(precisions, axis=0)
    told = np.sum([p * np.nan_to_num(v.values) for p, v in zip(precisions, volumes, strict=True)], axis=0)
    known = total > 0
    values = np.divide(told, total, out=np.full(told.shape, np.nan), where=known).astype(np.float32)
    std = np.sqrt(np.divide(1, total, out=np.full(told.shape, np.inf), where=known)).astype(np.float32)
    return replace(volumes[-1], values=values, std=std)


def sampled_doses(drawn: DoseEnsemble) -> NDArray[np.float32]:
    """(samples, mask voxels) doses in Gy; the one deterministic dose where there are no samples."""
    if not drawn.count:
        return drawn.deterministic_gy[None]
    return np.stack([drawn.sample_gy(k) for k in range(drawn.count)])


def voxel_std(drawn: DoseEnsemble) -> NDArray[np.float64]:
    """(mask voxels,) how unsure a belief is of each: from the calibrated 95 % band, or of the plain samples."""
    shown = drawn.half_width(0.95) if drawn.is_calibrated else drawn.std
    values = shown.values.reshape(-1)[drawn.crop.mask_indices].astype(float)
    return values / 1.96 if drawn.is_calibrated else values


def blurred(full: NDArray[np.float32], crop: Crop, blur_mm: float) -> NDArray[np.float32]:
    """A dose on the whole grid after a Gaussian of ``blur_mm`` (standard deviation), at the mask's voxels."""
    import SimpleITK as sitk

    inside = np.argwhere(crop.mask) + crop.start
    reach = [math.ceil(REACH_STD * blur_mm / step) for step in reversed(crop.grid.spacing_mm)]
    starts = np.maximum(inside.min(0) - reach, 0)
    stops = np.minimum(inside.max(0) + reach + 1, crop.grid.shape)
    slices, rows, columns = (slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
    box = slices, rows, columns
    image = sitk.DiscreteGaussian(to_sitk(full[box], crop.grid.cropped(box)), blur_mm**2, 64)
    return sitk.GetArrayFromImage(image)[tuple((inside - starts).T)]


def _corners(
    observation: PointObservation, place: NDArray[np.int64], crop: Crop
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The eight voxels around a point and their weights."""
    index = crop.grid.to_index(observation.position_mm)
    below = np.floor(index).astype(int)
    corners = below + np.array(list(np.ndindex(2, 2, 2)))
    weights = np.prod(1 - np.abs(corners - index), axis=1)
    inside = ((corners >= 0) & (corners < crop.grid.shape)).all(axis=1)
    places = np.full(8, -1)
    places[inside] = place[tuple(corners[inside].T)]
    return places, weights.astype(np.float32)


def _name(metric: DvhMetric) -> str:
    """A metric as it is written."""
    if metric.kind is DvhMetricKind.MEAN:
        return "mean"
    letter, unit = ("V", "") if metric.kind is DvhMetricKind.VOLUME_AT_DOSE else ("D", "")
    if metric.kind is DvhMetricKind.DOSE_AT_CC:
        unit = "cc"
    return f"{letter}{metric.argument:.6f}".rstrip("0").rstrip(".") + unit
