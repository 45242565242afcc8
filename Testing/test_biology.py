"""TCP and NTCP against published and hand-worked values, limits, uncertainty, and parameter files that are wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.dosimetry.fractionation import eqd2_gy
from RTDigitalTwinLib.errors import PatientDataError, ProtocolError, RTDigitalTwinError
from RTDigitalTwinLib.model.biology import DoseResponse, Effect, Formula, load_biology, models_for
from RTDigitalTwinLib.resources import resource_path

MODELS = load_biology()


def model(structure: str) -> DoseResponse:
    (found,) = models_for(MODELS, structure)
    return found


def doses(*samples: list[float]) -> StructureDose:
    gy = np.array(samples, np.float32)
    return StructureDose(gy, np.ones(gy.shape[1], np.float32), 0.1, name="Parotid_L")


def uniform(gy: float, samples: int = 1) -> StructureDose:
    return doses(*[[gy] * 5] * samples)


@pytest.mark.parametrize(("mean_gy", "expected"), [(25, 0.175), (30, 0.268), (39.9, 0.5)])
def test_parotid(mean_gy: float, expected: float) -> None:
    assert model("Parotid_L").of(uniform(mean_gy), 35)[0] == pytest.approx(expected, abs=0.0005)
    spread = doses([0.0, 2 * mean_gy])
    assert model("Parotid_R").of(spread, 35)[0] == pytest.approx(expected, abs=0.0005)  # the mean alone counts


@pytest.mark.parametrize(("max_gy", "percent", "digits"), [(45, 0.03, 0.005), (50, 0.2, 0.05), (59.3, 5.0, 0.05)])
def test_spinal_cord(max_gy: float, percent: float, digits: float) -> None:
    """In 2 Gy fractions, where EQD2 is the dose."""
    cord = replace(model("SpinalCord"))
    assert 100 * cord.probability(max_gy) == pytest.approx(percent, abs=digits)
    hot = doses([5.0] * 9 + [60.0])
    assert cord.eud_gy(hot, 30)[0] == pytest.approx(60)
    assert cord.eud_gy(hot, 20)[0] == pytest.approx(eqd2_gy(60.0, 20, 0.87))


def test_larynx_counts_dose_in_2_gy_fractions() -> None:
    larynx = model("Larynx")
    assert larynx.eud_gy(uniform(35.0), 35)[0] == pytest.approx(35 * (1 + 3) / (2 + 3))
    assert larynx.of(uniform(47.3 * 1.0), 24)[0] == pytest.approx(larynx.probability(eqd2_gy(47.3, 24, 3.0)))


@pytest.mark.parametrize(
    ("structure", "n", "m", "d50_gy"),
    [("Brainstem", 0.16, 0.14, 65), ("Esophagus", 0.06, 0.11, 68), ("Bone_Mandible", 0.07, 0.10, 72)],
)
def test_organs_of_burman(structure: str, n: float, m: float, d50_gy: float) -> None:
    """LKB worked out by hand for half the organ at 60 Gy: EUD = 60 / 2^n."""
    eud_gy = 60 * 0.5**n
    expected = 0.5 * (1 + math.erf((eud_gy - d50_gy) / (m * d50_gy) / math.sqrt(2)))
    assert model(structure).of(doses([60.0, 0.0]), 30)[0] == pytest.approx(expected, rel=1e-6)


def response(formula: Formula, slope: float) -> DoseResponse:
    return DoseResponse(Effect.TCP, ("GTVp",), "control", formula, 60.0, slope, -0.1, None, "hand-made")


@pytest.mark.parametrize("formula", list(Formula))
def test_every_formula_is_one_half_at_d50_and_rises(formula: Formula) -> None:
    slope = {Formula.LKB: 0.15, Formula.LOG_LOGISTIC: 8.0}.get(formula, 2.0)
    found = response(formula, slope).probability(np.linspace(0, 150, 301))
    assert found[120] == pytest.approx(0.5)
    assert (np.diff(found) >= 0).all() and found[0] < 0.01 and found[-1] > 0.99


@pytest.mark.parametrize("formula", [Formula.LOGISTIC, Formula.POISSON])
def test_gamma50_is_the_rise_at_d50(formula: Formula) -> None:
    """gamma50 = D50 dP/dD; Poisson's formula has gamma50 e ln(2)/2 = 0.94 gamma50 there, its steepest being gamma."""
    step = 1e-4
    gamma = 60 * np.diff(response(formula, 2.0).probability([60 - step, 60 + step]))[0] / (2 * step)
    expected = 2.0 if formula is Formula.LOGISTIC else 2.0 * math.e * math.log(2) / 2
    assert gamma == pytest.approx(expected, rel=1e-3)


def test_logistic_of_eud_has_k_of_4_gamma50() -> None:
    assert response(Formula.LOG_LOGISTIC, 8.0).probability(66) == pytest.approx(1 / (1 + (60 / 66) ** 8))


def test_tumour_control_suffers_from_a_cold_spot() -> None:
    tcp = model("PTV_7000")
    assert tcp.effect is Effect.TCP
    even, cold = tcp.of(uniform(70.0), 35)[0], tcp.of(doses([70.0] * 9 + [40.0]), 35)[0]
    assert even == pytest.approx(2 ** -math.exp(math.e * 2.9 * (1 - 70 / 59.9)))
    assert cold < even - 0.1


