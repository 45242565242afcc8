"""What this installation can do, and what to do about the rest."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import metadata, util

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.errors import RTDigitalTwinError

NEEDED_PACKAGES = ("torch", "monai", "numpy", "SimpleITK", "pydicom", "safetensors", "jinja2", "matplotlib")
SCENE_PACKAGES = ("slicer-core", "vtk")


class State(Enum):
    """How a check went."""

    OK = "ok"
    LIMITED = "limited"
    BROKEN = "broken"


@dataclass(frozen=True)
class Check:
    """One finding, with what to do where something is missing."""

    name: str
    state: State
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Look at packages, GPU, weights and system libraries."""
    checks = [Check("RTDigitalTwin", State.OK, f"{__version__} on Python {platform.python_version()}")]
    checks += [_package(name, State.BROKEN) for name in NEEDED_PACKAGES]
    checks += [_package(name, State.LIMITED) for name in SCENE_PACKAGES]
    checks += [_guarded("GPU", _gpu), _guarded("weights", _weights), _guarded("off-screen pictures", _pictures)]
    return checks


def _guarded(name: str, check: Callable[[str], Check]) -> Check:
    try:
        return check(name)
    except RTDigitalTwinError as error:
        return Check(name, State.BROKEN, error.what, error.remedy)
    except ImportError as error:
        return Check(name, State.LIMITED, f"cannot be checked: {error}", "Install the missing package.")


def _package(name: str, when_missing: State) -> Check:
    try:
        return Check(name, State.OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        extra = "[scene]" if name in SCENE_PACKAGES else ""
        return Check(name, when_missing, "not installed", f"pip install 'RTDigitalTwinLib{extra}'")


def _gpu(name: str) -> Check:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Check(name, State.OK, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    build = torch.version.cuda
    if build is None:
        remedy = "For a GPU install a CUDA build of torch."
    else:
        remedy = f"torch is built for CUDA {build} but finds no GPU: check the driver."
    return Check(name, State.LIMITED, "none: predictions run on the CPU", remedy)


def _weights(name: str) -> Check:
    from RTDigitalTwinLib.model.weights import default_weights, load_network

    loaded = load_network(default_weights())
    return Check(name, State.OK, f"intact, SHA-256 {loaded.sha256[:12]}")


def _pictures(name: str) -> Check:
    if util.find_spec("slicer") is None:
        return Check(name, State.LIMITED, "slicer-core is not installed", "pip install 'RTDigitalTwinLib[scene]'")
    from RTDigitalTwinLib.scene.snapshot import rendering_problem

    problem = rendering_problem()
    if problem is None:
        return Check(name, State.OK, "possible")
    return Check(name, State.LIMITED, "not possible: runs finish without them", problem)
