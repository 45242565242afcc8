"""Samples of a patient's dose, kept where dose can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, DvhMetricKind, StructureDose, dose_axis_gy
from RTDigitalTwinLib.dosimetry.inside_voxels import SAMPLES_TOGETHER, StructureVoxels, doses_inside
from RTDigitalTwinLib.dosimetry.metric_samples import MetricSamples
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.crop import Crop
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.solver.bands import DOSE_EDGES_GY, FLOORS, REMAINDER, BandCalibration, BandScale
from RTDigitalTwinLib.solver.correlation import CUSTOMARY_SHARES
from RTDigitalTwinLib.solver.ensemble import VOLUME_RATIOS, DvhEnsemble, Ensemble, VolumeEnsemble, band_quantiles
from RTDigitalTwinLib.solver.narrowing import Narrowing, Worked
from RTDigitalTwinLib.words import counted

BAND_REACH_GY = 5.0  # calibrated bands go beyond the highest sample
VOLUMES = (DvhMetricKind.VOLUME_AT_DOSE, DvhMetricKind.CC_AT_DOSE)
SPREAD_TOGETHER = 8192  # voxels: no copy of all samples in float32


@dataclass(frozen=True, eq=False)
class DoseEnsemble:
    """Dose samples at the voxels of a patient's mask; 0 Gy elsewhere.

    Attributes
    ----------
    patient, crop : whose dose, and where the mask lies.
    deterministic_gy : (voxels,) float32, the prediction with dropout off.
    deviations_gy : (samples, voxels) float16, each sample minus the deterministic dose: a deviation of up to 8 Gy is
        kept to 0.004 Gy, where half precision of the dose itself would lose 0.03 Gy. No rows in deterministic mode.
    seed : of the dropout; None in deterministic mode.
    weights_sha256 : of the network.
    calibration : of its bands, where it was measured for these weights.
    absorbed : number of observations in it; the bands' factors were measured without any.
    floor_ratio : (voxels,) times which the floor under the sampled spread counts where observations were absorbed;
        None for 1.
    narrowing : how much surer values worked out of the dose are than before observing; None where that is not known.
    """

    patient: Patient
    crop: Crop
    deterministic_gy: NDArray[np.float32]
    deviations_gy: NDArray[np.float16]
    seed: int | None
    weights_sha256: str
    calibration: BandCalibration | None = None
    absorbed: int = 0
    floor_ratio: NDArray[np.float32] | None = None
    narrowing: Narrowing | None = None
    _curves: dict[str, DvhEnsemble] = field(default_factory=dict, repr=False, init=False)
    _doses: dict[str, Ensemble] = field(default_factory=dict, repr=False, init=False)
    _metrics: dict[tuple[str, DvhMetric], Ensemble] = field(default_factory=dict, repr=False, init=False)

    @property
    def count(self) -> int:
        """Number of samples; 0 in deterministic mode."""
        return len(self.deviations_gy)

    @property
    def has_spread(self) -> bool:
        return self.count > 1

    def sample_gy(self, index: int) -> NDArray[np.float32]:
        """One sample (voxels,)."""
        return np.maximum(self.deterministic_gy + self.deviations_gy[index].astype(np.float32), 0)

    @cached_property
    def mean(self) -> Volume:
        """Mean of the samples in Gy (the deterministic dose where there are none)."""
        values = self.deterministic_gy
        if self.count:
            values = np.maximum(values + self.deviations_gy.mean(axis=0, dtype=np.float32), 0)
        return self._volume(values, Quantity.DOSE_GY)

    @cached_property
    def deterministic(self) -> Volume:
        """The dose with dropout off, in Gy."""
        return self._volume(self.deterministic_gy, Quantity.DOSE_GY)

    @cached_property
    def std(self) -> Volume:
        """Sampled spread: standard deviation in Gy. Too narrow as an error bar.

        Raises RTDigitalTwinError with fewer than two samples.
        """
        if not self.has_spread:
            raise RTDigitalTwinError("A spread needs at least two samples.", remedy="Predict with more samples.")
        spread = np.empty(self.deterministic_gy.size, np.float32)
        for first in range(0, spread.size, SPREAD_TOGETHER):
            part = slice(first, first + SPREAD_TOGETHER)
            spread[part] = self.deviations_gy[:, part].std(axis=0, ddof=1, dtype=np.float32)
        return self._volume(spread, Quantity.DOSE_STD_GY)

    @property
    def is_calibrated(self) -> bool:
        """Whether bands are calibrated: measured for these weights, with not many more samples than these."""
        return self._bands is not None

    @property
    def _bands(self) -> BandCalibration | None:
        known = self.calibration
        return known if known is not None and self.has_spread and 2 * self.count >= known.samples else None

    def band_words(self, level: float = 0.95) -> str:
        """What to call the bands wherever they are shown."""
        if self.is_calibrated:
            since = f", calibrated before {counted(self.absorbed, 'observation')}" if self.absorbed else ""
            return f"{'' if since else 'calibrated '}{100 * level:g} % band{since}"
        return f"sampled {100 * level:g} % band (not calibrated)"

    def owners(self) -> tuple[list[tuple[str, StructureKind]], NDArray[np.int16]]:
        """Whose band a voxel has: structures, and for each of the mask's voxels an index among them.

        Index 0 is the remainder; where structures meet, a target goes before an organ, and a later one before an
        earlier one.
        """
        listed = [(REMAINDER, StructureKind.REGION)]
        owner = np.zeros(self.crop.mask_indices.size, np.int16)
        for kind in (StructureKind.ORGAN, StructureKind.TARGET):
            for name, structure in self.patient.structures.items():
                if structure.kind is kind:
                    owner[structure.mask.reshape(-1)[self.crop.mask_indices]] = len(listed)
                    listed.append((name, kind))
        return listed, owner

    @property
    def correlation(self) -> tuple[float, ...]:
        """Shares of the lengths over which errors hang together (``solver.correlation``)."""
        return CUSTOMARY_SHARES if self.calibration is None else self.calibration.correlation

    def half_width(self, level: float = 0.95) -> Volume:
        """Half the width of the calibrated band in Gy, voxel by voxel, before its lower limit is cut at 0 Gy.

        Raises RTDigitalTwinError without a calibration, or with fewer than half the samples it was measured with.
        """
        if self._bands is None:
            raise RTDigitalTwinError(
                "There is no calibration for these weights and so few samples."
                if self.calibration
                else "These weights have no calibration.",
                remedy="Predict with more samples." if self.calibration else "Run rt-digital-twin calibrate.",
            )
        mean, spread = (v.values.reshape(-1)[self.crop.mask_indices] for v in (self.mean, self.std))
        listed, owner = self.owners()
        factors = np.stack([self._bands.voxel_factors(name, kind, level) for name, kind in listed])
        floor = FLOORS["Gy"] if self.floor_ratio is None else FLOORS["Gy"] * self.floor_ratio
        half = factors[owner, np.digitize(mean, DOSE_EDGES_GY)] * np.sqrt(np.square(spread) + np.square(floor))
        return self._volume(half, Quantity.DOSE_WIDTH_GY)

    def quantile(self, ratio: float) -> Volume:
        """Exact quantile of the samples in Gy, voxel by voxel."""
        values = self.deterministic_gy
        if self.count:
            values = np.maximum(values + np.quantile(self.deviations_gy.astype(np.float32), ratio, axis=0), 0)
        return self._volume(values, Quantity.DOSE_GY)

    def band(self, level: float = 0.95) -> tuple[Volume, Volume]:
        """Central band, voxel by voxel, (low, high) in Gy: calibrated where that was measured, else of the samples."""
        if not self.is_calibrated:
            return self.sampled_band(level)
        mean, half = self.mean.values, self.half_width(level).values
        low, high = np.maximum(mean - half, 0), mean + half
        return tuple(Volume(v, self.mean.grid, Quantity.DOSE_GY) for v in (low, high))  # type: ignore[return-value]

    def sampled_band(self, level: float = 0.95) -> tuple[Volume, Volume]:
        """Central band of the sampled spread, voxel by voxel: (low, high) in Gy. Too narrow."""
        low, high = band_quantiles(level)
        return self.quantile(low), self.quantile(high)

    def structure_dose(self, name: str) -> StructureDose:
        """Every sample's dose in a structure of the patient; voxels outside the dose mask have 0 Gy."""
        return self._in_structure(self.patient.structure(name))

    def dvh(self, name: str) -> DvhEnsemble:
        """Cumulative DVH of every sample in a structure of the patient."""
        if name not in self._curves:
            axis = dose_axis_gy(self.highest_gy + (BAND_REACH_GY if self.is_calibrated else 0.0))
            inside = self.structure_dose(name)
            curves, doses = inside.volume_at_dose_ratio(axis), self._doses_at_volumes(name, inside)
            self._curves[name] = DvhEnsemble(curves, "ratio", doses.scale, name, axis, doses.samples)
        return self._curves[name]

    def metric(self, name: str, metric: str, inside: StructureDose | None = None) -> Ensemble:
        """A DVH metric (D95, D0.1cc, V20, mean) of every sample in a structure.

        ``inside`` is its ``structure_dose``, where several metrics are wanted of it.
        """
        parsed = DvhMetric.parse(metric)
        if (name, parsed) not in self._metrics:
            inside = inside or self.structure_dose(name)
            samples, scale = inside.metric(parsed), self._metric_scale(name, parsed)
            by_doses = self._curve_scale(name) is not None and parsed.kind in VOLUMES
            if scale is None and by_doses:
                found = self._volume_by_doses(name, parsed, samples, inside)
            else:
                found = self._known(name, lambda doses: doses.metric(parsed), samples, parsed.unit, scale)
            self._metrics[name, parsed] = found
        return self._metrics[name, parsed]

    def metric_samples(self, name: str, metric: DvhMetric, inside: StructureDose | None = None) -> MetricSamples:
        """A metric with its samples, calibrated where that was measured, as goals and constraints are judged on."""
        return self.metric(name, str(metric), inside).metric_samples

    def equivalent_dose(self, name: str, eud_gy: Worked, inside: StructureDose | None = None) -> Ensemble:
        """An equivalent uniform dose of a structure, with the spread of its doses calibrated.

        ``eud_gy`` gives it in Gy (samples,) from doses in the structure. The factors are those of doses of its kind of
        structure that were not measured by themselves: what they hold of an equivalent dose was not measured.
        """
        kind = self.patient.structure(name).kind
        scale = None if self._bands is None else self._bands.metric_scale(name, kind, "EUD", "Gy")
        return self._known(name, eud_gy, eud_gy(inside or self.structure_dose(name)), "Gy", scale)

    def _known(self, name: str, worked: Worked, samples: NDArray, unit: str, scale: BandScale | None) -> Ensemble:
        """Samples of a value of a structure as an ensemble, with what observing taught of it."""
        if self.narrowing is None or not self.has_spread:
            return Ensemble(samples, unit, scale)
        return self.narrowing.narrowed(name, worked, samples, unit, scale)

    def _metric_scale(self, name: str, metric: DvhMetric) -> BandScale | None:
        """Of a metric that was measured, or is like such ones."""
        if self._bands is None:
            return None
        structure = self.patient.structure(name)
        if metric.kind is not DvhMetricKind.CC_AT_DOSE:
            return self._bands.metric_scale(name, structure.kind, str(metric), metric.unit)
        # a volume in cc is its share of the structure in other words
        share = replace(metric, kind=DvhMetricKind.VOLUME_AT_DOSE)
        scale = self._bands.metric_scale(name, structure.kind, str(share), share.unit)
        return None if scale is None else scale.times(structure.volume_cc / 100)

    def _curve_scale(self, name: str) -> BandScale | None:
        """Of the dose at a volume of a structure, where that was measured."""
        return self._bands.curve_scale(name, self.patient.structure(name).kind) if self._bands else None

    def _volume_by_doses(self, name: str, metric: DvhMetric, samples: NDArray, inside: StructureDose) -> Ensemble:
        """Of a volume at a dose that was not measured: as sure as the DVH is."""
        whole = 100.0 if metric.unit == "%" else self.patient.structure(name).volume_cc
        doses = self._doses_at_volumes(name, inside)
        return VolumeEnsemble(samples, metric.unit, doses.scale, doses, metric.argument, whole)

    def _doses_at_volumes(self, name: str, inside: StructureDose) -> Ensemble:
        """(samples, volumes) dose in Gy that each of ``VOLUME_RATIOS`` of a structure receives at least."""
        if name not in self._doses:
            scale = self._curve_scale(name)
            self._doses[name] = self._known(name, _doses_at_volume, _doses_at_volume(inside), "Gy", scale)
        return self._doses[name]

    @cached_property
    def highest_gy(self) -> float:
        """The highest dose of any sample, and of the reference where one is known."""
        highest = float(self.deterministic_gy.max())
        if self.count:
            highest = max(float((self.deterministic_gy + row).max()) for row in self.deviations_gy)
        if self.patient.plans and self.patient.plan.dose is not None:
            highest = max(highest, float(np.nan_to_num(self.patient.plan.dose.values, nan=0.0).max()))
        return highest

    def _volume(self, values: NDArray, quantity: Quantity) -> Volume:
        return self.crop.spread(values, quantity)

    @cached_property
    def _place_in_mask(self) -> NDArray[np.int32]:
        """Position of each voxel of the grid among the mask's voxels; -1 outside."""
        place = np.full(self.crop.grid.voxel_count, -1, np.int32)
        place[self.crop.mask_indices] = np.arange(self.crop.mask_indices.size, dtype=np.int32)
        return place

    def _in_structure(self, structure: Structure) -> StructureDose:
        def gy(rows: slice, needed: NDArray) -> Tensor:
            deterministic = torch.from_numpy(self.deterministic_gy[needed])[None]
            if not self.count:
                return deterministic
            return (deterministic + torch.from_numpy(self.deviations_gy[rows][:, needed])).clamp_min_(0)

        return doses_in_structure(structure, self._place_in_mask, max(self.count, 1), gy)


def _doses_at_volume(inside: StructureDose) -> NDArray:
    return inside.doses_at_volume_gy(VOLUME_RATIOS)


def doses_in_structure(
    structure: Structure, place_in_mask: NDArray, count: int, gy: Callable[[slice, NDArray], Tensor]
) -> StructureDose:
    """Doses known at a mask's voxels, in a structure; 0 Gy outside the mask.

    Parameters
    ----------
    place_in_mask : (voxels of the grid,) position among the mask's; -1 outside.
    count : of doses.
    gy : doses (rows, needed) in Gy, for a slice of them and positions in the mask.
    """
    voxels = StructureVoxels.of(structure)
    known = place_in_mask[voxels.index] >= 0
    needed, reached = voxels.only(known).placed(place_in_mask).gathered()
    middle = torch.zeros((count, known.size))
    half = torch.zeros_like(middle)
    inside = torch.from_numpy(np.flatnonzero(known))
    for first in range(0, count, SAMPLES_TOGETHER):
        rows = slice(first, first + SAMPLES_TOGETHER)
        middle[rows, inside], half[rows, inside] = doses_inside(gy(rows, needed), reached)
    return StructureDose(middle, voxels.occupancy, voxels.voxel_volume_cc, half, name=structure.name)
