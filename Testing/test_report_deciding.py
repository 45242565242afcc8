"""A ranking in the report, the chart and the scene: what is recommended, or what stands in the way."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from RTDigitalTwinLib.decision.actions import Scale, Situation
from RTDigitalTwinLib.decision.ranking import Ranking, rank
from RTDigitalTwinLib.report.deciding import NO_BAND, ORDER, Deciding
from RTDigitalTwinLib.report.outcomes import outcome_of
from RTDigitalTwinLib.report.provenance import collect_provenance
from RTDigitalTwinLib.report.report import render_report
from RTDigitalTwinLib.report.tables import Findings
from RTDigitalTwinLib.report.utility_chart import CONTROL, HEADING_ROWS, LAST, NO_BAND_LABEL, NONE, utility_figure
from Testing.test_ranking import Anew, Boost, Impossible, cord, offsets, protocol, uniform_ensemble


def ranked(at_most_gy: float) -> Ranking:
    limit = protocol(constraints=[cord(at_most=at_most_gy)])
    return rank(Situation(uniform_ensemble(offsets())), (Scale(1.05), Impossible(), Boost(1.1)), limit)


def findings_of(ranking: Ranking) -> Findings:
    deciding = Deciding(ranking)
    return Findings(deciding.shown.outcome.prediction, deciding=deciding)


@pytest.fixture(scope="module")
def recommending() -> Findings:
    return findings_of(ranked(72.0))


@pytest.fixture(scope="module")
def abstaining() -> Findings:
    return findings_of(ranked(2.0))


def text_of(findings: Findings) -> str:
    html = render_report(findings, {}, collect_provenance(findings.prediction, "cpu"))
    body = re.sub(r"<svg.*?</svg>|<style.*?</style>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_report_says_what_is_recommended_and_why(recommending: Findings) -> None:
    text = text_of(recommending)
    assert text.count("Recommended: scale by 1.05") == 1 and "2 of 3 actions are acceptable" in text
    assert "★ recommended" in text and "✗ not certified" in text and "80 % beam-consistent" in text
    assert "Not possible here: impossible. There is no structure Lens_L." in text
    assert recommending.deciding is not None and recommending.before is not None
    best = recommending.deciding.shown
    assert all(reason in text for reason in best.reasons)
    assert "SpinalCord D0.1cc ≤ 72 Gy" in text and "0 of 64" in text and "4.6 %" in text
    assert "Research use only. Not for clinical decisions." in text and "TG-166" in text
    assert "Everything below is of the dose with action scale by 1.05" in text and "if nothing is changed" in text
    before, now = (float(e.metric("PTV_7000", "mean").mean) for e in (recommending.before, recommending.prediction))
    assert f"mean (Gy) {before:.1f} {now:.1f}" in text and "Weights are choices" in text
    assert "Against the reference dose" not in text and "observ" not in text


def test_the_report_says_of_which_dose_it_is(recommending: Findings, abstaining: Findings) -> None:
    html = render_report(recommending, {}, collect_provenance(recommending.prediction, "cpu"))
    assert "<title>Ranking of actions, dose with action scale by 1.05: small-patient</title>" in html
    assert recommending.dose_words == "predicted with action scale by 1.05, not delivered"
    assert abstaining.dose_words == "predicted if nothing is changed, not delivered"
    for findings in (recommending, abstaining):
        assert findings.dose_words in text_of(findings).partition("In short")[0]  # before the first number
    for heading in ("In short", "Dose-volume histograms", "Clinical goals", "Metrics", "Biology"):
        assert f"<h2>{heading}, with action scale by 1.05, predicted</h2>" in html, heading
    plain = Findings(recommending.prediction)
    assert plain.dose_words == "" and "delivered" not in text_of(plain)


def test_an_action_without_a_calibrated_band_says_so_at_its_row() -> None:
    limit = protocol(constraints=[cord(at_most=72.0)])
    ranking = rank(Situation(uniform_ensemble(offsets())), (Scale(1.05), Anew(1.05)), limit)
    rows = {row.action: row for row in Deciding(ranking).rows}
    assert {name: row.has_band for name, row in rows.items()} == {"scale by 1.05": True, "keep": True, "anew": False}
    # The same dose with a spread that is not widened has the smaller penalty.
    assert rows["anew"].penalty < rows["scale by 1.05"].penalty
    text = text_of(findings_of(ranking))
    assert text.count(NO_BAND) == 1 and f"anew {NO_BAND} ✗ not certified" in text
    labels = [label.get_text() for label in utility_figure(ranking).axes[0].get_yticklabels()]
    assert [NO_BAND_LABEL in label for label in labels] == [False, False, True]
    table = outcome_of(findings_of(ranking)).ranking
    assert table is not None and ORDER in table.description
    reasons = dict(zip(table.columns["Action"], table.columns["Reasons"], strict=True))
    assert {name: NO_BAND in words for name, words in reasons.items()} == {n: not r.has_band for n, r in rows.items()}


def test_the_report_says_what_stands_in_the_way(abstaining: Findings) -> None:
    text = text_of(abstaining)
    assert "No recommendation: none of 3 actions is acceptable." in text and "What stands in the way" in text
    assert abstaining.deciding is not None
    assert all(line in text for line in abstaining.deciding.ranking.obstacles)
    assert "Everything below is of the dose as planned" in text and abstaining.before is None
    assert "★" not in text and "with action" not in text


def test_a_plain_report_says_nothing_of_actions(recommending: Findings) -> None:
    text = text_of(Findings(recommending.prediction))
    assert "What to do next" not in text and "if nothing is changed" not in text and "Utility" not in text


def test_the_chart_shows_what_makes_up_each_utility(recommending: Findings) -> None:
    assert recommending.deciding is not None
    ranking = recommending.deciding.ranking
    parts, gains = utility_figure(ranking).axes
    bars = [patch for patch in parts.patches if isinstance(patch, Rectangle)]
    control = [bar.get_width() for bar in bars if bar.get_facecolor()[:3] == to_rgb(CONTROL)]
    wanted = [sum(t.contribution for t in a.utility.terms if t.term.sign > 0) for a in ranking.assessed]
    assert control == pytest.approx(wanted)
    dots = [float(line.get_xdata()[0]) for line in parts.lines if line.get_marker() == "o"]  # type: ignore[index, arg-type]
    assert dots == pytest.approx([a.utility.value for a in ranking.assessed])
    assert [label.get_text() for label in parts.get_yticklabels()] == ["1  scale by 1.05", "2  keep", "3  boost"]
    crossing = [line for line in gains.lines if line.get_transform() is gains.transData]
    shown = [tuple(line.get_xdata()) for line in crossing if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert shown == [pytest.approx((a.gain.low, a.gain.high)) for a in ranking.assessed if a.gain]


def test_the_chart_says_what_is_not_certified(recommending: Findings, abstaining: Findings) -> None:
    for findings, words in ((recommending, LAST), (abstaining, NONE)):
        assert findings.deciding is not None
        figure = utility_figure(findings.deciding.ranking)
        parts = figure.axes[0]
        certified = sum(a.is_acceptable for a in findings.deciding.ranking.assessed)
        assert [text.get_text() for text in parts.texts] == [words]
        rows = parts.get_yticks()
        assert rows[certified] - certified == pytest.approx(HEADING_ROWS)
        assert list(rows[:certified]) == list(range(certified))
        key = [text.get_text() for text in figure.legends[0].get_texts()]
        assert key[:2] == ["utility", "utility, not certified"]


def test_a_long_name_has_two_lines() -> None:
    limit = protocol(constraints=[cord(at_most=72.0)])
    name = "spare Glnd_Submand_L by at most 10 % in its upper half"
    ranking = rank(Situation(uniform_ensemble(offsets())), (Scale(1.05), Boost(1.1, name)), limit)
    labels = [label.get_text() for label in utility_figure(ranking).axes[0].get_yticklabels()]
    assert any(" ".join(label.split()).endswith(name) and "\n" in label for label in labels)


def test_the_ranking_is_plain_values(recommending: Findings, abstaining: Findings) -> None:
    for findings, best in ((recommending, "scale by 1.05"), (abstaining, None)):
        assert findings.deciding is not None
        told = json.loads(json.dumps(findings.deciding.as_dict(), allow_nan=False))
        assert told["recommended"] == best and len(told["actions"]) == 3 and told["refused"][0]["name"] == "impossible"
        assert {"utility", "terms", "constraints", "goals", "reasons", "changes"} <= told["actions"][0].keys()
        assert told["actions"][0]["goals"] and any(
            goal["probability_met"] is not None for goal in told["actions"][0]["goals"]
        )


def test_the_scene_keeps_ranking_and_doses(recommending: Findings, abstaining: Findings, tmp_path: Path) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed: NOTHING of the scene was tested")
    from RTDigitalTwinLib.scene.bundle import load_mrb, save_mrb
    from RTDigitalTwinLib.scene.nodes import show_prediction
    from RTDigitalTwinLib.scene.session import headless_session
    from RTDigitalTwinLib.scene.table_nodes import RANKING_ATTRIBUTE

    with headless_session() as session:
        nodes = show_prediction(
            session.scene, recommending.prediction.patient, recommending.prediction, findings=recommending
        )
        assert nodes.before is not None and nodes.change is not None and nodes.ranking is not None
        save_mrb(session.scene, tmp_path / "demo.mrb")
    with headless_session() as session:
        scene = load_mrb(tmp_path / "demo.mrb")
        assert scene is session.scene
        best, kept = (
            scene.GetFirstNodeByName(name) for name in ("Dose with action scale by 1.05", "Dose if nothing is changed")
        )
        assert best.GetAttribute("DicomRtImport.DoseVolume") == kept.GetAttribute("DicomRtImport.DoseVolume") == "1"
        table = scene.GetFirstNodeByName("Ranking of actions")
        assert table.GetAttribute(RANKING_ATTRIBUTE) == "1"
        assert table.GetNodeReference("doseVolumeRef") is best
        assert "Recommended: scale by 1.05" in table.GetDescription() and "TG-166" in table.GetDescription()
        column = table.GetTable().GetColumnByName("Action")
        assert [column.GetValue(k) for k in range(3)] == ["scale by 1.05", "keep", "boost"]
        outcomes = table.GetTable().GetColumnByName("Outcome")
        assert outcomes.GetValue(0) == "★ recommended" and outcomes.GetValue(2) == "✗ not certified"
        chart = scene.GetNthNodeByClass(0, "vtkMRMLPlotChartNode")
        assert "dash-dotted: if nothing is changed" in chart.GetTitle()
    with headless_session() as session:
        nodes = show_prediction(
            session.scene, abstaining.prediction.patient, abstaining.prediction, findings=abstaining
        )
        assert nodes.mean.GetName() == "Predicted dose" and nodes.before is None
        assert nodes.ranking is not None and "No recommendation" in nodes.ranking.GetDescription()
