"""Whether pictures can be drawn here, found out without risking this process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import cache

from RTDigitalTwinLib.scene.session import in_application

# What VTK loads by itself at its first window, and the Debian package each comes in.
_LIBRARIES = {"libEGL.so.1": "libegl1", "libGL.so.1": "libgl1"}
_VENDOR_PACKAGES = "libegl-mesa0 libgl1-mesa-dri"
_REMEDY = " On Debian or Ubuntu: apt install"
_PATIENCE_S = 60

# A window where nothing can draw ends the process in some drivers, so another process tries it.
_TRIAL = """
import vtkmodules.vtkRenderingOpenGL2
from vtkmodules.vtkCommonCore import vtkObject
from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow, vtkWindowToImageFilter
vtkObject.GlobalWarningDisplayOff()
window = vtkRenderWindow()
window.SetOffScreenRendering(1)
window.SetSize(8, 8)
renderer = vtkRenderer()
renderer.SetBackground(1, 0, 0)
window.AddRenderer(renderer)
window.Render()
grab = vtkWindowToImageFilter()
grab.SetInput(window)
grab.ReadFrontBufferOff()
grab.Update()
print("drawn" if grab.GetOutput().GetPointData().GetScalars().GetTuple(0) == (255, 0, 0) else "blank")
"""


@cache
def rendering_problem() -> str | None:
    """What is missing to draw pictures off-screen and how to get it; None where nothing is. Tried once, about 1 s."""
    if in_application():
        return None
    if sys.platform.startswith("linux"):
        missing = [package for library, package in _LIBRARIES.items() if not _loads(library)]
        if missing:
            return (
                f"OpenGL libraries are missing. On Debian or Ubuntu: apt install {' '.join(missing)} {_VENDOR_PACKAGES}"
            )
    try:
        trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Off-screen rendering could not be tried ({type(error).__name__})."
    if trial.returncode == 0 and "drawn" in trial.stdout.split():
        return None
    remedy = f"{_REMEDY} {_VENDOR_PACKAGES}" if sys.platform.startswith("linux") else ""
    return f"Off-screen rendering does not work: no driver draws (EGL or Mesa).{remedy}"


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
