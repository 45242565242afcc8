"""The Gaussian process beside dense linear algebra, and what it teaches of metrics and DVHs."""

from __future__ import annotations

from collections.abc import Sequence
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
from RTDigitalTwinLib.calibration.measuring import Wanted, asked, measure_scalars, measure_volume
from RTDigitalTwinLib.calibration.read_off import read_off
from RTDigitalTwinLib.calibration.readings import Reading, read_scalars, read_volumes, sampled_doses
from RTDigitalTwinLib.calibration.scalar_posterior import EVIDENCE_DEGREES, Mode, posterior
from RTDigitalTwinLib.calibration.treatment_change import Mover, changed_dose
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
NOISE, FINE = NoiseModel(0.02, 0.005), NoiseModel(0.004, 0.0005)
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


def dense_errors(drawn: DoseEnsemble, some: NDArray, std: NDArray, shares: tuple[float, ...]) -> NDArray:
    """Covariance of the network's errors in Gy^2: from 16 mm on as if the spread were at most 4 Gy."""
    is_far = np.array(LENGTHS_MM) >= 16
    far, near = (tuple(np.where(mask, shares, 0.0)) for mask in (is_far, ~is_far))
    far_std = std / np.sqrt(1 + (std / 4) ** 2)
    near_std = np.sqrt((std**2 - sum(far) * far_std**2) / sum(near))  # what makes up the whole variance
    return sum(
        (a[:, None] * dense_correlation(drawn, some, part) * a for a, part in ((far_std, far), (near_std, near))),
        np.zeros((len(some), len(some))),
    )


def test_the_posterior_is_that_of_dense_matrices(drawn: DoseEnsemble, observed: tuple[Observation, ...]) -> None:
    """Mean and variance at voxels in and beside what was observed, averaged over the hypotheses."""
    readings = read_scalars(observed, drawn.patient, drawn.crop)
    covariance = ErrorCovariance.of(drawn)
    errors = ScalarErrors.of(readings, sampled_doses(drawn), covariance)
    inside = np.flatnonzero(errors.slopes.any(axis=0))
    some = np.concatenate([inside, np.setdiff1d(np.arange(errors.slopes.shape[1]), inside)[::1500]])
    std, slopes = covariance.std[some].astype(float), errors.slopes[:, some].astype(float)
    network = dense_errors(drawn, some, std, covariance.shares)
    found = posterior(errors)
    means, variances, logs = [], [], []
    for hypothesis, mode in zip(HYPOTHESES, found.modes, strict=True):
        there, changes = mode.errors.dose_gy, mode.errors.covariance.changes.astype(float)
        # The dose is really moved: readings and changes about it.
        off = np.array([r.value - float(r.of(there[None])[0]) for r in readings])
        off += errors.off - np.array([r.value - float(r.of(errors.dose_gy[None])[0]) for r in readings])
        off += mode.errors.slopes.astype(float) @ changes.T @ mode.sizes
        moved = changes[:, some] * hypothesis.sizes[:, None]
        whole = network + moved.T @ moved
        total = slopes @ whole @ slopes.T + np.diag(np.square(errors.noise_std))
        gain = whole @ slopes.T @ np.linalg.inv(total)
        means.append(there[some] - mode.sizes @ changes[:, some] + gain @ off)
        variances.append(np.diag(whole - gain @ slopes @ whole))
        square = off @ np.linalg.inv(total) @ off
        tail = (EVIDENCE_DEGREES + len(off)) * np.log(1 + square / EVIDENCE_DEGREES)
        logs.append(np.log(hypothesis.probability) - 0.5 * (np.linalg.slogdet(total)[1] + tail))
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    assert found.weights == pytest.approx(weights, abs=1e-3)
    assert found.dose_gy[some] == pytest.approx(weights @ np.array(means), abs=2e-3)
    added = np.array(
        [max(w - h.probability, 0) / (1 - h.probability) for w, h in zip(weights, HYPOTHESES, strict=True)]
    )
    added[0] = 1 - added[1:].sum()
    between = weights @ np.square(np.array(means) - weights @ np.array(means))
    assert found.variance_gy2[some] == pytest.approx(added @ np.array(variances) + between, rel=5e-3, abs=1e-4)


