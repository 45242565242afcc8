"""The figure of a course: how unsure the twin is, when it looked again, and where a complication is heading."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RTDigitalTwinLib.course_projection import Endpoint
from RTDigitalTwinLib.course_record import RE_IMAGED, RECALIBRATED, REPLANNED, CourseResult, FractionRecord
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.report.charts import INK

NTCP, NTCP_LIMIT = "NTCP", 0.15
CUSTOMARY = ("Parotid_L", "Parotid_R")
TWIN, TRUTH, CHANGE, ACTED = "#1f6f8b", "#b5452c", "#7a7a7a", "#d28b00"
_SIGNS = {RECALIBRATED: ("^", "recalibrated"), RE_IMAGED: ("s", "re-imaged"), REPLANNED: ("D", "replanned")}


def chosen_ntcp(result: CourseResult, structure: str | None = None) -> Endpoint:
    """The NTCP of a structure at the end; by default a parotid's, or the first. Raises PatientDataError."""
    found = [e for e in result.records[-1].endpoints if e.effect == NTCP]
    wanted = (structure,) if structure is not None else (*CUSTOMARY, *(e.structure for e in found))
    for name in wanted:
        for endpoint in found:
            if endpoint.structure == name:
                return endpoint
    there = ", ".join(dict.fromkeys(e.structure for e in found)) or "none of the patient's structures"
    raise PatientDataError("There is no NTCP of this structure.", where=structure or "", remedy=f"It is of {there}.")


def course_figure(result: CourseResult, structure: str | None = None) -> Figure:
    """Uncertainty above, the NTCP below, over the fractions; what was done is marked in both."""
    shown = chosen_ntcp(result, structure)
    figure = Figure(figsize=(8.2, 6.2), dpi=150, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
    _draw_uncertainty(above, result)
    _draw_ntcp(below, result, shown)
    for axes in (above, below):
        _mark_change(axes, result)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    below.set(xlabel="fraction", xlim=(0.5, result.settings.fractions + 0.5))
    policy, change = result.settings.policy.name, result.settings.change.words
    what = change.removeprefix("simulated: ") if result.settings.shift_at else "no change"
    figure.suptitle(f"Course of {result.projection.patient.pseudonym}: {policy}. Simulated: {what}", fontsize=10.5)
    return figure


def write_course_figure(result: CourseResult, path: Path, structure: str | None = None) -> None:
    """As PNG. Raises OutputError, PatientDataError where the structure has no NTCP."""
    figure = course_figure(result, structure)
    with whole_file(path) as aside:
        figure.savefig(aside, format="png")


def _draw_uncertainty(axes: Axes, result: CourseResult) -> None:
    records = result.records
    axes.plot([r.fraction for r in records], [r.uncertainty_gy for r in records], "-o", markersize=3, color=TWIN,
              gid="uncertainty", label="half width of the 95 % band")  # fmt: skip
    top = max(r.uncertainty_gy for r in records)
    axes.set_ylim(0, 1.32 * top)
    for event, (sign, words) in _SIGNS.items():
        at = [r.fraction for r in records if event in r.events]
        if at:
            height = (1.10 + 0.07 * list(_SIGNS).index(event)) * top
            axes.plot(at, [height] * len(at), sign, color=ACTED, markersize=7, gid=event, label=words)
    axes.set_ylabel("uncertainty (Gy)")
    axes.set_title("Dose believed for the fractions to come, mean over targets and organs", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_ntcp(axes: Axes, result: CourseResult, shown: Endpoint) -> None:
    followed = [(r, e) for r in result.records for e in r.endpoints if _same(e, shown)]
    at = [r.fraction for r, _ in followed]
    low, high = [100 * e.low for _, e in followed], [100 * e.high for _, e in followed]
    axes.fill_between(at, low, high, color=TWIN, alpha=0.2, linewidth=0, gid="band", label="its 95 % band (dose)")
    axes.plot(
        at, [100 * e.mean for _, e in followed], color=TWIN, linewidth=2, gid="projection", label="twin, projected"
    )
    axes.plot(at, [100 * e.true for _, e in followed], color=TRUTH, linestyle="--", linewidth=1.8, gid="truth",
              label="simulated truth")  # fmt: skip
    axes.axhline(
        100 * NTCP_LIMIT, color=INK, linewidth=1, linestyle=":", gid="limit", label=f"{100 * NTCP_LIMIT:g} % line"
    )
    for record in result.records:
        if record.events:
            axes.axvline(record.fraction, color=ACTED, linewidth=1, alpha=0.7)
    axes.set_ylim(0, max(1.12 * max(high), 100 * NTCP_LIMIT + 5))
    axes.set_ylabel("NTCP at the end (%)")
    axes.set_title(f"{shown.structure}: {shown.endpoint}", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _mark_change(axes: Axes, result: CourseResult) -> None:
    if result.settings.shift_at is not None:
        axes.axvline(result.settings.shift_at - 0.5, color=CHANGE, linewidth=1.5, linestyle="-.", gid="change")
        axes.annotate("change", (result.settings.shift_at - 0.5, 0.03), xycoords=("data", "axes fraction"),
                      xytext=(3, 0), textcoords="offset points", fontsize=8, color=CHANGE)  # fmt: skip


def _same(one: Endpoint, other: Endpoint) -> bool:
    return (one.structure, one.effect, one.endpoint) == (other.structure, other.effect, other.endpoint)


def trajectory_rows(records: tuple[FractionRecord, ...]) -> list[dict[str, object]]:
    """A row a fraction, with every endpoint's projection; columns of those not projected are empty."""
    rows = []
    for r in records:
        shift = r.estimated_shift_mm or ("", "", "")
        row: dict[str, object] = {
            "fraction": r.fraction, "days": r.days, "innovation_ratio": round(r.innovation_ratio, 4),
            "alarm_value": round(r.alarm_value, 4), "uncertainty_gy": round(r.uncertainty_gy, 4),
            "events": "; ".join(r.events), "reasons": "; ".join(r.reasons), "images": r.images,
        }  # fmt: skip
        for axis, estimated, true in zip("lps", shift, r.true_shift_mm, strict=True):
            row[f"estimated_shift_{axis}_mm"] = round(estimated, 3) if isinstance(estimated, float) else ""
            row[f"true_shift_{axis}_mm"] = true
        for e in r.endpoints:
            unit = f" {e.unit}" if e.unit else ""
            row |= {f"{e.name}{unit} {k}": round(getattr(e, k), 6) for k in ("mean", "low", "high", "true")}
        rows.append(row)
    return rows
