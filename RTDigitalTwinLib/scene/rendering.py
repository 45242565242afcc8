"""Whether pictures can be drawn here, found out without risking this process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import cache
from typing import Any

from vtkmodules import vtkRenderingCore, vtkRenderingOpenGL2

from RTDigitalTwinLib.scene.session import in_application

# Windows that need no screen, and the library that VTK loads for each. VTK's own choice is X first, which complains
# where there is none.
_WINDOWS = {"vtkEGLRenderWindow": "libEGL.so.1", "vtkOSOpenGLRenderWindow": "libOSMesa.so.8"}
_DEFAULT_WINDOW = "vtkRenderWindow"
_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri"
_REMEDY = " On Debian or Ubuntu: apt install"
_PATIENCE_S = 60

# A window where nothing can draw ends the process in some drivers, so another process tries it.
_TRIAL = """
import sys
import vtkmodules.vtkRenderingOpenGL2 as opengl
import vtkmodules.vtkRenderingCore as core
window = getattr(opengl, sys.argv[1], None) or getattr(core, sys.argv[1])
window = window()
window.SetOffScreenRendering(1)
window.SetSize(8, 8)
renderer = core.vtkRenderer()
renderer.SetBackground(1, 0, 0)
window.AddRenderer(renderer)
window.Render()
grab = core.vtkWindowToImageFilter()
grab.SetInput(window)
grab.ReadFrontBufferOff()
grab.Update()
print("drawn" if grab.GetOutput().GetPointData().GetScalars().GetTuple(0) == (255, 0, 0) else "blank")
"""


def offscreen_window() -> Any:
    """A window without a screen, of the kind that was found to draw here."""
    window = _window_class(_found()[0] or _DEFAULT_WINDOW)()
    window.SetOffScreenRendering(1)
    return window


def _window_class(name: str) -> Any:
    """None where this VTK has none of the name."""
    return getattr(vtkRenderingOpenGL2, name, None) or getattr(vtkRenderingCore, name, None)


def rendering_problem() -> str | None:
    """What is missing to draw pictures off-screen and how to get it; None where nothing is. Tried once, about 1 s."""
    return _found()[1]


@cache
def _found() -> tuple[str | None, str | None]:
    """The class of window that draws here, or the problem."""
    if in_application():
        return _DEFAULT_WINDOW, None
    if not sys.platform.startswith("linux"):
        problem = _problem_of(_DEFAULT_WINDOW)
        return (None, problem) if problem else (_DEFAULT_WINDOW, None)
    windows = [name for name, library in _WINDOWS.items() if _window_class(name) and _loads(library)]
    if not windows or not (_loads("libGL.so.1") or windows == ["vtkOSOpenGLRenderWindow"]):
        return None, f"OpenGL libraries are missing.{_REMEDY} {_PACKAGES}"
    problem = None
    for name in windows:
        problem = _problem_of(name)
        if problem is None:
            return name, None
    return None, f"{problem}{_REMEDY} {_PACKAGES}"


def _problem_of(window: str) -> str | None:
    """What goes wrong when another process draws with this kind of window."""
    try:
        command = [sys.executable, "-c", _TRIAL, window]
        trial = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Off-screen rendering could not be tried ({type(error).__name__})."
    if trial.returncode == 0 and "drawn" in trial.stdout.split():
        return None
    return "Off-screen rendering does not work: no driver draws (EGL or Mesa)."


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