def moved_truth(
    drawn: DoseEnsemble, covariance: ErrorCovariance, sizes: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The plan's dose, and the same after a change of treatment: (mask voxels,) each."""
    plan = delivered_dose(drawn.patient, Change()).values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
    return plan, Mover(plan, covariance).moved(np.array(sizes))


def read_of(drawn: DoseEnsemble, dose_gy: NDArray[np.float32], wanted: Sequence[Wanted]) -> list[Reading]:
    """Readings that a dose of the course gives, without any error, known to 0.2 Gy."""
    readings = read_scalars(asked(wanted, FIRST, NOISE), drawn.patient, drawn.crop)
    return [replace(r, value=float(r.of(dose_gy[None])[0]), std=0.2) for r in readings]


def test_metrics_tell_of_a_shift_and_what_it_does_to_others(drawn: DoseEnsemble) -> None:
    """From means and points of a dose 6 mm off: D99 of the target, which falls steeply, is found as it really is."""
    box = ErrorCovariance.of(drawn).box
    sure = replace(ErrorCovariance.of(drawn), std=np.full(len(box.places), 0.5, np.float32))
    plan, truth = moved_truth(drawn, sure, (1.2, 0.0, 0.9, 0.0))
    wanted: list[Wanted] = [(name, "mean") for name in drawn.patient.structures]
    inside = np.argwhere(drawn.patient.structures["PTV_7000"].mask)
    for place in (inside.min(axis=0), inside.max(axis=0)):
        x, y, z = (float(v) for v in drawn.crop.grid.to_lps_mm(place))
        wanted.append((x, y, z))
    found = posterior(ScalarErrors.of(read_of(drawn, truth, wanted), plan[None], sure))
    shifted = found.modes[1]
    assert HYPOTHESES[1].shifted and found.weights[1] + found.weights[3] > 0.95
    assert shifted.sizes == pytest.approx([1.2, 0.0, 0.9, 0.0], abs=0.15)
    (d99,) = read_of(drawn, truth, [("PTV_7000", "D99")])
    then, now = (float(d99.of(dose[None].astype(np.float32))[0]) for dose in (plan, found.dose_gy))
    slopes = Mover(plan, sure).changes(plan, np.zeros(4))
    first_order = float(d99.of((plan + 1.2 * slopes[0] + 0.9 * slopes[2])[None])[0])
    assert then - d99.value > 5 and abs(first_order - d99.value) > 1  # it matters, and slopes do not tell
    assert abs(now - d99.value) < 0.1 * (then - d99.value)
    # What is left of errors moves the dose really as well, about what was found.
    errors = sure.drawn(8, np.random.default_rng(0))
    left = found.left_of(errors, np.random.default_rng(0))
    others = np.array([float(d99.of((found.dose_gy + e)[None].astype(np.float32))[0]) for e in left])
    assert np.abs(others - d99.value).max() < 0.5 * (then - d99.value)


def test_a_mode_is_a_maximum(drawn: DoseEnsemble, observed: tuple[Observation, ...]) -> None:
    """No shift and output a little aside explains the readings better, by the misfit with the dose really moved."""
    readings = read_scalars(observed, drawn.patient, drawn.crop)
    errors = ScalarErrors.of(readings, sampled_doses(drawn), ErrorCovariance.of(drawn))
    mover = Mover(errors.dose_gy, errors.covariance)
    both = HYPOTHESES[3]
    mode = Mode.of(errors, mover, both)

    def unlikely(sizes: NDArray) -> float:
        off = errors.off_at(mover.moved(sizes))
        return float(off @ np.linalg.solve(errors.as_planned, off) + sizes @ sizes)

    least = unlikely(mode.sizes)
    assert least < unlikely(np.zeros(4))
    for change in np.concatenate([np.eye(4), -np.eye(4)]):
        assert unlikely(mode.sizes + 0.2 * change) > least


def test_doses_are_read_off_exactly_and_without_blur() -> None:
    """Whole voxels exactly; parabolas too, away from the edges (Keys 1981); slopes are those of central differences."""
    rng = np.random.default_rng(0)
    values = rng.random((6, 7, 8)).astype(np.float32)
    assert read_off(values, np.array([1.0, 0.0, -2.0]))[:-1, :, 2:] == pytest.approx(values[1:, :, :-2])
    assert not read_off(values, np.array([0.0, 9.0, 0.0])).any()
    z, y, x = np.indices((9, 9, 9)).astype(float)
    parabola = (x**2 + x * y + 2 * z + 3).astype(np.float32)
    moved = read_off(parabola, np.array([0.25, -0.5, 0.75]))
    true = (x + 0.75) ** 2 + (x + 0.75) * (y - 0.5) + 2 * (z + 0.25) + 3
    assert moved[2:-3, 2:-3, 2:-3] == pytest.approx(true[2:-3, 2:-3, 2:-3], rel=1e-5)
    slope = (read_off(values, np.array([0.0, 1e-3, 0.0])) - values) / 1e-3
    assert slope[:, 1:-1] == pytest.approx(np.gradient(values, axis=1)[:, 1:-1], abs=5e-3)


def test_drawn_fields_have_the_mixtures_covariance(drawn: DoseEnsemble) -> None:
    box, shares = MaskBox(drawn.crop), (0.1, 0.4, 0.3, 0.1, 0.1)
    fields = box.drawn(shares, 600, np.random.default_rng(0))
    some = np.arange(0, fields.shape[1], 1201)
    near = np.concatenate([some, some + 1, some + 3])
    found = fields[:, near].T @ fields[:, near] / len(fields)
    # A product of normal values has a standard deviation of at most sqrt(2).
    assert np.abs(found - dense_correlation(drawn, near, shares)).max() < 5 * np.sqrt(2 / len(fields))


def test_errors_are_drawn_from_their_covariance(drawn: DoseEnsemble) -> None:
    covariance = ErrorCovariance.of(drawn)
    covariance = replace(covariance, std=np.linspace(0.5, 12, covariance.std.size, dtype=np.float32))
    errors = covariance.drawn(600, np.random.default_rng(0))
    some = np.arange(0, errors.shape[1], 1201)
    near = np.concatenate([some, some + 1, some + 3])
    std = covariance.std[near].astype(float)
    expected = dense_errors(drawn, near, std, covariance.shares)
    found = errors[:, near].T @ errors[:, near] / len(errors)
    scale = std[:, None] * std
    assert np.abs((found - expected) / scale).max() < 5 * np.sqrt(2 / len(errors))
    assert np.diag(expected) == pytest.approx(std**2, rel=1e-9)
    fields = np.eye(errors.shape[1], dtype=np.float32)[near[:3]]
    assert covariance.of_network(fields)[:, near] == pytest.approx(expected[:3], rel=1e-3, abs=1e-3)


def test_a_mean_is_as_surely_known_as_its_posterior_says(drawn: DoseEnsemble, belief: DoseBelief) -> None:
    """The band of an observed mean, from the posterior of a linear value: 1 / (1 / b + 1 / V - 1 / S)."""
    wanted: list[Wanted] = [(name, "mean") for name in SEEN]
    truth = delivered_dose(drawn.patient, Change())
    observed = measure_scalars(drawn.patient, truth, wanted, FIRST, FINE, Change(), 1)
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


def test_a_volume_is_known_better_where_bands_are_not_calibrated(drawn: DoseEnsemble, belief: DoseBelief) -> None:
    """The spread of its samples is what observing leaves, as that of a dose at a volume."""
    observed = measure_scalars(
        drawn.patient, delivered_dose(drawn.patient, Change()), [("Parotid_L", "mean")], FIRST, FINE, Change(), 1
    )
    now = GaussianProcess(paths=100).absorb(gather(belief, observed, drawn)).applied(drawn)
    for bands in (None, replace(hand_made_calibration(samples=16), curves={})):
        later = replace(now, calibration=bands)
        plain = replace(later, narrowing=None)
        for metric in ("V15", "V15[cc]", "D50"):
            of_samples, known = (one.metric("Parotid_L", metric) for one in (plain, later))
            assert 0 < float(known.std) < 0.9 * float(of_samples.std), metric


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
        found, told = changed_dose(read_volumes([volume], drawn.patient, drawn.crop), mean, covariance)
        assert (told.shift_probability > 0.9) == any(change.shift_mm)
        if any(change.shift_mm):
            assert told.shift_mm == pytest.approx(change.shift_mm, abs=0.7)
        if change.output_error_ratio:
            assert told.output_probability > 0.9
            assert told.output_ratio == pytest.approx(change.output_error_ratio, abs=0.01)
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
    assert again.change == whole.change and again.change is not None
    assert not again.same_as(replace(whole, change=None))
    one, two = (b.applied(drawn).metric("Parotid_L", "D0.1cc").band(0.95) for b in (whole, again))
    assert one == two
    assert not again.same_as(replace(whole, paths=None))
