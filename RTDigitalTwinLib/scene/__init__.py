"""The only door to 3D Slicer: MRML nodes to and from the library's types, pictures, MRB bundles."""

from RTDigitalTwinLib.errors import SceneError

try:
    import slicer
    import vtk
except ImportError as error:
    raise SceneError(
        f"Slicer's libraries are not installed ({error}).",
        remedy="Install them with: pip install slicer-core vtk==9.6.0, or work inside 3D Slicer.",
    ) from error

__all__ = ["slicer", "vtk"]
