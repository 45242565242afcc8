"""Calibrators: what they change, what they leave alone, and beliefs as values."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.calibration.belief import RecalibratedBelief, load_belief, save_belief
from RTDigitalTwinLib.calibration.calibrator import Calibrator, gather
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.decoder_rest import DecoderWithRest
from RTDigitalTwinLib.calibration.gaussian_process import GaussianProcess
from RTDigitalTwinLib.calibration.kalman import EnsembleKalman, gaspari_cohn
from RTDigitalTwinLib.calibration.linear import GlobalScale, StructureOffsets, solve
from RTDigitalTwinLib.calibration.measuring import Wanted, measure_scalars, measure_volume
from RTDigitalTwinLib.calibration.outliers import judge
from RTDigitalTwinLib.calibration.persistence import Persistence
from RTDigitalTwinLib.calibration.readings import joined, read_scalars, read_volumes, sampled_doses
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.errors import ModelError, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.model.decoder_alone import decoder_weights
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.network_patient import network_patient
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.observation import DoseObservation, MetricObservation, Moment, NoiseModel, Observation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from Testing.builders import hand_made_calibration, hand_made_ensemble, small_patient

FIRST = Moment(0.0, 1)
SURE, FINE, BLIND = NoiseModel(0.02, 0.001), NoiseModel(0.002, 0.0001), NoiseModel(0.0, 1e9)
FIELDS = (GlobalScale(), StructureOffsets(), GaussianProcess(), EnsembleKalman(), Persistence())
ALL = (*FIELDS, DecoderMap(most_steps=3), DecoderWithRest(most_steps=3))


@dataclass(frozen=True, eq=False)
class Case:
    """A belief of a small patient with an untrained network, and made-up samples that a trained one might give."""

    patient: Patient
    belief: DoseBelief
    drawn: DoseEnsemble
    truth: Volume

    def observed(self, noise: NoiseModel = SURE, moment: Moment = FIRST) -> tuple[Observation, ...]:
        wanted: list[Wanted] = [(name, "mean") for name in self.patient.structures]
        point = self.patient.structures["PTV_7000"].centroid_mm
        return measure_scalars(self.patient, self.truth, [*wanted, point], moment, noise, Change(), seed=1)

    def volume(self, noise: NoiseModel = SURE, blur_mm: float = 0.0) -> DoseObservation:
        return measure_volume(self.patient, self.truth, FIRST, noise, Change(), 1, blur_mm)

    def error_gy(self, belief: RecalibratedBelief) -> float:
        return float(
            np.abs(belief.applied(self.drawn).mean.values - self.truth.values)[self.patient.dose_mask.mask].mean()
        )

    def mean_error_gy(self, drawn: DoseEnsemble, name: str) -> float:
        true = structure_dose_of(self.truth, self.patient.structures[name]).mean_gy()[0]
        return abs(float(drawn.metric(name, "mean").mean) - true)


@pytest.fixture(scope="module")
def case() -> Case:
    patient = small_patient()
    torch.manual_seed(1)
    network = DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32), dropout_ratio=0.3)).eval()
    surrogate = DoseSurrogate(network, torch.device("cpu"), "0" * 64)
    bands = hand_made_calibration(samples=16)
    drawn = replace(hand_made_ensemble(patient, 16), calibration=bands)
    truth = delivered_dose(patient, Change(output_error_ratio=0.06))
    return Case(patient, DoseBelief(surrogate, network_patient(patient), bands), drawn, truth)


@pytest.fixture(scope="module")
def sampled(case: Case) -> DoseEnsemble:
    """What the untrained network itself gives."""
    return case.belief.sample(16, 0)


def by_name(calibrators: tuple[Calibrator, ...]) -> dict:
    return {"argvalues": calibrators, "ids": [c.name for c in calibrators]}


@pytest.mark.parametrize("calibrator", **by_name(ALL))
def test_observations_without_information_change_nothing(
    case: Case, sampled: DoseEnsemble, calibrator: Calibrator
) -> None:
    blind = [replace(o, noise=BLIND) for o in (*case.observed(), case.volume())]
    posterior = calibrator.absorb(gather(case.belief, blind, sampled))
    after = posterior.sample(16, 0)
    assert np.array_equal(after.deterministic_gy, sampled.deterministic_gy)
    assert np.array_equal(after.deviations_gy, sampled.deviations_gy)


@pytest.mark.parametrize("calibrator", **by_name(ALL))
def test_no_observation_gives_identical_samples(case: Case, sampled: DoseEnsemble, calibrator: Calibrator) -> None:
    after = calibrator.absorb(gather(case.belief, (), sampled)).sample(16, 0)
    assert np.array_equal(after.deterministic_gy, sampled.deterministic_gy)
    assert np.array_equal(after.deviations_gy, sampled.deviations_gy)


@pytest.mark.parametrize("calibrator", **by_name(FIELDS))
def test_means_come_closer_to_the_truth(case: Case, calibrator: Calibrator) -> None:
    after = calibrator.absorb(gather(case.belief, case.observed(), case.drawn)).applied(case.drawn)
    errors = [(case.mean_error_gy(case.drawn, n), case.mean_error_gy(after, n)) for n in case.patient.structures]
    before, now = np.mean(errors, axis=0)
    assert now < 0.6 * before


@pytest.mark.parametrize("calibrator", **by_name(FIELDS))
def test_a_dose_volume_lessens_the_error_of_the_whole_mask(case: Case, calibrator: Calibrator) -> None:
    before = case.error_gy(RecalibratedBelief(case.belief, "", ()))
    after = case.error_gy(calibrator.absorb(gather(case.belief, [case.volume(FINE)], case.drawn)))
    assert after < (0.8 if isinstance(calibrator, StructureOffsets | GlobalScale) else 0.5) * before


def test_the_scale_is_the_conjugate_posterior(case: Case) -> None:
    """One mean: 1 + prior^2 x h d / (prior^2 h^2 + noise^2 + belief^2), by hand."""
    (observation,) = (o for o in case.observed() if o.label == "Parotid_L mean")
    posterior = GlobalScale(0.05).absorb(gather(case.belief, [observation], case.drawn))
    predicted = case.drawn.metric("Parotid_L", "mean")
    (reading,) = read_scalars([observation], case.patient, case.drawn.crop)
    own = 2.0 * np.hypot(predicted.std, 0.25) / 1.96  # the hand-made factor at 95 % and its floor
    h = float(reading.of(case.drawn.mean.values.reshape(-1)[case.drawn.crop.mask_indices].astype(np.float32)[None])[0])
    gain = 0.05**2 * h / (0.05**2 * h**2 + reading.std**2 + own**2)
    scale = 1 + gain * (reading.value - float(predicted.mean))
    ratio = posterior.applied(case.drawn).mean.values / case.drawn.mean.values.clip(1e-9)
    assert np.median(ratio[case.patient.dose_mask.mask]) == pytest.approx(scale, abs=2e-4)


def test_a_linear_posterior_by_hand() -> None:
    """One field, two observations: d'R^-1 h / (1 + h'R^-1 h)."""
    assert solve(np.array([[2.0], [1.0]]), [3.0, 1.0], [1.0, 0.5])[0] == pytest.approx((6 + 4) / (1 + 4 + 4))


def test_a_kalman_update_of_one_point_by_hand(case: Case) -> None:
    """At the point itself: gain var / (var + noise^2), and the spread left is sqrt(1 - gain)."""
    grid = case.patient.ct.grid
    index = np.round(grid.to_index(case.patient.structures["PTV_7000"].centroid_mm))
    x, y, z = grid.to_lps_mm(index)
    (observation,) = measure_scalars(case.patient, case.truth, [(x, y, z)], FIRST, SURE, Change(), 1)
    posterior = EnsembleKalman(relaxation_ratio=0.0).absorb(gather(case.belief, [observation], case.drawn))
    place = int(case.drawn.crop.mask_indices.searchsorted(np.ravel_multi_index(tuple(index.astype(int)), grid.shape)))
    std = case.drawn.half_width(0.95).values[tuple(index.astype(int))] / 1.96
    (reading,) = read_scalars([observation], case.patient, case.drawn.crop)
    gain = std**2 / (std**2 + reading.std**2)
    assert posterior.shift_gy is not None and posterior.spread_ratio is not None
    before = sampled_doses(case.drawn)[:, place].mean()
    assert posterior.shift_gy[place] == pytest.approx(gain * (reading.value - before), rel=0.01)
    assert posterior.spread_ratio[place] == pytest.approx(np.sqrt(1 - gain), rel=0.02)
    relaxed = EnsembleKalman(relaxation_ratio=0.5).absorb(gather(case.belief, [observation], case.drawn))
    assert relaxed.spread_ratio is not None
    assert relaxed.spread_ratio[place] == pytest.approx((1 + np.sqrt(1 - gain)) / 2, rel=0.02)


def test_localisation_ends(case: Case) -> None:
    observation = case.observed()[-1]  # a point in the target
    posterior = EnsembleKalman(reach_mm=30).absorb(gather(case.belief, [observation], case.drawn))
    grid, indices = case.patient.ct.grid, case.drawn.crop.mask_indices
    positions = grid.to_lps_mm(np.stack(np.unravel_index(indices, grid.shape), axis=-1))
    away = np.linalg.norm(positions - case.patient.structures["PTV_7000"].centroid_mm, axis=-1)
    assert posterior.shift_gy is not None
    assert not posterior.shift_gy[away > 30].any() and np.abs(posterior.shift_gy[away < 15]).max() > 0.1


def test_the_taper_is_smooth_and_compact() -> None:
    """Its published values: 1 at 0, 5/24 where the two branches meet, 0 from the end on."""
    assert gaspari_cohn(np.array([0.0, 0.5, 1.0, 2.0])) == pytest.approx([1, 5 / 24, 0, 0], abs=1e-12)
    assert (np.diff(gaspari_cohn(np.linspace(0, 1.2, 200))) <= 0).all()


def test_persistence_is_the_measured_volume(case: Case) -> None:
    volume = case.volume(FINE)
    after = Persistence().absorb(gather(case.belief, [volume], case.drawn)).applied(case.drawn).mean.values
    indices = case.drawn.crop.mask_indices
    (reading,) = read_volumes([volume], case.patient, case.drawn.crop)
    hot = reading.values > 10  # the belief is surer than the measurement nowhere there
    assert np.abs(after.reshape(-1)[indices] - reading.values)[hot].max() < 1e-4


def test_values_of_some_fractions_are_brought_to_the_course(case: Case) -> None:
    """Without noise to speak of, readings of 1 and of 7 fractions agree; V20 of the course is V4 of 7 fractions."""
    exact = NoiseModel(0.0, 1e-9)
    seven = Moment(8.0, 7, 7)
    crop = case.drawn.crop
    wanted: list[Wanted] = [("Parotid_L", "mean"), ("PTV_7000", "D95"), case.patient.structures["PTV_7000"].centroid_mm]
    values = []
    for moment in (FIRST, seven):
        measured = measure_scalars(case.patient, case.truth, wanted, moment, exact, Change(), 1)
        values.append([r.value for r in read_scalars(measured, case.patient, crop)])
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    (v4,) = measure_scalars(case.patient, case.truth, [("Parotid_L", "V4")], seven, exact, Change(), 1)
    whole = structure_dose_of(case.truth, case.patient.structures["Parotid_L"])
    assert v4.value == pytest.approx(100 * whole.volume_at_dose_ratio(20)[0, 0], abs=1e-6)


@pytest.mark.parametrize("metric", ["mean", "D95", "D2", "D0.1cc", "V20"])
def test_soft_metrics_are_the_metrics_with_a_gradient(case: Case, metric: str) -> None:
    observation = MetricObservation("Parotid_L", metric.replace("V20", "V0.571428"), 1.0, FIRST, SURE, "test")
    (reading,) = read_scalars([observation], case.patient, case.drawn.crop)
    dose = torch.from_numpy(case.drawn.deterministic_gy).requires_grad_()
    value = reading.soft(dose)
    value.backward()
    assert dose.grad is not None and dose.grad.count_nonzero() > 1
    # Of one structure's 40 cc; smoothing over 2 % of the volume or 1 Gy.
    assert float(value.detach()) == pytest.approx(float(reading.of(case.drawn.deterministic_gy[None])[0]), rel=0.03)


def test_outliers_are_what_band_and_noise_cannot_explain(case: Case) -> None:
    good = case.observed()
    assert not any(j.is_outlier for j in judge(case.drawn, good))
    assert isinstance(good[2], MetricObservation)
    wrong = replace(good[2], value=good[2].value + 1.0)  # 35 Gy over the course
    (judged,) = judge(case.drawn, [wrong])
    assert judged.is_outlier and "Parotid_R mean" in judged.words
    assert not judge(case.drawn, [replace(wrong, noise=NoiseModel(0, 1.0))])[0].is_outlier
    assert not judge(replace(case.drawn, calibration=None), [wrong])[0].is_outlier  # too narrow to say
    volume = case.volume()
    assert not judge(case.drawn, [volume])[0].is_outlier
    twice = Volume(2 * volume.dose.values, volume.dose.grid, Quantity.DOSE_GY)
    assert judge(case.drawn, [replace(volume, dose=twice)])[0].is_outlier


def test_the_decoder_learns_and_the_encoder_stays(case: Case, sampled: DoseEnsemble) -> None:
    calibrator = DecoderMap(most_steps=20)
    before = {n: p.clone() for n, p in case.belief.surrogate.network.named_parameters()}
    observations = case.observed()
    bands = replace(sampled, calibration=hand_made_calibration(samples=16))
    posterior = calibrator.absorb(gather(case.belief, observations, bands))
    (fit,) = calibrator.fits
    assert min(fit.objective) < 0.5 * fit.objective[0] and 0 < fit.steps <= 20
    assert all(torch.equal(p, before[n]) for n, p in case.belief.surrogate.network.named_parameters())
    now = dict(posterior.surrogate.network.named_parameters())
    changed = {n for n, p in now.items() if not torch.equal(p, before[n])}
    assert changed and changed <= decoder_weights(case.belief.surrogate.network).keys()
    for i, stage in enumerate(posterior.surrogate.network.decoder):  # the skips' share belongs to the encoding
        skip = before[f"decoder.{i}.up.conv.weight"][: stage.skip_width]
        assert torch.equal(stage.up.conv.weight[: stage.skip_width], skip)
    after = posterior.sample(16, 0)
    assert after.weights_sha256 != sampled.weights_sha256 and len(after.weights_sha256) == 64
    assert after.deviations_gy.std(axis=0).max() > 0.05  # dropout is kept
    errors = [(case.mean_error_gy(sampled, n), case.mean_error_gy(after, n)) for n in case.patient.structures]
    assert np.mean(errors, axis=0)[1] < 0.8 * np.mean(errors, axis=0)[0]


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_volume_that_none_or_all_have_leaves_the_decoder_at_work(
    case: Case, sampled: DoseEnsemble, calibrated: bool
) -> None:
    """Its band closes, but no observation is worth infinitely much: the others would be fitted to no more."""
    drawn = replace(sampled, calibration=hand_made_calibration(samples=16) if calibrated else None)
    closed = case.observed(SURE)[0]
    assert isinstance(closed, MetricObservation)
    closed = replace(closed, structure="SpinalCord", metric="V3", value=0.0)  # V105 of 35 fractions
    assert drawn.metric("SpinalCord", "V105").samples.max() == 0
    calibrator = DecoderMap(most_steps=3)
    for observations in (case.observed(), (*case.observed(), closed)):
        calibrator.absorb(gather(case.belief, observations, drawn))
    without, added = calibrator.fits
    assert added.steps > 0 and added.objective[-1] < 0.95 * added.objective[0]
    assert added.objective[0] == pytest.approx(without.objective[0], rel=0.01)  # it says nothing new


def test_a_volume_of_a_closed_band_has_the_floor_of_volumes(case: Case) -> None:
    for name, metric, value in (("SpinalCord", "V75", 0.0), ("PTV_7000", "V90", 0.0), ("PTV_7000", "V20", 100.0)):
        found = case.drawn.metric(name, metric)
        assert np.all(found.samples == value) and np.ptp(found.band(0.95)) == 0
        assert found.calibrated_std == pytest.approx(0.5)
    cc = case.drawn.metric("PTV_7000", "V90[cc]")
    assert cc.calibrated_std == pytest.approx(0.005 * case.patient.structures["PTV_7000"].volume_cc)


def test_what_the_decoder_leaves_is_not_lost(case: Case, sampled: DoseEnsemble) -> None:
    """A few steps of the decoder leave a measured dose far off; with the rest it is near, for the same decoder."""
    bands = replace(sampled, calibration=hand_made_calibration(samples=16))
    evidence = gather(case.belief, [case.volume(FINE)], bands)
    calibrators = (DecoderMap(most_steps=5, fewest_steps=5), DecoderWithRest(most_steps=5))
    decoder, both = (calibrator.absorb(evidence).sample(16, 0) for calibrator in calibrators)
    inside = case.patient.dose_mask.mask

    def error_gy(drawn: DoseEnsemble) -> float:
        return float(np.abs(drawn.mean.values - case.truth.values)[inside].mean())

    assert error_gy(both) < 0.3 * error_gy(decoder)
    assert both.weights_sha256 == decoder.weights_sha256 != sampled.weights_sha256
    assert both.narrowing is not None
    told = [calibrator.absorb(evidence).change for calibrator in (GaussianProcess(), DecoderWithRest(most_steps=5))]
    assert told[0] is not None and told[0] == told[1]  # of the treatment, not of what the decoder left
    with pytest.raises(RTDigitalTwinError, match="needs samples"):
        DecoderWithRest().absorb(gather(case.belief, [case.volume(FINE)], case.belief.sample(0, 0)))


def test_samples_drawn_in_a_fit_are_not_drawn_again(
    case: Case, sampled: DoseEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    bands = replace(sampled, calibration=hand_made_calibration(samples=16))
    belief = DecoderWithRest(most_steps=2).absorb(gather(case.belief, [case.volume(FINE)], bands))
    draws, sample = [], DoseBelief.sample

    def counted(self: DoseBelief, *asked: Any) -> DoseEnsemble:
        draws.append(asked[:2])
        return sample(self, *asked)

    monkeypatch.setattr(DoseBelief, "sample", counted)
    first, other, again = belief.sample(16, 0), belief.sample(4, 0), belief.sample(16, 0)
    assert draws == [(4, 0), (16, 0)] and other.count == 4
    unused = DecoderWithRest(most_steps=2).absorb(gather(case.belief, [case.volume(FINE)], bands))
    unused.sample(4, 0)
    unused.sample(16, 0)  # nothing is kept beyond the first draw
    assert draws[-2:] == [(4, 0), (16, 0)] and len(draws) == 5  # one within the fit
    assert np.array_equal(first.deviations_gy, again.deviations_gy)
    assert np.array_equal(first.deterministic_gy, again.deterministic_gy)


def test_volumes_of_one_blur_are_as_one(case: Case) -> None:
    """The weighted mean of two volumes holds all that both say; one that knows half of the voxels counts there."""
    one, other = case.volume(FINE), case.volume(SURE)
    values = other.dose.values.copy()
    values[: values.shape[0] // 2] = np.nan
    half = replace(other, dose=Volume(values, other.dose.grid, Quantity.DOSE_GY))
    given = read_volumes([one, half, case.volume(blur_mm=3.0)], case.patient, case.drawn.crop)
    both, blurred = joined(given)
    assert blurred is given[2] and joined(given[:1])[0] is given[0]
    first, second, known = given[0], given[1], given[1].known
    assert known.any() and not known.all() and both.known.all()
    weights = 1 / first.std[known] ** 2, 1 / second.std[known] ** 2
    mean = (weights[0] * first.values[known] + weights[1] * second.values[known]) / sum(weights)
    np.testing.assert_allclose(both.values[known], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both.std[known], 1 / np.sqrt(sum(weights)), rtol=1e-5)
    np.testing.assert_array_equal(both.values[~known], first.values[~known])
    np.testing.assert_allclose(both.std[~known], first.std[~known], rtol=1e-6)


@pytest.mark.parametrize(
    "calibrator",
    **by_name((StructureOffsets(), EnsembleKalman(), DecoderMap(most_steps=3), DecoderWithRest(most_steps=3))),
)
def test_beliefs_are_saved_loaded_and_compared(
    case: Case, sampled: DoseEnsemble, calibrator: Calibrator, tmp_path: Path
) -> None:
    posterior = calibrator.absorb(gather(case.belief, [*case.observed(), case.volume(blur_mm=3.0)], sampled))
    path = tmp_path / "small.belief.npz"
    save_belief(posterior, path)
    again = load_belief(path, case.belief)
    assert again.same_as(posterior) and again.is_simulated
    packed = tmp_path / "packed.belief.npz"  # every array, as all files once were
    with np.load(path) as stored:
        np.savez_compressed(packed, **{name: stored[name] for name in stored.files})
    assert load_belief(packed, case.belief).same_as(posterior)
    assert path.stat().st_size < 2 * packed.stat().st_size
    assert np.array_equal(again.sample(2, 3).deviations_gy, posterior.sample(2, 3).deviations_gy)
    assert not again.same_as(calibrator.absorb(gather(case.belief, case.observed(), sampled)))
    other = DoseSurrogate(case.belief.surrogate.network, torch.device("cpu"), "1" * 64)
    with pytest.raises(ModelError, match="other weights"):
        load_belief(path, replace(case.belief, surrogate=other))
    prepared = network_patient(replace(case.patient, pseudonym="x"))
    with pytest.raises(ModelError, match="of patient small-patient, not x"):
        load_belief(path, replace(case.belief, prepared=prepared))
    smaller = replace(case.patient, dose_mask=case.patient.structures["PTV_7000"])
    if posterior.shift_gy is not None:
        with pytest.raises(ModelError, match="a dose mask of .* voxels, and the patient's has"):
            load_belief(path, replace(case.belief, prepared=network_patient(smaller)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be read"):
        load_belief(path, case.belief)


def written_as(path: Path, file_format: int) -> None:
    """A belief's file as one of another format, without the mask's hash."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    about = json.loads(arrays["about"].tobytes()) | {"format": file_format}
    about.pop("dose_mask_sha256", None)
    np.savez(path, **arrays | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)})


