"""Why an action stands where it stands, in plain sentences, against keeping the plan."""

from __future__ import annotations

from dataclasses import dataclass

from RTDigitalTwinLib.decision.actions import Outcome
from RTDigitalTwinLib.decision.chance import Chance, percent
from RTDigitalTwinLib.decision.utility import Gain, UtilityValue
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.solver.reading import Reading
from RTDigitalTwinLib.words import decimal

TARGET_METRICS, ORGAN_METRICS = ("D95", "D1"), ("mean", "D0.1cc")
LEAST_CHANGE_GY = 0.1  # less is not told
LEAST_CHANGE_RATIO = 0.001  # of a probability
MOST_TOLD = 4


@dataclass(frozen=True)
class MetricChange:
    """A metric's mean over the samples with keeping the plan and with the action, in Gy."""

    structure: str
    metric: str
    keep: float
    value: float

    @property
    def change(self) -> float:
        return self.value - self.keep

    @property
    def words(self) -> str:
        falls = "falls" if self.change < 0 else "rises"
        return (
            f"{self.structure} {self.metric} {falls} by {abs(self.change):.1f} Gy ({self.keep:.1f} → {self.value:.1f})."
        )


def metric_changes(reading: Reading, keep: Reading) -> tuple[MetricChange, ...]:
    """Of D95 and D1 of targets, mean and D0.1cc of organs; the largest change first."""
    found = []
    patient = reading.prediction.patient
    for name, structure in patient.structures.items():
        if name not in keep.prediction.patient.structures or structure.kind is StructureKind.REGION:
            continue
        for metric in TARGET_METRICS if structure.kind is StructureKind.TARGET else ORGAN_METRICS:
            parsed = DvhMetric.parse(metric)
            before, after = (r.metric(name, parsed).nominal for r in (keep, reading))
            found.append(MetricChange(name, metric, before, after))
    return tuple(sorted(found, key=lambda row: -abs(row.change)))


def reasons_for(
    utility: UtilityValue,
    keep: UtilityValue,
    gain: Gain | None,
    changes: tuple[MetricChange, ...],
    outcome: Outcome,
    chances: tuple[Chance, ...],
) -> tuple[str, ...]:
    """What stands in the way first, then what must be known of the action, then what is gained and lost."""
    said = [f"Not certified. {chance.words}" for chance in chances if not chance.is_kept]
    said += outcome.notes
    if gain is not None:
        said.append(
            f"Better than keeping the plan in {percent(gain.probability_better)} of the samples: "
            f"{decimal(gain.expected, 3, signed=True)} in utility before the uncertainty's penalty "
            f"(95 % of the samples: {decimal(gain.low, 3, signed=True)} to {decimal(gain.high, 3, signed=True)})."
        )
    said += _of_terms(utility, keep)
    said += [row.words for row in changes[:MOST_TOLD] if abs(row.change) >= LEAST_CHANGE_GY]
    if utility.effort:
        said.append(f"Its effort counts {utility.effort:g}.")
    return tuple(said)


def _of_terms(utility: UtilityValue, keep: UtilityValue) -> list[str]:
    told = []
    pairs = zip(utility.terms, keep.terms, strict=True)
    for now, before in sorted(pairs, key=lambda pair: -abs(pair[0].contribution - pair[1].contribution)):
        change = now.probability - before.probability
        if abs(change) >= LEAST_CHANGE_RATIO:
            effect, structure = now.term.model.effect.value, now.term.structure
            told.append(
                f"{effect} of {structure} ({now.term.model.endpoint}) {'falls' if change < 0 else 'rises'} by "
                f"{100 * abs(change):.1f} points ({100 * before.probability:.1f} → {100 * now.probability:.1f} %"
                f"{'; its parameters are not all verified' if now.term.model.unverified else ''})."
            )
    return told[:MOST_TOLD]
