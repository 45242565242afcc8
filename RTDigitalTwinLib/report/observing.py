"""What observing changed, as rows: each measurement beside what was expected of it before and after."""

from __future__ import annotations

from dataclasses import dataclass

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
from RTDigitalTwinLib.calibration.outliers import judge
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.twin import Update

SIMULATED_NOTE = "Observations in this are simulated: they stand in for measurements."
ABSORBED, LEFT_OUT, ABSORBED_OUTLIER = "absorbed", "outlier, left out", "outlier, absorbed as told"


@dataclass(frozen=True)
class ObservedRow:
    """One observation, its values in terms of the whole course; of a dose volume means over its voxels.

    Attributes
    ----------
    when : the fractions it sums over.
    before, after : expected of it by the belief.
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
    observations = [judgement.observation for judgement in update.judgements]
    rows = []
    for judgement, later in zip(update.judgements, judge(after, observations), strict=True):
        observation = judgement.observation
        first = observation.moment.fraction - observation.moment.fractions + 1
        last = observation.moment.fraction
        outcome = ABSORBED
        if judgement.is_outlier:
            outcome = LEFT_OUT if any(observation is o for o in update.left_out) else ABSORBED_OUTLIER
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
    method = None if belief is None else belief.method
    return Observing(before, method, belief is not None and belief.is_simulated, tuple(rows))


def update_notes(update: Update) -> tuple[str, ...]:
    """What the user must see of an update: simulated measurements, and outliers."""
    notes = []
    if isinstance(update.after, RecalibratedBelief) and update.after.is_simulated:
        notes.append(SIMULATED_NOTE)
    for judgement in update.judgements:
        if judgement.is_outlier:
            left_out = any(judgement.observation is o for o in update.left_out)
            notes.append(f"Outlier, {'left out' if left_out else 'absorbed as told'}. {judgement.words}.")
    return tuple(notes)
