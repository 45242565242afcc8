"""Ranking actions by their utility, under chance constraints; and abstaining where nothing can be certified.

An action is acceptable where every constraint is certified: where the upper bound of the probability of its violation,
that so many calibrated samples support, is within the allowed risk. Bounds are of each constraint and action alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from RTDigitalTwinLib.decision.actions import Action, ActionKind, Keep, Outcome, Situation
from RTDigitalTwinLib.decision.chance import Chance, fewest_samples, judge_chance, most_violations, percent
from RTDigitalTwinLib.decision.protocol import Constraint, DecisionProtocol, load_decision
from RTDigitalTwinLib.decision.reasons import MetricChange, metric_changes, reasons_for
from RTDigitalTwinLib.decision.utility import Gain, Term, UtilityValue, terms_for, unverified_notes, utility_of
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.goals import GoalResult, GoalSet, evaluate_goals, fitting_goals
from RTDigitalTwinLib.dosimetry.inside_voxels import covered_dose_of
from RTDigitalTwinLib.errors import Cancelled, RTDigitalTwinError
from RTDigitalTwinLib.model.biology import NOTICE
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.reading import Reading
from RTDigitalTwinLib.words import counted

FEWEST_SAMPLES = 64  # by default


@dataclass(frozen=True, eq=False)
class Assessment:
    """An action with all that it is judged by.

    Attributes
    ----------
    gain : against keeping the plan; None of keeping, and where the samples are not the same.
    goals : of the protocols that fit the prescription, with their probabilities.
    changes : of metrics against keeping the plan, the largest first.
    reasons : plain sentences.
    unread : constraints that could not be judged on this dose, and why.
    """

    action: Action
    outcome: Outcome
    utility: UtilityValue
    gain: Gain | None
    chances: tuple[Chance, ...]
    goals: tuple[GoalResult, ...]
    changes: tuple[MetricChange, ...]
    reasons: tuple[str, ...]
    unread: tuple[str, ...] = ()

    @property
    def is_acceptable(self) -> bool:
        """Whether every constraint is certified; never without any, or with one that cannot be read."""
        return bool(self.chances) and not self.unread and all(chance.is_kept for chance in self.chances)

    @property
    def standing_in_way(self) -> tuple[Chance, ...]:
        """Constraints that are not certified, the furthest first."""
        return tuple(sorted((c for c in self.chances if not c.is_kept), key=lambda c: -c.excess_ratio))

    @property
    def excess_ratio(self) -> float:
        """How many times its risk the bound of its worst constraint is."""
        return max((c.excess_ratio for c in self.chances), default=float("inf"))


@dataclass(frozen=True)
class Refused:
    """An action that cannot be done for this patient, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Ranking:
    """Actions in order: the acceptable by utility, then the others, those nearest to being acceptable first.

    Last are those whose spread was not measured: whatever their samples show, more of them would certify nothing.

    Attributes
    ----------
    protocol : with the risk that was asked for.
    prediction : the dose if nothing is changed, which every action starts from.
    notes : what must be known of all of it.
    obstacles : where nothing is acceptable, what stands in the way, in sentences; else empty.
    """

    protocol: DecisionProtocol
    prediction: DoseEnsemble
    assessed: tuple[Assessment, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    obstacles: tuple[str, ...]

    @property
    def recommended(self) -> Assessment | None:
        """The acceptable action of the highest utility; None where the twin abstains."""
        first = self.assessed[0]
        return first if first.is_acceptable else None

    @property
    def abstains(self) -> bool:
        return self.recommended is None

    @property
    def keep(self) -> Assessment:
        """Going on as planned."""
        return next(a for a in self.assessed if a.action.kind is ActionKind.KEEP)

    @property
    def words(self) -> str:
        """The outcome in one sentence."""
        best = self.recommended
        if best is None:
            return f"No recommendation: none of {counted(len(self.assessed), 'action')} is acceptable."
        acceptable = sum(a.is_acceptable for a in self.assessed)
        verb = "is" if acceptable == 1 else "are"
        found = f"{acceptable} of {counted(len(self.assessed), 'action')} {verb} acceptable"
        return f"Recommended: {best.action.name} (utility {best.utility.value:.3f}; {found})."


def rank(
    situation: Situation,
    actions: Sequence[Action],
    protocol: DecisionProtocol | None = None,
    risk: float | None = None,
    goals: Sequence[GoalSet] | None = None,
    progress: Progress = silent,
) -> Ranking:
    """Judge every action on the samples of the situation's prediction, and rank them; keeping is always among them.

    An action that cannot be done for this patient is left out and told with its reason.

    Parameters
    ----------
    protocol : by default the one that comes with the software.
    risk : allowed probability of a violation, of constraints without their own; None for the protocol's.
    goals : to tell the probabilities of; by default those that fit the prescription.

    Raises
    ------
    ProtocolError : constraints contradict each other.
    PatientDataError : tumour control cannot be modelled for this patient.
    RTDigitalTwinError : two actions of one name, a risk that is none, or too few samples to certify it.
    """
    chosen = (protocol or load_decision()).with_risk(risk)
    prediction = situation.prediction
    patient = prediction.patient
    listed = _with_keep(actions)
    require_samples(prediction.count, chosen)
    constraints, notes = chosen.for_patient(patient)
    terms, more_notes = terms_for(chosen, patient)
    sets = fitting_goals(max(target_levels_gy(patient).values(), default=None)).sets if goals is None else tuple(goals)
    judge = _Judge(chosen, terms, constraints, sets)
    assessed: list[Assessment] = []
    refused: list[Refused] = []
    keep: _Judged | None = None
    for k, action in enumerate(listed):
        share = part(progress, k / len(listed), (k + 1) / len(listed))
        share(0.0, f"action {k + 1} of {len(listed)}: {action.name}")
        try:
            outcome = action.outcome(situation, part(share, 0.0, 0.8))
        except Cancelled:
            raise
        except RTDigitalTwinError as error:
            refused.append(Refused(action.name, str(error)))
            continue
        judged = judge.judged(action, outcome)
        keep = keep or judged  # it goes first
        assessed.append(judge.assessed(action, outcome, judged, keep))
    progress(1.0, "ranked")
    order = tuple(sorted(assessed, key=_place))
    of_models = (*unverified_notes(terms), NOTICE)
    said = [*notes, *more_notes, *judge.notes, chosen.remark(patient), *_of_samples(prediction, chosen), *of_models]
    obstacles = () if order[0].is_acceptable else _obstacles(order, patient, chosen)
    return Ranking(chosen, prediction, order, tuple(refused), tuple(dict.fromkeys(n for n in said if n)), obstacles)


def required_samples(protocol: DecisionProtocol) -> int:
    """The fewest samples that can certify the strictest risk of a protocol."""
    return fewest_samples(_strictest_risk(protocol), protocol.confidence)


def require_samples(samples: int, protocol: DecisionProtocol) -> None:
    """Raise RTDigitalTwinError where so many samples cannot certify a protocol's risk, whatever they show."""
    fewest = max(required_samples(protocol), 2)
    if samples < fewest:
        raise RTDigitalTwinError(
            f"{counted(samples, 'sample')} cannot certify a risk of {percent(_strictest_risk(protocol))} with "
            f"{percent(protocol.confidence)} confidence: at least {fewest} are needed.",
            remedy="Ask for more samples, or allow a higher risk.",
        )


def _strictest_risk(protocol: DecisionProtocol) -> float:
    own = [*(c.risk for c in protocol.constraints), *(t.risk for t in protocol.target_constraints)]
    return min(protocol.risk if risk is None else risk for risk in own)


@dataclass(frozen=True, eq=False)
class _Judged:
    """What a reading of a dose gave."""

    reading: Reading
    utility: UtilityValue
    chances: tuple[Chance, ...]
    goals: tuple[GoalResult, ...]
    unread: tuple[str, ...]


class _Judge:
    """Judges outcomes by one protocol. ``notes`` tell what could not be judged."""

    def __init__(
        self,
        protocol: DecisionProtocol,
        terms: tuple[Term, ...],
        constraints: tuple[Constraint, ...],
        goals: tuple[GoalSet, ...],
    ) -> None:
        self.protocol, self.terms, self.constraints, self.goals = protocol, terms, constraints, goals
        self.notes: list[str] = []

    def judged(self, action: Action, outcome: Outcome) -> _Judged:
        reading, protocol = Reading(outcome.prediction), self.protocol
        chances, unread = [], []
        for constraint in self.constraints:
            try:
                chances.append(judge_chance(constraint, reading.metric, protocol.risk, protocol.confidence))
            except RTDigitalTwinError as error:
                unread.append(f"{constraint}. {error}")
                self.notes.append(f"Not judged, so that nothing is certified: {constraint}. {error}")
        structures = list(outcome.prediction.patient.structures)
        results = [r for goals in self.goals for r in evaluate_goals(goals, structures, reading.metric)]
        utility = utility_of(reading, self.terms, protocol.uncertainty_weight, protocol.effort[action.kind])
        return _Judged(reading, utility, tuple(chances), tuple(results), tuple(unread))

    def assessed(self, action: Action, outcome: Outcome, judged: _Judged, keep: _Judged) -> Assessment:
        same = judged is keep
        gain = None if same else Gain.over(judged.utility, keep.utility)
        changes = () if same else metric_changes(judged.reading, keep.reading)
        reasons = reasons_for(judged.utility, keep.utility, gain, changes, outcome, judged.chances)
        missing = tuple(f"Not certified, for it cannot be judged: {constraint}" for constraint in judged.unread)
        return Assessment(
            action,
            outcome,
            judged.utility,
            gain,
            judged.chances,
            judged.goals,
            changes,
            (*missing, *reasons),
            judged.unread,
        )


def _with_keep(actions: Sequence[Action]) -> tuple[Action, ...]:
    """Keeping first, then the others as given. Raises RTDigitalTwinError for two of one name."""
    kept = [a for a in actions if a.kind is ActionKind.KEEP] or [Keep()]
    listed: tuple[Action, ...] = (*kept, *(a for a in actions if a.kind is not ActionKind.KEEP))
    names = [action.name for action in listed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RTDigitalTwinError(f"Two actions have the same name: {twice[0]}.", remedy="Name or change one of them.")
    return listed


def _place(assessment: Assessment) -> tuple[bool, bool, float, float, float]:
    """Acceptable ones by utility; of the others those that violate least often, then least far, go first.

    Those whose spread is not calibrated come after them, for how often they violate is not known.
    """
    utility = -assessment.utility.value
    if assessment.is_acceptable:
        return False, False, 0.0, 0.0, utility
    far = max((c.excess / max(c.criterion.accepted, 1e-9) for c in assessment.chances), default=0.0)
    unmeasured = any(not c.is_calibrated for c in assessment.chances)
    return True, unmeasured, assessment.excess_ratio, far, utility


def _of_samples(prediction: DoseEnsemble, protocol: DecisionProtocol) -> tuple[str, ...]:
    notes = []
    if not prediction.is_calibrated:
        notes.append(
            "The samples' spread is not calibrated: their probabilities are too sure, and nothing is certified."
        )
    elif prediction.absorbed:
        since = counted(prediction.absorbed, "observation")
        notes.append(f"The spread was calibrated before {since}; what they changed of its coverage was not measured.")
    known = prediction.calibration
    if prediction.is_calibrated and known is not None:
        least_risk = (1 - known.highest_metric_level) / 2  # beyond a central band on one side
        if _strictest_risk(protocol) < least_risk - 1e-9:
            notes.append(
                f"The spread was measured up to the {percent(known.highest_metric_level)} band, on "
                f"{counted(known.patients, 'patient')}: a risk below {percent(least_risk)} rests on tails that are "
                "assumed to be normal, and its certificate on nothing measured."
            )
    return tuple(notes)


def _obstacles(order: tuple[Assessment, ...], patient: Patient, protocol: DecisionProtocol) -> tuple[str, ...]:
    """What stands in the way: of the nearest action, of all of them, and of the plan itself."""
    nearest = order[0]
    if not nearest.chances and not nearest.unread:
        return ("No constraint can be judged for this patient, so nothing can be certified.",)
    first, *others = [f"It cannot be judged: {told}" for told in nearest.unread] + [
        chance.words for chance in nearest.standing_in_way
    ]
    said = [f"The nearest is {nearest.action.name}. {first}", *others]
    kept = {str(chance.constraint) for a in order for chance in a.chances if chance.is_kept}
    never = [chance for chance in nearest.chances if str(chance.constraint) not in kept]
    if len(order) > 1:
        said += [f"No action keeps it: {chance.constraint}." for chance in never]
    for chance in never:
        said += _of_the_plan(chance.constraint, patient)
    few = [c for c in nearest.standing_in_way if c.is_calibrated and c.probability <= c.risk]
    for chance in few:
        most = most_violations(chance.samples, chance.risk, protocol.confidence)
        said.append(
            f"{chance.constraint}: the share of violations is within the risk, but {chance.samples} samples certify it "
            f"only with at most {most}; more samples may tell."
        )
    return tuple(dict.fromkeys(said))


def _of_the_plan(constraint: Constraint, patient: Patient) -> list[str]:
    """That the plan's own dose does not keep a constraint either, where that is so."""
    dose = patient.plan.dose if patient.plans else None
    found = []
    for criterion in constraint.criteria:
        inside = [covered_dose_of(dose, patient.structure(name)) for name in criterion.structures]
        if any(one is None for one in inside):
            return []
        values = [float(one.metric(criterion.metric)[0]) for one in inside if one is not None]
        worst = max(values) if criterion.upper else min(values)
        if bool(criterion.keeps(worst, criterion.accepted)):  # type: ignore[arg-type]
            return []
        found.append(f"{worst:.1f} {criterion.metric.unit}")
    return [f"The plan's own dose does not keep it either: {constraint}, {' and '.join(found)}."]
