"""A course that was lived through as the outcome that is shown of it."""

from __future__ import annotations

import numpy as np

from RTDigitalTwinLib.course_outcome import (
    BAND,
    EVENTS_COLUMN,
    FRACTION_COLUMN,
    LIMIT,
    TRUTH,
    TWIN,
    UNCERTAINTY_COLUMN,
    CourseChart,
    CourseOutcome,
)
from RTDigitalTwinLib.course_projection import Endpoint
from RTDigitalTwinLib.course_record import RE_IMAGED, RECALIBRATED, CourseResult
from RTDigitalTwinLib.outcome import Table, Values
from RTDigitalTwinLib.patient.volume import Quantity
from RTDigitalTwinLib.report.course_figure import NTCP, NTCP_LIMIT, chosen_ntcp
from RTDigitalTwinLib.words import counted

STEPS = 7  # doses that are kept, at most: each is a volume
LIMIT_COLUMN = f"{NTCP_LIMIT:.0%} line"
_NTCP_WORDS = {"mean": "", "low": ", band low", "high": ", band high", "true": ", simulated truth"}


def course_outcome_of(result: CourseResult, structure: str | None = None) -> CourseOutcome:
    """What is shown of a course; ``structure`` is whose NTCP is followed. Raises PatientDataError where it has none."""
    has_ntcp = any(e.effect == NTCP for e in result.records[-1].endpoints)
    shown = chosen_ntcp(result, structure) if has_ntcp else None
    charts = [CourseChart("Uncertainty of the dose to come", "Gy", ((UNCERTAINTY_COLUMN, TWIN),))]
    if shown is not None:
        kinds = {"mean": TWIN, "low": BAND, "high": BAND, "true": TRUTH}
        curves = [(_column(shown, what), kind) for what, kind in kinds.items()]
        title = f"{shown.structure} NTCP at the end: {shown.endpoint}"
        charts.append(CourseChart(title, "%", (*curves, (LIMIT_COLUMN, LIMIT))))
    at = _steps(len(result.daily_gy))
    sums = np.cumsum(result.daily_gy, axis=0, dtype=np.float32)
    crop, prescription = result.projection.crop, result.projection.patient.plan.prescription
    doses = [
        {f: crop.spread(of[f - 1].astype(np.float32), Quantity.DOSE_GY) for f in at} for of in (sums, result.daily_gy)
    ]
    return CourseOutcome(
        result.settings.policy.name, _trajectory(result, shown), _triggers(result), tuple(charts), doses[0], doses[1],
        prescription.highest_gy, prescription.fractions, _summary(result),
    )  # fmt: skip


def _trajectory(result: CourseResult, shown: Endpoint | None) -> Table:
    records = result.records
    columns: dict[str, Values] = {
        FRACTION_COLUMN: np.array([r.fraction for r in records]),
        UNCERTAINTY_COLUMN: np.round([r.uncertainty_gy for r in records], 3),
        "Innovation (of expected)": np.round([r.innovation_ratio for r in records], 3),
        "Alarm value": np.round([r.alarm_value for r in records], 3),
        EVENTS_COLUMN: tuple("; ".join(r.events) for r in records),
        "Images so far": np.array([r.images for r in records]),
    }
    if shown is not None:
        of = [next((e for e in r.endpoints if e.name == shown.name), None) for r in records]
        for k in _NTCP_WORDS:
            columns[_column(shown, k)] = np.array([np.nan if e is None else 100 * getattr(e, k) for e in of])
        columns[LIMIT_COLUMN] = np.full(len(records), 100 * NTCP_LIMIT)
    return Table(columns, f"{result.settings.change.words}. NTCP in %, projected to the end of treatment.")


def _triggers(result: CourseResult) -> Table:
    acted = [r for r in result.records if r.events]
    return Table(
        {
            FRACTION_COLUMN: tuple(str(r.fraction) for r in acted),
            EVENTS_COLUMN: tuple(", ".join(r.events) for r in acted),
            "Why": tuple("; ".join(r.reasons) for r in acted),
        }
    )


def _summary(result: CourseResult) -> str:
    start, change = result.settings.shift_at, result.settings.change.words
    when = f", from fraction {start} on" if start is not None else "; no change came"
    done = f"recalibrated {counted(len(result.fractions_with(RECALIBRATED)), 'time')}"
    imaged = f"re-imaged {counted(len(result.fractions_with(RE_IMAGED)), 'time')}"
    alarms = counted(result.false_alarms, "false alarm")
    lived = counted(len(result.records), "fraction")
    return f"{change[0].upper()}{change[1:]}{when}. {lived}: {done}, {imaged}, {alarms}."


def _column(shown: Endpoint, what: str) -> str:
    return f"{shown.structure} NTCP{_NTCP_WORDS[what]}"


def _steps(fractions: int) -> list[int]:
    """Fractions to keep, evenly, with the first and the last."""
    return sorted({round(float(k)) for k in np.linspace(1, fractions, min(STEPS, fractions))})
