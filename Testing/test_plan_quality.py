"""Plan quality and fractionation, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.dosimetry.fractionation import bed_gy, eqd2_gy, eqd2_volume
from RTDigitalTwinLib.dosimetry.plan_quality import geud_gy, integral_dose_gy_l, plan_quality
from RTDigitalTwinLib.errors import GeometryError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.structure import Structure, joined
from RTDigitalTwinLib.patient.volume import Quantity, Volume


def doses(*samples: list[float], half_gy: float | None = None) -> StructureDose:
    """Voxels of 0.1 cc each."""
    gy = np.array(samples, np.float32)
    half = None if half_gy is None else np.full_like(gy, half_gy)
    return StructureDose(gy, np.ones(gy.shape[1], np.float32), 0.1, half, name="PTV")


def test_conformity_and_gradient_of_counted_voxels() -> None:
    """10 voxels of target, 9 with 70 Gy; 12 of the body have it, 30 half of it."""
    target = doses([70.0] * 9 + [60.0])
    body = doses([70.0] * 9 + [60.0] + [72.0] * 3 + [40.0] * 17 + [5.0] * 70)
    found = plan_quality(target, body, 70.0)
    assert found.conformity[0] == pytest.approx(9**2 / (10 * 12))
    assert found.gradient[0] == pytest.approx(30 / 12)


def test_conformity_of_a_lower_level_is_of_all_that_needs_its_dose() -> None:
    """5 voxels boosted to 70 Gy in a target of 10 more at 56 Gy, and 3 of the body besides have 56 Gy."""
    lower, boosted, spill = [56.0] * 9 + [50.0], [70.0] * 5, [56.0] * 3
    body = doses(lower + boosted + spill + [30.0] * 6 + [5.0] * 50)
    found = plan_quality(doses(lower), body, 56.0, doses(lower + boosted))
    assert found.conformity[0] == pytest.approx(14**2 / (15 * 17))
    assert found.homogeneity[0] == plan_quality(doses(lower), body, 56.0).homogeneity[0]  # of the target alone
    assert found.gradient[0] == pytest.approx(24 / 17)
    with pytest.raises(PatientDataError, match="1 dose samples and the level 2"):
        plan_quality(doses(lower), body, 56.0, doses(lower, lower))


def test_joined_counts_what_is_shared_once() -> None:
    grid = Grid((1, 1, 4), (1, 1, 1))
    one, two = (
        Structure.from_array(n, np.array([[o]]), grid) for n, o in (("A", [1, 1, 0.4, 0]), ("B", [0, 1, 0.6, 1]))
    )
    together = joined([one, two], "A")
    assert together.occupancy[0, 0] == pytest.approx([1, 1, 1, 1])
    assert together.volume_cc == pytest.approx(one.volume_cc + two.volume_cc - one.shared_cc(two))
    elsewhere = Structure.from_array("B", np.ones((1, 1, 4)), Grid((1, 1, 4), (2, 1, 1)))
    with pytest.raises(GeometryError):
        joined([one, elsewhere], "A")


def test_a_perfect_plan() -> None:
    target = doses([70.0] * 10)
    found = plan_quality(target, doses([70.0] * 10 + [0.0] * 90), 70.0)
    assert (found.conformity[0], found.homogeneity[0], found.gradient[0]) == (pytest.approx(1), 0, pytest.approx(1))


def test_no_dose_at_all() -> None:
    found = plan_quality(doses([0.0] * 5), doses([0.0] * 9), 70.0)
    assert found.conformity[0] == 0 and np.isnan(found.homogeneity[0]) and np.isnan(found.gradient[0])


def test_homogeneity_of_an_even_spread() -> None:
    """From 60 to 80 Gy evenly: D2 79.6, D98 60.4, D50 70."""
    spread = doses([70.0], half_gy=10.0)
    assert plan_quality(spread, spread, 70.0).homogeneity[0] == pytest.approx(19.2 / 70, abs=1e-5)


def test_every_sample_has_its_own() -> None:
    target = doses([70.0, 70.0], [70.0, 60.0])
    assert plan_quality(target, target, 65.0).conformity == pytest.approx([1.0, 0.5])
    with pytest.raises(PatientDataError, match="2 dose samples and the body 1"):
        plan_quality(target, doses([1.0]), 65.0)
    with pytest.raises(RTDigitalTwinError, match="PTV: The prescribed dose"):
        plan_quality(target, target, 0.0)


def test_geud() -> None:
    dose = doses([10.0, 30.0])
    assert geud_gy(dose, 1)[0] == pytest.approx(20)
    assert geud_gy(dose, 2)[0] == pytest.approx(np.sqrt(500))
    assert geud_gy(dose, -10)[0] == pytest.approx(((10.0**-10 + 30.0**-10) / 2) ** -0.1)
    assert geud_gy(dose, 300)[0] == pytest.approx(30, rel=0.003)
    assert geud_gy(doses([50.0] * 4), 1 / 0.06)[0] == pytest.approx(50)
    assert geud_gy(doses([0.0] * 4), 8)[0] == 0
    assert geud_gy(doses([0.0, 60.0]), -10)[0] == 0
    with pytest.raises(RTDigitalTwinError, match="other than 0"):
        geud_gy(dose, 0)


def test_geud_inside_the_voxels() -> None:
    """Evenly from 20 to 40 Gy, a = 4: ((40^5 - 20^5) / (5 * 20))^(1/4)."""
    assert geud_gy(doses([30.0], half_gy=10.0), 4)[0] == pytest.approx(((40**5 - 20**5) / 100) ** 0.25)


@pytest.mark.parametrize(("total_gy", "expected_gy"), [(63, 61.95), (56, 54.13), (70, 70)])
def test_eqd2_of_a_simultaneous_boost(total_gy: float, expected_gy: float) -> None:
    """In 35 fractions at alpha/beta 10 Gy."""
    assert eqd2_gy(float(total_gy), 35, 10) == pytest.approx(expected_gy, abs=0.005)


def test_bed() -> None:
    assert bed_gy(60.0, 30, 10) == pytest.approx(72)
    assert bed_gy(0.0, 30, 10) == 0
    assert eqd2_gy(np.array([20.0, 40.0]), 20, 3) == pytest.approx([16.0, 40.0])
    for fractions, alpha_beta_gy in ((0, 10), (30, 0), (30, -3)):
        with pytest.raises(RTDigitalTwinError, match="must be positive"):
            bed_gy(60.0, fractions, alpha_beta_gy)


def test_eqd2_of_a_volume_keeps_what_is_unknown() -> None:
    grid = Grid((1, 1, 3), (1, 1, 1))
    found = eqd2_volume(Volume(np.array([[[0, 40, np.nan]]]), grid, Quantity.DOSE_GY), 20, 3)
    assert found.quantity is Quantity.EQD2_GY
    assert found.values[0, 0, :2] == pytest.approx([0, 40]) and np.isnan(found.values[0, 0, 2])


def test_integral_dose() -> None:
    assert integral_dose_gy_l(doses([10.0] * 5 + [20.0] * 5))[0] == pytest.approx(15 * 0.001)
