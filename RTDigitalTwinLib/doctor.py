"""What this installation can do, and what to do about the rest."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import metadata

from RTDigitalTwinLib import __version__
from RTDigitalTwinLib.errors import RTDigitalTwinError, SceneError
from RTDigitalTwinLib.words import counted

NEEDED_PACKAGES = (
    "torch", "monai", "numpy", "scipy", "SimpleITK", "safetensors", "pymedphys", "jinja2", "matplotlib", "rich",
    "pydicom", "contourpy",
)  # fmt: skip
SCENE_PACKAGES = ("slicer-core", "vtk")
INSTALL = "pip install . -c constraints.txt"
INSTALL_SCENE = 'pip install ".[scene]" -c constraints.txt'


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
    checks += [_torch(name) if name == "torch" else _package(name, State.BROKEN) for name in NEEDED_PACKAGES]
    checks += [_package(name, State.LIMITED) for name in SCENE_PACKAGES]
    checks.append(_guarded("GPU", _gpu, State.LIMITED))
    checks.append(_guarded("weights", _weights, State.BROKEN))
    checks.append(_guarded("off-screen pictures", _pictures, State.LIMITED))
    return checks


def _guarded(name: str, check: Callable[[str], Check], when_failing: State) -> Check:
    try:
        return check(name)
    except RTDigitalTwinError as error:
        return Check(name, when_failing, error.what, error.remedy)
    except Exception as error:  # a broken package fails in its own way, and the other checks shall be seen
        return Check(name, when_failing, f"cannot be checked: {_one_line(error)}", f"Install the packages: {INSTALL}")


def _package(name: str, when_missing: State) -> Check:
    try:
        return Check(name, State.OK, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, when_missing, "not installed", INSTALL_SCENE if name in SCENE_PACKAGES else INSTALL)


def _torch(name: str) -> Check:
    """Whether it can be used too: its libraries may be missing or made for another computer."""
    found = _package(name, State.BROKEN)
    if found.state is not State.OK:
        return found
    try:
        import torch
    except Exception as error:
        remedy = "Install it anew: pip install --force-reinstall torch -c constraints.txt"
        return Check(name, State.BROKEN, f"{found.found} cannot be imported: {_one_line(error)}", remedy)
    return Check(name, State.OK, torch.__version__)


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
    from RTDigitalTwinLib.model.weights import load_network
    from RTDigitalTwinLib.solver.calibration_file import load_calibration

    loaded = load_network()
    stored = load_calibration(None, loaded.sha256)
    if stored is None:
        said = f"intact, SHA-256 {loaded.sha256[:12]}; bands not calibrated"
        return Check(name, State.LIMITED, said, "Run rt-digital-twin calibrate on patients with known dose.")
    measured = f"bands calibrated on {counted(stored.whole.patients, 'patient')}"
    return Check(name, State.OK, f"intact, SHA-256 {loaded.sha256[:12]}; {measured}")


def _pictures(name: str) -> Check:
    try:
        from RTDigitalTwinLib.scene.snapshot import rendering_problem
    except SceneError as error:
        return Check(name, State.LIMITED, f"{error.what} Runs finish without scene and pictures.", error.remedy)

    problem = rendering_problem()
    if problem is None:
        return Check(name, State.OK, "possible")
    return Check(name, State.LIMITED, "not possible: runs finish without them", problem)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
