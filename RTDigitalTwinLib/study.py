"""The recalibration study: every calibrator on a cohort with simulated deliveries, resumable, in several processes.

Each case (patient, treatment, kind of observation, method) is a JSON file of its own, written whole: a study that was
interrupted goes on where it stopped, and one that grows by patients or methods does only what is new. Cases made with
other weights, bands, code, settings or data of a patient are never mixed: such a study is refused.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.calibration.calibrator import SAMPLES, Calibrator
from RTDigitalTwinLib.calibration.choice import METHODS, calibrator_named
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.evaluation import choose_folders
from RTDigitalTwinLib.calibration.settings import settings_of
from RTDigitalTwinLib.calibration.trial import BLUR_MM, NOISE, OBSERVED, POINTS, TREATMENTS, Trial
from RTDigitalTwinLib.errors import OutputError, PatientDataError, RTDigitalTwinError
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

BEFORE, BEST = "before", "best possible"
SETTINGS_FILE, CASES = "study.json", "cases"
GROUPS = ("treatments", "calibrators")
DATA = "patient_sha256"  # in a case: of each part of the patient's data


@dataclass(frozen=True)
class StudySettings:
    """What is done in each case.

    Attributes
    ----------
    methods : names of calibrators.
    seed : of the measurements' noise; the samples' is 0.
    decoder_steps : evaluations of the decoder's objective, at most.
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
        return DecoderMap(most_steps=self.decoder_steps) if isinstance(chosen, DecoderMap) else chosen


@dataclass(frozen=True)
class Case:
    """One number of the study."""

    treatment: str
    observed: str
    method: str

    @property
    def file_name(self) -> str:
        words = (self.treatment, self.observed, self.method)
        return (
            ".".join(word.replace(" ", "-").replace("%", "percent").replace("+", "plus-") for word in words) + ".json"
        )


def cases_of(methods: Sequence[str]) -> list[Case]:
    """All cases of a patient; what could be at best is told of metrics and points only."""
    found = []
    for treatment, observed in product(TREATMENTS, OBSERVED):
        best = (BEST,) if observed == "scalars" else ()
        found += [Case(treatment, observed, method) for method in (BEFORE, *methods, *best)]
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
    folders = _chosen(data, patients, surrogate)
    bands = load_calibration(settings.weights, surrogate.weights_sha256)
    about = _about(settings, surrogate.weights_sha256, bands)
    _adopt(out, about)
    _require_same_data(out, folders)
    waiting = [folder for folder in folders if _open_cases(out / CASES / folder.name, settings.methods)]
    progress(0.0, f"{len(waiting)} of {len(folders)} patients to do")
    if settings.processes == 1 or len(waiting) < 2:
        for k, folder in enumerate(waiting):
            progress(k / len(waiting), f"patient {k + 1} of {len(waiting)}")
            _study_patient(folder, out / CASES / folder.name, settings, surrogate)
    else:
        _in_processes(waiting, out, settings, progress)
    rows = list(_rows(out, [folder.name for folder in folders]))
    summary = {"simulated": True, "settings": about, "patients": [f.name for f in folders]} | summarise(rows)
    with whole_file(out / "summary.json") as aside:
        aside.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    with whole_file(out / "summary.md") as aside:
        aside.write_text(study_markdown(summary), encoding="utf-8")
    write_study_plot(summary, out / "errors.png")
    progress(1.0, "done")
    return summary


def _in_processes(waiting: Sequence[Path], out: Path, settings: StudySettings, progress: Progress) -> None:
    # Fresh processes: torch's threads do not outlive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.processes, mp_context=context) as pool:
        futures = [pool.submit(_study_patient, f, out / CASES / f.name, settings) for f in waiting]
        try:
            for k, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(k / len(waiting), f"{k} of {len(waiting)} patients done")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
        else:
            found = trials[key].after(settings.calibrator(case.method), SAMPLES)
        row = {"patient": belief.patient.pseudonym, "simulated": True} | asdict(case) | found | {DATA: data}
        with whole_file(out / case.file_name) as aside:
            aside.write_text(json.dumps(row, allow_nan=False) + "\n")


def _chosen(data: Path, patients: int | Sequence[str], surrogate: DoseSurrogate) -> list[Path]:
    named = [] if isinstance(patients, int) else list(patients)
    folders = choose_folders(data, named)
    trained = [folder.name for folder in folders if folder.name in surrogate.trained_on]
    if named and trained:
        raise PatientDataError(
            f"The network was trained on {', '.join(trained)}, so its error there says nothing of others.",
            remedy="Choose patients that were kept apart, such as validation-pats.",
        )
    if not isinstance(patients, int):
        return folders
    apart = [folder for folder in folders if folder.name not in surrogate.trained_on]
    if not 1 <= patients <= len(apart):
        raise PatientDataError(
            f"Asked for are {patients} patients; {len(apart)} of the folder's {len(folders)} were kept apart from "
            "training.",
            where=data.name,
        )
    return [apart[k * len(apart) // patients] for k in range(patients)]


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
    }


def _adopt(out: Path, about: dict[str, Any]) -> None:
    """Begin a study in a new or empty folder, or go on with one of the same settings. Raises OutputError."""
    path = out / SETTINGS_FILE
    if path.is_file():
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise OutputError("The earlier study cannot be read.", where=SETTINGS_FILE) from error
        if differing := _differing(known, about):
            raise OutputError(
                f"The folder holds a study with other settings ({', '.join(differing)}).",
                where=out.name,
                remedy="Choose another folder, or the weights, bands, software and settings it was begun with.",
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError("The output exists and is no study.", where=out.name, remedy="Choose another folder.")
    with whole_file(path) as aside:
        aside.write_text(json.dumps(about, indent=1) + "\n")


def _differing(known: Any, now: dict[str, Any]) -> list[str]:
    """Keys whose values are not the same; of ``GROUPS``, which of it: "treatments: as planned"."""
    if not isinstance(known, dict):
        return sorted(now)
    found = []
    for key in sorted({*known, *now}):
        there, here = known.get(key), now.get(key)
        if canonical(there) == canonical(here):
            continue
        inner = _differing(there, here) if key in GROUPS and isinstance(there, dict) and isinstance(here, dict) else []
        found.append(f"{key}: {', '.join(inner)}" if inner else key)
    return found


def _require_same_data(out: Path, folders: Sequence[Path]) -> None:
    """Raises OutputError where cases were made of other data of a patient than its folder holds now."""
    for folder in folders:
        done = list(_done(out, folder.name))
        if not done:
            continue
        now: dict[str, Any] = fingerprint(load_patient(folder))
        differing = sorted({part for row in done for part in _differing(row.get(DATA), now)})
        if differing:
            raise OutputError(
                f"The folder holds cases of {folder.name} with other data of it: "
                f"{', '.join(part.replace('_', ' ') for part in differing)}.",
                where=out.name,
                remedy="Choose another folder, or the data it was begun with.",
            )


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
