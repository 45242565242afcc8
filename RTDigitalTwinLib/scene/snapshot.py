"""Pictures of a prediction: doses, spread and differences on three slices, isodoses, and the structures in space."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from RTDigitalTwinLib.errors import SceneError
from RTDigitalTwinLib.patient.colours import Colour, structure_colour
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.scene.body import body_surface
from RTDigitalTwinLib.scene.isodose_nodes import SOLID_PERCENT
from RTDigitalTwinLib.scene.nodes import PredictionNodes
from RTDigitalTwinLib.scene.patient_nodes import main_target
from RTDigitalTwinLib.scene.rendering import rendering_problem
from RTDigitalTwinLib.scene.structure_nodes import cut_by, haloed, targets_filled
from RTDigitalTwinLib.scene.views import PANEL_PIXELS, SIZE, SliceView, SolidView
from RTDigitalTwinLib.words import counted

__all__ = ["rendering_problem", "save_pictures"]

ORIENTATIONS = ("Axial", "Coronal", "Sagittal")
NOTICE = "Research use only"
_OPACITY = 0.5
_GREY = (0.72, 0.72, 0.75)
_BODY_COLOUR, _BODY_OPACITY = (0.85, 0.80, 0.75), 0.10


@dataclass(frozen=True, eq=False)
class _Overlay:
    """What lies above the CT: a volume, or the isodose lines of the mean dose where there is none."""

    name: str
    title: str
    caption: str
    volume: Any | None


def save_pictures(nodes: PredictionNodes, folder: Path, progress: Progress = silent) -> dict[str, Path]:
    """Write ``axial_dose.png`` and so on, and views in space; returns them by caption, in rows of one overlay.

    Slices go through the centroid of the target with the highest dose level. The scene is left as it was. Raises
    SceneError where nothing can be drawn (see ``rendering_problem``), OutputError where the folder cannot be written.
    """
    problem = rendering_problem()
    if problem is not None:
        raise SceneError("No pictures can be drawn.", remedy=problem)
    application_logic = slicer.app.applicationLogic()
    overlays = _overlays(nodes)
    points = _shown_ras(nodes, with_mask=True)
    slab_mm = max(nodes.patient.patient.ct.grid.spacing_mm)
    solids = _solids(nodes)
    count = len(ORIENTATIONS) * len(overlays) + len(solids)
    drawn: dict[str, Path] = {}
    with ExitStack() as shown:  # one window for all slices: each would compile its drawing programs anew
        shown.enter_context(haloed(nodes.patient.segmentation))
        shown.enter_context(_isodoses_shown(nodes))
        view = SliceView(nodes.mean.GetScene(), application_logic)
        shown.callback(view.close)
        for orientation in ORIENTATIONS:
            view.frame(orientation, points, _through_ras(nodes), slab_mm)
            named = _named(nodes, cut_by(nodes.patient.segmentation, _through_ras(nodes), view.normal_ras))
            for overlay in overlays:
                path = Path(folder) / f"{orientation.lower()}_{overlay.name}.png"
                progress(len(drawn) / count, f"Drawing {path.name}")
                _save_slice(view, nodes, orientation, overlay, named, path)
                drawn[f"{orientation}: {overlay.caption}"] = path
    with _solid_view(nodes, application_logic) as solid:
        for name, (title, caption, isodose) in solids.items():
            path = Path(folder) / f"{name}.png"
            progress(len(drawn) / count, f"Drawing {path.name}")
            _save_solid(solid, nodes, path, title, isodose)
            drawn[caption] = path
    progress(1.0, "Pictures drawn")
    rows = [f"{orientation}: {overlay.caption}" for overlay in overlays for orientation in ORIENTATIONS]
    return {caption: drawn[caption] for caption in [*rows, *(caption for _, caption, _ in solids.values())]}


def _overlays(nodes: PredictionNodes) -> list[_Overlay]:
    count, words = nodes.prediction.count, nodes.findings.words
    mean = f"Predicted dose, mean of {counted(count, 'sample')}" if count else "Predicted dose"
    overlays = []
    if nodes.before is not None:
        mean = f"{mean}, {words.now}"
        overlays.append(_Overlay("before", f"Predicted dose {words.before}", f"dose {words.before}", nodes.before))
    now = "predicted dose" if nodes.before is None else f"dose {words.now}"
    overlays.append(_Overlay("dose", mean, now, nodes.mean))
    if nodes.change is not None:
        overlays.append(_Overlay("change", f"{words.change}: difference in dose", words.change.lower(), nodes.change))
    if nodes.isodoses.models:
        title = f"{mean}: isodose lines in % of {nodes.highest_gy:g} Gy, targets filled"
        overlays.append(_Overlay("isodose", title, f"isodose lines of the {now}", None))
    if nodes.std is not None:
        title = f"Sampled spread of {counted(count, 'sample')} (standard deviation, not calibrated)"
        overlays.append(_Overlay("spread", title, "sampled spread", nodes.std))
    if nodes.width is not None:
        title = "Calibrated 95 % band, half its width"
        overlays.append(_Overlay("width", title, "half width of the calibrated band", nodes.width))
    if nodes.difference is not None:
        title = "Predicted minus reference dose"
        overlays.append(_Overlay("difference", title, "predicted minus reference dose", nodes.difference))
    return overlays


def _solids(nodes: PredictionNodes) -> dict[str, tuple[str, str, bool]]:
    """Title, caption, and whether the isodose is shown, by file name."""
    seen = "seen from the front left"
    solids = {"view3d": (f"Structures and smoothed dose mask, {seen}", "Structures in space", False)}
    if any(level.percent == SOLID_PERCENT for level in nodes.isodoses.levels):
        words = f"{SOLID_PERCENT:g} % isodose"
        target = main_target(nodes.patient.patient)
        title = f"{words}, {seen}" if target is None else f"{target.name} and the {words}, {seen}"
        solids["view3d_isodose"] = (title, f"The {words} in space", True)
    return solids


def _save_slice(
    view: SliceView,
    nodes: PredictionNodes,
    orientation: str,
    overlay: _Overlay,
    named: Sequence[tuple[str, Colour]],
    path: Path,
) -> None:
    with ExitStack() as shown:
        view.show(nodes.patient.ct, overlay.volume, _OPACITY)
        if overlay.volume is None:
            shown.enter_context(_isodoses_shown(nodes, in_slices=True))
            shown.enter_context(targets_filled(nodes.patient.segmentation, list(nodes.patient.patient.targets)))
            key = [(f"{level.percent:g} %", f"{level.dose_gy:.1f} Gy", level.colour) for level in nodes.isodoses.levels]
            view.list_key("Isodoses", key)
        _annotate_slice(view, nodes, orientation, overlay.title, named)
        view.save(path)


@contextmanager
def _isodoses_shown(nodes: PredictionNodes, *, in_slices: bool = False, in_space: bool = False) -> Iterator[None]:
    """The isodose lines, the surface in space, or neither, for a while."""
    displays = [model.GetDisplayNode() for model in nodes.isodoses.models]
    before = [(display.GetVisibility2D(), display.GetVisibility3D()) for display in displays]
    for level, display in zip(nodes.isodoses.levels, displays, strict=True):
        display.SetVisibility2D(in_slices)
        display.SetVisibility3D(in_space and level.percent == SOLID_PERCENT)
    try:
        yield
    finally:
        for display, (lines, surface) in zip(displays, before, strict=True):
            display.SetVisibility2D(lines)
            display.SetVisibility3D(surface)


def _annotate_slice(
    view: SliceView, nodes: PredictionNodes, orientation: str, title: str, named: Sequence[tuple[str, Colour]]
) -> None:
    view.letters()
    position = dict(zip(("Sagittal", "Coronal", "Axial"), _through_ras(nodes), strict=True))[orientation]
    letter = {"Sagittal": "RL", "Coronal": "AP", "Axial": "SI"}[orientation][int(position < 0)]
    view.text(title, PANEL_PIXELS + 10, SIZE[1] - 22, 17)
    view.text(f"{orientation}, {letter} {abs(position):.0f} mm", SIZE[0] - 14, SIZE[1] - 22, 16, _GREY, "right")
    view.text(NOTICE, 16, 22, 13, _GREY)
    view.list_names(named)


def _named(nodes: PredictionNodes, shown: Container[str] | None = None) -> list[tuple[str, Colour]]:
    """All structures, or those ``shown``: targets from the highest level down, then the others."""
    patient = nodes.patient.patient
    ordered = [*sorted(patient.targets, reverse=True), *sorted(set(patient.structures) - set(patient.targets))]
    return [(name, structure_colour(name)) for name in ordered if shown is None or name in shown]


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


@contextmanager
def _solid_view(nodes: PredictionNodes, application_logic: Any) -> Iterator[SolidView]:
    """A view of all that is shown in space, the smoothed dose mask as a faint body around it."""
    segmentation = nodes.patient.segmentation
    segmentation.CreateClosedSurfaceRepresentation()
    view = SolidView(nodes.mean.GetScene(), application_logic)
    try:
        view.add_surface(body_surface(nodes.patient.patient.dose_mask), _BODY_COLOUR, _BODY_OPACITY)
        view.look(_shown_ras(nodes, with_mask=not nodes.patient.patient.structures))
        yield view
    finally:
        view.close()


def _save_solid(view: SolidView, nodes: PredictionNodes, path: Path, title: str, isodose: bool) -> None:
    target = main_target(nodes.patient.patient)
    named: Sequence[tuple[str, Colour]] = _named(nodes)
    with ExitStack() as shown:
        shown.enter_context(_isodoses_shown(nodes, in_space=isodose))
        if isodose:
            kept = [] if target is None else [target.name]
            named = [(name, colour) for name, colour in named if name in kept]
            level = next(level for level in nodes.isodoses.levels if level.percent == SOLID_PERCENT)
            named = [*named, (f"{level.percent:g} %: {level.dose_gy:.1f} Gy", level.colour)]
            shown.enter_context(_only_in_space(nodes.patient.segmentation, kept))
        view.clear_texts()
        view.text(title, 16, SIZE[1] - 22, 17)
        view.text(NOTICE, 16, 22, 13, _GREY)
        view.list_names(named)
        view.save(path)


@contextmanager
def _only_in_space(segmentation: Any, names: Sequence[str]) -> Iterator[None]:
    """Only these segments in 3D views, for a while."""
    display = segmentation.GetDisplayNode()
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    before = {segment: display.GetSegmentVisibility3D(segment) for segment in ids}
    for segment in ids:
        display.SetSegmentVisibility3D(segment, before[segment] and segment in names)
    try:
        yield
    finally:
        for segment, visible in before.items():
            display.SetSegmentVisibility3D(segment, visible)
