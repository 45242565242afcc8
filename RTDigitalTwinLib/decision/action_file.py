"""Which actions to weigh: read from a TOML file, or those that are customary for a patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.decision.actions import Action, Keep, ReImage, Scale, ScaleWithin
from RTDigitalTwinLib.decision.bounds import ChangeBounds
from RTDigitalTwinLib.decision.library_plan import LibraryPlan
from RTDigitalTwinLib.decision.spatial_actions import Boost, Replan, Spare
from RTDigitalTwinLib.dosimetry.customary import target_levels_gy
from RTDigitalTwinLib.dosimetry.dvh import DvhMetric
from RTDigitalTwinLib.dosimetry.goals import evaluate_goals, fitting_goals
from RTDigitalTwinLib.dosimetry.protocol_file import read_toml, reading, require_known, text_of
from RTDigitalTwinLib.errors import ProtocolError, RTDigitalTwinError
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.dose_file import ReadDose, read_dose_image
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

CUSTOMARY_FACTORS = (0.95, 0.975, 1.025, 1.05)
COURSE_ACTIONS: tuple[Action, ...] = (Keep(), ScaleWithin(), ReImage(), Replan())  # quick: weighed again and again
IN_DANGER_RATIO = 0.05  # of the samples beyond a limit
_BOUNDS = {field.name for field in fields(ChangeBounds)}
_SPATIAL = {"structure", "aim_gy", "risk", "steps"} | _BOUNDS


Belongs = Callable[[ReadDose, str], tuple[str, ...]]  # remarks of a file's dose, of that name; raises of another person


@dataclass(frozen=True)
class _Place:
    """Where files of an action lie, and how it is seen whose a dose is."""

    folder: Path
    belongs: Belongs | None


def read_actions(path: Path, patient: Patient, belongs: Belongs | None = None) -> tuple[Action, ...]:
    """Actions of a TOML file, each an entry ``[[action]]`` with its ``kind``, in their order.

    A dose file is looked for beside the file; ``belongs`` says whether it is this person's.
    Raises ProtocolError, naming the file and the entry, for what is no action, names a structure that the patient
    lacks, contradicts itself or says what another entry says.
    """
    content = read_toml(path)
    with reading(path.name):
        require_known(content, {"action"})
        entries = content.get("action", [])
        if not isinstance(entries, list) or not entries:
            raise ValueError("it names no [[action]]")
    actions: list[Action] = []
    place = _Place(path.parent, belongs)
    for number, entry in enumerate(entries, start=1):
        where = f"{path.name}, action {number}"
        if isinstance(entry, dict) and isinstance(entry.get("kind"), str):
            where += f" ({entry['kind']})"
        try:
            with reading(where):
                action = _action(entry, place, patient)
        except ProtocolError:
            raise
        except RTDigitalTwinError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            raise ProtocolError(what, where=where, remedy=error.remedy) from error
        earlier = next((k for k, other in enumerate(actions, start=1) if other.name == action.name), None)
        if earlier is not None:
            raise ProtocolError(
                f"It is the same as action {earlier}: {action.name}.", where=where, remedy="Leave one of them out."
            )
        actions.append(action)
    return tuple(actions)


def customary_actions(patient: Patient, prediction: DoseEnsemble | None = None) -> tuple[Action, ...]:
    """What is usually weighed: keep, scale, spare organs with a goal, boost targets, plan anew, take an image.

    Where a prediction is given, only organs of a goal and targets of a prescription that are missed with more than
    5 %. Where the plan's beams are known to be no fixed coplanar fields, nothing that changes the dose in space.
    """
    actions: list[Action] = [Keep(), *(Scale(factor) for factor in CUSTOMARY_FACTORS)]
    if patient.plans and not patient.plan.not_fixed_fields:
        actions += [Spare(name) for name in _organs_with_goals(patient, prediction)]
        actions += [Boost(name) for name in _targets_to_boost(patient, prediction)]
        actions.append(Replan())
    return (*actions, ReImage())


def chosen_actions(chosen: Sequence[Action] | Path, patient: Patient) -> tuple[Action, ...]:
    """Actions as given, or those of a file. Raises ProtocolError as ``read_actions``."""
    return read_actions(chosen, patient) if isinstance(chosen, Path) else tuple(chosen)


def _organs_with_goals(patient: Patient, prediction: DoseEnsemble | None) -> list[str]:
    found: set[str] = set()
    sets = fitting_goals(max(target_levels_gy(patient).values(), default=None)).sets
    for goals in sets:
        if prediction is None:
            criteria = [criterion for goal in goals.goals for criterion in goal.criteria]
        else:
            results = evaluate_goals(goals, list(patient.structures), prediction.metric_samples)
            criteria = [
                result.criterion
                for result in results
                if result.criterion is not None
                and result.probability_met is not None
                and _is_in_danger(result.probability_met)
            ]
        found.update(name for criterion in criteria if criterion.upper for name in criterion.structures)
    return [name for name in patient.organs if name in found]


def _targets_to_boost(patient: Patient, prediction: DoseEnsemble | None) -> list[str]:
    levels = {name: gy for name, gy in target_levels_gy(patient).items() if name in patient.targets}
    if prediction is None:
        return list(levels)
    covered = DvhMetric.parse("D95")
    return [
        name
        for name, level_gy in levels.items()
        if _is_in_danger(float(prediction.metric_samples(name, covered).kept(level_gy, upper=False).mean()))
    ]


def _is_in_danger(kept_ratio: float) -> bool:
    """Whether a limit is missed with more than 5 %; 1 of 20 samples is not more."""
    return 1 - kept_ratio > IN_DANGER_RATIO + 1e-9


def _action(entry: Mapping[str, Any], place: _Place, patient: Patient) -> Action:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{entry!r} is no table")
    kind = text_of(entry["kind"])
    if kind not in _READERS:
        raise ValueError(f"there is no kind {kind!r}; there are {', '.join(_READERS)}")
    keys, read = _READERS[kind]
    require_known(entry, {"kind", *keys}, f"; {kind} takes {', '.join(sorted(keys)) or 'nothing'}")
    return read(entry, place, patient)


def _scale(entry: Mapping[str, Any], place: _Place, patient: Patient) -> Action:
    if "factor" in entry:
        if others := sorted(set(entry) & {"lowest", "highest", "risk"}):
            raise ValueError(f"a factor leaves no room for {', '.join(others)}")
        return Scale(_number(entry, "factor"))
    if not {"lowest", "highest"} <= set(entry):
        raise ValueError("write either factor, or lowest and highest")
    return ScaleWithin(**_numbers(entry, "lowest", "highest", "risk"))


def _spare(entry: Mapping[str, Any], place: _Place, patient: Patient) -> Action:
    action = Spare(**_spatial(entry, patient))
    if patient.structure(action.structure).kind is StructureKind.TARGET:
        raise ValueError(f"{action.structure} is a target, which cannot be spared")
    return action


def _boost(entry: Mapping[str, Any], place: _Place, patient: Patient) -> Action:
    action = Boost(**_spatial(entry, patient))
    if action.aim_gy is None and action.structure not in target_levels_gy(patient):
        raise ValueError(f"no dose is prescribed to {action.structure}: give aim_gy")
    return action


def _replan(entry: Mapping[str, Any], place: _Place, patient: Patient) -> Action:
    return Replan(**_numbers(entry, "risk"), **_steps(entry))


def _library(entry: Mapping[str, Any], place: _Place, patient: Patient) -> Action:
    title, file = text_of(entry["title"]), place.folder / text_of(entry["dose"])
    unit = text_of(entry["unit"]) if "unit" in entry else None
    if not file.is_file():
        raise ValueError(f"there is no file {file.name} beside it")
    if file.suffix.lower() == ".csv":
        if unit not in (None, "Gy"):
            raise ValueError("a dose in the OpenKBP layout is in Gy")
        return LibraryPlan(title, openkbp.read_dose(file, patient))
    found = read_dose_image(file, patient.ct.grid.frame_of_reference, unit)
    remarks = () if place.belongs is None else place.belongs(found, file.name)
    return LibraryPlan(title, found.dose, (*remarks, *found.remarks))


def _spatial(entry: Mapping[str, Any], patient: Patient) -> dict[str, Any]:
    structure = text_of(entry["structure"])
    patient.structure(structure)
    bounds = ChangeBounds(**_numbers(entry, *sorted(_BOUNDS)))
    return {"structure": structure, "bounds": bounds, **_numbers(entry, "aim_gy", "risk"), **_steps(entry)}


def _numbers(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: _number(entry, name) for name in names if name in entry}


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}, which is no number")
    return float(value)


def _steps(entry: Mapping[str, Any]) -> dict[str, Any]:
    if "steps" not in entry:
        return {}
    if isinstance(entry["steps"], bool) or not isinstance(entry["steps"], int):
        raise ValueError(f"steps is {entry['steps']!r}, which is no whole number")
    return {"steps": entry["steps"]}


_Read = Callable[[Mapping[str, Any], _Place, Patient], Action]
_READERS: dict[str, tuple[set[str], _Read]] = {
    "keep": (set(), lambda entry, place, patient: Keep()),
    "scale": ({"factor", "lowest", "highest", "risk"}, _scale),
    "spare": (_SPATIAL, _spare),
    "boost": (_SPATIAL, _boost),
    "library": ({"title", "dose", "unit"}, _library),
    "re-image": (set(), lambda entry, place, patient: ReImage()),
    "replan": ({"risk", "steps"}, _replan),
}
