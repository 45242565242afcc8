"""Coarse networks: means over blocks, the correction that samples share, and their weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import ModelError
from RTDigitalTwinLib.model.augmentation import Augmentation
from RTDigitalTwinLib.model.coarse import Committee, coarse_dose_gy, interpolated
from RTDigitalTwinLib.model.features import CHANNELS
from RTDigitalTwinLib.model.network import CONFIGURATIONS, DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.model.training import WEIGHTS, Training, TrainingSettings, train
from RTDigitalTwinLib.model.training_data import TrainingCase
from RTDigitalTwinLib.model.weights import join_weights, load_network, manifest_path, save_weights
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.report.training_plot import write_training_plot
from RTDigitalTwinLib.solver.sampling import sample_dose
from Testing.builders import small_patient

FINE = NetworkConfiguration(widths=(8, 8, 16, 16, 32))
COARSE = NetworkConfiguration(widths=(8, 8, 16, 16), block=2)
CPU = torch.device("cpu")


def network(configuration: NetworkConfiguration, seed: int) -> DoseUNet:
    torch.manual_seed(seed)
    return DoseUNet(configuration).eval()


@pytest.fixture(scope="module")
def members() -> tuple[DoseUNet, ...]:
    return network(COARSE, 1), network(COARSE, 2)


@pytest.fixture(scope="module")
def alone() -> DoseSurrogate:
    return DoseSurrogate(network(FINE, 0), CPU)


@pytest.fixture(scope="module")
def together(alone: DoseSurrogate, members: tuple[DoseUNet, ...]) -> DoseSurrogate:
    return DoseSurrogate(alone.network, CPU, committee=Committee(members))


def test_blocks_of_an_example_hold_means_and_the_dose_of_their_part_of_the_mask(sample_folder: Path) -> None:
    example = TrainingCase.of(Patient.load(sample_folder)).example()
    seen = example.in_blocks(2)
    assert seen.values.shape[:3] == tuple(n // 2 for n in example.values.shape[:3])
    assert torch.equal(seen.channels, functional.avg_pool3d(example.channels, 2))
    assert float(seen.share.sum()) * 8 == pytest.approx(float(example.mask.sum()))
    # No dose is lost: each block's dose times its part of the mask.
    assert float((seen.dose_gy * seen.share).sum()) * 8 == pytest.approx(float(example.dose_gy.sum()), rel=1e-5)
    edge = (seen.share > 0) & (seen.share < 1)
    z, y, x = (edge[0] & (seen.dose_gy[0] > 5)).nonzero()[0].tolist()
    part = np.s_[0, 2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
    inside = example.dose_gy[part][example.mask[part]]
    assert 0 < len(inside) < 8
    assert float(seen.dose_gy[0, z, y, x]) == pytest.approx(float(inside.mean()), rel=1e-5)


def test_interpolation_keeps_what_is_even_up_to_the_edge_of_the_mask() -> None:
    share = torch.zeros(6, 6, 6)
    share[1:5, 2:5, 1:4] = 1.0
    share[1, 2:5, 1:4] = 0.125
    of_blocks = torch.where(share > 0, 7.0, -1000.0)  # nothing is known of blocks without mask
    found = interpolated(of_blocks, share, 2)
    assert found.shape == (12, 12, 12)
    inside = share.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2) > 0
    assert torch.allclose(found[inside], torch.tensor(7.0))


def test_interpolation_is_linear_between_the_blocks_middles() -> None:
    ramp = torch.arange(8.0)[:, None, None].expand(8, 8, 8)
    found = interpolated(ramp, torch.ones(8, 8, 8), 2)
    assert found[1:-1, 4, 4].tolist() == pytest.approx([0.25 + 0.5 * k for k in range(14)])


def test_the_means_over_blocks_go_halfway_to_the_coarse_networks_mean(members: tuple[DoseUNet, ...]) -> None:
    """Where the correction is even it is exact, up to the edge of the mask."""
    encoded = network(FINE, 0).encode(torch.zeros(1, len(FINE.channels), 32, 32, 32))
    channels = torch.zeros(1, len(COARSE.channels), 32, 32, 32)
    mask = torch.zeros(32, 32, 32, dtype=torch.bool)
    mask[3:20, 5:30, 1:24] = True  # with edges inside blocks

    class Even(torch.nn.Module):
        """Sees everywhere the same."""

        def __init__(self, dose_gy: float) -> None:
            super().__init__()
            self.configuration, self.dose_gy = COARSE, dose_gy

        def forward(self, seen: torch.Tensor) -> torch.Tensor:
            return torch.full((1, *seen.shape[2:]), self.dose_gy)

    committee = Committee((Even(40.0), Even(46.0)))
    corrected = committee.corrected(encoded, channels, torch.where(mask, 34.0, 99.0), mask)
    assert encoded.baseline is not None and corrected.baseline is not None
    added_gy = 70 * (corrected.baseline - encoded.baseline)[0]
    assert torch.allclose(added_gy[mask], torch.tensor(0.5 * (43.0 - 34.0)), atol=1e-3)
    assert not added_gy[~mask].any()


def test_a_coarse_network_sees_a_patient_and_its_mirror_image_alike(
    members: tuple[DoseUNet, ...], sample_folder: Path
) -> None:
    example = TrainingCase.of(Patient.load(sample_folder)).example(COARSE.channels)
    mirrored = Augmentation(mirrored=True)(example)
    with torch.inference_mode():
        dose, of_mirrored = (coarse_dose_gy(members[0], e.channels) for e in (example, mirrored))
        by_itself = members[0](functional.avg_pool3d(example.channels, 2))[0]
    assert torch.allclose(of_mirrored.flip(-1), dose, atol=1e-3)
    assert (by_itself - dose).abs().max() > 0.1


def test_the_log_of_the_coarse_network_that_comes_with_the_software_is_drawn(tmp_path: Path) -> None:
    (trained,) = load_network().manifest["coarse_training"]
    errors = [entry["validation_error_of_blocks_gy"] for entry in trained["log"]]
    assert len(errors) > 3 and errors[-1] < errors[0]
    write_training_plot(trained["log"], tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 5000


def test_all_samples_share_the_correction(alone: DoseSurrogate, together: DoseSurrogate, sample: Patient) -> None:
    plain, corrected = (sample_dose(s, sample, 3, seed=5) for s in (alone, together))
    without, with_it = alone.deterministic_gy(sample), together.deterministic_gy(sample)
    added = (together.encoded(sample).baseline - alone.encoded(sample).baseline)[0].numpy() * 70  # type: ignore[operator]
    added = added[together.features(sample).crop.mask]
    assert np.abs(added).max() > 1
    free = (without > 0.5) & (with_it > 0.5)
    assert with_it[free] == pytest.approx((without + added)[free], abs=2e-3)
    for k in range(3):
        plain_gy, corrected_gy = plain.sample_gy(k), corrected.sample_gy(k)
        free = (plain_gy > 0.5) & (corrected_gy > 0.5)
        assert corrected_gy[free] == pytest.approx((plain_gy + added)[free], abs=0.1)  # kept in half precision


def test_a_network_made_from_it_keeps_its_correction(together: DoseSurrogate, sample: Patient) -> None:
    """A decoder that was fitted to a patient must not be pulled back to the committee's mean."""
    other = network(FINE, 0)
    with torch.no_grad():
        other.last.bias += 0.1
    for forgotten in (False, True):
        if forgotten:
            together.forget()
        fitted = together.with_network(other, "1" * 64)
        expected, found = together.encode(together.features(sample)).baseline, fitted.encoded(sample).baseline
        assert expected is not None and found is not None
        assert torch.allclose(found, expected, atol=1e-6)
    raised = fitted.deterministic_gy(sample) - together.deterministic_gy(sample)
    assert float(np.median(raised[raised > 0])) == pytest.approx(7.0, abs=0.05)


