"""DVHs, their metrics and the benchmark's scores, against exact values."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, DvhMetricKind, StructureDose, dose_axis_gy
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of, structure_doses_of
from RTDigitalTwinLib.dosimetry.openkbp_score import PatientScore, cohort_scores_gy, dvh_metrics_gy, score_patient
from RTDigitalTwinLib.errors import GeometryError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from Testing.builders import axial_grid, ball
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
    """100 voxels, each with a range of 1 Gy, from 0 to 100 Gy: every percent of the volume is a Gy."""
    points = steps(*(np.arange(100) + 0.5))
    dose = replace(points, half_widths_gy=np.full((1, 100), 0.5, np.float32))
    for volume_percent, expected_gy in ((2, 98.0), (50, 50.0), (95, 5.0), (99, 1.0)):
        assert dose.metric(DvhMetric.parse(f"D{volume_percent}"))[0] == pytest.approx(expected_gy, abs=2e-4)
    assert dose.metric(DvhMetric.parse("D0.1cc"))[0] == pytest.approx(98.0, abs=1e-4)  # 0.1 of 5 cc is 2 %
    assert dose.metric(DvhMetric.parse("V20"))[0] == pytest.approx(80.0, abs=2e-4)
    assert dose.metric(DvhMetric.parse("mean"))[0] == pytest.approx(50.0)


def test_voxels_without_a_range_are_steps() -> None:
    dose = steps(10, 20, 30, 40)
    assert dose.doses_at_volume_gy([0, 0.25, 0.26, 0.5, 0.75, 1])[0] == pytest.approx(
        [40, 40, 30, 30, 20, 10], abs=2e-4
    )
    assert (dose.min_gy()[0], dose.max_gy()[0]) == (10, 40)
    assert dose.differential([0, 15, 35, 50])[0] == pytest.approx([0.25, 0.5, 0.25])


def test_a_uniform_dose_has_every_metric_at_its_value() -> None:
    dose = steps(50, 50, 50)
    values = {
        text: dose.metric(DvhMetric.parse(text))[0] for text in ("D2", "D50", "D98", "D0.03cc", "mean", "min", "max")
    }
    assert values == pytest.approx(dict.fromkeys(values, 50.0), abs=1e-6)
    assert dose.metric(DvhMetric.parse("V50"))[0] == 100
    assert dose.metric(DvhMetric.parse("V50.1"))[0] == 0


def test_zero_dose_and_a_single_voxel() -> None:
    dose = steps(0.0)
    assert dose.volume_at_dose_ratio([0, 0.1])[0] == pytest.approx([1, 0])
    assert [dose.metric(DvhMetric.parse(text))[0] for text in ("D95", "mean", "max", "V20[cc]")] == [0, 0, 0, 0]
    assert steps(30.0).metric(DvhMetric.parse("V20Gy[cc]"))[0] == pytest.approx(0.05)
    assert steps(30.0).metric(DvhMetric.parse("D1cc"))[0] == pytest.approx(30.0)  # more than there is: all of it


def test_ranges_are_integrated_exactly() -> None:
    """The mean of d^4 for a dose spread evenly from 10 to 30 Gy is (30^5 - 10^5) / (5 * 20)."""
    dose = replace(steps(20.0), half_widths_gy=np.array([[10.0]], np.float32))
    assert dose.average(lambda gy: gy**4)[0] == pytest.approx((30**5 - 10**5) / 100)


def test_a_dose_that_does_not_cover_is_refused() -> None:
    dose = replace(steps(10, 20), covered_ratio=0.9, name="Larynx")
    with pytest.raises(PatientDataError, match=r"Larynx: The dose covers 90.0 % of the structure"):
        dose.metric(DvhMetric.parse("mean"))
    assert replace(dose, covered_ratio=0.995).mean_gy()[0] == pytest.approx(15)


def uniform_dose(gy: float = 50.0, quantity: Quantity = Quantity.DOSE_GY) -> tuple[Volume, Structure]:
    grid = axial_grid()
    inside = Structure.from_array("Larynx", ball(grid, (0, 0, 0), (20, 20, 20)), grid)
    return Volume(np.full(grid.shape, gy, np.float32), grid, quantity), inside


def test_coverage_counts_what_the_dose_grid_leaves_out() -> None:
    dose, larynx = uniform_dose()
    cut = dose.values.copy()
    cut[: larynx.grid.shape[0] // 2] = np.nan
    found = structure_dose_of(replace(dose, values=cut), larynx)
    assert found.covered_ratio == pytest.approx(0.5, abs=0.01)
    assert found.volume_cc == pytest.approx(larynx.volume_cc)
    with pytest.raises(PatientDataError, match="covers 50"):
        found.mean_gy()
    nowhere = structure_dose_of(replace(dose, values=np.full_like(cut, np.nan)), larynx)
    with pytest.raises(PatientDataError, match="covers 0"):
        nowhere.max_gy()
    for text in ("D0.1cc", "V20[cc]", "D95", "mean"):
        with pytest.raises(PatientDataError, match="covers 0"):
            nowhere.metric(DvhMetric.parse(text))


def test_what_is_no_dose_is_refused() -> None:
    dose, larynx = uniform_dose(quantity=Quantity.HU)
    with pytest.raises(PatientDataError, match="Larynx: The volume holds HU, not a dose in Gy"):
        structure_dose_of(dose, larynx)
    dose, larynx = uniform_dose(-1.0)
    with pytest.raises(PatientDataError, match="negative"):
        structure_dose_of(dose, larynx)
    dose, larynx = uniform_dose()
    other = replace(larynx.grid, origin_mm=(0.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="different grids"):
        structure_dose_of(dose, replace(larynx, grid=other))


def test_several_doses_are_samples_of_one(sample: Patient) -> None:
    dose = blurred_target_dose(sample)
    warmer = replace(dose, values=dose.values * 1.1)
    cord = sample.structures["SpinalCord"]
    both = structure_doses_of([dose, warmer], cord)
    for row, single in enumerate((dose, warmer)):
        alone = structure_dose_of(single, cord)
        for text in ("D0.1cc", "D50", "mean", "min", "max", "V20", "V20[cc]"):
            metric = DvhMetric.parse(text)
            assert both.metric(metric)[row] == pytest.approx(alone.metric(metric)[0], rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(sample: Patient) -> None:
    dose, cord = blurred_target_dose(sample), sample.structures["SpinalCord"]
    for text in ("D0.1cc", "D50", "mean", "V20"):
        metric = DvhMetric.parse(text)
        on_gpu = structure_dose_of(dose, cord, "cuda").metric(metric)
        assert on_gpu == pytest.approx(structure_dose_of(dose, cord).metric(metric), rel=1e-5)


def test_samples_are_independent_rows() -> None:
    many = StructureDose(np.array([[10, 20], [60, 40]], np.float32), np.ones(2, np.float32), 0.1)
    assert many.mean_gy() == pytest.approx([15, 50])
    assert many.volume_at_dose_ratio([15, 50]) == pytest.approx(np.array([[0.5, 0.0], [1.0, 0.5]]))


@pytest.mark.parametrize("text", ["D", "X95", "D101", "V20cc", "D-5", "95", "V20%", "D95[cc]", " ", "median"])
def test_unknown_metrics_are_refused(text: str) -> None:
    with pytest.raises(RTDigitalTwinError, match=re.escape(text)):
        DvhMetric.parse(text)


def test_metrics_know_their_units() -> None:
    assert DvhMetric.parse("V20").unit == "%"
    assert DvhMetric.parse("D0.1cc") == DvhMetric(DvhMetricKind.DOSE_AT_CC, 0.1)
    assert DvhMetric.parse("D0.1cc").unit == "Gy"
    assert DvhMetric.parse("V20[cc]").unit == "cc"


def test_metrics_are_written_as_they_are_read() -> None:
    for text in ("D95", "D0.1cc", "V20", "V20[cc]", "mean", "min", "max"):
        assert str(DvhMetric.parse(text)) == text
    assert str(DvhMetric.parse("D95%")) == "D95" and str(DvhMetric.parse("V20Gy[%]")) == "V20"


def test_dose_axis_ends_above_the_highest_dose() -> None:
    axis = dose_axis_gy(70.03)
    assert axis[0] == 0 and axis[-1] > 70.03
    assert np.diff(axis) == pytest.approx(0.1)


def test_benchmark_scores_of_a_known_error(sample: Patient) -> None:
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


def test_benchmark_scores_are_of_what_is_known(sample: Patient) -> None:
    dose = blurred_target_dose(sample)
    shifted = np.where(sample.dose_mask.mask, dose.values + 2.0, 0)
    lowest = sample.structures["Parotid_L"].box[0].start  # the dose is known from the parotid upwards
    known = np.array(dose.values)
    known[:lowest] = np.nan
    plan = replace(sample.plan, dose=replace(dose, values=known))
    score = score_patient(replace(sample, plans=(plan,)), shifted)
    assert score.dose_error_gy == pytest.approx(2.0, abs=1e-5)
    mask = sample.dose_mask.mask
    assert score.known_ratio == pytest.approx(mask[lowest:].sum() / mask.sum()) and 0.05 < score.known_ratio < 0.95
    judged = {name for name, _ in score.dvh_errors_gy}
    assert "Parotid_L" in judged and not {"SpinalCord", "PTV_7000"} & judged
    nothing = replace(sample.plan, dose=replace(dose, values=np.full_like(known, np.nan)))
    with pytest.raises(PatientDataError, match="known in no structure"):
        score_patient(replace(sample, plans=(nothing,)), shifted)


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
