"""The dose surrogate: the network at work on one patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from RTDigitalTwinLib.errors import MemoryShortage, ModelError
from RTDigitalTwinLib.model.coarse import Committee, coarse_dose
from RTDigitalTwinLib.model.convolution import PRECISIONS, multiplies_in_half
from RTDigitalTwinLib.model.decoding import CpuDecoder
from RTDigitalTwinLib.model.familiarity import Familiarity
from RTDigitalTwinLib.model.features import Features, build_features
from RTDigitalTwinLib.model.network import DoseUNet, Encoded
from RTDigitalTwinLib.model.weights import choose_device, load_network
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU convolutions are deterministic and in full float32; elsewhere nothing changes.

    The library's flags are the process's, so that no two threads may hold them: on a CPU, where samples are decoded in
    threads, they are left alone.
    """
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Without gradients and in full precision; running out of memory is said as such."""
    try:
        with torch.inference_mode(), full_precision(device):
            yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory() from error
    except RuntimeError as error:
        if "allocate memory" in str(error):  # torch's CPU allocator has no exception of its own
            raise _out_of_memory() from error
        raise


def _out_of_memory() -> MemoryShortage:
    return MemoryShortage("Not enough memory to predict.", remedy="Close other programs, or use --device cpu.")


class DoseSurrogate:
    """A network on a device, giving doses at the voxels of a patient's mask.

    Attributes
    ----------
    weights_sha256 : of the file its weights came from; "" for weights from memory.
    precision : ``single``, or ``half`` of the decoder's convolutions, on a CPU that multiplies in bfloat16.
    trained_on : pseudonyms of the training patients, where the manifest names them.
    familiarity : of patients, where the manifest has it.
    committee : the coarse networks that correct its doses, or None.
    """

    def __init__(
        self,
        network: DoseUNet,
        device: torch.device,
        weights_sha256: str = "",
        trained_on: Sequence[str] = (),
        familiarity: Familiarity | None = None,
        precision: str = "single",
        committee: Committee | None = None,
    ) -> None:
        """``committee``: coarse networks that correct its doses.

        Raises ModelError where the device does not have the precision.
        """
        if precision not in PRECISIONS:
            raise ModelError(f"There is no precision {precision!r}.", remedy=f"Use {' or '.join(PRECISIONS)}.")
        if precision == "half" and not multiplies_in_half(device):
            raise ModelError(
                "This device does not decode in half precision: it takes a CPU with AVX-512 BF16, and a recent torch.",
                remedy="Leave the precision out, or use --device cpu on such a machine.",
            )
        self.precision = precision
        self.network = network.to(device, memory_format=torch.channels_last_3d)
        self.committee = committee
        for member in committee.members if committee else ():
            member.to(device, memory_format=torch.channels_last_3d)
        self._corrected_for = self.network  # whose own dose the correction is worked out from
        self.device = device
        self.weights_sha256 = weights_sha256
        self.trained_on = frozenset(trained_on)
        self.familiarity = familiarity
        self._features: WeakKeyDictionary[Patient, Features] = WeakKeyDictionary()
        self._encoded: WeakKeyDictionary[Patient, Encoded] = WeakKeyDictionary()
        self._deterministic: WeakKeyDictionary[Patient, NDArray[np.float32]] = WeakKeyDictionary()

    @classmethod
    def load(cls, weights: Path | None = None, device: str = "auto", precision: str = "single") -> DoseSurrogate:
        """From a weights file, by default the one that comes with the software. Raises ModelError."""
        chosen = choose_device(device)
        loaded = load_network(weights)
        if loaded.network.configuration.block > 1:
            raise ModelError(
                "These are a coarse network's weights, which only go beside others.",
                where=weights.name if weights else "",
                remedy="Join them: rt-digital-twin join WEIGHTS COARSE --out FILE.",
            )
        return cls(
            loaded.network, chosen, loaded.sha256, loaded.trained_on, loaded.familiarity, precision, loaded.committee
        )

    def features(self, patient: Patient) -> Features:
        """A patient as this network sees it; worked out once as long as the patient is in use."""
        if patient not in self._features:
            self._features[patient] = build_features(patient, self.network.configuration.channels)
        return self._features[patient]

    def with_network(self, network: DoseUNet, weights_sha256: str) -> DoseSurrogate:
        """The same with another network of the same inputs, made from this one: the committee's correction stays."""
        other = DoseSurrogate(
            network,
            self.device,
            weights_sha256,
            tuple(self.trained_on),
            self.familiarity,
            self.precision,
            self.committee,
        )
        other._corrected_for, other._features = self._corrected_for, self._features
        if network.encodes_as(self.network):
            other._encoded = self._encoded
        return other

    def encoded(self, patient: Patient) -> Encoded:
        """What all samples of a patient share; worked out once as long as the patient is in use.

        Some 70 MB of a median patient; networks that differ in their decoder alone have it in common.
        """
        if patient not in self._encoded:
            self._encoded[patient] = self.encode(self.features(patient))
        return self._encoded[patient]

    def deterministic_gy(self, patient: Patient) -> NDArray[np.float32]:
        """(mask voxels,) the dose without dropout; worked out once as long as the patient is in use."""
        if patient not in self._deterministic:
            self._deterministic[patient] = self.decode(self.encoded(patient), self.features(patient))[0]
        return self._deterministic[patient].copy()

    def forget(self) -> None:
        """Keep nothing of any patient but the features."""
        self._encoded.clear()
        self._deterministic.clear()

    def encode(self, features: Features) -> Encoded:
        """The part of the work that all samples share."""
        with _exact(self.device):
            channels = torch.from_numpy(features.channels)[None].to(self.device)
            channels = channels.contiguous(memory_format=torch.channels_last_3d)
            encoded = self.network.encode(channels)
            if self.committee is None:
                return encoded
            mask = torch.from_numpy(features.crop.mask).to(self.device)
            uncorrected = encoded if self._corrected_for is self.network else self._corrected_for.encode(channels)
            if self.device.type == "cpu":
                inside = CpuDecoder(self._corrected_for, uncorrected, mask).doses_gy()
            else:
                inside = self._corrected_for.decode(uncorrected)[:, mask]
            dose_gy = torch.zeros(mask.shape, device=self.device).masked_scatter_(mask, inside)
            return self.committee.corrected(encoded, channels, dose_gy, mask)

    def decode(self, encoded: Encoded, features: Features, factors: Sequence[Tensor] | None = None) -> NDArray:
        """Doses in Gy (samples, mask voxels), float32: one sample a row of the factors, or one without dropout."""
        return self.decoder(encoded, features)(factors)

    def decoder(self, encoded: Encoded, features: Features) -> Callable[[Sequence[Tensor] | None], NDArray]:
        """``decode`` of one patient, to be called often, on a CPU also from several threads: what its samples share is
        worked out here.
        """
        with _exact(self.device):
            mask = torch.from_numpy(features.crop.mask).to(self.device)
            is_cpu = self.device.type == "cpu"
            at_once = CpuDecoder(self.network, encoded, mask, PRECISIONS[self.precision]) if is_cpu else None

        def decode(factors: Sequence[Tensor] | None) -> NDArray:
            with _exact(self.device):
                if at_once is not None:
                    dose = at_once.doses_gy(factors)
                else:
                    moved = None if factors is None else [f.to(self.device) for f in factors]
                    dose = self.network.decode(encoded, moved)[:, mask]
                if not bool(torch.isfinite(dose).all()):
                    raise ModelError("The network gives doses that are no finite numbers.", remedy="Use other weights.")
                return dose.cpu().numpy()

        return decode

    def expected_dose(self, patient: Patient, features: Features | None = None) -> Volume:
        """The deterministic prediction, dropout off, on the patient's grid; of ``features`` where they are known."""
        features = features or self.features(patient)
        if self.network.configuration.block > 1:
            with _exact(self.device):
                return coarse_dose(self.network, features, self.device)
        return features.crop.spread(self.decode(self.encode(features), features)[0], Quantity.DOSE_GY)
