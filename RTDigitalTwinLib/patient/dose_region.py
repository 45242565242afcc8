"""Body and feasible-dose region: where a plan can put dose, by a rule fitted on the public OpenKBP masks.

OpenKBP's masks are bodies cut at two heights that follow the dose grids of the source plans, from one slice to 70 mm
beyond the targets; nothing else in a patient tells which. The rule takes one margin above and below for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.grid import bounding_box
from RTDigitalTwinLib.patient.naming import DOSE_MASK
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.structure_matching import EXTERNAL
from RTDigitalTwinLib.patient.volume import Volume

# Fitted on 50 OpenKBP training patients, every third: the threshold (of -700, -500, -400, -300 and -150 HU) and the
# margins (of 2.5 to 60 mm) of the highest mean Dice overlap. Between the targets' ends it is 0.990 in the median and
# 0.971 to 0.999 from the 10th to the 90th percentile; of the slices that the mask has, 0.862 and 0.83 to 0.94.
BODY_HU = -300
MARGIN_BELOW_MM, MARGIN_ABOVE_MM = 30.0, 20.0
REGION_NOTE = (
    f"Dose is predicted in the body from {MARGIN_BELOW_MM:g} mm below the targets to {MARGIN_ABOVE_MM:g} mm above them."
)
BODY_NOTE = (
    "There is no outline of the body; it was found by its CT values, so a couch, mask or cushion that touches the "
    "patient counts as body unless it is thin. Where the structure set has an outline, confirm it as External."
)
_SMALLEST_BODY_CC = 500.0
# Walls of couches are thinner than twice this; so are ears and noses, but these are smaller than the volume.
_WALL_REACH_MM = 8.0
_SMALLEST_COUCH_CC = 150.0


def body_of(ct: Volume) -> Structure:
    """``body_and_couch``'s body."""
    return body_and_couch(ct)[0]


def body_and_couch(ct: Volume) -> tuple[Structure, float]:
    """The body by its CT values, and how many cc of thin walls were taken off it, such as those of a couch it touches.

    The body is the largest connected region above -300 HU, holes filled slice by slice. Of that, what lies beyond
    the ends of the body in a slice and goes away when walls thinner than 16 mm are is taken off, where it is more
    than 150 cc. Thicker things that touch the patient count as body: CT values alone do not tell them apart.
    Raises PatientDataError where the body is smaller than half a litre.
    """
    import SimpleITK as sitk  # here, since training does without it

    above = sitk.GetImageFromArray((ct.values > BODY_HU).astype(np.uint8))
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(above))
    largest = sitk.GetArrayFromImage(parts) == 1
    if largest.sum() * ct.grid.voxel_volume_mm3 / 1000 < _SMALLEST_BODY_CC:
        raise PatientDataError("No body is to be seen in the CT.", remedy="Check its rescale slope and intercept.")
    body, without = _filled(largest), _filled(largest & ~_thin_beyond(largest, ct))
    couch_cc = float((body.sum() - without.sum()) * ct.grid.voxel_volume_mm3 / 1000)
    if couch_cc < _SMALLEST_COUCH_CC:
        couch_cc = 0.0
    else:
        body = without
    return Structure.from_array(EXTERNAL, body, ct.grid, StructureKind.REGION), couch_cc


def couch_note(couch_cc: float) -> str:
    """What to tell of the walls that were taken off."""
    return f"{couch_cc:.0f} cc of thin walls that touch the body, such as a couch's, were taken off it."


def _filled(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With its holes, slice by slice."""
    import SimpleITK as sitk

    holes = (sitk.BinaryFillhole(sitk.GetImageFromArray(section.astype(np.uint8))) for section in region)
    return np.stack([sitk.GetArrayFromImage(section) > 0 for section in holes])


def _thin_beyond(region: NDArray[np.bool_], ct: Volume) -> NDArray[np.bool_]:
    """Where, in its slices, a region's thick part ends and only thin walls and what they enclose can follow."""
    import SimpleITK as sitk

    whole = sitk.GetImageFromArray(region.astype(np.uint8))
    reach = [max(1, round(_WALL_REACH_MM / mm)) for mm in ct.grid.spacing_mm[:2]] + [0]
    opened = sitk.BinaryMorphologicalOpening(whole, reach, sitk.sitkBall)
    thick = sitk.RelabelComponent(sitk.ConnectedComponent(opened)) == 1
    near = sitk.GetArrayFromImage(sitk.BinaryDilate(thick, reach, sitk.sitkBall)) > 0
    beyond = ~near
    for k, section in enumerate(sitk.GetArrayViewFromImage(thick) > 0):
        rows, columns = np.flatnonzero(section.any(axis=1)), np.flatnonzero(section.any(axis=0))
        if rows.size:
            beyond[k, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    return beyond


def dose_region(body: Structure, targets: Sequence[Structure]) -> Structure:
    """The body and the targets from 30 mm below the targets to 20 mm above them, as a mask of whole voxels.

    Heights are measured along the grid's slice axis, or along the axis nearest to the patient's long axis.
    Raises PatientDataError without targets.
    """
    if not targets:
        raise PatientDataError("There is no target, so it is not known where dose would go.")
    grid = body.grid
    axes = np.reshape(grid.direction, (3, 3))
    towards_head = axes[2, ::-1]  # of the array's axes: slice, row, column
    axis = int(np.argmax(np.abs(towards_head)))
    step_mm = grid.spacing_mm[2 - axis]
    below, above = MARGIN_BELOW_MM, MARGIN_ABOVE_MM
    if towards_head[axis] < 0:
        below, above = above, below
    wanted = body.mask
    ends = []
    for target in targets:
        wanted[target.box] |= target.box_occupancy >= 0.5
        inside = bounding_box(target.box_occupancy >= 0.5)
        if inside is not None:
            start = target.box[axis].start
            ends += [start + inside[axis].start, start + inside[axis].stop]
    if not ends:
        raise PatientDataError("No voxel of the targets is half inside them.", where=targets[0].name)
    first = max(min(ends) - round(below / step_mm), 0)
    last = min(max(ends) + round(above / step_mm), grid.shape[axis])
    cut = _without_outside(wanted, axis, first, last)
    return replace(Structure.from_array(DOSE_MASK, cut, grid, StructureKind.REGION), source_name=body.source_name)


def as_mask(region: Structure) -> Structure:
    """A region drawn by somebody as the mask of its voxels at least half inside."""
    return Structure.from_array(DOSE_MASK, region.mask, region.grid, StructureKind.REGION, region.source_name)


def _without_outside(mask: NDArray[np.bool_], axis: int, first: int, last: int) -> NDArray[np.bool_]:
    moved = np.moveaxis(mask, axis, 0)
    moved[:first] = False
    moved[last:] = False
    return mask
