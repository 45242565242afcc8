"""Sampling: exact reuse of the encoder, seeds, spread, and other states than dose."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import Cancelled, RTDigitalTwinError
from RTDigitalTwinLib.model.decoding import CpuDecoder
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseState
from RTDigitalTwinLib.solver.ensemble import Ensemble
from RTDigitalTwinLib.solver.forecast import forecast
from RTDigitalTwinLib.solver.sampling import STRATIFIED_TOGETHER, sample_dose
from RTDigitalTwinLib.twin import Twin

SAMPLES = 5


@pytest.fixture(scope="module")
def surrogate() -> DoseSurrogate:
    """A narrow untrained network: the arithmetic of sampling does not depend on width or training."""
    torch.manual_seed(1)
    network = DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32)))
    return DoseSurrogate(network.eval(), torch.device("cpu"))


@pytest.fixture(scope="module")
def ensemble(surrogate: DoseSurrogate, sample: Patient) -> DoseEnsemble:
    return sample_dose(surrogate, sample, SAMPLES, seed=7)


def test_one_encoding_equals_whole_network_passes(sample: Patient) -> None:
    """The weights that come with the software: the same crop, the same dropout, the whole network once a sample."""
    shipped = DoseSurrogate.load(device="cpu")
    ours = sample_dose(shipped, sample, SAMPLES, seed=7)
    factors = shipped.network.draw_factors(SAMPLES, torch.Generator().manual_seed(7), STRATIFIED_TOGETHER)
    channels = torch.from_numpy(shipped.features(sample).channels)[None]
    mask = torch.from_numpy(ours.crop.mask)
    with torch.inference_mode():
        baseline = shipped.encode(shipped.features(sample)).baseline  # of coarse networks too: all samples share it
        passes = [
            shipped.network.decode(
                replace(shipped.network.encode(channels), baseline=baseline), [f[k : k + 1] for f in factors]
            )[0, mask]
            for k in range(SAMPLES)
        ]
    whole = torch.stack(passes).numpy()
    indices = ours.crop.mask_indices
    assert np.abs(ours.mean.values.reshape(-1)[indices] - whole.mean(axis=0)).max() < 0.01
    assert np.abs(ours.std.values.reshape(-1)[indices] - whole.std(axis=0, ddof=1)).max() < 0.01
    assert whole.std(axis=0).max() > 0.5  # there was something to agree on


def test_same_seed_same_samples_other_seed_others(
    surrogate: DoseSurrogate, sample: Patient, ensemble: DoseEnsemble
) -> None:
    again = sample_dose(surrogate, sample, SAMPLES, seed=7)
    assert np.array_equal(again.deviations_gy, ensemble.deviations_gy)
    other = sample_dose(surrogate, sample, SAMPLES, seed=8)
    assert not np.array_equal(other.deviations_gy, ensemble.deviations_gy)


def test_a_second_prediction_decodes_its_samples_alone(
    surrogate: DoseSurrogate, sample: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sample_dose(surrogate, sample, 4, seed=1)
    decoded: list[int] = []
    doses_gy = CpuDecoder.doses_gy

    def counted(self: CpuDecoder, factors: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        decoded.append(0 if factors is None else len(factors[0]))
        return doses_gy(self, factors)

    monkeypatch.setattr(CpuDecoder, "doses_gy", counted)
    monkeypatch.setattr(DoseSurrogate, "encode", None)  # nothing is encoded again
    second = sample_dose(surrogate, sample, 4, seed=2)
    assert decoded == [4]
    assert np.array_equal(first.deterministic_gy, second.deterministic_gy)
    second.deterministic_gy[:] = 0  # a prediction's own
    assert np.array_equal(sample_dose(surrogate, sample, 0).deterministic_gy, first.deterministic_gy)
    brighter = copy.deepcopy(surrogate.network)
    with torch.no_grad():
        brighter.last.bias += 1.0
    other = surrogate.with_network(brighter, "brighter").deterministic_gy(sample)
    assert other.mean() > first.deterministic_gy.mean()  # another decoder has a dose of its own, from the same encoding


def test_fewer_samples_are_the_first_of_more(surrogate: DoseSurrogate) -> None:
    for block in (1, STRATIFIED_TOGETHER):
        few = surrogate.network.draw_factors(3, torch.Generator().manual_seed(7), block)
        many = surrogate.network.draw_factors(40, torch.Generator().manual_seed(7), block)
        assert all(torch.equal(a, b[:3]) for a, b in zip(few, many, strict=True))


def test_dose_is_finite_not_negative_and_zero_outside_the_mask(ensemble: DoseEnsemble, sample: Patient) -> None:
    mean = ensemble.mean.values
    assert np.isfinite(mean).all() and mean.min() >= 0 and mean.max() > 0
    assert not mean[~sample.dose_mask.mask].any()
    assert not ensemble.std.values[~sample.dose_mask.mask].any()


def test_samples_take_two_bytes_a_voxel(ensemble: DoseEnsemble, sample: Patient) -> None:
    assert ensemble.deviations_gy.dtype == np.float16
    assert ensemble.deviations_gy.nbytes == 2 * SAMPLES * sample.dose_mask.mask.sum()


def test_quantiles_are_those_of_the_samples(ensemble: DoseEnsemble) -> None:
    samples = np.stack([ensemble.sample_gy(k) for k in range(SAMPLES)])
    low, high = ensemble.band(0.5)
    indices = ensemble.crop.mask_indices
    assert low.values.reshape(-1)[indices] == pytest.approx(np.quantile(samples, 0.25, axis=0), abs=2e-3)
    assert high.values.reshape(-1)[indices] == pytest.approx(np.quantile(samples, 0.75, axis=0), abs=2e-3)


def test_dvh_bands_hold_their_samples(ensemble: DoseEnsemble) -> None:
    dvh = ensemble.dvh("Parotid_L")
    low, high = dvh.band(0.95)
    assert dvh.samples.shape == (SAMPLES, dvh.dose_gy.size)
    assert dvh.samples[:, 0] == pytest.approx(1.0)
    assert (np.diff(dvh.samples, axis=1) <= 1e-12).all()
    assert (low <= dvh.mean + 1e-12).all() and (dvh.mean <= high + 1e-12).all()
    expected = structure_dose_of(ensemble.mean, ensemble.patient.structures["Parotid_L"]).mean_gy()[0]
    assert ensemble.metric("Parotid_L", "mean").mean == pytest.approx(expected, abs=0.01)


def test_deterministic_mode_claims_no_spread(surrogate: DoseSurrogate, sample: Patient) -> None:
    prediction = sample_dose(surrogate, sample, 0)
    assert prediction.count == 0 and not prediction.has_spread and prediction.seed is None
    assert np.array_equal(prediction.mean.values, prediction.deterministic.values)
    assert prediction.metric("PTV_7000", "D95").count == 1
    with pytest.raises(RTDigitalTwinError, match="two samples"):
        _ = prediction.std
    assert np.array_equal(surrogate.expected_dose(sample).values, prediction.mean.values)


def test_bad_requests_are_refused(surrogate: DoseSurrogate, sample: Patient, ensemble: DoseEnsemble) -> None:
    with pytest.raises(RTDigitalTwinError, match="0 or more"):
        sample_dose(surrogate, sample, -1)
    with pytest.raises(RTDigitalTwinError, match="Spleen.*there are"):
        ensemble.dvh("Spleen")
    with pytest.raises(RTDigitalTwinError, match="between 0 and 1"):
        ensemble.band(95)


def test_sampling_can_be_cancelled(surrogate: DoseSurrogate, sample: Patient) -> None:
    seen = []

    def stop_in_the_middle(done_ratio: float, message: str) -> None:
        seen.append(done_ratio)
        if done_ratio > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample_dose(surrogate, sample, 8, progress=stop_in_the_middle)
    assert seen == sorted(seen) and seen[-1] < 1


@dataclass
class RandomWalk:
    """A state with nothing of dose in it: a position in mm that diffuses, pushed by the action."""

    def initial(self, patient: Patient) -> RandomWalk:
        return self

    def sample(self, samples: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(0, 1, samples)

    def transition(self, state: np.ndarray, action: object, days: float, seed: int) -> np.ndarray:
        push = float(action) if isinstance(action, float) else 0.0
        return state + push + np.random.default_rng(seed).normal(0, np.sqrt(days), state.shape)

    def observe(self, state: np.ndarray) -> dict[str, np.ndarray]:
        return {"position_mm": state}


def test_a_twin_holds_states_other_than_dose(sample: Patient) -> None:
    twin = Twin(sample, models={"position": RandomWalk()})
    walked = twin.forecast("position", [0, 4, 13], samples=20_000, seed=1)
    spreads = [float(e.std) for e in walked.observables["position_mm"]]
    # variances add: 1, 1 + 4, 1 + 13; 20,000 samples give a spread to 0.5 % (one sigma)
    assert spreads == pytest.approx([1, np.sqrt(5), np.sqrt(14)], rel=0.02)
    pushed = forecast(RandomWalk(), RandomWalk(), [0, 1], samples=1000, actions=[3.0])
    assert float(pushed.observables["position_mm"][1].mean) == pytest.approx(3.0, abs=0.2)
    with pytest.raises(RTDigitalTwinError, match="no state 'weather'; it has dose, position"):
        twin.forecast("weather", [0, 1])
    with pytest.raises(RTDigitalTwinError, match="increase"):
        twin.forecast("position", [1, 0])


def test_dose_is_a_state_like_others(surrogate: DoseSurrogate, sample: Patient) -> None:
    model = DoseState(surrogate)
    seen = forecast(model, model.initial(sample), [0, 1], samples=2, seed=3).observables["Parotid_L_mean_gy"]
    assert np.array_equal(seen[0].samples, seen[1].samples)
    assert seen[0].count == 2


def test_ensemble_of_scalars() -> None:
    ensemble = Ensemble(np.array([1.0, 2.0, 3.0, 4.0]), "Gy")
    assert ensemble.mean == 2.5
    assert ensemble.std == pytest.approx(np.sqrt(5 / 3))
    assert ensemble.band(0.5) == pytest.approx((1.75, 3.25))
    with pytest.raises(RTDigitalTwinError, match="two samples"):
        _ = Ensemble(np.array([1.0])).std
