"""What beams can do to a dose: the fluence that explains it, and how much of a change in space they can produce.

Dose is linear in fluence (``dosimetry.beams``). The non-negative fluence whose dose is nearest to the present one, in
least squares over the dose mask, is fitted first. A change that is asked for is then projected: the non-negative
fluence is sought whose dose differs from the explained one as nearly as possible by that change, and the difference of
the two doses is what the beams achieve. What the fit could not explain stays in the present dose as it is.

The *beam-consistent share* of a change is 1 - |asked - achieved|^2 / |asked|^2 over the mask's voxels, within 0 and 1.
It speaks of a model of parallel rays of free intensity, and is no proof that a machine could deliver the change.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.dosimetry.beam_matrix import BeamMatrix
from RTDigitalTwinLib.dosimetry.beams import CoplanarBeams, non_negative_minimum, prescribed_fluence
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.model.crop import Crop
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import OPENKBP_GANTRY_ANGLES_DEG
from RTDigitalTwinLib.progress import Progress, part, silent

FIT_ITERATIONS = 30  # of the sample patient's dose; twice as many explain 0.1 % more of it
PROJECTION_ITERATIONS = 20
NOTICE = (
    "What is beam-consistent could be made by parallel rays of free intensity; it is not shown that a machine can "
    "deliver it."
)


@dataclass(frozen=True, eq=False)
class BeamChange:
    """A change of the dose that non-negative fluence produces.

    Attributes
    ----------
    fluence : (beams, slices, rays), after the change.
    change_gy : (mask voxels,) float32.
    """

    fluence: Tensor
    change_gy: NDArray[np.float32]


class PatientBeams:
    """A patient's coplanar beams, between fluence and the voxels of the dose mask.

    Attributes
    ----------
    beams : within the box of the dose mask.
    are_assumed : whether the plan names no angles, and nine equally spaced fields stand in.
    """

    def __init__(self, patient: Patient, crop: Crop) -> None:
        """Raises PatientDataError without a plan or where its beams are known to be no fixed coplanar fields.

        Raises GeometryError where the CT is not axial.
        """
        if patient.plan.not_fixed_fields:
            raise PatientDataError(
                f"Changes cannot be projected on the plan's beams: {patient.plan.not_fixed_fields}",
                where=patient.pseudonym,
                remedy="Only fixed coplanar photon fields are known; ask for actions that change nothing in space.",
            )
        box = patient.dose_mask.box
        self.are_assumed = not patient.plan.gantry_angles_deg
        angles_deg = patient.plan.gantry_angles_deg or OPENKBP_GANTRY_ANGLES_DEG
        self.beams = CoplanarBeams(patient.ct.values, patient.ct.grid, angles_deg, window=box)
        inside = np.unravel_index(crop.mask_indices, patient.ct.grid.shape)
        starts = [side.start for side in box]
        first = [index - start for index, start in zip(inside, starts, strict=True)]
        self._places = torch.from_numpy(np.ravel_multi_index(first, self.beams.shape))
        self._matrix = BeamMatrix(self.beams, self._places)

    @property
    def voxels(self) -> int:
        """Number of the mask's."""
        return len(self._places)

    def dose(self, fluence: Tensor) -> Tensor:
        """Gy (mask voxels,) of a fluence (beams, slices, rays)."""
        return self._matrix.dose(fluence)

    def transposed(self, values: Tensor) -> Tensor:
        """The adjoint of ``dose``: (mask voxels,) to (beams, slices, rays)."""
        return self._matrix.transposed(values)

    def spread(self, values: Tensor) -> Tensor:
        """(mask voxels,) in the box (slices, rows, columns); 0 elsewhere."""
        whole = torch.zeros(self.beams.shape).flatten()
        whole[self._places] = values
        return whole.view(self.beams.shape)

    def open_fluence(self) -> Tensor:
        return torch.ones(self.beams.fluence_shape)

    def nearest(self, wanted_gy: Tensor, start: Tensor, iterations: int, progress: Progress = silent) -> Tensor:
        """Non-negative fluence whose dose is nearest to ``wanted_gy`` (mask voxels,) in least squares."""
        with torch.no_grad():
            majoriser = self.transposed(self.dose(self.open_fluence()))
            return non_negative_minimum(
                start, self.dose, lambda _, dose: self.transposed(dose - wanted_gy), majoriser, iterations, progress
            )


