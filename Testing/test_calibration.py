"""Calibrated bands: factors, coverage on patients that were not used, storage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.calibration.conformal import cross_fit, fit, scores_of
from RTDigitalTwinLib.calibration.coverage import CoverageTally, coverage_of, sharpness_of
from RTDigitalTwinLib.errors import ModelError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.solver.bands import FLOORS, LEVELS, BandScale
from RTDigitalTwinLib.solver.calibration_file import (
    StoredCalibration,
    calibration_path,
    load_calibration,
    save_calibration,
)
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

SHA = "0" * 64
SAMPLES = 32


def made_up(seed: int, too_narrow: float = 2.0) -> DoseEnsemble:
    """A prediction whose error is drawn like one more of its samples, but ``too_narrow`` times as large."""
    patient = replace(small_patient(), pseudonym=f"made-up-{seed}")
    drawn = hand_made_ensemble(patient, SAMPLES + 1, seed)
    indices = drawn.crop.mask_indices
    truth = np.zeros(patient.ct.grid.voxel_count, np.float32)
    error = too_narrow * drawn.deviations_gy[-1].astype(np.float32)
    truth[indices] = np.maximum(drawn.deterministic_gy + error, 0)
    dose = Volume(truth.reshape(patient.ct.grid.shape), patient.ct.grid, Quantity.DOSE_GY)
    patient = replace(patient, plans=(replace(patient.plan, dose=dose),))
    return DoseEnsemble(patient, drawn.crop, drawn.deterministic_gy, drawn.deviations_gy[:-1], seed, SHA)


@pytest.fixture(scope="module")
def cohort() -> list[DoseEnsemble]:
    return [made_up(seed) for seed in range(40)]


def tally(ensembles: list[DoseEnsemble]) -> dict:
    result = CoverageTally()
    for ensemble in ensembles:
        result.add(coverage_of(ensemble), sharpness_of(ensemble))
    return result.as_dict()


def test_bands_that_are_too_narrow_come_to_hold_what_they_say(cohort: list[DoseEnsemble]) -> None:
    """Fitted on 24 patients, judged on 16 others."""
    calibration = fit([scores_of(e) for e in cohort[:24]], SAMPLES)
    others = cohort[24:]
    before = tally(others)
    after = tally([replace(e, calibration=calibration) for e in others])
    assert before["coverage_voxel_95"] < 0.85
    # 16 patients whose voxels move together: a standard error of about 4 % at patient level
    assert after["coverage_voxel_95"] == pytest.approx(0.95, abs=0.06)
    # the other two have less than 0.5 Gy: a point or two of their curves
    for name in ("PTV_7000", "Parotid_L"):
        assert after["coverage_dvh_95_by_structure"][name] > max(0.85, before["coverage_dvh_95_by_structure"][name])
    assert after["coverage_metric_95"] > max(0.88, before["coverage_metric_95"])
    assert after["band_width_gy"] > 1.3 * before["band_width_gy"]


def test_bands_that_are_right_stay_about_as_they_are() -> None:
    calibration = fit([scores_of(made_up(seed, too_narrow=1.0)) for seed in range(100, 130)], SAMPLES)
    target = np.array(calibration.voxels["target"])[-1]
    assert target[LEVELS.index(0.5)] == pytest.approx(0.7, abs=0.25)  # 0.67 for a normal error, 0.71 for a sine's
    assert 1.2 < target[LEVELS.index(0.95)] < 2.2


def test_a_patient_is_judged_without_its_own_part(cohort: list[DoseEnsemble]) -> None:
    scores = [scores_of(e) for e in cohort[:28]]
    without = cross_fit(scores, SAMPLES, folds=7)
    assert set(without) == {s.pseudonym for s in scores}
    assert len({id(c) for c in without.values()}) == 7
    fold = [s for i, s in enumerate(scores) if i % 7 != 0]
    assert without[scores[0].pseudonym] == fit(fold, SAMPLES)


def test_metric_factors_are_split_conformal(cohort: list[DoseEnsemble]) -> None:
    scores = [scores_of(e) for e in cohort[:24]]
    ordered = sorted(s.metrics["PTV_7000", "D95"] for s in scores)
    factors = fit(scores, SAMPLES).metrics["PTV_7000 D95"]
    assert factors[LEVELS.index(0.9)] == ordered[23 - 1]  # ceil(25 * 0.90) = 23rd of 24
    assert len(factors) == LEVELS.index(0.98)  # 24 patients cannot give 98 %


def test_metric_and_curve_bands_are_the_calibrated_ones(cohort: list[DoseEnsemble]) -> None:
    calibration = fit([scores_of(e) for e in cohort[:24]], SAMPLES)
    ensemble = replace(cohort[30], calibration=calibration)
    assert ensemble.band_words() == "calibrated 95 % band"
    mean = ensemble.metric("Parotid_L", "mean")
    low, high = mean.band(0.95)
    factor = calibration.metrics["Parotid_L mean"][LEVELS.index(0.95)]
    assert high - mean.mean == pytest.approx(factor * np.hypot(mean.std, FLOORS["Gy"]))
    assert low < mean.sampled_band(0.95)[0]
    curve = ensemble.dvh("Parotid_L")
    low, high = curve.band(0.95)
    assert (np.diff(low) <= 0).all() and (np.diff(high) <= 0).all()
    assert low.min() >= 0 and high.max() <= 1 and (low <= curve.mean + 1e-9).all() and (curve.mean <= high + 1e-9).all()
    # A volume at a dose that was never measured is known as surely as the DVH is there.
    low, high = ensemble.metric("Parotid_L", "V11").band(0.95)
    at = int(np.argmin(abs(curve.dose_gy - 11.0)))
    assert (low, high) == pytest.approx([100 * limit[at] for limit in curve.band(0.95)], abs=0.01) and low < high


def test_a_dvh_band_closes_where_all_or_none_of_the_volume_has_the_dose() -> None:
    ensemble = replace(made_up(0), calibration=hand_made_calibration(SAMPLES))
    curve = ensemble.dvh("PTV_7000")
    low, high = curve.band(0.95)
    doses = curve.dose_at_volume
    lowest = doses.mean[-1] - 2 * np.hypot(doses.std[-1], 0.25)
    everywhere = curve.dose_gy < lowest - 0.2
    assert everywhere.sum() > 20 and low[everywhere].min() > 0.99
    middle = np.argmin(np.abs(curve.mean - 0.5))
    at = np.argmin(np.abs(doses.mean - curve.dose_gy[middle]))
    half_gy = 2 * np.hypot(doses.std[at], 0.25)
    # the dose at which the upper limit passes a volume is that volume's dose plus half the band
    passed = curve.dose_gy[np.flatnonzero(high >= 0.5)[-1]]
    assert passed == pytest.approx(np.interp(0.5, curve.mean[::-1], curve.dose_gy[::-1]) + half_gy, abs=0.5)


def test_voxel_bands_are_as_wide_as_their_half_width_says(cohort: list[DoseEnsemble]) -> None:
    ensemble = replace(cohort[0], calibration=fit([scores_of(e) for e in cohort[:24]], SAMPLES))
    low, high = ensemble.band(0.95)
    half = ensemble.half_width(0.95).values
    mean = ensemble.mean.values
    assert np.allclose(high.values, mean + half) and np.allclose(low.values, np.maximum(mean - half, 0))
    assert not half[~ensemble.patient.dose_mask.mask].any()
    assert (ensemble.half_width(0.5).values <= half).all()


def test_levels_between_those_measured_are_interpolated() -> None:
    scale = BandScale((1.0, 1.5, 2.0, 3.0, 4.0, 6.0), 0.0)
    assert scale.factor(0.95) == 4.0 and scale.factor(0.85) == pytest.approx(2.5) and scale.factor(0.5) == 1.0
    with pytest.raises(RTDigitalTwinError, match="50% to 98%"):
        scale.factor(0.99)


def test_without_calibration_bands_are_the_samples(cohort: list[DoseEnsemble]) -> None:
    ensemble = cohort[0]
    assert not ensemble.is_calibrated and "not calibrated" in ensemble.band_words()
    assert np.array_equal(ensemble.band(0.9)[0].values, ensemble.sampled_band(0.9)[0].values)
    with pytest.raises(RTDigitalTwinError, match="no calibration"):
        ensemble.half_width()


def test_few_samples_are_not_called_calibrated(cohort: list[DoseEnsemble]) -> None:
    calibration = fit([scores_of(e) for e in cohort[:24]], SAMPLES)
    few = replace(cohort[0], deviations_gy=cohort[0].deviations_gy[: SAMPLES // 2 - 1], calibration=calibration)
    assert not few.is_calibrated and "not calibrated" in few.band_words()
    assert few.metric("Parotid_L", "mean").scale is None and few.dvh("Parotid_L").scale is None
    with pytest.raises(RTDigitalTwinError, match="more samples"):
        few.half_width()
    none = replace(cohort[0], deviations_gy=cohort[0].deviations_gy[:0], calibration=calibration)
    assert not none.is_calibrated and none.band_words().startswith("sampled")


def test_a_region_has_a_sampled_band_beside_calibrated_ones(cohort: list[DoseEnsemble]) -> None:
    calibration = fit([scores_of(e) for e in cohort[:24]], SAMPLES)
    patient = cohort[0].patient
    region = replace(patient.dose_mask, name="External")
    ensemble = replace(
        cohort[0],
        patient=replace(patient, structures={**patient.structures, "External": region}),
        calibration=calibration,
    )
    assert ensemble.dvh("External").scale is None and ensemble.metric("External", "mean").scale is None
    assert ensemble.dvh("PTV_7000").scale is not None
    assert "External" not in coverage_of(ensemble).structure_ratio


def test_an_organ_outside_the_dose_mask_is_not_judged(cohort: list[DoseEnsemble]) -> None:
    ensemble = cohort[0]
    corner = np.zeros(ensemble.patient.ct.grid.shape, bool)
    corner[0, 0, :3] = True
    assert not (corner & ensemble.patient.dose_mask.mask).any()
    away = Structure.from_array("Larynx", corner, ensemble.patient.ct.grid, StructureKind.ORGAN)
    patient = replace(ensemble.patient, structures={**ensemble.patient.structures, "Larynx": away})
    ensemble = replace(ensemble, patient=patient)
    scores, coverage = scores_of(ensemble), coverage_of(ensemble)
    assert "Larynx" not in scores.curves and ("Larynx", "mean") not in scores.metrics
    assert "Larynx" not in coverage.dvh_ratio and "Larynx D0.1cc" not in coverage.metric_hits


def test_where_structures_meet_the_target_owns_the_voxel(cohort: list[DoseEnsemble]) -> None:
    patient = cohort[0].patient
    target = patient.structures["PTV_7000"]
    organ = replace(target, name="Larynx", kind=StructureKind.ORGAN)
    listed, owner = replace(
        cohort[0], patient=replace(patient, structures={"PTV_7000": target, "Larynx": organ})
    ).owners()
    assert [name for name, _ in listed] == ["remainder", "Larynx", "PTV_7000"]
    assert set(np.unique(owner)) == {0, 2}


def test_sharpness_knows_good_from_useless_spread(cohort: list[DoseEnsemble]) -> None:
    ensemble = cohort[0]
    useful = sharpness_of(ensemble)
    shuffled = np.random.default_rng(0).permutation(ensemble.deviations_gy.shape[1])
    useless = sharpness_of(replace(ensemble, deviations_gy=ensemble.deviations_gy[:, shuffled]))
    assert useful.rank_correlation > 0.3 and abs(useless.rank_correlation) < 0.3
    assert 0 <= useful.sparsification_error < useless.sparsification_error


def test_the_calibration_comes_back_from_disk(cohort: list[DoseEnsemble], tmp_path: Path) -> None:
    scores = [scores_of(e) for e in cohort[:24]]
    stored = StoredCalibration(fit(scores, SAMPLES), cross_fit(scores, SAMPLES, folds=12))
    weights = tmp_path / "net.safetensors"
    assert load_calibration(weights, SHA) is None
    path = calibration_path(weights)
    save_calibration(stored, path, SHA)
    loaded = load_calibration(weights, SHA)
    assert loaded is not None and set(loaded.without) == set(stored.without)
    a, b = loaded.for_patient("made-up-3"), stored.for_patient("made-up-3")
    assert a.metrics.keys() == b.metrics.keys()
    assert all(a.metrics[k] == pytest.approx(b.metrics[k], abs=1e-4) for k in a.metrics)
    assert loaded.for_patient("somebody else") == loaded.whole
    with pytest.raises(ModelError, match="other weights"):
        load_calibration(weights, "1" * 64)
    content = json.loads(path.read_text())
    content["whole"]["curves"]["organ"] = [2.0, 1.0]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"net.calibration.json.*damaged"):
        load_calibration(weights, SHA)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ModelError, match="damaged"):
        load_calibration(weights, SHA)


def test_too_little_to_calibrate_with_is_refused(cohort: list[DoseEnsemble]) -> None:
    with pytest.raises(RTDigitalTwinError, match="at least 20 patients"):
        fit([scores_of(e) for e in cohort[:4]], SAMPLES)
    patient = small_patient(with_dose=False)
    blind = replace(cohort[0], patient=patient)
    with pytest.raises(PatientDataError, match="no planned dose"):
        scores_of(blind)
    with pytest.raises(PatientDataError, match="no planned dose"):
        coverage_of(blind)
