"""Isodose levels: which doses lines and surfaces are drawn at, and in which colours."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.colours import Colour, colour_of
from RTDigitalTwinLib.resources import resource_path


@dataclass(frozen=True)
class IsodoseLevel:
    """A dose in percent of the highest prescription, and in Gy, with its colour (red, green, blue in 0..1)."""

    percent: float
    dose_gy: float
    colour: Colour

    @property
    def words(self) -> str:
        return f"{self.percent:g} % ({self.dose_gy:.1f} Gy)"


def isodose_levels(prescribed_gy: float) -> tuple[IsodoseLevel, ...]:
    """The levels of ``isodose_levels.toml`` from the highest down, of a prescribed dose in Gy.

    Raises RTDigitalTwinError where the file cannot be read or a level is no positive number.
    """
    path = resource_path("Protocols", "isodose_levels.toml")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["levels"]
        levels = [(float(entry["percent"]), colour_of(entry["colour"])) for entry in entries]
        if not levels or not all(0 < percent < 1000 for percent, _ in levels):
            raise ValueError("a level must be above 0 %")
        if len({percent for percent, _ in levels}) < len(levels):
            raise ValueError("a level stands there twice")
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise RTDigitalTwinError(
            f"The isodose levels cannot be read ({error}).",
            where=path.name,
            remedy="Each has percent and colour, [red, green, blue] in 0..255.",
        ) from error
    return tuple(IsodoseLevel(p, p / 100 * prescribed_gy, c) for p, c in sorted(levels, reverse=True))
