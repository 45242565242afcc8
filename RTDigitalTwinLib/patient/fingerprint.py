"""What a patient's data are, in hashes: to tell whether two times the same was read."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Volume


def fingerprint(patient: Patient) -> dict[str, str]:
    """SHA-256 of each part of a patient's data: images, structures, dose mask, prescription, planned dose.

    Geometry and order count; names of files, labels and the frame of reference's identifier do not.
    """
    plan = patient.plans[0] if patient.plans else None
    prescribed = None if plan is None else (plan.prescription, plan.gantry_angles_deg)
    dose = None if plan is None else plan.dose
    return {
        "images": _digest(*(part for i in patient.images for part in (i.modality, i.days, *_volume(i.volume)))),
        "structures": _digest(*(part for s in patient.structures.values() for part in _structure(s))),
        "dose_mask": _digest(*_structure(patient.dose_mask)),
        "prescription": _digest(prescribed),
        "dose": _digest(*(() if dose is None else _volume(dose))),
    }


def voxels_sha256(structure: Structure) -> str:
    """Which voxels of which grid lie in a structure, whatever it is called."""
    return _digest(_grid(structure.grid), np.packbits(structure.mask))


def array_sha256(values: NDArray) -> str:
    """Of an array's type, shape and values in C order, little-endian."""
    values = np.ascontiguousarray(values)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    digest = sha256(f"{values.dtype.str} {values.shape} ".encode())
    digest.update(values.data.cast("B") if values.size else b"")
    return digest.hexdigest()


def _digest(*parts: object) -> str:
    """Arrays by their values, all else by how Python writes it: numbers to their last digit."""
    told = [array_sha256(part) if isinstance(part, np.ndarray) else repr(part) for part in parts]
    return sha256("\n".join(told).encode()).hexdigest()


def _grid(grid: Grid) -> tuple[object, ...]:
    return (grid.shape, grid.spacing_mm, grid.origin_mm, grid.direction)


def _volume(volume: Volume) -> tuple[object, ...]:
    return (volume.quantity, _grid(volume.grid), volume.values)


def _structure(structure: Structure) -> tuple[object, ...]:
    return (structure.name, structure.kind, _grid(structure.grid), structure.box, structure.box_occupancy)
