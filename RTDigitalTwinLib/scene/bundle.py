"""The whole scene in one file, as 3D Slicer opens it (MRB)."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import slicer

from RTDigitalTwinLib.errors import OutputError, SceneError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.scene.dvh_curves import name_series


def save_mrb(scene: Any, path: str | PathLike[str]) -> Path:
    """Write the scene as an MRB file, whole or not at all.

    Raises OutputError where the name does not end in .mrb or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".mrb":
        raise OutputError("A scene bundle's name ends in .mrb.", where=path.name)
    with whole_file(path) as aside, tempfile.TemporaryDirectory(prefix="rt-digital-twin-") as folder:
        # The file's name becomes a folder inside the bundle, so it is written under its own name.
        bundle = Path(folder) / path.name
        messages = slicer.vtkMRMLMessageCollection()
        if not scene.WriteToMRB(str(bundle), None, messages) or not bundle.is_file():
            raise OutputError(f"The scene cannot be written. {_text(messages)}".strip(), where=path.name,
                              remedy="Check permissions and free space.")  # fmt: skip
        _move(bundle, aside)
    return path


def load_mrb(path: str | PathLike[str], scene: Any | None = None) -> Any:
    """Replace a scene's content (by default ``slicer.mrmlScene``) by a bundle's; returns the scene.

    Raises SceneError where the file is missing or no bundle.
    """
    path = Path(path)
    if not path.is_file():
        raise SceneError("The scene bundle is not there.", where=path.name)
    scene = slicer.mrmlScene if scene is None else scene
    messages = slicer.vtkMRMLMessageCollection()
    if not scene.ReadFromMRB(str(path), True, messages):
        raise SceneError(f"The scene bundle cannot be read. {_text(messages)}".strip(), where=path.name,
                         remedy="Copy it anew: it may be truncated.")  # fmt: skip
    count = scene.GetNumberOfNodesByClass("vtkMRMLPlotSeriesNode")
    name_series([scene.GetNthNodeByClass(k, "vtkMRMLPlotSeriesNode") for k in range(count)])
    return scene


def _move(source: Path, destination: Path) -> None:
    try:
        os.replace(source, destination)
    except OSError:  # another file system
        destination.write_bytes(source.read_bytes())


def _text(messages: Any) -> str:
    return " ".join(messages.GetAllMessagesAsString().split())[:200]
