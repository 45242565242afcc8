"""Observations in files: CSV with a row each, or JSON; dose volumes as image or RTDOSE files beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from RTDigitalTwinLib.dosimetry.dvh_metric import DvhMetric
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.dicom_dose import read_dose
from RTDigitalTwinLib.patient.dicom_file import looks_like_dicom
from RTDigitalTwinLib.patient.dicom_index import RTDOSE, index_file
from RTDigitalTwinLib.patient.dose_file import require_physical_dose
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.observation import (
    CouchShiftObservation,
    DoseObservation,
    MetricObservation,
    Moment,
    NoiseModel,
    Observation,
    PointObservation,
    ScalarObservation,
    require_fit,
)
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume

POSITION = ("x_mm", "y_mm", "z_mm")
WHEN = ("days", "fraction", "fractions")
NOISE = ("noise_ratio", "noise_floor")
ALWAYS = ("unit", *WHEN, *NOISE, "source")
NEEDED = {
    "metric": ("structure", "metric", "value", *ALWAYS),
    "point": (*POSITION, "value", *ALWAYS),
    "dose": ("file", *ALWAYS),
    "couch shift": (*POSITION, *ALWAYS),
}
OPTIONAL = {
    "metric": ("simulated",),
    "point": ("simulated",),
    "dose": ("simulated", "blur_mm"),
    "couch shift": ("simulated",),
}
COLUMNS = (
    *("patient", "kind", "structure", "metric", *POSITION, "file", "value", "unit", *WHEN, *NOISE),
    *("blur_mm", "source", "simulated"),
)
WHOLE_SUMMATIONS = ("PLAN", "FRACTION")  # of RTDOSE
WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class _Row:
    """What stands at one place of a file; ``where`` is the place as an error names it."""

    cells: Mapping[str, Any]
    where: str


def read_measurements(path: Path, patient: Patient, *, of_table: bool = False) -> tuple[Observation, ...]:
    """The observations in a file that is this patient's, in order of time.

    CSV has the columns of ``COLUMNS`` that its rows need, ``patient`` in every row. JSON is an object with ``patient``
    and ``observations``, a list of objects with the same names. ``file`` of a dose volume is relative to the folder: an
    image file in Gy, or RTDOSE of whole fractions in the planning CT's frame of reference.
    ``of_table``: the file was written from a table, whose rows errors are to name.

    Raises PatientDataError naming file and line (of JSON the observation, counted from 1): not readable, unknown or
    missing columns, no numbers, units other than Gy and %, another patient, absent structures, duplicates, rows out of
    order in time.
    """
    owners, rows = _read(path)
    for owner in owners:
        if owner != patient.pseudonym:
            raise PatientDataError(
                f"The measurements are of patient {owner or '(none named)'}, not of {patient.pseudonym}.",
                where=path.name,
                remedy="Give the measurements of this patient.",
            )
    observations: list[Observation] = []
    for number, row in enumerate(rows, start=1):
        with _naming(f"{path.name}, row {number}" if of_table else row.where):
            observation = _observation(row.cells, path.parent, patient)
            require_fit([observation], patient, observations)
            _require_order([o.moment for o in observations], observation.moment)
        observations.append(observation)
    return tuple(observations)


def check_measurements(path: Path) -> None:
    """Refuse what ``read_measurements`` would refuse of a file whoever the patient is, in an instant.

    That is all but whose it is, its structures, magnitudes and places, duplicates, and what dose volumes hold.
    Raises PatientDataError as that does.
    """
    owners, rows = _read(path)
    if len(owners) > 1:
        raise PatientDataError(
            f"The measurements are of several patients: {', '.join(owner or '(none named)' for owner in owners)}.",
            where=path.name,
            remedy="Give a file for each.",
        )
    moments: list[Moment] = []
    for row in rows:
        with _naming(row.where):
            given = _required(row.cells)
            moment = _moment(given)
            if given["kind"] == "dose":
                _noise(given)
                _simulated(given)
                _blur_mm(given)
                _dose_path(path.parent, str(given["file"]))
            else:
                from_row(row.cells)
            _require_order(moments, moment)
        moments.append(moment)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Errors name this place first."""
    try:
        yield
    except RTDigitalTwinError as error:
        named = where + (f", {error.where}" if error.where else "")
        raise PatientDataError(error.what, where=named, remedy=error.remedy) from error


def _read(path: Path) -> tuple[list[str], list[_Row]]:
    """Whose measurements a file holds, and its rows. Raises PatientDataError where it holds none."""
    owners, rows = _read_json(path) if path.suffix.lower() == ".json" else _read_csv(path)
    if not rows:
        raise PatientDataError("The file holds no measurement.", where=path.name)
    return owners, rows


