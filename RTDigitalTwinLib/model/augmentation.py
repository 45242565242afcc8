"""Augmentation of training patients by the symmetries of their beams, on the device they are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from RTDigitalTwinLib.model.crop import MARGIN_VOXELS, SIZE_MULTIPLE
from RTDigitalTwinLib.model.deformation import Deformation, resampled
from RTDigitalTwinLib.model.features import FITTED_BEAMS, OUTSIDE, PRESCRIBED_BEAMS
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK, TARGETS, mirrored_name
from RTDigitalTwinLib.patient.structure import StructureKind

BEAM_SPACING_DEG = 40
TURNS = 360 // BEAM_SPACING_DEG
LEAST_SHARE = 1 / 16  # of a block: less of it in the mask is not told apart from none
CUT_AT_THE_MASK = (PRESCRIBED_BEAMS, FITTED_BEAMS)


@dataclass(frozen=True, eq=False)
class Example:
    """What a training step sees of a patient.

    Attributes
    ----------
    names : of the network's inputs.
    values : (slices, rows, columns, names + 2) float32: the inputs as ``Features`` has them, then the dose in Gy and
        the dose mask as 0 or 1; of blocks see ``in_blocks``.
    block : it has means over blocks of so many voxels along each direction; 1 has voxels.
    """

    names: tuple[str, ...]
    values: Tensor
    block: int = 1

    @property
    def channels(self) -> Tensor:
        """(1, names, slices, rows, columns), channels last in memory."""
        return self.values[..., : len(self.names)].contiguous().permute(3, 0, 1, 2)[None]

    @property
    def dose_gy(self) -> Tensor:
        """(1, slices, rows, columns)."""
        return self.values[None, ..., -2].contiguous()

    @property
    def share(self) -> Tensor:
        """(1, slices, rows, columns): how much of a voxel, or of a block of voxels, can receive dose."""
        return self.values[None, ..., -1].contiguous()

    def in_blocks(self, block: int, first: Sequence[int] = (0, 0, 0)) -> Example:
        """The means of voxels over blocks of so many along each direction; of the dose, over its part of the mask.

        The mask becomes the share of a block. Blocks begin ``first`` voxels before the crop, along slices, rows and
        columns, fewer than there are in a block; the crop grows for that.
        """
        if block == 1:
            return self
        values = self.values
        if any(first):
            sizes = [-(-(n + f) // SIZE_MULTIPLE) * SIZE_MULTIPLE for n, f in zip(values.shape, first, strict=False)]
            values = _cut(values, [-f for f in first], sizes, self.names)
        inputs = functional.avg_pool3d(values[..., :-2].permute(3, 0, 1, 2), block).permute(1, 2, 3, 0)
        dose_gy, share = block_doses(values[..., -2], values[..., -1], block)
        return replace(self, values=torch.cat([inputs, dose_gy[..., None], share[..., None]], -1), block=block)

    @property
    def mask(self) -> Tensor:
        """(1, slices, rows, columns): voxels that can receive dose."""
        return self.values[None, ..., -1] >= 0.5

    def structure_masks(self) -> list[tuple[StructureKind, Tensor]]:
        """Kind and mask (1, slices, rows, columns) of each structure among the inputs that the patient has."""
        kinds = {**dict.fromkeys(ORGANS_AT_RISK, StructureKind.ORGAN), **dict.fromkeys(TARGETS, StructureKind.TARGET)}
        masks = [(kinds[n], self.values[None, ..., i] >= 0.5) for i, n in enumerate(self.names) if n in kinds]
        return [(kind, mask) for kind, mask in masks if bool(mask.any())]


@dataclass(frozen=True)
class Augmentation:
    """One of the moves under which a patient and its nine equally spaced beams stay a patient and its beams.

    Attributes
    ----------
    mirrored : left and right exchanged, paired organs with them.
    upended : superior and inferior exchanged, which coplanar beams do not notice.
    deformation : of the anatomy, dose along with it.
    turns : of 40 degrees about the superior-inferior axis.
    pixel_ratio : size of the pixels it is seen in, relative to its own; slices stay as thick as they are.
    place : of the dose mask in the crop's slack along slices, rows and columns, 0 to 1; None leaves it centred.
    """

    mirrored: bool = False
    turns: int = 0
    pixel_ratio: float = 1.0
    place: tuple[float, float, float] | None = None
    upended: bool = False
    deformation: Deformation | None = None

    @classmethod
    def draw(
        cls,
        generator: torch.Generator,
        mirrored_ratio: float,
        turned_ratio: float,
        pixel_range: float = 1.0,
        upended_ratio: float = 0.0,
        deformed_ratio: float = 0.0,
    ) -> Augmentation:
        """A random one; so many of them mirrored, upended, deformed, and so many turned, the others as patients lie.

        The turned and the deformed ones, interpolated anyway, are seen in pixels up to ``pixel_range`` times larger or
        smaller.
        """
        drawn = torch.rand(7, generator=generator).tolist()
        upended = upended_ratio > 0 and float(torch.rand(1, generator=generator)) < upended_ratio
        deforms = deformed_ratio > 0 and float(torch.rand(1, generator=generator)) < deformed_ratio
        deformation = Deformation.draw(generator) if deforms else None
        turns = 1 + int(drawn[2] * (TURNS - 1)) if drawn[1] < turned_ratio else 0
        pixel_ratio = pixel_range ** (2 * drawn[6] - 1) if turns or deforms else 1.0
        place = (drawn[3], drawn[4], drawn[5])
        return cls(drawn[0] < mirrored_ratio, turns, pixel_ratio, place, upended, deformation)

    def __call__(self, example: Example) -> Example:
        """The example moved; what comes in from beyond its crop, or of a deformed one from far off the dose mask, is as
        outside the patient.
        """
        if self.mirrored:
            example = _mirrored(example)
        if self.upended:
            example = replace(example, values=example.values.flip(0))
        angle, place = math.radians(BEAM_SPACING_DEG * self.turns), self.place or (0.5, 0.5, 0.5)
        if self.deformation is not None:
            return _deformed(example, self.deformation, angle, self.pixel_ratio, place)
        if self.turns or self.pixel_ratio != 1 or self.place is not None:
            example = _moved(example, angle, self.pixel_ratio, place)
        return example


def block_doses(dose_gy: Tensor, mask: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Of (slices, rows, columns): means of dose over each block's part of the mask, and that part's share of it."""
    means = functional.avg_pool3d(torch.stack([dose_gy * mask, mask.to(dose_gy.dtype)]), block)
    return means[0] / means[1].clamp(min=block**-3), means[1]


