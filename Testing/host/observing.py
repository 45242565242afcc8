"""Observers of MRML objects that leave with their widget."""

from __future__ import annotations

import weakref
from typing import Any

_ALL: weakref.WeakSet[Any] = weakref.WeakSet()


class Observing:
    """Mixed into a widget: calls a method of it when an object tells an event, as long as the widget lives."""

    def observe(self: Any, of: Any, event: int, method: Any) -> None:
        self_reference = weakref.ref(self)

        def call(caller: Any, name: str) -> None:
            widget = self_reference()
            if widget is not None:
                method(widget)

        self.__dict__.setdefault("_observed", []).append((of, event, of.AddObserver(event, call)))
        _ALL.add(self)

    def observes(self: Any, of: Any, event: int) -> bool:
        return any(seen is of and told == event for seen, told, _ in self.__dict__.get("_observed", []))

    def keep_observing(self: Any, objects: list[Any]) -> None:
        """Let go of all but these, so that a node that left the scene is not held."""
        observed = self.__dict__.get("_observed", [])
        gone = [entry for entry in observed if not any(entry[0] is one for one in objects)]
        for of, _, tag in gone:
            of.RemoveObserver(tag)
        self.__dict__["_observed"] = [entry for entry in observed if entry not in gone]

    def stop_observing(self: Any) -> None:
        for of, _, tag in self.__dict__.pop("_observed", []):
            of.RemoveObserver(tag)


def stop_all() -> None:
    """Before the scene goes: no widget left over hears of it."""
    for widget in list(_ALL):
        widget.stop_observing()
    _ALL.clear()
