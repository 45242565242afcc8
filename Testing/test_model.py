"""Features, network and weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from RTDigitalTwinLib.errors import ModelError, PatientDataError
from RTDigitalTwinLib.model.crop import crop_around, crop_of
from RTDigitalTwinLib.model.features import (
    ANATOMY_CHANNELS,
    CHANNELS,
    DISTANCE_CHANNELS,
    FITTED_BEAMS,
    PRESCRIBED_BEAMS,
    assumptions,
    build_features,
)
from RTDigitalTwinLib.model.layers import SharedPReLU
from RTDigitalTwinLib.model.network import CONFIGURATIONS, DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.norm import InstanceNorm
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.model.weights import choose_device, default_weights, load_network, manifest_path, save_weights
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.calibration_file import load_calibration
from RTDigitalTwinLib.twin import Twin
from Testing.conftest import cropped

NARROW = NetworkConfiguration(widths=(4, 4, 8, 8, 16))


def test_features_hold_what_the_patient_holds(sample: Patient) -> None:
    features = build_features(sample)
    crop = features.crop
    assert features.channels.shape == (len(CHANNELS), *crop.shape)
    assert all(size % 16 == 0 for size in crop.shape)
    assert crop.mask.sum() == sample.dose_mask.mask.sum()
    assert np.array_equal(np.sort(crop.mask_indices), np.flatnonzero(sample.dose_mask.mask))
    for channel, name in enumerate(ANATOMY_CHANNELS[1:], start=1):
        inside = sample.structures[name].occupancy.reshape(-1)[crop.mask_indices]
        assert np.array_equal(features.channels[channel][crop.mask], inside), name
    hu = sample.ct.values.reshape(-1)[crop.mask_indices]
    assert features.channels[0][crop.mask] == pytest.approx(np.clip(hu, -1000, 3071) / 1000, abs=1e-6)


def test_the_crop_may_leave_the_grid() -> None:
    start, sizes = crop_of((slice(0, 30), slice(10, 26), slice(100, 128)))
    assert sizes == (48, 32, 32)
    assert start == (-9, 2, 98)


def test_distances_are_in_40_mm_and_negative_inside(sample: Patient) -> None:
    names = ("PTV_7000", *DISTANCE_CHANNELS)
    occupancy, *distances = build_features(sample, names).channels
    distance = distances[DISTANCE_CHANNELS.index("Distance PTV_7000")]
    assert (distance[occupancy >= 0.5] <= 0).all() and (distance[occupancy < 0.5] >= 0).all()
    beside = np.abs(np.diff(distance, axis=2)).max() * 40
    assert beside == pytest.approx(sample.ct.grid.spacing_mm[0], rel=0.01)  # a step of one voxel is at most its size
    without = replace(sample, structures={k: s for k, s in sample.structures.items() if k != "PTV_5600"})
    absent = build_features(without, ("Distance PTV_5600",)).channels
    assert absent.min() == absent.max() == 2.0


def test_beam_estimates_resemble_a_plan(sample: Patient) -> None:
    names = ("PTV_7000", PRESCRIBED_BEAMS, FITTED_BEAMS)
    target, prescribed, fitted = build_features(sample, names).channels
    inside = target >= 0.5
    assert 70 * fitted[inside].mean() == pytest.approx(70, abs=3)
    assert fitted[inside].std() < 0.9 * prescribed[inside].std()  # fitting evens the dose out
    mask = build_features(sample, names).crop.mask
    assert not fitted[~mask].any() and not prescribed[~mask].any()


def test_the_baseline_is_what_the_network_corrects() -> None:
    network = DoseUNet(NARROW)
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    features = torch.rand(1, len(NARROW.channels), 16, 32, 16)
    assert torch.allclose(network(features), 70 * features[:, NARROW.channels.index(FITTED_BEAMS)])


def test_outside_the_grid_is_air(sample: Patient) -> None:
    tight = cropped(sample, sample.dose_mask.box)
    features = build_features(tight, ANATOMY_CHANNELS)
    assert features.channels[0, 0].min() == features.channels[0, 0].max() == -1.0  # a margin slice beyond the grid
    assert not features.channels[1:, 0].any()


def test_a_mask_at_the_edge_keeps_its_places(sample: Patient) -> None:
    tight = cropped(sample, sample.dose_mask.box)
    crop = crop_around(tight)
    assert min(crop.start) < 0
    assert np.array_equal(np.sort(crop.mask_indices), np.flatnonzero(tight.dose_mask.mask))


def test_a_target_without_a_dose_level_is_not_planned(sample: Patient) -> None:
    plan = replace(sample.plan, prescription=replace(sample.plan.prescription, target_dose_gy=(("PTV_7000", 70.0),)))
    with pytest.raises(PatientDataError, match="prescribed to PTV_5600, PTV_6300"):
        build_features(replace(sample, plans=(plan,)))
    with pytest.raises(PatientDataError, match="prescribed to"):
        build_features(replace(sample, plans=()))
    assert assumptions(sample) == ()
    assert "nine" in assumptions(replace(sample, plans=(replace(sample.plan, gantry_angles_deg=()),)))[0]


def test_targets_in_air_are_not_planned(sample: Patient) -> None:
    ct = replace(sample.ct, values=np.full_like(sample.ct.values, -1000))
    with pytest.raises(PatientDataError, match="no tissue"):
        build_features(replace(sample, images=(replace(sample.images[0], volume=ct),)))


def test_a_baseline_that_is_no_input_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the inputs"):
        NetworkConfiguration(channels=ANATOMY_CHANNELS)


def test_features_need_a_target(sample: Patient) -> None:
    untargeted = replace(sample, structures=sample.organs)
    with pytest.raises(PatientDataError, match="none of PTV_5600"):
        build_features(untargeted)


def test_the_network_has_the_prototypes_size() -> None:
    published = UNet(spatial_dims=3, in_channels=11, out_channels=1, channels=(32, 64, 128, 256, 512), strides=(2,) * 4,
                     num_res_units=2)  # fmt: skip
    count = sum(p.numel() for p in DoseUNet(CONFIGURATIONS["paper"]).parameters())
    assert count == sum(p.numel() for p in published.parameters()) == 19_232_398
    assert sum(p.numel() for p in DoseUNet(CONFIGURATIONS["default"]).parameters()) < 20_000_000


def test_the_split_up_sampling_equals_the_joined_one() -> None:
    """Linearity: convolving skip and below apart and adding is convolving them together."""
    torch.manual_seed(0)
    stage = DoseUNet(NARROW).decoder[1]
    skip, below = torch.rand(2, stage.skip_width, 4, 6, 2), torch.rand(2, 8, 4, 6, 2)
    together = stage.unit(stage.up(torch.cat([skip, below], dim=1)))
    assert torch.allclose(stage(stage.of_skip(skip), below), together, atol=1e-5)


def test_an_untrained_network_gives_finite_dose_not_below_zero() -> None:
    torch.manual_seed(0)
    network = DoseUNet(NARROW)
    dose = network(
        torch.rand(2, len(NARROW.channels), 32, 48, 16), network.draw_factors(2, torch.Generator().manual_seed(0))
    )
    assert dose.shape == (2, 32, 48, 16)
    assert torch.isfinite(dose).all() and dose.min() >= 0 and dose.max() > 0


def test_dropout_takes_whole_channels_behind_the_encoder_only() -> None:
    network = DoseUNet(NARROW)
    factors = network.draw_factors(2000, torch.Generator().manual_seed(0))
    assert [f.shape[1] for f in factors] == [16, 16, 8, 8, 4, 4, 4, 4]  # bottleneck, then three decoder levels
    values = torch.cat(factors, dim=1)
    assert values.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    # 128,000 draws at 10 %: one sigma is 0.08 %
    assert float((values == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert not any("Dropout" in type(m).__name__ for m in network.encoder.modules())
    features = torch.rand(1, len(NARROW.channels), 32, 32, 32)
    encoded = network.encode(features)
    again = network.decode(encoded, [torch.ones_like(f[:1]) for f in factors])
    assert torch.equal(again, network.decode(encoded))  # factors of 1 change nothing
    assert not torch.equal(network.decode(encoded, [f[:1] for f in factors]), again)


def test_stratified_dropout_drops_every_channel_as_often_as_its_ratio_says() -> None:
    network = DoseUNet(NARROW)
    drawn = [network.draw_factors(32, torch.Generator().manual_seed(seed), block=32) for seed in range(400)]
    dropped = torch.stack([torch.cat(d, dim=1) == 0 for d in drawn])  # (seeds, samples, channels)
    assert set(dropped.sum(1).unique().tolist()) == {3, 4}  # of 3.2
    # Each sample by itself is as an independent one: 2,560,000 / 32 draws a sample at 10 %, one sigma is 0.1 %,
    # and two of its channels know nothing of each other.
    assert dropped.float().mean((0, 2)).tolist() == pytest.approx([0.1] * 32, abs=0.006)
    both = (dropped[:, :, 0] & dropped[:, :, 1]).float().mean()
    assert float(both) == pytest.approx(0.01, abs=0.004)


def saved(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "dose-unet.safetensors"
    save_weights(DoseUNet(NARROW), path, {"training": {"minutes": 1}})
    return path


def test_weights_come_back_in_half_precision(tmp_path: Path) -> None:
    path = saved(tmp_path)
    torch.manual_seed(0)
    original = DoseUNet(NARROW).state_dict()
    loaded = load_network(path)
    assert loaded.network.configuration == NARROW
    assert loaded.manifest["training"] == {"minutes": 1}
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, original[name].half().float()), name


def test_one_altered_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256"):
        load_network(path)


def test_missing_or_damaged_manifests_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    manifest = manifest_path(path)
    text = manifest.read_text()
    manifest.write_text(text[:40])
    with pytest.raises(ModelError, match=r"dose-unet.json.*damaged"):
        load_network(path)
    manifest.write_text(json.dumps({**json.loads(text), "configuration": NetworkConfiguration().as_dict()}))
    with pytest.raises(ModelError, match="do not fit"):
        load_network(path)
    manifest.unlink()
    with pytest.raises(ModelError, match=r"dose-unet.json.*missing"):
        load_network(path)
    with pytest.raises(ModelError, match="no such weights"):
        load_network(tmp_path / "other.safetensors")


def test_devices_that_are_not_there_are_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ModelError, match="no device 'abacus'"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(ModelError, match="no CUDA GPU"):
            choose_device("cuda")


def test_the_weights_that_come_with_the_software_know_their_bands_and_patients(sample: Patient) -> None:
    twin = Twin(sample, device="cpu")
    assert twin.familiarity is not None and twin.familiarity.is_familiar
    stored = load_calibration(default_weights(), twin.dose_model.surrogate.weights_sha256)
    assert stored is not None and stored.whole.patients >= 30 and len(stored.without) == stored.whole.patients
    trained_on = twin.dose_model.surrogate.trained_on
    assert len(trained_on) > 100 and not trained_on & set(stored.without)
    dose = twin.predict(samples=stored.whole.samples // 2)
    assert dose.is_calibrated
    low, high = dose.metric("Parotid_L", "mean").band(0.95)
    sampled_low, sampled_high = dose.metric("Parotid_L", "mean").sampled_band(0.95)
    assert high - low > sampled_high - sampled_low
    assert twin.dose_model.observe(dose)["Parotid_L_mean_gy"].band(0.95) == (low, high)


def test_the_weights_that_come_with_the_software_treat(sample: Patient) -> None:
    """The sample patient gets about what was prescribed, and the parotids less than the targets."""
    dose = DoseSurrogate.load(device="cpu").expected_dose(sample).values
    inside = {name: dose[s.mask].mean() for name, s in sample.structures.items()}
    assert inside["PTV_7000"] == pytest.approx(70, abs=5)
    assert inside["PTV_5600"] == pytest.approx(58, abs=6)
    assert max(inside["Parotid_L"], inside["Parotid_R"]) < inside["PTV_5600"]
    assert inside["SpinalCord"] < 45


def test_own_layers_compute_what_torchs_do() -> None:
    torch.manual_seed(0)
    for samples in (1, 2):
        values = torch.randn(samples, 6, 5, 7, 8).contiguous(memory_format=torch.channels_last_3d)
        expected = nn.Sequential(nn.InstanceNorm3d(6), nn.PReLU(init=0.1))
        ours = nn.Sequential(InstanceNorm(), SharedPReLU(init=0.1))
        results = []
        for layers in (expected, ours):
            given = values.clone().requires_grad_()
            result = layers(given)
            (result * torch.linspace(-1, 2, 8)).sum().backward()
            results.append((result, given.grad, layers[1].weight.grad))
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_slopes_gradient_is_summed_in_full_precision() -> None:
    torch.manual_seed(0)
    values = torch.randn(1, 8, 16, 16, 16)
    slopes = {}
    for dtype in (torch.float64, torch.bfloat16):
        layer = SharedPReLU()
        layer(values.to(torch.bfloat16).to(dtype).requires_grad_()).sum().backward()
        assert layer.weight.grad is not None
        slopes[dtype] = float(layer.weight.grad)
    assert slopes[torch.bfloat16] == pytest.approx(slopes[torch.float64], rel=2e-4)


def test_a_network_begins_from_one_with_other_inputs() -> None:
    torch.manual_seed(0)
    few = NetworkConfiguration(channels=("CT", "PTV_7000", FITTED_BEAMS), widths=(4, 4, 4, 4, 4))
    more = replace(few, channels=("PTV_7000", "Larynx", FITTED_BEAMS, "CT"), dropout_ratio=0.2)
    old, new = DoseUNet(few).eval(), DoseUNet(more).eval()
    new.begin_from(old)
    features = torch.rand(1, 4, 32, 32, 32)
    assert torch.allclose(new(features), old(features[:, [3, 0, 2]]), atol=1e-3)
    with pytest.raises(ValueError, match="differ"):
        DoseUNet(replace(few, fine_width=0)).begin_from(old)
