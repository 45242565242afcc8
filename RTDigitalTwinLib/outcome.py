"""What is shown of a prediction: doses, curves and rows of words, without the samples and what they were drawn with.

Such an outcome goes from the process that computes to the one that shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import ModelError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.patient_file import grid_from_row, grid_row
from RTDigitalTwinLib.patient.volume import Quantity, Volume

FORMAT = 1
MEAN, STD, WIDTH, DIFFERENCE, ABSOLUTE, BEFORE, CHANGE = (
    "mean", "std", "width", "difference", "absolute difference", "before", "change",
)  # fmt: skip

BAND_LEVEL = 0.95
BAND_LEVELS = (0.5, 0.8, 0.9, 0.95)
DOSE_COLUMN, VOLUME_COLUMN = "Dose", "Volume"  # SlicerRT's
LOW_COLUMN, HIGH_COLUMN, REFERENCE_COLUMN = "Volume band low", "Volume band high", "Volume reference"
BEFORE_COLUMN = "Volume before"

Values = NDArray | tuple[str, ...]


def band_columns(level: float) -> tuple[str, str]:
    """Columns of a curve's lower and upper limit at a level."""
    if level == BAND_LEVEL:
        return LOW_COLUMN, HIGH_COLUMN
    return f"Volume {100 * level:g} % band low", f"Volume {100 * level:g} % band high"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns by their title, of numbers or of words, all as long."""

    columns: Mapping[str, Values]
    description: str = ""

    @property
    def row_count(self) -> int:
        return len(next(iter(self.columns.values()), ()))


@dataclass(frozen=True)
class BesideWords:
    """What two predictions side by side, and their difference, are called."""

    now: str
    before: str
    change: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """A prediction as it is shown.

    Attributes
    ----------
    pseudonym : of its patient.
    volumes : by ``MEAN`` and so on, in Gy, all on one grid; those that there are.
    shown : mask over the grid where dose can be: ranges of colours are of it.
    curves : cumulative DVH by structure: dose in Gy, volume in %, bands at ``BAND_LEVELS``, reference, before.
    volume_cc : of each structure.
    metrics, goals : as rows.
    observations, compared : what was observed, and metrics before and after; None where nothing was observed.
    ranking : the actions in their order; None where none were ranked.
    action : whose dose it is; "" where none were ranked.
    decided : what is recommended, or that nothing is and what stands in the way; "" where none were ranked.
    beside : what it and the prediction before it are called; None where it stands alone.
    highest_gy : the prescribed dose that is 100 %.
    band_words : what to call the bands; "" where there are none.
    is_calibrated : whether they are.
    samples, seed, weights_sha256, device : by what it was made; seed is None where nothing was drawn.
    notes : for the user to read.
    outcomes : of the observations that were given, in their order.
    """

    pseudonym: str
    volumes: Mapping[str, Volume]
    shown: NDArray[np.bool_]
    curves: Mapping[str, Table]
    volume_cc: Mapping[str, float]
    metrics: Table
    goals: Table
    observations: Table | None
    compared: Table | None
    highest_gy: float
    band_words: str
    is_calibrated: bool
    samples: int
    seed: int | None
    weights_sha256: str
    device: str = ""
    notes: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    ranking: Table | None = None
    beside: BesideWords | None = None
    action: str = ""
    decided: str = ""

    @property
    def mean(self) -> Volume:
        return self.volumes[MEAN]

    @property
    def name(self) -> str:
        """What to call its dose."""
        return "Predicted dose" if self.beside is None else f"Dose {self.beside.now}"

    def with_notes(self, *more: str) -> Outcome:
        return replace(self, notes=(*self.notes, *more))


_OPTIONAL = ("observations", "compared", "ranking")
_PLAIN = (
    "pseudonym", "highest_gy", "band_words", "is_calibrated", "samples", "seed", "weights_sha256", "device", "action",
    "decided",
)  # fmt: skip


def save_outcome(outcome: Outcome, path: Path) -> None:
    """Write an outcome, uncompressed. Raises OutputError."""
    arrays: dict[str, NDArray] = {"shown": np.packbits(outcome.shown)}
    for key, volume in outcome.volumes.items():
        arrays[f"volume {key}"] = volume.values
    about: dict[str, Any] = {"format": FORMAT} | {name: getattr(outcome, name) for name in _PLAIN}
    about |= {
        "grid": grid_row(outcome.mean.grid),
        "quantities": {key: volume.quantity.name for key, volume in outcome.volumes.items()},
        "volume_cc": dict(outcome.volume_cc),
        "notes": outcome.notes,
        "outcomes": outcome.outcomes,
        "curves": {name: table_told(table, f"curve {name}", arrays) for name, table in outcome.curves.items()},
    }
    about["beside"] = None if outcome.beside is None else asdict(outcome.beside)
    for name in ("metrics", "goals", *_OPTIONAL):
        table = getattr(outcome, name)
        about[name] = None if table is None else table_told(table, name, arrays)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with whole_file(path) as aside, aside.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def load_outcome(path: Path) -> Outcome:
    """The outcome that ``save_outcome`` wrote. Raises ModelError where the file is none or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] != FORMAT:
            raise ModelError("The result was written by another version.", where=path.name)
        grid = grid_from_row(about["grid"])
        volumes = {
            key: Volume(arrays[f"volume {key}"], grid, Quantity[name]) for key, name in about["quantities"].items()
        }
        mask = np.unpackbits(arrays["shown"], count=grid.voxel_count).astype(bool).reshape(grid.shape)
        tables = {name: None if about[name] is None else table_from(about[name], name, arrays) for name in _OPTIONAL}
        return Outcome(
            volumes=volumes,
            shown=mask,
            curves={name: table_from(told, f"curve {name}", arrays) for name, told in about["curves"].items()},
            volume_cc=about["volume_cc"],
            metrics=table_from(about["metrics"], "metrics", arrays),
            goals=table_from(about["goals"], "goals", arrays),
            observations=tables["observations"],
            compared=tables["compared"],
            ranking=tables["ranking"],
            beside=None if about["beside"] is None else BesideWords(**about["beside"]),
            notes=tuple(about["notes"]),
            outcomes=tuple(about["outcomes"]),
            **{name: about[name] for name in _PLAIN},
        )
    except ModelError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        BadZipFile,
        AssertionError,
        RTDigitalTwinError,
    ) as error:
        raise ModelError("The result cannot be read.", where=path.name, remedy="Predict again.") from error


def table_told(table: Table, key: str, arrays: dict[str, NDArray]) -> dict[str, Any]:
    """A table as JSON takes it; its numbers are added to ``arrays`` under names that begin with ``key``."""
    columns: list[tuple[str, list[str] | None]] = []
    for number, (title, values) in enumerate(table.columns.items()):
        if isinstance(values, np.ndarray):
            arrays[f"{key} {number}"] = values
            columns.append((title, None))
        else:
            columns.append((title, list(values)))
    return {"description": table.description, "columns": columns}


def table_from(told: dict[str, Any], key: str, arrays: Mapping[str, NDArray]) -> Table:
    """The table that ``table_told`` told."""
    columns: dict[str, Values] = {
        title: arrays[f"{key} {number}"] if words is None else tuple(words)
        for number, (title, words) in enumerate(told["columns"])
    }
    return Table(columns, told["description"])
