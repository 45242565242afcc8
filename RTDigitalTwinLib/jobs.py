"""What is computed for a scene: jobs that are told in a folder, done by any process, and answered in that folder.

A folder holds ``job.json`` and the files that the job needs; the answer is files too, whole or not there. So an
application leaves them to a process (``job_process``), stays responsive, ends it at any time, and needs none of what
computing needs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from RTDigitalTwinLib.errors import MemoryShortage, OutputError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.job_twins import TwinOf, Twins
from RTDigitalTwinLib.patient.patient_file import load_patient_file, save_patient
from RTDigitalTwinLib.progress import Progress, part, silent

if TYPE_CHECKING:
    from RTDigitalTwinLib.patient.dicom_patient import DicomChoice
    from RTDigitalTwinLib.patient.patient import Patient

JOB_FILE = "job.json"
PATIENT_FILE, BELIEF_FILE, MEASUREMENTS_FILE = "patient.npz", "belief.npz", "measurements.csv"
OUTCOME_FILE, NEW_BELIEF_FILE, INSPECTION_FILE = "outcome.npz", "new-belief.npz", "inspection.json"
COURSE_FILE = "course.npz"
SAMPLE = "sample"
CPU_INSTEAD = "The GPU's memory did not suffice, so the processor computed this."
FEWEST_SAMPLES = 2
# The customary actions by what they do, to choose among before anything is computed.
CUSTOMARY = ("scale 0.95", "scale 0.975", "scale 1.025", "scale 1.05", "spare", "boost", "replan", "re-image")


@dataclass(frozen=True)
class Choice:
    """What of a DICOM folder is meant: as ``DicomChoice``, in what JSON takes."""

    patient: str = ""
    names: dict[str, str] = field(default_factory=dict)
    fractions: int | None = None

    @property
    def dicom(self) -> DicomChoice:
        from RTDigitalTwinLib.patient.dicom_patient import DicomChoice

        return DicomChoice(self.patient, names=self.names, fractions=self.fractions)


@dataclass(frozen=True)
class Inspect:
    """Which patients a folder holds and what the names of their structures mean: answered in ``inspection.json``."""

    kind: ClassVar[str] = "inspect"
    source: str
    choice: Choice = field(default_factory=Choice)

    def run(self, folder: Path, progress: Progress, twins: Twins) -> None:
        (folder / INSPECTION_FILE).write_text(json.dumps(_inspected(Path(self.source), self.choice.dicom, progress)))


@dataclass(frozen=True)
class Read:
    """A patient's folder, or the built-in sample with a plan of its own, read: answered in ``patient.npz``."""

    kind: ClassVar[str] = "read"
    source: str
    choice: Choice = field(default_factory=Choice)

    def run(self, folder: Path, progress: Progress, twins: Twins) -> None:
        progress(0.0, "reading the patient")
        save_patient(read_patient(self.source, self.choice, progress), folder / PATIENT_FILE)


@dataclass(frozen=True)
class Predict:
    """The dose of ``patient.npz``, of ``belief.npz`` where there is one: answered in ``outcome.npz``.

    Attributes
    ----------
    device : ``auto``, ``cpu`` or ``cuda``. Where a GPU has too little memory the processor computes, and it is said.
    weights : file; "" for those that come with the software.
    """

    kind: ClassVar[str] = "predict"
    samples: int = 32
    seed: int = 0
    device: str = "auto"
    weights: str = ""

    def run(self, folder: Path, progress: Progress, twins: Twins) -> None:
        _on_device(self, folder, progress, twins, _predict)


@dataclass(frozen=True)
class Observe:
    """``measurements.csv`` absorbed: answered in ``outcome.npz``, and ``new-belief.npz`` where any was."""

    kind: ClassVar[str] = "observe"
    samples: int = 32
    seed: int = 0
    device: str = "auto"
    weights: str = ""
    method: str = ""
    absorb_outliers: bool = False

    def run(self, folder: Path, progress: Progress, twins: Twins) -> None:
        if self.samples < FEWEST_SAMPLES:
            raise RTDigitalTwinError(f"Observing needs at least {FEWEST_SAMPLES} samples.", remedy="Ask for more.")
        _on_device(self, folder, progress, twins, _observe)


