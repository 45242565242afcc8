"""The only door to 3D Slicer: MRML nodes to and from the library's types, pictures, MRB bundles.

Of VTK only the parts that are used: the package ``vtk`` imports all of them.
"""

from RTDigitalTwinLib.doctor import INSTALL_SCENE
from RTDigitalTwinLib.errors import SceneError

try:
    import slicer
    import vtkmodules
except ImportError as error:
    raise SceneError(
        f"Slicer's libraries are not installed ({str(error).replace(f' ({error.path})', '')}).",  # reports hold no path
        remedy=f"Install them: {INSTALL_SCENE}, or work inside 3D Slicer.",
    ) from error
if not hasattr(slicer, "vtkMRMLScene"):
    raise SceneError(
        "The package installed as 'slicer' is not 3D Slicer's.",
        remedy=f"Make room and install slicer-core: pip uninstall slicer; {INSTALL_SCENE}",
    )

__all__ = ["slicer", "vtkmodules"]
