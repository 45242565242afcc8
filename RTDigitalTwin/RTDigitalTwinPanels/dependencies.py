"""What the library needs and Slicer lacks: named, and installed after asking."""

import importlib
import importlib.util
import re

from slicer import packaging
from slicer.i18n import tr as _

from RTDigitalTwinLib.errors import RTDigitalTwinError

TORCH = "torch"


def missingPackages(requirementsPath):
    """Names of the packages that are not there, torch first."""
    importlib.invalidate_caches()
    with open(requirementsPath, encoding="utf-8") as file:
        lines = [line.split("#")[0].strip() for line in file]
    names = [TORCH, *(re.split(r"[<>=!~ \[]", line)[0] for line in lines if line)]
    return [name for name in names if not _isThere(name)]


def _isThere(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # found and broken
        return False


def install(requirementsPath):
    """Install what is missing, after asking the user. Raises RTDigitalTwinError where torch was not installed."""
    if TORCH in missingPackages(requirementsPath):
        try:
            from PyTorchUtils import PyTorchUtilsLogic
        except ImportError as error:
            raise RTDigitalTwinError(
                _("The PyTorch extension is not installed."),
                remedy=_("Install PyTorch in the Extensions Manager and restart Slicer."),
            ) from error
        if PyTorchUtilsLogic().installTorch(askConfirmation=True) is None:
            raise RTDigitalTwinError(
                _("PyTorch is not installed."), remedy=_("Install it with the PyTorch Util module.")
            )
    packaging.pip_ensure(packaging.load_requirements(requirementsPath), requester="RT Digital Twin")


def words(missing):
    """What is missing and how to get it, for the panel."""
    listed = ", ".join(missing)
    text = _("Missing: {listed}. The panel can be looked at; computing needs them.").format(listed=listed)
    if TORCH in missing:
        text += " " + _("PyTorch comes through the PyTorch extension (Extensions Manager).")
    return text