def write_measurements(observations: Sequence[ScalarObservation], pseudonym: str, path: Path) -> None:
    """Write metrics and points as CSV that ``read_measurements`` takes. Raises OutputError."""
    with whole_file(path) as aside, aside.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for observation in observations:
            writer.writerow({"patient": pseudonym} | as_row(observation))


def as_row(observation: Observation) -> dict[str, Any]:
    """An observation by the files' names; of a dose volume all but the ``file``."""
    row: dict[str, Any] = {
        "unit": observation.unit,
        "days": observation.moment.days,
        "fraction": observation.moment.fraction,
        "fractions": observation.moment.fractions,
        "noise_ratio": observation.noise.ratio,
        "noise_floor": observation.noise.floor,
        "source": observation.source,
        "simulated": str(observation.simulated).lower(),
    }
    if isinstance(observation, DoseObservation):
        return {"kind": "dose", **row, "blur_mm": observation.blur_mm}
    if isinstance(observation, CouchShiftObservation):
        return {"kind": "couch shift", **dict(zip(POSITION, observation.shift_mm, strict=True)), **row}
    if isinstance(observation, PointObservation):
        return {
            "kind": "point",
            **dict(zip(POSITION, observation.position_mm, strict=True)),
            "value": observation.value,
            **row,
        }
    return {
        "kind": "metric",
        "structure": observation.structure,
        "metric": observation.metric,
        "value": observation.value,
        **row,
    }


def from_row(row: Mapping[str, Any], dose: Volume | None = None) -> Observation:
    """An observation from ``as_row``, a dose volume with its ``dose``. Raises PatientDataError."""
    row = _required(row, has_dose=dose is not None)
    kind, metric = str(row["kind"]), str(row.get("metric", ""))
    moment, noise, simulated = _moment(row), _noise(row), _simulated(row)
    source = str(row["source"])
    if kind == "metric":
        DvhMetric.parse(metric)
        return MetricObservation(str(row["structure"]), metric, _number(row, "value"), moment, noise, source, simulated)
    if kind == "couch shift":
        x, y, z = (_number(row, name) for name in POSITION)
        return CouchShiftObservation((x, y, z), moment, noise, source, simulated)
    if kind == "point":
        x, y, z = (_number(row, name) for name in POSITION)
        return PointObservation((x, y, z), _number(row, "value"), moment, noise, source, simulated)
    if dose is None:
        raise PatientDataError("The dose volume is not there.", where=str(row["file"]))
    return DoseObservation(dose, moment, noise, source, simulated, _blur_mm(row))


def _required(row: Mapping[str, Any], has_dose: bool = False) -> dict[str, Any]:
    """What a row says, where that is all its kind needs, nothing else, and in its unit."""
    kind = str(row.get("kind", ""))
    if kind not in NEEDED:
        raise PatientDataError(f"{kind!r} is no kind of measurement.", remedy=f"Use {', '.join(NEEDED)}.")
    given = {name: value for name, value in row.items() if value not in ("", None)}
    missing = [name for name in NEEDED[kind] if name not in given and not (name == "file" and has_dose)]
    if missing:
        raise PatientDataError(f"A {kind} needs {', '.join(missing)}.", remedy="Add what is missing.")
    alien = [name for name in given if name not in ("kind", "patient", *NEEDED[kind], *OPTIONAL[kind])]
    if alien:
        raise PatientDataError(f"A {kind} has no {', '.join(alien)}.", remedy="Leave it empty, or correct the name.")
    of_dose = "%" if str(given.get("metric", "")).startswith("V") else "Gy"
    _require_unit(str(given["unit"]), "mm" if kind == "couch shift" else of_dose)
    return given


def _moment(row: Mapping[str, Any]) -> Moment:
    return Moment(_number(row, "days"), _whole(row, "fraction"), _whole(row, "fractions"))


def _noise(row: Mapping[str, Any]) -> NoiseModel:
    return NoiseModel(_number(row, "noise_ratio"), _number(row, "noise_floor"))


def _simulated(row: Mapping[str, Any]) -> bool:
    simulated = WORDS.get(str(row.get("simulated", "false")).lower())
    if simulated is None:
        raise PatientDataError(f"simulated must be true or false, not {row['simulated']!r}.")
    return simulated


def _blur_mm(row: Mapping[str, Any]) -> float:
    return _number(row, "blur_mm") if "blur_mm" in row else 0.0


def _observation(row: Mapping[str, Any], folder: Path, patient: Patient) -> Observation:
    if row.get("kind") == "dose" and row.get("file"):
        return from_row(row, _read_volume(folder, str(row["file"]), patient.ct.grid))
    return from_row(row)


