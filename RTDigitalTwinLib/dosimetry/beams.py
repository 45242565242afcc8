"""Coplanar photon beams: non-negative fluence to dose, as parallel rays through the attenuating body with a penumbra.

A helper of prediction and of what-if changes, not a dose engine: no divergence, no multileaf collimator, no lateral
scatter that depends on density. Linear in the fluence and differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from RTDigitalTwinLib.errors import GeometryError
from RTDigitalTwinLib.patient.grid import Box, Grid, Shape
from RTDigitalTwinLib.progress import Progress, silent


@dataclass(frozen=True)
class BeamQuality:
    """A 6 MV photon beam in water, in few numbers.

    Attributes
    ----------
    attenuation_per_mm : exponential fall of dose behind its maximum. 0.0050 and the build-up below put the maximum at
        18 mm and 68 % at 100 mm depth; a 10 x 10 cm field at 100 cm has about 15 mm and 67 %.
    build_up_per_mm : exponential rise of dose under the skin.
    penumbra_mm : standard deviation of the blur at a field's edge.
    scatter_mm, scatter_ratio : standard deviation and share of a second, wider blur.
    """

    attenuation_per_mm: float = 0.0050
    build_up_per_mm: float = 0.21
    penumbra_mm: float = 3.0
    scatter_mm: float = 20.0
    scatter_ratio: float = 0.12


SIX_MV = BeamQuality()
HALF_WAY = 0.501  # pixels, with room for rounding


def relative_density(ct_hu: Tensor) -> Tensor:
    """Electron density relative to water from HU: bilinear, slower above water (bone), 0 in air."""
    density = torch.where(ct_hu < 0, 1 + ct_hu / 1000, 1 + ct_hu / 1950)
    return torch.where(ct_hu < -950, 0.0, density).clamp(0, 3)


class CoplanarBeams:
    """The linear map from fluence to dose for beams that turn about the superior-inferior axis.

    Attributes
    ----------
    shape : (slices, rows, columns) of the dose.
    fluence_shape : (beams, slices, rays).
    transmission : (beams, slices, rows, columns), dose per unit of fluence where the ray passes.
    """

    def __init__(
        self,
        ct_hu: NDArray | Tensor,
        grid: Grid,
        gantry_angles_deg: Sequence[float],
        quality: BeamQuality = SIX_MV,
        window: Box | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Parameters
        ----------
        ct_hu : (slices, rows, columns) on ``grid``; holds the whole body in the plane.
        gantry_angles_deg : IEC 61217 gantry angles, couch at 0, head first supine.
        window : the part of the grid where dose is wanted; by default all of it.

        Raises
        ------
        GeometryError : no beams, or a grid whose axes are not those of the patient, or with oblong pixels.
        """
        if not len(gantry_angles_deg):
            raise GeometryError("No beam angles are given.", remedy="Name at least one gantry angle.")
        if not np.allclose(np.reshape(grid.direction, (3, 3)), np.eye(3), atol=1e-4):
            raise GeometryError(
                "Beams need rows, columns and slices along the patient's left, posterior and superior.",
                remedy="Resample the CT to such a grid first.",
            )
        dx, dy, dz = grid.spacing_mm
        if abs(dx - dy) > 1e-3 * dx:
            raise GeometryError(f"Beams need square pixels, not {dx} x {dy} mm.", remedy="Resample the CT first.")
        slices, rows, columns = (slice(0, n) for n in grid.shape) if window is None else window
        self.quality, self.pixel_mm, self.slice_mm = quality, dx, dz
        hu = torch.tensor(np.asarray(ct_hu)[slices], dtype=torch.float32, device=device)
        self.rays = math.ceil(math.hypot(*grid.shape[1:])) | 1
        across, along = self._coordinates(grid.shape, gantry_angles_deg, hu.device)
        self._across, self._along = across[:, rows, columns], along[:, rows, columns]
        density = relative_density(hu)
        self.transmission = torch.stack([self._transmission(density, k, a) for k, a in enumerate(gantry_angles_deg)])
        self._rays_seen, self._ray_weights = self._interpolation()
        self.shape = tuple(self.transmission.shape[1:])
        self._blurs = [
            (_blur(self.shape[0], sigma_mm / dz, hu.device), _blur(self.rays, sigma_mm / dx, hu.device))
            for sigma_mm in (quality.penumbra_mm, quality.scatter_mm)
        ]

    @property
    def fluence_shape(self) -> tuple[int, int, int]:
        return len(self.transmission), self.shape[0], self.rays

    @staticmethod
    def _coordinates(shape: Shape, angles_deg: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
        """In pixels from the centre of the slice: across each beam, and along its travel; (beams, rows, columns)."""
        _, rows, columns = shape
        y = torch.arange(rows, device=device)[:, None] - (rows - 1) / 2
        x = torch.arange(columns, device=device)[None] - (columns - 1) / 2
        turn = torch.deg2rad(torch.tensor(angles_deg, dtype=torch.float32, device=device))[:, None, None]
        return x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()

    def _transmission(self, density: Tensor, beam: int, angle_deg: float) -> Tensor:
        """Relative depth dose at every voxel for one beam, from the water-equivalent depth along its rays."""
        cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        steps = torch.arange(self.rays, device=density.device) - (self.rays - 1) / 2
        along, across = steps[:, None], steps[None]
        turned = self._sample(density, across * cosine - along * sine, across * sine + along * cosine)
        depth_mm = (turned.cumsum(1) - turned / 2) * self.pixel_mm
        depth_mm = self._sample(depth_mm, self._across[beam], self._along[beam])
        rise = 1 - torch.exp(-self.quality.build_up_per_mm * depth_mm)
        return rise * torch.exp(-self.quality.attenuation_per_mm * depth_mm)

    @staticmethod
    def _sample(slices: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Bilinear values of (slices, rows, columns) at pixel offsets from the centre; 0 outside."""
        rows, columns = slices.shape[1:]
        where = torch.stack([2 * x / columns, 2 * y / rows], dim=-1)[None]
        return functional.grid_sample(slices[None], where, mode="bilinear", align_corners=False)[0]

    def _interpolation(self) -> tuple[list[slice], list[Tensor]]:
        """For each beam the rays that reach the window, and their linear weights there, (rays, rows * columns)."""
        position = (self._across + (self.rays - 1) / 2).flatten(1)
        every = torch.arange(self.rays, device=position.device)
        seen = [slice(int(p.min()), min(int(p.max()) + 2, self.rays)) for p in position]
        return seen, [(1 - (p - every[s, None]).abs()).clamp(min=0) for p, s in zip(position, seen, strict=True)]

    def blurred(self, fluence: Tensor) -> Tensor:
        """Penumbra and scatter over slices and rays."""
        sharp = self._gaussian(fluence, 0)
        return (1 - self.quality.scatter_ratio) * sharp + self.quality.scatter_ratio * self._gaussian(sharp, 1)

    def blurred_back(self, gathered: Tensor) -> Tensor:
        """The adjoint of ``blurred``."""
        q = self.quality
        scattered = self._gaussian(gathered, 1)
        return self._gaussian((1 - q.scatter_ratio) * gathered + q.scatter_ratio * scattered, 0)

    def _gaussian(self, fluence: Tensor, which: int) -> Tensor:
        """By the penumbra's (0) or the scatter's width (1)."""
        over_slices, over_rays = self._blurs[which]
        return over_slices @ fluence @ over_rays

    def dose(self, fluence: Tensor) -> Tensor:
        """Dose (slices, rows, columns) of a fluence (beams, slices, rays), in its units."""
        total = torch.zeros(self.shape, device=fluence.device)
        for beam, rays in enumerate(self.blurred(fluence)):
            total = total + self._beam_dose(beam, rays)
        return total

    def dose_by_beam(self, fluence: Tensor) -> Tensor:
        """Dose of each beam (beams, slices, rows, columns)."""
        return torch.stack([self._beam_dose(beam, rays) for beam, rays in enumerate(self.blurred(fluence))])

    def _beam_dose(self, beam: int, rays: Tensor) -> Tensor:
        spread = rays[:, self._rays_seen[beam]] @ self._ray_weights[beam]
        return spread.view(self.shape) * self.transmission[beam]

    def transposed(self, values: Tensor) -> Tensor:
        """The adjoint of ``dose``: values (slices, rows, columns) gathered along the rays, (beams, slices, rays)."""
        gathered = torch.zeros(self.fluence_shape, device=values.device)
        for beam, transmission in enumerate(self.transmission):
            given = (transmission * values).flatten(1)
            gathered[beam, :, self._rays_seen[beam]] = given @ self._ray_weights[beam].T
        return self.blurred_back(gathered)

    def taps(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """For voxels (flat indices of ``shape``) the rays that reach them, as flat indices of the fluence, and their
        dose per unit of blurred fluence: both (voxels, 2 x beams).
        """
        count, slices, rays = self.fluence_shape
        pixels = self.shape[1] * self.shape[2]
        lines, inside = places // pixels, places % pixels
        seen, weights = [], []
        for beam in range(count):
            position = (self._across[beam] + (self.rays - 1) / 2).flatten()[inside]
            below = position.floor()
            transmission = self.transmission[beam].flatten()[places]
            first = (beam * slices + lines) * rays
            seen += [first + below.long(), first + (below.long() + 1).clamp(max=rays - 1)]
            weights += [transmission * (1 - position + below), transmission * (position - below)]
        return torch.stack(seen, dim=1), torch.stack(weights, dim=1)

    def projection(self, values: Tensor) -> Tensor:
        """The highest of non-negative ``values`` (slices, rows, columns) along each ray: (beams, slices, rays)."""
        position = (self._across + (self.rays - 1) / 2).flatten(1)
        # A voxel half-way between two rays is seen by both: at 0 degrees every voxel is, in a slice of even width.
        nearest = [(position - HALF_WAY).ceil().long(), (position + HALF_WAY).floor().long()]
        flat = values.flatten(1)
        result = torch.zeros(self.fluence_shape, device=flat.device)
        for beam in range(len(position)):
            for rays in nearest:
                result[beam].scatter_reduce_(1, rays[beam].expand(len(flat), -1), flat, "amax")
        return result


def _blur(count: int, sigma: float, device: torch.device) -> Tensor:
    """Symmetric (count, count) matrix of a Gaussian of ``sigma`` steps, cut off at three; 0 beyond the ends."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=device) / sigma) ** 2)
    apart = (torch.arange(count, device=device)[:, None] - torch.arange(count, device=device)).abs()
    return torch.where(apart <= reach, torch.exp(-0.5 * (apart / sigma) ** 2) / kernel.sum(), 0.0)


@dataclass(frozen=True)
class FluenceGoal:
    """Weights of the squared errors that a fluence is fitted to: targets to their dose, all else in reach to none.

    The defaults were chosen on validation patients of OpenKBP, by the correlation of the dose with planned doses.
    """

    target: float = 1.0
    organ_at_risk: float = 0.1
    other: float = 0.01


FLUENCE_GOAL = FluenceGoal()


def prescribed_fluence(beams: CoplanarBeams, prescribed_gy: Tensor) -> Tensor:
    """Each ray with the highest dose prescribed along it, scaled to the least squared error over the targets.

    ``prescribed_gy`` (slices, rows, columns) is 0 outside the targets.
    """
    fluence = beams.projection(prescribed_gy)
    dose = beams.dose(fluence)
    target = prescribed_gy > 0
    return fluence * (dose * prescribed_gy)[target].sum() / (dose[target] ** 2).sum().clamp(min=1e-6)


def fitted_fluence(
    beams: CoplanarBeams,
    start: Tensor,
    prescribed_gy: Tensor,
    organs_at_risk: Tensor,
    reach: Tensor,
    goal: FluenceGoal = FLUENCE_GOAL,
    iterations: int = 12,
) -> Tensor:
    """Non-negative fluence whose dose is nearest to the prescription in the targets and to none elsewhere.

    Parameters
    ----------
    start : fluence to begin with, such as ``prescribed_fluence``.
    prescribed_gy : (slices, rows, columns), 0 outside the targets.
    organs_at_risk : occupancy, (slices, rows, columns).
    reach : voxels that count outside targets and organs, (slices, rows, columns), bool.
    """
    target = prescribed_gy > 0
    weight = goal.target * target + ~target * (goal.organ_at_risk * organs_at_risk + goal.other * reach)

    def gradient(_: Tensor, dose: Tensor) -> Tensor:
        return beams.transposed(weight * (dose - prescribed_gy))

    with torch.no_grad():
        majoriser = beams.transposed(weight * beams.dose(torch.ones(beams.fluence_shape, device=weight.device)))
        return non_negative_minimum(start, beams.dose, gradient, majoriser, iterations)


def non_negative_minimum(
    start: Tensor,
    dose: Callable[[Tensor], Tensor],
    gradient: Callable[[Tensor, Tensor], Tensor],
    majoriser: Tensor,
    iterations: int,
    progress: Progress = silent,
    seen: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Fluence of least cost by accelerated, diagonally scaled projected gradient (Beck and Teboulle 2009).

    Parameters
    ----------
    start : fluence to begin with.
    dose : of a fluence, linear in it: where the search looks ahead, the dose follows from the last two.
    gradient : of a convex cost, at a fluence and its dose; where it looks ahead, some fluence may be negative.
    majoriser : as the fluence, non-negative; as a diagonal matrix it bounds the cost's curvature.
    seen : called with the fluence and its dose after each iteration.
    """
    majoriser = majoriser.clamp(min=1e-3 * float(majoriser.max()))
    fluence = ahead = start
    given = given_ahead = dose(start)
    momentum = 1.0
    for iteration in range(iterations):
        progress(iteration / iterations, "optimising the fluence")
        after = (ahead - gradient(ahead, given_ahead) / majoriser).clamp(min=0)
        given_after = dose(after)
        if seen is not None:
            seen(after, given_after)
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        share = (momentum - 1) / faster
        ahead, given_ahead = after + share * (after - fluence), given_after + share * (given_after - given)
        fluence, given, momentum = after, given_after, faster
    return fluence
