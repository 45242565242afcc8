"""A new CT as an observation: registered rigidly to the planning CT, it tells how the patient lay on that day.

Both CTs must be in the coordinates of the plan, as where the new one was taken at the treatment machine: one taken
elsewhere has an origin of its own, and the shift found is then that of the couch it was taken on. The rotation is
neglected; what that misplaces counts as uncertainty, beside the registration's own, and a large one is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.dicom_case import require_one_person, with_strays
from RTDigitalTwinLib.patient.dicom_ct import read_ct
from RTDigitalTwinLib.patient.dicom_index import CT, IndexedFile, index_folder
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.identity import Identity, require_same_person
from RTDigitalTwinLib.patient.image_registration import (
    DENSITY_CHANGE_HU,
    MOST_CHANGED_RATIO,
    MOST_MM,
    RegistrationSettings,
    density_change_ratio,
    registered,
)
from RTDigitalTwinLib.patient.observation import CouchShiftObservation, Moment, NoiseModel
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.words import decimal

MOST_ROTATION_DEG = 3.0  # farther is set up anew in the clinic; 100 mm from the centre it is 5 mm
LEAST_ERROR_VOXELS = 0.25  # along an axis; the inconsistency with the inverse is a lower bound of the error
LOWEST_HU, HIGHEST_HU = -1100.0, 32768.0
SOURCE = "new CT, registered rigidly"


@dataclass(frozen=True, eq=False)
class NewCt:
    """A CT with whose it is said to be; ``identity`` None of a plain image, which names nobody."""

    ct: Volume
    identity: Identity | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SeenShift:
    """What a new CT tells.

    Attributes
    ----------
    observation : the shift of the middle of the volume that can receive dose.
    rotation_deg : about any axis; neglected.
    residual_hu : mean absolute difference of the CTs there after the registration.
    changed_ratio : share of its voxels whose tissue has another density.
    inconsistency_mm : of the registration with its inverse, 95th percentile there.
    """

    observation: CouchShiftObservation
    rotation_deg: float
    residual_hu: float
    changed_ratio: float
    inconsistency_mm: float

    @property
    def words(self) -> str:
        x, y, z = (decimal(value, 1, signed=True) for value in self.observation.shift_mm)
        return (
            f"The new CT of fraction {self.observation.moment.fraction} shows the patient shifted by {x}, {y}, {z} mm "
            f"(LPS, standard deviation {self.observation.noise.floor:.1f} mm along each axis), rotated by "
            f"{self.rotation_deg:.1f} degrees, which is neglected. After the registration the CTs differ by "
            f"{self.residual_hu:.0f} HU on average where dose is given, and by more than {DENSITY_CHANGE_HU:g} HU in "
            f"{self.changed_ratio:.1%} of it; its distance from its inverse is {self.inconsistency_mm:.1f} mm (95th "
            "percentile). The shift is right as far as the CT is in the plan's coordinates."
        )


def read_new_ct(path: Path, overrides: Overrides) -> NewCt:
    """The one CT of an OpenKBP patient's folder, of a folder of DICOM files, or in an image file (HU).

    Raises PatientDataError where there is none, or more than one, or its files contradict each other.
    """
    if path.is_file():
        return _image_file(path)
    if not path.is_dir():
        raise PatientDataError("There is no such folder or file.", where=path.name, remedy="Give the new CT's.")
    if openkbp.recognises(path):
        patient = openkbp.read_patient(path)
        return NewCt(patient.ct, Identity(openkbp.pseudonym_of(path), "", ""), patient.warnings)
    index = index_folder(path)
    chosen = index.patient("")
    warnings: list[str] = []
    files = with_strays(index, chosen, overrides, warnings)
    require_one_person(chosen, overrides, warnings)
    ct = read_ct(_only_series(files, path), overrides, warnings)
    return NewCt(ct, chosen.identity, tuple(dict.fromkeys(warnings)))


def _only_series(files: Sequence[IndexedFile], folder: Path) -> list[IndexedFile]:
    series: dict[str, list[IndexedFile]] = {}
    for file in files:
        if file.kind == CT:
            series.setdefault(file.series_uid, []).append(file)
    if len(series) != 1:
        raise PatientDataError(
            f"The folder holds {len(series) or 'no'} CT series; one is expected.",
            where=folder.name,
            remedy="Give a folder with the one CT that was taken that day.",
        )
    return next(iter(series.values()))


def _image_file(path: Path) -> NewCt:
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise PatientDataError("The file cannot be read as an image.", where=path.name) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise PatientDataError("The image is not a single 3D volume.", where=path.name)
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    known = values[np.isfinite(values)]
    if not known.size or known.min() < LOWEST_HU or known.max() > HIGHEST_HU or known.min() > -500:
        raise PatientDataError(
            "The image is no CT in HU with air around the patient.",
            where=path.name,
            remedy="Give Hounsfield units, -1000 for air.",
        )
    grid = Grid(image.GetSize()[::-1], image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return NewCt(Volume(values, grid, Quantity.HU), None)


def seen_shift(
    new: NewCt,
    patient: Patient,
    identity: Identity,
    fraction: int,
    overrides: Overrides,
    warnings: list[str],
    *,
    where: str = "",
    progress: Progress = silent,
) -> SeenShift:
    """How a new CT says the patient lay from a fraction on; ``identity`` is of the patient's own files.

    One fraction a day is assumed. Raises PatientDataError where it is of another patient, in another frame of
    reference, rotated too far, or unlike the planning CT after the registration; identity, frame and registration can
    be overridden, on record in ``warnings``. Raises GeometryError where the CTs cannot be registered.
    """
    warnings += new.warnings
    if new.identity is None:
        warnings.append("The new CT's file names no patient: whether it is of this one shows in its anatomy alone.")
    else:
        require_same_person(identity, new.identity, overrides, where, warnings)
    planned, ct = patient.ct, new.ct
    frames = planned.grid.frame_of_reference, ct.grid.frame_of_reference
    if all(frames) and frames[0] != frames[1]:
        what = "The new CT has another frame of reference than the planning CT: a shift between them means nothing."
        overrides.settle("frame", what, where, warnings)
    found = registered(planned, ct, RegistrationSettings(deformable=False), progress)
    inside = patient.dose_mask.mask
    rotation = np.reshape(found.rotation, (3, 3))
    angle_deg = float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
    places = planned.grid.to_lps_mm(np.argwhere(inside))
    middle = places.mean(axis=0)
    x, y, z = (rotation @ middle + found.offset_mm - middle).tolist()
    assert found.error is not None
    away_mm = found.error.values[inside]
    inconsistency_mm = float(np.quantile(np.nan_to_num(away_mm, nan=np.inf), 0.95, method="lower"))
    changed = density_change_ratio(planned, ct, found, inside)
    _require_alike(changed, inconsistency_mm, overrides, where, warnings)
    if angle_deg > MOST_ROTATION_DEG:
        raise PatientDataError(
            f"The new CT shows the patient rotated by {angle_deg:.1f} degrees (at most {MOST_ROTATION_DEG:g}): no "
            "shift tells of that.",
            where=where,
            remedy="A patient that lies so is set up again, or planned anew.",
        )
    turned_mm = (places - middle) @ (rotation - np.eye(3)).T
    least_mm = LEAST_ERROR_VOXELS * max(*planned.grid.spacing_mm, *ct.grid.spacing_mm)
    known_mm = away_mm[np.isfinite(away_mm)]
    std_mm = float(np.sqrt((np.mean(np.square(turned_mm).sum(axis=1)) + np.mean(np.square(known_mm))) / 3))
    noise = NoiseModel(0.0, max(least_mm, std_mm))
    return SeenShift(
        CouchShiftObservation((x, y, z), Moment(float(fraction - 1), fraction), noise, SOURCE),
        angle_deg,
        _residual_hu(planned, found.onto(ct, planned.grid), inside),
        changed,
        inconsistency_mm,
    )


def _require_alike(
    changed: float, inconsistency_mm: float, overrides: Overrides, where: str, warnings: list[str]
) -> None:
    wrong = []
    if changed > MOST_CHANGED_RATIO:
        wrong.append(
            f"the density differs by more than {DENSITY_CHANGE_HU:g} HU, or is not known, in {changed:.0%} of the "
            f"volume that can receive dose (at most {MOST_CHANGED_RATIO:.0%})"
        )
    if inconsistency_mm > MOST_MM:
        wrong.append(f"its distance from its inverse is {inconsistency_mm:.1f} mm (at most {MOST_MM:g} mm)")
    if wrong:
        what = f"The new CT does not fit the planning CT: {', and '.join(wrong)}."
        overrides.settle("registration", what, where, warnings)


def _residual_hu(planned: Volume, moved: Volume, inside: NDArray[np.bool_]) -> float:
    return float(np.nanmean(np.abs(moved.values[inside] - planned.values[inside])))