@dataclass(frozen=True)
class Report:
    """Report, tables, volumes and pictures of what is believed of ``patient.npz`` now.

    Attributes
    ----------
    out : new folder for them; "" for none.
    dicom_out : new folder for the dose as RTDOSE; "" for none.
    source : DICOM folder that the patient came from, whose record the RTDOSE belongs to.
    """

    kind: ClassVar[str] = "report"
    out: str = ""
    samples: int = 32
    seed: int = 0
    device: str = "auto"
    weights: str = ""
    dicom_out: str = ""
    source: str = ""
    choice: Choice = field(default_factory=Choice)

    def run(self, folder: Path, progress: Progress, twins: Twins) -> None:
        _on_device(self, folder, progress, twins, _report)


@dataclass(frozen=True)
class Recommend:
    """Actions ranked on the dose that is believed: answered in ``outcome.npz``, of the recommended or ``shown`` one.

    Attributes
    ----------
    samples : at least; as many as the risk needs are drawn, and it is said.
    risk, uncertainty_weight : None for the protocol's.
    customary : of ``CUSTOMARY``; spare and boost are of the structures whose goals are in danger.
    spare, boost : structures, besides.
    actions : TOML file in place of all these; "" for none.
    protocol : TOML file of utility and constraints; "" for the one that comes with the software.
    shown : name of the action to show; then only keeping is judged beside it, and nothing is ranked anew.
    """

    kind: ClassVar[str] = "recommend"
    samples: int = 64
    seed: int = 0
    device: str = "auto"
    weights: str = ""
    risk: float | None = None
    uncertainty_weight: float | None = None
    customary: tuple[str, ...] = CUSTOMARY
    spare: tuple[str, ...] = ()
    boost: tuple[str, ...] = ()
    actions: str = ""
    protocol: str = ""
    shown: str = ""

    def run(self, folder: Path, progress: Progress, twins: Twins) -> None:
        from RTDigitalTwinLib.job_recommend import recommend

        _on_device(self, folder, progress, twins, recommend)


@dataclass(frozen=True)
class LiveCourse:
    """A course lived through by the built-in simulator, nothing of it measured: answered in ``course.npz``.

    Attributes
    ----------
    shift_at : the first fraction with the change; 0 for none.
    shift_mm : of the whole patient: left, posterior, superior.
    shrinkage_ratio : of the parotids.
    policy : when to recalibrate, by its name; ``every`` is of the scheduled one.
    ntcp : structure whose NTCP is charted; "" for a parotid.
    """

    kind: ClassVar[str] = "course"
    fractions: int = 35
    shift_at: int = 10
    shift_mm: tuple[float, float, float] = (0.0, 4.0, -3.0)
    shrinkage_ratio: float = 0.15
    policy: str = "triggered"
    every: int = 5
    ntcp: str = ""
    samples: int = 32
    seed: int = 0
    device: str = "auto"
    weights: str = ""

    def run(self, folder: Path, progress: Progress, twins: Twins) -> None:
        from RTDigitalTwinLib.job_course import live

        _on_device(self, folder, progress, twins, live)


Job: TypeAlias = Inspect | Read | Predict | Observe | Report | Recommend | LiveCourse
Computing: TypeAlias = Predict | Observe | Report | Recommend | LiveCourse
KINDS: dict[str, type[Any]] = {
    job.kind: job for job in (Inspect, Read, Predict, Observe, Report, Recommend, LiveCourse)
}


def write_job(job: Job, folder: Path) -> None:
    """Tell a job in a folder."""
    (folder / JOB_FILE).write_text(json.dumps({"kind": job.kind} | asdict(job)))


