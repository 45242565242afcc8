"""Tables of the recalibration study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from RTDigitalTwinLib.calibration.trial import WIDTHS
from RTDigitalTwinLib.words import counted, decimal

Row: TypeAlias = dict[str, Any]
BEFORE = "before"
ERRORS = ("mask_gy", "inside_gy", "elsewhere_gy", "structure_mean_gy")
LEVEL = 0.95
DERIVED = ("mean", "metric", "dvh")  # structures' means, their other metrics, points of their DVHs
BANDS = tuple(key for kind in DERIVED for key in (f"coverage_{kind}_ratio", f"width_{kind}_gy"))


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over patients of each treatment, kind of observation and method, and every patient's own numbers.

    Changes are those of the mean errors, in percent of the errors before. ``coverage_refitted_ratio`` is the coverage
    with bands times a factor that makes it 95 % on average over the OTHER patients and all treatments of that kind of
    observation; ``band_factor`` is that factor from all patients.
    """
    before = {(r["patient"], r["treatment"], r["observed"]): r for r in rows if r["method"] == BEFORE}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if (row["patient"], row["treatment"], row["observed"]) in before:
            groups.setdefault((row["treatment"], row["observed"], row["method"]), []).append(row)
    refitted, factors = _refitted(rows)
    means = []
    for (treatment, observed, method), group in groups.items():
        start = [before[r["patient"], treatment, observed] for r in group]
        mean: Row = {"treatment": treatment, "observed": observed, "method": method, "patients": len(group)}
        for key in ERRORS:
            now, then = (float(np.mean([r[key] for r in some])) for some in (group, start))
            mean |= {key: round(now, 4), key.replace("_gy", "_change_percent"): round(100 * (now / then - 1), 2)}
        worst = max(100 * (r["mask_gy"] / b["mask_gy"] - 1) for r, b in zip(group, start, strict=True))
        mean["worst_patient_mask_change_percent"] = round(worst, 2)
        mean["left_out"] = sum(r["left_out"] for r in group)
        mean["seconds"] = round(float(np.median([r["seconds"] for r in group])), 2)
        if all("coverage_ratio" in r for r in group):
            for key in ("coverage_ratio", "width_gy", *BANDS):
                mean[key] = round(float(np.mean([r[key] for r in group])), 4)
            again = [refitted[r["patient"], treatment, observed, method] for r in group]
            mean["coverage_refitted_ratio"] = round(float(np.mean(again)), 4)
            mean["band_factor"] = round(factors[observed, method], 3)
        means.append(mean)
    kept = [{k: v for k, v in row.items() if k != "coverage_by_width"} for row in rows]
    return {"means": means, "cases": kept}


def _refitted(rows: Sequence[Row]) -> tuple[dict[tuple, float], dict[tuple[str, str], float]]:
    """Coverage of each case with a factor from the other patients; the factors from all."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "coverage_by_width" in row:
            groups.setdefault((row["observed"], row["method"]), []).append(row)
    found: dict[tuple, float] = {}
    factors: dict[tuple[str, str], float] = {}
    for key, group in groups.items():
        factors[key] = _factor(group)
        for row in group:
            others = [r for r in group if r["patient"] != row["patient"]]
            factor = _factor(others) if others else 1.0
            covered = float(np.interp(factor, WIDTHS, row["coverage_by_width"]))
            found[row["patient"], row["treatment"], row["observed"], row["method"]] = covered
    return found, factors


def _factor(rows: Sequence[Row]) -> float:
    """Times the width at which coverage is 95 % on average; the largest or smallest told where it is beyond."""
    curve = np.mean([r["coverage_by_width"] for r in rows], axis=0)
    return float(np.interp(LEVEL, curve, WIDTHS))


def study_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown tables: one a treatment and kind of observation, and one of the patients."""
    lines = [
        f"Simulated deliveries, {counted(len(summary['patients']), 'patient')}: {', '.join(summary['patients'])}.",
        "",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for mean in summary["means"]:
        groups.setdefault((mean["observed"], mean["treatment"]), []).append(mean)
    for (observed, treatment), means in sorted(groups.items()):
        lines += [f"### From {observed}, {treatment}", ""]
        lines += [
            "| method | patients | whole mask (Gy) | elsewhere (Gy) | structure means (Gy) | worst patient, mask "
            "| 95 % band holds | refitted | width (Gy) | bands of means | of metrics | of DVHs | left out | s |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for m in means:
            changes = [_with_change(m, key) for key in ("mask_gy", "elsewhere_gy", "structure_mean_gy")]
            covered = [_percent(m.get(k)) for k in ("coverage_ratio", "coverage_refitted_ratio")]
            derived = [_band(m, kind) for kind in DERIVED]
            worst = ""
            if m["method"] != BEFORE:
                worst = f"{decimal(m['worst_patient_mask_change_percent'], 1, signed=True)} %"
            width = f"{m['width_gy']:.1f}" if "width_gy" in m else ""
            cells = [m["method"], str(m["patients"]), *changes, worst, *covered, width, *derived, str(m["left_out"])]
            lines.append(f"| {' | '.join(cells)} | {m['seconds']:.1f} |")
        lines.append("")
    lines += ["### Whole-mask error of each patient (Gy)", ""]
    methods = list(dict.fromkeys(c["method"] for c in summary["cases"]))
    lines += [f"| patient | observed | treatment | {' | '.join(methods)} |", "|---|---|---|" + "---|" * len(methods)]
    by_case: dict[tuple[str, str, str], dict[str, float]] = {}
    for c in summary["cases"]:
        by_case.setdefault((c["patient"], c["observed"], c["treatment"]), {})[c["method"]] = c["mask_gy"]
    for key, values in by_case.items():
        numbers = [f"{values[m]:.2f}" if m in values else "" for m in methods]
        lines.append(f"| {' | '.join([*key, *numbers])} |")
    return "\n".join(lines) + "\n"


def _with_change(mean: Row, key: str) -> str:
    if mean["method"] == BEFORE:
        return f"{mean[key]:.2f}"
    change = decimal(mean[key.replace("_gy", "_change_percent")], 0, signed=True)
    return f"{mean[key]:.2f} ({change} %)"


def _band(mean: Row, kind: str) -> str:
    """Coverage and mean full width."""
    if f"width_{kind}_gy" not in mean:
        return ""
    return f"{_percent(mean[f'coverage_{kind}_ratio'])}, {mean[f'width_{kind}_gy']:.1f} Gy"


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * ratio:.1f} %"
