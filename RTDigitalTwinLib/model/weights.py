"""Network weights on disk: safetensors beside a JSON manifest with their SHA-256."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from RTDigitalTwinLib.errors import ModelError, OutputError, RTDigitalTwinError
from RTDigitalTwinLib.files import sha256_of, whole_file
from RTDigitalTwinLib.model.coarse import Committee
from RTDigitalTwinLib.model.familiarity import Familiarity
from RTDigitalTwinLib.model.features import CHANNELS
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.resources import resource_path

WEIGHTS_SUFFIX = ".safetensors"
DEFAULT_WEIGHTS = ("Models", f"dose-unet{WEIGHTS_SUFFIX}")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with the hash of its weights and what its manifest says of their making.

    ``committee``: the coarse networks that come with it, where there are any.
    """

    network: DoseUNet
    sha256: str
    manifest: dict
    familiarity: Familiarity | None = None
    committee: Committee | None = None


def default_weights() -> Path:
    """The weights that come with the software. Raises ModelError where they are missing."""
    try:
        return resource_path(*DEFAULT_WEIGHTS)
    except RTDigitalTwinError as error:
        raise ModelError(
            "The network's weights are not there.",
            where="/".join(DEFAULT_WEIGHTS),
            remedy="Install RTDigitalTwin again, or pass --weights FILE.",
        ) from error


def manifest_path(weights: Path) -> Path:
    return weights.with_suffix(".json")


def save_weights(network: DoseUNet, path: Path, about: dict, coarse: Sequence[DoseUNet] = ()) -> str:
    """Write weights in half precision and their manifest (``about`` is merged in); returns the SHA-256.

    ``coarse`` networks go into the same file.
    """
    from safetensors import SafetensorError  # here, since training does without it until its end
    from safetensors.torch import save_file

    state = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    for i, member in enumerate(coarse):
        state |= {f"{_coarse_prefix(i)}{k}": tensor.half().contiguous() for k, tensor in member.state_dict().items()}
    with whole_file(path) as aside:
        try:
            save_file(state, aside)
        except SafetensorError as error:
            raise OutputError(f"The weights cannot be written ({error}).", where=path.name) from error
        digest = sha256_of(aside)
    manifest = {"sha256": digest, "configuration": network.configuration.as_dict(), **about}
    if coarse:
        manifest["coarse"] = [member.configuration.as_dict() for member in coarse]
    with whole_file(manifest_path(path)) as aside:
        aside.write_text(json.dumps(manifest, indent=2) + "\n")
    return digest


def load_network(path: Path | None = None) -> LoadedNetwork:
    """The network of a weights file (by default the one that comes with the software), in float32 on the CPU.

    Raises ModelError where the file or its manifest is missing, the SHA-256 differs, or the weights do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = default_weights() if path is None else Path(path)
    if not path.is_file():
        raise ModelError("There is no such weights file.", where=str(path))
    manifest_file = manifest_path(path)
    try:
        manifest = json.loads(manifest_file.read_text())
        configuration = NetworkConfiguration.from_dict(manifest["configuration"])
        coarse = [NetworkConfiguration.from_dict(stored) for stored in manifest.get("coarse", ())]
        familiarity = Familiarity.from_dict(manifest["familiarity"]) if "familiarity" in manifest else None
        expected = manifest["sha256"]
    except FileNotFoundError as error:
        raise ModelError(
            "The manifest that belongs to the weights is missing.",
            where=manifest_file.name,
            remedy="Keep it beside the weights: it holds their SHA-256.",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("The manifest is damaged.", where=manifest_file.name, remedy="Copy it anew.") from error
    found = sha256_of(path)
    if found != expected:
        raise ModelError(
            f"The weights are not the ones the manifest names: SHA-256 {found[:12]}..., expected {expected[:12]}....",
            where=path.name,
            remedy="Copy them anew.",
        )
    if not set(configuration.channels) <= set(CHANNELS) or any(c.channels != configuration.channels for c in coarse):
        raise ModelError(
            f"The network was trained on other inputs: {', '.join(configuration.channels)}.",
            where=path.name,
            remedy="Use weights trained with this version.",
        )
    try:
        stored = {name: tensor.float() for name, tensor in load_file(path).items()}
        members = tuple(
            _made(c, {k.removeprefix(p): stored.pop(k) for k in list(stored) if k.startswith(p)})
            for c, p in ((c, _coarse_prefix(i)) for i, c in enumerate(coarse))
        )
        network = _made(configuration, stored)
        committee = Committee(members) if members else None
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise ModelError("The weights do not fit the network of their manifest.", where=path.name) from error
    return LoadedNetwork(network, found, manifest, familiarity, committee)


def _coarse_prefix(number: int) -> str:
    return f"coarse.{number}."


def _made(configuration: NetworkConfiguration, state: dict[str, torch.Tensor]) -> DoseUNet:
    with torch.device("meta"):  # no random values that would be overwritten
        network = DoseUNet(configuration)
    network.load_state_dict(state, assign=True)
    return network.eval()


def join_weights(main: Path | None, coarse: Sequence[Path], out: Path) -> str:
    """Write a dose network and coarse ones into one file, with the dose network's manifest; returns the SHA-256.

    Raises ModelError where one cannot be read, is not of its kind, or has other inputs, OutputError where the file
    cannot be written.
    """
    loaded = load_network(main)
    others = [load_network(path) for path in coarse]
    for path, one, is_coarse in zip((main, *coarse), (loaded, *others), (False, *(True for _ in coarse)), strict=True):
        if (one.network.configuration.block > 1) is not is_coarse:
            raise ModelError(
                f"These are {'not ' if is_coarse else ''}a coarse network's weights.",
                where=(path or default_weights()).name,
                remedy="Name the dose network first, then coarse ones (rt-digital-twin train --configuration coarse).",
            )
        if one.network.configuration.channels != loaded.network.configuration.channels:
            raise ModelError(
                f"It has other inputs than {(main or default_weights()).name}.",
                where=(path or default_weights()).name,
                remedy="Train it anew with this version.",
            )
    own = ("sha256", "configuration", "coarse", "coarse_training")
    about = {k: v for k, v in loaded.manifest.items() if k not in own}
    about["coarse_training"] = [
        {k: v for k, v in other.manifest.get("training", {}).items() if k != "pseudonyms"} | {"sha256": other.sha256}
        for other in others
    ]
    return save_weights(loaded.network, out, about, [other.network for other in others])


def choose_device(wanted: str = "auto") -> torch.device:
    """``auto`` takes a GPU where torch has one. Raises ModelError where the wanted device is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", wanted)
    if match is None:
        raise ModelError(f"There is no device {wanted!r}.", remedy="Use auto, cpu, cuda or cuda:N.")
    if wanted != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"torch finds no CUDA GPU {wanted!r} here.", remedy="Use --device cpu, or install a CUDA build of torch."
        )
    return torch.device(wanted)