@dataclass(frozen=True, eq=False)
class ExplainedDose:
    """The fluence that explains a dose best.

    Attributes
    ----------
    fluence : (beams, slices, rays), non-negative.
    dose_gy : (mask voxels,) its dose.
    correlation : of that dose with the one explained, over the mask.
    mean_absolute_error_gy : between them.
    """

    beams: PatientBeams
    fluence: Tensor
    dose_gy: Tensor
    correlation: float
    mean_absolute_error_gy: float

    @property
    def words(self) -> str:
        beams = "nine assumed fields" if self.beams.are_assumed else "the plan's fields"
        return (
            f"The fluence of {beams} explains the present dose with a correlation of {self.correlation:.3f} and a mean "
            f"absolute error of {self.mean_absolute_error_gy:.1f} Gy."
        )

    def change_gy(self, fluence: Tensor) -> Tensor:
        """(mask voxels,) by which the dose of a fluence differs from the explained one."""
        return self.beams.dose(fluence) - self.dose_gy

    def projected(
        self, asked_gy: NDArray, iterations: int = PROJECTION_ITERATIONS, progress: Progress = silent
    ) -> BeamChange:
        """The change nearest to one asked for, (mask voxels,) in Gy, that non-negative fluence produces."""
        with torch.no_grad():
            wanted = self.dose_gy + torch.from_numpy(np.asarray(asked_gy, np.float32))
            fluence = self.beams.nearest(wanted, self.fluence, iterations, progress)
            return BeamChange(fluence, self.change_gy(fluence).numpy())


_KNOWN: WeakKeyDictionary[Patient, tuple[Crop, PatientBeams]] = WeakKeyDictionary()


def _beams_of(patient: Patient, crop: Crop) -> PatientBeams:
    """Followed once as long as the patient is in use: some 100 MB of a median one."""
    known = _KNOWN.get(patient)
    if known is None or not np.array_equal(known[0].mask_indices, crop.mask_indices):
        known = _KNOWN[patient] = (crop, PatientBeams(patient, crop))
    return known[1]


def explained_dose(
    patient: Patient, crop: Crop, dose_gy: NDArray, iterations: int = FIT_ITERATIONS, progress: Progress = silent
) -> ExplainedDose:
    """Fit the fluence of a patient's beams to a dose (mask voxels,) in Gy.

    Raises PatientDataError where the plan's beams are known to be no fixed coplanar fields, or no beam passes any
    voxel with dose; GeometryError where the CT is not axial.
    """
    progress(0.0, "following the beams")
    beams = _beams_of(patient, crop)
    present = torch.from_numpy(np.asarray(dose_gy, np.float32))
    with torch.no_grad():
        start = prescribed_fluence(beams.beams, beams.spread(present))
        fluence = beams.nearest(present, start, iterations, part(progress, 0.1, 1.0))
        dose = beams.dose(fluence)
    if not float(dose.max()) > 0:
        raise PatientDataError(
            "The beams cannot explain the dose: none passes through tissue that has any.",
            where=patient.pseudonym,
            remedy="Check the CT and the dose mask.",
        )
    off = (dose - present).abs().double().mean()
    correlation = np.corrcoef(dose.double().numpy(), present.double().numpy())[0, 1]
    return ExplainedDose(beams, fluence, dose, float(np.nan_to_num(correlation)), float(off))


def beam_consistent_ratio(asked_gy: NDArray, achieved_gy: NDArray) -> float:
    """Share of a change that was achieved: 1 - |asked - achieved|^2 / |asked|^2, within 0 and 1; 1 where none was."""
    asked = np.asarray(asked_gy, float)
    size = float(np.square(asked).sum())
    if size == 0:
        return 1.0
    return float(np.clip(1 - np.square(asked - np.asarray(achieved_gy, float)).sum() / size, 0, 1))