def _require_order(earlier: Sequence[Moment], now: Moment) -> None:
    if earlier:
        before = earlier[-1]
        if now.days < before.days or now.fraction < before.fraction:
            raise PatientDataError(
                f"Day {now.days:g}, fraction {now.fraction} stands after day {before.days:g}, "
                f"fraction {before.fraction}.",
                remedy="Sort the rows by time; days and fractions go up together.",
            )


def _require_unit(unit: str, expected: str) -> None:
    if unit != expected:
        hint = " Divide cGy by 100." if unit.lower() == "cgy" else ""
        raise PatientDataError(f"The unit is {unit}, not {expected}.", remedy=f"Give the value in {expected}.{hint}")


def _number(row: Mapping[str, Any], name: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = np.nan
    if isinstance(row[name], bool) or not np.isfinite(value):
        raise PatientDataError(f"{name} is no finite number: {row[name]!r}.")
    return value


def _whole(row: Mapping[str, Any], name: str) -> int:
    value = _number(row, name)
    if value != int(value):
        raise PatientDataError(f"{name} is no whole number: {row[name]!r}.")
    return int(value)


def _read_csv(path: Path) -> tuple[list[str], list[_Row]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            names = list(reader.fieldnames or [])
            # As an editor counts them, the header and empty lines too.
            rows = [_Row(row, f"{path.name}, line {reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _not_read(path, error) from error
    _require_names(path, names)
    if len(set(names)) < len(names):
        raise PatientDataError("A column is there twice.", where=path.name)
    for row in rows:
        if "" in row.cells or None in row.cells.values():
            raise PatientDataError("The line has not as many cells as the header.", where=row.where)
    return sorted({row.cells["patient"] for row in rows}), rows


def _read_json(path: Path) -> tuple[list[str], list[_Row]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        owner, rows = str(content["patient"]), list(content["observations"])
        _require_names(path, ["patient", *(name for row in rows for name in row.keys())])
        if unknown := content.keys() - {"patient", "observations"}:
            raise PatientDataError(f"Nothing is known of {', '.join(sorted(unknown))}.", where=path.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_read(path, error) from error
    places = [f"{path.name}, observation {number}" for number in range(1, len(rows) + 1)]
    return [owner], [_Row({"patient": owner} | row, place) for row, place in zip(rows, places, strict=True)]


def _require_names(path: Path, names: Sequence[str]) -> None:
    if unknown := sorted({name for name in names if name not in COLUMNS}):
        raise PatientDataError(
            f"Nothing is known of {', '.join(map(repr, unknown))}.",
            where=path.name,
            remedy=f"The names are {', '.join(COLUMNS)}.",
        )
    if lacking := [name for name in ("patient",) if name not in names]:
        raise PatientDataError(f"There is no {lacking[0]}.", where=path.name, remedy="Say whose measurements they are.")


def _dose_path(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise PatientDataError("The dose volume must lie in the folder of the measurements.", where=name)
    if not path.is_file():
        raise PatientDataError("The dose volume is not there.", where=name)
    return path


def _read_volume(folder: Path, name: str, grid: Grid) -> Volume:
    import SimpleITK as sitk

    path = _dose_path(folder, name)
    if looks_like_dicom(path):
        return _read_rtdose(path, name)
    try:
        image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    except RuntimeError as error:
        raise PatientDataError("The dose volume cannot be read.", where=name, remedy="Write it as NRRD.") from error
    if image.GetDimension() != 3:
        raise PatientDataError("The dose volume is not three-dimensional.", where=name)
    require_physical_dose(image, name)
    own = Grid(
        image.GetSize()[::-1], image.GetSpacing(), image.GetOrigin(), image.GetDirection(), grid.frame_of_reference
    )
    # Grids written to a file and read again differ in the last digit of a direction.
    own = grid if own.same_as(grid) else own
    return Volume(sitk.GetArrayFromImage(image), own, Quantity.DOSE_GY)


def _read_rtdose(path: Path, name: str) -> Volume:
    """A physical dose of whole fractions, on its own grid and in its own frame of reference."""
    file = index_file(path, name)
    if file.kind != RTDOSE:
        raise PatientDataError(f"The file is {file.kind}, not RTDOSE.", where=name)
    found = read_dose(file)
    if found.summation not in WHOLE_SUMMATIONS:
        raise PatientDataError(
            f"(3004,000A) DoseSummationType is {found.summation}: a part of what was delivered.",
            where=name,
            remedy=f"Give the dose of whole fractions ({' or '.join(WHOLE_SUMMATIONS)}).",
        )
    if found.remarks:
        raise PatientDataError(found.remarks[0], where=name, remedy="Give the physical dose.")
    return found.dose


def _not_read(path: Path, error: Exception) -> PatientDataError:
    why = error.strerror if isinstance(error, OSError) else "it is not what its ending says"
    return PatientDataError(
        f"The measurements cannot be read ({why}).", where=path.name, remedy="Give a CSV or JSON file as described."
    )
