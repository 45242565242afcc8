"""The network's own blocks against MONAI's, to the last bit, and predictions without importing MONAI."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.blocks import Convolution, ResidualUnit as MonaiUnit
from torch import nn

from RTDigitalTwinLib import versions
from RTDigitalTwinLib.errors import ModelError
from RTDigitalTwinLib.model import network
from RTDigitalTwinLib.model.blocks import ResidualUnit, convolution, up_convolution
from RTDigitalTwinLib.model.monai_blocks import MONAI_BLOCKS
from RTDigitalTwinLib.model.network import CONFIGURATIONS, DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.model.weights import load_network
from RTDigitalTwinLib.patient.patient import Patient

ROOT = Path(__file__).resolve().parent.parent
NARROW = NetworkConfiguration(widths=(4, 4, 8, 8, 16))
PAIRS = {
    "narrowing": (ResidualUnit(3, 5, strides=2, subunits=2), MonaiUnit(3, 3, 5, strides=2, subunits=2)),
    "widening": (ResidualUnit(3, 5, subunits=2), MonaiUnit(3, 3, 5, subunits=2)),
    "same": (ResidualUnit(3, 3), MonaiUnit(3, 3, 3, subunits=1)),
    "bare end": (ResidualUnit(3, 3, last_conv_only=True), MonaiUnit(3, 3, 3, subunits=1, last_conv_only=True)),
    "convolution": (convolution(3, 5), Convolution(3, 3, 5)),
    "up": (up_convolution(3, 5, dropout=False), Convolution(3, 3, 5, strides=2, is_transposed=True)),
}


def of_monai(monkeypatch: pytest.MonkeyPatch, configuration: NetworkConfiguration) -> DoseUNet:
    """The network of a configuration with MONAI's blocks."""
    with monkeypatch.context() as patch:
        patch.setattr(network, "OWN_BLOCKS", MONAI_BLOCKS)
        made = DoseUNet(configuration)
    assert any(isinstance(part, Convolution) for part in made.modules())
    return made


def doses_and_gradients(made: DoseUNet, features: torch.Tensor) -> list[torch.Tensor]:
    factors = made.draw_factors(len(features), torch.Generator().manual_seed(1))
    made.zero_grad()
    dose = made.decode_unclipped(made.encode(features), factors)
    (dose * torch.linspace(-1, 2, dose.shape[-1])).sum().backward()
    return [dose.detach(), *(p.grad for p in made.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", PAIRS)
def test_a_block_computes_what_monais_does(name: str) -> None:
    ours, theirs = PAIRS[name]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(0)
    values = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(ours(values), theirs(values))
    # Of one sample our norm goes by another of torch's routines, which sums in another order.
    assert torch.allclose(ours(values[:1]), theirs(values[:1]), atol=1e-5)


@pytest.mark.parametrize("configuration", [NARROW, replace(NARROW, fine_width=0), replace(NARROW, dropout_ratio=0.0)])
@pytest.mark.parametrize("samples", [1, 2])
def test_a_network_is_the_same_with_either_blocks(
    configuration: NetworkConfiguration, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First weights of a seed, doses with dropout, and gradients."""
    torch.manual_seed(0)
    ours = DoseUNet(configuration)
    torch.manual_seed(0)
    theirs = of_monai(monkeypatch, configuration)
    first, second = ours.state_dict(), theirs.state_dict()
    assert list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())
    features = torch.rand(samples, len(configuration.channels), 32, 48, 32)
    pairs = zip(doses_and_gradients(ours, features), doses_and_gradients(theirs, features), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_weights_that_come_with_the_software_give_the_same_dose_with_either_blocks(
    sample: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_network().network
    theirs = of_monai(monkeypatch, loaded.configuration)
    theirs.load_state_dict(loaded.state_dict())
    cpu = torch.device("cpu")
    ours, expected = (DoseSurrogate(made, cpu).expected_dose(sample).values for made in (loaded, theirs.eval()))
    assert (ours == expected).all() and ours.max() > 50


def test_the_prototypes_network_is_made_of_monais_blocks() -> None:
    def kinds(made: nn.Module) -> set[type]:
        return {type(part) for part in made.modules()}

    with torch.device("meta"):
        paper, default = (DoseUNet(CONFIGURATIONS[name]) for name in ("paper", "default"))
    assert MonaiUnit in kinds(paper) and ResidualUnit not in kinds(paper)
    assert MonaiUnit not in kinds(default) and ResidualUnit in kinds(default)


def test_a_prediction_does_not_import_monai() -> None:
    code = (
        "import sys\n"
        "from RTDigitalTwinLib import Patient, Twin\n"
        "from RTDigitalTwinLib import loop, observe, run\n"
        "twin = Twin(Patient.sample(), device='cpu')\n"
        "dose = twin.dose_model.surrogate.expected_dose(twin.patient)\n"
        "print(float(dose.values.max()) > 50, 'monai' in sys.modules)\n"
        "from RTDigitalTwinLib.model.network import CONFIGURATIONS, DoseUNet\n"
        "DoseUNet(CONFIGURATIONS['paper'])\n"
        "print('monai' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_a_library_that_is_not_there_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction's provenance names MONAI's version, and needs no MONAI."""
    monkeypatch.setattr(versions, "LIBRARIES", ("torch", "no_such_library"))
    assert dict(versions.library_versions())["no_such_library"] == "not installed"


def test_the_prototypes_network_says_that_it_needs_monai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "RTDigitalTwinLib.model.monai_blocks", None)
    with pytest.raises(ModelError, match="needs MONAI"):
        DoseUNet(CONFIGURATIONS["paper"])
