"""Volumes as MRML nodes, with the display each quantity deserves."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import slicer.util

from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.scene import colours, slicerrt_names as names
from RTDigitalTwinLib.scene.geometry import place

CT_WINDOW_HU, CT_LEVEL_HU = 400.0, 40.0  # soft tissue of head and neck
LOWEST_SHOWN_RATIO = 0.1  # of the highest prescription: less dose is left unpainted
HIGHEST_SHOWN_RATIO = 1.1
SMALLEST_SHOWN_DIFFERENCE_GY = 1.0
_LABEL_COUNTS = (8, 7, 6, 5)


def add_volume(scene: Any, volume: Volume, name: str) -> Any:
    """A scalar volume node that holds the values as they are (integers stay integers; float16 becomes float32)."""
    values = np.asarray(volume.values)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    elif values.dtype in (np.bool_, np.int64, np.uint64):
        values = values.astype(np.int32)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", scene.GenerateUniqueName(name))
    place(node, volume.grid)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(values))
    node.CreateDefaultDisplayNodes()
    units = _UNITS.get(volume.quantity)
    if units is not None:
        code = slicer.vtkCodedEntry()
        code.SetValueSchemeMeaning(*units)
        node.SetVoxelValueUnits(code)
    return node


_UNITS = {
    Quantity.HU: ("[hnsf'U]", "UCUM", "Hounsfield unit"),
    Quantity.DOSE_GY: ("Gy", "UCUM", "Gray"),
    Quantity.DOSE_STD_GY: ("Gy", "UCUM", "Gray"),
    Quantity.DOSE_WIDTH_GY: ("Gy", "UCUM", "Gray"),
    Quantity.DOSE_DIFFERENCE_GY: ("Gy", "UCUM", "Gray"),
}


def add_ct(scene: Any, ct: Volume, name: str = "CT") -> Any:
    """The CT in grey, windowed for soft tissue."""
    node = add_volume(scene, ct, name)
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    display.AutoWindowLevelOff()
    display.SetWindowLevel(CT_WINDOW_HU, CT_LEVEL_HU)
    return node


def add_dose(scene: Any, dose: Volume, name: str, highest_gy: float) -> Any:
    """A dose in Gy as wash from 10 to 110 % of the highest prescription ``highest_gy``; SlicerRT knows it as dose."""
    node = add_volume(scene, dose, name)
    node.SetAttribute(names.DOSE_VOLUME, names.TRUE)
    # Up to a multiple of 7 Gy: eight round labels, and 77 Gy for the usual 70 Gy.
    limits = (0.0, 7 * float(np.ceil(round(HIGHEST_SHOWN_RATIO * highest_gy / 7, 6))))
    _paint(node, colours.DOSE, limits, (LOWEST_SHOWN_RATIO * highest_gy, np.inf), "Dose [Gy]")
    return node


def add_spread(scene: Any, spread: Volume, name: str, shown: np.ndarray, legend: str) -> Any:
    """An uncertainty in Gy, painted where ``shown`` (mask over the grid) and up to its 99.5th percentile there."""
    node = add_volume(scene, spread, name)
    highest = _percentile(spread.values, shown)
    _paint(node, colours.SPREAD, (0.0, highest), (0.1 * highest, np.inf), legend)
    return node


def add_difference(scene: Any, difference: Volume, name: str, shown: np.ndarray) -> Any:
    """A signed difference in Gy, white at 0, to the same height on both sides; unpainted where it is not known."""
    node = add_volume(scene, difference, name)
    highest = _percentile(np.abs(difference.values), shown)
    threshold = (-np.inf, np.inf) if np.isnan(difference.values).any() else None  # no NaN lies between them
    _paint(node, colours.DIFFERENCE, (-highest, highest), threshold, "Difference [Gy]")
    return node


def add_absolute_difference(scene: Any, difference: Volume, name: str, shown: np.ndarray) -> Any:
    """A difference without its sign in Gy, unpainted below 1 Gy."""
    node = add_volume(scene, difference, name)
    highest = _percentile(difference.values, shown)
    threshold = (min(SMALLEST_SHOWN_DIFFERENCE_GY, 0.2 * highest), np.inf)
    _paint(node, colours.SPREAD, (0.0, highest), threshold, "Absolute difference [Gy]")
    return node


def _percentile(values: np.ndarray, shown: np.ndarray) -> float:
    chosen = values[shown] if shown.any() else values
    known = chosen[np.isfinite(chosen)]
    return max(float(np.ceil(np.percentile(known, 99.5))), 1.0) if known.size else 1.0


def _paint(
    node: Any, table: str, limits: tuple[float, float], threshold: tuple[float, float] | None, title: str
) -> None:
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(colours.colour_table(node.GetScene(), table).GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(*limits)
    display.InterpolateOn()
    if threshold is not None:
        most = float(np.finfo(np.float32).max)
        display.AutoThresholdOff()
        display.SetThreshold(*(float(np.clip(limit, -most, most)) for limit in threshold))
        display.ApplyThresholdOn()
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(title)
    count, decimals = _labels(limits[1] - limits[0])
    legend.SetLabelFormat(f"%.{decimals}f")
    legend.SetNumberOfLabels(count)
    legend.SetMaxNumberOfColors(256)
    legend.SetVisibility(True)


def _labels(span_gy: float) -> tuple[int, int]:
    """How many labels a legend gets, and with how many decimals, so that they are round numbers."""
    for step, decimals in ((1.0, 0), (0.5, 1)):
        for count in _LABEL_COUNTS:
            if (span_gy / (count - 1)) % step == 0:
                return count, decimals
    return _LABEL_COUNTS[-1], 1
