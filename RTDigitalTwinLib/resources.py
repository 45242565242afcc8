"""Where the library's own data files lie: network weights, clinical goals, biology parameters, structure names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from RTDigitalTwinLib.errors import RTDigitalTwinError


def resource_path(*parts: str) -> Path:
    """Path of a file or folder of Resources/, as in ``resource_path("Protocols", "goals.toml")``.

    Raises RTDigitalTwinError that lists the folders searched where it is in none of them.
    """
    searched = []
    for folder in _resource_folders():
        path = folder.joinpath(*parts)
        if path.exists():
            return path
        searched.append(str(folder))
    raise RTDigitalTwinError(
        f"This resource was not found; searched: {', '.join(searched)}.",
        where="/".join(parts),
        remedy="Install RTDigitalTwin again.",
    )


def _resource_folders() -> Iterator[Path]:
    package = Path(__file__).resolve().parent
    yield package / "Resources"  # wheel
    yield package.parent / "Resources" / "RTDigitalTwin"  # installed extension
    # In an extension this folder belongs to every module, so it counts in a checkout only.
    if (package.parent / "pyproject.toml").is_file():
        yield package.parent / "Resources"
