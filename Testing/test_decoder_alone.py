"""Decoding at the mask's voxels, differentiable, against the whole network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from RTDigitalTwinLib.model.convolution import SINGLE, Products
from RTDigitalTwinLib.model.decoder_alone import DecoderAlone
from RTDigitalTwinLib.model.network import CONFIGURATIONS, DoseUNet

GRADIENTS_IN_HALF, HALF = Products(gradients=torch.bfloat16), Products(torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("products", [SINGLE, GRADIENTS_IN_HALF, HALF])
@pytest.mark.parametrize("name", [name for name, made in CONFIGURATIONS.items() if made.block == 1])
def test_doses_and_gradients_are_those_of_the_whole_network(name: str, products: Products) -> None:
    torch.manual_seed(1)  # of 0 a value lies where an activation bends, and roundings decide its gradient
    network = DoseUNet(replace(CONFIGURATIONS[name], widths=(4, 4, 8, 8, 16))).to(memory_format=torch.channels_last_3d)
    features = torch.randn(1, len(network.configuration.channels), 32, 16, 48)
    features = features.contiguous(memory_format=torch.channels_last_3d)
    mask = torch.rand(32, 16, 48) < 0.3
    weights = torch.randn(int(mask.sum()))
    with torch.inference_mode():
        encoded = network.encode(features)
    alone = DecoderAlone(network, encoded, mask.flatten().nonzero()[:, 0], products)
    for weight in alone.weights.values():
        weight.requires_grad_(True)
    ours = alone.dose_unclipped()
    of_ours = torch.autograd.grad((ours * weights).sum(), list(alone.weights.values()), allow_unused=True)
    trained = [dict(network.named_parameters())[n] for n in alone.weights]
    plain = network.decode_unclipped(network.encode(features))[0][mask]
    # The skips' share is the encoding's: plain gradients go through it too, ours do not.
    of_plain = torch.autograd.grad((plain * weights).sum(), trained, allow_unused=True)

    assert float((ours - plain).detach().norm()) < (0.006 if products == HALF else 1e-5) * float(plain.detach().norm())
    compared = 0
    for which, one, other in zip(alone.weights, of_ours, of_plain, strict=True):
        if one is None or other is None:
            assert one is other
            continue
        one = alone.turned_back(one)
        if which.endswith("up.conv.weight"):
            skip = network.decoder[int(which.split(".")[1])].skip_width
            assert not one[:skip].any()
            one, other = one[skip:], other[skip:]
        if products == SINGLE:
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max())), which
        elif other.numel() > 1:  # a slope's is a difference of large sums
            # Values off by 0.3 % shift the norms over the few voxels that the deep fields have here.
            assert float((one - other).norm()) < (0.25 if products == HALF else 0.02) * float(other.norm()), which
        compared += 1
    assert compared >= 2 * len(network.decoder)
    rest = {
        name: weight
        for name, weight in network.named_parameters()
        if name.split(".")[0] in ("decoder", "last") and name not in alone.weights and not name.endswith("up.conv.bias")
    }
    assert rest
    for gradient in torch.autograd.grad((network(features)[0][mask] * weights).sum(), list(rest.values())):
        assert float(gradient.abs().max()) < 1e-2  # a norm follows: nothing but rounding
    given = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(alone.turned_back(alone.turned(given)), given)
