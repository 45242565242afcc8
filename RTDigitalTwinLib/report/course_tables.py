"""Tables of the course study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from RTDigitalTwinLib.words import counted, decimal

Row: TypeAlias = dict[str, Any]

LEVEL = 0.95


def clopper_pearson(hits: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a binomial probability (Clopper and Pearson 1934); (0, 1) without any trial."""
    if not count:
        return 0.0, 1.0
    found = stats.binomtest(hits, count).proportion_ci(level, "exact")
    return float(found.low), float(found.high)


def summarise_courses(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over patients of each scenario and policy, and every case's own numbers.

    The NTCP is the mean over a patient's endpoints; differences to the static policy are of the same patient.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["scenario"], row["policy"]), []).append(row)
    static = {(r["patient"], r["scenario"]): _ntcp(r) for r in rows if r["policy"].startswith("static, risk")}
    means = []
    for (scenario, policy), group in groups.items():
        gained = [_ntcp(r) - static[key] for r in group if (key := (r["patient"], r["scenario"])) in static]
        covered = np.sum([r["covered"] for r in group], axis=0)
        at_end = [hit for r in group for hit in r["covered_at_end"]]
        means.append({
            "scenario": scenario, "policy": policy, "patients": len(group),
            "ntcp_mean_ratio": round(float(np.mean([_ntcp(r) for r in group])), 5),
            "ntcp_against_static_ratio": round(float(np.mean(gained)), 5) if gained else None,
            "better_than_static": sum(d < 0 for d in gained) if gained else None,
            "target_d95_gy": _mean([r["target_d95_gy"] for r in group]),
            "recalibrations": _mean([len(r["recalibrated"]) for r in group]),
            "images": _mean([r["images"] for r in group]),
            "false_alarms": _mean([r["false_alarms"] for r in group]),
            "courses_with_false_alarm": sum(r["false_alarms"] > 0 for r in group),
            "delay_fractions": _mean([r["delay_fractions"] for r in group]),
            "undetected": sum(r["delay_fractions"] is None for r in group) if scenario == "change" else None,
            "coverage_at_end_ratio": round(float(np.mean(at_end)), 4) if at_end else None,
            "coverage_ratio": round(float(covered[0] / covered[1]), 4) if covered[1] else None,
            **_decided(group),
        })  # fmt: skip
    return {"means": means, "cases": list(rows)}


def _decided(group: Sequence[Row]) -> dict[str, Any]:
    """What decisions were worth on the true dose: regret, violated constraints, abstentions and whether rightly.

    Intervals are exact and take decisions as independent, which those of one patient are not: they are too narrow.
    """
    decisions = [d for r in group for d in r["decisions"]]
    made = [d for d in decisions if d["action"] is not None]
    abstained = [d for d in decisions if d["action"] is None]
    violated, asked = sum(d["violated"] for d in made), sum(d["constraints"] for d in made)
    low, high = clopper_pearson(violated, asked)
    return {
        "decisions": len(decisions),
        "abstentions": len(abstained),
        "abstained_rightly": sum(d["possible"] == 0 for d in abstained),
        "recommended": dict(Counter(d["action"] for d in made)),
        "as_best": sum(d["action"] == d["best_action"] for d in made),
        "regret": _mean([d["regret"] for d in made]),
        "regret_abstained": _mean([d["regret"] for d in abstained]),
        "gain": _mean([d["gain"] for d in made]),
        "recommended_violating": sum(d["violated"] > 0 for d in made),
        "violated": violated,
        "constraints": asked,
        "violated_low_ratio": round(low, 4),
        "violated_high_ratio": round(high, 4),
    }


def course_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown tables: one a scenario, one of the decisions where there are any, one of the patients."""
    lines = [
        f"Simulated courses, {counted(len(summary['patients']), 'patient')}: {', '.join(summary['patients'])}.",
        "",
    ]
    for scenario in dict.fromkeys(m["scenario"] for m in summary["means"]):
        means = [m for m in summary["means"] if m["scenario"] == scenario]
        lines += [f"### Courses with {scenario}", ""]
        lines += [
            "| policy | patients | true NTCP, mean of endpoints | against static | better in | target D95 (Gy) "
            "| recalibrations | images | courses with false alarm | delay (fractions) | NTCP bands hold | at the end |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for m in means:
            gained = m["ntcp_against_static_ratio"]
            cells = [
                m["policy"], str(m["patients"]), f"{100 * m['ntcp_mean_ratio']:.2f} %",
                "" if gained is None else f"{decimal(100 * gained, 2, signed=True)} %",
                "" if m["better_than_static"] is None else f"{m['better_than_static']} of {m['patients']}",
                _number(m["target_d95_gy"], 2), _number(m["recalibrations"], 1), _number(m["images"], 1),
                str(m["courses_with_false_alarm"]), _delay(m), _percent(m["coverage_ratio"]),
                _percent(m["coverage_at_end_ratio"]),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    decided = [m for m in summary["means"] if m["decisions"]]
    if decided:
        lines += [
            "### Decisions",
            "",
            f"Judged on the true dose. Allowed is a violation of each constraint with {_allowed(summary)}. Regret, and "
            "gain against keeping, are in utility; intervals take decisions as independent, and are too narrow.",
            "",
            "| courses with | policy | decisions | recommended | best one | regret | gain | constraints violated "
            "| 95 % interval | abstained | rightly | regret of it |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for m in decided:
            interval = f"{100 * m['violated_low_ratio']:.1f} to {100 * m['violated_high_ratio']:.1f} %"
            made = m["decisions"] - m["abstentions"]
            cells = [
                m["scenario"], m["policy"], str(m["decisions"]), str(made), f"{m['as_best']} of {made}",
                _number(m["regret"], 4), _number(m["gain"], 4), f"{m['violated']} of {m['constraints']}", interval,
                str(m["abstentions"]), f"{m['abstained_rightly']} of {m['abstentions']}",
                _number(m["regret_abstained"], 4),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        chosen = sum((Counter(m["recommended"]) for m in decided), Counter())
        told = ", ".join(f"{name} {count} times" for name, count in chosen.most_common())
        lines += ["", f"Recommended: {told or 'nothing'}.", ""]
    lines += ["### True NTCP of each patient, mean of its endpoints", ""]
    policies = list(dict.fromkeys(c["policy"] for c in summary["cases"]))
    lines += [f"| patient | courses with | {' | '.join(policies)} |", "|---|---|" + "---|" * len(policies)]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for c in summary["cases"]:
        found.setdefault((c["patient"], c["scenario"]), {})[c["policy"]] = _ntcp(c)
    for key, values in found.items():
        cells = [f"{100 * values[p]:.2f} %" if p in values else "" for p in policies]
        lines.append(f"| {' | '.join([*key, *cells])} |")
    return "\n".join(lines) + "\n"


def _allowed(summary: Mapping[str, Any]) -> str:
    decider = summary.get("settings", {}).get("decider") or {}
    return f"at most {100 * decider['risk']:g} %" if "risk" in decider else "what the protocol allows"


def _ntcp(row: Row) -> float:
    return float(np.mean(list(row["true_ntcp"].values()))) if row["true_ntcp"] else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(float(np.mean(known)), 4) if known else None


def _delay(mean: Row) -> str:
    missed = mean["undetected"]
    said = _number(mean["delay_fractions"], 1)
    return f"{said} ({missed} never)".strip() if missed else said


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * ratio:.1f} %"
