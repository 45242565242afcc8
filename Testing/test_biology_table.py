"""Biology of a prediction with the doubt of doses and parameters; simultaneous bands and bands that say nothing."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.cli_terminal import Band, print_metrics
from RTDigitalTwinLib.model.biology import NOTICE, load_biology, models_for
from RTDigitalTwinLib.report.biology_table import BiologyTable, PredictedBiologyRow, biology_of_prediction
from RTDigitalTwinLib.report.goal_table import UNINFORMATIVE_RULE
from RTDigitalTwinLib.report.tables import Findings, MetricRow, write_biology_csv, write_dvh_csv
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient
from Testing.test_report import report_of, text_of

SAMPLES = 24


@pytest.fixture(scope="module")
def ensemble() -> DoseEnsemble:
    return hand_made_ensemble(small_patient(), SAMPLES)


@pytest.fixture(scope="module")
def calibrated(ensemble: DoseEnsemble) -> DoseEnsemble:
    return replace(ensemble, calibration=hand_made_calibration(SAMPLES))


def row_of(table: BiologyTable, structure: str) -> PredictedBiologyRow:
    (found,) = [row for row in table.rows if row.structure == structure]
    return found


def test_every_modelled_structure_has_its_row(ensemble: DoseEnsemble) -> None:
    table = biology_of_prediction(ensemble)
    assert [row.structure for row in table.rows] == ["PTV_7000", "SpinalCord", "Parotid_R", "Parotid_L"]
    assert [row.effect for row in table.rows] == ["TCP", "NTCP", "NTCP", "NTCP"]
    assert table.notes == (NOTICE,)
    for row in table.rows:
        assert row.low is not None and row.high is not None and 0 <= row.low <= row.high <= 1
        assert row.calibrated is False and row.citation and row.reference is not None


def test_without_calibration_the_band_is_that_of_the_samples(ensemble: DoseEnsemble) -> None:
    """The parotid's model has no published spread: the quantiles are those of the samples' own probabilities."""
    (model,) = models_for(load_biology(), "Parotid_L")
    each = model.of(ensemble.structure_dose("Parotid_L"), 35)
    row = row_of(biology_of_prediction(ensemble), "Parotid_L")
    assert row.probability == pytest.approx(each.mean()) and not row.with_parameters
    drawn = np.resize(each, 17 * SAMPLES)  # 408 draws: every sample as often
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_a_calibrated_mean_dose_gives_calibrated_bands(calibrated: DoseEnsemble) -> None:
    """NTCP of the parotid rises with its mean dose: its band is that of the calibrated samples of the mean."""
    row = row_of(biology_of_prediction(calibrated), "Parotid_L")
    (model,) = models_for(load_biology(), "Parotid_L")
    moved = model.probability(calibrated.metric("Parotid_L", "mean").calibrated_samples())
    assert row.calibrated is True
    drawn = np.resize(moved, 17 * SAMPLES)
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=1e-6)


def test_other_equivalent_doses_are_widened_and_marked(ensemble: DoseEnsemble, calibrated: DoseEnsemble) -> None:
    for structure in ("SpinalCord", "PTV_7000"):
        raw, wide = (row_of(biology_of_prediction(e), structure) for e in (ensemble, calibrated))
        assert None not in (raw.low, raw.high, wide.low, wide.high)
        assert wide.high - wide.low > raw.high - raw.low  # type: ignore[operator]
        assert wide.calibrated is False


def test_published_parameters_widen_the_band(ensemble: DoseEnsemble) -> None:
    (cord,) = models_for(load_biology(), "SpinalCord")
    hot = replace(cord, d50_gy=20.0)  # where its probability is neither 0 nor 1
    both, doses_alone = (
        row_of(biology_of_prediction(ensemble, models=(model,)), "SpinalCord") for model in (hot, replace(hot, sd={}))
    )
    assert both.with_parameters and not doses_alone.with_parameters
    assert both.probability == doses_alone.probability
    assert None not in (both.low, both.high, doses_alone.low, doses_alone.high)
    assert both.high - both.low > doses_alone.high - doses_alone.low  # type: ignore[operator]


def test_a_deterministic_prediction_has_the_parameters_alone() -> None:
    table = biology_of_prediction(hand_made_ensemble(small_patient(), 0))
    cord, parotid = row_of(table, "SpinalCord"), row_of(table, "Parotid_L")
    assert cord.low is not None and parotid.low is None and parotid.high is None
    assert {row.calibrated for row in table.rows} == {None}


def test_the_same_seed_gives_the_same(ensemble: DoseEnsemble) -> None:
    assert biology_of_prediction(ensemble, seed=3) == biology_of_prediction(ensemble, seed=3)


def test_biology_in_report_and_csv(tmp_path: Path, calibrated: DoseEnsemble) -> None:
    text = text_of(report_of(calibrated))
    assert NOTICE.split(".")[0] in text and "NTCP: cervical myelopathy" in text
    assert "spread of this equivalent dose was not measured" in text
    row = row_of(Findings(calibrated).biology, "Parotid_L")
    assert row.low is not None and row.high is not None
    assert f"{100 * row.probability:.1f} {100 * row.low:.1f} to {100 * row.high:.1f}" in text
    write_biology_csv(tmp_path / "biology.csv", Findings(calibrated).biology)
    with (tmp_path / "biology.csv").open(newline="") as file:
        rows = {line["structure"]: line for line in csv.DictReader(file)}
    assert rows["Parotid_L"]["calibrated"] == "yes" and rows["SpinalCord"]["calibrated"] == "no"


# Bands that hold whole curves, and bands that say nothing


def test_the_dvh_file_has_both_bands(tmp_path: Path, calibrated: DoseEnsemble) -> None:
    write_dvh_csv(tmp_path / "dvh.csv", calibrated)
    with (tmp_path / "dvh.csv").open(newline="") as file:
        rows = [line for line in csv.DictReader(file) if line["structure"] == "Parotid_L"]
    low, high = calibrated.dvh("Parotid_L").band(0.95, simultaneous=True)
    assert np.array([float(line["whole_low"]) for line in rows]) == pytest.approx(low, abs=1e-6)
    assert np.array([float(line["whole_high"]) for line in rows]) == pytest.approx(high, abs=1e-6)
    assert all(float(r["whole_low"]) <= float(r["volume_low"]) + 1e-6 for r in rows)
    assert all(float(r["whole_high"]) >= float(r["volume_high"]) - 1e-6 for r in rows)


def test_simultaneous_bands_of_predictions_hold_whole_curves() -> None:
    """39 samples and one more, of the same made-up distribution: nine in ten lie wholly inside their 90 % band."""
    patient = small_patient()
    inside = 0
    trials = 60
    for trial in range(trials):
        drawn = hand_made_ensemble(patient, 40, seed=100 + trial)
        known = drawn.structure_dose("Parotid_L").sample(39)
        others = replace(drawn, deviations_gy=drawn.deviations_gy[:39])
        curves = others.dvh("Parotid_L")
        low, high = curves.band(0.9, simultaneous=True)
        curve = known.volume_at_dose_ratio(curves.dose_gy)[0]
        inside += bool(((low <= curve + 0.005) & (curve - 0.005 <= high)).all())
    assert inside / trials == pytest.approx(0.9, abs=0.12)  # three standard errors


@pytest.mark.parametrize(
    ("unit", "low", "high", "informative"),
    [("%", 0.0, 100.0, False), ("%", 39.0, 100.0, False), ("%", 25.0, 75.0, False), ("%", 25.1, 75.0, True),
     ("Gy", 0.0, 100.0, True)],
)  # fmt: skip
def test_a_band_of_half_of_all_volumes_is_not_told(unit: str, low: float, high: float, informative: bool) -> None:
    row = MetricRow("PTV_7000", "V70", unit, 50.0, low, high, 60.0)
    assert row.is_informative is informative
    assert replace(row, low=None, high=None).is_informative is None


def test_the_report_says_which_bands_say_nothing(ensemble: DoseEnsemble) -> None:
    findings = Findings(ensemble)
    wide = replace(findings.rows[0], metric="V70", unit="%", mean=50.0, low=0.0, high=100.0, reference=20.0)
    findings.__dict__["rows"] = (wide, *findings.rows[1:])  # as if the samples had said so
    from RTDigitalTwinLib.report.report import render_report
    from Testing.test_report import provenance_of

    text = text_of(render_report(findings, {}, provenance_of(ensemble)))
    assert "V70 (%) 50.0 not informative 20.0" in text and "counts neither as holding the reference" in text


def test_the_terminal_marks_what_is_outside_and_what_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    numbers = {"structure": "PTV_7000", "unit": "Gy", "mean": 50.0, "low": 40.0, "high": 60.0}
    rows = [
        {**numbers, "metric": "D95", "reference": 55.0, "covers_reference": True, "informative": True},
        {**numbers, "metric": "D1", "reference": 65.0, "covers_reference": False, "informative": True},
        {**numbers, "metric": "V70", "unit": "%", "low": 0.0, "high": 100.0, "reference": 20.0,
         "covers_reference": True, "informative": False},
    ]  # fmt: skip
    print_metrics("pt_1", rows, {name: name for name in ("mean", "low", "high", "reference")})
    printed = capsys.readouterr().out
    lines = {cells[1]: cells for cells in map(str.split, printed.replace("│", " ").splitlines()) if len(cells) > 1}
    assert lines["D95"][-2:] == ["55.0", "Gy"] and lines["D1"][-3:] == ["65.0", "Gy", "outside"]
    assert lines["V70"][4:] == ["–", "–", "20.0", "%"]
    assert f"–: {UNINFORMATIVE_RULE}." in " ".join(printed.split()) and "50 percentage points" in UNINFORMATIVE_RULE


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_shows_bands_beside_a_number_or_below_it(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    row = {
        "structure": "Bone_Mandible", "metric": "D0.1cc", "unit": "Gy", "before": 68.71, "low": 64.3, "high": 73.2,
        "told": True, "after": 62.0, "low_after": None, "high_after": None, "told_after": None,
    }  # fmt: skip
    bands = {"before": Band("low", "high", "told"), "after": Band("low_after", "high_after", "told_after")}
    print_metrics("pt_1", [row, row | {"told": False, "metric": "V70"}], {"before": "before", "after": "after"}, bands)
    printed = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").split()) for line in printed.splitlines()]
    if width == 160:
        assert "Bone_Mandible D0.1cc 68.7 Gy (64.3 to 73.2) 62.0 Gy" in lines
        assert "Bone_Mandible V70 68.7 Gy (–) 62.0 Gy" in lines
    else:
        at = lines.index("Bone_Mandible D0.1cc 68.7 Gy 62.0 Gy")
        assert lines[at + 1] == "(64.3 to 73.2)"
    assert "percentage points wide" in printed
