"""The report after observing: measurements beside what was expected, the chart from before, the key of its lines."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from RTDigitalTwinLib.calibration.linear import GlobalScale
from RTDigitalTwinLib.patient.observation import MetricObservation, Moment, NoiseModel
from RTDigitalTwinLib.report.dvh_panels import findings_dvh_figure
from RTDigitalTwinLib.report.observing import ObservedRow, Observing, observing_of
from RTDigitalTwinLib.report.provenance import collect_provenance
from RTDigitalTwinLib.report.report import render_report
from RTDigitalTwinLib.report.tables import Findings, ordered_structures
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.twin import Twin
from RTDigitalTwinLib.words import counted
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient
from Testing.test_observe import weights  # noqa: F401 (a fixture)

ROWS = (
    ObservedRow("PTV_7000 mean", "fraction 1", "log <1>", "Gy", 72.46, 71.04, 72.44, 3.0, "absorbed"),
    ObservedRow("Parotid_L mean", "fractions 1 to 3", "log", "Gy", 60.0, 5.0, 5.1, 4.0, "outlier, left out"),
)


@pytest.fixture(scope="module")
def before() -> DoseEnsemble:
    return replace(hand_made_ensemble(small_patient()), calibration=hand_made_calibration())


@pytest.fixture(scope="module")
def findings(before: DoseEnsemble) -> Findings:
    after = replace(before, deterministic_gy=1.02 * before.deterministic_gy, absorbed=1)
    return Findings(after, observing=Observing(before, "global scale", True, ROWS))


def text_of(findings: Findings) -> str:
    html = render_report(findings, {}, collect_provenance(findings.prediction, "cpu"))
    body = re.sub(r"<svg.*?</svg>|<style.*?</style>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_report_tells_before_and_after(findings: Findings, before: DoseEnsemble) -> None:
    text = text_of(findings)
    assert "Dose prediction after observing with calibrated bands" in text
    assert "Absorbed by global scale." in text and "they stand in for measurements" in text
    assert "PTV_7000 mean (Gy) fraction 1 log &lt;1&gt; 72.5 71.0 72.4 ± 3.0 absorbed" in text
    assert "60.0 5.0 5.1 ± 4.0 outlier, left out" in text
    assert "the dose of the plan, not what was delivered" in text
    assert "The factors are from before the observations." in text
    was, now = (float(e.metric("PTV_7000", "mean").mean) for e in (before, findings.prediction))
    low, high = findings.prediction.metric("PTV_7000", "mean").band(0.95)
    assert f"mean (Gy) {was:.1f} {now:.1f} {float(low):.1f} to {float(high):.1f}" in text
    assert "before observing" in text


def test_a_report_without_observations_says_nothing_of_them(before: DoseEnsemble) -> None:
    text = text_of(Findings(before))
    assert "observ" not in text.lower()


def test_where_all_were_outliers_nothing_was_absorbed(findings: Findings) -> None:
    observing = replace(findings.observing, method=None, simulated=False)  # type: ignore[type-var]
    text = text_of(replace(findings, observing=observing))
    assert "Nothing was absorbed" in text and "Absorbed by" not in text and "stand in" not in text


def test_before_and_after_have_a_panel_a_structure(findings: Findings, before: DoseEnsemble) -> None:
    figure = findings_dvh_figure(findings)
    structures = ordered_structures(before.patient)
    panels = figure.axes[: len(structures)]
    for number, (structure, axes) in enumerate(zip(structures, panels, strict=True), start=1):
        assert axes.get_title("left") == f"{number}  {structure.name}"
        lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
        assert set(lines) == {f"{of}-{number}" for of in ("mean", "before", "reference")}  # of no other structure
        for of, prediction in (("before", before), ("mean", findings.prediction)):
            curve = prediction.dvh(structure.name)
            x, y = np.asarray(lines[f"{of}-{number}"].get_data(), dtype=float)
            assert np.allclose(y, 100 * np.interp(x, curve.dose_gy, curve.mean))
        assert [band.get_gid() for band in axes.collections] == [f"band-{number}"]  # after; before has none
        assert lines[f"before-{number}"].get_linewidth() < lines[f"mean-{number}"].get_linewidth()
    key = [text.get_text().replace("\n", " ") for text in _legend(figure).get_texts()]
    assert key == ["mean of 8 samples, after observing", "before observing",
                   "95 % band, calibrated before 1 observation", "reference dose", "prescribed dose"]  # fmt: skip


def _legend(figure: Figure) -> Legend:
    """Below the panels, or in one that is empty."""
    found = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()) is not None)]
    assert len(found) == 1
    return found[0]


def test_the_key_of_a_prediction_alone_says_nothing_of_another() -> None:
    single = hand_made_ensemble(small_patient(with_dose=False), 0)
    plain = _legend(findings_dvh_figure(Findings(single)))
    assert [t.get_text() for t in plain.get_texts()] == ["predicted dose", "prescribed dose"]


def test_observing_is_told_as_it_was(weights) -> None:  # noqa: ANN001, F811
    twin = Twin(small_patient(), weights, "cpu")
    before = twin.predict(32)
    expected = float(before.metric("PTV_7000", "mean").mean)
    noise = NoiseModel(0.001, 0.001)
    good = MetricObservation("PTV_7000", "mean", (expected + 0.5) / 35, Moment(0.0, 1), noise, "made up", True)
    wild = MetricObservation("Parotid_L", "mean", 9.0, Moment(2.0, 3, 3), noise, "made up")
    update = twin.observe([good, wild], GlobalScale())
    after = twin.predict(32)
    told = observing_of(update, before, after)
    assert (told.method, told.simulated) == ("global scale", True) and told.before is before
    first, second = told.rows
    assert (first.when, first.outcome) == ("fraction 1", "absorbed")
    assert (second.when, second.outcome) == ("fractions 1 to 3", "outlier, left out")
    assert first.before == pytest.approx(expected, rel=1e-3)
    assert first.observed == pytest.approx(expected + 0.5)
    assert first.after == pytest.approx(float(after.metric("PTV_7000", "mean").mean), rel=1e-3)
    assert abs(first.after - first.observed) < abs(first.before - first.observed)


def test_numbers_in_sentences() -> None:
    assert counted(1, "patient") == "1 patient" and counted(0, "patient") == "0 patients"
    assert counted(2, "body", "bodies") == "2 bodies"
