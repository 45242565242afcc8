"""The blocks of MONAI's U-Net, of which the prototype's network is made, with this library's norm and activation.

For the configuration ``paper`` alone: importing MONAI takes longer than a third of a patient's prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.networks.blocks import Convolution, ResidualUnit
from torch import nn

from RTDigitalTwinLib.model.blocks import Blocks
from RTDigitalTwinLib.model.layers import ChannelDropout, SharedPReLU
from RTDigitalTwinLib.model.norm import InstanceNorm

_KIND: dict[str, Any] = {"act": "PRELU", "norm": "instance", "dropout_dim": 3}
_ANY_RATIO = 0.1  # of the dropout that MONAI draws itself; it is replaced


def residual_unit(inputs: int, width: int, *, subunits: int = 1, dropout: bool = False, **more: Any) -> nn.Module:
    """As ``blocks.ResidualUnit``."""
    ratio = _ANY_RATIO if dropout else None
    return _with_own_layers(ResidualUnit(3, inputs, width, subunits=subunits, dropout=ratio, **_KIND, **more))


def convolution(inputs: int, width: int) -> nn.Module:
    """As ``blocks.convolution``."""
    return _with_own_layers(Convolution(3, inputs, width, **_KIND))


def up_convolution(inputs: int, width: int, *, dropout: bool) -> nn.Module:
    """As ``blocks.up_convolution``."""
    ratio = _ANY_RATIO if dropout else None
    return _with_own_layers(Convolution(3, inputs, width, strides=2, is_transposed=True, dropout=ratio, **_KIND))


MONAI_BLOCKS = Blocks(residual_unit, convolution, up_convolution)


def _with_own_layers(parts: nn.Module) -> nn.Module:
    """With the norms, dropouts and activations replaced by this library's."""
    for block in [part for part in parts.modules() if isinstance(part, Convolution)]:
        for name, layer in list(_layers_behind(block)):
            setattr(block.adn, name, layer)
    return parts


def _layers_behind(block: Convolution) -> Iterator[tuple[str, nn.Module]]:
    if not hasattr(block, "adn"):
        return
    yield "N", InstanceNorm()
    if hasattr(block.adn, "D"):
        yield "D", ChannelDropout(block.out_channels)
    activation = SharedPReLU()
    activation.weight = block.adn.A.weight
    yield "A", activation
