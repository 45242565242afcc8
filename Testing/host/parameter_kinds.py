"""How values of each type are written into a parameter node and read back, type-checked on the way in.

Numbers, truth values, texts, paths, choices of an enumeration and ranges are texts of the node; nodes are node
references; lists, tuples, dictionaries and packs are many of these. The texts' names differ from desktop Slicer's for
containers, so a scene written here is not promised to give back lists there.
"""

from __future__ import annotations

import enum
import json
import pathlib
import types
import typing
from typing import Annotated, Any

import slicer

from Testing.host.validators import Default, FloatRange, Validator


class Kind:
    """A type of value with what validates it."""

    def __init__(self, annotated: Any) -> None:
        self.annotated = annotated
        self.type, *self.annotations = typing.get_args(Annotated[annotated, None])[:-1]
        self.validators = [note for note in self.annotations if isinstance(note, Validator)]
        self.origin, self.inner = typing.get_origin(self.type), typing.get_args(self.type)
        self.is_node = isinstance(self.type, type) and issubclass(self.type, slicer.vtkMRMLNode)
        self.is_union = self.origin in (typing.Union, types.UnionType)
        self.node_types = [t for t in self.inner if isinstance(t, type) and issubclass(t, slicer.vtkMRMLNode)]
        self.is_nodes = self.is_node or (self.is_union and bool(self.node_types))
        if not self._known():
            raise TypeError(f"A parameter node cannot hold {annotated}")

    def _known(self) -> bool:
        if self.is_nodes or self.is_pack:
            return True
        if self.origin in (list, tuple, dict) or self.is_union:
            return all(t is type(None) or Kind(t)._plain() for t in self.inner)
        return self._plain()

    def _plain(self) -> bool:
        if self.origin in (list, tuple, dict):
            return self._known()
        simple = (bool, int, float, str, FloatRange)
        if not isinstance(self.type, type):
            return False
        return self.type in simple or issubclass(self.type, (enum.Enum, pathlib.PurePath)) or self.is_pack

    @property
    def is_pack(self) -> bool:
        return hasattr(self.type, "_pack_kinds")

    def default(self) -> Any:
        for note in self.annotations:
            if isinstance(note, Default):
                return note.value
        if self.is_nodes or self.is_union:
            return None
        if isinstance(self.type, type) and issubclass(self.type, enum.Enum):
            return next(iter(self.type))
        if self.type is FloatRange:
            return FloatRange(0.0, 0.0)
        if self.origin is tuple:
            return tuple(Kind(t).default() for t in self.inner)
        return (self.origin or self.type)()

    def check(self, value: Any) -> None:
        """Refuse a value of another type with a TypeError, one out of bounds with a ValueError."""
        if self.is_nodes:
            allowed = tuple(self.node_types) if self.is_union else (self.type,)
            if value is not None and not isinstance(value, allowed):
                raise TypeError(f"{value!r} is not of {self.type}")
        elif self.is_union and value is None and type(None) in self.inner:
            return
        elif self.is_union:
            if not any(t is not type(None) and Kind(t).accepts(value) for t in self.inner):
                raise TypeError(f"{value!r} is not of {self.type}")
        elif value is None:
            raise ValueError("None is not a value of this parameter")
        else:
            self._check_type(value)
        for validator in self.validators:
            validator.validate(value)

    def accepts(self, value: Any) -> bool:
        try:
            self.check(value)
        except (TypeError, ValueError):
            return False
        return True

    def _check_type(self, value: Any) -> None:
        expected = self.origin or self.type
        if expected is float:
            expected = (int, float)
        if not isinstance(value, expected):
            raise TypeError(f"{value!r} is a {type(value).__name__} and not of {self.type}")
        if self.origin is list:
            for item in value:
                Kind(self.inner[0]).check(item)
        elif self.origin is dict:
            for key, item in value.items():
                Kind(self.inner[0]).check(key)
                Kind(self.inner[1]).check(item)
        elif self.origin is tuple:
            if len(value) != len(self.inner):
                raise ValueError(f"{value!r} has not {len(self.inner)} values")
            for kind, item in zip(self.inner, value, strict=True):
                Kind(kind).check(item)

    def write(self, node: Any, name: str, value: Any) -> None:
        self.check(value)
        if self.is_nodes:
            with slicer.util.NodeModify(node):
                node.SetParameter(name, "")
                node.SetNodeReferenceID(name, value.GetID() if value is not None else None)
        elif self.is_pack:
            with slicer.util.NodeModify(node):
                for part, kind in self.type._pack_kinds.items():
                    kind.write(node, f"{name}.{part}", getattr(value, part))
        else:
            node.SetParameter(name, self.text(value))

    def read(self, node: Any, name: str) -> Any:
        if self.is_nodes:
            return node.GetNodeReference(name)
        if self.is_pack:
            return self.type(
                **{part: kind.read(node, f"{name}.{part}") for part, kind in self.type._pack_kinds.items()}
            )
        return self.value(node.GetParameter(name))

    def is_in(self, node: Any, name: str) -> bool:
        if self.is_pack:
            return all(kind.is_in(node, f"{name}.{part}") for part, kind in self.type._pack_kinds.items())
        return bool(node.HasParameter(name))

    def text(self, value: Any) -> str:
        """A value that is no node as text."""
        if isinstance(value, enum.Enum):
            return value.name
        if self.origin in (list, tuple, dict) or self.is_union or isinstance(value, FloatRange):
            return json.dumps(value, default=_as_json)
        return str(value)

    def value(self, text: str) -> Any:
        """A value that is no node from its text."""
        if self.type is bool:
            return text == "True"
        if isinstance(self.type, type) and issubclass(self.type, enum.Enum):
            return self.type[text]
        if self.type is FloatRange:
            return FloatRange(*json.loads(text))
        if self.is_union:
            found = json.loads(text)
            return None if found is None else _revive(next(t for t in self.inner if t is not type(None)), found)
        if self.origin in (list, tuple, dict):
            return _revive(self.type, json.loads(text))
        return self.type(text)


def _as_json(value: Any) -> Any:
    if isinstance(value, FloatRange):
        return [value.minimum, value.maximum]
    if isinstance(value, enum.Enum):
        return value.name
    if hasattr(value, "_pack_kinds"):
        return {part: getattr(value, part) for part in value._pack_kinds}
    return str(value)


def _revive(annotated: Any, found: Any) -> Any:
    kind = Kind(annotated)
    if kind.origin is list:
        return [_revive(kind.inner[0], item) for item in found]
    if kind.origin is tuple:
        return tuple(_revive(t, item) for t, item in zip(kind.inner, found, strict=True))
    if kind.origin is dict:
        return {_revive(kind.inner[0], kind_key): _revive(kind.inner[1], item) for kind_key, item in found.items()}
    if kind.is_pack:
        return kind.type(**{part: _revive(k.annotated, found[part]) for part, k in kind.type._pack_kinds.items()})
    if kind.type in (bool, int, float, str) and not isinstance(found, str):
        return kind.type(found)
    return kind.value(found if isinstance(found, str) else json.dumps(found))
