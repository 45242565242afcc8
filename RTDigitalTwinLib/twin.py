"""Twin: a patient with what is believed of it. What a console user holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.calibration.belief import Belief, RecalibratedBelief, prior_of
from RTDigitalTwinLib.calibration.calibrator import SAMPLES, Calibrator
from RTDigitalTwinLib.calibration.choice import default_calibrator
from RTDigitalTwinLib.calibration.recalibration import Update, recalibrate
from RTDigitalTwinLib.decision.action_file import customary_actions
from RTDigitalTwinLib.decision.actions import Action, Situation
from RTDigitalTwinLib.decision.protocol import DecisionProtocol, load_decision
from RTDigitalTwinLib.decision.ranking import FEWEST_SAMPLES, Ranking, rank, require_samples, required_samples
from RTDigitalTwinLib.dosimetry.goals import GoalSet
from RTDigitalTwinLib.errors import ModelError, RTDigitalTwinError
from RTDigitalTwinLib.ledger import Ledger
from RTDigitalTwinLib.ledger_entries import (
    ADOPTED,
    OBSERVED,
    PREDICTED,
    RECOMMENDED,
    UNDONE,
    about_twin,
    belief_sha256,
    observed,
    open_for,
    predicted,
    recommended,
    require_same_twin,
)
from RTDigitalTwinLib.model.familiarity import FamiliarityVerdict
from RTDigitalTwinLib.model.state import StateModel
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.observation import Observation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.solver.calibration_file import load_calibration
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseState
from RTDigitalTwinLib.solver.ensemble import Forecast
from RTDigitalTwinLib.solver.forecast import forecast

ENSEMBLES_KEPT = 3  # the network's own, before and after observing; 15 MB each for 64 samples of a median patient


class Twin:
    """A digital twin of one patient.

    Parameters
    ----------
    patient : as loaded.
    weights : of the dose network; by default those that come with the software.
    device : ``auto``, ``cpu`` or ``cuda``.
    models : further state models by name (motion, toxicity, growth).
    ledger : told of every prediction of the dose and every change of what is believed of it. One that tells of this
        patient already is gone on with; LedgerError where it is of another, or of other weights.
    precision : of the samples, ``single`` or ``half``; see DoseSurrogate.
    dose_model : loaded already; weights, device and precision are then its own.
    """

    def __init__(
        self,
        patient: Patient,
        weights: str | PathLike[str] | None = None,
        device: str = "auto",
        models: Mapping[str, StateModel[Any]] | None = None,
        ledger: Ledger | None = None,
        precision: str = "single",
        *,
        dose_model: DoseState | None = None,
    ) -> None:
        self.patient = patient
        self.models: dict[str, StateModel[Any]] = dict(models or {})
        self._weights = None if weights is None else Path(weights)
        self._device, self._precision = device, precision
        self._beliefs: list[Belief] = []
        self._drawn: dict[tuple[int, int, int], tuple[Belief, DoseEnsemble]] = {}
        self._ledger = ledger
        self._has_opened = False
        if dose_model is not None:
            self.dose_model = dose_model

    def anew(self) -> Twin:
        """The twin as it was before anything was observed or adopted; what was worked out for it is shared."""
        other = Twin(self.patient, models=self.models, dose_model=self.dose_model)
        other._beliefs = [prior_of(self.dose_belief)]
        other._drawn = self._drawn
        return other

    @cached_property
    def dose_model(self) -> DoseState:
        """The dose surrogate with the calibration of its bands, where that was measured; loaded when first used.

        Raises ModelError where weights or calibration are not intact.
        """
        surrogate = DoseSurrogate.load(self._weights, self._device, self._precision)
        return DoseState(surrogate, load_calibration(self._weights, surrogate.weights_sha256))

    @cached_property
    def familiarity(self) -> FamiliarityVerdict | None:
        """Whether the patient is like those the dose network was trained on; None where its weights do not tell."""
        known = self.dose_model.surrogate.familiarity
        return None if known is None else known.judge(prior_of(self.dose_belief).prepared.seen)

    @property
    def dose_belief(self) -> Belief:
        """What is believed of the dose now."""
        if not self._beliefs:
            self._beliefs.append(self.dose_model.initial(self.patient))
        return self._beliefs[-1]

    def observe(
        self,
        observations: Sequence[Observation],
        calibrator: Calibrator | None = None,
        *,
        absorb_outliers: bool = False,
        allow_overlap: bool = False,
        progress: Progress = silent,
    ) -> Update:
        """Absorb observations into the belief about the dose, which the twin holds from then on.

        Values beyond what the belief can explain are flagged and left out, unless ``absorb_outliers``. Without a
        ``calibrator`` the default one is used. Where nothing is left to absorb the belief stays.
        Raises PatientDataError for observations that cannot be the patient's or were absorbed before, and unless
        ``allow_overlap`` for such as tell of the same fractions twice.
        """
        calibrator = calibrator or default_calibrator()
        drawn = self._sampled(prior_of(self.dose_belief), SAMPLES, 0, part(progress, 0.0, 0.3))
        update = recalibrate(
            self.dose_belief,
            observations,
            calibrator,
            drawn,
            self._sampled(self.dose_belief, SAMPLES, 0, part(progress, 0.3, 0.5)),
            absorb_outliers=absorb_outliers,
            allow_overlap=allow_overlap,
            progress=part(progress, 0.5, 1.0),
        )
        if update.after is not update.before:
            self._beliefs.append(update.after)
        if self._ledger is not None:
            self._opened().append(OBSERVED, *observed(update, calibrator, absorb_outliers))
        return update

    def tell(self, ledger: Ledger) -> None:
        """From now on tell this ledger. Raises LedgerError where it is of another patient or of other weights."""
        require_same_twin(ledger.entries, about_twin(self.patient, self.dose_model), ledger.path.name)
        self._ledger, self._has_opened = ledger, False

    def undo(self) -> Belief:
        """Go back to the belief before the last that was adopted. Raises RTDigitalTwinError where there is none."""
        if len(self._beliefs) < 2:
            raise RTDigitalTwinError("There is nothing to undo: the twin has adopted no other belief.")
        self._beliefs.pop()
        if self._ledger is not None:
            self._opened().append(UNDONE, {"belief_sha256": belief_sha256(self.dose_belief)})
        return self.dose_belief

    def adopt(self, belief: RecalibratedBelief) -> None:
        """Hold a belief, such as one that was loaded. Raises ModelError for another patient's or other weights'."""
        mine = prior_of(self.dose_belief)
        theirs = belief.prior
        if theirs.patient.pseudonym != self.patient.pseudonym:
            raise ModelError(f"The belief is of patient {theirs.patient.pseudonym}, not {self.patient.pseudonym}.")
        if theirs.surrogate.weights_sha256 != mine.surrogate.weights_sha256:
            raise ModelError("The belief was made with other weights.", remedy="Load the twin with those weights.")
        self._beliefs.append(belief)
        if self._ledger is not None:
            self._opened().append(ADOPTED, {"belief_sha256": belief_sha256(belief)})

    def _opened(self) -> Ledger:
        """The ledger, told once who writes to it."""
        assert self._ledger is not None
        if not self._has_opened:
            open_for(self._ledger, self.patient, self.dose_model)
            self._has_opened = True
        return self._ledger

    def _sampled(self, belief: Belief, samples: int, seed: int, progress: Progress) -> DoseEnsemble:
        """A belief's samples, drawn once while they are in use; beliefs of one decoder share the network's."""
        if isinstance(belief, RecalibratedBelief) and belief.decoder is None:
            return belief.applied(self._sampled(belief.prior, samples, seed, progress))
        key = (id(belief), samples, seed)
        if key in self._drawn:
            self._drawn[key] = self._drawn.pop(key)  # the last used goes last
        else:
            while len(self._drawn) >= ENSEMBLES_KEPT:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[key] = belief, belief.sample(samples, seed, progress)
        return self._drawn[key][1]

    def predict(self, samples: int = 64, seed: int = 0, progress: Progress = silent) -> DoseEnsemble:
        """Dose with its sampled spread; ``samples`` 0 is deterministic.

        It lies on the grid of its own ``patient``: this twin's, or that one at the network's resolution. Raises
        PatientDataError where the prescription is too far from those the network knows.
        """
        prediction = self._sampled(self.dose_belief, samples, seed, progress)
        if self._ledger is not None:
            self._opened().append(PREDICTED, *predicted(prediction, self.dose_belief))
        return prediction

    def recommend(
        self,
        actions: Sequence[Action] | None = None,
        risk: float | None = None,
        samples: int | None = None,
        seed: int = 0,
        *,
        protocol: DecisionProtocol | None = None,
        goals: Sequence[GoalSet] | None = None,
        progress: Progress = silent,
    ) -> Ranking:
        """Rank what could be done next by expected utility under chance constraints, on what is believed of the dose.

        Keeping the plan is always among it. By default the customary actions, the risk of the ``protocol`` (by default
        the one that comes with the software), and 64 samples, or as many as that risk needs. Clinical ``goals``, by
        default those that fit the prescription, are told and change nothing of the order.
        Raises RTDigitalTwinError for a risk outside 0 to 1 or too few samples to certify it; ProtocolError and
        PatientDataError as ``decision.ranking.rank`` does.
        """
        chosen = (protocol or load_decision()).with_risk(risk)
        count = max(FEWEST_SAMPLES, required_samples(chosen)) if samples is None else samples
        require_samples(count, chosen)
        prediction = self._sampled(self.dose_belief, count, seed, part(progress, 0.0, 0.5))
        asked = tuple(customary_actions(prediction.patient, prediction) if actions is None else actions)
        ranking = rank(Situation(prediction), asked, chosen, goals=goals, progress=part(progress, 0.5, 1.0))
        if self._ledger is not None:
            self._opened().append(RECOMMENDED, *recommended(ranking, asked, self.dose_belief))
        return ranking

    def forecast(self, state: str, days: Sequence[float], samples: int = 64, seed: int = 0) -> Forecast:
        """Observables of one of the twin's states (``dose`` or a name in ``models``) on the days ahead.

        Raises ModelError for a state the twin does not hold.
        """
        if state == "dose":
            return forecast(self.dose_model, self.dose_belief, days, samples, seed)
        if state not in self.models:
            raise ModelError(f"The twin has no state {state!r}; it has {', '.join(['dose', *self.models])}.")
        model = self.models[state]
        return forecast(model, model.initial(self.patient), days, samples, seed)
