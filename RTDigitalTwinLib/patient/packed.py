"""A cohort of patients in one small file, for training where the data themselves cannot go.

A zip archive, a header and three members a patient, so that damage is noticed by their checksums. Packing keeps the
slices of the dose mask and the structures; it rounds the CT to 8 HU and the dose to 0.1 Gy, takes air (below -950 HU)
as -1000 HU and structures as the voxels at least half inside; it drops dose outside the dose mask, the frame of
reference, the structures' names in their source, the plan's label and approval, and all further plans and images.
"""

from __future__ import annotations

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import Cancelled, PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.grid import Box, Grid
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.progress import Progress, silent

SUFFIX = ".cohort"
FORMAT = 1
HU_STEP, DOSE_STEP_GY = 8, 0.1
LOWEST_HU, HIGHEST_HU, AIR_BELOW_HU = -1000, 3071, -950
MOST_GY = 1000.0
MOST_STRUCTURES = 31  # bits of a mask word, one of them for the dose mask
_COHORT, _HEADER, _CT, _MASKS, _DOSE = "cohort.json", "patient.json", "ct", "masks", "dose"


def is_packed(path: Path) -> bool:
    """Whether the path is a packed cohort, by its name."""
    return path.is_file() and path.suffix == SUFFIX


def write_packed(path: Path, splits: Mapping[str, Iterable[Patient]], progress: Progress = silent) -> int:
    """Write patients by split; returns the size of the file in bytes.

    Raises PatientDataError where a patient has no dose or more structures than fit, OutputError where the place
    cannot be written.
    """
    names: dict[str, list[str]] = {}
    with whole_file(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_LZMA) as archive:
        for split, patients in splits.items():
            names[split] = []
            for patient in patients:
                progress(0.0, f"packing {patient.pseudonym}")
                header, members = _packed(patient)
                folder = f"{split}/{len(names[split]):04d}"
                archive.writestr(f"{folder}/{_HEADER}", json.dumps(header))
                for member, content in members.items():
                    archive.writestr(f"{folder}/{member}", content)
                names[split].append(patient.pseudonym)
        archive.writestr(_COHORT, json.dumps({"format": FORMAT, "splits": names}))
    return path.stat().st_size


def read_packed(path: Path, progress: Progress = silent) -> dict[str, list[Patient]]:
    """Patients by split. Raises PatientDataError where the file is missing, damaged or of another version."""
    try:
        with zipfile.ZipFile(path) as archive:
            cohort = json.loads(archive.read(_COHORT))
            if cohort["format"] != FORMAT:
                raise PatientDataError(
                    f"The cohort has format {cohort['format']}, not {FORMAT}.", where=path.name, remedy="Pack it anew."
                )
            splits: dict[str, list[Patient]] = {}
            done = 0
            count = sum(len(names) for names in cohort["splits"].values())
            for split, names in cohort["splits"].items():
                splits[split] = []
                for i, name in enumerate(names):
                    progress(done / count, f"unpacking {name}")
                    splits[split].append(_unpacked(archive, f"{split}/{i:04d}"))
                    done += 1
    except Cancelled:
        raise
    except FileNotFoundError as error:
        raise PatientDataError("There is no such file.", where=str(path)) from error
    except PermissionError as error:
        raise PatientDataError("The file may not be read.", where=str(path), remedy="Check permissions.") from error
    except (
        RTDigitalTwinError,
        OSError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
    ) as error:
        if isinstance(error, PatientDataError) and error.where == path.name:
            raise
        raise PatientDataError("The cohort is damaged.", where=path.name, remedy="Copy it or pack it anew.") from error
    return splits


