"""Measuring a simulated delivery: observations of a known dose, with noise. For studies; all of it says simulated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from RTDigitalTwinLib.calibration.readings import blurred, read_scalars
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.model.crop import crop_around
from RTDigitalTwinLib.patient.observation import (
    CouchShiftObservation,
    DoseObservation,
    MetricObservation,
    Moment,
    NoiseModel,
    PointObservation,
    ScalarObservation,
)
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume

POSITION_STREAM = 1  # its noise is another than that of doses measured with the same seed
Wanted = tuple[str, str] | tuple[float, float, float]  # (structure, metric) or a point, LPS in mm


def measure_scalars(
    patient: Patient,
    delivered: Volume,
    wanted: Sequence[Wanted],
    moment: Moment,
    noise: NoiseModel,
    change: Change,
    seed: int,
) -> tuple[ScalarObservation, ...]:
    """Metrics and points of a delivered course's dose, as the moment's fractions of it give them, with noise.

    The noise's standard deviation is that of the true value; negative results are cut at 0.
    """
    crop = crop_around(patient)
    share = np.float32(moment.fractions / patient.plan.prescription.fractions)
    empty = asked(wanted, moment, noise, change)
    readings = read_scalars(empty, patient, crop)
    dose = delivered.values.reshape(-1)[crop.mask_indices].astype(np.float32)
    rng = np.random.default_rng(seed)
    measured: list[ScalarObservation] = []
    for observation, reading in zip(empty, readings, strict=True):
        true = float(reading.of(dose[None])[0]) * (1.0 if observation.unit == "%" else float(share))
        value = max(true + float(noise.std(true)) * rng.standard_normal(), 0.0)
        value = min(value, 100.0) if observation.unit == "%" else value
        if isinstance(observation, MetricObservation):
            measured.append(
                MetricObservation(
                    observation.structure, observation.metric, value, moment, noise, change.words, simulated=True
                )
            )
        else:
            measured.append(PointObservation(observation.position_mm, value, moment, noise, change.words, True))
    return tuple(measured)


def measure_volume(
    patient: Patient,
    delivered: Volume,
    moment: Moment,
    noise: NoiseModel,
    change: Change,
    seed: int,
    blur_mm: float = 0.0,
) -> DoseObservation:
    """The delivered dose of the moment's fractions, blurred and then with independent noise in each voxel.

    NaN outside the dose mask; negative doses are cut at 0.
    """
    crop = crop_around(patient)
    share = moment.fractions / patient.plan.prescription.fractions
    true = delivered.values.reshape(-1)[crop.mask_indices] * share
    if blur_mm:
        true = blurred(delivered.values.astype(np.float32), crop, blur_mm) * share
    noisy = true + noise.std(true) * np.random.default_rng(seed).standard_normal(true.size)
    values = np.full(crop.grid.voxel_count, np.nan, np.float32)
    values[crop.mask_indices] = np.maximum(noisy, 0)
    dose = Volume(values.reshape(crop.grid.shape), crop.grid, Quantity.DOSE_GY)
    return DoseObservation(dose, moment, noise, change.words, simulated=True, blur_mm=blur_mm)


def measure_position(moment: Moment, noise: NoiseModel, change: Change, seed: int) -> CouchShiftObservation:
    """Where the patient lies after a change, as an image shows it, with independent noise along each axis."""
    seen = np.asarray(change.shift_mm) + noise.floor * np.random.default_rng([POSITION_STREAM, seed]).standard_normal(3)
    x, y, z = (float(v) for v in seen)
    return CouchShiftObservation((x, y, z), moment, noise, change.words, simulated=True)


def asked(
    wanted: Sequence[Wanted], moment: Moment, noise: NoiseModel, change: Change | None = None
) -> list[ScalarObservation]:
    """Observations of 0 in place of those that are wanted."""
    words = (change or Change()).words
    found: list[ScalarObservation] = []
    for one in wanted:
        if len(one) == 2:
            found.append(MetricObservation(one[0], one[1], 0.0, moment, noise, words, True))
        else:
            found.append(PointObservation(one, 0.0, moment, noise, words, True))
    return found
