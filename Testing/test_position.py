"""Couch shifts: read, refused, and the believed dose moved as the delivered one is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief, load_belief, save_belief
from RTDigitalTwinLib.calibration.covariance import shift_std_mm
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.calibration.measurements import as_row, from_row
from RTDigitalTwinLib.calibration.measuring import measure_volume
from RTDigitalTwinLib.calibration.position import Position, moved
from RTDigitalTwinLib.calibration.recalibration import recalibrate
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.network_patient import network_patient
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.observation import (
    CouchShiftObservation,
    MetricObservation,
    Moment,
    NoiseModel,
    require_fit,
)
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

NOISE = NoiseModel(0.0, 0.5)
SHIFT_MM = (4.0, 8.0, 0.0)
COUCH = CouchShiftObservation(SHIFT_MM, Moment(2.0, 3), NOISE, "couch log")
DOSE_NOISE = NoiseModel(0.02, 0.005)
AS_PLANNED = CouchShiftObservation((0.0, 0.0, 0.0), Moment(0.0, 1), NOISE, "images")


@pytest.fixture(scope="module")
def drawn() -> DoseEnsemble:
    return replace(hand_made_ensemble(small_patient(), 16), calibration=hand_made_calibration(samples=16))


@pytest.fixture(scope="module")
def belief(drawn: DoseEnsemble) -> DoseBelief:
    network = DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32))).eval()
    surrogate = DoseSurrogate(network, torch.device("cpu"), "0" * 64)
    return DoseBelief(surrogate, network_patient(drawn.patient), drawn.calibration)


def mean_of(structure: str, gy: float) -> MetricObservation:
    return MetricObservation(structure, "mean", gy, Moment(0.0, 1), NoiseModel(0.02, 0.005), "log")


def in_mask(drawn: DoseEnsemble) -> np.ndarray:
    return drawn.mean.values.reshape(-1)[drawn.crop.mask_indices]


def absorbed(belief: DoseBelief | RecalibratedBelief, drawn: DoseEnsemble, *given: object) -> RecalibratedBelief:
    after = recalibrate(belief, given, GaussianProcess(), drawn).after  # type: ignore[arg-type]
    assert isinstance(after, RecalibratedBelief)
    return after


def test_a_dose_moves_as_a_delivered_one(drawn: DoseEnsemble) -> None:
    """By the simulator's own map, whole voxels, far from the mask's edge where the room's dose is not known."""
    patient = drawn.patient
    plan = delivered_dose(patient, Change()).values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
    as_planned = replace(drawn, deterministic_gy=plan, deviations_gy=drawn.deviations_gy[:0])
    found = moved(as_planned, SHIFT_MM).deterministic_gy
    true = delivered_dose(patient, Change(shift_mm=SHIFT_MM)).values.reshape(-1)[drawn.crop.mask_indices]
    inside = patient.structures["PTV_7000"].mask.reshape(-1)[drawn.crop.mask_indices]
    assert np.abs(found - true)[inside].max() < 1e-3
    assert np.abs(plan - true)[inside].max() > 0.5


def test_a_couch_shift_alone_moves_the_belief_and_widens_it_at_slopes(belief: DoseBelief, drawn: DoseEnsemble) -> None:
    after = absorbed(belief, drawn, COUCH).applied(drawn)
    assert np.abs(in_mask(after) - in_mask(moved(drawn, SHIFT_MM))).max() < 0.05  # half precision of the samples
    unsure = replace(COUCH, noise=NoiseModel(0.0, 4.0))
    wide = absorbed(belief, drawn, unsure).applied(drawn)
    ratio = wide.half_width(0.95).values / after.half_width(0.95).values.clip(1e-6)
    assert ratio[drawn.patient.dose_mask.mask].max() > 1.2 and ratio[drawn.patient.dose_mask.mask].min() > 0.95
    low, high = after.metric("PTV_7000", "D95").band(0.95)
    wide_low, wide_high = wide.metric("PTV_7000", "D95").band(0.95)
    assert wide_high - wide_low > high - low


