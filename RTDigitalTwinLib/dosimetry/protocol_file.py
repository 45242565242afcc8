"""Protocol files: TOML with doses in Gy, every value checked as it is read."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.errors import ProtocolError

HIGHEST_DOSE_GY = 200.0  # beyond it a number is likely in cGy


def read_protocol(path: Path) -> dict[str, Any]:
    """The content of a file. Raises ProtocolError where it cannot be read or does not say that its doses are in Gy."""
    content = read_toml(path)
    if (unit := content.get("dose_unit")) != "Gy":
        raise ProtocolError(f'dose_unit must be "Gy", not {unit!r}.', where=path.name, remedy="Convert the doses.")
    return content


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a file. Raises ProtocolError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProtocolError(f"The file cannot be read ({error.strerror}).", where=path.name) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProtocolError(f"The file cannot be read ({error}).", where=path.name) from error


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what goes wrong in a block that takes an entry apart into a ProtocolError that says where."""
    try:
        yield
    except KeyError as error:
        raise ProtocolError(f"{error.args[0]} is missing.", where=where) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"Cannot be understood: {error}.", where=where) from error


def require_known(entry: Mapping[str, Any], known: set[str], hint: str = "") -> None:
    """Raises ValueError where an entry has a key that nothing reads."""
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"unknown: {', '.join(unknown)}{hint}")


def text_of(value: object) -> str:
    """Raises ValueError where a value is no text, or an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no text")
    return value


def names_of(value: object) -> tuple[str, ...]:
    """Raises ValueError where a value is no list of texts, or an empty one."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is no list of names")
    return tuple(text_of(name) for name in value)
