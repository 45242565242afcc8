"""The decider of a course: the ranking under chance constraints, and the same protocol for a dose that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from RTDigitalTwinLib.decision.actions import Action, ActionKind, Situation
from RTDigitalTwinLib.decision.policies import Decision
from RTDigitalTwinLib.decision.protocol import DecisionProtocol, load_decision
from RTDigitalTwinLib.decision.ranking import rank, require_samples
from RTDigitalTwinLib.decision.utility import terms_for
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.reading import Reading


@dataclass(frozen=True, eq=False)
class RankingDecider:
    """Recommends what the ranking does, by one protocol; the policy's weight of uncertainty takes the protocol's place.

    It can be sent to another process.
    """

    protocol: DecisionProtocol = field(default_factory=load_decision)

    def require(self, prediction: DoseEnsemble) -> None:
        """Raises RTDigitalTwinError for too few samples, PatientDataError where tumour control cannot be modelled."""
        require_samples(prediction.count, self.protocol)
        self.protocol.for_patient(prediction.patient)
        terms_for(self.protocol, prediction.patient)

    def decide(self, prediction: DoseEnsemble, actions: Sequence[Action], uncertainty_weight: float) -> Decision:
        protocol = replace(self.protocol, uncertainty_weight=uncertainty_weight)
        ranking = rank(Situation(prediction), actions, protocol, goals=())
        refused = [f"Not possible: {other.name}. {other.reason}" for other in ranking.refused]
        best = ranking.recommended
        return Decision(None if best is None else best.action, (ranking.words, *ranking.obstacles[:1], *refused))

    def utility(self, prediction: DoseEnsemble, kind: ActionKind) -> float:
        patient = prediction.patient
        fractions = patient.plan.prescription.fractions if patient.plans else 1
        benefit = 0.0
        for term in terms_for(self.protocol, patient)[0]:
            inside = prediction.structure_dose(term.structure)
            benefit += term.sign * term.weight * float(term.model.of(inside, fractions)[0])
        return benefit - self.protocol.effort[kind]

    def violated(self, prediction: DoseEnsemble) -> tuple[tuple[str, bool], ...]:
        """Constraints that can be judged; violated is beyond the variation accepted, as in the ranking."""
        reading, found = Reading(prediction), []
        for constraint in self.protocol.for_patient(prediction.patient)[0]:
            kept = []
            for criterion in constraint.criteria:
                try:
                    values = [reading.metric(name, criterion.metric).samples for name in criterion.structures]
                except RTDigitalTwinError:
                    continue
                worst = criterion.worst(np.stack(values))
                kept.append(bool(np.all(criterion.keeps(worst, criterion.accepted))))
            if kept:
                found.append((str(constraint), not any(kept)))
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        return {"protocol": self.protocol.name, "risk": self.protocol.risk, "content": dict(self.protocol.content)}
