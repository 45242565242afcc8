"""Registrations of two CTs by SimpleITK, rigid or deformable, each with its inconsistency as error.

Rigid: mutual information (Mattes et al., IEEE Trans Med Imaging 22, 120, 2003), which takes CTs of any scanner.
Deformable, after it: demons with symmetric forces (Thirion, Medical Image Analysis 2, 243, 1998; Vercauteren et al.,
NeuroImage 45, S61, 2009), which compare HU, so both CTs need true ones. Where tissue is even, nothing tells one place
from the next, and the displacement is that of the surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import GeometryError, PatientDataError
from RTDigitalTwinLib.patient.registration import Registration
from RTDigitalTwinLib.patient.volume import Quantity, Volume, to_sitk
from RTDigitalTwinLib.progress import Progress, part, silent

LOWEST_HU, HIGHEST_HU = -1000.0, 1500.0  # beyond lie padding and metal
FEWEST_VOXELS = 8  # along each axis
SEED = 1
SOFT_TISSUE_HU = (-200.0, 400.0)
RIGID_FACTORS, DEFORMABLE_FACTORS = (4, 2, 1), (4, 2)  # of the resolutions; the finest holds mostly noise
DENSITY_CHANGE_HU = 300.0  # between soft tissue and air, or bone
# Density changed and inconsistency beyond which a registration is taken for failed. Where left and right look alike, a
# turned patient stays below them.
MOST_CHANGED_RATIO, MOST_MM = 0.20, 10.0


@dataclass(frozen=True)
class RegistrationSettings:
    """How to register.

    Attributes
    ----------
    deformable : by demons after the rigid registration; else rigid alone.
    iterations : of the demons, at a quarter and half of the resolution.
    smoothing_voxels : standard deviation of the displacement's smoothing, of a resolution's voxels: less follows finer
        motion, and noise.
    """

    deformable: bool = True
    iterations: tuple[int, int] = (100, 60)
    smoothing_voxels: float = 2.0

    def __post_init__(self) -> None:
        if min(self.iterations) < 1 or not 0.1 <= self.smoothing_voxels <= 20:
            raise GeometryError(f"Images cannot be registered by {self}.", remedy="Use the defaults.")


def registered(
    fixed: Volume, moving: Volume, settings: RegistrationSettings | None = None, progress: Progress = silent
) -> Registration:
    """Where the tissue of the fixed CT lies in the moving one.

    Done a second time the other way, from the start: the inconsistency of the two is the registration's error, on the
    grid of the fixed CT. One thread: the same images give the same registration.
    Raises PatientDataError where a volume is no CT, GeometryError where one is too small or they cannot be registered.
    """
    settings = settings or RegistrationSettings()
    for volume in (fixed, moving):
        if volume.quantity is not Quantity.HU:
            raise PatientDataError(f"CTs are registered, not {volume.quantity.value}.")
        if min(volume.grid.shape) < FEWEST_VOXELS:
            raise GeometryError(f"A CT of {volume.grid.shape} voxels is too small to be registered.")
    there = _one_way(fixed, moving, settings, part(progress, 0.0, 0.45))
    back = _one_way(moving, fixed, settings, part(progress, 0.45, 0.9))
    progress(0.9, "comparing there and back")
    return replace(there, error=there.inconsistency(back, fixed.grid))


def _one_way(fixed: Volume, moving: Volume, settings: RegistrationSettings, progress: Progress) -> Registration:
    import SimpleITK as sitk

    images = [_image(volume) for volume in (fixed, moving)]
    frames = fixed.grid.frame_of_reference, moving.grid.frame_of_reference
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # parts of the filters take it; sums differ by their order
    try:
        progress(0.0, "registering, rigid")
        rigid = _rigid(*images)
        rotation, offset = _matrix_and_offset(rigid)
        if not settings.deformable:
            return Registration(*frames, rotation, offset)
        aligned = sitk.Resample(images[1], images[0], rigid, sitk.sitkLinear, LOWEST_HU)
        field = _displacement(images[0], aligned, settings, part(progress, 0.3, 1.0))
    except RuntimeError as error:
        raise GeometryError(
            "The images cannot be registered: they do not overlap, or look nothing alike.",
            remedy="Check that both are of the same region and person.",
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    displacement = sitk.GetArrayFromImage(field)
    return Registration(*frames, rotation, offset, displacement, fixed.grid)


def _image(volume: Volume) -> Any:
    hu = np.nan_to_num(np.asarray(volume.values, np.float32), nan=LOWEST_HU)
    return to_sitk(np.clip(hu, LOWEST_HU, HIGHEST_HU), volume.grid)


def _rigid(fixed: Any, moving: Any) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([0.5, 0.2, 0.1], SEED)  # of the jitter of the places
    fewest = min(fixed.GetSize()) // FEWEST_VOXELS
    method.SetShrinkFactorsPerLevel([max(1, min(factor, fewest)) for factor in RIGID_FACTORS])
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method.SetInitialTransform(start, inPlace=False)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200, gradientMagnitudeTolerance=1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    found = method.Execute(fixed, moving)
    return sitk.Euler3DTransform(sitk.CompositeTransform(found).GetNthTransform(0))


def _displacement(fixed: Any, moving: Any, settings: RegistrationSettings, progress: Progress) -> Any:
    """Displacement field on the fixed image, from coarse to fine; both images in one place but for it."""
    import SimpleITK as sitk

    field = None
    for level, (factor, iterations) in enumerate(zip(DEFORMABLE_FACTORS, settings.iterations, strict=True)):
        progress(level / len(DEFORMABLE_FACTORS), "registering, deformable")
        pair = [_coarser(image, factor) for image in (fixed, moving)]
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfThreads(1)
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(settings.smoothing_voxels)
        if field is None:
            field = demons.Execute(*pair)
        else:
            start = sitk.Resample(field, pair[0], sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64)
            field = demons.Execute(*pair, start)
    return sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat32)


def _coarser(image: Any, factor: int) -> Any:
    """In HU that tell soft tissue, smoothed and thinned out by a factor where there are voxels enough."""
    import SimpleITK as sitk

    shown = sitk.Clamp(image, sitk.sitkFloat32, *SOFT_TISSUE_HU)
    factors = [max(1, min(factor, n // FEWEST_VOXELS)) for n in image.GetSize()]
    steps = [f * step for f, step in zip(factors, image.GetSpacing(), strict=True)]
    return sitk.Shrink(sitk.DiscreteGaussian(shown, [(0.4 * step) ** 2 for step in steps]), factors)


def _matrix_and_offset(rigid: Any) -> tuple[tuple[float, ...], tuple[float, float, float]]:
    """R and t of R x + t, for a rotation about a centre."""
    matrix = np.reshape(rigid.GetMatrix(), (3, 3))
    left, _, right = np.linalg.svd(matrix)  # without the last digits' rounding
    matrix = left @ right
    centre, shift = np.array(rigid.GetCenter()), np.array(rigid.GetTranslation())
    x, y, z = centre + shift - matrix @ centre
    return tuple(matrix.ravel().tolist()), (float(x), float(y), float(z))


def density_change_ratio(fixed: Volume, moving: Volume, registration: Registration, inside: NDArray[np.bool_]) -> float:
    """Share of the voxels ``inside`` (slices, rows, columns) whose tissue has another density in the moving CT.

    That is more than ``DENSITY_CHANGE_HU`` apart; voxels whose tissue is not known there count as changed.
    """
    moved = registration.onto(moving, fixed.grid).values
    with np.errstate(invalid="ignore"):
        same = np.abs(moved - fixed.values) <= DENSITY_CHANGE_HU
    return float(1 - same[inside].mean())