def _mirrored(example: Example) -> Example:
    return replace(example, values=example.values.flip(2)[..., [*mirrored_order(example.names), -2, -1]])


def mirrored_order(names: Sequence[str]) -> list[int]:
    """Which of the inputs stands for each where left and right are exchanged."""
    return [names.index(other) if (other := mirrored_name(name)) in names else i for i, name in enumerate(names)]


def _moved(example: Example, angle: float, pixel_ratio: float, place: Sequence[float]) -> Example:
    """Turned about the crop's middle, in new pixels, on the smallest crop with the mask, at ``place`` of the slack."""
    values = example.values
    middle, (z, y, x) = _from_the_middle(values)
    starts, sizes = _placed(torch.stack([z, *(t / pixel_ratio for t in _turned(y, x, angle))]), place, example.block)
    first = [round(start + m) for start, m in zip(starts, middle, strict=True)]
    if not angle and pixel_ratio == 1:
        return replace(example, values=_cut(values, first, sizes, example.names))
    values = _cut(values, [first[0], 0, 0], [sizes[0], *values.shape[1:3]], example.names)
    rows, columns = (
        (start + torch.arange(n, device=values.device)) * pixel_ratio
        for start, n in zip(starts[1:], sizes[1:], strict=True)
    )
    y, x = _turned(rows[:, None], columns[None], -angle)
    if example.block > 1:
        values = _with_dose_by_share(values)
    return replace(example, values=_sharp(_sampled(values, y + middle[1], x + middle[2], example.names), example))


