"""Dose of a course in other words: biologically effective dose and its equivalent in 2 Gy fractions.

Linear-quadratic model; Joiner and van der Kogel, Basic Clinical Radiobiology, 5th edition (2018). Every voxel has a
fraction size of its own: its total dose over the number of fractions. No repopulation, no incomplete repair.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.patient.volume import Quantity, Volume

Doses = TypeVar("Doses", float, NDArray, Tensor)


def bed_gy(dose_gy: Doses, fractions: float, alpha_beta_gy: float) -> Doses:
    """Biologically effective dose D (1 + d / (alpha/beta)) of total doses D in equal fractions of d = D / n, in Gy.

    Raises RTDigitalTwinError unless fractions and alpha/beta are positive.
    """
    _require_positive(fractions, alpha_beta_gy)
    return dose_gy * (1 + dose_gy / (fractions * alpha_beta_gy))


def eqd2_gy(dose_gy: Doses, fractions: float, alpha_beta_gy: float) -> Doses:
    """Total dose in 2 Gy fractions with the same effect: BED / (1 + 2 / (alpha/beta)), in Gy.

    Raises RTDigitalTwinError unless fractions and alpha/beta are positive.
    """
    return bed_gy(dose_gy, fractions, alpha_beta_gy) / (1 + 2 / alpha_beta_gy)


def eqd2_volume(dose: Volume, fractions: int, alpha_beta_gy: float) -> Volume:
    """EQD2 of every voxel; NaN where the dose is not known."""
    return Volume(eqd2_gy(np.asarray(dose.values, np.float32), fractions, alpha_beta_gy), dose.grid, Quantity.EQD2_GY)


def _require_positive(fractions: float, alpha_beta_gy: float) -> None:
    if not fractions > 0:
        raise RTDigitalTwinError(f"The number of fractions must be positive, not {fractions}.")
    if not alpha_beta_gy > 0:
        raise RTDigitalTwinError(f"alpha/beta must be positive, not {alpha_beta_gy} Gy.")
