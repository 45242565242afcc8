"""Volumes as MRML nodes, with the display each quantity deserves."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.scene import colours, slicerrt_names as names
from RTDigitalTwinLib.scene.geometry import place, set_voxels

CT_WINDOW_HU, CT_LEVEL_HU = 400.0, 40.0  # soft tissue of head and neck
LOWEST_SHOWN_RATIO = 0.1  # of the highest prescription: less dose is left unpainted
HIGHEST_SHOWN_RATIO = 1.1
SMALLEST_SHOWN_DIFFERENCE_GY = 1.0
_LABEL_STEPS_GY = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_SMALLEST_SPREAD_GY = 0.2


def add_volume(scene: Any, volume: Volume, name: str) -> Any:
    """A scalar volume node that holds the values as they are (integers stay integers; float16 becomes float32)."""
    values = np.asarray(volume.values)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    elif values.dtype in (np.bool_, np.int64, np.uint64):
        values = values.astype(np.int32)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", scene.GenerateUniqueName(name))
    place(node, volume.grid)
    set_voxels(node, values)
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
    Quantity.EQD2_GY: ("Gy", "UCUM", "Gray"),
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
    paint_dose(node, highest_gy)
    return node


def paint_dose(node: Any, highest_gy: float) -> None:
    """Dress a volume as ``add_dose`` does."""
    node.SetAttribute(names.DOSE_VOLUME, names.TRUE)
    limits = (0.0, HIGHEST_SHOWN_RATIO * highest_gy)  # a label at every tenth of the prescription
    _paint(node, colours.DOSE, limits, highest_gy / 10, (LOWEST_SHOWN_RATIO * highest_gy, np.inf), "Dose [Gy]")


def add_spread(scene: Any, spread: Volume, name: str, shown: np.ndarray, legend: str) -> Any:
    """An uncertainty in Gy, painted up to its 99.5th percentile in ``shown`` (mask over the grid) and a bit more."""
    node = add_volume(scene, spread, name)
    highest, step = _round_range(_percentile(spread.values, shown, _SMALLEST_SPREAD_GY), 4, 7)
    _paint(node, colours.SPREAD, (0.0, highest), step, (0.1 * highest, np.inf), legend)
    return node


def add_difference(scene: Any, difference: Volume, name: str, shown: np.ndarray) -> Any:
    """A signed difference in Gy, white at 0, to the same height on both sides; unpainted where it is not known."""
    node = add_volume(scene, difference, name)
    highest, step = _round_range(_percentile(np.abs(difference.values), shown, SMALLEST_SHOWN_DIFFERENCE_GY), 2, 5)
    threshold = (-np.inf, np.inf) if np.isnan(difference.values).any() else None  # no NaN lies between them
    _paint(node, colours.DIFFERENCE, (-highest, highest), step, threshold, "Difference [Gy]")
    return node


def add_absolute_difference(scene: Any, difference: Volume, name: str, shown: np.ndarray) -> Any:
    """A difference without its sign in Gy, unpainted below 1 Gy."""
    node = add_volume(scene, difference, name)
    highest, step = _round_range(_percentile(difference.values, shown, SMALLEST_SHOWN_DIFFERENCE_GY), 4, 7)
    threshold = (min(SMALLEST_SHOWN_DIFFERENCE_GY, 0.2 * highest), np.inf)
    _paint(node, colours.SPREAD, (0.0, highest), step, threshold, "Absolute difference [Gy]")
    return node


def hide_below(node: Any, ratio: float) -> None:
    """Leave a dose unpainted below this share of the prescription, a spread below this share of its scale.

    Differences, whose table is clear where there is none, stay as they are.
    """
    display = node.GetDisplayNode()
    table = display.GetColorNode()
    if table is None or table.GetName() not in (colours.DOSE, colours.SPREAD):
        return
    whole = display.GetWindowLevelMax()
    if table.GetName() == colours.DOSE:
        whole /= HIGHEST_SHOWN_RATIO
    if display.GetLowerThreshold() != ratio * whole:
        display.SetLowerThreshold(ratio * whole)


def show_legend(node: Any, shown: bool) -> None:
    """Show or hide a volume's legend of colours."""
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(shown)


def _percentile(values: np.ndarray, shown: np.ndarray, least: float) -> float:
    chosen = values[shown] if shown.any() else values
    known = chosen[np.isfinite(chosen)]
    return max(float(np.percentile(known, 99.5)), least) if known.size else least


def _round_range(highest_gy: float, fewest: int, most: int) -> tuple[float, float]:
    """The smallest range of ``fewest`` to ``most`` round steps that reaches a dose, and its step: both in Gy."""
    steps = range(fewest, most + 1)
    ranges = [(count * step, step) for step in _LABEL_STEPS_GY for count in steps if count * step >= highest_gy - 1e-9]
    return min(ranges, default=(highest_gy, highest_gy / fewest))


def _paint(
    node: Any,
    table: str,
    limits: tuple[float, float],
    step: float,
    threshold: tuple[float, float] | None,
    title: str,
) -> None:
    """Colours over the limits in Gy, labels a step apart, nothing outside the threshold."""
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
    decimals = next(d for d in range(3) if d == 2 or abs(step - round(step, d)) < 1e-9)
    legend.SetLabelFormat(f"%.{decimals}f")
    legend.SetNumberOfLabels(round((limits[1] - limits[0]) / step) + 1)
    legend.SetMaxNumberOfColors(256)
    legend.SetVisibility(True)
