"""What decisions weigh and what they may not risk: read from a protocol file, and made concrete for a patient."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.decision.actions import ActionKind
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, DvhMetricKind
from RTDigitalTwinLib.dosimetry.goals import Criterion, read_criterion
from RTDigitalTwinLib.dosimetry.protocol_file import names_of, read_protocol, reading, require_known, text_of
from RTDigitalTwinLib.errors import ProtocolError, RTDigitalTwinError
from RTDigitalTwinLib.model.biology import DoseResponse, Effect, load_biology, models_for
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.resources import resource_path

EVERY, HIGHEST = "every", "highest"
_VOLUMES = (DvhMetricKind.VOLUME_AT_DOSE, DvhMetricKind.CC_AT_DOSE)


@dataclass(frozen=True)
class Weighed:
    """What the utility counts of one endpoint.

    Attributes
    ----------
    structures : of control the first that a patient has counts, of complications each that it has.
    weight : 0 or more; complications count against the utility.
    """

    effect: Effect
    structures: tuple[str, ...]
    endpoint: str
    weight: float


@dataclass(frozen=True)
class Constraint:
    """Kept where any of its criteria is, within the variation accepted.

    Attributes
    ----------
    risk : allowed probability of a violation; None for the protocol's.
    """

    label: str
    criteria: tuple[Criterion, ...]
    risk: float | None = None
    citation: str = ""

    def __str__(self) -> str:
        return " or ".join(_words(criterion) for criterion in self.criteria)


@dataclass(frozen=True)
class TargetConstraint:
    """A limit as a share of the dose prescribed to each target, or (``of`` highest) to that with the highest."""

    label: str
    of: str
    metric: DvhMetric
    upper: bool
    limit_ratio: float
    acceptable_ratio: float | None = None
    risk: float | None = None
    citation: str = ""

    def of_patient(self, patient: Patient) -> tuple[Constraint, ...]:
        """Also of targets that are not drawn, which is then told: no lower one takes the place of the highest."""
        levels = target_levels_gy(patient)
        if self.of == HIGHEST:
            levels = {n: gy for n, gy in levels.items() if gy == max(levels.values())}
        return tuple(
            Constraint(
                self.label,
                (Criterion((name,), self.metric, self.upper, gy * self.limit_ratio, self._accepted_gy(gy)),),
                self.risk,
                self.citation,
            )
            for name, gy in levels.items()
        )

    def _accepted_gy(self, level_gy: float) -> float | None:
        return None if self.acceptable_ratio is None else level_gy * self.acceptable_ratio


@dataclass(frozen=True)
class DecisionProtocol:
    """The utility's weights and the hard constraints.

    Attributes
    ----------
    uncertainty_weight : of the standard deviation of the benefit over the samples; 0 is risk-neutral.
    effort : by kind of action, in units of utility.
    risk : allowed probability that a constraint is violated, where it has none of its own.
    confidence : of the bound on that probability.
    gy_per_fraction : of the highest prescribed dose, that limits and weights are meant for; None for any.
    content : as it was read, to be told to a ledger.
    """

    name: str
    title: str
    citation: str
    weighed: tuple[Weighed, ...]
    uncertainty_weight: float
    effort: Mapping[ActionKind, float]
    constraints: tuple[Constraint, ...]
    target_constraints: tuple[TargetConstraint, ...]
    risk: float
    confidence: float
    gy_per_fraction: tuple[float, float] | None = None
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def with_risk(self, risk: float | None) -> DecisionProtocol:
        """With another allowed risk for constraints that have none of their own; None leaves it."""
        return self if risk is None else replace(self, risk=required_ratio(risk, "The risk"))

    def for_patient(self, patient: Patient) -> tuple[tuple[Constraint, ...], tuple[str, ...]]:
        """Constraints that a patient's structures allow to judge, and what is said of the others.

        Raises ProtocolError where they contradict each other for this patient.
        """
        asked = [*(c for t in self.target_constraints for c in t.of_patient(patient)), *self.constraints]
        kept, notes = [], []
        for constraint in asked:
            possible = tuple(c for c in constraint.criteria if all(n in patient.structures for n in c.structures))
            if possible:
                kept.append(replace(constraint, criteria=possible))
            else:
                absent = {n: None for c in constraint.criteria for n in c.structures if n not in patient.structures}
                notes.append(f"Not judged: {constraint}. There is no structure {' or '.join(absent)}.")
        if self.target_constraints and not target_levels_gy(patient):
            notes.append("Not judged: limits of targets. No dose is prescribed.")
        require_consistent(kept, patient.pseudonym)
        return tuple(kept), tuple(notes)

    def remark(self, patient: Patient) -> str:
        """What to say of a patient's fractionation; "" where it is what the protocol is meant for."""
        if self.gy_per_fraction is None or not patient.plans:
            return ""
        low, high = self.gy_per_fraction
        prescription = patient.plan.prescription
        given = prescription.highest_gy / prescription.fractions
        if low <= given <= high:
            return ""
        return f"The limits and weights are meant for {low:g} to {high:g} Gy a fraction; the plan has {given:.2f} Gy."


