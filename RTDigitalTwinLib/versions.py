"""What software and machine make a result, without the name of a user, patient or machine."""

from __future__ import annotations

import os
import platform
import re
from hashlib import sha256
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "monai", "numpy", "SimpleITK")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def library_versions() -> tuple[tuple[str, str], ...]:
    """(name, version), Python first."""
    return (("Python", platform.python_version()), *((name, _version(name)) for name in LIBRARIES))


def code_sha256() -> str:
    """Of this library's own code: two states of one version differ in it."""
    folder = Path(__file__).parent
    digest = sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def described_device(device: torch.device | str) -> str:
    """``cpu``, or ``cuda (NVIDIA ...)``."""
    import torch

    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return device.type


def machine() -> dict[str, str | int]:
    """What the last digits of a result depend on besides software: processor, its instructions used, threads."""
    import torch

    found: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    return found | {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or "unknown"


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # an application may bring a library without its metadata
        try:
            return str(getattr(import_module(library), "__version__", "unknown"))
        except ModuleNotFoundError:
            return "not installed"
