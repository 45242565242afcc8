"""A plan from a library, such as a plan of the day: a known dose in place of the present plan's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from RTDigitalTwinLib.decision.actions import ActionKind, Outcome, Situation, added
from RTDigitalTwinLib.decision.beam_changes import beam_consistent_ratio
from RTDigitalTwinLib.decision.objective import mean_gy
from RTDigitalTwinLib.errors import GeometryError, PatientDataError
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.progress import Progress, silent

UNCERTAINTY_NOTE = (
    "A planned dose is known, and the network's uncertainty is not its own: what is kept is how uncertain the present "
    "dose is, as a stand-in for how the delivered dose may differ from the planned one. That was not measured, so that "
    "nothing of it is certified."
)


@dataclass(frozen=True, eq=False)
class LibraryPlan:
    """Go on with another plan, whose dose is known.

    Its difference from the present plan's dose is added to every sample; where that is not known, its difference from
    the predicted mean. An error that the prediction makes of this patient's dose is so taken to be the same for both.

    Attributes
    ----------
    title : of the plan.
    dose : Gy, physical, of the whole course, in the frame of the planning CT.
    remarks : what is to be told of it.
    """

    title: str
    dose: Volume
    remarks: tuple[str, ...] = ()
    kind: ActionKind = ActionKind.LIBRARY_PLAN

    @property
    def name(self) -> str:
        return f"plan {self.title}"

    def outcome(self, situation: Situation, progress: Progress = silent) -> Outcome:
        """Raises PatientDataError where the dose does not cover a structure, GeometryError in another frame."""
        prediction, patient = situation.prediction, situation.patient
        inside = prediction.crop.mask_indices
        wanted = self.dose.resampled(patient.ct.grid).values.reshape(-1)[inside]
        reference = patient.plan.dose if patient.plans and not patient.plan.dose_is_effective else None
        present = mean_gy(prediction) if reference is None else reference.values.reshape(-1)[inside]
        unknown = ~(np.isfinite(wanted) & np.isfinite(present))
        for name, structure in patient.structures.items():
            if structure.kind is not StructureKind.REGION and (structure.mask.reshape(-1)[inside] & unknown).any():
                raise PatientDataError(
                    f"The dose of {self.title} is not known in all of {name}.",
                    where=self.title,
                    remedy="Give a dose that covers the structures.",
                )
        change_gy = np.where(unknown, 0, np.nan_to_num(wanted) - np.nan_to_num(present)).astype(np.float32)
        notes = [*self.remarks]
        if reference is None:
            notes.append("The present plan's dose is not known: the plan's dose takes the place of the predicted mean.")
        if unknown.any():
            notes.append(f"In {100 * unknown.mean():.1f} % of the dose mask it is not known, and nothing is changed.")
        ratio = None
        try:
            explained = situation.explained(progress)
            ratio = beam_consistent_ratio(change_gy, explained.projected(change_gy).change_gy)
            notes += [f"Of the change {100 * ratio:.0f} % is consistent with the present beams.", explained.words]
        except (PatientDataError, GeometryError) as error:
            notes.append(f"How consistent it is with the present beams is not known. {error.what}")
        return Outcome(added(prediction, change_gy, calibrated=False), ratio, (*notes, UNCERTAINTY_NOTE))
