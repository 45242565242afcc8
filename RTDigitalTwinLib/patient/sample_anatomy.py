"""The built-in sample patient: a procedurally made head-and-neck case, no person's data.

Shapes, sizes and textures come from a seed. Volumes, positions and CT numbers were fitted to lie within the 10th to
90th percentile of the public OpenKBP training patients (Babier et al., Medical Physics 48, 5549, 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.anatomy_shapes import AnatomyFrame, Field, Shape, ellipsoid, loft, soft_edge, tube
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.naming import DOSE_MASK, TARGET_DOSE_GY
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import OPENKBP_FRACTIONS, OPENKBP_GANTRY_ANGLES_DEG, Plan, Prescription
from RTDigitalTwinLib.patient.sample_tissue import (
    body_depth,
    canal,
    cord_y_mm,
    mandible,
    paint_ct,
    spine,
    trachea_y_mm,
)
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume

_SIDE = 128
_SPACING_MM = (3.90625, 3.90625, 2.5)  # 500 mm field of view: OpenKBP's most common grid
_EDGE_MM = 3.3
_SKIN_MARGIN_MM = 4.0
_CORD_MARGIN_MM = 9.0
_MASK_ABOVE_MM, _MASK_BELOW_MM = 42.0, 28.0
_TARGET_BOX = ellipsoid((0, -25, -90), (95, 90, 120))


@dataclass(frozen=True)
class _Variation:
    """What differs between seeds; lengths in mm, factors around 1."""

    side: int  # of the tumour: -1 right, 1 left
    scale: tuple[float, float, float]
    tilt_deg: tuple[float, float, float]
    brainstem_lps_mm: tuple[float, float, float]
    fat_mm: float
    parotid: tuple[float, float]  # right, left
    organ: float
    primary: tuple[float, float, float]
    primary_shift_mm: tuple[float, float, float]
    node: float
    node_z_mm: float
    neck: float
    fillings: int


def sample_patient(seed: int = 0) -> Patient:
    """A head-and-neck patient with CT, seven organs, three targets, dose mask and an undosed nine-field plan.

    The same seed gives the same patient to the bit. Volumes are on a 128x128x128 LPS grid centred at 0 mm; the CT is
    int16 in HU; organs and targets are partial volumes, and the targets' occupancies sum to at most 1.
    """
    rng = np.random.default_rng(seed)
    variation = _draw(rng)
    frame = _frame(variation)
    organs = _organs(variation)
    primary, node = _gross_disease(variation)
    depth = body_depth(frame)
    fillings = [(-31.0 * variation.side, -82.0, -53.0), (33.0, -78.0, -57.0)][: variation.fillings]
    disease = [(primary, 38.0), (node, 34.0), (node.grown(-7), 22.0)]
    hu = paint_ct(frame, depth, organs, disease, variation.fat_mm, fillings, rng)
    ct = Volume(np.round(hu).astype(np.int16), frame.grid, Quantity.HU)

    inside = soft_edge(-depth, _EDGE_MM)
    structures = {
        name: Structure.from_array(name, frame.full(shape) * inside, frame.grid) for name, shape in organs.items()
    }
    for name, occupancy in _targets(frame, variation, organs, primary, node, depth).items():
        structures[name] = Structure.from_array(name, occupancy, frame.grid, StructureKind.TARGET)
    mask = _dose_mask(frame, depth, [structures[name] for name, _ in TARGET_DOSE_GY])
    prescription = Prescription(TARGET_DOSE_GY, OPENKBP_FRACTIONS)
    plan = Plan(prescription, OPENKBP_GANTRY_ANGLES_DEG, label="Sample plan")
    return Patient(f"sample-{seed}", (Image("CT", ct),), structures, mask, (plan,))


def _draw(rng: np.random.Generator) -> _Variation:
    def around(middle: float, spread: float) -> float:
        """Uniform within ``spread`` of the middle: bounded, so that every seed stays plausible."""
        return float(middle + spread * rng.uniform(-1, 1))

    size = around(1.0, 0.025)
    return _Variation(
        side=int(rng.choice((-1, 1))),
        scale=(size * around(1.0, 0.02), size * around(1.0, 0.02), size * around(1.0, 0.02)),
        tilt_deg=(around(0, 2.5), around(0, 0.8), around(0, 2.5)),
        brainstem_lps_mm=(around(1, 3), around(2, 3), around(94, 5)),
        fat_mm=around(5.0, 1.2),
        parotid=(around(1.0, 0.07), around(1.0, 0.07)),
        organ=around(1.0, 0.05),
        primary=(around(17, 2), around(19, 2), around(23, 3)),
        primary_shift_mm=(around(0, 2), around(0, 2), around(0, 5)),
        node=around(1.0, 0.15),
        node_z_mm=around(-88, 7),
        neck=around(1.0, 0.08),
        fillings=int(rng.integers(0, 3)),
    )


def _frame(v: _Variation) -> AnatomyFrame:
    spacing = np.array(_SPACING_MM)
    grid = Grid((_SIDE,) * 3, _SPACING_MM, tuple(-(_SIDE - 1) / 2 * spacing))
    rotation = np.eye(3)
    for axis, degrees in enumerate(v.tilt_deg):
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(np.deg2rad(degrees))
        turn[a, b], turn[b, a] = -np.sin(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        rotation = rotation @ turn
    return AnatomyFrame(grid, rotation @ np.diag(v.scale), np.array(v.brainstem_lps_mm), _EDGE_MM)


def _organs(v: _Variation) -> dict[str, Shape]:
    k = v.organ
    stem = ((-28, 7, 8, 7), (-14, 5, 11, 9), (-6, 0, 15, 13), (8, -1, 16, 13.5), (18, -1, 15, 12), (28, 0, 13, 9))
    brainstem = loft([(z, 0, y, a * k, b * k) for z, y, a, b in stem])
    cord = loft([(z, 0, cord_y_mm(z), 8.9 * k, 4.9 * k) for z in (*range(-230, -40, 10), -28)])
    gullet = loft([(z, (-148 - z) / 10, trachea_y_mm(z) + 14.5, 9.2 * k, 5.6 * k) for z in range(-222, -147, 6)])
    larynx = loft([(-139, 0, -35, 14 * k, 14 * k), (-126, 0, -37, 16.5 * k, 18 * k), (-112, 0, -38, 17 * k, 17 * k),
                   (-103, 0, -40, 15 * k, 13 * k)])  # fmt: skip
    return {
        "Brainstem": brainstem,
        "SpinalCord": cord,
        "Parotid_R": _parotid(-1, v.parotid[0]),
        "Parotid_L": _parotid(1, v.parotid[1]),
        "Esophagus": gullet,
        "Larynx": larynx,
        "Bone_Mandible": mandible(),
    }


def _parotid(s: int, k: float) -> Shape:
    """Superficial and deep lobe around the back of the ramus, with the tail below the ear."""
    gland = ellipsoid((62 * s, -28, -37), (9.5 * k, 19 * k, 24 * k))
    gland |= ellipsoid((53 * s, -21, -40), (13 * k, 10 * k, 19 * k))
    tail = tube([(58 * s, -22, -52), (56 * s, -16, -66)], [9 * k, 6 * k])
    return (gland | tail) - mandible().grown(1.5)


def _gross_disease(v: _Variation) -> tuple[Shape, Shape]:
    """Primary of tonsil and base of tongue, and an involved node at level II to III."""
    dx, dy, dz = v.primary_shift_mm
    primary = ellipsoid(((15 + dx) * v.side, -42 + dy, -66 + dz), v.primary)
    node = ellipsoid((44 * v.side, -16, v.node_z_mm), (11 * v.node, 13 * v.node, 21 * v.node))
    return primary, node


def _neck_chain(s: int, k: float, top_mm: float, bottom_mm: float) -> Shape:
    """Lymph node levels II to IV (around the vessels) and V (behind them) between two heights."""
    path = np.array([(-28, 36, -14), (-55, 41, -14), (-85, 43, -17), (-115, 38, -20), (-140, 36, -19), (-172, 36, -10)])
    z = np.linspace(top_mm, bottom_mm, 6)
    x, y = (np.interp(-z, -path[:, 0], path[:, i]) for i in (1, 2))
    vessels = tube([(s * a, b, c) for a, b, c in zip(x, y, z, strict=True)], [12.5 * k] * 6, flat=(1.0, 1.5))
    behind = [(s * (a + 9), b + 24, c) for a, b, c in zip(x, y, z, strict=True) if -145 < c < -55]
    return vessels | tube(behind, [8.5 * k] * len(behind), flat=(0.8, 1.9))


def _submandibular(s: int, k: float) -> Shape:
    """Lymph node level IB."""
    return tube([(36 * s, -50, -82), (31 * s, -68, -90), (18 * s, -80, -91)], [12 * k, 12 * k, 9 * k])


def _targets(
    frame: AnatomyFrame, v: _Variation, organs: dict[str, Shape], primary: Shape, node: Shape, depth: Field
) -> dict[str, NDArray[np.float32]]:
    """Occupancy over the grid by target name: 70 Gy disease, 63 Gy high risk, 56 Gy elective neck; disjoint."""
    high = primary.grown(11) | node.grown(9)
    middle = primary.grown(17) | _neck_chain(v.side, 1.1 * v.neck, -34, -116) | _submandibular(v.side, v.neck)
    low = _neck_chain(-v.side, v.neck, -38, -160) | _neck_chain(v.side, v.neck, -104, -164)
    low |= _submandibular(-v.side, 0.8 * v.neck)
    low |= primary.grown(24)  # mucosa around the disease
    low |= tube([(-15, -31, -45), (0, -34, -45), (15, -31, -45)], [9, 8, 9])  # behind the pharynx

    box = frame.box(_TARGET_BOX) or frame.whole
    xyz = frame.coordinates(box)
    kept_out = np.float32(_SKIN_MARGIN_MM) - depth[box]
    for shape, margin in (
        (organs["SpinalCord"], _CORD_MARGIN_MM), (organs["Brainstem"], _CORD_MARGIN_MM), (canal(), 2.0),
        (spine(), -4.0), (organs["Parotid_R"], -2.0), (organs["Parotid_L"], -2.0), (organs["Bone_Mandible"], -2.5),
        (organs["Larynx"], 0.0),
    ):  # fmt: skip
        kept_out = np.maximum(kept_out, np.float32(margin) - shape.distance_mm(*xyz))

    occupancies, above = {}, np.zeros_like(kept_out)
    wider = np.full_like(kept_out, np.inf)
    for (name, _), shape in zip(reversed(TARGET_DOSE_GY), (high, middle, low), strict=True):
        wider = np.minimum(wider, shape.distance_mm(*xyz))
        within = soft_edge(np.maximum(wider, kept_out), _EDGE_MM)
        occupancies[name] = np.zeros(frame.grid.shape, np.float32)
        occupancies[name][box] = within - above
        above = within
    return occupancies


def _dose_mask(frame: AnatomyFrame, depth: Field, targets: list[Structure]) -> Structure:
    """The body, airways included, in the slices of the targets and a margin: where scatter and entrance dose go."""
    slices = np.flatnonzero(np.any([t.mask.any(axis=(1, 2)) for t in targets], axis=0))
    slice_mm = frame.grid.spacing_mm[2]
    first = max(int(slices[0] - round(_MASK_BELOW_MM / slice_mm)), 0)
    last = min(int(slices[-1] + round(_MASK_ABOVE_MM / slice_mm)), _SIDE - 1)
    mask = np.zeros(frame.grid.shape, bool)
    mask[first : last + 1] = depth[first : last + 1] >= -_EDGE_MM / 2
    return Structure.from_array(DOSE_MASK, mask, frame.grid, StructureKind.REGION)
