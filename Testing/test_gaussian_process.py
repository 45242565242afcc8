"""The Gaussian process beside dense linear algebra, and what it teaches of metrics and DVHs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.belief import load_belief, save_belief
from RTDigitalTwinLib.calibration.calibrator import gather
from RTDigitalTwinLib.calibration.covariance import HYPOTHESES, ErrorCovariance, ScalarErrors
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.calibration.measuring import Wanted, measure_scalars, measure_volume
from RTDigitalTwinLib.calibration.readings import read_scalars, read_volumes, sampled_doses
from RTDigitalTwinLib.calibration.scalar_posterior import posterior
from RTDigitalTwinLib.calibration.treatment_change import changed_dose
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.network_patient import network_patient
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.observation import Moment, NoiseModel, Observation
from RTDigitalTwinLib.solver.bands import BandScale
from RTDigitalTwinLib.solver.correlation import LENGTHS_MM, MaskBox
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.solver.narrowing import MISFIT_RATIO, spread_ratio
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

FIRST = Moment(0.0, 1)
NOISE = NoiseModel(0.02, 0.005)
SEEN = ("Parotid_L", "Parotid_R", "SpinalCord")


@pytest.fixture(scope="module")
def drawn() -> DoseEnsemble:
    return replace(hand_made_ensemble(small_patient(), 16), calibration=hand_made_calibration(samples=16))


@pytest.fixture(scope="module")
def belief(drawn: DoseEnsemble) -> DoseBelief:
    network = DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32))).eval()
    surrogate = DoseSurrogate(network, torch.device("cpu"), "0" * 64)
    return DoseBelief(surrogate, network_patient(drawn.patient), drawn.calibration)


@pytest.fixture(scope="module")
def observed(drawn: DoseEnsemble) -> tuple[Observation, ...]:
    wanted: list[Wanted] = [(name, "mean") for name in SEEN]
    truth = delivered_dose(drawn.patient, Change(output_error_ratio=0.05))
    return measure_scalars(drawn.patient, truth, wanted, FIRST, NOISE, Change(), 1)


def dense_correlation(drawn: DoseEnsemble, some: NDArray, shares: tuple[float, ...]) -> NDArray:
    """Of a few of the mask's voxels, from their positions."""
    crop = drawn.crop
    index = np.stack(np.unravel_index(crop.mask_indices[some], crop.grid.shape), axis=-1)
    positions = crop.grid.to_lps_mm(index)
    square = np.square(positions[:, None] - positions).sum(axis=-1)
    return sum(
        (share * np.exp(-square / (2 * length**2)) for share, length in zip(shares, LENGTHS_MM, strict=True)),
        np.zeros(square.shape),
    )


def test_the_posterior_is_that_of_dense_matrices(drawn: DoseEnsemble, observed: tuple[Observation, ...]) -> None:
    """Mean and variance at voxels in and beside what was observed, averaged over the hypotheses."""
    readings = read_scalars(observed, drawn.patient, drawn.crop)
    covariance = ErrorCovariance.of(drawn)
    errors = ScalarErrors.of(readings, sampled_doses(drawn), covariance)
    inside = np.flatnonzero(errors.slopes.any(axis=0))
    some = np.concatenate([inside, np.setdiff1d(np.arange(errors.slopes.shape[1]), inside)[::1500]])
    std, slopes = covariance.std[some].astype(float), errors.slopes[:, some].astype(float)
    network = std[:, None] * dense_correlation(drawn, some, covariance.shares) * std
    means, variances, logs = [], [], []
    for hypothesis in HYPOTHESES:
        moved = covariance.changes[:, some].astype(float) * hypothesis.sizes[:, None]
        whole = network + moved.T @ moved
        total = slopes @ whole @ slopes.T + np.diag(np.square(errors.noise_std))
        gain = whole @ slopes.T @ np.linalg.inv(total)
        means.append(gain @ errors.off)
        variances.append(np.diag(whole - gain @ slopes @ whole))
        evidence = -0.5 * (np.linalg.slogdet(total)[1] + errors.off @ np.linalg.inv(total) @ errors.off)
        logs.append(np.log(hypothesis.probability) + 0.5 * evidence)
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    found = posterior(errors)
    assert found.weights == pytest.approx(weights, abs=1e-3)
    assert found.shift_gy[some] == pytest.approx(weights @ np.array(means), abs=2e-3)
    added = np.array(
        [max(w - h.probability, 0) / (1 - h.probability) for w, h in zip(weights, HYPOTHESES, strict=True)]
    )
    added[0] = 1 - added[1:].sum()
    between = weights @ np.square(np.array(means) - weights @ np.array(means))
    assert found.variance_gy2[some] == pytest.approx(added @ np.array(variances) + between, rel=5e-3, abs=1e-4)


def test_drawn_fields_have_the_mixtures_covariance(drawn: DoseEnsemble) -> None:
    box, shares = MaskBox(drawn.crop), (0.1, 0.4, 0.3, 0.1, 0.1)
    fields = box.drawn(shares, 600, np.random.default_rng(0))
    some = np.arange(0, fields.shape[1], 1201)
    near = np.concatenate([some, some + 1, some + 3])
    found = fields[:, near].T @ fields[:, near] / len(fields)
    # A product of normal values has a standard deviation of at most sqrt(2).
    assert np.abs(found - dense_correlation(drawn, near, shares)).max() < 5 * np.sqrt(2 / len(fields))


