"""Trials of recalibration: a simulated delivery, what is measured of it, and the error of the dose before and after.

The truth is simulated (``dosimetry.delivery``): the patient's reference dose stays in the room, the anatomy moves. The
network has no part in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Calibrator, Evidence, gather
from RTDigitalTwinLib.calibration.covariance import ErrorCovariance, ScalarErrors
from RTDigitalTwinLib.calibration.measuring import Wanted, measure_position, measure_scalars, measure_volume
from RTDigitalTwinLib.calibration.recalibration import recalibrate
from RTDigitalTwinLib.calibration.treatment_change import Mover
from RTDigitalTwinLib.dosimetry.customary import metrics_of, target_levels_gy
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, DvhMetricKind
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.patient.observation import CouchShiftObservation, Moment, NoiseModel, Observation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.solver.ensemble import VOLUME_RATIOS

NOISE = NoiseModel(0.02, 0.005)  # 2 % of the local dose and 0.005 Gy a fraction
BLUR_MM = 3.0
POINTS = 3
TREATMENTS = {
    "as planned": Change(),
    "shift 5 mm": Change(shift_mm=(3.0, 0.0, 4.0)),
    "output +5 %": Change(output_error_ratio=0.05),
}
VOLUME, SCALARS, PLACED = "volume", "means and points", "means and points, position known"
OBSERVED = (VOLUME, SCALARS, PLACED)
POSITION_NOISE = NoiseModel(0.0, 1.0)  # of an image that shows where the patient lies, mm along each axis
FIRST = Moment(0.0, 1)
BEST_STEPS = 5
WIDTHS = tuple(round(0.3 + 0.1 * k, 1) for k in range(38))  # times the band's width at which coverage is told


@dataclass(frozen=True, eq=False)
class Trial:
    """One patient, one treatment, one kind of observation.

    Attributes
    ----------
    truth : dose of the course if all fractions are delivered so: the next fractions' dose is in proportion to it.
    """

    belief: DoseBelief
    drawn: DoseEnsemble
    truth: Volume
    observations: tuple[Observation, ...]

    @classmethod
    def of(cls, belief: DoseBelief, drawn: DoseEnsemble, treatment: str, observed: str, seed: int) -> Trial:
        """``treatment`` is one of ``TREATMENTS``, ``observed`` of ``OBSERVED``."""
        patient, change = belief.patient, TREATMENTS[treatment]
        truth = delivered_dose(patient, change)
        if observed == VOLUME:
            volume = measure_volume(patient, truth, FIRST, NOISE, change, seed, BLUR_MM)
            return cls(belief, drawn, truth, (volume,))
        measured = measure_scalars(patient, truth, customary_scalars(patient), FIRST, NOISE, change, seed)
        place = (measure_position(FIRST, POSITION_NOISE, change, seed),) if observed == PLACED else ()
        return cls(belief, drawn, truth, (*place, *measured))

    @property
    def position_alone(self) -> Trial:
        """The same with no dose measured."""
        return replace(self, observations=tuple(o for o in self.observations if isinstance(o, CouchShiftObservation)))

    def before(self) -> dict[str, Any]:
        """Errors of the network's own belief."""
        return self._scores(self.drawn) | {"seconds": 0.0, "left_out": 0}

    def after(self, calibrator: Calibrator, samples: int) -> dict[str, Any]:
        """Errors after a calibrator absorbed what is no outlier; seconds of absorbing alone."""
        began = time.perf_counter()
        update = recalibrate(self.belief, self.observations, calibrator, self.drawn)
        seconds = time.perf_counter() - began
        drawn = self.drawn
        if isinstance(update.after, RecalibratedBelief):
            after = update.after
            drawn = after.applied(drawn) if after.decoder is None else after.sample(samples, 0)
        return self._scores(drawn) | {"seconds": round(seconds, 2), "left_out": len(update.left_out)}

    def best_possible(self) -> dict[str, Any]:
        """The least squared error that any weights of the Gaussian process's fields reach, knowing the truth.

        The fields are the network's covariance with each reading, about the dose moved and scaled by any sizes of the
        changes (sought by Gauss-Newton): every update under one hypothesis from these metrics and points is such a sum.
        No measurement can tell the weights.
        """
        evidence: Evidence = gather(self.belief, self.observations, self.drawn)
        covariance = ErrorCovariance.of(self.drawn)
        errors = ScalarErrors.of(evidence.scalars, evidence.doses_gy, covariance)
        true, mover = self._true(), Mover(evidence.mean_gy, covariance)
        sizes, best, least = np.zeros(4), evidence.mean_gy, np.inf
        for _ in range(BEST_STEPS):
            now = mover.moved(sizes)
            changes = mover.changes(now, sizes)
            fields = np.concatenate([errors.network, changes]).astype(float)
            weights, *_ = np.linalg.lstsq(fields.T, true - now, rcond=None)
            found = np.maximum(now + weights @ fields, 0)
            if (square := float(np.square(found - true).sum())) < least:
                best, least = found, square
            sizes = sizes + weights[-len(changes) :]
        return self._errors(best) | {"seconds": 0.0, "left_out": 0}

    def _true(self) -> NDArray[np.float32]:
        return self.truth.values.reshape(-1)[self.drawn.crop.mask_indices].astype(np.float32)

    def _errors(self, dose_gy: NDArray) -> dict[str, Any]:
        off, patient, indices = np.abs(dose_gy - self._true()), self.belief.patient, self.drawn.crop.mask_indices
        inside = np.any([s.mask.reshape(-1)[indices] for s in patient.structures.values()], axis=0)
        dose = self.drawn.crop.spread(dose_gy.astype(np.float32), self.truth.quantity)
        means = [
            abs(float(structure_dose_of(dose, s).mean_gy()[0] - structure_dose_of(self.truth, s).mean_gy()[0]))
            for s in observable(patient).values()
        ]
        return {
            "mask_gy": round(float(off.mean()), 4),
            "inside_gy": round(float(off[inside].mean()), 4),
            "elsewhere_gy": round(float(off[~inside].mean()), 4),
            "structure_mean_gy": round(float(np.mean(means)), 4),
        }

    def _scores(self, drawn: DoseEnsemble) -> dict[str, Any]:
        indices, true = drawn.crop.mask_indices, self._true()
        mean = drawn.mean.values.reshape(-1)[indices]
        low, high = (limit.values.reshape(-1)[indices] for limit in drawn.band(0.95))
        half = high - mean  # the lower limit is cut at 0, below which no truth lies
        needed = np.abs(true - mean) / np.maximum(half, 1e-6)
        return (
            self._errors(mean)
            | self._derived(drawn)
            | {
                "coverage_ratio": round(float((needed <= 1).mean()), 4),
                "width_gy": round(float((high - low).mean()), 3),
                "coverage_by_width": [round(float((needed <= width).mean()), 4) for width in WIDTHS],
            }
        )

    def _derived(self, drawn: DoseEnsemble) -> dict[str, float]:
        """Bands of what is worked out of the dose: shares that hold the truth, and mean full widths of those in Gy."""
        levels = target_levels_gy(self.belief.patient)
        found: dict[str, list[tuple[float, float]]] = {"mean": [], "metric": [], "dvh": []}
        for name, structure in observable(self.belief.patient).items():
            truth, inside = structure_dose_of(self.truth, structure), drawn.structure_dose(name)
            for metric in metrics_of(structure, levels.get(name)):
                parsed = DvhMetric.parse(metric)
                low, high = drawn.metric(name, metric, inside).band(0.95)
                hit = float(low <= truth.metric(parsed)[0] <= high)
                kind = "mean" if parsed.kind is DvhMetricKind.MEAN else "metric"
                found[kind].append((hit, float(high - low) if parsed.unit == "Gy" else np.nan))
            low_gy, high_gy = drawn.dvh(name).dose_at_volume.band(0.95)
            true_gy = truth.doses_at_volume_gy(VOLUME_RATIOS)[0]
            hit = float(((low_gy <= true_gy) & (true_gy <= high_gy)).mean())
            found["dvh"].append((hit, float((high_gy - low_gy).mean())))
        scores: dict[str, float] = {}
        for kind, rows in found.items():
            covered, width = np.array(rows).T
            scores[f"coverage_{kind}_ratio"] = round(float(covered.mean()), 4)
            scores[f"width_{kind}_gy"] = round(float(np.nanmean(width)), 3)
        return scores


def observable(patient: Patient) -> dict[str, Structure]:
    """Structures with a voxel where dose is predicted."""
    return {name: s for name, s in patient.structures.items() if (s.mask & patient.dose_mask.mask).any()}


def customary_scalars(patient: Patient) -> list[Wanted]:
    """The mean of every structure, and points in the first target and the first two organs.

    A point is the structure's voxel in the dose mask that lies nearest to its centroid.
    """
    known = observable(patient)
    targets = [known[name] for name in patient.targets if name in known]
    organs = [known[name] for name in patient.organs if name in known]
    chosen: Sequence[Structure] = [*targets[:1], *organs][:POINTS]
    points: list[Wanted] = []
    for structure in chosen:
        inside = np.argwhere(structure.mask & patient.dose_mask.mask)
        positions = patient.ct.grid.to_lps_mm(inside)
        nearest = positions[np.linalg.norm(positions - structure.centroid_mm, axis=1).argmin()]
        x, y, z = (float(v) for v in nearest)
        points.append((x, y, z))
    return [*((name, "mean") for name in known), *points]
