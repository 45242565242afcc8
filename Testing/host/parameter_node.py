"""Stand-in for ``slicer.parameterNodeWrapper``: typed parameters kept in the scene, bound to widgets.

Left out: caching, observed containers (assign a list anew to change it), custom serializers, guiCreation.
"""

from __future__ import annotations

import typing
from typing import Any

import vtk

from Testing.host import gui_connectors, validators
from Testing.host.parameter_kinds import Kind

PROPERTY = "SlicerParameterName"
_METHODS = (
    "default", "isCached", "dataType", "getValue", "setValue", "connectGui", "connectParametersToGui", "disconnectGui",
    "StartModify", "EndModify", "AddObserver", "RemoveObserver", "Modified", "allParameters",
)  # fmt: skip


def parameterPack(kind: Any = None) -> Any:
    """A class of values that are one parameter together."""

    def wrap(of: Any) -> Any:
        notes = typing.get_type_hints(of, include_extras=True)
        kinds = {name: Kind(note) for name, note in notes.items()}
        defaults = {name: getattr(of, name, kinds[name].default()) for name in kinds}
        for name, part in kinds.items():
            part.check(defaults[name])

        def start(self: Any, *arguments: Any, **named: Any) -> None:
            unknown = named.keys() - kinds.keys()
            if unknown:
                raise TypeError(f"unexpected {', '.join(sorted(unknown))}")
            for name, value in {**defaults, **dict(zip(kinds, arguments, strict=False)), **named}.items():
                setattr(self, name, value)

        def put(self: Any, name: str, value: Any) -> None:
            if name not in kinds:
                raise AttributeError(f"{of.__name__} has no {name}")
            kinds[name].check(value)
            object.__setattr__(self, name, value)

        of.__init__, of.__setattr__, of._pack_kinds = start, put, kinds
        of.__eq__ = lambda s, o: type(s) is type(o) and all(getattr(s, n) == getattr(o, n) for n in kinds)
        of.__hash__ = None
        of.__repr__ = lambda s: f"{of.__name__}({', '.join(f'{n}={getattr(s, n)!r}' for n in kinds)})"
        return of

    return wrap if kind is None else wrap(kind)


class _InPack:
    """A pack read from the node: setting a part of it writes the node."""

    def __init__(self, owner: Any, name: str, kind: Kind) -> None:
        self.__dict__.update(_owner=owner, _name=name, _kind=kind)

    def _pack(self) -> Any:
        return self._kind.read(self._owner.parameterNode, self._name)

    def __getattr__(self, part: str) -> Any:
        inner = self._kind.type._pack_kinds.get(part)
        if inner is not None and inner.is_pack:
            return _InPack(self._owner, f"{self._name}.{part}", inner)
        return getattr(self._pack(), part)

    def __setattr__(self, part: str, value: Any) -> None:
        pack = self._pack()
        setattr(pack, part, value)
        self._kind.write(self._owner.parameterNode, self._name, pack)

    def __eq__(self, other: object) -> bool:
        return bool(self._pack() == (other._pack() if isinstance(other, _InPack) else other))

    def __repr__(self) -> str:
        return f"Observed({self._pack()!r})"


