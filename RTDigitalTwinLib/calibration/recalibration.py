"""Recalibration: judge observations, leave out what cannot be explained, and absorb the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from RTDigitalTwinLib.calibration.belief import Belief, RecalibratedBelief, absorbed_by, in_time, prior_of
from RTDigitalTwinLib.calibration.calibrator import SAMPLES, Calibrator, gather
from RTDigitalTwinLib.calibration.choice import default_calibrator
from RTDigitalTwinLib.calibration.outliers import Earlier, Judgement, judge, judged_shift
from RTDigitalTwinLib.calibration.position import Position, moved
from RTDigitalTwinLib.patient.observation import CouchShiftObservation, Observation, require_apart, require_fit
from RTDigitalTwinLib.progress import Progress, part, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble


@dataclass(frozen=True, eq=False)
class Update:
    """What observing did.

    Attributes
    ----------
    before, after : the belief; the same one where nothing was absorbed.
    judgements : of every observation, in the order given.
    absorbed, left_out : the observations taken in, and the outliers that were not.
    """

    before: Belief
    after: Belief
    judgements: tuple[Judgement, ...]
    absorbed: tuple[Observation, ...]
    left_out: tuple[Observation, ...]


def recalibrate(
    belief: Belief,
    observations: Sequence[Observation],
    calibrator: Calibrator | None = None,
    drawn: DoseEnsemble | None = None,
    seen: DoseEnsemble | None = None,
    *,
    absorb_outliers: bool = False,
    allow_overlap: bool = False,
    progress: Progress = silent,
) -> Update:
    """A belief with observations absorbed besides what it holds already; ``belief`` stays as it is.

    Values beyond what the belief can explain are flagged and left out, unless ``absorb_outliers``. Where nothing is
    left to absorb the belief stays.

    Parameters
    ----------
    calibrator : by default the one of ``choice``.
    drawn : ``SAMPLES`` samples of the network's own belief with seed 0, where they are at hand.
    seen : as many of ``belief``, likewise.

    Raises PatientDataError for observations that cannot be the patient's or were absorbed before, and unless
    ``allow_overlap`` for such that share fractions with others of the same thing: they would count twice.
    """
    prior = prior_of(belief)
    require_fit(observations, prior.patient, absorbed_by(belief))
    if not allow_overlap:
        require_apart(observations, absorbed_by(belief))
    if drawn is None:
        drawn = prior.sample(SAMPLES, 0, part(progress, 0.0, 0.3))
    shifts = [o for o in observations if isinstance(o, CouchShiftObservation)]
    held = [o for o in shifts if absorb_outliers or not judged_shift(o).is_outlier]
    doses = [o for o in observations if not isinstance(o, CouchShiftObservation)]
    # Doses are judged where the patient lay, so that shifts come first.
    there = Position.of(in_time([*absorbed_by(belief), *held, *doses]))
    if seen is None or held or any(isinstance(o, CouchShiftObservation) for o in absorbed_by(belief)):
        seen = _seen(belief, drawn, there.measured_mm, part(progress, 0.3, 0.5))
    earlier = Earlier.of(absorbed_by(belief), moved(drawn, there.measured_mm))
    judgements = judge(seen, observations, earlier, there.measured_noise_mm)
    left_out = () if absorb_outliers else tuple(j.observation for j in judgements if j.is_outlier)
    absorbed = tuple(o for o in observations if not any(o is other for other in left_out))
    after: Belief = belief
    if absorbed:
        chosen = calibrator or default_calibrator()
        after = chosen.absorb(gather(belief, absorbed, drawn), part(progress, 0.5, 1.0))
    return Update(belief, after, judgements, absorbed, left_out)


def _seen(
    belief: Belief, drawn: DoseEnsemble, measured_mm: tuple[float, float, float], progress: Progress
) -> DoseEnsemble:
    """Samples of a belief that began from the one ``drawn`` is of, where dose is measured."""
    if not isinstance(belief, RecalibratedBelief):
        return moved(drawn, measured_mm)
    if belief.decoder is not None:
        drawn = belief.drawn(SAMPLES, 0, progress)
    return belief.applied_at(drawn, measured_mm)