def _packed(patient: Patient) -> tuple[dict[str, Any], dict[str, bytes]]:
    if not patient.plans or patient.plan.dose is None:
        raise PatientDataError("The patient has no reference dose.", where=patient.pseudonym)
    if len(patient.structures) > MOST_STRUCTURES:
        raise PatientDataError(
            f"At most {MOST_STRUCTURES} structures can be packed, not {len(patient.structures)}.",
            where=patient.pseudonym,
        )
    box = _kept(patient)
    masks = np.zeros([part.stop - part.start for part in box], np.uint32)
    for bit, structure in enumerate((patient.dose_mask, *patient.structures.values())):
        voxels = structure.mask[box]
        if not voxels.any():
            raise PatientDataError(
                "The structure fills no voxel by half, so packing would lose it.",
                where=f"{patient.pseudonym}/{structure.name}",
                remedy="Leave the structure out.",
            )
        masks |= voxels.astype(np.uint32) << bit
    inside = (masks & 1).astype(bool)
    hu = np.clip(patient.ct.values[box], LOWEST_HU, HIGHEST_HU).astype(np.float32)
    hu[hu < AIR_BELOW_HU] = LOWEST_HU
    ct = np.round((hu - LOWEST_HU) / HU_STEP).astype(np.int16)
    gy = patient.plan.dose.values[box][inside]
    if not (np.abs(gy) < MOST_GY).all():  # NaN fails as well
        raise PatientDataError(
            f"The reference dose is not known, or above {MOST_GY:g} Gy, somewhere in the dose mask.",
            where=patient.pseudonym,
        )
    dose = np.round(gy / DOSE_STEP_GY).astype(np.int16)
    grid, plan = patient.ct.grid, patient.plan
    header = {
        "pseudonym": patient.pseudonym,
        "shape": masks.shape,
        "spacing_mm": grid.spacing_mm,
        "origin_mm": [float(v) for v in grid.to_lps_mm([part.start for part in box])],
        "direction": grid.direction,
        "structures": [[s.name, s.kind.name] for s in (patient.dose_mask, *patient.structures.values())],
        "prescription": [list(level) for level in plan.prescription.target_dose_gy],
        "fractions": plan.prescription.fractions,
        "gantry_angles_deg": plan.gantry_angles_deg,
        "warnings": patient.warnings,
    }
    members = {_CT: _planes(_differences(ct)), _MASKS: _planes(masks), _DOSE: _planes(_differences(dose))}
    return header, members


def _kept(patient: Patient) -> Box:
    """Whole slices, those of the dose mask and the structures."""
    slices = [patient.dose_mask.box[0], *(structure.box[0] for structure in patient.structures.values())]
    _, rows, columns = patient.ct.grid.shape
    kept = slice(min(part.start for part in slices), max(part.stop for part in slices))
    return kept, slice(0, rows), slice(0, columns)


def _unpacked(archive: zipfile.ZipFile, folder: str) -> Patient:
    header = json.loads(archive.read(f"{folder}/{_HEADER}"))
    shape = tuple(header["shape"])
    grid = Grid(shape, tuple(header["spacing_mm"]), tuple(header["origin_mm"]), tuple(header["direction"]))
    masks = _joined(archive.read(f"{folder}/{_MASKS}"), np.uint32).reshape(shape)
    ct = np.cumsum(_joined(archive.read(f"{folder}/{_CT}"), np.int16).reshape(shape), axis=-1, dtype=np.int16)
    structures = [
        Structure.from_array(name, masks >> bit & 1, grid, StructureKind[kind])
        for bit, (name, kind) in enumerate(header["structures"])
    ]
    dose_mask = structures[0].mask
    dose = np.zeros(shape, np.float32)
    steps = np.cumsum(_joined(archive.read(f"{folder}/{_DOSE}"), np.int16), dtype=np.int16)
    dose[dose_mask] = steps * np.float32(DOSE_STEP_GY)
    prescription = Prescription(tuple((name, float(gy)) for name, gy in header["prescription"]), header["fractions"])
    plan = Plan(prescription, tuple(header["gantry_angles_deg"]), Volume(dose, grid, Quantity.DOSE_GY))
    hu = (ct * HU_STEP + LOWEST_HU).astype(np.int16)
    return Patient(
        header["pseudonym"],
        (Image("CT", Volume(hu, grid, Quantity.HU)),),
        {s.name: s for s in structures[1:]},
        structures[0],
        (plan,),
        tuple(header["warnings"]),
    )


def _differences(values: NDArray[np.int16]) -> NDArray[np.int16]:
    return np.diff(values, axis=-1, prepend=np.int16(0)).astype(np.int16)


def _planes(values: NDArray[Any]) -> bytes:
    """Byte by byte, all lowest ones first: what compresses best."""
    return values.astype(values.dtype.newbyteorder("<")).reshape(-1, 1).view(np.uint8).T.tobytes()


def _joined(content: bytes, dtype: type[np.generic]) -> NDArray[Any]:
    """The values of ``_planes``."""
    planes = np.frombuffer(content, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(np.dtype(dtype).newbyteorder("<")).reshape(-1).astype(dtype)
