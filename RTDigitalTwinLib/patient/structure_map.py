"""The mapping file: names of a planning system and what they mean, written as proposals, edited, used again."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.structure_matching import Match, MatchState

_HEADER = """\
# What the structures of a planning system are to the model. Correct `name` where needed (empty: left out) and set
# `confirmed` to true; only confirmed lines count. The file can be used again for other patients: lines whose
# structure a patient does not have are passed over.
"""


def write_mapping(matches: Sequence[Match], path: Path) -> None:
    """Write matches as a TOML table. Raises OutputError where it cannot be written."""
    parts = [_HEADER]
    for match in matches:
        settled = match.state in (MatchState.EXACT, MatchState.CONFIRMED, MatchState.HELPER, MatchState.LEFT_OUT)
        parts.append(
            "\n[[structure]]\n"
            f"source = {_quoted(match.source)}\n"
            f"name = {_quoted(match.name)}\n"
            f"confirmed = {'true' if settled else 'false'}\n"
            f"# {match.state.value}, confidence {match.confidence:.2f}: {_one_line(match.reason)}\n"
        )
    with whole_file(path) as aside:
        aside.write_text("".join(parts), encoding="utf-8")


def read_mapping(path: Path) -> dict[str, str]:
    """Confirmed names by name in the source. Raises PatientDataError where the file is not such a table."""
    remedy = "Each [[structure]] needs source and name in quotes, and confirmed = true or false."
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PatientDataError(f"The mapping cannot be read ({error.strerror}).", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PatientDataError(f"The mapping is no TOML file ({error}).", where=path.name, remedy=remedy) from error
    confirmed: dict[str, str] = {}
    entries = table.get("structure", [])
    if not isinstance(entries, list):
        raise PatientDataError("The mapping has no [[structure]] lines.", where=path.name, remedy=remedy)
    for entry in entries:
        source, name = (entry.get(key) if isinstance(entry, dict) else None for key in ("source", "name"))
        if not isinstance(source, str) or not isinstance(name, str) or not isinstance(entry.get("confirmed"), bool):
            raise PatientDataError("A line of the mapping is incomplete.", where=path.name, remedy=remedy)
        if entry["confirmed"]:
            if confirmed.setdefault(source, name) != name:
                raise PatientDataError(f"The mapping says two things of {source}.", where=path.name, remedy=remedy)
    return confirmed


def parse_mappings(texts: Iterable[str]) -> dict[str, str]:
    """``Parotida Izq=Parotid_L`` as names by name in the source. Raises PatientDataError."""
    confirmed: dict[str, str] = {}
    for text in texts:
        source, equals, name = text.rpartition("=")
        if not equals or not source.strip():
            raise PatientDataError(
                f"{text!r} is no mapping.", where="--map", remedy='Write --map "Parotida Izq=Parotid_L".'
            )
        if confirmed.setdefault(source.strip(), name.strip()) != name.strip():
            raise PatientDataError("Two mappings of one structure.", where=source.strip())
    return confirmed


def _quoted(text: str) -> str:
    # JSON strings are TOML strings but for the delete character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _one_line(text: str) -> str:
    return " ".join(text.split())