def test_blocks_that_do_not_fit_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        replace(COARSE, block=4)
    with pytest.raises(ValueError, match="do not fit"):
        replace(COARSE, block=0)


def test_networks_of_other_blocks_make_no_committee(members: tuple[DoseUNet, ...]) -> None:
    with pytest.raises(ValueError, match="one size"):
        Committee((members[0], network(replace(COARSE, widths=(8, 8, 16), block=4), 0)))


@pytest.fixture
def files(tmp_path: Path, members: tuple[DoseUNet, ...]) -> list[Path]:
    paths = [tmp_path / f"{name}.safetensors" for name in ("fine", "first", "second")]
    for i, (path, one) in enumerate(zip(paths, (network(FINE, 0), *members), strict=True)):
        save_weights(one, path, {"training": {"minutes": 3, "pseudonyms": ["pt_1", f"pt_{i + 2}"]}})
    return paths


def test_joined_weights_are_one_file_that_predicts(
    files: list[Path], together: DoseSurrogate, sample: Patient, capsys: pytest.CaptureFixture
) -> None:
    out = files[0].parent / "joined.safetensors"
    assert main(["join", *map(str, files), "--out", str(out)]) == 0
    assert "not calibrated" in capsys.readouterr().out
    loaded = load_network(out)
    assert loaded.committee is not None and [m.configuration for m in loaded.committee.members] == [COARSE] * 2
    assert loaded.trained_on == ("pt_1", "pt_2", "pt_3", "pt_4")  # calibration must not meet any of them
    assert DoseSurrogate.load(out, "cpu").trained_on == set(loaded.trained_on)
    assert loaded.manifest["dose_network_sha256"] == load_network(files[0]).sha256
    told = loaded.manifest["coarse_training"]
    assert [t["sha256"] for t in told] == [load_network(f).sha256 for f in files[1:]]
    found = DoseSurrogate.load(out, "cpu").deterministic_gy(sample)
    assert found == pytest.approx(together.deterministic_gy(sample), abs=0.5)  # halves of untrained weights
    # Joined once more, the others are left out.
    again = files[0].parent / "again.safetensors"
    join_weights(out, files[2:], again)
    assert load_network(again).manifest["dose_network_sha256"] == load_network(files[0]).sha256
    committee = load_network(again).committee
    assert committee is not None and len(committee.members) == 1