def test_a_shift_after_a_dose_volume_moves_what_was_learned(belief: DoseBelief, drawn: DoseEnsemble) -> None:
    patient = drawn.patient
    truth = delivered_dose(patient, Change(output_error_ratio=0.05))
    volume = measure_volume(patient, truth, Moment(0.0, 1), DOSE_NOISE, Change(), 1)
    learned = absorbed(belief, drawn, volume)
    both = absorbed(learned, drawn, COUCH).applied(drawn)
    true = delivered_dose(patient, Change(shift_mm=SHIFT_MM, output_error_ratio=0.05))
    target = patient.structures["PTV_7000"].mask
    unmoved, now = (np.abs(e.mean.values - true.values)[target].mean() for e in (learned.applied(drawn), both))
    assert now < 0.7 * unmoved
    assert Position.of([volume, COUCH]) == Position((0.0, 0.0, 0.0), SHIFT_MM, 0.5)


def test_dose_measured_after_a_shift_is_read_there(belief: DoseBelief, drawn: DoseEnsemble) -> None:
    patient = drawn.patient
    change = Change(shift_mm=SHIFT_MM)
    volume = measure_volume(patient, delivered_dose(patient, change), Moment(2.0, 3), DOSE_NOISE, change, 1)
    assert Position.of([COUCH, volume]) == Position(SHIFT_MM, measured_noise_mm=0.5)
    after = absorbed(belief, drawn, COUCH, volume).applied(drawn)
    true = delivered_dose(patient, change).values.reshape(-1)[drawn.crop.mask_indices]
    assert np.abs(in_mask(after) - true).mean() < 0.5 * np.abs(in_mask(drawn) - true).mean()
    early = replace(volume, moment=Moment(0.0, 1))
    with pytest.raises(PatientDataError, match="before a couch shift and after it"):
        recalibrate(belief, [early, COUCH, volume], GaussianProcess(), drawn)


def test_a_known_position_leaves_less_to_a_shift(belief: DoseBelief, drawn: DoseEnsemble) -> None:
    """One mean far off is likelier an error of the network, and less of a shift, where the position was seen."""
    unsure = replace(drawn, deviations_gy=(3 * drawn.deviations_gy).astype(np.float16))
    mean = float(unsure.metric("Parotid_L", "mean").mean)
    far = mean_of("Parotid_L", 0.7 * mean / 35)
    changes = []
    for noise_mm in (None, 1.0, 0.3):
        where = [] if noise_mm is None else [replace(AS_PLANNED, noise=NoiseModel(0.0, noise_mm))]
        after = recalibrate(belief, [far, *where], GaussianProcess(), unsure, absorb_outliers=True).after
        assert isinstance(after, RecalibratedBelief)
        assert abs(float(after.applied(unsure).metric("Parotid_L", "mean").mean) - 0.7 * mean) < 0.05 * mean
        assert after.change is not None
        changes.append(after.change)
    unknown, known, well_known = changes
    assert unknown.shift_probability > 0.8 and unknown.known_to_mm is None
    assert any("couch shift" in said for said in unknown.words)
    assert known.known_to_mm == 1.0 and well_known.shift_probability < 0.7 < known.shift_probability
    lengths = [float(np.linalg.norm(change.shift_mm)) for change in changes]
    assert lengths[1] < 0.7 * lengths[0] and lengths[2] < 0.2 * lengths[0]
    far_off = replace(known, shift_mm=(0.0, 4.0, 0.0))
    assert any("given as 1 mm" in said for said in far_off.words)
    assert not any("given as 1 mm" in said for said in well_known.words)


def test_values_that_a_known_position_cannot_explain_are_outliers(belief: DoseBelief, drawn: DoseEnsemble) -> None:
    mean = float(drawn.metric("Parotid_L", "mean").mean)
    far = mean_of("Parotid_L", 0.6 * mean / 35)
    assert not recalibrate(belief, [far], GaussianProcess(), drawn).left_out
    sure = replace(AS_PLANNED, noise=NoiseModel(0.0, 0.3))
    assert recalibrate(belief, [far, sure], GaussianProcess(), drawn).left_out == (far,)
    # Also where the position was absorbed before.
    before = absorbed(belief, drawn, sure)
    assert recalibrate(before, [far], GaussianProcess(), drawn).left_out == (far,)


