"""What a loop's ledger tells of it, as rows and the summary: no number comes from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from RTDigitalTwinLib.calibration.outliers import Judgement
from RTDigitalTwinLib.ledger import Entry, Ledger
from RTDigitalTwinLib.ledger_entries import MEASURED, OBSERVED, OPENED, OPTIMISED, PREDICTED
from RTDigitalTwinLib.patient.observation import Observation
from RTDigitalTwinLib.report.observing import Observing, rows_of
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.words import counted

STAGES = {MEASURED: "observe", OBSERVED: "recalibrate", PREDICTED: "predict", OPTIMISED: "optimise"}
DONE = {MEASURED: "observed", OBSERVED: "recalibrated", PREDICTED: "predicted", OPTIMISED: "optimised"}
ERROR = "truth_mean_absolute_error_gy"
DELIVERED = "truth_metrics"


def told(entries: Sequence[Entry], fraction: int, kind: str) -> Entry | None:
    """The entry of a fraction's stage; None where it was not done yet. Fraction 0 is before the first."""
    return next((e for e in entries if e.kind == kind and e.content.get("fraction") == fraction), None)


def behind_words(entries: Sequence[Entry]) -> str:
    """Behind which stage an interrupted loop goes on; "" where none was done."""
    last = next((e for e in reversed(entries) if e.kind in DONE), None)
    if last is None:
        return ""
    fraction = last.content["fraction"]
    return f"Going on behind {f'fraction {fraction}, {DONE[last.kind]}' if fraction else 'the first prediction'}."


def _content(entries: Sequence[Entry], fraction: int, kind: str) -> Mapping[str, Any]:
    entry = told(entries, fraction, kind)
    assert entry is not None
    return entry.content


def fraction_rows(entries: Sequence[Entry], fractions: int) -> list[dict[str, Any]]:
    """What each fraction did, in order."""
    return [_row(entries, fraction) for fraction in range(1, fractions + 1)]


def _row(entries: Sequence[Entry], fraction: int) -> dict[str, Any]:
    stages = {name: _content(entries, fraction, kind) for kind, name in STAGES.items()}
    judged = stages["recalibrate"]["judgements"]
    objective = stages["optimise"]["objective"]
    row: dict[str, Any] = {
        "fraction": fraction,
        "seconds": {name: content["seconds"] for name, content in stages.items()},
        "observations": len(judged),
        "simulated": any(o["simulated"] == "true" for o in stages["recalibrate"]["observations"]),
        "left_out": sum(not j["absorbed"] for j in judged),
        "decoder": stages["recalibrate"].get("decoder"),
        "samples": stages["predict"]["samples"],
        "optimisation": {"steps": len(objective) - 1, "before": objective[0], "after": min(objective)},
        "metrics": stages["predict"]["metrics"],
    }
    if ERROR in stages["predict"]:
        row[ERROR] = stages["predict"][ERROR]
    return row


def left_out_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which fractions' observations were not absorbed."""
    return [
        f"Fraction {row['fraction']}: of {counted(row['observations'], 'observation')} "
        f"{row['left_out']} left out as {'an outlier' if row['left_out'] == 1 else 'outliers'}."
        for row in rows
        if row["left_out"]
    ]


def observing_in_ledger(
    entries: Sequence[Entry],
    given: Sequence[Sequence[Observation]],
    before: DoseEnsemble,
    after: DoseEnsemble,
    method: str,
) -> Observing:
    """What all fractions changed: each observation as it was judged when it was ``given``, in the fractions' order."""
    judgements, absorbed = [], []
    for fraction, observations in enumerate(given, start=1):
        rows = _content(entries, fraction, OBSERVED)["judgements"]
        for observation, row in zip(observations, rows, strict=True):
            beyond = float(row["outlier"])
            judgements.append(
                Judgement(observation, row["observed"], row["expected"], row["reach"], beyond, row["outlier"])
            )
            if row["absorbed"]:
                absorbed.append(observation)
    simulated = any(observation.simulated for observation in absorbed)
    return Observing(before, method if absorbed else None, simulated, rows_of(judgements, absorbed, after))


def loop_summary(ledger: Ledger, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fractions, seconds a stage, metrics before and after, and errors against the truth where it was simulated."""
    opened = [e for e in ledger.entries if e.kind == OPENED]
    before = _content(ledger.entries, 0, PREDICTED)
    seconds = dict(opened[0].content["seconds"]) | {"prediction before": before["seconds"]}
    seconds |= {name: round(sum(row["seconds"][name] for row in rows), 3) for name in STAGES.values()}
    summary: dict[str, Any] = {
        "sessions": len(opened),
        "fractions": rows,
        "seconds": seconds | {"total": round(sum(seconds.values()), 3)},
        "metrics": _metrics(before["metrics"], rows, before.get(DELIVERED, {})),
    }
    if ERROR in before:
        summary[ERROR] = {"before": before[ERROR], "after": rows[-1][ERROR]}
    summary["ledger"] = {"entries": len(ledger.entries), "sha256": ledger.head_sha256}
    return summary


def _metrics(
    before: Mapping[str, Mapping[str, float]],
    rows: list[dict[str, Any]],
    delivered: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Before the first and after each fraction, and as delivered where that is known; a row a metric, in Gy."""
    found = []
    for name, metrics in before.items():
        for metric in (m for m in metrics if not m.endswith(" std")):
            row: dict[str, Any] = {"structure": name, "metric": metric, "unit": "Gy", "before": metrics[metric]}
            row |= {f"fraction {r['fraction']}": r["metrics"][name][metric] for r in rows}
            found.append(row | ({"delivered": delivered[name][metric]} if delivered else {}))
    return found
