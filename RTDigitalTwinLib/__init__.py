"""A digital twin for radiotherapy: what is believed of a patient's dose, how sure that is, and what to do about it.

For research use only: not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from RTDigitalTwinLib.patient.patient import Patient
    from RTDigitalTwinLib.twin import Twin

__version__ = "0.1.0"
__all__ = ["Patient", "Twin", "__version__"]

_HOMES = {"Patient": "RTDigitalTwinLib.patient.patient", "Twin": "RTDigitalTwinLib.twin"}


def __getattr__(name: str) -> object:
    # Imported on first use: SimpleITK and torch take seconds, and Slicer imports this package at start-up.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
