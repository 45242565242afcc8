"""A belief about the dose after observations: a value that is sampled, saved, loaded, compared and undone.

It holds the network's belief it began from, all that was absorbed, and what the absorbing changed: a field added to the
dose, a factor on its spread, or the decoder's weights. Undoing is going back to the belief before, which is unchanged.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.measurements import as_row, from_row
from RTDigitalTwinLib.calibration.position import Position, moved as moved_to, unsure_of
from RTDigitalTwinLib.calibration.readings import voxel_std
from RTDigitalTwinLib.calibration.treatment_change import FoundChange
from RTDigitalTwinLib.errors import ModelError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.model.network import DoseUNet
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.fingerprint import voxels_sha256
from RTDigitalTwinLib.patient.observation import DoseObservation, Observation, same_observation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.dose_state import DoseBelief
from RTDigitalTwinLib.solver.narrowing import ErrorPaths, Narrowing

SUFFIX = ".belief.npz"
FORMAT = 2
READ_FORMATS = (1, 2)  # 1 has no hash of the dose mask; one from before errors were stored with it has no paths
PACKING_LEVEL = 1
LEAST_SHIFT_GY = 1e-6  # less is rounding, which shows where the dose is 0


@dataclass(frozen=True, eq=False)
class DecoderChange:
    """Weights of the decoder minus those the network came with, in half precision times a scale a tensor."""

    scales: Mapping[str, float]
    shares: Mapping[str, NDArray[np.float16]]

    @classmethod
    def between(cls, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> DecoderChange:
        scales, shares = {}, {}
        for name, value in after.items():
            difference = (value - before[name]).detach().float().cpu()
            largest = float(difference.abs().max())
            if largest:
                scales[name], shares[name] = largest, (difference / largest).half().numpy()
        return cls(scales, shares)

    def on(self, surrogate: DoseSurrogate) -> DoseSurrogate:
        """A surrogate with the changed weights; the given one stays as it is. Its SHA-256 is of both together."""
        network: DoseUNet = copy.deepcopy(surrogate.network)
        known = dict(network.named_parameters())
        with torch.no_grad():
            for name, share in self.shares.items():
                known[name] += torch.from_numpy(share).to(known[name]).float() * self.scales[name]
        digest = sha256((surrogate.weights_sha256 + self.sha256).encode()).hexdigest()
        return surrogate.with_network(network, digest)

    @property
    def sha256(self) -> str:
        digest = sha256()
        for name in sorted(self.shares):
            digest.update(name.encode() + np.float64(self.scales[name]).tobytes() + self.shares[name].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class RecalibratedBelief:
    """What the network, its dropout and the observations say of a patient's dose.

    Bands keep the factors that were measured before anything was observed; where what was absorbed does not tell of a
    place, that is what is known there.

    Attributes
    ----------
    prior : the network's own belief.
    method : of the calibrator that absorbed.
    absorbed : observations in order of time.
    shift_gy : (mask voxels,) added to the dose; None for none.
    spread_ratio : (mask voxels,) multiplies the samples' deviations from their mean and the floor under them, and so
        the bands of voxels; None for 1.
    decoder : change of its weights; None for none.
    paths : errors before observing and what is left of them, for the bands of what is worked out of the dose; None
        where the method does not tell, and these bands then follow the samples' spread.
    change : how treatment probably differs from the plan; None where the method does not tell.
    """

    prior: DoseBelief
    method: str
    absorbed: tuple[Observation, ...]
    shift_gy: NDArray[np.float32] | None = None
    spread_ratio: NDArray[np.float32] | None = None
    decoder: DecoderChange | None = None
    paths: ErrorPaths | None = None
    change: FoundChange | None = None
    _surrogates: list[DoseSurrogate] = field(default_factory=list, repr=False, init=False)
    _drawn: dict[tuple[int, int], DoseEnsemble] = field(default_factory=dict, repr=False, init=False)

    @property
    def patient(self) -> Patient:
        return self.prior.patient

    @property
    def is_simulated(self) -> bool:
        """Whether any observation in it stands in for a measurement."""
        return any(observation.simulated for observation in self.absorbed)

    @property
    def surrogate(self) -> DoseSurrogate:
        """The network with the decoder as it is now."""
        if self.decoder is None:
            return self.prior.surrogate
        if not self._surrogates:
            self._surrogates.append(self.decoder.on(self.prior.surrogate))
        return self._surrogates[0]

    def sample(self, samples: int, seed: int, progress: Progress = silent) -> DoseEnsemble:
        """As the prior's, moved by what was observed. Raises as ``sample_dose`` does."""
        return self.applied(self.drawn(samples, seed, progress))

    def drawn(self, samples: int, seed: int, progress: Progress = silent) -> DoseEnsemble:
        """Samples of the network with this belief's decoder, without shift and spread."""
        kept = self._drawn.get((samples, seed))
        self._drawn.clear()
        return kept or replace(self.prior, surrogate=self.surrogate).sample(samples, seed, progress)

    def keep_drawn(self, drawn: DoseEnsemble, samples: int, seed: int) -> None:
        """Samples that are known already, kept until the first time that some are asked for."""
        self._drawn[samples, seed] = drawn

    def applied(self, drawn: DoseEnsemble) -> DoseEnsemble:
        """Samples of the network (with this belief's decoder) moved by shift and spread."""
        position = Position.of(self.absorbed)
        found = moved_to(self.applied_at(drawn, position.measured_mm), position.then_mm)
        variance = np.square(voxel_std(found)) if position.noise_mm and found.has_spread else np.ones(1)
        return unsure_of(found, position.noise_mm, variance)

    def applied_at(self, drawn: DoseEnsemble, measured_mm: tuple[float, float, float]) -> DoseEnsemble:
        """The same where dose was measured, a position (LPS) that is not unsure."""
        return self._updated(moved_to(drawn, measured_mm))

    def _updated(self, drawn: DoseEnsemble) -> DoseEnsemble:
        """Samples at the position where dose was measured."""
        expected, deviations = drawn.deterministic_gy, drawn.deviations_gy
        if self.shift_gy is not None:
            shift = np.where(np.abs(self.shift_gy) < LEAST_SHIFT_GY, 0, self.shift_gy)
            expected = np.maximum(expected + shift, 0).astype(np.float32)
        if self.spread_ratio is not None and drawn.count:
            about = deviations - deviations.mean(axis=0, dtype=np.float32)
            deviations = (deviations + (self.spread_ratio - 1) * about).astype(np.float16)
        moved = replace(
            drawn,
            deterministic_gy=expected,
            deviations_gy=deviations,
            absorbed=len(self.absorbed),
            floor_ratio=self.spread_ratio,
        )
        if self.paths is None or not drawn.has_spread:
            return moved
        mean_gy = moved.mean.values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
        return replace(moved, narrowing=Narrowing.of(drawn, self.paths, mean_gy))

    def same_as(self, other: object) -> bool:
        """Whether two beliefs are the same value: prior weights, patient, observations and all numbers."""
        if not isinstance(other, RecalibratedBelief):
            return False
        return (
            self.prior.surrogate.weights_sha256 == other.prior.surrogate.weights_sha256
            and self.patient.pseudonym == other.patient.pseudonym
            and self.method == other.method
            and len(self.absorbed) == len(other.absorbed)
            and all(same_observation(a, b) for a, b in zip(self.absorbed, other.absorbed, strict=True))
            and _same(self.shift_gy, other.shift_gy)
            and _same(self.spread_ratio, other.spread_ratio)
            and self.change == other.change
            and all(_same(a, b) for a, b in zip(_arrays(self.paths), _arrays(other.paths), strict=True))
            and (self.decoder is None) == (other.decoder is None)
            and (self.decoder is None or other.decoder is None or self.decoder.sha256 == other.decoder.sha256)
        )