def test_a_mean_is_as_surely_known_as_its_posterior_says(drawn: DoseEnsemble, belief: DoseBelief) -> None:
    """The band of an observed mean, from the posterior of a linear value: 1 / (1 / b + 1 / V - 1 / S)."""
    fine = NoiseModel(0.004, 0.0005)
    wanted: list[Wanted] = [(name, "mean") for name in SEEN]
    truth = delivered_dose(drawn.patient, Change())
    observed = measure_scalars(drawn.patient, truth, wanted, FIRST, fine, Change(), 1)
    after = GaussianProcess(paths=400).absorb(gather(belief, observed, drawn))
    now = after.applied(drawn)
    errors = ScalarErrors.of(
        read_scalars(observed, drawn.patient, drawn.crop), sampled_doses(drawn), ErrorCovariance.of(drawn)
    )
    before = errors.total(HYPOTHESES[0]) - np.diag(np.square(errors.noise_std))
    left = before - before @ np.linalg.solve(errors.total(HYPOTHESES[0]), before)
    for k, name in enumerate(SEEN[:2]):  # the third has doses near 0, which are cut there
        then, known = drawn.metric(name, "mean"), now.metric(name, "mean")
        half_then, half_now = ((high - low) / 2 for low, high in (then.band(0.95), known.band(0.95)))
        information = 1 / (MISFIT_RATIO**2 * left[k, k]) - 1 / before[k, k]
        expected = 1.96 / np.sqrt(1 / (half_then / 1.96) ** 2 + information)
        assert half_now < 0.6 * half_then
        # 400 draws: 4 % of a standard deviation; what a change of treatment adds is small in an observed mean.
        assert half_now == pytest.approx(expected, rel=0.2)
        assert float(known.mean) == pytest.approx(float(now.structure_dose(name).mean_gy().mean()), abs=1e-6)
    curve_then, curve_now = drawn.dvh("Parotid_L").dose_at_volume, now.dvh("Parotid_L").dose_at_volume
    widths = [np.mean(np.subtract(*c.band(0.95)[::-1])) for c in (curve_then, curve_now)]
    assert widths[1] < 0.9 * widths[0]
    samples = now.metric("Parotid_L", "mean").calibrated_samples()
    assert np.quantile(samples, [0.025, 0.975]) == pytest.approx(now.metric("Parotid_L", "mean").band(0.95), abs=0.5)


def test_what_observing_teaches_by_hand() -> None:
    """b 4, S 4 and V 1 / 1.25^2: information 1 / 4 + 1 - 1 / 4; nothing learned, nothing changed; more is added."""
    four = np.array([4.0])
    assert spread_ratio(four, four, np.array([1 / MISFIT_RATIO**2])) == pytest.approx(np.sqrt(1 / 4))
    assert spread_ratio(four, four, four) == pytest.approx(1.0)
    assert spread_ratio(four, np.array([1.0]), np.array([5.0])) == pytest.approx(np.sqrt(2.0))
    scale = BandScale((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 0.25)
    assert scale.std_factor == pytest.approx(5 / 1.95996, rel=1e-5)


def test_a_volume_tells_of_shift_and_output(drawn: DoseEnsemble) -> None:
    """Half a voxel to the left, a whole one to the head, and 5 % more: found to a quarter of what they change."""
    covariance = ErrorCovariance.of(drawn)
    plan = delivered_dose(drawn.patient, Change())
    mean = plan.values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
    for change in (Change(shift_mm=(2.0, 0.0, 5.0)), Change(output_error_ratio=0.05), Change()):
        truth = delivered_dose(drawn.patient, change)
        volume = measure_volume(drawn.patient, truth, FIRST, NOISE, change, 1, 3.0)
        found = changed_dose(read_volumes([volume], drawn.patient, drawn.crop), mean, covariance)
        inside = drawn.patient.structures["PTV_7000"].mask.reshape(-1)[drawn.crop.mask_indices]
        true = truth.values.reshape(-1)[drawn.crop.mask_indices]
        left, moved = np.abs(found - true)[inside].mean(), np.abs(mean - true)[inside].mean()
        assert left < max(0.25 * moved, 0.2)


def test_gp_beliefs_are_saved_loaded_and_do_not_depend_on_order(
    drawn: DoseEnsemble, belief: DoseBelief, observed: tuple[Observation, ...], tmp_path: Path
) -> None:
    truth = delivered_dose(drawn.patient, Change(output_error_ratio=0.05))
    volume = measure_volume(drawn.patient, truth, Moment(1.0, 2), NOISE, Change(), 2, 3.0)
    gp = GaussianProcess(paths=8)
    whole = gp.absorb(gather(belief, [*observed, volume], drawn))
    late = gp.absorb(gather(gp.absorb(gather(belief, [volume], drawn)), observed, drawn))
    assert late.same_as(whole)
    save_belief(whole, tmp_path / "gp.npz")
    again = load_belief(tmp_path / "gp.npz", belief)
    assert again.same_as(whole) and again.paths is not None
    one, two = (b.applied(drawn).metric("Parotid_L", "D0.1cc").band(0.95) for b in (whole, again))
    assert one == two
    assert not again.same_as(replace(whole, paths=None))
