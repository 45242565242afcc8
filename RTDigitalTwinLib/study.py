"""The recalibration study: every calibrator on a cohort with simulated deliveries, resumable, in several processes.

Each case (patient, treatment, kind of observation, method) is a JSON file of its own, written whole: a study that was
interrupted goes on where it stopped, and one that grows by patients or methods does only what is new. Cases made with
other weights, bands, code, settings or data of a patient are never mixed: such a study is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.calibration.calibrator import SAMPLES, Calibrator
from RTDigitalTwinLib.calibration.choice import METHODS, calibrator_named
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.calibration.settings import settings_of
from RTDigitalTwinLib.calibration.trial import (
    BLUR_MM,
    NOISE,
    OBSERVED,
    PLACED,
    POINTS,
    POSITION_NOISE,
    TREATMENTS,
    VOLUME,
    Trial,
)
from RTDigitalTwinLib.cohort import CASES, DATA, adopt_study, chosen_folders, in_processes, require_same_data
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.ledger import canonical
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.fingerprint import fingerprint
from RTDigitalTwinLib.patient.loading import load_patient, require_outside_patients
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.report.study_plot import write_study_plot
from RTDigitalTwinLib.report.study_tables import Row, study_markdown, summarise
from RTDigitalTwinLib.solver.calibration_file import StoredCalibration, load_calibration
from RTDigitalTwinLib.solver.dose_state import DoseState
from RTDigitalTwinLib.versions import code_sha256

BEFORE, POSITION, BEST = "before", "position alone", "best possible"
IN_FILE_NAMES = str.maketrans({" ": "-", "%": "percent", "+": "plus-", ",": None})
GROUPS = ("treatments", "calibrators")


@dataclass(frozen=True)
class StudySettings:
    """What is done in each case.

    Attributes
    ----------
    methods : names of calibrators.
    seed : of the measurements' noise; the samples' is 0.
    decoder_steps : evaluations of the decoder's objective, at most; of decoder and decoder-gp.
    processes : patients at a time.
    """

    methods: tuple[str, ...] = METHODS
    seed: int = 1
    decoder_steps: int = 30
    processes: int = 1
    device: str = "auto"
    weights: Path | None = None

    def __post_init__(self) -> None:
        if self.processes < 1 or self.decoder_steps < 1:
            raise RTDigitalTwinError("A study needs at least one process and one decoder step.")
        for method in self.methods:
            calibrator_named(method)

    def calibrator(self, method: str) -> Calibrator:
        """The one that a method's cases are made with."""
        chosen = calibrator_named(method)
        return replace(chosen, most_steps=self.decoder_steps) if isinstance(chosen, DecoderMap) else chosen


@dataclass(frozen=True)
class Case:
    """One number of the study."""

    treatment: str
    observed: str
    method: str

    @property
    def file_name(self) -> str:
        words = (self.treatment, self.observed, self.method)
        return ".".join(word.translate(IN_FILE_NAMES) for word in words) + ".json"


def cases_of(methods: Sequence[str]) -> list[Case]:
    """All cases of a patient; what could be at best is told of metrics and points only.

    The decoder cannot take dose measured where the patient does not lie as planned.
    """
    found = []
    for treatment, observed in product(TREATMENTS, OBSERVED):
        fitting = [m for m in methods if not (observed == PLACED and isinstance(calibrator_named(m), DecoderMap))]
        first = (BEFORE, POSITION) if observed == PLACED else (BEFORE,)
        last = () if observed == VOLUME else (BEST,)
        found += [Case(treatment, observed, method) for method in (*first, *fitting, *last)]
    return found


