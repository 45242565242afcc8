"""Recalibration of the decoder: the weights that best explain the observations and stay near those of training.

The encoder is frozen and its activations are computed once, as in the source paper; so is the bottleneck between it and
the decoder. The objective is

    J(w) = 1/2 sum ((observed - h(dose(w))) / noise)^2 + 1/2 |w|^2,   weights = trained weights + scale x size x w,

plus 1/2 sum ((dose(w) - dose(0)) / spread)^2 over voxels that no dose volume saw, correlated ones counting as one:
the negative log posterior for independent standard normal w, held in the space of doses by what the calibrated bands
allow, so that a few metrics cannot move the dose everywhere. ``size`` is each tensor's root mean square; the one scale
is chosen so that, to first order, the spread of h under that prior is what the belief's calibrated bands say it is: in
the linear regime this is Gaussian-process regression with the decoder's tangent kernel (Jacot et al. 2018). Minimised
by limited-memory BFGS. Dropout is off while fitting and kept for sampling.

From metrics and points alone others leave less error elsewhere (docs/recalibration.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from RTDigitalTwinLib.calibration.belief import DecoderChange, RecalibratedBelief
from RTDigitalTwinLib.calibration.calibrator import Evidence
from RTDigitalTwinLib.calibration.descent import descend
from RTDigitalTwinLib.calibration.linear import CORRELATED_CC
from RTDigitalTwinLib.calibration.position import Position
from RTDigitalTwinLib.calibration.readings import voxel_std
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.convolution import Products
from RTDigitalTwinLib.model.decoder_alone import DecoderAlone
from RTDigitalTwinLib.model.features import Features
from RTDigitalTwinLib.model.surrogate import full_precision
from RTDigitalTwinLib.progress import Progress, silent

UNEXPLAINED_RATIO = 0.5  # of the belief's spread at a voxel: what no decoder of this network gives counts as noise
LEAST_SPREAD_GY = 0.1  # where the belief is surer, the anchor is no stronger
LEAST_SPREAD = 0.1  # of a scalar, in its unit: none is known for sure
FIRST_STEP_SEEN = {torch.float32: 0.01, torch.bfloat16: 0.1}  # standard deviations; less is lost in rounding
PROBES = 1  # random combinations of observations that size the prior


@dataclass(frozen=True)
class DecoderFit:
    """How a fit went.

    Attributes
    ----------
    objective : J before the first step and after each.
    reason : why it stopped.
    """

    objective: tuple[float, ...]
    reason: str

    @property
    def steps(self) -> int:
        return len(self.objective) - 1


@dataclass(frozen=True)
class DecoderMap:
    """See the module.

    Attributes
    ----------
    most_steps, fewest_steps : evaluations of the objective and its gradient.
    tolerance_ratio : it stops when a line search lessens the objective by less than this share.
    least_gain : nothing is done where the observations could lessen the objective by less, to first order.
    fits : what was done, one a call.
    """

    most_steps: int = 30
    fewest_steps: int = 0
    tolerance_ratio: float = 0.003
    least_gain: float = 1e-6
    name: str = "decoder MAP"
    fits: list[DecoderFit] = field(default_factory=list, compare=False)

    def require_possible(self, evidence: Evidence) -> None:
        """Raises RTDigitalTwinError where a decoder cannot explain what was observed."""
        if evidence.prior.prepared.is_extrapolated:
            raise RTDigitalTwinError(
                "The decoder cannot be recalibrated under a prescription that the network does not know.",
                where=evidence.prior.patient.pseudonym,
                remedy="Choose another method.",
            )
        if any(Position.of(evidence.observations).measured_mm):
            raise RTDigitalTwinError(
                "The decoder cannot be recalibrated to dose that was measured after a couch shift.",
                where=evidence.prior.patient.pseudonym,
                remedy="Choose another method.",
            )

    def absorb(self, evidence: Evidence, progress: Progress = silent) -> RecalibratedBelief:
        self.require_possible(evidence)
        if not evidence.scalars and not evidence.volumes and evidence.observations:
            self.fits.append(DecoderFit((0.0,), "no dose was observed"))
            return RecalibratedBelief(evidence.prior, self.name, evidence.observations)
        if not evidence.observations:
            self.fits.append(DecoderFit((0.0,), "there is nothing to absorb"))
            return RecalibratedBelief(evidence.prior, self.name, ())
        with full_precision(evidence.prior.surrogate.device):
            change = self._fitted(_Objective(evidence), progress)
        return RecalibratedBelief(evidence.prior, self.name, evidence.observations, decoder=change)

    def _fitted(self, objective: _Objective, progress: Progress) -> DecoderChange | None:
        progress(0.0, "sizing the prior of the decoder")
        scale = objective.size_prior()
        value, gradient = objective.at(objective.start)
        there = objective.found
        # The largest first-order gain within one standard deviation of the prior.
        if scale == 0 or float(gradient.norm()) < self.least_gain:
            self.fits.append(DecoderFit((value,), "the observations hold no information"))
            return None
        first, steps = objective.first_step(there, gradient), (self.most_steps, self.fewest_steps)
        found = descend(objective.at, value, gradient, first, *steps, self.tolerance_ratio, progress)
        self.fits.append(DecoderFit(found.values, found.reason))
        return objective.change(found.position)


class _Objective:
    """J and its gradient, for one patient and its observations."""

    def __init__(self, evidence: Evidence) -> None:
        surrogate = evidence.prior.surrogate
        self.evidence, self.device = evidence, surrogate.device
        features: Features = surrogate.features(evidence.prior.prepared.seen)
        encoded = surrogate.encoded(evidence.prior.prepared.seen)
        places = torch.from_numpy(np.flatnonzero(features.crop.mask)).to(self.device)
        products = Products.fit_for(self.device, surrogate.precision)
        self.step_seen = FIRST_STEP_SEEN[products.values]
        self.decoder = DecoderAlone(surrogate.network, encoded, places, products)
        self.weights = self.decoder.weights
        self.before = {name: p.detach().clone() for name, p in self.weights.items()}
        self.sizes = {name: float(p.square().mean().sqrt()) for name, p in self.before.items()}
        self.scale = 1.0
        self._lengths = [p.numel() for p in self.before.values()]
        self.found: list[Tensor] = []  # the deviations that were worked out last
        self.start = torch.zeros(sum(self._lengths), device=self.device)
        spread = voxel_std(evidence.drawn)
        # Samples whose spread was never measured may all agree, as on a volume at a dose that none reaches.
        self.scalar_std = [max(r.belief_std(evidence.drawn), LEAST_SPREAD) for r in evidence.scalars]
        # Innovations are those of the samples' mean, which tables show: the fit itself runs without dropout.
        doses, without = evidence.doses_gy, evidence.drawn.deterministic_gy[None]
        bias = [float(r.of(doses).mean() - r.of(without)[0]) for r in evidence.scalars]
        soft_bias = [float(r.of(without)[0]) - float(r.soft(torch.from_numpy(without[0]))) for r in evidence.scalars]
        self.offsets = [a + b for a, b in zip(bias, soft_bias, strict=True)]
        cell = min(1.0, evidence.drawn.crop.grid.voxel_volume_mm3 / 1000 / CORRELATED_CC)
        self.volumes = []
        seen = np.zeros(spread.shape, bool)
        for volume in evidence.volumes:
            # What the measurement's blur takes away is left out of account: observed + (dose - blurred dose).
            mean = evidence.mean_gy
            target = volume.values + (mean - volume.of(mean)) - (mean - without[0])
            known = np.flatnonzero(volume.known)
            seen |= volume.known
            std = np.hypot(volume.std[known], UNEXPLAINED_RATIO * spread[known]) / np.sqrt(cell)
            tensors = [torch.from_numpy(np.ascontiguousarray(v)).to(self.device) for v in (known, target[known], std)]
            self.volumes.append((tensors[0], tensors[1].float(), tensors[2].float(), spread[known]))
        unseen = np.flatnonzero(~seen)
        anchor = (unseen, without[0][unseen], np.sqrt(cell) / np.maximum(spread[unseen], LEAST_SPREAD_GY))
        self.anchor = [torch.from_numpy(np.ascontiguousarray(v)).to(self.device) for v in anchor]
        self.anchor[2] = self.anchor[2].float()

    def dose(self) -> Tensor:
        return torch.relu(self.decoder.dose_unclipped())

    def deviations(self, dose: Tensor) -> list[Tensor]:
        """Observed minus expected over noise: one number a scalar, one a voxel of a volume; and the anchor's."""
        parts = [
            (reading.value - offset - reading.soft(dose)) / reading.std
            for reading, offset in zip(self.evidence.scalars, self.offsets, strict=True)
        ]
        parts += [(target - dose.index_select(0, places)) / std for places, target, std, _ in self.volumes]
        places, held, weight = self.anchor
        parts.append((held - dose.index_select(0, places)) * weight)
        return parts

    def size_prior(self) -> float:
        """Choose the scale: over random signs e, |grad sum e_i h_i / std_i|^2 is on average the sum of h's variances
        in units of the bands' ones."""
        generator = torch.Generator().manual_seed(0)
        found, wanted = 0.0, 0.0
        for _ in range(PROBES):
            self._set(self.start)
            dose = self._traced()
            total = dose.new_zeros(())
            for reading, std in zip(self.evidence.scalars, self.scalar_std, strict=True):
                sign = 2.0 * float(torch.rand((), generator=generator) < 0.5) - 1
                total = total + sign * reading.soft(dose) / std
                wanted += 1.0
            for places, _, _, spread in self.volumes:
                signs = 2.0 * (torch.rand(len(places), generator=generator) < 0.5).float() - 1
                weights = (signs / torch.from_numpy(spread).float() / np.sqrt(len(spread))).to(dose)
                total = total + (weights * dose[places]).sum()
                wanted += 1.0
            found += float(self._gradient(total).square().sum())
        self.scale = float(np.sqrt(wanted / found)) if found > 0 else 0.0
        return self.scale

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        """J and its gradient at w."""
        self._set(position)
        parts = self.deviations(self._traced())
        self.found = [part.detach() for part in parts]
        data = 0.5 * sum((part.square().sum() for part in parts), position.new_zeros(()))
        gradient = self._gradient(data)
        return float(data.detach()) + 0.5 * float(position @ position), gradient.add_(position)

    def first_step(self, here: list[Tensor], gradient: Tensor) -> float:
        """The step that minimises J along the gradient, with h linear between the start and ``FIRST_STEP_SEEN`` on.

        ``here`` are the deviations at the start.
        """
        length = float(gradient.norm())
        small = self.step_seen / length
        with torch.no_grad():
            self._set(-small * gradient)
            there = self.deviations(self.dose())
        bend = sum(float(((b - a) / small).square().sum()) for a, b in zip(here, there, strict=True))
        return length**2 / (bend + length**2)

    def change(self, position: Tensor) -> DecoderChange:
        self._set(position)
        before, after = (
            {name: self.decoder.turned_back(w.detach()) for name, w in weights.items()}
            for weights in (self.before, self.weights)
        )
        return DecoderChange.between(before, after)

    def _set(self, position: Tensor) -> None:
        with torch.no_grad():
            for name, w in zip(self.before, position.split(self._lengths), strict=True):
                before = self.before[name]
                torch.add(before, _shaped(w, before), alpha=self.scale * self.sizes[name], out=self.weights[name])

    def _traced(self) -> Tensor:
        for parameter in self.weights.values():
            parameter.requires_grad_(True)
        return self.dose()

    def _gradient(self, value: Tensor) -> Tensor:
        """By w; that of weights which the decoding does not use is 0."""
        found = torch.autograd.grad(value, list(self.weights.values()), allow_unused=True)
        for parameter in self.weights.values():
            parameter.requires_grad_(False)
        whole = torch.zeros_like(self.start)
        for part, g, name in zip(whole.split(self._lengths), found, self.before, strict=True):
            if g is not None:
                _shaped(part, self.before[name]).copy_(g).mul_(self.scale * self.sizes[name])
        return whole


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """A view of as many numbers in the shape and memory order of another."""
    return flat.as_strided(like.shape, like.stride())
