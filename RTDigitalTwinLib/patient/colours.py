"""Colour of each structure, the same in charts, slices and 3D views."""

from __future__ import annotations

import tomllib
from functools import cache
from zlib import crc32

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.resources import resource_path

Colour = tuple[float, float, float]


def structure_colour(name: str) -> Colour:
    """Red, green and blue in 0..1 by TG-263 name; another name always gets the same colour of a palette."""
    known, palette = _colours()
    return known.get(name) or palette[crc32(name.encode()) % len(palette)]


@cache
def _colours() -> tuple[dict[str, Colour], tuple[Colour, ...]]:
    path = resource_path("Protocols", "structure_colours.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        known = {name: colour_of(rgb) for name, rgb in table["colours"].items()}
        palette = tuple(colour_of(rgb) for rgb in table["palette"]["colours"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise RTDigitalTwinError(
            f"The structure colours cannot be read ({error}).",
            where=path.name,
            remedy="Each colour is [red, green, blue] in 0..255.",
        ) from error
    if not palette:
        raise RTDigitalTwinError("The palette of structure colours is empty.", where=path.name)
    return known, palette


def colour_of(rgb: list[int]) -> Colour:
    """Red, green and blue in 0..1 of numbers in 0..255. Raises ValueError for others."""
    red, green, blue = rgb
    if not all(0 <= part <= 255 for part in rgb):
        raise ValueError(f"{rgb} is no colour")
    return red / 255, green / 255, blue / 255
