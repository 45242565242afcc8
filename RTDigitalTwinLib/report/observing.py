"""What observing changed, as rows: each measurement beside what was expected of it before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from RTDigitalTwinLib.calibration.belief import Belief, RecalibratedBelief
from RTDigitalTwinLib.calibration.outliers import Judgement, judge
from RTDigitalTwinLib.patient.observation import Observation
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.twin import Update

SIMULATED_NOTE = "Observations in this are simulated: they stand in for measurements."
FAR_RATIO = 0.6  # of what can be explained: two standard deviations
BESIDE = "Doses around it were moved with it, targets' coverage too: more values would tell how far that is right."
ABSORBED, LEFT_OUT, ABSORBED_OUTLIER = "absorbed", "outlier, left out", "outlier, absorbed as told"


@dataclass(frozen=True)
class ObservedRow:
    """One observation, its values in terms of the whole course; of a dose volume means over its voxels.

    Attributes
    ----------
    when : the fractions it sums over.
    before, after : expected of it by the belief before it was given, and by the last one.
    reach : how far from the belief before it may lie without being an outlier.
    """

    label: str
    when: str
    source: str
    unit: str
    observed: float
    before: float
    after: float
    reach: float
    outcome: str


@dataclass(frozen=True, eq=False)
class Observing:
    """An update of the belief with the predictions around it.

    Attributes
    ----------
    before : prediction before it.
    method : of the calibrator; None where nothing was absorbed.
    simulated : whether observations in the belief stand in for measurements.
    """

    before: DoseEnsemble
    method: str | None
    simulated: bool
    rows: tuple[ObservedRow, ...]


def observing_of(update: Update, before: DoseEnsemble, after: DoseEnsemble) -> Observing:
    """The update in rows; ``before`` and ``after`` are drawn from its two beliefs."""
    belief = update.after if isinstance(update.after, RecalibratedBelief) else None
    rows = rows_of(update.judgements, update.absorbed, after)
    method = None if belief is None else belief.method
    return Observing(before, method, belief is not None and belief.is_simulated, rows)


def rows_of(
    judgements: Sequence[Judgement], absorbed: Sequence[Observation], after: DoseEnsemble
) -> tuple[ObservedRow, ...]:
    """Each observation as it was judged, and what is expected of it ``after``; by identity ``absorbed`` or left out."""
    rows = []
    for judgement, later in zip(judgements, judge(after, [j.observation for j in judgements]), strict=True):
        observation = judgement.observation
        first = observation.moment.fraction - observation.moment.fractions + 1
        last = observation.moment.fraction
        outcome = ABSORBED
        if judgement.is_outlier:
            outcome = ABSORBED_OUTLIER if any(observation is o for o in absorbed) else LEFT_OUT
        rows.append(
            ObservedRow(
                observation.label,
                f"fraction {last}" if first == last else f"fractions {first} to {last}",
                observation.source,
                observation.unit,
                judgement.observed,
                judgement.expected,
                later.expected,
                judgement.reach,
                outcome,
            )
        )
    return tuple(rows)


def belief_notes(belief: Belief) -> tuple[str, ...]:
    """What the user must see of a belief: simulated measurements, and a change of treatment."""
    if not isinstance(belief, RecalibratedBelief):
        return ()
    simulated = (SIMULATED_NOTE,) if belief.is_simulated else ()
    return (*simulated, *(() if belief.change is None else belief.change.words))


def update_notes(update: Update) -> tuple[str, ...]:
    """What the user must see of an update: of the belief after it, outliers, and what lies far off."""
    notes = list(belief_notes(update.after))
    for judgement in update.judgements:
        if judgement.is_outlier:
            left_out = any(judgement.observation is o for o in update.left_out)
            notes.append(f"Outlier, {'left out' if left_out else 'absorbed as told'}. {judgement.words}.")
        elif abs(judgement.observed - judgement.expected) > FAR_RATIO * judgement.reach:
            notes.append(f"Far from the prediction: {judgement.words}. {BESIDE}")
    return tuple(notes)
