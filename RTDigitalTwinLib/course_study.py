"""The course study: every policy on a cohort, with and without a change, resumable, in several processes or on Dask.

Each case (patient, scenario, policy) is a JSON file of its own, written whole. The chance of a patient's fractions is
the same in all its cases. Cases made with other weights, bands, code, settings or data are never mixed (``cohort``).
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

from RTDigitalTwinLib.calibration.belief import prior_of
from RTDigitalTwinLib.calibration.calibrator import SAMPLES
from RTDigitalTwinLib.cohort import (
    CASES,
    DATA,
    adopt_study,
    chosen_folders,
    in_processes,
    on_dask,
    require_same_data,
)
from RTDigitalTwinLib.course import Course, prepared
from RTDigitalTwinLib.course_record import CourseResult, CourseSettings
from RTDigitalTwinLib.course_run import counts_of
from RTDigitalTwinLib.decision.action_file import chosen_actions
from RTDigitalTwinLib.decision.action_record import action_row
from RTDigitalTwinLib.decision.actions import Action
from RTDigitalTwinLib.decision.policies import POLICIES, UNCERTAINTY_WEIGHT, Decider, policy_named
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.dosimetry.protocol_file import read_toml
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.ledger import canonical
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.fingerprint import fingerprint
from RTDigitalTwinLib.patient.loading import load_patient, require_outside_patients
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.report.course_plot import write_course_plot
from RTDigitalTwinLib.report.course_tables import Row, course_markdown, summarise_courses
from RTDigitalTwinLib.solver.calibration_file import load_calibration
from RTDigitalTwinLib.twin import Twin
from RTDigitalTwinLib.versions import code_sha256

SCENARIOS = ("change", "no change")
PROJECT_EVERY = 5


@dataclass(frozen=True)
class CourseStudySettings:
    """What is done in each case.

    Attributes
    ----------
    processes : patients at a time; ``dask`` is the address of a scheduler that takes their place.
    decider, actions : of every course (``course.Course``), or a file of actions; they must be what can be sent to
        another process. With actions, policies that decide also come uncertainty-penalised.
    """

    policies: tuple[str, ...] = POLICIES
    fractions: int = 35
    shift_at: int = 10
    change: Change = CourseSettings.change
    seed: int = 0
    samples: int = SAMPLES
    processes: int = 1
    dask: str | None = None
    device: str = "auto"
    weights: Path | None = None
    decider: Decider | None = None
    actions: tuple[Action, ...] | Path = ()

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise RTDigitalTwinError("A study needs at least one process.")
        for name in self.policies:
            policy_named(name)
        self.course("static", SCENARIOS[0], 0.0)  # refuses what no course can be

    def weights_of_uncertainty(self, policy: str) -> tuple[float, ...]:
        """Of a policy: two only where it decides."""
        return (0.0, UNCERTAINTY_WEIGHT) if self.actions and policy != "static" else (0.0,)

    def course(self, policy: str, scenario: str, weight: float) -> CourseSettings:
        return CourseSettings(
            fractions=self.fractions,
            shift_at=self.shift_at if scenario == SCENARIOS[0] else None,
            change=self.change,
            policy=policy_named(policy, weight),
            seed=self.seed,
            samples=self.samples,
            project_every=PROJECT_EVERY,
        )


@dataclass(frozen=True)
class CourseCase:
    """One course of the study."""

    scenario: str
    policy: str
    weight: float

    @property
    def name(self) -> str:
        return policy_named(self.policy, self.weight).name

    @property
    def file_name(self) -> str:
        return f"{self.scenario}.{self.policy}.{self.weight:g}.json".replace(" ", "-")


def course_cases(settings: CourseStudySettings) -> list[CourseCase]:
    """All cases of a patient."""
    pairs = product(SCENARIOS, settings.policies)
    return [CourseCase(*of, weight) for of in pairs for weight in settings.weights_of_uncertainty(of[1])]


def run_course_study(
    data: Path,
    out: Path,
    patients: int | Sequence[str] = 8,
    settings: CourseStudySettings | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Do what is not yet done, write ``summary.json``, ``summary.md`` and ``courses.png``; returns the summary.

    Parameters
    ----------
    data : folder of patients with reference doses.
    patients : names, or how many, evenly among those of the folder that the network was not trained on.

    Raises
    ------
    PatientDataError : patients are missing, too few, without reference dose, or the network was trained on them.
    OutputError : the folder cannot be written, or holds a study with other weights, bands, code or settings, or cases
        of other data of these patients.
    RTDigitalTwinError : Dask is asked for and not there.
    """
    settings = settings or CourseStudySettings()
    require_outside_patients(out)
    surrogate = DoseSurrogate.load(settings.weights, settings.device)
    folders = chosen_folders(data, patients, surrogate)
    about = _about(settings, surrogate)
    adopt_study(out, about)
    require_same_data(out, folders, partial(_done, settings))
    waiting = [folder for folder in folders if _open_cases(out / CASES / folder.name, settings)]
    progress(0.0, f"{len(waiting)} of {len(folders)} patients to do")
    each = partial(_study_folder, out=out / CASES, settings=settings)
    if settings.dask is not None and waiting:
        on_dask(each, waiting, settings.dask, progress)
    elif settings.processes == 1 or len(waiting) < 2:
        for k, folder in enumerate(waiting):
            progress(k / len(waiting), f"patient {k + 1} of {len(waiting)}")
            each(folder)
    else:
        in_processes(each, waiting, settings.processes, progress)
    rows = [{k: v for k, v in row.items() if k != DATA} for f in folders for row in _done(settings, out, f.name)]
    names = [folder.name for folder in folders]
    summary = {"simulated": True, "settings": about, "patients": names} | summarise_courses(rows)
    with whole_file(out / "summary.json") as aside:
        aside.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    with whole_file(out / "summary.md") as aside:
        aside.write_text(course_markdown(summary), encoding="utf-8")
    write_course_plot(summary, out / "courses.png")
    progress(1.0, "done")
    return summary


