"""What goes back to a patient's record: doses as RTDOSE and structures as RTSTRUCT, under the source's identity."""

from __future__ import annotations

import re
from pathlib import Path

from RTDigitalTwinLib.errors import OutputError, PatientDataError
from RTDigitalTwinLib.files import require_apart
from RTDigitalTwinLib.patient.dicom_export import SIMULATED, write_dose, write_structures
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, recognises, source_origin
from RTDigitalTwinLib.patient.dicom_writing import LONGEST_DESCRIPTION, Origin
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.source import SAMPLE

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


def record_origin(source: str | Path, out: Path, record: Path, choice: DicomChoice | None = None) -> Origin:
    """Whose record the results of a patient's folder go back to, checked before anything is predicted.

    ``record`` is the folder for them. Raises PatientDataError where the source is no DICOM folder or lacks what a dose
    must refer to; OutputError where the record would lie among the other results or data.
    """
    if source == SAMPLE or not recognises(Path(source)):
        raise PatientDataError("Only the dose of a DICOM patient can go back as DICOM.", where=str(source))
    there, here = record.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise OutputError(
            "DICOM results bear the patient's identity and may not lie among the other results, which bear none.",
            where=str(record),
            remedy="Choose another place for them.",
        )
    require_apart(record, Path(source))
    return source_origin(Path(source), choice)


def write_record(folder: Path, prediction: DoseEnsemble, origin: Origin, level: float = 0.95) -> None:
    """Mean and spread as RTDOSE, and the structures as they were used as RTSTRUCT."""
    write_dose_record(folder, prediction, origin, "Predicted dose", level=level)
    write_structures_record(folder, prediction.patient, origin)


def write_dose_record(
    folder: Path,
    dose: Volume | DoseEnsemble,
    origin: Origin,
    description: str,
    *,
    label: str = "",
    predicted: bool = True,
    simulated: bool = False,
    level: float = 0.95,
) -> tuple[Path, ...]:
    """Write a dose into a folder, and the spread of an ensemble beside its mean; returns the files.

    Parameters
    ----------
    dose : Gy; a spread or a difference of doses is written as what it is. Of an ensemble, its mean and half the width
        of the calibrated band, or the samples' standard deviation where there is no calibration; of a single dose
        nothing but the mean.
    description : of what the dose is, such as "Spare Parotid_L"; its series is called so.
    label : part of the files' names, to tell several doses of a folder apart: letters, digits, strokes.
    predicted : whether it is a prediction, which the file then says.
    simulated : whether simulated deliveries or measurements are behind it, likewise.
    level : of the band.

    Raises OutputError for a label that makes no file name or files that are there already; PatientDataError for what
    is no dose.
    """
    if label and not _LABEL.fullmatch(label):
        raise OutputError(
            f"{label!r} is no label for a file of a dose.", remedy="Use letters, digits, _ and -, 40 at most."
        )
    parts: dict[str, tuple[Volume, str]] = {"": (dose, description)} if isinstance(dose, Volume) else {}
    if isinstance(dose, DoseEnsemble):
        room = LONGEST_DESCRIPTION - len(SIMULATED) * simulated

        def of(part: str) -> str:  # what the series is goes before all of what the dose is
            return f"{description[: room - len(part) - 2].rstrip()}, {part}"

        parts["mean"] = dose.mean, of("mean")
        if dose.is_calibrated:
            percent = f"{100 * level:g}"
            parts[f"half_width_{percent}"] = dose.half_width(level), of("half width")
        elif dose.has_spread:
            parts["std"] = dose.std, of("std")
    paths = tuple(folder / ".".join(["RTDOSE", *filter(None, (label, part)), "dcm"]) for part in parts)
    for path in paths:
        if path.exists():
            raise OutputError("A dose of this name was written before.", where=path.name, remedy="Give it a label.")
    for path, (volume, said) in zip(paths, parts.values(), strict=True):
        write_dose(volume, path, origin, said, predicted=predicted, simulated=simulated)
    return paths


def write_structures_record(folder: Path, patient: Patient, origin: Origin) -> Path:
    """Write a patient's structures and dose mask, as they were used."""
    path = folder / "RTSTRUCT.dcm"
    write_structures((*patient.structures.values(), patient.dose_mask), path, origin, "As used")
    return path