def load_decision(path: Path | None = None) -> DecisionProtocol:
    """A protocol file; by default the one that comes with the software. Raises ProtocolError as ``decision_of``."""
    path = path or resource_path("Protocols", "decision.toml")
    return decision_of(read_protocol(path), path.name)


def decision_of(content: Mapping[str, Any], where: str) -> DecisionProtocol:
    """The protocol that a file's content describes.

    Raises ProtocolError that names file and entry where something is missing, unknown, impossible or contradictory.
    """
    models = load_biology()
    with reading(where):
        known = {"name", "title", "citation", "dose_unit", "gy_per_fraction", "chance", "utility", "constraints"}
        require_known(content, known | {"target_constraints"})
        texts = [text_of(content[key]) for key in ("name", "title", "citation")]
        chance, utility = content["chance"], content["utility"]
        require_known(chance, {"risk", "confidence"})
        require_known(utility, {"uncertainty_weight", "effort", "control", "complications"})
        uncertainty = _weight(utility["uncertainty_weight"], "uncertainty_weight")
        effort = _effort(utility.get("effort", {}))
        span = _span(content["gy_per_fraction"]) if "gy_per_fraction" in content else None
        risk, confidence = (_ratio(chance[key], key, where) for key in ("risk", "confidence"))
    weighed = [
        *(_weighed(Effect.TCP, e, models, w) for e, w in _entries(utility, "control", where)),
        *(_weighed(Effect.NTCP, e, models, w) for e, w in _entries(utility, "complications", where)),
    ]
    if not any(w.effect is Effect.TCP and w.weight > 0 for w in weighed):
        raise ProtocolError(
            "The utility counts no tumour control, so that no dose at all would be best.",
            where=where,
            remedy="Write an entry [[utility.control]] with a weight above 0.",
        )
    constraints = tuple(_constraint(entry, w) for entry, w in _entries(content, "constraints", where))
    of_targets = tuple(_target_constraint(entry, w) for entry, w in _entries(content, "target_constraints", where))
    if not constraints and not of_targets:
        raise ProtocolError("There are no constraints, so that nothing would be certified.", where=where)
    require_consistent(constraints, where)
    return DecisionProtocol(
        texts[0], texts[1], texts[2], tuple(weighed), uncertainty, effort, constraints, of_targets, risk, confidence,
        span, content,
    )  # fmt: skip


