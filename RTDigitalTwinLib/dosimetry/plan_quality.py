"""How good a plan is in a few numbers: conformity, homogeneity, fall of dose, equivalent uniform and integral dose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError


@dataclass(frozen=True, eq=False)
class PlanQuality:
    """Of one target and every sample, each (samples,).

    Attributes
    ----------
    conformity : (TV_PIV)^2 / (TV x PIV), volume TV inside the prescription isodose squared over TV times isodose
        volume; 1 is best. Paddick, Journal of Neurosurgery 93 (suppl. 3), 219 (2000). TV is all that at least this
        dose is prescribed to: of a simultaneous integrated boost's lower level its target joined with those above.
    homogeneity : (D2 - D98) / D50; 0 is best. ICRU Report 83 (2010).
    gradient : volume at half the prescribed dose over volume at the prescribed dose; lower is steeper. Paddick and
        Lippitz, Journal of Neurosurgery 105 (suppl.), 194 (2006). NaN where no volume has the prescribed dose.
    """

    conformity: NDArray[np.float64]
    homogeneity: NDArray[np.float64]
    gradient: NDArray[np.float64]


def plan_quality(
    target: StructureDose, body: StructureDose, prescribed_gy: float, level: StructureDose | None = None
) -> PlanQuality:
    """Of a target with its prescribed dose; ``body`` is the dose in all that can have it (External).

    ``level`` is all that at least this dose is prescribed to, where that is more than the target: with several dose
    levels the isodose of a lower one must enclose the targets above it, and counting them as spill would say little of
    the plan (Sang et al., Cancers 18, 426, 2026). Homogeneity is of the target alone; the gradient is of the isodoses,
    around all of them.
    Raises RTDigitalTwinError for a prescribed dose that is not positive, PatientDataError where samples differ in
    number or the dose covers too little.
    """
    if not prescribed_gy > 0:
        raise RTDigitalTwinError(f"The prescribed dose must be positive, not {prescribed_gy} Gy.", where=target.name)
    level = target if level is None else level
    for other, name in ((body, "body"), (level, "level")):
        if target.count != other.count:
            raise PatientDataError(
                f"The target has {target.count} dose samples and the {name} {other.count}.", where=target.name
            )
    half_cc, isodose_cc = (body.volume_at_dose_ratio([prescribed_gy / 2, prescribed_gy]) * body.volume_cc).T
    covered_cc = level.volume_at_dose_ratio(prescribed_gy)[:, 0] * level.volume_cc
    d2, d50, d98 = target.doses_at_volume_gy([0.02, 0.5, 0.98]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        conformity = np.where(isodose_cc > 0, covered_cc**2 / (level.volume_cc * isodose_cc), 0.0)
        homogeneity = np.where(d50 > 0, (d2 - d98) / d50, np.nan)
        gradient = np.where(isodose_cc > 0, half_cc / isodose_cc, np.nan)
    return PlanQuality(conformity, homogeneity, gradient)


def geud_gy(dose: StructureDose, a: float, of: Callable[[Tensor], Tensor] = lambda gy: gy) -> NDArray[np.float64]:
    """Generalised equivalent uniform dose (mean of d^a)^(1/a) of every sample: (samples,).

    Niemierko, Medical Physics 26, 1100 (1999). a = 1 is the mean, infinity the maximum; a negative a (targets) weighs
    what is cold, and any part without dose then makes it 0. ``of`` is applied to the doses first, such as EQD2; it must
    rise with the dose. Raises RTDigitalTwinError for a = 0 or NaN.
    """
    if a == 0 or np.isnan(a):
        raise RTDigitalTwinError(f"gEUD needs an exponent a other than 0, not {a}.", where=dose.name)
    highest_gy = of(torch.from_numpy(dose.max_gy())).numpy()
    if a == np.inf:
        return highest_gy
    reference = max(float(highest_gy.max()), 1e-9)  # keeps powers in range
    with np.errstate(divide="ignore"):
        average = dose.average(lambda gy: (of(gy) / reference) ** a)
        return np.where(np.isfinite(average), reference * average ** (1 / a), 0.0)


def integral_dose_gy_l(body: StructureDose) -> NDArray[np.float64]:
    """Integral dose in Gy times litres, of every sample: mean dose times volume. In water this is the energy in J."""
    return body.mean_gy() * body.volume_cc / 1000
