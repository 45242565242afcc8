"""The sample anatomy's tissues: shapes of body, bones, soft tissue and airways, painted as a CT.

Anatomy coordinates are mm along LPS with the origin in the middle of the brainstem. Positions and sizes are drawn
after general anatomy and after summary statistics of the public OpenKBP training patients (Babier et al., Medical
Physics 48, 5549, 2021); Hounsfield values are those of contrast-enhanced planning CTs at 120 kV.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.anatomy_shapes import (
    AnatomyFrame,
    Field,
    Shape,
    egg_norm,
    ellipsoid,
    loft,
    soft_edge,
    tube,
    wall,
)

AIR_HU = np.float32(-1000)
OUTSIDE_HU = np.float32(-1024)  # what scanners and the public data put where there is no patient
SIDES = (-1, 1)  # patient's right, left

# z, front y, back y, half-width, y of the widest point, front exponent, back exponent
_BODY_LEVELS = (
    (-300, -104, 118, 226, 62, 2.2, 3.4), (-220, -92, 118, 221, 60, 2.1, 3.4), (-200, -80, 117, 216, 54, 2.0, 3.2),
    (-180, -69, 114, 208, 46, 1.9, 2.8), (-165, -63, 108, 198, 38, 1.8, 2.4), (-150, -61, 98, 160, 30, 1.7, 2.2),
    (-135, -62, 86, 112, 24, 1.8, 2.1), (-120, -68, 75, 82, 18, 1.8, 2.2), (-108, -76, 67, 71, 10, 1.8, 2.3),
    (-98, -91, 61, 67, 0, 1.75, 2.3), (-86, -110, 57, 67, -8, 1.7, 2.3), (-72, -117, 56, 70, -12, 1.7, 2.3),
    (-55, -117, 61, 73, -16, 1.75, 2.3), (-40, -114, 69, 76, -18, 1.9, 2.2), (-20, -109, 80, 77, -16, 2.1, 2.1),
    (0, -107, 86, 78, -12, 2.2, 2.0), (20, -105, 87, 78, -8, 2.2, 2.0), (40, -102, 86, 77, -7, 2.1, 2.0),
    (60, -95, 83, 73, -6, 2.0, 2.0), (75, -88, 78, 68, -6, 2.0, 2.0), (90, -78, 70, 60, -6, 2.0, 2.0),
)  # fmt: skip
_CORD_Y = ((-320, 66), (-250, 60), (-220, 54), (-200, 47), (-180, 38), (-160, 28), (-140, 17), (-120, 9), (-100, 3),
           (-80, -1), (-60, -1), (-42, 2), (-28, 7))  # fmt: skip
_TRACHEA_Y = ((-320, 22), (-250, 18), (-210, 4), (-190, -5), (-170, -15), (-150, -26), (-136, -34))
_DISCS_Z = (-46, -66, -82, -98, -114, -131, -149, -168, -188, -209, -231, -254)
JAW_ARCH = ((-49, -40), (-45, -58), (-37, -78), (-25, -95), (-11, -105), (0, -107), (11, -105), (25, -95), (37, -78),
            (45, -58), (49, -40))  # fmt: skip
_TOOTH_ARCH = tuple((0.86 * x, y + 1.5) for x, y in JAW_ARCH[2:-2])


def cord_y_mm(z_mm: float) -> float:
    """Where the middle of the spinal canal lies, front to back."""
    return float(np.interp(z_mm, *np.transpose(_CORD_Y)))


def trachea_y_mm(z_mm: float) -> float:
    """Where the middle of the trachea lies, front to back."""
    return float(np.interp(z_mm, *np.transpose(_TRACHEA_Y)))


def body_depth(frame: AnatomyFrame) -> Field:
    """Approximate depth below the skin in mm over the whole grid, (slices, rows, columns); negative outside."""
    norm = egg_norm(*frame.coordinates(frame.whole), _BODY_LEVELS)
    steps_mm = frame.grid.spacing_mm[::-1]
    slope = np.sqrt(sum(g * g for g in np.gradient(norm, *steps_mm)))
    depth = (1 - norm) / np.maximum(slope, np.float32(1e-3))
    for shape in _skin_bumps():
        found = frame.box(shape)
        if found is not None:
            depth[found] = np.maximum(depth[found], -shape.distance_mm(*frame.coordinates(found)))
    return depth


def mandible() -> Shape:
    """Body, rami, condyles and coronoid processes."""
    bone = wall(JAW_ARCH, 6.6, (-86, -76), 19, -108, -44)
    for s in SIDES:
        bone |= tube([(48 * s, -46, -70), (51 * s, -44, -50), (52 * s, -40, -32), (53 * s, -34, -18)],
                     [7.5, 7, 6, 6.5], flat=(0.85, 1.5))  # fmt: skip
        bone |= tube([(48 * s, -56, -62), (50 * s, -58, -40), (50 * s, -60, -24)], [8, 6, 4], flat=(0.8, 1.5))
    return bone


def spine() -> Shape:
    """Vertebral bodies and discs as one column."""
    levels = []
    for z in (-320, -220, -180, -150, -120, -90, -66, -50, -36):
        half_width, half_depth = (17, 11) if z < -200 else (15.5, 10) if z < -160 else (13.5, 8.5)
        if z > -60:
            half_width, half_depth = 8.0, 6.5  # the dens
        levels.append((z, 0.0, cord_y_mm(z) - 6.5 - half_depth, half_width, half_depth))
    return loft(levels)


def canal(margin_mm: float = 0.0) -> Shape:
    """The spinal canal."""
    return loft([(z, 0, y, 10 + margin_mm, 7.5 + margin_mm) for z, y in _CORD_Y])


def airway() -> tuple[Shape, ...]:
    """Nasal cavity to trachea, from above; the last is the trachea."""
    throat = loft([(-112, 0, -38, 12, 5.5), (-100, 0, -38, 14, 7), (-84, 0, -37, 12, 5.5), (-66, 0, -36, 11, 6),
                   (-46, 0, -34, 11, 7), (-32, 0, -36, 13, 9), (-16, 0, -40, 11, 8)])  # fmt: skip
    glottis = loft([(-138, 0, -34, 8, 9.5), (-130, 0, -36, 7.5, 10), (-124, 0, -38, 3.2, 11), (-116, 0, -37, 8, 9),
                    (-108, 0, -37, 12, 6)])  # fmt: skip
    mouth = tube([(0, -90, -47), (0, -70, -39), (0, -52, -43)], [2.2, 2.2, 3], flat=(4.0, 1.0))
    nose = tube([(0, -44, -24), (0, -68, -22), (0, -94, -20)], [9, 12, 8], flat=(1.2, 1.0))
    windpipe = loft([(z, 0, y, 9, 8.5) for z, y in _TRACHEA_Y])
    return nose, mouth, throat, glottis, windpipe


def paint_ct(
    frame: AnatomyFrame,
    depth_mm: Field,
    organs: dict[str, Shape],
    disease: Sequence[tuple[Shape, float]],
    fat_mm: float,
    fillings: Sequence[tuple[float, float, float]],
    rng: np.random.Generator,
) -> Field:
    """The CT in HU, (slices, rows, columns).

    Parameters
    ----------
    depth_mm : from body_depth on the same frame.
    organs : shapes by structure name.
    disease : shapes of primary and nodes with their HU.
    fat_mm : thickness of the subcutaneous fat at the neck.
    fillings : positions of dental metal.
    """
    hu = _flesh(frame, depth_mm, fat_mm, rng)
    _paint_soft_tissue(frame, hu, organs)
    for shape, value in disease:
        frame.paint(hu, shape, value)
    _paint_head(frame, hu)
    _paint_jaws(frame, hu, organs["Bone_Mandible"], fillings)
    _paint_neck_and_chest(frame, hu)
    frame.paint(hu, organs["Brainstem"], 7)
    frame.paint(hu, organs["SpinalCord"].grown(-1.4), 27)
    _paint_airways(frame, hu, depth_mm, organs, disease)
    mottle = _smooth_noise(hu.shape, (4.0, 4.0, 4.0), frame, rng)
    hu += mottle * np.where(hu > 200, np.float32(0.2) * hu, np.float32(5))  # bone varies most
    inside = soft_edge(-depth_mm, 0.7 * frame.edge_mm)
    hu = AIR_HU + inside * (hu - AIR_HU)
    hu += inside * (_noise(frame, rng) + _streaks(frame, fillings, rng))
    return np.where(inside > 0, np.clip(hu, AIR_HU, 3071), OUTSIDE_HU)


def _skin_bumps() -> list[Shape]:
    bumps = [tube([(0, -104, 4), (0, -116, -14), (0, -115, -24)], [7, 9, 10]),
             tube([(-13, -114, -46), (0, -119, -45), (13, -114, -46)], [7, 8, 7])]  # fmt: skip
    bumps += [ellipsoid((80 * s, 2, -10), (6, 15, 27)) for s in SIDES]
    return bumps


def _flesh(frame: AnatomyFrame, depth: Field, fat_mm: float, rng: np.random.Generator) -> Field:
    """Skin, subcutaneous fat, and muscle with planes of fat between."""
    z = frame.coordinates((slice(0, frame.grid.shape[0]), slice(0, 1), slice(0, 1)))[2]
    knots = (-220, -160, -130, -100, -60, -25, 10)
    layer = np.interp(z, knots, np.array((2.2, 2.0, 1.5, 1.1, 1.0, 0.7, 0.5)) * fat_mm + 1.5).astype(np.float32)
    under_skin = np.clip((layer - depth) / frame.edge_mm + np.float32(0.5), 0, 1)
    field = _smooth_noise(depth.shape, (12.0, 7.0, 7.0), frame, rng)
    mirrored = field + np.float32(0.8) * field[:, :, ::-1]  # the two sides resemble each other
    mirrored /= mirrored.std()
    wide = np.interp(z, (-220, -130, -60, -30, 10), (0.30, 0.38, 0.38, 0.34, 0.1)).astype(np.float32)
    between: Field = np.exp(-np.square(mirrored / wide))  # sheets of fat where the field changes sign
    share = np.maximum(under_skin, between)
    hu = np.float32(37) - np.float32(148) * share
    skin = np.clip(np.float32(1) - np.abs(depth - 1) / np.float32(frame.edge_mm * 0.6), 0, 1)
    return hu + np.float32(0.7) * skin * (np.float32(20) - hu)


def _paint_soft_tissue(frame: AnatomyFrame, hu: Field, organs: dict[str, Shape]) -> None:
    for s in SIDES:
        for shape in (
            tube([(30 * s, -40, -30), (32 * s, -32, -60)], [10, 10], flat=(0.8, 1.3)),  # parapharyngeal
            ellipsoid((42 * s, -78, -34), (11, 14, 20)),  # buccal
            tube(
                [(40 * s, -16, -45), (42 * s, -18, -85), (37 * s, -20, -120), (36 * s, -14, -165)],
                [11, 12, 12, 14],
                flat=(0.9, 1.4),
            ),  # around the vessels
            tube([(50 * s, 8, -70), (54 * s, 14, -120), (60 * s, 6, -160)], [8, 10, 14], flat=(0.7, 1.8)),
            tube([(34 * s, -66, -92), (22 * s, -78, -90)], [9, 8]),  # around the submandibular gland
            tube([(12 * s, 36, -55), (24 * s, 34, -90), (30 * s, 44, -130)], [5, 5, 6], flat=(2.4, 0.8)),
            ellipsoid((135 * s, 18, -232), (16, 26, 36)),  # axilla
        ):
            frame.paint(hu, shape, -52)
        for shape, value in (
            (tube([(58 * s, -62, -20), (56 * s, -52, -50), (53 * s, -48, -74)], [10, 11, 9], flat=(0.75, 1.4)), 55),
            (tube([(36 * s, -50, -26), (43 * s, -48, -68)], [9, 8], flat=(0.7, 1.3)), 52),  # pterygoids
            (
                tube(
                    [(61 * s, 2, -36), (55 * s, -8, -75), (44 * s, -32, -120), (22 * s, -50, -172)],
                    [9, 10, 10, 8],
                    flat=(0.7, 1.5),
                ),
                56,
            ),  # sternocleidomastoid
            (
                tube([(13 * s, 30, -50), (14 * s, 30, -90), (18 * s, 56, -150), (20 * s, 84, -220)], [13, 13, 15, 16]),
                54,
            ),  # erector spinae
            (tube([(30 * s, 22, -55), (34 * s, 18, -100), (40 * s, 36, -150)], [9, 10, 12], flat=(0.9, 1.3)), 52),
            (ellipsoid((29 * s, -62, -84), (10, 15, 13)), 48),  # submandibular gland
            (tube([(17 * s, -40, -130), (15 * s, -30, -160)], [9, 7], flat=(0.8, 1.3)), 150),  # thyroid
            (
                tube(
                    [(28 * s, -16, -30), (30 * s, -22, -80), (23 * s, -20, -125), (14 * s, -10, -190)], [3.5, 4, 4, 4.5]
                ),
                165,
            ),  # carotid
            (
                tube([(35 * s, -8, -30), (38 * s, -16, -80), (32 * s, -24, -125), (24 * s, -24, -185)], [4, 5, 6, 6]),
                130,
            ),  # jugular
            (tube([(9 * s, cord_y_mm(z) - 27, z) for z in (-150, -115, -85, -55, -35)], [4, 5, 5, 5, 5]), 52),
        ):
            frame.paint(hu, shape, value)
        frame.paint(hu, organs["Parotid_L" if s > 0 else "Parotid_R"], -20)
        frame.paint(hu, tube([(54 * s, -25, -20), (54 * s, -22, -62)], [2.6, 2.6]), 110)  # retromandibular vein
    frame.paint(hu, ellipsoid((0, -72, -60), (24, 29, 18)) | ellipsoid((0, -56, -72), (20, 17, 18)), 31)  # tongue
    frame.paint(hu, ellipsoid((0, -55, -102), (13, 6, 10)), -85)  # fat in front of the epiglottis
    frame.paint(hu, organs["Larynx"].grown(3), 46)
    frame.paint(hu, organs["Larynx"].grown(-3), -55)  # paraglottic fat around the lumen
    frame.paint(hu, organs["Esophagus"], 40)


def _paint_head(frame: AnatomyFrame, hu: Field) -> None:
    vault, brain = ellipsoid((0, -6, 32), (72, 86, 88)), _brain()
    skull = vault & (brain.grown(3.8) | (brain.grown(7) & ellipsoid((0, -6, 110), (200, 200, 108))))
    frame.paint(hu, skull, 1500)
    frame.paint(hu, skull.grown(-1.8), 760)  # marrow between the tables
    for s in SIDES:
        for shape, value in (
            (tube([(16 * s, -14, -12), (58 * s, 6, -12)], [8, 12]), 820),  # petrous bone
            (ellipsoid((60 * s, 8, -24), (10, 13, 15)), 450),
            (ellipsoid((61 * s, 8, -23), (6, 9, 10)), -420),
            (tube([(70 * s, -6, -10), (50 * s, -6, -10)], [3.5, 3]), -700),  # ear canal
            (tube([(40 * s, -84, -14), (62 * s, -66, -12), (68 * s, -42, -12), (66 * s, -20, -10)], [7, 5, 3, 4]), 900),
            (tube([(44 * s, -76, 26), (52 * s, -78, 6), (46 * s, -82, -14)], [5, 4, 6]), 850),  # orbital rim
            (tube([(14 * s, -97, 26), (34 * s, -92, 27), (46 * s, -78, 25)], [5, 5, 5]), 800),
            (tube([(20 * s, -34, -26), (24 * s, -40, -42)], [5, 3], flat=(0.6, 1.5)), 500),  # pterygoid plates
            (ellipsoid((30 * s, -68, -18), (17, 20, 17)), 480),
            (ellipsoid((30 * s, -68, -18), (14, 17, 14)), -985),
            (tube([(32 * s, -86, 6), (20 * s, -46, 4)], [17, 6]), -90),  # orbital fat
            (ellipsoid((32 * s, -89, 6), (12, 12, 12)), 18),
            (tube([(26 * s, -76, 5), (16 * s, -44, 4)], [2.5, 2.5]), 40),
        ):
            frame.paint(hu, shape, value)
    frame.paint(hu, brain, 22)
    frame.paint(hu, ellipsoid((0, -20, 46), (5, 18, 14)), 8)  # ventricles
    frame.paint(hu, ellipsoid((0, 66, 10), (3, 4, 22)), 110)  # venous sinus
    frame.paint(hu, ellipsoid((0, -92, 31), (20, 6, 10)), -970)  # frontal sinus
    frame.paint(hu, ellipsoid((0, -63, 4), (13, 24, 13)), 300)
    for x in (-8, 0, 8):
        for y in (-80, -70, -60, -50):
            frame.paint(hu, ellipsoid((x, y, 4), (3.6, 4.4, 10)), -960)  # ethmoid cells
    frame.paint(hu, ellipsoid((0, -33, -4), (15, 12, 11)), 500)
    frame.paint(hu, ellipsoid((0, -33, -4), (12.5, 9.5, 8.5)), -985)  # sphenoid sinus


def _brain() -> Shape:
    """Cerebrum above the orbits, middle and posterior fossae below."""
    above_orbits = ellipsoid((0, -6, 120), (200, 200, 98))
    fossae = ellipsoid((0, 30, -2), (51, 43, 32)) | ellipsoid((0, 0, -2), (18, 16, 30))
    for s in SIDES:
        fossae |= ellipsoid((38 * s, -20, 12), (26, 27, 23))
    inside = ellipsoid((0, -6, 32), (66, 80, 82))
    return inside & (above_orbits | ellipsoid((0, 10, 26), (66, 66, 32)) | fossae)


def _paint_jaws(frame: AnatomyFrame, hu: Field, jaw: Shape, fillings: Sequence[tuple[float, float, float]]) -> None:
    frame.paint(hu, wall(_TOOTH_ARCH[2:-2], 5.0, (-44, -44), 12, -108, -70), 620)  # upper alveolus
    frame.paint(hu, ellipsoid((0, -74, -33), (24, 24, 2.5)), 420)  # hard palate
    frame.paint(hu, jaw.grown(-1.7), 1550)  # a contour runs a little outside the bone
    frame.paint(hu, jaw.grown(-4.2), 120)
    path = np.asarray(_TOOTH_ARCH)
    along = np.r_[0, np.cumsum(np.hypot(*np.diff(path, axis=0).T))]
    for at in np.arange(4, along[-1], 8.0):
        x, y = (np.interp(at, along, path[:, i]) for i in (0, 1))
        if y < -70:
            frame.paint(hu, tube([(x, y, -56), (x, y, -70)], [4.0, 2.2]), 2700)
            frame.paint(hu, tube([(x, y, -53), (x, y, -40)], [4.0, 2.0]), 2700)
    for place in fillings:
        frame.paint(hu, ellipsoid(place, (3.5, 3.5, 3.5)), 3071)


def _paint_neck_and_chest(frame: AnatomyFrame, hu: Field) -> None:
    column, space = spine(), canal()
    for low, high in zip(_DISCS_Z[1:], _DISCS_Z[:-1], strict=True):
        middle = (low + high) / 2
        y, long = cord_y_mm(middle), 36 if middle < -130 else 22
        frame.paint(hu, canal(5.5) & ellipsoid((0, y, middle - 2), (30, 34, 8.5)), 800)  # lamina
        frame.paint(hu, tube([(0, y + 9, middle), (0, y + long, middle - 9)], [4, 4], flat=(0.9, 1.0)), 700)
        for s in SIDES:
            frame.paint(hu, ellipsoid((16 * s, y - 3, middle), (8, 7, 10)), 660)
            if middle < -150:
                frame.paint(hu, tube([(14 * s, y - 2, middle), (34 * s, y + 8, middle + 2)], [5, 4.5]), 550)
    for s in SIDES:
        frame.paint(hu, ellipsoid((20 * s, -2, -40), (11, 10, 9)), 760)  # atlas, lateral mass
        frame.paint(hu, tube([(17 * s, 4, -42), (0, 18, -44)], [4, 4]), 760)
        frame.paint(hu, tube([(18 * s, -8, -41), (0, -18, -41)], [4, 4]), 760)
    frame.paint(hu, column, 780)
    frame.paint(hu, column.grown(-3), 360)
    for z in _DISCS_Z[1:]:
        y = cord_y_mm(z)
        frame.paint(hu, ellipsoid((0, y - 16 if z > -150 else y - 18, z), (15, 11, 2.4)), 90)
    frame.paint(hu, space, -42)  # fat around the dura
    hyoid = [(-21, -34, -92), (-18, -52, -96), (0, -62, -98), (18, -52, -96), (21, -34, -92)]
    frame.paint(hu, tube(hyoid, [2.5, 3, 4, 3, 2.5]), 480)
    for s in SIDES:
        plate = [(0, -57, -120), (8 * s, -50, -119), (17 * s, -30, -116)]
        frame.paint(hu, tube(plate, [2.6, 2.4, 2.4], flat=(1.0, 1.0)), 230)  # thyroid cartilage
        frame.paint(hu, ellipsoid((9 * s, -22, -134), (4, 5, 7)), 260)  # cricoid
        frame.paint(hu, ellipsoid((46 * s, 34, -258), (40, 46, 74)), -820)  # lung
        for z in (-196, -214, -232, -250):
            grow = 1 + (-196 - z) / 110
            rib = [(16, cord_y_mm(z), z + 4), (42 * grow, 64 + (grow - 1) * 30, z - 2), (60 * grow, 34, z - 12),
                   (52 * grow, -14, z - 20), (26, -44 - 30 * (grow - 1), z - 24)]  # fmt: skip
            frame.paint(hu, tube([(x * s, y, w) for x, y, w in rib], [5.0] * 5), 560)
        collar = [(14 * s, -52, -190), (60 * s, -46, -178), (110 * s, 0, -168), (160 * s, 22, -168)]
        frame.paint(hu, tube(collar, [8, 6, 5.5, 6]), 900)
        frame.paint(hu, tube(collar, [4, 2, 1.5, 2]), 400)
        frame.paint(hu, ellipsoid((176 * s, 40, -200), (23, 24, 25)), 820)
        frame.paint(hu, ellipsoid((176 * s, 40, -200), (18, 19, 20)), 330)
        frame.paint(hu, tube([(180 * s, 42, -215), (196 * s, 44, -300)], [15, 12]), 800)
        blade = [(165 * s, 44, -180), (128 * s, 78, -196), (92 * s, 96, -240), (98 * s, 92, -300)]
        frame.paint(hu, tube(blade, [7, 5, 4.5, 4.5]), 680)
    frame.paint(hu, tube([(0, -64, -206), (0, -82, -270)], [9, 9], flat=(2.0, 0.8)), 420)  # sternum


def _paint_airways(
    frame: AnatomyFrame, hu: Field, depth: Field, organs: dict[str, Shape], disease: Sequence[tuple[Shape, float]]
) -> None:
    nose, mouth, throat, glottis, windpipe = airway()
    for shape in (throat, mouth):
        for tumour, _ in disease:
            shape = shape - tumour.grown(-4)  # the mass narrows the airway
        frame.paint(hu, shape, -990)
    for shape in (nose, glottis, windpipe):
        frame.paint(hu, shape, -990)
    frame.paint(hu, tube([(0, -98, 8), (0, -96, -28), (0, -50, -28)], [1.6] * 3), 150)  # septum
    frame.paint(hu, wall([(0, -100), (0, -48)], 1.2, (-32, -32), 40, -100, -48), 120)
    for s in SIDES:
        frame.paint(hu, tube([(9 * s, -86, -24), (9 * s, -52, -24)], [4.5, 4]), 40)  # lower turbinate
        frame.paint(hu, tube([(8 * s, -80, -9), (8 * s, -54, -9)], [3, 3]), 30)
    low = -200
    frame.paint(hu, ellipsoid((1, trachea_y_mm(low) + 15, low), (3, 2, 9)), -600)  # air in the oesophagus


def _smooth_noise(
    shape: tuple[int, ...], sigma_mm: tuple[float, float, float], frame: AnatomyFrame, rng: np.random.Generator
) -> Field:
    """Gaussian noise of zero mean smoothed along (slices, rows, columns), unit standard deviation."""
    image = sitk.GetImageFromArray(rng.standard_normal(shape, dtype=np.float32))
    image.SetSpacing(frame.grid.spacing_mm)
    values = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, sigma_mm[::-1]))
    return values / values.std()


def _noise(frame: AnatomyFrame, rng: np.random.Generator) -> Field:
    """Quantum noise, nearly white after averaging to the planning grid, and lateral streaks through the shoulders."""
    shape = frame.grid.shape
    white = rng.standard_normal(shape, dtype=np.float32)
    streaks = _smooth_noise(shape, (1.0, 1.5, 25.0), frame, rng)
    z = frame.coordinates((slice(0, shape[0]), slice(0, 1), slice(0, 1)))[2]
    streak_hu = np.interp(z, (-240, -165, -135, -60, -25, 10, 25), (19, 17, 5, 4, 7, 5, 2)).astype(np.float32)
    white[1:] = np.float32(0.9) * white[1:] + np.float32(0.44) * white[:-1]  # slices overlap a little
    return np.float32(8.0) * white + streak_hu * streaks


def _streaks(
    frame: AnatomyFrame, fillings: Sequence[tuple[float, float, float]], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Bright and dark rays in the slices of dental metal."""
    total = np.zeros(frame.grid.shape, np.float32)
    for place in fillings:
        reach = ellipsoid(place, (90, 90, 5))
        box = frame.box(reach)
        if box is None:
            continue
        x, y, z = frame.coordinates(box)
        dx, dy = x - np.float32(place[0]), y - np.float32(place[1])
        angle = np.arctan2(dy, dx)
        phase, rays = rng.uniform(0, 2 * np.pi, 3), (3, 5, 8)
        pattern = sum(np.sin(n * angle + p) for n, p in zip(rays, phase, strict=True))
        fade = np.exp(-np.hypot(dx, dy) / np.float32(28) - ((z - np.float32(place[2])) / np.float32(3)) ** 2)
        total[box] += (np.float32(130) * pattern * fade).astype(np.float32)
    return total
