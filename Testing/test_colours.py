"""Structures are told apart by colour, also by readers without red or green cones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.colours import structure_colour
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK

NAMES = ("PTV_7000", "PTV_6300", "PTV_5600", *ORGANS_AT_RISK)
# What such readers see, on linear light: Machado, Oliveira and Fernandes (2009), severity 1.
SEEN = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
LEAST = {"all cones": 40.0, "no red cones": 15.0, "no green cones": 15.0}  # just noticeable is about 2.3


def lab(linear: NDArray) -> NDArray:
    """CIE L*a*b* of linear sRGB, white point D65."""
    of_white = ([0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041])
    xyz = np.array(of_white) @ np.clip(linear, 0, 1) / (0.95047, 1, 1.08883)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 841 / 108 + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("reader", list(SEEN))
def test_colours_of_structures_are_apart(reader: str) -> None:
    def seen(name: str) -> NDArray:
        colour = np.array(structure_colour(name))
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return lab(np.array(SEEN[reader]) @ linear)

    apart = {(a, b): float(np.linalg.norm(seen(a) - seen(b))) for a, b in combinations(NAMES, 2)}
    assert len(apart) == 45
    nearest = min(apart, key=lambda pair: apart[pair])
    assert apart[nearest] >= LEAST[reader], (nearest, apart[nearest])


def test_the_greatest_difference_is_a_hundred() -> None:
    assert lab(np.ones(3)) == pytest.approx([100, 0, 0], abs=0.02) and lab(np.zeros(3)) == pytest.approx(0, abs=1e-6)
