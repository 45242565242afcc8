"""The report: its numbers are the ensemble's, its file stands alone, and it claims no more than it knows."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.dosimetry.goals import likely_status
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.dosimetry.openkbp_score import score_patient
from RTDigitalTwinLib.model.crop import crop_around
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.naming import DOSE_MASK
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.report.charts import (
    DARK_PAPER,
    LEAST_CONTRAST,
    PAPER,
    figure_svg,
    readable_colour,
)
from RTDigitalTwinLib.report.dvh_panels import findings_dvh_figure
from RTDigitalTwinLib.report.provenance import Provenance, collect_provenance
from RTDigitalTwinLib.report.report import render_report, write_report
from RTDigitalTwinLib.report.tables import (
    Findings,
    metric_rows,
    ordered_structures,
    write_dvh_csv,
    write_goals_csv,
    write_metrics_csv,
)
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.versions import LIBRARIES
from Testing.builders import hand_made_calibration

SIDE = 28
SAMPLES = 12
HOSTILE = "<script>alert('$x$')</script>&\"=1"
PNG = b"\x89PNG\r\n\x1a\n" + b"any content"
CSV_TOLERANCE = 1e-6  # six decimals are written
VOID = {"meta", "img", "br", "path", "use", "rect"}


def build_patient(*, reference: bool = True) -> Patient:
    """Blocks in a cube of 4 mm voxels; the reference falls off from the target by 2 Gy a voxel."""
    grid = Grid((SIDE,) * 3, (4.0, 4.0, 4.0))
    z, y, x = np.indices(grid.shape)

    def block(name: str, kind: StructureKind, *centre_and_half: int) -> Structure:
        cz, cy, cx, half = centre_and_half
        inside = (abs(z - cz) <= half) & (abs(y - cy) <= half) & (abs(x - cx) <= half)
        return Structure.from_array(name, inside.astype(np.float32), grid, kind)

    structures = [
        block("Parotid_L", StructureKind.ORGAN, 18, 12, 21, 2),
        block("PTV_5600", StructureKind.TARGET, 8, 14, 14, 3),
        block("PTV_7000", StructureKind.TARGET, 16, 14, 12, 3),
        block(HOSTILE, StructureKind.ORGAN, 12, 21, 14, 2),
    ]
    mask = block(DOSE_MASK, StructureKind.REGION, 14, 14, 14, 11)
    distance = np.maximum(np.maximum(abs(z - 16), abs(y - 14)), abs(x - 12)) - 3
    gy = np.where(mask.mask, np.clip(71 - 2.0 * distance, 0, 72), 0).astype(np.float32)
    prescription = Prescription((("PTV_5600", 56.0), ("PTV_7000", 70.0)), 35)
    plan = Plan(prescription, (0.0, 40.0), Volume(gy, grid, Quantity.DOSE_GY) if reference else None, label="Test plan")
    ct = Image("CT", Volume(np.zeros(grid.shape, np.int16), grid, Quantity.HU))
    return Patient("pt_1", (ct,), {s.name: s for s in structures}, mask, (plan,), ("Larynx is <absent>.",))


def build_ensemble(patient: Patient, samples: int = SAMPLES, seed: int = 5) -> DoseEnsemble:
    """The reference and 1 Gy more; every sample shifted as a whole and a little voxel by voxel."""
    crop = crop_around(patient)
    known = build_patient().plan.dose
    assert known is not None
    deterministic = known.values.reshape(-1)[crop.mask_indices].astype(np.float32) + 1
    random = np.random.default_rng(seed)
    shifts = random.normal(0, 1.5, (samples, 1)) + random.normal(0, 0.3, (samples, deterministic.size))
    return DoseEnsemble(patient, crop, deterministic, shifts.astype(np.float16), seed if samples else None, "ab12" * 16)


@pytest.fixture(scope="module")
def patient() -> Patient:
    return build_patient()


@pytest.fixture(scope="module")
def ensemble(patient: Patient) -> DoseEnsemble:
    return build_ensemble(patient)


@pytest.fixture(scope="module")
def deterministic(patient: Patient) -> DoseEnsemble:
    return build_ensemble(patient, samples=0)


def provenance_of(prediction: DoseEnsemble) -> Provenance:
    moment = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
    return collect_provenance(prediction, "cpu", {"read": 1.25, "predict": 30.0}, moment)


def report_of(prediction: DoseEnsemble, **more: object) -> str:
    return render_report(Findings(prediction), {}, provenance_of(prediction), **more)  # type: ignore[arg-type]


def text_of(html: str) -> str:
    """What a reader sees, its white space collapsed."""
    body = re.sub(r"<svg.*?</svg>|<style.*?</style>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Balance(HTMLParser):
    """Collects elements that are not closed, or closed in the wrong order, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