def run_study(
    data: Path,
    out: Path,
    patients: int | Sequence[str] = 8,
    settings: StudySettings | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Do what is not yet done, write ``summary.json``, ``summary.md`` and ``errors.png``; returns the summary.

    Parameters
    ----------
    data : folder of patients with reference doses.
    patients : names, or how many, evenly among those of the folder that the network was not trained on.

    Raises
    ------
    PatientDataError : patients are missing, too few, without reference dose, or the network was trained on them.
    OutputError : the folder cannot be written, or holds a study with other weights, bands, code or settings, or cases
        of other data of these patients.
    """
    settings = settings or StudySettings()
    require_outside_patients(out)
    surrogate = DoseSurrogate.load(settings.weights, settings.device)
    folders = chosen_folders(data, patients, surrogate)
    bands = load_calibration(settings.weights, surrogate.weights_sha256)
    about = _about(settings, surrogate.weights_sha256, bands)
    adopt_study(out, about, GROUPS)
    require_same_data(out, folders, _done)
    waiting = [folder for folder in folders if _open_cases(out / CASES / folder.name, settings.methods)]
    progress(0.0, f"{len(waiting)} of {len(folders)} patients to do")
    if settings.processes == 1 or len(waiting) < 2:
        for k, folder in enumerate(waiting):
            progress(k / len(waiting), f"patient {k + 1} of {len(waiting)}")
            _study_patient(folder, out / CASES / folder.name, settings, surrogate)
    else:
        each = partial(_study_folder, out=out / CASES, settings=settings)
        in_processes(each, waiting, settings.processes, progress)
    rows = list(_rows(out, [folder.name for folder in folders]))
    summary = {"simulated": True, "settings": about, "patients": [f.name for f in folders]} | summarise(rows)
    with whole_file(out / "summary.json") as aside:
        aside.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    with whole_file(out / "summary.md") as aside:
        aside.write_text(study_markdown(summary), encoding="utf-8")
    write_study_plot(summary, out / "errors.png")
    progress(1.0, "done")
    return summary


def _study_folder(folder: Path, out: Path, settings: StudySettings) -> None:
    _study_patient(folder, out / folder.name, settings)


def _study_patient(folder: Path, out: Path, settings: StudySettings, surrogate: DoseSurrogate | None = None) -> None:
    """The open cases of one patient, in this process."""
    surrogate = surrogate or DoseSurrogate.load(settings.weights, settings.device)
    state = DoseState(surrogate, load_calibration(settings.weights, surrogate.weights_sha256))
    patient = load_patient(folder)
    data = fingerprint(patient)
    belief = state.initial(patient)
    drawn = belief.sample(SAMPLES, 0)
    trials: dict[tuple[str, str], Trial] = {}
    for case in _open_cases(out, settings.methods):
        key = (case.treatment, case.observed)
        if key not in trials:
            trials = {key: Trial.of(belief, drawn, *key, settings.seed)}  # one at a time: volumes are large
        if case.method == BEFORE:
            found = trials[key].before()
        elif case.method == BEST:
            found = trials[key].best_possible()
        elif case.method == POSITION:
            found = trials[key].position_alone.after(GaussianProcess(), SAMPLES)
        else:
            found = trials[key].after(settings.calibrator(case.method), SAMPLES)
        row = {"patient": belief.patient.pseudonym, "simulated": True} | asdict(case) | found | {DATA: data}
        with whole_file(out / case.file_name) as aside:
            aside.write_text(json.dumps(row, allow_nan=False) + "\n")


def _about(settings: StudySettings, weights_sha256: str, bands: StoredCalibration | None) -> dict[str, Any]:
    """All that a case depends on but the patient; every method's settings, since a study may grow by methods."""
    return {
        "weights_sha256": weights_sha256,
        "bands_sha256": "" if bands is None else sha256(canonical(bands.as_dict())).hexdigest(),
        "code_sha256": code_sha256(),
        "treatments": {name: asdict(change) for name, change in TREATMENTS.items()},
        "points": POINTS,
        "calibrators": {method: settings_of(settings.calibrator(method)) for method in METHODS},
        "samples": SAMPLES,
        "seed": settings.seed,
        "decoder_steps": settings.decoder_steps,
        "noise_ratio": NOISE.ratio,
        "noise_floor_gy_a_fraction": NOISE.floor,
        "blur_mm": BLUR_MM,
        "position_noise_mm": POSITION_NOISE.floor,
    }


def _open_cases(folder: Path, methods: Sequence[str]) -> list[Case]:
    return [case for case in cases_of(methods) if _read(folder / case.file_name) is None]


def _read(path: Path) -> Row | None:
    """A case's numbers; None where it was not done, or its file is damaged and it is to be done again."""
    try:
        row = json.loads(path.read_text())
        return row if isinstance(row, dict) and "mask_gy" in row else None
    except (OSError, ValueError):
        return None


def _rows(out: Path, names: Sequence[str]) -> Iterator[Row]:
    """All that was ever done of these patients, also by methods not asked for now."""
    for name in names:
        for row in _done(out, name):
            yield {key: value for key, value in row.items() if key != DATA}


def _done(out: Path, name: str) -> Iterator[Row]:
    for case in cases_of(METHODS):
        row = _read(out / CASES / name / case.file_name)
        if row is not None:
            yield row