def _deformed(
    example: Example, deformation: Deformation, angle: float, pixel_ratio: float, place: Sequence[float]
) -> Example:
    """Deformed and turned, in new pixels, on the smallest crop with the mask, at ``place`` of the slack."""
    middle, (z, y, x) = _from_the_middle(example.values)
    ratios = deformation.ratios(pixel_ratio)
    seen = torch.stack([t / ratio for t, ratio in zip((z, *_turned(y, x, angle)), ratios, strict=True)])
    positions = deformation.positions(seen.amin(1).tolist(), seen.amax(1).tolist(), ratios, example.block)
    slices, rows, columns = (t.to(example.values) for t in positions)
    rows, columns = _turned(rows, columns, -angle)
    at = [t + m for t, m in zip((slices, rows, columns), middle, strict=True)]
    values = resampled(_with_dose_by_share(example.values), at, _outside(example.names, example.values))
    values = _sharp(values, example)
    starts, sizes = _placed(values[..., -1].nonzero().double().T, place, example.block)
    return replace(example, values=_cut(values, [round(start) for start in starts], sizes, example.names))


def _from_the_middle(values: Tensor) -> tuple[list[float], Tensor]:
    """The crop's middle, and the positions (3, voxels) of the mask's voxels from there."""
    middle = [(n - 1) / 2 for n in values.shape[:3]]
    return middle, values[..., -1].nonzero().double().T - torch.tensor(middle, device=values.device)[:, None]


def _placed(voxels: Tensor, place: Sequence[float], block: int) -> tuple[list[float], list[int]]:
    """Where the smallest crop with these voxels (3, voxels) begins, at ``place`` of its slack, and its sizes."""
    margin, multiple = -(-MARGIN_VOXELS // block), SIZE_MULTIPLE // block
    starts, sizes = [], []
    for low, high, share in zip(voxels.amin(1).tolist(), voxels.amax(1).tolist(), place, strict=True):
        wanted = math.ceil(high - low - 1e-6) + 1 + 2 * margin
        sizes.append(-(-wanted // multiple) * multiple)
        starts.append(low - margin - round(share * (sizes[-1] - wanted)))
    return starts, sizes


def _with_dose_by_share(values: Tensor) -> Tensor:
    """The dose of the whole voxel or block instead of that of its part of the mask: what can be interpolated."""
    values = values.clone()
    values[..., -2] *= values[..., -1]
    return values


def _sharp(values: Tensor, like: Example) -> Tensor:
    """Interpolated values with the dose of a voxel's or block's part of the mask again; voxels lie in it or not."""
    share = values[..., -1]
    if like.block > 1:
        values[..., -1] = share * (share > LEAST_SHARE)
        values[..., -2] *= (share > LEAST_SHARE) / share.clamp(min=LEAST_SHARE)
        return values
    # What ends at the mask's edge is interpolated among the voxels inside it.
    inside = torch.where(share >= 0.5, 1 / share.clamp(min=0.5), 0.0)
    for i in (*(like.names.index(name) for name in CUT_AT_THE_MASK if name in like.names), -2):
        values[..., i] *= inside
    values[..., -1] = share >= 0.5
    return values


def _turned(y: Tensor, x: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    return math.cos(angle) * y - math.sin(angle) * x, math.sin(angle) * y + math.cos(angle) * x


def _outside(names: Sequence[str], like: Tensor) -> Tensor:
    return torch.tensor([*(OUTSIDE.get(name, 0.0) for name in names), 0.0, 0.0], device=like.device)


def _cut(values: Tensor, first: Sequence[int], sizes: Sequence[int], names: Sequence[str]) -> Tensor:
    """The box of ``sizes`` that begins at voxel ``first``, which may lie outside."""
    result = _outside(names, values).expand(*sizes, -1).clone()
    source = tuple(slice(max(a, 0), min(a + n, have)) for a, n, have in zip(first, sizes, values.shape, strict=False))
    target = tuple(slice(part.start - a, part.stop - a) for part, a in zip(source, first, strict=True))
    result[target] = values[source]
    return result


def _sampled(values: Tensor, y: Tensor, x: Tensor, names: Sequence[str]) -> Tensor:
    """Every slice bilinearly at the pixel positions y and x (rows, columns)."""
    slices, height, width, count = values.shape
    outside = _outside(names, values)
    table = (values - outside).permute(1, 2, 0, 3).reshape(height * width, slices * count)
    pixels, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = y.floor().long() + dy, x.floor().long() + dx
            weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixels.append((row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten())
            weights.append((weight * inside).flatten())
    sums = functional.embedding_bag(
        torch.stack(pixels, 1), table, per_sample_weights=torch.stack(weights, 1).to(table.dtype), mode="sum"
    )
    return sums.view(*y.shape, slices, count).permute(2, 0, 1, 3).contiguous() + outside