def test_targets_come_first_from_the_highest_dose_down(patient: Patient) -> None:
    assert [s.name for s in ordered_structures(patient)] == ["PTV_7000", "PTV_5600", "Parotid_L", HOSTILE]


def test_each_structure_has_the_metrics_of_its_kind(ensemble: DoseEnsemble) -> None:
    found = [(row.structure, row.metric, row.unit) for row in metric_rows(ensemble)]
    gy = {"D99": "Gy", "D95": "Gy", "D1": "Gy", "D0.1cc": "Gy", "mean": "Gy"}
    expected = {
        "PTV_7000": ("D99", "D95", "D1", "mean", "V70"),
        "PTV_5600": ("D99", "D95", "D1", "mean", "V56"),
        "Parotid_L": ("D0.1cc", "mean", "V20", "V30"),
        HOSTILE: ("D0.1cc", "mean"),
    }
    assert found == [(name, metric, gy.get(metric, "%")) for name, metrics in expected.items() for metric in metrics]


def test_metrics_are_the_ensembles_and_the_references(patient: Patient, ensemble: DoseEnsemble) -> None:
    for row in metric_rows(ensemble, level=0.8):
        samples = ensemble.metric(row.structure, row.metric).samples
        assert row.mean == pytest.approx(samples.mean())
        assert (row.low, row.high) == pytest.approx((np.quantile(samples, 0.1), np.quantile(samples, 0.9)))
    ptv = next(row for row in metric_rows(ensemble) if (row.structure, row.metric) == ("PTV_7000", "mean"))
    assert patient.plan.dose is not None
    reference = structure_dose_of(patient.plan.dose, patient.structure("PTV_7000")).mean_gy()[0]
    # The block itself is the core of the fall-off, where the reference is clipped at 72 Gy.
    assert ptv.reference == pytest.approx(reference) and 71 <= reference <= 72
    assert ptv.difference == pytest.approx(ptv.mean - reference)


@pytest.mark.parametrize(("reference", "covered"), [(60.0, True), (59.0, True), (58.9, False), (None, None)])
def test_whether_the_band_holds_the_reference(
    ensemble: DoseEnsemble, reference: float | None, covered: bool | None
) -> None:
    row = replace(metric_rows(ensemble)[0], low=59.0, high=61.0, reference=reference)
    assert row.covers_reference is covered


def test_a_deterministic_prediction_claims_no_band(deterministic: DoseEnsemble) -> None:
    rows = metric_rows(deterministic)
    assert {(row.low, row.high, row.covers_reference) for row in rows} == {(None, None, None)}
    mean = next(row for row in rows if (row.structure, row.metric) == ("Parotid_L", "mean"))
    assert mean.mean == pytest.approx(deterministic.metric("Parotid_L", "mean").samples[0])


def test_without_a_reference_there_is_none() -> None:
    assert {row.reference for row in metric_rows(build_ensemble(build_patient(reference=False)))} == {None}


def test_without_a_plan_targets_have_no_volume_at_their_level(patient: Patient) -> None:
    rows = metric_rows(build_ensemble(replace(patient, plans=())))
    assert [row.metric for row in rows if row.structure == "PTV_7000"] == ["D99", "D95", "D1", "mean"]


def test_metrics_csv(tmp_path: Path, ensemble: DoseEnsemble, deterministic: DoseEnsemble) -> None:
    rows = metric_rows(ensemble)
    write_metrics_csv(tmp_path / "metrics.csv", rows)
    table = read_csv(tmp_path / "metrics.csv")
    assert list(table[0]) == ["structure", "metric", "unit", "mean", "low", "high", "reference"]
    for line, row in zip(table, rows, strict=True):
        assert (line["structure"], line["metric"], line["unit"]) == (row.structure, row.metric, row.unit)
        for column in ("mean", "low", "high", "reference"):
            assert float(line[column]) == pytest.approx(getattr(row, column), abs=CSV_TOLERANCE)
    write_metrics_csv(tmp_path / "single.csv", metric_rows(deterministic))
    assert {(line["low"], line["high"]) for line in read_csv(tmp_path / "single.csv")} == {("", "")}


