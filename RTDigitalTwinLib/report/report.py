"""The report of one patient: a single HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_hex

from RTDigitalTwinLib.decision.chance import bound_percent, percent
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.report.biology_table import PredictedBiologyRow
from RTDigitalTwinLib.report.charts import DARK_PAPER, INK, PAPER, figure_svg, readable_colour
from RTDigitalTwinLib.report.deciding import GAIN, NEAREST, NO_BAND, ORDER, Deciding
from RTDigitalTwinLib.report.dvh_panels import findings_dvh_figure
from RTDigitalTwinLib.report.goal_table import NOT_INFORMATIVE, RULE, UNCALIBRATED_NOTE, UNINFORMATIVE_RULE
from RTDigitalTwinLib.report.provenance import Provenance
from RTDigitalTwinLib.report.tables import Findings, MetricRow, ordered_structures
from RTDigitalTwinLib.report.utility_chart import utility_figure
from RTDigitalTwinLib.resources import resource_path
from RTDigitalTwinLib.words import counted, decimal

TEMPLATE = ("Report", "report.html.j2")
IMAGE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
NOT_KNOWN = "–"
MINUS = "−"


@dataclass(frozen=True)
class ReportPicture:
    """A picture inside the report, or why it is missing."""

    caption: str
    data_uri: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ReportStructure:
    """A structure with its number in the chart, its colours (#rrggbb) on light and dark paper, and its metrics."""

    number: int
    structure: Structure
    colour: str
    dark_colour: str
    level_gy: float | None
    metrics: tuple[MetricRow, ...]


def write_report(
    path: Path,
    findings: Findings,
    pictures: Mapping[str, Path],
    provenance: Provenance,
    *,
    missing_pictures: Mapping[str, str] | None = None,
) -> None:
    """Write the report.

    Parameters
    ----------
    path : of the HTML file.
    pictures : PNG or JPEG files by caption; they become part of the file.
    missing_pictures : captions of pictures that could not be made, with the reason to print.

    Raises
    ------
    OutputError : the file cannot be written.
    """
    html = render_report(findings, pictures, provenance, missing_pictures=missing_pictures)
    with whole_file(path) as aside:
        aside.write_text(html, encoding="utf-8")


def render_report(
    findings: Findings,
    pictures: Mapping[str, Path],
    provenance: Provenance,
    *,
    missing_pictures: Mapping[str, str] | None = None,
) -> str:
    """The HTML that ``write_report`` writes."""
    prediction, level = findings.prediction, findings.level
    patient = prediction.patient
    covered = [row.covers_reference for row in findings.rows if row.covers_reference is not None and row.is_informative]
    structures = _structures(patient, findings.rows)
    css_colours = {INK: "currentColor", PAPER: "var(--paper)"}
    css_colours |= {s.colour: f"var(--structure-{s.number})" for s in structures}
    chart = figure_svg(findings_dvh_figure(findings, legend=False), "Dose-volume histograms", css_colours)
    shown = [_picture(caption, file) for caption, file in pictures.items()]
    shown += [ReportPicture(caption, reason=reason) for caption, reason in (missing_pictures or {}).items()]
    return (
        _environment()
        .from_string(resource_path(*TEMPLATE).read_text(encoding="utf-8"))
        .render(
            patient=patient,
            notes=findings.notes,
            plan=patient.plan if patient.plans else None,
            structures=structures,
            ink=INK,
            paper=PAPER,
            dark_paper=DARK_PAPER,
            pictures=[picture for picture in shown if picture.data_uri],
            missing=[picture for picture in shown if not picture.data_uri],
            chart=Markup(chart),
            has_band=prediction.has_spread,
            calibration=prediction.calibration if prediction.is_calibrated else None,
            band_words=prediction.band_words(level),
            samples=prediction.count,
            level_percent=f"{100 * level:g}",
            score=findings.score,
            observing=findings.observing,
            absorbed=prediction.absorbed,
            deciding=findings.deciding,
            utility_chart=None if findings.deciding is None else _utility_chart(findings.deciding),
            words=findings.words,
            dose_words=findings.dose_words,
            ranking_notes=(GAIN, NEAREST, ORDER),
            no_band=NO_BAND,
            changed=findings.deciding is not None and findings.before is not None,
            before={(row.structure, row.metric): row.mean for row in findings.rows_before},
            goals=findings.goals,
            goal_notes=findings.goal_choice.left_out,
            biology=findings.biology,
            uninformative=any(row.is_informative is False for row in findings.rows),
            uninformative_goals=any(
                row.band_words == NOT_INFORMATIVE for table in findings.goals for row in table.rows
            ),
            not_informative=NOT_INFORMATIVE,
            uninformative_rule=UNINFORMATIVE_RULE[0].upper() + UNINFORMATIVE_RULE[1:],
            uncalibrated_biology=any(row.calibrated is False for row in findings.biology.rows),
            goal_rule=RULE,
            uncalibrated_note=UNCALIBRATED_NOTE,
            uncalibrated_goals=any(row.calibrated is False for table in findings.goals for row in table.rows),
            covered=sum(covered),
            compared=len(covered),
            provenance=provenance,
        )
    )


def _utility_chart(deciding: Deciding) -> Markup:
    css = {INK: "currentColor", PAPER: "var(--paper)"}
    return Markup(figure_svg(utility_figure(deciding.ranking), "Utility of each action and its gain", css))


def _structures(patient: Patient, rows: Sequence[MetricRow]) -> list[ReportStructure]:
    metrics = {name: tuple(group) for name, group in groupby(rows, key=lambda row: row.structure)}
    levels = target_levels_gy(patient)
    return [
        ReportStructure(
            number,
            s,
            to_hex(readable_colour(s.name)),
            to_hex(readable_colour(s.name, DARK_PAPER)),
            levels.get(s.name),
            metrics[s.name],
        )
        for number, s in enumerate(ordered_structures(patient), start=1)
    ]


def _picture(caption: str, file: Path) -> ReportPicture:
    try:
        content = file.read_bytes()
    except OSError as error:
        return ReportPicture(caption, reason=f"The picture could not be read ({error.strerror or 'unknown reason'}).")
    for signature, media_type in IMAGE_TYPES.items():
        if content.startswith(signature):
            return ReportPicture(caption, f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}")
    return ReportPicture(caption, reason="The picture is neither PNG nor JPEG.")


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=percent,
        bound_percent=bound_percent,
        utility=_utility,
        gain=_gain,
        counted=counted,
        one_decimal=_one_decimal,
        signed=_signed,
        probability=_probability,
        probability_band=_probability_band,
    )
    return environment


def _one_decimal(value: float | None) -> str:
    return NOT_KNOWN if value is None else decimal(value, 1).replace("-", MINUS)


def _utility(value: float) -> str:
    return decimal(value, 3).replace("-", MINUS)


def _gain(value: float) -> str:
    return decimal(value, 3, signed=True).replace("-", MINUS)


def _probability(ratio: float) -> str:
    """A modelled probability in percent, to a tenth."""
    return "below 0.1" if ratio < 0.001 else f"{100 * ratio:.1f}"


def _probability_band(row: PredictedBiologyRow) -> str:
    """The limits of a band, once where they read the same."""
    if row.low is None or row.high is None:
        return ""
    low, high = _probability(row.low), _probability(row.high)
    return low if low == high else f"{low} to {high}"


def _signed(value: float | None) -> str:
    return NOT_KNOWN if value is None else decimal(value, 1, signed=True).replace("-", MINUS)