def test_what_cannot_be_joined_is_named(files: list[Path], capsys: pytest.CaptureFixture) -> None:
    fine, first, _ = files
    out = fine.parent / "joined.safetensors"
    with pytest.raises(ModelError, match=r"first\.safetensors: These are a coarse"):
        join_weights(first, [fine], out)
    with pytest.raises(ModelError, match=r"fine\.safetensors: These are not a coarse"):
        join_weights(fine, [first, fine], out)
    other = fine.parent / "other.safetensors"
    save_weights(DoseUNet(replace(COARSE, channels=CHANNELS)), other, {})
    with pytest.raises(ModelError, match=r"other\.safetensors: The network has other inputs"):
        join_weights(fine, [other], out)
    save_weights(DoseUNet(replace(COARSE, widths=(8, 8, 16), block=4)), other, {})
    with pytest.raises(ModelError, match=r"other\.safetensors: The network sees other blocks"):
        join_weights(fine, [first, other], out)
    with pytest.raises(ModelError, match=r"first\.safetensors: These weights are given twice"):
        join_weights(fine, [first, first], out)
    assert not out.exists()
    assert main(["join", str(fine), str(first), "--out", str(first)]) == 1
    (fine.parent / "log.json").write_text("[]")
    assert main(["join", str(fine), str(first), "--out", str(fine.parent / "log.safetensors")]) == 1
    assert (fine.parent / "log.json").read_text() == "[]"
    assert main(["join", str(fine), str(first), "--out", str(fine.parent / "joined.pt")]) == 1
    said = capsys.readouterr().err
    assert "such a file already" in said and "must end in .safetensors" in said


def test_a_coarse_network_alone_does_not_predict(files: list[Path]) -> None:
    with pytest.raises(ModelError, match=r"only go beside"):
        DoseSurrogate.load(files[1], "cpu")


def test_a_damaged_committee_is_told(files: list[Path]) -> None:
    out = files[0].parent / "joined.safetensors"
    join_weights(files[0], files[1:], out)
    manifest = json.loads(manifest_path(out).read_text())
    manifest_path(out).write_text(json.dumps(manifest | {"coarse": manifest["coarse"][:1]}))
    with pytest.raises(ModelError, match="do not fit"):
        load_network(out)


def test_a_coarse_network_learns(tmp_path: Path) -> None:
    patient = small_patient()
    case = TrainingCase.of(patient)
    configuration = replace(CONFIGURATIONS["coarse"], widths=(8, 8, 16, 16), fine_width=8)
    settings = TrainingSettings(
        minutes=1,
        validations=1,
        learning_rate=5e-3,
        dvh_weight=0.0,
        turned_ratio=0.0,
        upended_ratio=0.5,
        deformed_ratio=0.5,
    )
    ticks = iter(range(10**6))
    training = Training(settings, tmp_path, CPU, configuration, clock=lambda: next(ticks) * 0.5)
    train(training, [case], [patient])
    losses = training.recent_gy
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    entry = training.log[-1]
    assert 0 < entry["validation_dose_score_gy"] < 30
    assert load_network(tmp_path / WEIGHTS).network.configuration == configuration