def _study_folder(folder: Path, out: Path, settings: CourseStudySettings) -> None:
    """The open cases of one patient, in this process."""
    patient = load_patient(folder)
    prior = prior_of(Twin(patient, settings.weights, settings.device).dose_belief)
    data = fingerprint(patient)
    actions = chosen_actions(settings.actions, prior.patient)
    cases = _open_cases(out / folder.name, settings)
    common = settings.course(cases[0].policy, cases[0].scenario, 0.0)
    drawn, known = prepared(prior.sample(settings.samples, 0), common)
    for case in cases:
        row = {"patient": prior.patient.pseudonym, "simulated": True, "scenario": case.scenario, "policy": case.name}
        neutral = _read(out / folder.name / replace(case, weight=0.0).file_name) if case.weight else None
        if neutral is not None and all(made["action"] is None for made in neutral["decisions"]):
            # What is acceptable has nothing to do with the weight: where nothing was, the course is the same.
            row = neutral | row
        else:
            course = Course(
                prior, drawn, settings.course(case.policy, case.scenario, case.weight), known,
                settings.decider, actions,
            )  # fmt: skip
            row |= case_numbers(course.result(list(course.fractions()))) | {DATA: data}
        with whole_file(out / folder.name / case.file_name) as aside:
            aside.write_text(json.dumps(row, allow_nan=False) + "\n")


def case_numbers(result: CourseResult) -> Row:
    """What a course came to; NTCP and coverage are those of the simulated truth at its end."""
    last = result.records[-1].endpoints
    ntcp = {e.name: round(e.true, 6) for e in last if e.effect == "NTCP"}
    main = main_target(result.projection.patient)
    coverage = next((round(e.true, 4) for e in last if e.effect == "D95" and e.structure == main), None)
    projected = [e for record in result.records for e in record.endpoints]
    return {
        "true_ntcp": ntcp,
        "target_d95_gy": coverage,
        "target_tcp": next((round(e.true, 6) for e in last if e.effect == "TCP"), None),
        "covered_at_end": [e.covers for e in last if e.effect == "NTCP"],
        "covered": [sum(e.covers for e in projected if e.effect == "NTCP"),
                    sum(e.effect == "NTCP" for e in projected)],
        **counts_of(result),
        "decisions": [asdict(decision) for decision in result.decisions],
    }  # fmt: skip


def main_target(patient: Patient) -> str | None:
    """The target with the highest dose level; None without any."""
    levels = {name: level for name, level in target_levels_gy(patient).items() if name in patient.structures}
    return max(levels, key=lambda name: levels[name], default=None)


def _about(settings: CourseStudySettings, surrogate: DoseSurrogate) -> dict[str, Any]:
    """All that a case depends on but the patient, the scenario and the policy."""
    bands = load_calibration(settings.weights, surrogate.weights_sha256)
    course = replace(settings, processes=1, dask=None).course("static", SCENARIOS[0], 0.0).as_dict()
    del course["policy"]
    return json.loads(json.dumps({
        "weights_sha256": surrogate.weights_sha256,
        "bands_sha256": "" if bands is None else sha256(canonical(bands.as_dict())).hexdigest(),
        "code_sha256": code_sha256(),
        "course": course,
        "actions": _told(settings.actions),
        "decider": None if settings.decider is None else settings.decider.as_dict(),
    }))  # fmt: skip


def _told(actions: tuple[Action, ...] | Path) -> Any:
    if isinstance(actions, Path):
        return read_toml(actions)
    return [action_row(action) for action in actions]


def _open_cases(folder: Path, settings: CourseStudySettings) -> list[CourseCase]:
    return [case for case in course_cases(settings) if _read(folder / case.file_name) is None]


def _read(path: Path) -> Row | None:
    """A case's numbers; None where it was not done, or its file is damaged and it is to be done again."""
    try:
        row = json.loads(path.read_text())
        return row if isinstance(row, dict) and "true_ntcp" in row else None
    except (OSError, ValueError):
        return None


def _done(settings: CourseStudySettings, out: Path, name: str) -> Iterator[Row]:
    for case in course_cases(replace(settings, policies=POLICIES)):
        row = _read(out / CASES / name / case.file_name)
        if row is not None:
            yield row
