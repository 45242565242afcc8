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

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Pseudonyms of the training patients of all its networks, where the manifest names them."""
        trainings = (self.manifest.get("training", {}), *self.manifest.get("coarse_training", ()))
        return tuple(dict.fromkeys(name for told in trainings for name in told.get("pseudonyms", ())))


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
    others = [c.channels for c in (configuration, *coarse) if not set(c.channels) <= set(CHANNELS)]
    if others:
        raise ModelError(
            f"The network was trained on other inputs: {', '.join(others[0])}.",
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


def join_weights(main: Path, coarse: Sequence[Path], out: Path) -> str:
    """Write a dose network and coarse ones into one file, with the dose network's manifest; returns the SHA-256.

    Coarse networks that lie beside the dose network already are left out. Raises ModelError where a file cannot be
    read, is not of its kind, is given twice or does not go with the others, OutputError where none can be written.
    """
    paths = (main, *coarse)
    loaded = [load_network(path) for path in paths]
    dose = loaded[0].network.configuration
    for i, (path, one) in enumerate(zip(paths, loaded, strict=True)):
        found = one.network.configuration
        problem = ""
        if (found.block > 1) is not (i > 0):
            problem = f"These are {'not ' if i else ''}a coarse network's weights."
        elif found.channels != dose.channels:
            problem = f"The network has other inputs than that of {main.name}."
        elif i and found.block != loaded[1].network.configuration.block:
            problem = f"The network sees other blocks than that of {coarse[0].name}."
        elif one.sha256 in [other.sha256 for other in loaded[:i]]:
            problem = "These weights are given twice."
        if problem:
            raise ModelError(
                problem, where=path.name, remedy="Name a dose network, then coarse ones trained to go with it."
            )
    made = ("sha256", "configuration", "dose_network_sha256", "coarse", "coarse_training")
    about = {k: v for k, v in loaded[0].manifest.items() if k not in made}
    about["dose_network_sha256"] = loaded[0].manifest.get("dose_network_sha256", loaded[0].sha256)
    about["coarse_training"] = [other.manifest.get("training", {}) | {"sha256": other.sha256} for other in loaded[1:]]
    return save_weights(loaded[0].network, out, about, [other.network for other in loaded[1:]])


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
