"""Pictures of a prediction: dose, spread and difference on three slices, and the structures in space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.patient.colours import Colour, structure_colour
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene.nodes import PredictionNodes, main_target
from RTDigitalTwinLib.scene.rendering import rendering_problem
from RTDigitalTwinLib.scene.views import PANEL_PIXELS, SIZE, SliceView, SolidView

__all__ = ["rendering_problem", "save_pictures"]

ORIENTATIONS = ("Axial", "Coronal", "Sagittal")
NOTICE = "Research use only"
_OPACITY = 0.5
_GREY = (0.72, 0.72, 0.75)
_BODY_COLOUR, _BODY_OPACITY = (0.85, 0.80, 0.75), 0.10


def save_pictures(nodes: PredictionNodes, folder: Path, progress: Progress = silent) -> list[Path]:
    """Write ``axial_dose.png`` and so on, and ``view3d.png``; returns their paths.

    Slices go through the centroid of the target with the highest dose level. The scene is left as it was. Raises
    SceneError where nothing can be drawn (see ``rendering_problem``), OutputError where the folder cannot be written.
    """
    problem = rendering_problem()
    if problem is not None:
        raise SceneError("No pictures can be drawn.", remedy=problem)
    scene = nodes.mean.GetScene()
    application_logic = slicer.app.applicationLogic()
    overlays = _overlays(nodes)
    points = _shown_ras(nodes, with_mask=True)
    slab_mm = max(nodes.patient.patient.ct.grid.spacing_mm)
    paths: list[Path] = []
    count = len(ORIENTATIONS) * len(overlays) + 1
    for orientation in ORIENTATIONS:
        view = SliceView(scene, application_logic, orientation)
        try:
            view.frame(points, _through_ras(nodes), slab_mm)
            for name, (volume, title) in overlays.items():
                path = Path(folder) / f"{orientation.lower()}_{name}.png"
                progress(len(paths) / count, f"Drawing {path.name}")
                view.show(nodes.patient.ct, volume, _OPACITY)
                _annotate_slice(view, nodes, orientation, title)
                view.save(path)
                paths.append(path)
        finally:
            view.close()
    path = Path(folder) / "view3d.png"
    progress(len(paths) / count, f"Drawing {path.name}")
    _save_solid(nodes, application_logic, path)
    progress(1.0, "Pictures drawn")
    return [*paths, path]


def _overlays(nodes: PredictionNodes) -> dict[str, tuple[Any, str]]:
    count = nodes.prediction.count
    overlays = {"dose": (nodes.mean, f"Predicted dose, mean of {count} samples" if count else "Predicted dose")}
    if nodes.std is not None:
        overlays["spread"] = (nodes.std, f"Sampled spread of {count} samples (standard deviation, not calibrated)")
    if nodes.width is not None:
        overlays["width"] = (nodes.width, "Calibrated 95 % band, half its width")
    if nodes.difference is not None:
        overlays["difference"] = (nodes.difference, "Predicted minus reference dose")
    return overlays


def _annotate_slice(view: SliceView, nodes: PredictionNodes, orientation: str, title: str) -> None:
    view.letters()
    position = dict(zip(("Sagittal", "Coronal", "Axial"), _through_ras(nodes), strict=True))[orientation]
    letter = {"Sagittal": "RL", "Coronal": "AP", "Axial": "SI"}[orientation][int(position < 0)]
    view.text(title, PANEL_PIXELS + 10, SIZE[1] - 22, 17)
    view.text(f"{orientation}, {letter} {abs(position):.0f} mm", SIZE[0] - 14, SIZE[1] - 22, 16, _GREY, "right")
    view.text(NOTICE, 16, 22, 13, _GREY)
    view.list_names(_named(nodes))


def _named(nodes: PredictionNodes) -> list[tuple[str, Colour]]:
    patient = nodes.patient.patient
    ordered = [*sorted(patient.targets, reverse=True), *sorted(set(patient.structures) - set(patient.targets))]
    return [(name, structure_colour(name)) for name in ordered]


def _through_ras(nodes: PredictionNodes) -> tuple[float, float, float]:
    patient = nodes.patient.patient
    x, y, z = (main_target(patient) or patient.dose_mask).centroid_mm
    return -x, -y, z


def _shown_ras(nodes: PredictionNodes, *, with_mask: bool) -> np.ndarray:
    """Every voxel of the structures, and of the dose mask where asked for: (n, 3)."""
    patient = nodes.patient.patient
    shown = np.zeros(patient.ct.grid.shape, bool)
    for structure in (*patient.structures.values(), *([patient.dose_mask] if with_mask else [])):
        shown[structure.box] |= structure.box_occupancy > 0
    return patient.ct.grid.to_lps_mm(np.argwhere(shown)) * (-1, -1, 1)


def _save_solid(nodes: PredictionNodes, application_logic: Any, path: Path) -> None:
    segmentation = nodes.patient.segmentation
    segmentation.CreateClosedSurfaceRepresentation()
    view = SolidView(nodes.mean.GetScene(), application_logic)
    try:
        body = vtk.vtkPolyData()
        if segmentation.GetClosedSurfaceRepresentation(nodes.patient.patient.dose_mask.name, body):
            view.add_surface(body, _BODY_COLOUR, _BODY_OPACITY)
        view.window.Render()
        view.look(_shown_ras(nodes, with_mask=not nodes.patient.patient.structures))
        view.text("Structures and dose mask, seen from the front left", 16, SIZE[1] - 22, 17)
        view.text(NOTICE, 16, 22, 13, _GREY)
        view.list_names(_named(nodes))
        view.save(path)
    finally:
        view.close()