def test_dvh_csv(tmp_path: Path, ensemble: DoseEnsemble, deterministic: DoseEnsemble) -> None:
    write_dvh_csv(tmp_path / "dvh.csv", ensemble)
    table = read_csv(tmp_path / "dvh.csv")
    columns = ["structure", "dose_gy", "volume_mean", "volume_low", "volume_high", "whole_low", "whole_high"]
    assert list(table[0]) == columns
    assert {line["structure"] for line in table} == set(ensemble.patient.structures)
    lines = [line for line in table if line["structure"] == "Parotid_L"]
    curves = ensemble.dvh("Parotid_L")
    low, high = curves.band(0.95)
    for column, values in (("dose_gy", curves.dose_gy), ("volume_mean", curves.mean), ("volume_low", low),
                           ("volume_high", high)):  # fmt: skip
        assert np.abs(np.array([float(line[column]) for line in lines]) - values).max() <= CSV_TOLERANCE
    assert {(line["whole_low"], line["whole_high"]) for line in table} == {("", "")}  # too few samples
    write_dvh_csv(tmp_path / "single.csv", deterministic)
    single = read_csv(tmp_path / "single.csv")
    assert {(line["volume_low"], line["volume_high"]) for line in single} == {("", "")}
    assert float(single[0]["volume_mean"]) == 1.0


def test_the_chart_shows_every_structure_in_a_panel(ensemble: DoseEnsemble) -> None:
    for legend in (True, False):
        figure = findings_dvh_figure(Findings(ensemble), legend=legend)
        structures = ordered_structures(ensemble.patient)
        for number, (structure, axes) in enumerate(zip(structures, figure.axes, strict=False), start=1):
            lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
            assert set(lines) == {f"mean-{number}", f"reference-{number}"}  # of no other structure
            curve = ensemble.dvh(structure.name)
            x, y = np.asarray(lines[f"mean-{number}"].get_data(), dtype=float)
            assert np.allclose(y, 100 * np.interp(x, curve.dose_gy, curve.mean))
            (band,) = axes.collections
            assert band.get_gid() == f"band-{number}"
            edges = np.asarray(band.get_paths()[0].vertices)
            for limit in curve.band(0.95):
                edge = np.column_stack([x, 100 * np.interp(x, curve.dose_gy, limit)])
                assert all(np.isclose(edges, point).all(axis=1).any() for point in edge)
        svg = figure_svg(figure, "DVH")
        assert len(set(re.findall(r'id="(band-\d)"', svg))) == len(structures)


def test_a_deterministic_chart_has_no_bands(deterministic: DoseEnsemble) -> None:
    svg = figure_svg(findings_dvh_figure(Findings(deterministic)), "DVH")
    assert "band-" not in svg and 'id="mean-1"' in svg


def test_words_of_the_picture_of_dvhs_are_readable_at_half_width(ensemble: DoseEnsemble) -> None:
    """Half of a page of 900 pixels, where letters need 8."""
    figure = findings_dvh_figure(Findings(ensemble))
    pixels_a_point = 450 / figure.get_size_inches()[0] / 72
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(sizes) * pixels_a_point >= 8


