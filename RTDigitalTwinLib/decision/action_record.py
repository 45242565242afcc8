"""Actions as plain values, for a ledger to tell and for others to make the very same from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from importlib import import_module
from typing import Any, cast

from RTDigitalTwinLib.decision.actions import Action
from RTDigitalTwinLib.errors import LedgerError

ROOM = "RTDigitalTwinLib.decision."


def action_row(action: Action) -> dict[str, Any]:
    """An action's name and kind, and its record where there can be one."""
    return {"name": action.name, "kind": action.kind.value, "made": recorded(action)}


def recorded(action: Action) -> dict[str, Any] | None:
    """An action of this library by its class and what it was made with; None where that is more than plain values."""
    try:
        return cast(dict[str, Any], _plain(action))
    except ValueError:
        return None


def from_record(record: Mapping[str, Any]) -> Action:
    """The action that a record tells of. Raises LedgerError where this software has none such."""
    try:
        made = _made(record)
        if not callable(getattr(made, "outcome", None)):
            raise ValueError("it is no action")
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"The ledger tells of an action that is not known here ({error}).") from error
    return cast(Action, made)


def _plain(value: object) -> object:
    """Raises ValueError for what is no plain value, nor made of such by a class of this room."""
    if value is None or isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(inner) for inner in value]
    if not type(value).__module__.startswith(ROOM):
        raise ValueError(f"{type(value).__name__} is no plain value")
    made_of = {"module": type(value).__module__.removeprefix(ROOM), "type": type(value).__name__}
    if isinstance(value, Enum):
        return made_of | {"value": value.value}
    if not is_dataclass(value):
        raise ValueError(f"{type(value).__name__} is no plain value")
    asked = [field for field in fields(value) if field.init]
    given = {field.name: getattr(value, field.name) for field in asked}
    usual = {field.name: field.default for field in asked if field.default is not MISSING}
    return made_of | {"with": {k: _plain(v) for k, v in given.items() if k not in usual or v != usual[k]}}


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(inner) for inner in value)
    if not isinstance(value, Mapping):
        return value
    if not value["module"].isidentifier():
        raise ValueError(f"no module {value['module']!r}")
    kind = getattr(import_module(ROOM + value["module"]), value["type"])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value["value"])
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"no class {value['type']!r}")
    return kind(**{name: _made(inner) for name, inner in value["with"].items()})
