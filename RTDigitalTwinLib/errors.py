"""The one family of errors a user is meant to read: what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath


class RTDigitalTwinError(Exception):
    """Something a user can act on.

    Parameters
    ----------
    what : the problem in one sentence.
    where : file (relative to the folder the user chose), structure or tag concerned.
    remedy : what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__((f"{where}: " if where else "") + what + (f" {remedy}" if remedy else ""))


class GeometryError(RTDigitalTwinError):
    """Grids, frames of reference or shapes that do not fit together."""


class PatientDataError(RTDigitalTwinError):
    """A patient's files are missing, damaged or contradict each other."""


class ModelError(RTDigitalTwinError):
    """Network weights are missing, altered or made for another configuration."""


class MemoryShortage(ModelError):
    """Predicting needs more memory than the device has."""


class TrainingError(RTDigitalTwinError):
    """Training data, checkpoint or settings do not allow training."""


class ProtocolError(RTDigitalTwinError):
    """A protocol file (clinical goals, biology) is damaged, in other units or asks for what cannot be."""


class OutputError(RTDigitalTwinError):
    """Results cannot be written where they were asked for."""


class LedgerError(RTDigitalTwinError):
    """A twin's ledger is broken, in use, or tells of another patient, belief or weights."""


class SceneError(RTDigitalTwinError):
    """The MRML scene lacks something, or a node does not hold what it should."""


class Cancelled(RTDigitalTwinError):
    """The user stopped the work; nothing was left behind but, where ``remedy`` says so, what can be gone on with."""

    def __init__(self, remedy: str = "") -> None:
        super().__init__("Cancelled.", remedy=remedy)


@contextmanager
def told_of(source: str) -> Iterator[None]:
    """Errors of one of several inputs say of which, as the user named it; its last part need not be said twice."""
    try:
        yield
    except Cancelled:
        raise
    except RTDigitalTwinError as error:
        first, *rest = error.where.split("/")
        inside = "/".join(rest) if first == PurePath(source).name else error.where
        where = "/".join(filter(None, (source, inside)))
        raise type(error)(error.what, where=where, remedy=error.remedy) from error