Belief: TypeAlias = DoseBelief | RecalibratedBelief


def prior_of(belief: Belief) -> DoseBelief:
    """The network's belief that a belief began from."""
    return belief.prior if isinstance(belief, RecalibratedBelief) else belief


def absorbed_by(belief: Belief) -> tuple[Observation, ...]:
    """What a belief has absorbed so far."""
    return belief.absorbed if isinstance(belief, RecalibratedBelief) else ()


def in_time(observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """Observations in order of fraction and day, those of one time as given."""
    return tuple(sorted(observations, key=lambda o: (o.moment.fraction, o.moment.days)))


def save_belief(belief: RecalibratedBelief, path: Path) -> None:
    """Write all but the network it began from, which the file names by its SHA-256. Raises OutputError."""
    arrays: dict[str, NDArray] = {}
    rows = []
    for k, observation in enumerate(belief.absorbed):
        rows.append(as_row(observation))
        if isinstance(observation, DoseObservation):
            arrays[f"dose {k}"] = observation.dose.resampled(belief.patient.ct.grid).values
    for name in ("shift_gy", "spread_ratio"):
        if (values := getattr(belief, name)) is not None:
            arrays[name] = values
    if belief.paths is not None:
        arrays |= {"paths before_gy": belief.paths.before_gy, "paths after_gy": belief.paths.after_gy}
    about: dict[str, Any] = {
        "format": FORMAT,
        "patient": belief.patient.pseudonym,
        "dose_mask_sha256": voxels_sha256(belief.patient.dose_mask),
        "weights_sha256": belief.prior.surrogate.weights_sha256,
        "method": belief.method,
        "observations": rows,
        "decoder_scales": None if belief.decoder is None else dict(belief.decoder.scales),
        "change": None if belief.change is None else asdict(belief.change),
    }
    if belief.decoder is not None:
        arrays |= {f"decoder {name}": share for name, share in belief.decoder.shares.items()}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with whole_file(path) as aside, ZipFile(aside, "w") as archive:
        for name, values in arrays.items():
            array = BytesIO()
            np.save(array, values, allow_pickle=False)
            # Of a dose volume most voxels are 0; the digits of all else are like noise, and packing them takes long.
            packed = ZIP_DEFLATED if name.startswith("dose ") else ZIP_STORED
            archive.writestr(ZipInfo(f"{name}.npy"), array.getbuffer(), packed, PACKING_LEVEL)


def load_belief(path: Path, prior: DoseBelief) -> RecalibratedBelief:
    """The belief in a file, on the network's belief it began from.

    Raises ModelError where the file is damaged, or was made with other weights, for another patient or dose mask. Files
    of before (format 1) are told by the number of the mask's voxels alone.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] not in READ_FORMATS:
            raise ModelError(
                f"The belief was written by another version (format {about['format']}).",
                where=path.name,
                remedy="Read it with that version, or observe again.",
            )
        weights, pseudonym = about["weights_sha256"], about["patient"]
        if weights != prior.surrogate.weights_sha256:
            raise ModelError(
                f"The belief was made with other weights: {weights[:12]}..., not "
                f"{prior.surrogate.weights_sha256[:12]}....",
                where=path.name,
                remedy="Pass the weights it was made with.",
            )
        if pseudonym != prior.patient.pseudonym:
            raise ModelError(f"The belief is of patient {pseudonym}, not {prior.patient.pseudonym}.", where=path.name)
        told = about["dose_mask_sha256"] if about["format"] > 1 else None
        _require_this_mask(arrays, told, prior, path.name)
        observations = [
            from_row(row | ({"file": "stored"} if row["kind"] == "dose" else {}), _dose(arrays.get(f"dose {k}"), prior))
            for k, row in enumerate(about["observations"])
        ]
        decoder = None
        if about["decoder_scales"] is not None:
            shares = {name.removeprefix("decoder "): v for name, v in arrays.items() if name.startswith("decoder ")}
            decoder = DecoderChange(about["decoder_scales"], shares)
        return RecalibratedBelief(
            prior,
            about["method"],
            tuple(observations),
            arrays.get("shift_gy"),
            arrays.get("spread_ratio"),
            decoder,
            ErrorPaths(arrays["paths before_gy"], arrays["paths after_gy"]) if "paths before_gy" in arrays else None,
            FoundChange.from_dict(about["change"]) if about.get("change") else None,
        )
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, EOFError) as error:
        raise ModelError("The belief cannot be read.", where=path.name, remedy="Make it again.") from error
    except ModelError:
        raise
    except RTDigitalTwinError as error:
        raise ModelError(f"The belief is damaged: {error}", where=path.name, remedy="Make it again.") from error


def _require_this_mask(arrays: Mapping[str, NDArray], told: str | None, prior: DoseBelief, where: str) -> None:
    """Raise ModelError for numbers of other voxels than the dose mask has: structures were drawn anew since."""
    mask = prior.patient.dose_mask
    voxels = int(mask.mask.sum())
    remedy = "Observe again, from the network's own belief, or take the structures as they were."
    names = ("shift_gy", "spread_ratio", "paths before_gy", "paths after_gy")
    if other := {arrays[name].shape[-1] for name in names if name in arrays} - {voxels}:
        raise ModelError(
            f"The belief is of a dose mask of {max(other)} voxels, and the patient's has {voxels}.",
            where=where,
            remedy=remedy,
        )
    if told is not None and told != voxels_sha256(mask):
        raise ModelError(
            "The belief is of a dose mask with other voxels or in another place than the patient's.",
            where=where,
            remedy=remedy,
        )


def _dose(values: NDArray | None, prior: DoseBelief) -> Volume | None:
    return None if values is None else Volume(values, prior.patient.ct.grid, Quantity.DOSE_GY)


def _arrays(paths: ErrorPaths | None) -> tuple[NDArray | None, NDArray | None]:
    return (None, None) if paths is None else (paths.before_gy, paths.after_gy)


def _same(one: NDArray | None, other: NDArray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