def test_the_position_of_a_measurement_is_known_where_all_its_fractions_are() -> None:
    later = replace(COUCH, moment=Moment(3.0, 4), noise=NoiseModel(0.0, 2.0))
    dose = mean_of("Parotid_L", 0.7)
    for fraction, fractions, known_mm in ((2, 1, None), (3, 1, 0.5), (4, 2, 2.0)):
        found = Position.of([COUCH, later, replace(dose, moment=Moment(4.0, fraction, fractions))])
        assert found.measured_noise_mm == known_mm
    assert Position.of([dose]).measured_noise_mm is None
    days_later = Position.of([COUCH, replace(dose, moment=Moment(9.0, 10))])
    assert days_later.measured_mm == SHIFT_MM and days_later.measured_noise_mm is None
    assert shift_std_mm(None) == shift_std_mm(9.0) == 4.0 and shift_std_mm(0.5) == 0.5


def test_doses_measured_before_a_shift_are_judged_where_they_were_measured(
    belief: DoseBelief, drawn: DoseEnsemble
) -> None:
    means = {name: float(drawn.metric(name, "mean").mean) for name in drawn.patient.structures}
    as_believed = [mean_of(name, mean / 35) for name, mean in means.items()]
    seen = replace(AS_PLANNED, noise=NoiseModel(0.0, 0.5))
    later = replace(COUCH, moment=Moment(5.0, 6))
    together = recalibrate(belief, [seen, *as_believed, later], GaussianProcess(), drawn)
    assert together.left_out == ()
    for judgement in together.judgements[1:-1]:
        assert judgement.expected == pytest.approx(judgement.observed, abs=0.1)
    before = absorbed(belief, drawn, seen, later)
    assert recalibrate(before, as_believed, GaussianProcess(), drawn).left_out == ()


def test_the_noise_of_a_position_stays_where_a_measurement_says_nothing(
    belief: DoseBelief, drawn: DoseEnsemble
) -> None:
    rough = replace(AS_PLANNED, noise=NoiseModel(0.0, 3.0))
    nothing = replace(mean_of("SpinalCord", 0.3), noise=NoiseModel(0.0, 5.0))

    def width(*given: object) -> float:
        low, high = absorbed(belief, drawn, *given).applied(drawn).metric("Parotid_L", "mean").band(0.95)
        return float(high - low)

    assert width(nothing, rough) > 2 * width(nothing)
    assert width(nothing, rough) > 0.5 * width(rough)


def test_shifts_that_cannot_be_are_refused_or_left_out(belief: DoseBelief, drawn: DoseEnsemble) -> None:
    with pytest.raises(PatientDataError, match="at most 50 mm"):
        replace(COUCH, shift_mm=(51.0, 0.0, 0.0))
    with pytest.raises(PatientDataError, match="cannot be"):
        replace(COUCH, shift_mm=(float("nan"), 0.0, 0.0))
    far = replace(COUCH, shift_mm=(30.0, 0.0, 0.0))
    update = recalibrate(belief, [far], GaussianProcess(), drawn)
    assert update.left_out == (far,) and update.after is belief
    told = recalibrate(belief, [far], GaussianProcess(), drawn, absorb_outliers=True)
    assert told.absorbed == (far,)
    with pytest.raises(PatientDataError, match="more than once"):
        require_fit([COUCH, COUCH], drawn.patient)


def test_rows_and_files(belief: DoseBelief, drawn: DoseEnsemble, tmp_path: Path) -> None:
    row = as_row(COUCH)
    assert (row["kind"], row["unit"], row["x_mm"]) == ("couch shift", "mm", 4.0)
    assert from_row(row) == COUCH
    with pytest.raises(PatientDataError, match="not mm"):
        from_row(row | {"unit": "cm"})
    held = absorbed(belief, drawn, COUCH)
    save_belief(held, tmp_path / "couch.npz")
    again = load_belief(tmp_path / "couch.npz", belief)
    assert again.same_as(held)
    assert np.array_equal(again.applied(drawn).deterministic_gy, held.applied(drawn).deterministic_gy)
