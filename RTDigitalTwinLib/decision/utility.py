"""Utility of a dose: tumour control minus weighted complications, and what its uncertainty costs.

For every calibrated sample of the dose the benefit is the sum of weight x TCP minus the sum of weight x NTCP. The
utility is the mean, minus the uncertainty's weight times its standard deviation (n - 1), minus the action's effort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.decision.protocol import DecisionProtocol, Weighed
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.biology import DoseResponse, Effect, applicable, load_biology
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.ensemble import even_band
from RTDigitalTwinLib.solver.reading import Reading

LEVEL = 0.95  # of bands


@dataclass(frozen=True)
class Term:
    """What the utility counts of one endpoint in one structure of a patient; complications count against it."""

    structure: str
    model: DoseResponse
    weight: float

    @property
    def sign(self) -> float:
        return 1.0 if self.model.effect is Effect.TCP else -1.0

    @property
    def label(self) -> str:
        return f"{self.model.effect.value} of {self.structure}: {self.model.endpoint}"


@dataclass(frozen=True, eq=False)
class TermValue:
    """A term's probability (samples,), 0..1."""

    term: Term
    samples: NDArray[np.float64]
    is_calibrated: bool

    @property
    def probability(self) -> float:
        return float(self.samples.mean())

    @property
    def contribution(self) -> float:
        """To the expected benefit."""
        return self.term.sign * self.term.weight * self.probability


@dataclass(frozen=True, eq=False)
class UtilityValue:
    """The utility of a dose and what makes it up.

    Attributes
    ----------
    benefit : (samples,) weighted control minus weighted complications.
    uncertainty_weight : of its standard deviation.
    effort : of the action.
    """

    terms: tuple[TermValue, ...]
    benefit: NDArray[np.float64]
    uncertainty_weight: float
    effort: float

    @property
    def expected(self) -> float:
        """Mean benefit without the effort: what a risk-neutral decision maximises."""
        return float(self.benefit.mean()) - self.effort

    @property
    def uncertainty(self) -> float:
        """Standard deviation of the benefit over the calibrated samples."""
        return float(self.benefit.std(ddof=1))

    @property
    def penalty(self) -> float:
        return self.uncertainty_weight * self.uncertainty

    @property
    def value(self) -> float:
        return self.expected - self.penalty

    def band(self, level: float = LEVEL) -> tuple[float, float]:
        """Central band of the benefit without the effort."""
        return even_band(self.benefit - self.effort, level)


@dataclass(frozen=True)
class Gain:
    """An action's benefit minus effort against keeping the plan, sample by sample of the same errors.

    Attributes
    ----------
    low, high : of the central 95 % band.
    probability_better : share of the samples in which it is higher.
    """

    expected: float
    low: float
    high: float
    probability_better: float

    @classmethod
    def over(cls, one: UtilityValue, keep: UtilityValue) -> Gain | None:
        """None where they are not of the same samples."""
        if one.benefit.size != keep.benefit.size:
            return None
        off = (one.benefit - one.effort) - (keep.benefit - keep.effort)
        return cls(float(off.mean()), *even_band(off, LEVEL), float((off > 0).mean()))


def terms_for(protocol: DecisionProtocol, patient: Patient) -> tuple[tuple[Term, ...], tuple[str, ...]]:
    """What the utility counts for a patient, and what is said of what it cannot.

    Raises PatientDataError where no tumour control can be modelled: less dose would always be better.
    """
    fractions = patient.plan.prescription.fractions if patient.plans else None
    pairs, notes = applicable(load_biology(), patient.structures, fractions)
    terms, absent = [], []
    for weighed in protocol.weighed:
        found = [(n, m) for n in weighed.structures for name, m in pairs if name == n and _is(weighed, m)]
        absent += [name for name in weighed.structures if name not in patient.structures]
        terms += [Term(name, model, weighed.weight) for name, model in found[: _most(weighed)]]
    if not any(term.model.effect is Effect.TCP for term in terms):
        wanted = [name for w in protocol.weighed if w.effect is Effect.TCP for name in w.structures]
        raise PatientDataError(
            f"Tumour control cannot be modelled: there is no structure {' or '.join(wanted)}.",
            where=patient.pseudonym,
            remedy="Name the target so, or give a protocol with a model of it.",
        )
    organs = [n for w in protocol.weighed if w.effect is Effect.NTCP for n in w.structures if n in absent]
    if organs:
        notes.append(f"Not in the utility, for the structure is absent: {', '.join(dict.fromkeys(organs))}.")
    return tuple(terms), tuple(notes)


def unverified_notes(terms: Sequence[Term]) -> tuple[str, ...]:
    """Which models of the utility have parameters that were not verified in a source, and what of them."""
    by_reason: dict[str, list[str]] = {}
    for term in terms:
        if term.model.unverified:
            by_reason.setdefault(term.model.unverified, []).append(term.label)
    if not by_reason:
        return ()
    told = "; ".join(f"{', '.join(labels)} ({reason})" for reason, labels in by_reason.items())
    return (f"The utilities rest on models whose parameters are not all verified: {told}.",)


def utility_of(reading: Reading, terms: tuple[Term, ...], uncertainty_weight: float, effort: float) -> UtilityValue:
    """The utility of a predicted dose. Raises RTDigitalTwinError with fewer than two samples."""
    if not reading.prediction.has_spread:
        raise RTDigitalTwinError("A utility needs at least two samples.", remedy="Predict with more samples.")
    patient = reading.prediction.patient
    fractions = patient.plan.prescription.fractions if patient.plans else 1
    values = []
    for term in terms:
        found = reading.response(term.structure, term.model, fractions)
        values.append(TermValue(term, found.probability, bool(found.is_calibrated)))
    benefit = np.sum([v.term.sign * v.term.weight * v.samples for v in values], axis=0)
    return UtilityValue(tuple(values), benefit, uncertainty_weight, effort)


def _is(weighed: Weighed, model: DoseResponse) -> bool:
    return model.effect is weighed.effect and model.endpoint == weighed.endpoint


def _most(weighed: Weighed) -> int | None:
    return 1 if weighed.effect is Effect.TCP else None
