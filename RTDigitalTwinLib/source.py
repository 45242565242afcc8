"""Where a patient comes from: a folder, or the word for the built-in one."""

from __future__ import annotations

from pathlib import Path

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
from RTDigitalTwinLib.patient.identity import Belonging, Identity
from RTDigitalTwinLib.patient.loading import belonging_of
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent

SAMPLE = "sample"


def require_one_meaning(source: str | Path) -> None:
    """Raises PatientDataError where the word for the built-in patient is a folder's name too."""
    if source == SAMPLE and Path(SAMPLE).is_dir():
        raise PatientDataError(
            "The word means the built-in patient, but there is a folder of this name too.",
            where=SAMPLE,
            remedy="Write ./sample for the folder; for the built-in patient, run this elsewhere.",
        )


def patient_of(source: str | Path, choice: DicomChoice | None = None, progress: Progress = silent) -> Patient:
    """The patient in a folder, or the built-in one, for which a reference dose is planned.

    Raises PatientDataError; Cancelled passes through from ``progress``.
    """
    if source != SAMPLE:
        return Patient.load(source, choice)
    from RTDigitalTwinLib.dosimetry.planning import planned

    return planned(Patient.sample(), progress=lambda done, _: progress(done, "planning the sample patient"))


def belonging_of_source(source: str | Path, choice: DicomChoice | None = None) -> Belonging:
    """Whose data a folder holds; the built-in patient's name nobody. Raises PatientDataError."""
    return Belonging(Identity("", "", "")) if source == SAMPLE else belonging_of(Path(source), choice)