class _Wrapper:
    """Methods that every wrapped class gets."""

    allParameters: dict[str, Kind]
    _defaults: dict[str, Any]

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._prefix, self._guis, self._next = prefix or "", {}, 0
        self._showing = False
        for name, kind in self.allParameters.items():
            if not kind.is_in(parameterNode, self._prefix + name):
                kind.write(parameterNode, self._prefix + name, self._defaults[name])

    def _kind(self, name: str) -> Kind:
        top, *inner = name.split(".")
        if top not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {top}")
        kind = self.allParameters[top]
        for part in inner:
            if not kind.is_pack or part not in kind.type._pack_kinds:
                raise ValueError(f"{top} has no member '{part}'")
            kind = kind.type._pack_kinds[part]
        return kind

    def getValue(self, name: str) -> Any:
        kind = self._kind(name)
        top = name.split(".")[0]
        if not self.allParameters[top].is_in(self.parameterNode, self._prefix + top):  # a cleared node
            self.setValue(top, self._defaults[top])
        if kind.is_pack:
            return _InPack(self, self._prefix + name, kind)
        return kind.read(self.parameterNode, self._prefix + name)

    def setValue(self, name: str, value: Any) -> None:
        value = value._pack() if isinstance(value, _InPack) else value
        self._kind(name).write(self.parameterNode, self._prefix + name, value)

    def default(self, name: str) -> Any:
        self._kind(name)
        return validators.Default(self._defaults[name])

    def isCached(self, name: str) -> bool:
        self._kind(name)
        return False

    def dataType(self, name: str) -> Any:
        return self._kind(name).annotated

    def connectGui(self, gui: Any) -> int:
        import qt

        widgets = gui.findChildren(qt.QWidget) if getattr(gui, "isWidgetType", None) else gui.__dict__.values()
        return self.connectParametersToGui({w.property(PROPERTY): w for w in widgets if w.property(PROPERTY)})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        made = {name: gui_connectors.connector(widget, self._kind(name)) for name, widget in mapping.items()}
        tag, self._next = self._next, self._next + 1
        for name, tie in made.items():
            tie.write(self.getValue(name))
            tie.on_changed(self._taking(name, tie))
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *unused: self._show())
        self._guis[tag] = (made, observer)
        return tag

    def _taking(self, name: str, tie: gui_connectors.Connector) -> Any:
        def take(*unused: Any) -> None:
            if not self._showing:
                self.setValue(name, tie.read())

        return take

    def _show(self) -> None:
        if self._showing:
            return
        self._showing = True
        try:
            for made, _ in self._guis.values():
                for name, tie in made.items():
                    tie.write(self.getValue(name))
        finally:
            self._showing = False

    def disconnectGui(self, tag: int) -> None:
        made, observer = self._guis.pop(tag, ({}, None))
        for tie in made.values():
            tie.stop()
        if observer is not None:
            self.RemoveObserver(observer)

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, was: Any) -> Any:
        return self.parameterNode.EndModify(was)

    def AddObserver(self, event: int, callback: Any, priority: float = 0.0) -> int:
        return int(self.parameterNode.AddObserver(event, callback, priority))

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def parameterNodeWrapper(kind: Any = None) -> Any:
    """A class of annotated types as a view on a parameter node."""

    def wrap(of: Any) -> Any:
        kinds = {name: Kind(note) for name, note in typing.get_type_hints(of, include_extras=True).items()}
        taken = sorted(set(kinds) & set(_METHODS))
        if taken:
            raise ValueError(f"Cannot use reserved name '{taken[0]}' in a parameterNodeWrapper")
        of._defaults = {name: getattr(of, name, part.default()) for name, part in kinds.items()}
        for name in kinds:
            setattr(of, name, property(_reader(name), _writer(name)))
        for name, method in vars(_Wrapper).items():
            if callable(method):
                setattr(of, name, method)
        of.allParameters, of._is_parameter_node_wrapper = kinds, True
        return of

    return wrap if kind is None else wrap(kind)


def _reader(name: str) -> Any:
    return lambda self: self.getValue(name)


def _writer(name: str) -> Any:
    return lambda self, value: self.setValue(name, value)


def isParameterNodeWrapper(of: Any) -> bool:
    return bool(getattr(of, "_is_parameter_node_wrapper", False))


def isParameterPack(of: Any) -> bool:
    return hasattr(of, "_pack_kinds")


def make_module() -> Any:
    """The module ``slicer.parameterNodeWrapper``."""
    from types import ModuleType

    module = ModuleType("slicer.parameterNodeWrapper", __doc__)
    offered = (parameterNodeWrapper, parameterPack, isParameterNodeWrapper, isParameterPack)
    for found in (*offered, *vars(validators).values()):
        if getattr(found, "__module__", "").startswith("Testing.host"):
            setattr(module, found.__name__, found)
    module.SlicerParameterNamePropertyName = PROPERTY  # type: ignore[attr-defined]
    return module
