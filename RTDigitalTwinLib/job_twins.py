"""Twins for jobs: what a job's twin worked out serves the next job of the same patient and network."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from RTDigitalTwinLib.files import sha256_of
from RTDigitalTwinLib.patient.patient_file import load_patient_file
from RTDigitalTwinLib.progress import Progress

if TYPE_CHECKING:
    from RTDigitalTwinLib.calibration.belief import RecalibratedBelief
    from RTDigitalTwinLib.twin import Twin

TwinOf: TypeAlias = "Callable[[Progress], Twin]"


@dataclass(eq=False)
class _Held:
    """A twin that nothing was adopted by, and what it is of.

    Attributes
    ----------
    model : device, and SHA-256 of weights, manifest and calibration.
    patient_sha256 : of the patient's file, which holds all of the patient.
    belief : the last that was read for it, with its file's SHA-256.
    """

    twin: Twin
    model: tuple[str, ...]
    patient_sha256: str
    belief: tuple[str, RecalibratedBelief] | None = None


class Twins:
    """The twin of the job before: network, features, encoding, beams, samples.

    It serves again where all it is made of has the same content, of another patient its network alone; else it is
    dropped before another is made.

    Parameters
    ----------
    importing : what the first job's imports are done in.
    """

    def __init__(self, importing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.importing = importing
        self._held: _Held | None = None

    def of(self, patient_file: Path, belief_file: Path, weights: str, device: str, progress: Progress) -> Twin:
        """The twin of a file's patient, of the belief in the other where there is one. Raises RTDigitalTwinError."""
        from RTDigitalTwinLib.calibration.belief import load_belief, prior_of

        progress(0.0, "loading the network")
        held = self._held_for(patient_file, weights, device)
        twin = held.twin.anew()
        if belief_file.is_file():
            told = _content(belief_file)
            if held.belief is None or held.belief[0] != told:
                held.belief = None
                held.belief = (told, load_belief(belief_file, prior_of(twin.dose_belief)))
            twin.adopt(held.belief[1])
        return twin

    def forget(self) -> None:
        """Hold nothing."""
        self._held = None
        gc.collect()

    def _held_for(self, patient_file: Path, weights: str, device: str) -> _Held:
        from RTDigitalTwinLib.twin import Twin

        model, told = _model(weights, device), _content(patient_file)
        known = None
        if self._held is not None and self._held.model == model:
            if self._held.patient_sha256 == told:
                return self._held
            known = self._held.twin.dose_model
        self.forget()
        twin = Twin(load_patient_file(patient_file), weights or None, device, dose_model=known)
        _ = twin.dose_belief
        self._held = _Held(twin, model, told)
        return self._held


def _model(weights: str, device: str) -> tuple[str, ...]:
    from RTDigitalTwinLib.model.weights import choose_device, default_weights, manifest_path
    from RTDigitalTwinLib.solver.calibration_file import calibration_path

    path = Path(weights) if weights else default_weights()
    return (str(choose_device(device)), *map(_content, (path, manifest_path(path), calibration_path(path))))


def _content(path: Path) -> str:
    return sha256_of(path) if path.is_file() else ""
