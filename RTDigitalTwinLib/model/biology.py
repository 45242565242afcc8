"""Tumour control and normal tissue complication: dose-response models whose parameters are data.

They rank plans and actions. They are no calibrated outcome probabilities of a patient (AAPM TG-166).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.dosimetry.fractionation import eqd2_gy
from RTDigitalTwinLib.dosimetry.plan_quality import geud_gy
from RTDigitalTwinLib.dosimetry.protocol_file import (
    HIGHEST_DOSE_GY,
    names_of,
    read_protocol,
    reading,
    require_known,
    text_of,
)
from RTDigitalTwinLib.errors import ProtocolError, RTDigitalTwinError
from RTDigitalTwinLib.resources import resource_path

NOTICE = (
    "TCP and NTCP rank plans and actions. They are not calibrated outcome probabilities of this patient (AAPM TG-166)."
)
SMALLEST_PARAMETER = 1e-3
_REDRAWS = 1000


class Formula(Enum):
    """How probability follows from the equivalent uniform dose."""

    LKB = "lkb"
    LOGISTIC = "logistic"
    LOG_LOGISTIC = "log-logistic"
    POISSON = "poisson"


_SLOPES = {Formula.LKB: "m", Formula.LOGISTIC: "gamma50", Formula.LOG_LOGISTIC: "k", Formula.POISSON: "gamma50"}


class Effect(Enum):
    """What is responded with."""

    NTCP = "NTCP"
    TCP = "TCP"


@dataclass(frozen=True)
class DoseResponse:
    """One model of one endpoint.

    Attributes
    ----------
    effect : complication of an organ, or control of a tumour.
    structures : names it is for.
    d50_gy : uniform dose with a probability of one half.
    slope : m of LKB, k of log-logistic, gamma50 (the rise at d50 for a relative change of dose) of the others.
    n : volume exponent; EUD = (mean of d^(1/n))^n, the maximum where 0.
    alpha_beta_gy : dose is turned to EQD2 with it; None where the model is in physical dose.
    citation : where the parameters come from.
    sd : published standard deviations by parameter (d50_gy, slope, n).
    unverified : what of it could not be checked in a source; "" where all of it was.
    """

    effect: Effect
    structures: tuple[str, ...]
    endpoint: str
    formula: Formula
    d50_gy: float
    slope: float
    n: float
    alpha_beta_gy: float | None
    citation: str
    sd: Mapping[str, float] = field(default_factory=dict)
    unverified: str = ""

    @property
    def source(self) -> str:
        """The citation, with what of it is not verified."""
        return f"{self.citation}. Not verified: {self.unverified}" if self.unverified else self.citation

    def probability(self, eud_gy: ArrayLike) -> NDArray[np.float64]:
        """At equivalent uniform doses in Gy, of any shape; 0 at no dose but for what the formula's own tail gives.

        Lyman, Radiation Research 104, S13 (1985); Kutcher and Burman, Int J Radiat Oncol Biol Phys 16, 1623 (1989);
        Niemierko, Physica Medica 23, 115 (2007); Bentzen and Tucker, Int J Radiat Biol 71, 531 (1997).
        """
        dose = np.asarray(eud_gy, dtype=float)
        relative = dose / self.d50_gy
        with np.errstate(divide="ignore", over="ignore"):
            if self.formula is Formula.LKB:
                return torch.special.ndtr(torch.as_tensor((relative - 1) / self.slope)).numpy()
            if self.formula is Formula.LOGISTIC:
                return 1 / (1 + np.exp(4 * self.slope * (1 - relative)))
            if self.formula is Formula.LOG_LOGISTIC:
                return 1 / (1 + relative**-self.slope)
            return 2.0 ** -np.exp(math.e * self.slope * (1 - relative))

    def eud_gy(self, dose: StructureDose, fractions: int) -> NDArray[np.float64]:
        """Equivalent uniform dose of every sample (samples,): in EQD2 where the model has an alpha/beta."""
        a = np.inf if self.n == 0 else 1 / self.n
        if self.alpha_beta_gy is None:
            return geud_gy(dose, a)
        ratio = self.alpha_beta_gy
        return geud_gy(dose, a, of=lambda gy: eqd2_gy(gy, fractions, ratio))

    def of(self, dose: StructureDose, fractions: int) -> NDArray[np.float64]:
        """Probability for every sample (samples,), with the parameters as published.

        Raises PatientDataError where the dose covers too little of the structure.
        """
        return self.probability(self.eud_gy(dose, fractions))

    def drawn(
        self, dose: StructureDose, fractions: int, draws: int, seed: int = 0, shift_gy: NDArray | None = None
    ) -> NDArray[np.float64]:
        """Probabilities (draws,) with parameters drawn anew each time, the dose samples taken in turn.

        Parameters are normal with their published standard deviations, independent of each other, and positive where
        they must be. Without published ones only the doses vary. ``shift_gy`` (samples,) is added to the equivalent
        uniform dose of each sample: what a calibration of their spread moves it by.
        Raises RTDigitalTwinError for no draws.
        """
        if draws < 1:
            raise RTDigitalTwinError(f"At least one draw is needed, not {draws}.", where=self.endpoint)
        rng = np.random.default_rng(seed)
        eud_gy, shift = self.eud_gy(dose, fractions), np.zeros(dose.count) if shift_gy is None else shift_gy
        if not self.sd:
            return np.resize(self.probability(np.maximum(eud_gy + shift, 0)), draws)
        found = np.empty(draws)
        for k in range(draws):
            row = k % dose.count
            varied = self._varied(rng)
            gy = varied.eud_gy(dose.sample(row), fractions)[0] if "n" in self.sd else eud_gy[row]
            found[k] = varied.probability(max(gy + shift[row], 0.0))
        return found

    def _varied(self, rng: np.random.Generator) -> DoseResponse:
        for _ in range(_REDRAWS):
            changed = {name: rng.normal(getattr(self, name), sd) for name, sd in self.sd.items()}
            if all(math.copysign(1, getattr(self, k)) * v > SMALLEST_PARAMETER for k, v in changed.items()):
                return replace(self, **changed)
        raise RTDigitalTwinError("The parameters' standard deviations leave no valid values.", where=self.endpoint)


def load_biology(path: Path | None = None) -> tuple[DoseResponse, ...]:
    """Models of a file; by default of the one that comes with the software.

    Raises ProtocolError that names the file and the entry where something is missing, of another unit or impossible.
    """
    path = path or resource_path("Protocols", "biology.toml")
    content = read_protocol(path)
    models = []
    for effect in Effect:
        entries = content.get(effect.value.lower(), [])
        if not isinstance(entries, list):
            raise ProtocolError(f"Write every entry under [[{effect.value.lower()}]].", where=path.name)
        for number, entry in enumerate(entries, start=1):
            models.append(_read(effect, entry, f"{path.name}, {effect.value.lower()} {number}"))
    return tuple(models)


def models_for(models: tuple[DoseResponse, ...], structure: str) -> list[DoseResponse]:
    """Those made for a structure, by its name."""
    return [model for model in models if structure in model.structures]


def applicable(
    models: Iterable[DoseResponse], names: Iterable[str], fractions: int | None
) -> tuple[list[tuple[str, DoseResponse]], list[str]]:
    """The models of each structure, and what is said of those that need a number of fractions that is not known."""
    chosen = tuple(models)
    pairs, notes = [], []
    for name in names:
        for model in models_for(chosen, name):
            if fractions is None and model.alpha_beta_gy is not None:
                notes.append(f"{name}: {model.endpoint} needs the number of fractions, which no plan says.")
            else:
                pairs.append((name, model))
    return pairs, notes


def _read(effect: Effect, entry: Mapping[str, Any], where: str) -> DoseResponse:
    with reading(where):
        formula = Formula(entry["formula"])
        slope = _SLOPES[formula]
        known = {
            "structures",
            "endpoint",
            "formula",
            "d50_gy",
            "n",
            "alpha_beta_gy",
            "citation",
            "sd",
            "unverified",
            slope,
        }
        require_known(entry, known, f"; a {formula.value} model has d50_gy, {slope} and n")
        sd = {{slope: "slope"}.get(name, name): float(value) for name, value in entry.get("sd", {}).items()}
        ratio = entry.get("alpha_beta_gy")
        model = DoseResponse(
            effect,
            names_of(entry["structures"]),
            text_of(entry["endpoint"]),
            formula,
            float(entry["d50_gy"]),
            float(entry[slope]),
            float(entry["n"]),
            None if ratio is None else float(ratio),
            text_of(entry["citation"]),
            sd,
            text_of(entry["unverified"]) if "unverified" in entry else "",
        )
    _require_possible(model, where)
    return model


def _require_possible(model: DoseResponse, where: str) -> None:
    if not 0 < model.d50_gy <= HIGHEST_DOSE_GY:
        raise ProtocolError(
            f"d50_gy is {model.d50_gy:g}, which is no dose in Gy.", where=where, remedy="Is it in cGy? Divide by 100."
        )
    positive = {_SLOPES[model.formula]: model.slope}
    if model.alpha_beta_gy is not None:
        positive["alpha_beta_gy"] = model.alpha_beta_gy
    for name, value in positive.items():
        if not (value > 0 and math.isfinite(value)):
            raise ProtocolError(f"{name} must be positive, not {value}.", where=where)
    if not math.isfinite(model.n) or (model.effect is Effect.NTCP and model.n < 0):
        raise ProtocolError(f"n is {model.n}; organs need 0 or more.", where=where)
    for name, value in model.sd.items():
        if name not in ("d50_gy", "slope", "n") or not (value > 0 and math.isfinite(value)):
            raise ProtocolError(f"sd of {name} is {value}; it must be positive, and of a parameter.", where=where)
        if name == "n" and model.n == 0:
            raise ProtocolError("sd of n has no meaning where n is 0 (the maximum).", where=where)
