"""Colour tables of the overlays."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

# Anchors (position 0..1, red, green, blue), interpolated linearly.
# Dose: the order clinicians know (blue, green, yellow, red) with steady steps of lightness up to yellow, so that the
# wash shows no edge where the dose has none. Spread: lightness rises throughout. Difference: clear where there is none.
_DOSE = (
    (0.00, 40, 45, 140), (0.15, 45, 100, 220), (0.30, 30, 165, 215), (0.45, 50, 195, 130), (0.60, 150, 215, 60),
    (0.75, 245, 220, 50), (0.87, 250, 140, 35), (0.95, 225, 45, 30), (1.00, 160, 10, 50),
)  # fmt: skip
_SPREAD = (
    (0.00, 40, 15, 80), (0.25, 110, 30, 125), (0.50, 190, 55, 105), (0.75, 245, 125, 50), (1.00, 252, 240, 120),
)  # fmt: skip
_DIFFERENCE = (
    (0.00, 10, 40, 150), (0.25, 40, 120, 230), (0.45, 150, 200, 250), (0.50, 235, 235, 235), (0.55, 250, 190, 150),
    (0.75, 235, 85, 45), (1.00, 150, 5, 40),
)  # fmt: skip
_ANCHORS = {
    "RTDigitalTwin dose": _DOSE,
    "RTDigitalTwin spread": _SPREAD,
    "RTDigitalTwin difference": _DIFFERENCE,
}
DOSE, SPREAD, DIFFERENCE = _ANCHORS
_COLOURS = 256
_UNPAINTED = 0.08  # difference as share of the greatest shown


def colour_table(scene: Any, name: str) -> Any:
    """The colour table of this name (DOSE, SPREAD or DIFFERENCE), made when the scene has none."""
    node = scene.GetFirstNode(name, "vtkMRMLColorTableNode")
    if node is not None:
        return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetName(name)
    node.SetTypeToUser()
    node.SetAttribute("Category", "RT Digital Twin")
    node.SetNumberOfColors(_COLOURS)
    for index, colour in enumerate(table_colours(name)):
        node.SetColor(index, str(index), *colour.tolist())
    return scene.AddNode(node)


def table_colours(name: str) -> NDArray[np.float64]:
    """Red, green, blue and opacity in 0..1 of each entry of a table: (256, 4)."""
    anchors = np.array(_ANCHORS[name])
    positions = np.linspace(0, 1, _COLOURS)
    colours = np.stack([np.interp(positions, anchors[:, 0], anchors[:, part]) for part in (1, 2, 3)], axis=1) / 255
    opacity = np.ones(_COLOURS)
    if name == DIFFERENCE:  # no difference shows the CT
        opacity[np.abs(2 * positions - 1) < _UNPAINTED] = 0
    return np.column_stack([colours, opacity])
