"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from RTDigitalTwinLib.cli_dicom import add_dicom_options
from RTDigitalTwinLib.errors import ModelError, PatientDataError
from RTDigitalTwinLib.train import seed, whole_number

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice

MOST_SAMPLES = 10_000
# Those of calibration.choice, which has torch in tow.
OBSERVING_METHODS = ("scale", "offsets", "persistence", "decoder", "decoder-gp", "kalman", "gp")


PATIENT_HELP = "a patient's folder, or the word sample: the built-in one"
PRECISIONS = ("single", "half")  # those of model.convolution, which has torch in tow


def sample_count(text: str) -> int:
    return whole_number(text, MOST_SAMPLES)


def add_patient_options(parser: ArgumentParser, fractions: str = "--fractions") -> None:
    """Whose twin it is, of DICOM folders which files are meant, and where the results go.

    ``fractions`` names the option for how many are prescribed.
    """
    parser.add_argument("patient", metavar="PATIENT", help=PATIENT_HELP)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_dicom_options(parser, fractions)


def require_folder(patient: str | Path, choice: DicomChoice) -> None:
    """Refuse a folder that holds no patient at once: what a command needs to predict takes seconds to import.

    Raises PatientDataError.
    """
    from RTDigitalTwinLib.patient.loading import require_patient
    from RTDigitalTwinLib.source import SAMPLE, require_one_meaning

    require_one_meaning(patient)
    if patient != SAMPLE:
        require_patient(patient, choice)


def require_inputs(measurements: Path | None, *others: Path | None) -> None:
    """Refuse measurements with a mistake in them, or other inputs that are not there, before anything takes time.

    Raises PatientDataError.
    """
    for path in (measurements, *others):
        if path is not None and not path.exists():
            raise PatientDataError("There is no such file or folder.", where=str(path))
    if measurements is not None:
        from RTDigitalTwinLib.calibration.measurements import check_measurements

        check_measurements(measurements)


def require_sources(*sources: str) -> None:
    """As ``require_inputs``, of files or folders that may be the built-in patient too. Raises PatientDataError."""
    from RTDigitalTwinLib.source import SAMPLE, require_one_meaning

    for source in sources:
        require_one_meaning(source)
        if source != SAMPLE:
            require_inputs(None, Path(source))


def require_cohort(data: Path) -> None:
    """Refuse a folder that holds no patients at once, as ``require_folder`` does. Raises PatientDataError."""
    from RTDigitalTwinLib.patient.loading import choose_folders

    choose_folders(data)


def require_weights(weights: Path | None) -> None:
    """Refuse a weights file that is not there before a patient is read. Raises ModelError."""
    if weights is not None and not weights.is_file():
        raise ModelError("There is no such weights file.", where=str(weights))


def add_model_options(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=seed, default=0, help="of the dropout samples (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--weights", type=Path, help="weights file (default: the one that comes with the software)")


def add_precision_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="single",
        help="of the samples, and of a refit of the decoder; half takes two thirds of the time on a CPU with AVX-512 "
        "BF16 and moves the samples' mean by hundredths of a gray, a refit by more (default single)",
    )