@pytest.mark.parametrize("paper", [PAPER, DARK_PAPER])
@pytest.mark.parametrize("structure", ["SpinalCord", "Bone_Mandible", "PTV_7000", "GTVp", "anything"])
def test_colours_stand_out_from_the_paper(structure: str, paper: str) -> None:
    def luminance(colour: np.ndarray) -> float:
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    paper_rgb = np.array([int(paper[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    dark, bright = sorted((luminance(np.array(readable_colour(structure, paper))), luminance(paper_rgb)))
    assert (bright + 0.05) / (dark + 0.05) >= LEAST_CONTRAST


def test_the_report_shows_the_numbers(ensemble: DoseEnsemble) -> None:
    text = text_of(report_of(ensemble))
    rows = metric_rows(ensemble)
    for row in rows:
        assert row.low is not None and row.high is not None and row.reference is not None
        sign = f"{row.mean - row.reference:+.1f}".replace("-", "−")
        sign = "0.0" if sign[1:] == "0.0" else sign
        where = "inside" if row.covers_reference else "outside"
        band = f"{row.low:.1f} to {row.high:.1f}"
        if row.is_informative is False:
            where, band = "", "not informative"
        numbers = f"{row.mean:.1f} {band} {row.reference:.1f} {sign} {where}".rstrip()
        assert f"{row.metric} ({row.unit}) {numbers}" in text
    told = [row for row in rows if row.is_informative]
    covered = sum(bool(row.covers_reference) for row in told)
    assert f"Reference inside the band {covered} of {len(told)} metrics" in text
    score = score_patient(ensemble.patient, ensemble.mean.values)
    assert f"OpenKBP dose score {score.dose_error_gy:.2f} Gy" in text
    assert f"OpenKBP DVH score {score.dvh_error_gy:.2f} Gy" in text
    volume = ensemble.patient.structure("PTV_7000").volume_cc
    assert volume == pytest.approx(7**3 * 0.064) and f"PTV_7000 target {volume:.1f} 70.0 2.00" in text


def test_the_report_says_what_it_is(ensemble: DoseEnsemble) -> None:
    text = text_of(report_of(ensemble))
    assert "Patient pt_1" in text
    assert "Research use only. Not for clinical decisions." in text
    assert "Larynx is &lt;absent&gt;." in text
    assert f"Sampled 95 % band of {SAMPLES} Monte Carlo dropout samples; not calibrated, known to be too narrow" in text


def test_calibrated_bands_are_named_and_explained(patient: Patient) -> None:
    ensemble = replace(build_ensemble(patient), calibration=hand_made_calibration())
    text = text_of(report_of(ensemble))
    assert "Calibrated 95 % band: the spread of 12 Monte Carlo dropout samples" in text
    assert "measured on 40 patients" in text and "not calibrated, known to be too narrow" not in text
    row = next(r for r in Findings(ensemble).rows if (r.structure, r.metric) == ("PTV_7000", "mean"))
    metric = ensemble.metric("PTV_7000", "mean")
    assert row.high == pytest.approx(float(metric.mean + 2 * np.hypot(metric.std, 0.25)))


def test_notes_are_shown(ensemble: DoseEnsemble) -> None:
    html = render_report(Findings(ensemble, more_notes=("Voxels are <odd>.",)), {}, provenance_of(ensemble))
    assert "Voxels are &lt;odd&gt;." in html and "Larynx is" in html


def test_a_deterministic_report_says_that_it_has_no_band(deterministic: DoseEnsemble) -> None:
    text = text_of(report_of(deterministic))
    assert "deterministic prediction: it says nothing of how sure it is" in text
    for claim in ("band of", "% band", "inside", "of the samples", "sample's", "uncertainty", "spread"):
        assert claim not in text, claim


def test_without_a_reference_no_score_is_shown() -> None:
    text = text_of(report_of(build_ensemble(build_patient(reference=False))))
    assert "OpenKBP" not in text and "Difference" not in text and "Sampled 95 % band" in text


@pytest.mark.parametrize("build", [lambda p: p, lambda p: replace(p, plans=(), warnings=())])
def test_the_report_is_well_formed(patient: Patient, build: Callable[[Patient], Patient]) -> None:
    parser = Balance()
    parser.feed(report_of(build_ensemble(build(patient))))
    assert parser.wrong == [] and parser.open == []
    assert len(parser.ids) == len(set(parser.ids))


def test_the_report_stands_alone(tmp_path: Path, ensemble: DoseEnsemble) -> None:
    picture = tmp_path / "axial.png"
    picture.write_bytes(PNG)
    target = tmp_path / "report.html"
    write_report(target, Findings(ensemble), {"Dose, axial": picture}, provenance_of(ensemble))
    html = target.read_text(encoding="utf-8")
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in html
    assert not re.search(r"https?://|file:|@import|<link|<script|javascript:", html)
    assert set(re.findall(r'(?:src|href)="([^"]{5})', html)) == {"data:", *re.findall(r'href="(#[^"]{4})', html)}
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert str(tmp_path) not in html and "axial.png" not in html and str(Path.home()) + "/" not in html
    assert {path.name for path in tmp_path.iterdir()} == {"axial.png", "report.html"}


def test_a_hostile_structure_name_stays_text(ensemble: DoseEnsemble) -> None:
    html = report_of(ensemble, missing_pictures={HOSTILE: HOSTILE})
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(") == 5  # two tables, the chart, the missing picture and its reason
    svg = figure_svg(findings_dvh_figure(Findings(ensemble)), HOSTILE)
    assert "<script" not in svg and escape(HOSTILE) in svg


def test_missing_pictures_are_stated(tmp_path: Path, ensemble: DoseEnsemble) -> None:
    (tmp_path / "text.png").write_text("no picture")
    pictures = {"Spread": tmp_path / "absent.png", "Difference": tmp_path / "text.png"}
    missing = {"3D view": "slicer-core is not installed."}
    html = render_report(Findings(ensemble), pictures, provenance_of(ensemble), missing_pictures=missing)
    text = text_of(html)
    assert "The pictures are missing" in text
    assert "3D view: slicer-core is not installed." in text
    assert "Spread: The picture could not be read (No such file or directory)." in text
    assert "Difference: The picture is neither PNG nor JPEG." in text
    assert str(tmp_path) not in html and "<img" not in html
    assert "No pictures were asked for." in text_of(report_of(ensemble))


def test_provenance(ensemble: DoseEnsemble, deterministic: DoseEnsemble) -> None:
    found = json.loads(json.dumps(provenance_of(ensemble).as_dict()))
    assert found["software_version"] == __version__
    assert set(found["library_versions"]) == {"Python", *LIBRARIES}
    assert found["library_versions"]["numpy"] == np.__version__
    assert (found["weights_sha256"], found["seed"], found["samples"]) == ("ab12" * 16, 5, SAMPLES)
    assert found["device"] == "cpu" and found["stage_seconds"] == {"read": 1.25, "predict": 30.0}
    assert found["created_utc"] == "2025-03-04T05:06:07Z"
    assert (provenance_of(deterministic).seed, provenance_of(deterministic).samples) == (None, 0)
    text = text_of(report_of(ensemble))
    for part in ("ab12" * 16, "Seed 5", f"Samples {SAMPLES}", "Time: predict 30.0 s", "2025-03-04 05:06:07 UTC",
                 f"numpy {np.__version__}"):  # fmt: skip
        assert part in text


def test_goals_in_the_report_read_without_colour(ensemble: DoseEnsemble) -> None:
    html = report_of(ensemble)
    tables = Findings(ensemble).goals
    rows = {row.goal: row for table in tables for row in table.rows}
    text = text_of(html)
    assert {table.title.partition(":")[0] for table in tables} == {"RTOG 0225", "QUANTEC head and neck"}
    for row in rows.values():
        assert f"{row.sign} {row.status}" in text and escape(row.goal) in html
    for table in tables:
        assert f"Goals of {table.name}: {table.words}." in text
        for row in table.not_met:
            assert f"{row.sign} {row.status}: {row.criterion}, predicted {row.number_words}" in text
    assert any(table.not_met for table in tables)
    spared = next(row for goal, row in rows.items() if goal.startswith("Parotid_L mean ≤ 26 Gy"))
    expected = ensemble.metric("Parotid_L", "mean")
    assert spared.value == pytest.approx(float(expected.mean))
    assert spared.probability_met == pytest.approx((expected.samples <= 26).mean())
    assert spared.calibrated is False and spared.note == "There is no structure Parotid_R."
    assert rows["Brainstem max ≤ 54 Gy or Brainstem D1 ≤ 60 Gy"].status == "not evaluated"
    assert "for here the spread is not calibrated and the probability too sure" in text
    assert "The limits are meant for 33 fractions; the plan has 35." in text


def test_goals_of_a_deterministic_prediction_have_no_probability(deterministic: DoseEnsemble) -> None:
    rows = [row for table in Findings(deterministic).goals for row in table.rows]
    assert all(row.probability_met is None and row.calibrated is None for row in rows)
    assert "Supported by the samples" not in report_of(deterministic)


def test_goals_csv(tmp_path: Path, patient: Patient, ensemble: DoseEnsemble) -> None:
    calibrated = replace(ensemble, calibration=hand_made_calibration(SAMPLES))
    write_goals_csv(tmp_path / "goals.csv", Findings(calibrated).goals)
    rows = read_csv(tmp_path / "goals.csv")
    assert len(rows) == sum(len(table.rows) for table in Findings(ensemble).goals)
    coverage = next(row for row in rows if row["goal"] == "PTV_7000 V70 ≥ 95 %")
    word = likely_status(float(coverage["probability_met"]), float(coverage["probability_acceptable"]))
    assert coverage["calibrated"] == "yes" and coverage["status"] == word.value
    assert 0 <= float(coverage["least_probability_met"]) <= float(coverage["probability_met"]) <= 1
    assert next(row for row in rows if "Larynx" in row["goal"])["probability_met"] == ""
