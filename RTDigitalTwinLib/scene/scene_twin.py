"""A twin of the patient in a scene: the verbs of scripts, and the errands that a window runs in the background."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from RTDigitalTwinLib import background
from RTDigitalTwinLib.course_outcome import load_course
from RTDigitalTwinLib.errors import OutputError, RTDigitalTwinError, SceneError
from RTDigitalTwinLib.jobs import (
    COURSE_FILE,
    INSPECTION_FILE,
    PATIENT_FILE,
    SAMPLE,
    Choice,
    Inspect,
    Job,
    LiveCourse,
    Observe,
    Predict,
    Read,
    Recommend,
    Report,
    write_job,
)
from RTDigitalTwinLib.patient.patient_file import load_patient_file
from RTDigitalTwinLib.patient.structure_matching import Match, MatchState
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene.action_nodes import KEEP, action_nodes, job_of_action, ranking_of, show_ranking
from RTDigitalTwinLib.scene.bundle import load_mrb, save_mrb
from RTDigitalTwinLib.scene.course_nodes import CourseNodes, add_course, find_course, remove_course
from RTDigitalTwinLib.scene.measurement_nodes import import_measurements, measurement_table
from RTDigitalTwinLib.scene.twin_in_view import TwinInView, TwinState, overlays, state_of
from RTDigitalTwinLib.scene.twin_nodes import Told, clear, require_present, show_answer, study_of, tell, undo
from RTDigitalTwinLib.scene.twin_patient import show_loaded

__all__ = ["Errand", "FolderContent", "SceneTwin", "TwinState", "overlays"]


@dataclass(frozen=True)
class Errand:
    """Long work in three parts: told in a folder, done by another process, brought home.

    Attributes
    ----------
    title : what it does, for the user.
    prepare : writes the job to a folder.
    land : takes the answer from the folder; all of it lands, or nothing.
    """

    title: str
    prepare: Callable[[Path], None]
    land: Callable[[Path], Any]


@dataclass(frozen=True)
class FolderContent:
    """What a folder holds.

    Attributes
    ----------
    is_dicom : whether there are names to confirm at all.
    matches : what the structures' names mean, by the patient's pseudonym.
    problems : why a patient cannot be read, by pseudonym.
    """

    is_dicom: bool
    matches: Mapping[str, tuple[Match, ...]]
    problems: Mapping[str, str]


class SceneTwin(TwinInView):
    """The twin in a scene, with all its verbs; a ``TwinInView`` has the parameters."""

    # Errands

    def inspecting(self, folder: Path, land: Callable[[FolderContent], Any]) -> Errand:
        """What a folder holds is handed to ``land``."""

        def read(room: Path) -> Any:
            return land(_content(json.loads((room / INSPECTION_FILE).read_text())))

        return Errand("Looking into the folder", _writes(Inspect(str(folder))), read)

    def loading(self, folder: Path | None = None, choice: Choice | None = None) -> Errand:
        """A folder's patient, by default the built-in sample, becomes the scene's and the twin's."""

        def show(room: Path) -> Any:
            nodes = show_loaded(self.scene, load_patient_file(room / PATIENT_FILE))
            self.use(nodes.ct, nodes.segmentation, nodes.reference_dose)
            return nodes.ct

        job = Read(SAMPLE if folder is None else str(folder), choice or Choice())
        return Errand("Loading the patient", _writes(job), show)

    def predicting(self, samples: int = 32, seed: int = 0, device: str = "auto", weights: str = "") -> Errand:
        """The dose is predicted and takes the place of the prediction before."""
        return self._asking("Predicting the dose", Predict(samples, seed, device, weights))

    def observing(
        self,
        samples: int = 32,
        seed: int = 0,
        device: str = "auto",
        weights: str = "",
        method: str = "",
        absorb_outliers: bool = False,
    ) -> Errand:
        """The measurements that wait are absorbed; ``undo`` goes back."""
        return self._asking(
            "Absorbing the measurements", Observe(samples, seed, device, weights, method, absorb_outliers)
        )

    def recommending(self, job: Recommend | None = None) -> Errand:
        """Actions are ranked on what is believed of the dose now; the recommended one's dose is shown beside it."""
        return self._deciding("Ranking the actions", job or Recommend())

    def computing_action(self, action: str, device: str = "auto", actions: str = "", protocol: str = "") -> Errand:
        """The dose of a ranked action is added; ``actions`` and ``protocol`` are the files of the ranking, if any."""
        table = self.ranking
        if table is None:
            raise SceneError("There is no ranking.", remedy="Rank the actions first.")
        job = job_of_action(table, action, actions, protocol)
        return self._deciding("Computing the dose of an action", replace(job, device=device))

    def _deciding(self, title: str, job: Recommend) -> Errand:
        told: list[Told] = []

        def prepare(room: Path) -> None:
            if self.outcome is None:
                raise SceneError("There is no prediction.", remedy="Predict the dose first.")
            told.append(tell(self.nodes, job, room))

        def land(room: Path) -> Any:
            action = show_ranking(self.scene, told[0], room)
            self.state.shownAction = "" if action == KEEP else action
            self.show()
            return self.ranking

        return Errand(title, prepare, land)

    def living(self, job: LiveCourse | None = None) -> Errand:
        """A whole course is simulated and watched; it takes the place of the course before."""
        told: list[Told] = []

        def land(room: Path) -> CourseNodes:
            twin = told[0].twin
            require_present(self.scene, twin)
            earlier = find_course(self.scene, twin.ct)
            nodes = add_course(self.scene, load_course(room / COURSE_FILE), twin.ct, study_of(self.scene, twin.ct))
            if earlier is not None:
                remove_course(self.scene, earlier)
            return nodes

        return Errand(
            "Living through a simulated course",
            lambda room: told.append(tell(self.nodes, job or LiveCourse(), room)),
            land,
        )

    def reporting(
        self, out: Path | None = None, dicom_out: Path | None = None, source: Path | None = None, weights: str = ""
    ) -> Errand:
        """A folder with report, tables and volumes, one with RTDOSE, or both; drawn as the prediction now was."""
        mean = self.state.prediction
        if mean is None:
            raise SceneError("There is no prediction.", remedy="Predict the dose first.")
        job = Report(
            out="" if out is None else str(out),
            dicom_out="" if dicom_out is None else str(dicom_out),
            samples=int(mean.GetAttribute("RTDigitalTwin.Samples") or 0),
            seed=int(mean.GetAttribute("RTDigitalTwin.Seed") or 0),
            source="" if source is None else str(source),
            weights=weights,
        )

        def prepare(room: Path) -> None:
            for place in filter(None, (out, dicom_out)):
                if place.exists():
                    raise OutputError("It is there already.", where=place.name, remedy="Choose another place.")
            tell(self.nodes, job, room)

        return Errand("Writing the report" if out else "Writing RTDOSE", prepare, lambda _: out or dicom_out)

    def _asking(self, title: str, job: Predict | Observe) -> Errand:
        told: list[Told] = []

        def show(room: Path) -> Any:
            mean = show_answer(self.scene, told[0], room)
            self.state.prediction, self.state.shownAction = mean, ""
            self.show()
            return mean

        return Errand(title, lambda room: told.append(tell(self.nodes, job, room)), show)

    def do(self, errand: Errand, progress: Progress = silent) -> Any:
        """Run an errand and wait for it; what ``progress`` raises cancels it. Raises what went wrong."""
        room = background.new_folder()
        try:
            errand.prepare(room)
            background.wait(background.start(room), progress)
            return errand.land(room)
        finally:
            background.drop(room)

    # Verbs

    def load(self, folder: str | Path | None = None, choice: Choice | None = None, progress: Progress = silent) -> Any:
        """A folder's patient, by default the built-in sample; returns its CT node."""
        return self.do(self.loading(None if folder is None else Path(folder), choice), progress)

    def predict(self, samples: int = 32, seed: int = 0, device: str = "auto", progress: Progress = silent) -> Any:
        """The mean dose node of a prediction."""
        return self.do(self.predicting(samples, seed, device), progress)

    def observe(self, file: str | Path | None = None, progress: Progress = silent, **settings: Any) -> Any:
        """The mean dose node after absorbing the table's measurements, and those of a CSV file; as ``observing``."""
        if file is not None:
            self.import_measurements(Path(file))
        return self.do(self.observing(**settings), progress)

    def recommend(self, progress: Progress = silent, **settings: Any) -> Any:
        """The table of the actions ranked, the recommended one's dose in view; settings are those of ``Recommend``."""
        return self.do(self.recommending(Recommend(**settings)), progress)

    def show_action(self, action: str, progress: Progress = silent, **settings: Any) -> Any:
        """Bring a ranked action's dose into view, computed first where it is not in the scene; returns its mean dose.

        ``keep`` brings back the prediction. Settings are those of ``computing_action``.
        """
        mean = self.state.prediction
        if mean is None or ranking_of(mean) is None:
            raise SceneError("There is no ranking.", remedy="Rank the actions first.")
        if action_nodes(self.scene, mean, action) is None:
            self.do(self.computing_action(action, **settings), progress)
        self.view_action(action)
        return self.shown.mean if self.shown else None

    def live(self, progress: Progress = silent, **settings: Any) -> CourseNodes:
        """The nodes of a simulated course, which was watched; settings are those of ``LiveCourse``."""
        return self.do(self.living(LiveCourse(**settings)), progress)

    def import_measurements(self, file: Path) -> int:
        """Add a CSV file's measurements to the table; returns how many."""
        if self.state.measurements is None:
            self.state.measurements = measurement_table(self.scene)
        return import_measurements(self.state.measurements, file, self.pseudonym)

    def undo(self) -> Any:
        """Go back before the last observing; returns the mean dose node. Raises RTDigitalTwinError."""
        if self.state.prediction is None:
            raise RTDigitalTwinError("There is nothing to undo: nothing was observed.")
        self.state.prediction = undo(self.scene, self.state.prediction, self.state.measurements)
        self.state.shownAction = ""
        self.show()
        return self.state.prediction

    def clear(self) -> None:
        """Take every prediction away; the patient stays."""
        mean, self.state.prediction, self.state.shownAction = self.state.prediction, None, ""
        if mean is not None:
            clear(self.scene, mean, self.state.measurements)

    def write_report(self, out: str | Path, progress: Progress = silent) -> Path:
        """A new folder with the HTML report, tables, volumes and pictures."""
        return self.do(self.reporting(Path(out)), progress)

    def export_dose(self, out: str | Path, source: str | Path, progress: Progress = silent) -> Path:
        """A new folder with the dose as RTDOSE, for the record of the DICOM folder the patient came from."""
        return self.do(self.reporting(dicom_out=Path(out), source=Path(source)), progress)

    def save_scene(self, path: str | Path) -> Path:
        """The scene with the twin's whole state as an MRB file."""
        return save_mrb(self.scene, path)

    def open_scene(self, path: str | Path) -> None:
        """Replace the scene by a saved one and go on with its twin."""
        load_mrb(path, self.scene)
        self.state = state_of(self.scene)


def _writes(job: Job) -> Callable[[Path], None]:
    return lambda room: write_job(job, room)


def _content(told: dict[str, Any]) -> FolderContent:
    matches, problems = {}, {}
    for pseudonym, patient in told["patients"].items():
        if "problem" in patient:
            problems[pseudonym] = patient["problem"]
        matches[pseudonym] = tuple(
            Match(source, name, MatchState(state), confidence, reason)
            for source, name, state, confidence, reason, *_ in patient["matches"]
        )
    return FolderContent(told["dicom"], matches, problems)
