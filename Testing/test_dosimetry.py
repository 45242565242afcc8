"""DVHs, their metrics and the benchmark's scores, against exact values."""

from __future__ import annotations

import numpy as np
import pytest

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, DvhMetricKind, StructureDose, dose_axis_gy
from RTDigitalTwinLib.dosimetry.openkbp_score import PatientScore, cohort_scores_gy, dvh_metrics_gy, score_patient
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.patient import Patient
from Testing.conftest import blurred_target_dose


def steps(*doses_gy: float, occupancy: tuple[float, ...] | None = None) -> StructureDose:
    doses = np.array([doses_gy], np.float32)
    weights = np.ones(len(doses_gy), np.float32) if occupancy is None else np.array(occupancy, np.float32)
    return StructureDose(doses, weights, voxel_volume_cc=0.05)


def test_cumulative_dvh_of_four_voxels() -> None:
    share = steps(10, 20, 30, 40).volume_at_dose_ratio([0, 10, 10.5, 20, 39, 40, 40.1])
    assert share[0] == pytest.approx([1, 1, 0.75, 0.75, 0.25, 0.25, 0])


def test_partial_voxels_count_by_their_occupancy() -> None:
    dose = steps(10, 20, occupancy=(1.0, 0.25))
    assert dose.volume_at_dose_ratio(15)[0, 0] == pytest.approx(0.2)
    assert dose.mean_gy()[0] == pytest.approx(12.0)
    assert dose.volume_cc == pytest.approx(1.25 * 0.05)


def test_hot_and_cold_metrics_differ_and_are_exact() -> None:
    """100 voxels of 0.5 to 99.5 Gy: voxel k holds the share from k to k + 1 percent, its middle at its own dose."""
    dose = steps(*(np.arange(100) + 0.5))
    for volume_percent, expected_gy in ((2, 98.0), (50, 50.0), (95, 5.0), (99, 1.0)):
        assert dose.metric(DvhMetric.parse(f"D{volume_percent}"))[0] == pytest.approx(expected_gy, abs=1e-4)
    assert dose.metric(DvhMetric.parse("D0.1cc"))[0] == pytest.approx(98.0, abs=1e-4)  # 0.1 of 5 cc is 2 %
    assert dose.metric(DvhMetric.parse("V20"))[0] == pytest.approx(80.0)
    assert dose.metric(DvhMetric.parse("mean"))[0] == pytest.approx(50.0)


@pytest.mark.parametrize(("level_gy", "expected"), [(4.0, 1.0), (16.0, 0.5), (22.0, (2 - 1.5 + 0.125) / 4)])
def test_sphere_in_a_linear_gradient(level_gy: float, expected: float) -> None:
    """24 mm sphere, 1 Gy/mm, 16 Gy at its centre: V(D) = (2 - 3 s + s^3) / 4, s = (D - 16) / 12."""
    centres = (np.arange(-30, 30) + 0.5) * 0.5
    z, y, x = np.meshgrid(centres, centres, centres, indexing="ij")
    inside = x**2 + y**2 + z**2 <= 144
    dose = StructureDose((16 + z[inside])[None].astype(np.float32), np.ones(inside.sum(), np.float32), 0.000125)
    # 0.5 mm voxels: the level falls between two sheets of voxels, half a sheet at most, 1.6 % of the diameter
    assert dose.volume_at_dose_ratio(level_gy)[0, 0] == pytest.approx(expected, abs=0.016)
    assert dose.mean_gy()[0] == pytest.approx(16.0, rel=1e-3)


def test_samples_are_independent_rows() -> None:
    many = StructureDose(np.array([[10, 20], [60, 40]], np.float32), np.ones(2, np.float32), 0.1)
    assert many.mean_gy() == pytest.approx([15, 50])
    assert many.volume_at_dose_ratio([15, 50]) == pytest.approx(np.array([[0.5, 0.0], [1.0, 0.5]]))


@pytest.mark.parametrize("text", ["D", "X95", "D101", "V20cc", "D-5", "95"])
def test_unknown_metrics_are_refused(text: str) -> None:
    with pytest.raises(RTDigitalTwinError, match=text):
        DvhMetric.parse(text)


def test_metrics_know_their_units() -> None:
    assert DvhMetric.parse("V20").unit == "%"
    assert DvhMetric.parse("D0.1cc") == DvhMetric(DvhMetricKind.DOSE_AT_CC, 0.1)
    assert DvhMetric.parse("D0.1cc").unit == "Gy"


def test_dose_axis_ends_above_the_highest_dose() -> None:
    axis = dose_axis_gy(70.03)
    assert axis[0] == 0 and axis[-1] > 70.03
    assert np.diff(axis) == pytest.approx(0.1)


def test_benchmark_scores_of_a_known_error(sample: Patient) -> None:
    from dataclasses import replace

    dose = blurred_target_dose(sample)
    patient = replace(sample, plans=(replace(sample.plan, dose=dose),))
    assert score_patient(patient, dose.values).dose_error_gy == 0
    mask = patient.dose_mask.mask
    shifted = np.where(mask, dose.values + 2.0, 0)
    score = score_patient(patient, shifted)
    assert score.dose_error_gy == pytest.approx(2.0, abs=1e-5)
    # outside the mask nothing was added, so organs that reach out of it move by less
    assert score.dvh_errors_gy["PTV_7000", "D95"] == pytest.approx(2.0, abs=1e-4)
    assert score.dvh_errors_gy["Parotid_L", "mean"] <= 2.0 + 1e-4
    stray = dose.values.copy()
    stray[np.unravel_index(np.argmin(mask), mask.shape)] = 50.0
    assert score_patient(patient, stray).dose_error_gy == pytest.approx(50 / mask.sum(), rel=1e-5)


def test_benchmark_metrics_follow_their_definition(sample: Patient) -> None:
    dose = blurred_target_dose(sample).values
    metrics = dvh_metrics_gy(sample, dose)
    inside = np.sort(dose[sample.structures["PTV_7000"].mask])
    assert metrics["PTV_7000", "D99"] == pytest.approx(np.percentile(inside, 1))
    assert metrics["PTV_7000", "D99"] < metrics["PTV_7000", "D95"] < metrics["PTV_7000", "D1"]
    cord = np.sort(dose[sample.structures["SpinalCord"].mask])
    hottest = max(1, round(100 / sample.ct.grid.voxel_volume_mm3))
    expected = np.percentile(cord, 100 - 100 * hottest / cord.size)
    assert metrics["SpinalCord", "D0.1cc"] == pytest.approx(expected)


def test_cohort_scores_pool_cells_not_patients() -> None:
    scores = [PatientScore(1.0, {("a", "mean"): 1.0}), PatientScore(3.0, {("a", "mean"): 4.0, ("b", "mean"): 4.0})]
    assert cohort_scores_gy(scores) == pytest.approx((2.0, 3.0))


def test_a_patient_without_reference_cannot_be_scored(sample: Patient) -> None:
    with pytest.raises(PatientDataError, match="no reference dose"):
        score_patient(sample, np.zeros(sample.ct.grid.shape))
