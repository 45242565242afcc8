"""Half precision: of the convolutions' gradients, and of the samples; and the last stage's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from RTDigitalTwinLib import cli_options
from RTDigitalTwinLib.calibration.decoder import DecoderMap
from RTDigitalTwinLib.calibration.simulated_fractions import SimulatedFractions
from RTDigitalTwinLib.errors import ModelError
from RTDigitalTwinLib.ledger import Ledger, read_ledger
from RTDigitalTwinLib.model import surrogate as surrogate_module
from RTDigitalTwinLib.model.convolution import PRECISIONS, SINGLE, Convolution, Products, convolve, multiplies_in_half
from RTDigitalTwinLib.model.last_stage import LastStage, convolved, raised
from RTDigitalTwinLib.model.norm import rows
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.replay import replay
from RTDigitalTwinLib.run import IN_HALF, remarks
from RTDigitalTwinLib.solver.sampling import sample_dose
from RTDigitalTwinLib.twin import Twin

GRADIENTS_IN_HALF, HALF = Products(gradients=torch.bfloat16), Products(torch.bfloat16, torch.bfloat16)

needs_half = pytest.mark.skipif(
    not multiplies_in_half(torch.device("cpu")), reason="this processor has no products of bfloat16"
)
LAST = torch.channels_last_3d


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many of torch, for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def made(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=LAST)


def of_plain(
    below: torch.Tensor, weights: list[torch.Tensor], share: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """The last stage, in torch's words."""
    up, up_slope, unit, slope = weights
    sampled = share + functional.conv_transpose3d(below, up, None, 2, 1, 1)
    values = functional.prelu(functional.instance_norm(sampled), up_slope)
    found = functional.prelu(functional.instance_norm(functional.conv3d(values, unit, None, 1, 1)), slope)
    return rows((found + values).contiguous(memory_format=LAST))[places]


@pytest.mark.parametrize("products", [SINGLE, GRADIENTS_IN_HALF, HALF])
@pytest.mark.parametrize("up_slope", [-0.3, 0.2, 0.8, 1.0, 1.4])
@pytest.mark.parametrize("threads", [1, 3], indirect=True)
def test_the_last_stage_is_the_plain_one(up_slope: float, products: Products, threads: int) -> None:
    torch.manual_seed(0)
    width, sizes = 6, (20, 18, 16)
    below, share = made(1, 5, *sizes), made(1, width, *(2 * n for n in sizes))
    weights = [made(5, width, 3, 3, 3), torch.tensor([up_slope]), made(width, width, 3, 3, 3), torch.tensor([-0.1])]
    places = (torch.rand(share[0, 0].numel()) < 0.2).nonzero()[:, 0]
    towards = torch.randn(len(places), width)
    given = [below.requires_grad_(), *(w.requires_grad_() for w in weights)]
    ours = LastStage.apply(given[0], *given[1:], share, places, products)
    found = torch.autograd.grad(ours, given, towards)
    exact = [g.detach().double().requires_grad_() for g in given]
    plain = of_plain(exact[0], exact[1:], share.double(), places)
    wanted = torch.autograd.grad(plain, exact, towards.double())
    # bfloat16 rounds by up to 2^-8; of gradients this random, most of the sum cancels.
    assert float((ours - plain).detach().norm()) < (0.006 if products == HALF else 1e-4) * float(plain.detach().norm())
    tolerance = {SINGLE: 2e-4, GRADIENTS_IN_HALF: 0.05, HALF: 0.1}[products]
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).norm()) < tolerance * float(other.norm())


def test_pairs_of_columns_give_the_same_convolutions() -> None:
    torch.manual_seed(0)
    values, kernel, up = made(1, 8, 8, 6, 10), made(8, 8, 3, 3, 3), made(8, 3, 3, 3, 3)
    assert torch.allclose(convolved(values, kernel), functional.conv3d(values, kernel, padding=1), atol=1e-4)
    assert torch.allclose(raised(values, up), functional.conv_transpose3d(values, up, None, 2, 1, 1), atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 2, 2), (4, 4, 4), (6, 5, 4), (7, 3, 9)])
def test_gradients_in_half_are_near_those_in_single(sizes: tuple[int, int, int], transposed: bool) -> None:
    torch.manual_seed(0)
    values, kernel = made(1, 64, *sizes).requires_grad_(), made(64, 64, 3, 3, 3).requires_grad_()
    towards = torch.randn_like(convolve(values, kernel, transposed))
    for _ in range(5):
        spoilt = [torch.full((64 * 64 * 27 * n,), float("nan")) for n in (1, 2, 3)]
        del spoilt  # what is not written would show
        wanted, found = (
            torch.autograd.grad(Convolution.apply(values, kernel, transposed, products), [values, kernel], towards)
            for products in (SINGLE, GRADIENTS_IN_HALF)
        )
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == torch.float32
            assert float((one - other).norm()) < 1e-2 * float(other.norm())  # 2^-8 a product


@needs_half
def test_samples_in_half_precision_differ_by_hundredths_of_a_gray(sample: Patient) -> None:
    single, half = (
        sample_dose(DoseSurrogate.load(device="cpu", precision=precision), sample, 8, seed=7)
        for precision in ("single", "half")
    )
    assert not np.array_equal(single.deviations_gy, half.deviations_gy)
    inside = single.crop.mask_indices
    for which in ("mean", "std"):
        one, other = (getattr(e, which).values.reshape(-1)[inside] for e in (single, half))
        assert np.abs(one - other).max() < 0.1
    assert float(single.std.values.max()) > 0.5  # there was something to agree on


@needs_half
def test_a_ledger_in_half_precision_is_replayed_in_it(
    target_folder: Path, narrow_weights: Path, tmp_path: Path
) -> None:
    patient = Patient.load(target_folder)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        twin = Twin(patient, narrow_weights, "cpu", ledger=ledger, precision="half")
        twin.observe(SimulatedFractions().of(patient, 1), DecoderMap(most_steps=2), absorb_outliers=True)
        twin.predict(3)
        assert IN_HALF in remarks(twin)
    assert read_ledger(tmp_path / "ledger.jsonl")[0].content["precision"] == "half"
    done = replay(tmp_path / "ledger.jsonl", target_folder, weights=narrow_weights, device="cpu")
    assert done.is_equal and not done.differences


def test_a_precision_that_is_not_there_is_refused(narrow_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no precision 'quarter'.*Use single or half"):
        DoseSurrogate.load(narrow_weights, "cpu", "quarter")
    monkeypatch.setattr(surrogate_module, "multiplies_in_half", lambda device: False)
    with pytest.raises(ModelError, match="does not decode in half precision"):
        DoseSurrogate.load(narrow_weights, "cpu", "half")
    assert DoseSurrogate.load(narrow_weights, "cpu").precision == "single"


def test_no_gpu_decodes_in_half_precision() -> None:
    assert not multiplies_in_half(torch.device("cuda"))


def test_the_command_line_offers_every_precision() -> None:
    assert tuple(PRECISIONS) == cli_options.PRECISIONS