def read_job(folder: Path) -> Job:
    """The job that a folder tells. Raises RTDigitalTwinError where it tells none."""
    try:
        told = json.loads((folder / JOB_FILE).read_text())
        job = KINDS[told.pop("kind")]
        if "choice" in told:
            told["choice"] = Choice(**told["choice"])
        if not told.keys() <= {one.name for one in fields(job)}:
            raise KeyError(*told.keys())
        return job(**told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RTDigitalTwinError("The folder tells no job.", where=folder.name) from error


def run_job(folder: Path, progress: Progress = silent, twins: Twins | None = None) -> None:
    """Do the job that a folder tells; the answer lies in the folder. Raises RTDigitalTwinError's family.

    ``twins`` are those of the jobs before, so that what they have in common is worked out once.
    """
    job, twins = read_job(folder), Twins() if twins is None else twins
    if not isinstance(job, Inspect):
        with twins.importing():
            import torch  # noqa: F401 (by far the largest of what the jobs import)
    job.run(folder, progress, twins)


def read_patient(source: str, choice: Choice, progress: Progress = silent) -> Patient:
    """The patient in a folder, or the built-in one, for which a reference dose is planned."""
    from RTDigitalTwinLib.dosimetry.planning import planned
    from RTDigitalTwinLib.patient.loading import load_patient
    from RTDigitalTwinLib.patient.patient import Patient

    if source == SAMPLE:
        return planned(Patient.sample(), progress=lambda done, _: progress(done, "planning the sample patient"))
    return load_patient(source, choice.dicom, progress)


def _inspected(source: Path, choice: DicomChoice, progress: Progress) -> dict[str, Any]:
    """Pseudonyms, and of each its structures' matches or why there are none; of no DICOM folder one patient."""
    from RTDigitalTwinLib.patient import dicom_patient
    from RTDigitalTwinLib.patient.dicom_inspection import inspect_folder
    from RTDigitalTwinLib.patient.loading import READERS, patient_folders

    if not source.is_dir():
        raise PatientDataError("There is no such folder.", where=source.name, remedy="Choose a patient's folder.")
    if any(reader.recognises(source) for reader in READERS):
        return {"dicom": False, "patients": {source.name: {"matches": []}}}
    inside = patient_folders(source)
    if inside:
        names = ", ".join(str(path.relative_to(source)) for path in inside[:3])
        raise PatientDataError(
            f"The folder holds {len(inside)} patients' folders.",
            where=source.name,
            remedy=f"Choose one, such as {names}.",
        )
    if not dicom_patient.recognises(source):
        raise PatientDataError(
            "The folder holds nothing known.",
            where=source.name,
            remedy="Choose a folder of DICOM files, or of an OpenKBP patient (ct.csv and more).",
        )
    found = inspect_folder(source, choice, progress=progress)
    patients: dict[str, Any] = {}
    for pseudonym, matches in found.matches.items():
        if isinstance(matches, RTDigitalTwinError):
            patients[pseudonym] = {"problem": str(matches), "matches": []}
            continue
        patients[pseudonym] = {
            "matches": [[m.source, m.name, m.state.value, m.confidence, m.reason, m.counts, m.waits] for m in matches]
        }
    return {"dicom": True, "patients": patients}


def _on_device(job: Computing, folder: Path, progress: Progress, twins: Twins, work: Any) -> None:
    """Do the work, on the processor where the GPU has too little memory."""
    twin = partial(twins.of, folder / PATIENT_FILE, folder / BELIEF_FILE, job.weights)
    try:
        work(job, folder, partial(twin, job.device), (), progress)
    except MemoryShortage:
        if job.device == "cpu" or not _has_gpu():
            raise
        progress(0.0, CPU_INSTEAD)
        work(job, folder, partial(twin, "cpu"), (CPU_INSTEAD,), progress)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _predict(job: Predict, folder: Path, twin_of: TwinOf, notes: tuple[str, ...], progress: Progress) -> None:
    from RTDigitalTwinLib.outcome import save_outcome
    from RTDigitalTwinLib.report.observing import belief_notes
    from RTDigitalTwinLib.report.outcomes import outcome_of
    from RTDigitalTwinLib.report.tables import Findings
    from RTDigitalTwinLib.run import remarks
    from RTDigitalTwinLib.versions import described_device

    twin = twin_of(progress)
    prediction = twin.predict(job.samples, job.seed, part(progress, 0.05, 0.9))
    more = (*belief_notes(twin.dose_belief), *remarks(twin), *notes)
    used = described_device(twin.dose_model.surrogate.device)
    outcome = outcome_of(Findings(prediction, more_notes=more), part(progress, 0.9, 1.0), device=used)
    save_outcome(outcome, folder / OUTCOME_FILE)
    progress(1.0, "done")


def _observe(job: Observe, folder: Path, twin_of: TwinOf, notes: tuple[str, ...], progress: Progress) -> None:
    from RTDigitalTwinLib.calibration.belief import RecalibratedBelief, save_belief
    from RTDigitalTwinLib.calibration.choice import calibrator_named
    from RTDigitalTwinLib.calibration.measurements import read_measurements
    from RTDigitalTwinLib.outcome import save_outcome
    from RTDigitalTwinLib.report.observing import observing_of, update_notes
    from RTDigitalTwinLib.report.outcomes import outcome_of
    from RTDigitalTwinLib.report.tables import Findings
    from RTDigitalTwinLib.run import remarks
    from RTDigitalTwinLib.versions import described_device

    twin = twin_of(progress)
    observations = read_measurements(folder / MEASUREMENTS_FILE, twin.patient, of_table=True)
    before = twin.predict(job.samples, job.seed, part(progress, 0.05, 0.3))
    update = twin.observe(
        observations,
        calibrator_named(job.method) if job.method else None,
        absorb_outliers=job.absorb_outliers,
        progress=part(progress, 0.3, 0.7),
    )
    after = twin.predict(job.samples, job.seed, part(progress, 0.7, 0.9))
    more = (*update_notes(update), *remarks(twin), *notes)
    findings = Findings(after, more_notes=more, observing=observing_of(update, before, after))
    used = described_device(twin.dose_model.surrogate.device)
    outcome = outcome_of(findings, part(progress, 0.9, 1.0), device=used)
    if update.after is not update.before and isinstance(update.after, RecalibratedBelief):
        save_belief(update.after, folder / NEW_BELIEF_FILE)
    save_outcome(outcome, folder / OUTCOME_FILE)
    progress(1.0, "done")


def _report(job: Report, folder: Path, twin_of: TwinOf, notes: tuple[str, ...], progress: Progress) -> None:
    from RTDigitalTwinLib.files import require_apart, whole_folder
    from RTDigitalTwinLib.patient.dicom_patient import source_origin
    from RTDigitalTwinLib.report.observing import belief_notes
    from RTDigitalTwinLib.report.tables import Findings
    from RTDigitalTwinLib.run import remarks, write_record, write_tables, write_views
    from RTDigitalTwinLib.stopwatch import Stopwatch

    patient = load_patient_file(folder / PATIENT_FILE)
    origin = None
    if job.dicom_out:
        if not job.source:
            raise OutputError("Only the dose of a DICOM patient can go back as DICOM.", remedy="Say its DICOM folder.")
        require_apart(Path(job.dicom_out), Path(job.source))
        # Of this patient: the pseudonym is told by the identifier.
        choice = Choice(patient.pseudonym, job.choice.names, job.choice.fractions)
        origin = source_origin(Path(job.source), choice.dicom)
    watch = Stopwatch()
    with watch.stage("prediction"):
        twin = twin_of(progress)
        prediction = twin.predict(job.samples, job.seed, part(progress, 0.05, 0.6))
    more = (*belief_notes(twin.dose_belief), *remarks(twin), *notes)
    findings = Findings(prediction, more_notes=more)
    if job.out:
        with whole_folder(Path(job.out)) as out:
            write_tables(out, findings)
            write_views(out, findings, twin.dose_model.surrogate.device, watch, part(progress, 0.6, 0.95))
    if origin is not None:
        with whole_folder(Path(job.dicom_out)) as record:
            progress(0.95, "writing RTDOSE")
            write_record(record, prediction, origin)
    progress(1.0, "done")