def test_no_dose_does_nothing_and_controls_nothing() -> None:
    for structure in ("Parotid_L", "SpinalCord", "Larynx", "Brainstem", "PTV_7000"):
        assert model(structure).of(uniform(0.0), 35)[0] < 0.007  # LKB's own tail: Phi(-1 / m)


def test_a_single_voxel_is_a_uniform_dose() -> None:
    for found in MODELS:
        assert found.of(doses([50.0]), 25) == pytest.approx(found.of(uniform(50.0), 25))


def test_a_structure_without_dose_is_refused() -> None:
    empty = StructureDose(np.zeros((1, 0), np.float32), np.zeros(0, np.float32), 0.1, covered_ratio=0.0, name="Larynx")
    with pytest.raises(PatientDataError, match="Larynx: The dose covers 0.0 %"):
        model("Larynx").of(empty, 35)


def test_every_dose_sample_has_its_probability() -> None:
    found = model("Parotid_L").of(doses([25.0] * 4, [30.0] * 4), 35)
    assert found == pytest.approx([0.175, 0.268], abs=0.0005)


def test_parameters_bring_their_own_spread() -> None:
    """For the cord d50 alone varies: log-odds = k ln(EUD / d50) has a standard deviation of k sd / d50."""
    cord = model("SpinalCord")
    found = cord.drawn(uniform(60.0), 30, draws=2000, seed=3)
    odds = np.log(found / (1 - found))
    assert odds.std() == pytest.approx(18.7 * 1.58 / 69.4, rel=0.05)
    assert np.median(found) == pytest.approx(cord.of(uniform(60.0), 30)[0], rel=0.03)
    assert np.array_equal(found, cord.drawn(uniform(60.0), 30, draws=2000, seed=3))


def test_dose_and_parameters_vary_together() -> None:
    larynx = model("Larynx")
    both = larynx.drawn(doses([40.0] * 4, [50.0] * 4), 25, draws=400, seed=0)
    assert both[::2].mean() < both[1::2].mean()
    one = larynx.drawn(uniform(45.0), 25, draws=400, seed=0)
    assert both.std() > one.std() > 0


def test_without_published_spread_only_the_doses_vary() -> None:
    parotid = model("Parotid_L")
    assert parotid.drawn(doses([25.0], [30.0]), 35, 5) == pytest.approx(np.resize([0.175, 0.268], 5), abs=0.0005)
    with pytest.raises(RTDigitalTwinError, match="one draw"):
        parotid.drawn(uniform(25.0), 35, 0)


def test_every_entry_says_where_it_comes_from() -> None:
    assert all(found.citation and found.endpoint for found in MODELS)


def test_what_was_not_verified_is_said_with_the_source() -> None:
    """Parotid, cord and larynx were read in their papers' abstracts; the others were not."""
    assert [found.structures[0] for found in MODELS if not found.unverified] == ["Parotid_L", "SpinalCord", "Larynx"]
    tcp = model("PTV_7000")
    assert tcp.source.startswith(tcp.citation) and "Not verified: the primary report" in tcp.source
    assert model("Larynx").source == model("Larynx").citation


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('dose_unit = "Gy"', 'dose_unit = "cGy"', "dose_unit must be \"Gy\", not 'cGy'"),
        ('dose_unit = "Gy"', "", "dose_unit must be \"Gy\", not None"),
        ("d50_gy = 39.9", "d50_gy = 3990", "biology.toml, ntcp 1: d50_gy is 3990.*cGy"),
        ("d50_gy = 39.9", 'd50_gy = "high"', "ntcp 1: Cannot be understood"),
        ("d50_gy = 39.9\n", "", "ntcp 1: d50_gy is missing"),
        ("m = 0.40", "gamma50 = 0.40", "ntcp 1: Cannot be understood: unknown: gamma50; a lkb model"),
        ("m = 0.40", "m = -0.4", "m must be positive"),
        ("n = 1.0", "n = -1.0", "n is -1.0; organs need 0 or more"),
        ("n = 1.0", "n = nan", "n is nan"),
        ('formula = "log-logistic"', 'formula = "probit"', "ntcp 2: Cannot be understood: 'probit'"),
        ("sd = { d50_gy = 1.58 }", "sd = { n = 0.1 }", "sd of n has no meaning"),
        ("sd = { d50_gy = 1.58 }", "sd = { d50_gy = -1 }", "sd of d50_gy is -1"),
        ('structures = ["Larynx"]', "structures = []", r"ntcp 3: Cannot be understood: \[\] is no list of names"),
        ("[[ntcp]]", "[[ntcp", "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_files_say_what_is_wrong(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = resource_path("Protocols", "biology.toml").read_text(encoding="utf-8")
    assert old in text
    changed = tmp_path / "biology.toml"
    changed.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProtocolError, match=message):
        load_biology(changed)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="mine.toml: The file cannot be read"):
        load_biology(tmp_path / "mine.toml")