def test_beliefs_are_of_one_mask_and_of_known_formats(case: Case, sampled: DoseEnsemble, tmp_path: Path) -> None:
    """As many voxels elsewhere are another mask; files of before have no hash; those of later versions are refused."""
    posterior = StructureOffsets().absorb(gather(case.belief, case.observed(), sampled))
    path = tmp_path / "small.belief.npz"
    save_belief(posterior, path)
    mask = case.patient.dose_mask
    turned = np.roll(mask.occupancy, 1, axis=0)
    moved = replace(case.patient, dose_mask=Structure.from_array(mask.name, turned, mask.grid, mask.kind))
    assert moved.dose_mask.mask.sum() == mask.mask.sum()
    elsewhere = replace(case.belief, prepared=network_patient(moved))
    with pytest.raises(ModelError, match="other voxels or in another place") as refused:
        load_belief(path, elsewhere)
    assert "Observe again" in str(refused.value)
    written_as(path, 1)
    assert load_belief(path, case.belief).same_as(posterior)
    assert load_belief(path, elsewhere).shift_gy is not None  # nothing in it tells
    written_as(path, 2)
    with pytest.raises(ModelError, match="cannot be read"):
        load_belief(path, case.belief)
    written_as(path, 3)
    with pytest.raises(ModelError, match="format 3"):
        load_belief(path, case.belief)


def test_absorbing_in_parts_is_absorbing_at_once(case: Case) -> None:
    one, two = case.observed(), case.observed(moment=Moment(1.0, 2))
    for calibrator in (StructureOffsets(), EnsembleKalman()):
        first = calibrator.absorb(gather(case.belief, two, case.drawn))
        late = calibrator.absorb(gather(first, one, case.drawn))
        assert late.same_as(calibrator.absorb(gather(case.belief, [*one, *two], case.drawn)))
        assert len(first.absorbed) == len(two)  # the belief before is as it was
        with pytest.raises(PatientDataError, match="not yet absorbed"):
            calibrator.absorb(gather(late, one, case.drawn))


def test_bands_say_that_they_are_from_before(case: Case) -> None:
    after = StructureOffsets().absorb(gather(case.belief, case.observed(), case.drawn)).applied(case.drawn)
    assert case.drawn.band_words() == "calibrated 95 % band"
    assert after.band_words() == "95 % band, calibrated before 5 observations"


def test_simulated_observations_say_so(case: Case) -> None:
    assert all(o.simulated and o.source.startswith("simulated") for o in (*case.observed(), case.volume()))
    assert StructureOffsets().absorb(gather(case.belief, case.observed(), case.drawn)).is_simulated
