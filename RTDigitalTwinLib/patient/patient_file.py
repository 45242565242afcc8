"""A patient in one file, to the last bit: how one goes from one process to another on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.files import whole_file
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Approval, Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume

FORMAT = 1


def save_patient(patient: Patient, path: Path) -> None:
    """Write everything of a patient, uncompressed. Raises OutputError."""
    arrays: dict[str, NDArray] = {}
    for k, image in enumerate(patient.images):
        arrays[f"image {k}"] = image.volume.values
    structures = (patient.dose_mask, *patient.structures.values())
    for k, structure in enumerate(structures):
        arrays[f"structure {k}"] = structure.box_occupancy
    for k, plan in enumerate(patient.plans):
        if plan.dose is not None:
            arrays[f"dose {k}"] = plan.dose.values
    about = {
        "format": FORMAT,
        "pseudonym": patient.pseudonym,
        "warnings": patient.warnings,
        "images": [[i.modality, i.days, i.volume.quantity.name, grid_row(i.volume.grid)] for i in patient.images],
        "grid": grid_row(patient.ct.grid),
        "structures": [
            [s.name, s.kind.name, s.source_name, [[part.start, part.stop] for part in s.box]] for s in structures
        ],
        "plans": [_plan_row(plan) for plan in patient.plans],
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with whole_file(path) as aside, aside.open("wb") as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


def load_patient_file(path: Path) -> Patient:
    """The patient that ``save_patient`` wrote. Raises PatientDataError where the file is none or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] != FORMAT:
            raise PatientDataError("The patient was written by another version.", where=path.name)
        grid = grid_from_row(about["grid"])
        images = tuple(
            Image(modality, _on(grid, grid_from_row(own), arrays[f"image {k}"], Quantity[quantity]), days)
            for k, (modality, days, quantity, own) in enumerate(about["images"])
        )
        structures = [
            Structure(name, grid, _box(box), arrays[f"structure {k}"], StructureKind[kind], source)
            for k, (name, kind, source, box) in enumerate(about["structures"])
        ]
        plans = tuple(_plan(row, arrays.get(f"dose {k}"), grid) for k, row in enumerate(about["plans"]))
        return Patient(
            about["pseudonym"],
            images,
            {s.name: s for s in structures[1:]},
            structures[0],
            plans,
            tuple(about["warnings"]),
        )
    except PatientDataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, RTDigitalTwinError) as error:
        raise PatientDataError("The patient's file cannot be read.", where=path.name, remedy="Load it anew.") from error


def grid_row(grid: Grid) -> list[Any]:
    """A grid as JSON takes it."""
    return [grid.shape, grid.spacing_mm, grid.origin_mm, grid.direction, grid.frame_of_reference]


def grid_from_row(row: list[Any]) -> Grid:
    """The grid that ``grid_row`` told."""
    shape, spacing, origin, direction, frame = row
    return Grid(tuple(shape), tuple(spacing), tuple(origin), tuple(direction), frame)


def prescription_row(prescription: Prescription) -> dict[str, Any]:
    """A prescription as JSON takes it."""
    return {"target_dose_gy": prescription.target_dose_gy, "fractions": prescription.fractions}


def prescription_from_row(row: dict[str, Any]) -> Prescription:
    """The prescription that ``prescription_row`` told."""
    levels = tuple((str(name), float(gy)) for name, gy in row["target_dose_gy"])
    return Prescription(levels, int(row["fractions"]))


def _on(shared: Grid, own: Grid, values: NDArray, quantity: Quantity) -> Volume:
    return Volume(values, shared if own == shared else own, quantity)


def _box(ends: list[list[int]]) -> tuple[slice, slice, slice]:
    slices, rows, columns = (slice(*pair) for pair in ends)
    return slices, rows, columns


def _plan_row(plan: Plan) -> dict[str, Any]:
    return prescription_row(plan.prescription) | {
        "gantry_angles_deg": plan.gantry_angles_deg,
        "approval": plan.approval.name,
        "label": plan.label,
        "dose_is_effective": plan.dose_is_effective,
        "not_fixed_fields": plan.not_fixed_fields,
    }


def _plan(row: dict[str, Any], dose: NDArray | None, grid: Grid) -> Plan:
    return Plan(
        prescription_from_row(row),
        tuple(row["gantry_angles_deg"]),
        None if dose is None else Volume(dose, grid, Quantity.DOSE_GY),
        Approval[row["approval"]],
        row["label"],
        row["dose_is_effective"],
        row["not_fixed_fields"],
    )
