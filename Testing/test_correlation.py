"""How errors hang together in space: smoothing, measured correlation, and the posterior under it, by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from RTDigitalTwinLib.calibration.covariance import HYPOTHESES, ErrorCovariance, ScalarErrors
from RTDigitalTwinLib.calibration.measuring import Wanted, asked, measure_scalars, measure_volume
from RTDigitalTwinLib.calibration.outliers import Earlier, _joint_probability, judge
from RTDigitalTwinLib.calibration.readings import blurred, read_scalars, read_volumes, sampled_doses
from RTDigitalTwinLib.calibration.scalar_posterior import EVIDENCE_DEGREES, posterior
from RTDigitalTwinLib.calibration.treatment_change import Mover
from RTDigitalTwinLib.calibration.volume_posterior import from_volumes, inflation_ratio
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.model.crop import Crop, crop_around
from RTDigitalTwinLib.patient.observation import MetricObservation, Moment, NoiseModel, Observation
from RTDigitalTwinLib.solver.bands import BandCalibration
from RTDigitalTwinLib.solver.correlation import (
    CUSTOMARY_SHARES,
    DISTANCES_MM,
    LENGTHS_MM,
    MaskBox,
    correlation_by_distance,
    fit_shares,
)
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

FIRST = Moment(0.0, 1)


@pytest.fixture(scope="module")
def crop() -> Crop:
    return crop_around(small_patient())


@pytest.fixture(scope="module")
def drawn() -> DoseEnsemble:
    return replace(hand_made_ensemble(small_patient(), 16), calibration=hand_made_calibration(samples=16))


def positions_mm(crop: Crop) -> np.ndarray:
    index = np.stack(np.unravel_index(crop.mask_indices, crop.grid.shape), axis=1)
    return index * np.array(crop.grid.spacing_mm[::-1])


def kernel(away_mm: np.ndarray, shares: tuple[float, ...] = CUSTOMARY_SHARES) -> np.ndarray:
    terms = np.exp(-0.5 * np.square(away_mm[..., None] / np.array(LENGTHS_MM)))
    return terms @ np.array(shares)


def test_smoothing_is_the_sum_over_all_voxels(crop: Crop) -> None:
    values = np.random.default_rng(0).standard_normal((1, crop.mask_indices.size)).astype(np.float32)
    smooth = MaskBox(crop).correlated(values, CUSTOMARY_SHARES)[0]
    places = positions_mm(crop)
    for k in (0, 777, crop.mask_indices.size - 1):
        weights = kernel(np.linalg.norm(places - places[k], axis=1))
        assert smooth[k] == pytest.approx(float(weights @ values[0]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("blur_mm", [1.5, 3.0, 9.0])
def test_a_blur_has_the_variance_asked_for(crop: Crop, blur_mm: float) -> None:
    """Also one narrower than a voxel, of which samples of a Gaussian would make another; as measurements have it."""
    box, step_mm = MaskBox(crop), crop.grid.spacing_mm[2]
    middle = np.array(box.shape) // 2
    place = int(np.flatnonzero(box.places == np.ravel_multi_index(tuple(middle), box.shape))[0])
    point = np.zeros((1, box.places.size), np.float32)
    point[0, place] = 1
    along = box.spread(box.blurred(point, blur_mm))[0][:, middle[1], middle[2]].astype(float)
    away = (np.arange(along.size) - middle[0]) * step_mm
    if blur_mm < 9:  # the wide one ends at the mask
        assert along @ away**2 / along.sum() == pytest.approx(blur_mm**2, rel=0.01)
    full = np.zeros(crop.grid.voxel_count, np.float32)
    full[crop.mask_indices[place]] = 1
    measured = blurred(full.reshape(crop.grid.shape), crop, blur_mm)
    assert np.abs(box.blurred(point, blur_mm)[0] - measured).max() < 0.02 * measured.max()


def test_a_blur_leaves_no_subnormal_numbers(crop: Crop) -> None:
    """Far from a dose at one corner its blur is 0, not too small for full precision: that takes processors long."""
    box = MaskBox(crop)
    corner = np.zeros((1, box.places.size), np.float32)
    corner[0, 0] = 1e-6
    sizes = np.abs(box.blurred(corner, 1.5))
    assert (sizes == 0).any() and not ((sizes > 0) & (sizes < np.finfo(np.float32).tiny)).any()


def test_correlation_by_distance_is_that_of_all_pairs(crop: Crop) -> None:
    """A thin mask, so that all pairs can be gone through."""
    few = replace(crop, mask=crop.mask & (np.random.default_rng(3).random(crop.mask.shape) < 0.02))
    assert 200 < few.mask_indices.size < 800
    scores = np.random.default_rng(1).standard_normal(few.mask_indices.size)
    found = correlation_by_distance(scores, few)
    places = positions_mm(few)
    away = np.linalg.norm(places[:, None] - places, axis=-1)
    for k in range(1, len(DISTANCES_MM)):
        pairs = (away >= DISTANCES_MM[k - 1]) & (away < DISTANCES_MM[k]) & (away > 0)
        if pairs.any():
            assert found[k] == pytest.approx(float(np.outer(scores, scores)[pairs].mean()), abs=1e-5)


def test_a_known_length_is_found_again(crop: Crop) -> None:
    """White noise smoothed by exp(-d^2 / l^2) has the correlation exp(-d^2 / 2 l^2)."""
    rng = np.random.default_rng(2)
    box = MaskBox(crop)
    curves = []
    for _ in range(12):
        noise = rng.standard_normal(box.shape)
        for axis, h in enumerate(box.spacing_mm):
            away = (np.arange(box.shape[axis])[:, None] - np.arange(box.shape[axis])) * h
            noise = np.moveaxis(np.tensordot(np.exp(-np.square(away / 8.0)), noise, (1, axis)), 0, axis)
        curves.append(correlation_by_distance(noise.reshape(-1)[box.places], crop))
    shares = dict(zip(LENGTHS_MM, fit_shares(curves), strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[8.0] > 0.7  # edges weaken the correlation there; bins are some mm wide


def test_a_calibration_keeps_its_correlation() -> None:
    one = replace(hand_made_calibration(), correlation=(0.1, 0.4, 0.3, 0.15, 0.05))
    stored = one.as_dict()
    assert BandCalibration.from_dict(stored).correlation == one.correlation
    del stored["correlation"]  # measured before there was one
    assert BandCalibration.from_dict(stored).correlation == CUSTOMARY_SHARES
    with pytest.raises(ValueError, match="correlation"):
        BandCalibration.from_dict(stored | {"correlation": [0.5, 0.5]})


def test_the_posterior_of_one_mean_by_hand(drawn: DoseEnsemble) -> None:
    """Change at a voxel as planned and by output, where all is linear: covariance with the mean over its variance."""
    patient, crop = drawn.patient, drawn.crop
    truth = delivered_dose(patient, Change(output_error_ratio=0.05))
    noise = NoiseModel(0.02, 0.005)
    observed = measure_scalars(patient, truth, [("Parotid_L", "mean")], FIRST, noise, Change(), 1)
    covariance = ErrorCovariance.of(drawn)
    readings = read_scalars(observed, patient, crop)
    errors = ScalarErrors.of(readings, sampled_doses(drawn), covariance)
    found = posterior(errors)
    places, std = positions_mm(crop), covariance.std.astype(float)
    (reading,) = readings
    mean_of = np.zeros(std.size)
    np.add.at(mean_of, reading.places, reading.weights / reading.weights.sum())
    inside = np.flatnonzero(mean_of)
    voxel = int(inside[0])
    own, with_voxel = 0.0, 0.0
    far = np.array(CUSTOMARY_SHARES) * (np.array(LENGTHS_MM) >= 16)  # as if the spread were at most 4 Gy
    far_std = std / np.sqrt(1 + (std / 4) ** 2)
    near = np.array(CUSTOMARY_SHARES) - far
    near_std = np.sqrt((std**2 - far.sum() * far_std**2) / near.sum())
    for part_std, shares in ((far_std, far), (near_std, near)):
        seen = mean_of[inside] * part_std[inside]
        covered = [kernel(np.linalg.norm(places[inside] - places[a], axis=1), tuple(shares)) @ seen for a in inside]
        own, with_voxel = own + float(seen @ covered), with_voxel + part_std[voxel] * covered[0]
    changes, likely, linear = covariance.changes.astype(float), [], (0, 2)
    assert not any(HYPOTHESES[k].shifted for k in linear)
    for k in linear:
        sizes, mode = HYPOTHESES[k].sizes, found.modes[k]
        of_mean, of_voxel = (changes @ mean_of) * sizes, changes[:, voxel] * sizes
        total = own + of_mean @ of_mean + reading.std**2
        # Student's t of EVIDENCE_DEGREES, one value.
        square = errors.off[0] ** 2 / total
        evidence = (1 + square / EVIDENCE_DEGREES) ** (-0.5 * (EVIDENCE_DEGREES + 1)) / np.sqrt(total)
        likely.append(HYPOTHESES[k].probability * evidence)
        moved = (with_voxel + of_voxel @ of_mean) / total * errors.off[0]
        assert mode.dose_gy[voxel] - errors.dose_gy[voxel] == pytest.approx(float(moved), rel=1e-3)
        left = std[voxel] ** 2 + of_voxel @ of_voxel - (with_voxel + of_voxel @ of_mean) ** 2 / total
        assert mode.variance_gy2[voxel] == pytest.approx(float(left), rel=1e-3)
    assert found.weights[0] / found.weights[2] == pytest.approx(likely[0] / likely[1], rel=1e-3)
    assert found.dose_gy[voxel] == pytest.approx(float(found.weights @ found.doses_gy[:, voxel]))
    assert 0 < found.variance_gy2[voxel] < std[voxel] ** 2


def scaled(drawn: DoseEnsemble, factors: dict[str, float]) -> list[Observation]:
    """Metrics of the target as expected, times a factor each, for one fraction."""
    noise = NoiseModel(0.02, 0.005)
    return [
        MetricObservation(
            "PTV_7000", metric, f * float(drawn.metric("PTV_7000", metric).mean) / 35, FIRST, noise, "made up"
        )
        for metric, f in factors.items()
    ]


def test_values_that_agree_are_a_change_and_one_alone_is_an_outlier(drawn: DoseEnsemble) -> None:
    metrics = ("D50", "mean", "D95", "D2")
    together = judge(drawn, scaled(drawn, dict.fromkeys(metrics, 1.1)))
    assert not any(judgement.is_outlier for judgement in together)
    wrong = judge(drawn, scaled(drawn, dict.fromkeys(metrics, 1.25)))  # no treatment changes all by a quarter
    assert all(judgement.is_outlier and "together" in judgement.words for judgement in wrong)
    assert {judgement.joint_probability for judgement in wrong} == {wrong[0].joint_probability}
    alone = judge(drawn, scaled(drawn, {metric: 1.25 if metric == "D50" else 1.0 for metric in metrics}))
    assert [judgement.is_outlier for judgement in alone] == [True, False, False, False]


def test_a_shifted_volume_is_a_change_and_one_half_as_high_again_an_outlier(drawn: DoseEnsemble) -> None:
    patient = drawn.patient
    assert patient.plan.dose is not None
    dose = patient.plan.dose.values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
    planned = replace(drawn, deterministic_gy=dose)
    sure = replace(planned, deviations_gy=(0.05 * drawn.deviations_gy).astype(np.float16))
    noise = NoiseModel(0.02, 0.005)
    for change, expected in ((Change(shift_mm=(4.0, 0.0, 0.0)), False), (Change(output_error_ratio=0.5), True)):
        volume = measure_volume(patient, delivered_dose(patient, change), FIRST, noise, change, 1)
        (judged,) = judge(sure, [volume])
        assert judged.is_outlier is expected, judged.words


def test_a_volume_says_how_much_larger_errors_are(drawn: DoseEnsemble) -> None:
    """Errors drawn three times as large as their variance: 9 in variance; never below 1."""
    patient, crop = drawn.patient, drawn.crop
    truth = delivered_dose(patient, Change())
    (volume,) = read_volumes(
        [measure_volume(patient, truth, FIRST, NoiseModel(0.0, 0.001), Change(), 1)], patient, crop
    )
    mean = volume.values + 3 * np.random.default_rng(0).standard_normal(volume.values.size).astype(np.float32)
    assert inflation_ratio([volume], MaskBox(crop), mean, np.ones(mean.size)) == pytest.approx(9.0, rel=0.05)
    assert inflation_ratio([volume], MaskBox(crop), mean, np.full(mean.size, 100.0)) == 1.0


def test_deblurring_solves_its_equations(drawn: DoseEnsemble) -> None:
    """Two volumes of their own blurs, one of half the voxels: after many steps what is found has no residual."""
    patient, crop, box = drawn.patient, drawn.crop, MaskBox(drawn.crop)
    truth, noise = delivered_dose(patient, Change()), NoiseModel(0.02, 0.02)
    measured = [
        measure_volume(patient, truth, FIRST, noise, Change(), k, blur_mm) for k, blur_mm in ((1, 3.0), (2, 0.0))
    ]
    whole, half = read_volumes(measured, patient, crop)
    values = half.values.copy()
    values[::2] = np.nan
    half = replace(half, values=values)
    mean, variance = 0.9 * np.nan_to_num(whole.values), np.linspace(0.1, 4.0, whole.values.size)
    found = from_volumes([whole, half], box, mean, variance, 60)
    wanted, given = np.zeros(found.size), found / variance
    for volume in (whole, half):
        precision = np.where(volume.known, 1 / np.square(volume.std.astype(float)), 0)
        off = np.where(volume.known, volume.values - box.blurred(mean[None], volume.blur_mm)[0], 0)
        wanted += box.blurred((precision * off)[None], volume.blur_mm)[0]
        given += box.blurred((precision * box.blurred(found[None], volume.blur_mm)[0])[None], volume.blur_mm)[0]
    assert np.abs(given - wanted).max() < 1e-3 * np.abs(wanted).max()  # float32


def test_the_joint_probability_is_that_of_a_chi_square(drawn: DoseEnsemble) -> None:
    """Two values off by one standard deviation each, independent: exp(-(1 + 1) / 2) for two degrees of freedom."""
    assert _joint_probability(np.array([2.0, 3.0]), np.diag([4.0, 9.0])) == pytest.approx(np.exp(-1.0), rel=1e-5)
    assert _joint_probability(np.array([2.0]), np.eye(1)) is None
    assert not any(j.is_outlier for j in judge(replace(drawn, calibration=None), scaled(drawn, {"D50": 2, "D95": 2})))


def test_later_values_are_judged_given_earlier_ones(drawn: DoseEnsemble) -> None:
    """A mean 5 Gy above an earlier one that agreed with the belief is odd; alone the belief could explain it."""
    (first,) = scaled(drawn, {"mean": 1.0})
    (later,) = (replace(o, moment=Moment(1.0, 2)) for o in scaled(drawn, {"mean": 1.0 + 5 / 70}))
    assert isinstance(first, MetricObservation)
    (alone,) = judge(drawn, [later])
    (given,) = judge(drawn, [later], Earlier.of([first], drawn))
    assert given.reach < 0.8 * alone.reach
    assert given.expected == pytest.approx(alone.expected, abs=0.2)  # the first said what was expected
    assert Earlier.of([], drawn) is None


def test_a_set_that_a_real_shift_explains_is_no_outlier(drawn: DoseEnsemble) -> None:
    """First order says one in a thousand; the dose moved says nothing unusual. Times 1.5 no shift explains it."""
    plan = delivered_dose(drawn.patient, Change()).values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
    sure = replace(drawn, deterministic_gy=plan, deviations_gy=(0.05 * drawn.deviations_gy).astype(np.float16))
    noise = NoiseModel(0.002, 0.001)
    wanted: list[Wanted] = [(name, "mean") for name in drawn.patient.structures]
    inside = np.argwhere(drawn.patient.structures["PTV_7000"].mask)
    for place in (inside.min(axis=0), inside.max(axis=0), inside[0], inside[-1]):
        x, y, z = (float(v) for v in drawn.crop.grid.to_lps_mm(place))
        wanted.append((x, y, z))
    covariance = ErrorCovariance.of(sure)
    moved = Mover(plan, covariance).moved(np.array([1.5, 0.0, 1.2, 0.0]))
    given = [
        replace(reading.observation, value=float(reading.of(moved[None])[0]) / 35)
        for reading in read_scalars(asked(wanted, FIRST, noise), drawn.patient, drawn.crop)
    ]
    errors = ScalarErrors.of(read_scalars(given, drawn.patient, drawn.crop), sampled_doses(sure), covariance)
    first_order = _joint_probability(errors.off, errors.total(HYPOTHESES[3]))
    assert first_order is not None and first_order < 1e-4
    assert not any(j.is_outlier for j in judge(sure, given))
    assert all(j.joint_probability is not None and j.joint_probability > 0.5 for j in judge(sure, given))
    assert all(j.is_outlier for j in judge(sure, [replace(o, value=1.5 * o.value) for o in given]))
