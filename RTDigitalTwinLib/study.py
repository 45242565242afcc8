"""The recalibration study: every calibrator on a cohort with simulated deliveries, resumable, in several processes.

Each case (patient, treatment, kind of observation, method) is a JSON file of its own, written whole: a study that was
interrupted goes on where it stopped, and one that grows by patients or methods does only what is new.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.calibration.calibrator import SAMPLES
from RTDigitalTwinLib.calibration.choice import METHODS, calibrator_named
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.evaluation import choose_folders
from RTDigitalTwinLib.calibration.trial import BLUR_MM, NOISE, OBSERVED, TREATMENTS, Trial
from RTDigitalTwinLib.errors import OutputError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.loading import load_patient, require_outside_patients
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.report.study_plot import write_study_plot
from RTDigitalTwinLib.report.study_tables import Row, study_markdown, summarise
from RTDigitalTwinLib.solver.calibration_file import load_calibration
from RTDigitalTwinLib.solver.dose_state import DoseState

BEFORE, BEST = "before", "best possible"
SETTINGS_FILE, CASES = "study.json", "cases"


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
    OutputError : the folder cannot be written, or holds a study with other settings.
    """
    settings = settings or StudySettings()
    require_outside_patients(out)
    surrogate = DoseSurrogate.load(settings.weights, settings.device)
    folders = _chosen(data, patients, surrogate)
    fingerprint = _fingerprint(settings, surrogate.weights_sha256)
    _adopt(out, fingerprint)
    waiting = [folder for folder in folders if _open_cases(out / CASES / folder.name, settings.methods)]
    progress(0.0, f"{len(waiting)} of {len(folders)} patients to do")
    if settings.processes == 1 or len(waiting) < 2:
        for k, folder in enumerate(waiting):
            progress(k / len(waiting), f"patient {k + 1} of {len(waiting)}")
            _study_patient(folder, out / CASES / folder.name, settings, surrogate)
    else:
        _in_processes(waiting, out, settings, progress)
    rows = list(_rows(out, [folder.name for folder in folders]))
    summary = {"simulated": True, "settings": fingerprint, "patients": [f.name for f in folders]} | summarise(rows)
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
    belief = state.initial(load_patient(folder))
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
            chosen = calibrator_named(case.method)
            if isinstance(chosen, DecoderMap):
                chosen = DecoderMap(most_steps=settings.decoder_steps)
            found = trials[key].after(chosen, SAMPLES)
        row = {"patient": belief.patient.pseudonym, "simulated": True} | asdict(case) | found
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


def _fingerprint(settings: StudySettings, weights_sha256: str) -> dict[str, Any]:
    return {
        "weights_sha256": weights_sha256,
        "samples": SAMPLES,
        "seed": settings.seed,
        "decoder_steps": settings.decoder_steps,
        "noise_ratio": NOISE.ratio,
        "noise_floor_gy_a_fraction": NOISE.floor,
        "blur_mm": BLUR_MM,
    }


def _adopt(out: Path, fingerprint: dict[str, Any]) -> None:
    """Begin a study in a new or empty folder, or go on with one of the same settings. Raises OutputError."""
    path = out / SETTINGS_FILE
    if path.is_file():
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise OutputError("The earlier study cannot be read.", where=SETTINGS_FILE) from error
        if known != fingerprint:
            differing = sorted(key for key in {*known, *fingerprint} if known.get(key) != fingerprint.get(key))
            raise OutputError(
                f"The folder holds a study with other settings ({', '.join(differing)}).",
                where=out.name,
                remedy="Choose another folder, or the settings it was begun with.",
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError("The output exists and is no study.", where=out.name, remedy="Choose another folder.")
    with whole_file(path) as aside:
        aside.write_text(json.dumps(fingerprint, indent=1) + "\n")


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
    for name, case in product(names, cases_of(METHODS)):
        row = _read(out / CASES / name / case.file_name)
        if row is not None:
            yield row