def required_ratio(value: float, what: str, where: str = "") -> float:
    """Raises RTDigitalTwinError unless a probability lies between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise RTDigitalTwinError(
            f"{what} must lie between 0 and 1, not {value:g}.", where=where, remedy="Use 0.05 for 5 %."
        )
    return float(value)


def require_consistent(constraints: Iterable[Constraint], where: str) -> None:
    """Raise ProtocolError where no dose at all can keep two constraints, even within the variations accepted.

    Constraints with alternatives contradict none: another criterion may hold.
    """
    single = [
        (c, c.criteria[0], name) for c in constraints if len(c.criteria) == 1 for name in c.criteria[0].structures
    ]
    for low, least, name in (row for row in single if not row[1].upper):
        for high, most, other in (row for row in single if row[1].upper):
            if name == other and least.accepted > most.accepted and never_above(least.metric, most.metric):
                raise ProtocolError(
                    f"Two constraints contradict each other in {name}: {low} and {high}.",
                    where=where,
                    remedy="Correct or remove one of them.",
                )


def never_above(one: DvhMetric, other: DvhMetric) -> bool:
    """Whether a metric cannot exceed another in any dose of a structure: D95 and D2, V70 and V60, mean and max."""
    if one == other:
        return True
    if one.unit != other.unit:
        return False
    if one.kind is other.kind:
        return one.argument >= other.argument
    if one.kind in _VOLUMES:
        return False
    return one.kind is DvhMetricKind.MIN or other.kind is DvhMetricKind.MAX


def _words(criterion: Criterion) -> str:
    if criterion.acceptable is None:
        return str(criterion)
    return f"{criterion} ({criterion.acceptable:g} accepted)"


def _entries(content: Mapping[str, Any], key: str, where: str) -> Sequence[tuple[Mapping[str, Any], str]]:
    entries = content.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ProtocolError(f"{key} is no list of entries.", where=where)
    return [(entry, f"{where}, {key.replace('_', ' ')} {k}") for k, entry in enumerate(entries, start=1)]


def _weighed(effect: Effect, entry: Mapping[str, Any], models: tuple[DoseResponse, ...], where: str) -> Weighed:
    with reading(where):
        require_known(entry, {"structures", "endpoint", "weight"})
        found = Weighed(
            effect, names_of(entry["structures"]), text_of(entry["endpoint"]), _weight(entry["weight"], "weight")
        )
    for name in found.structures:
        fitting = [m.endpoint for m in models_for(models, name) if m.effect is effect]
        if found.endpoint not in fitting:
            there = f"there is {'; '.join(fitting)}" if fitting else "there is none"
            raise ProtocolError(
                f"There is no {effect.value} model of this endpoint for {name}: {found.endpoint}.",
                where=where,
                remedy=f"For {name} {there}.",
            )
    return found


def _constraint(entry: Mapping[str, Any], where: str) -> Constraint:
    with reading(where):
        require_known(entry, {"label", "criteria", "risk", "citation"})
        criteria = tuple(read_criterion(criterion, where) for criterion in entry["criteria"])
        if not criteria:
            raise ValueError("it has no criteria")
        return Constraint(text_of(entry["label"]), criteria, _own_risk(entry, where), str(entry.get("citation", "")))


def _target_constraint(entry: Mapping[str, Any], where: str) -> TargetConstraint:
    with reading(where):
        require_known(
            entry,
            {"label", "targets", "metric", "at_least_ratio", "at_most_ratio", "acceptable_ratio", "risk", "citation"},
        )
        if (of := entry["targets"]) not in (EVERY, HIGHEST):
            raise ValueError(f'targets is {of!r}; write "{EVERY}" or "{HIGHEST}"')
        metric = DvhMetric.parse(text_of(entry["metric"]))
        if metric.unit != "Gy":
            raise ValueError(f"{metric} is in {metric.unit} and no share of a prescribed dose")
        if ("at_most_ratio" in entry) == ("at_least_ratio" in entry):
            raise ValueError("write either at_most_ratio or at_least_ratio")
        upper = "at_most_ratio" in entry
        limit = _share(entry["at_most_ratio" if upper else "at_least_ratio"])
        accepted = _share(entry["acceptable_ratio"]) if "acceptable_ratio" in entry else None
        if accepted is not None and (accepted < limit if upper else accepted > limit):
            raise ValueError(f"the accepted variation {accepted:g} is stricter than the limit {limit:g}")
        return TargetConstraint(
            text_of(entry["label"]), of, metric, upper, limit, accepted, _own_risk(entry, where),
            str(entry.get("citation", "")),
        )  # fmt: skip


def _own_risk(entry: Mapping[str, Any], where: str) -> float | None:
    return _ratio(entry["risk"], "risk", where) if "risk" in entry else None


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}, which is no number")
    return float(value)


def _ratio(value: object, what: str, where: str) -> float:
    try:
        return required_ratio(_number(value, what), what)
    except RTDigitalTwinError as error:
        raise ProtocolError(error.what, where=where, remedy=error.remedy) from error


def _weight(value: object, what: str) -> float:
    if (number := _number(value, what)) < 0:
        raise ValueError(f"{what} is {number:g}; it must be 0 or more")
    return number


def _share(value: object) -> float:
    if not 0 < (number := _number(value, "a share of the prescribed dose")) <= 2:
        raise ValueError(f"{number:g} is no share of a prescribed dose; write 0.95 for 95 %")
    return number


def _span(value: object) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2 or not 0 < _number(value[0], "low") < _number(value[1], "high"):
        raise ValueError(f"gy_per_fraction is {value!r}; write the lowest and the highest")
    return float(value[0]), float(value[1])


def _effort(entry: object) -> dict[ActionKind, float]:
    if not isinstance(entry, Mapping):
        raise ValueError("effort is no table")
    require_known(entry, {kind.value for kind in ActionKind})
    given = {ActionKind(name): _weight(value, f"effort of {name}") for name, value in entry.items()}
    return {kind: given.get(kind, 0.0) for kind in ActionKind}
