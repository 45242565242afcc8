"""Reader and writer of the public OpenKBP CSV layout.

A folder holds one CSV a quantity: a header line, then ``flat C-order index,value`` rows on a 128x128x128 array whose
axes grow towards posterior, left and inferior (Babier et al., Medical Physics 48, 5549, 2021). Masks have an empty
second column; ``voxel_dimensions.csv`` has three numbers in mm in that axis order and no header.
"""

from __future__ import annotations

import re
import warnings as python_warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.files import whole_file, whole_folder
from RTDigitalTwinLib.patient.anatomy_check import check_orientation
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.naming import DOSE_MASK, TARGET_DOSE_GY
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import OPENKBP_FRACTIONS, OPENKBP_GANTRY_ANGLES_DEG, Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.words import counted

SIDE = 128
VOXELS = SIDE**3
HU_OFFSET = 1024
HIGHEST_CT_VALUE = 4095  # 12 bit; some files mix in 16-bit sources and are clipped
HIGHEST_CT_IN_DATA = 32767
HIGHEST_DOSE_GY = 150.0
# Shares of the feasible-dose mask below which a file was cut short; in the public patients CT covers 0.93 or more of
# it and dose 0.90, and 0.99 of every target lies inside.
SMALLEST_CT_SHARE = 0.8
SMALLEST_DOSE_SHARE = 0.8
SMALLEST_TARGET_SHARE = 0.95
BENCHMARK_NUMBERS = range(1, 341)

ORGAN_FILES = {
    "Brainstem": "Brainstem",
    "SpinalCord": "SpinalCord",
    "RightParotid": "Parotid_R",
    "LeftParotid": "Parotid_L",
    "Esophagus": "Esophagus",
    "Larynx": "Larynx",
    "Mandible": "Bone_Mandible",
}
TARGET_FILES = {"PTV56": "PTV_5600", "PTV63": "PTV_6300", "PTV70": "PTV_7000"}
STRUCTURE_FILES = {**ORGAN_FILES, **TARGET_FILES}
MASK_FILE = "possible_dose_mask"
REQUIRED_FILES = ("ct", MASK_FILE, "voxel_dimensions")


def recognises(folder: Path) -> bool:
    """Whether a folder looks like an OpenKBP patient."""
    return any((folder / f"{name}.csv").is_file() for name in REQUIRED_FILES)


def read_patient(folder: Path) -> Patient:
    """Read one patient; the grid is right-handed LPS with its centre at 0 (the layout has no origin).

    Raises PatientDataError naming the file where one is missing, truncated or holds impossible values, and where
    the anatomy contradicts the layout's orientation.
    """
    for name in REQUIRED_FILES:
        if not (folder / f"{name}.csv").is_file():
            raise PatientDataError(
                "The file is missing.",
                where=f"{name}.csv",
                remedy="An OpenKBP patient needs ct, possible_dose_mask and voxel_dimensions.",
            )
    grid = _read_grid(folder / "voxel_dimensions.csv")
    warnings: list[str] = []
    ct = _read_ct(folder / "ct.csv", grid, warnings)
    mask = _read_structure(folder / f"{MASK_FILE}.csv", DOSE_MASK, grid, StructureKind.REGION)
    _require_cover(ct, mask)

    structures = {}
    for file_name, name in STRUCTURE_FILES.items():
        path = folder / f"{file_name}.csv"
        if path.exists():
            kind = StructureKind.TARGET if file_name in TARGET_FILES else StructureKind.ORGAN
            structures[name] = _read_structure(path, name, grid, kind)
        elif file_name in ORGAN_FILES:
            warnings.append(f"{name} is absent ({file_name}.csv is not there).")
    targets = tuple((n, dose) for n, dose in TARGET_DOSE_GY if n in structures)
    if not targets:
        raise PatientDataError(
            "The patient has no planning target volume.",
            where="PTV70.csv, PTV63.csv, PTV56.csv",
            remedy="At least one of the three is needed to predict a dose.",
        )
    _require_targets_inside(structures, mask)
    warnings += check_orientation(structures)
    dose = _read_dose(folder / "dose.csv", grid, mask) if (folder / "dose.csv").is_file() else None
    prescription = Prescription(targets, OPENKBP_FRACTIONS)
    plan = Plan(prescription, OPENKBP_GANTRY_ANGLES_DEG, dose, label="OpenKBP reference plan")
    return Patient(pseudonym_of(folder), (Image("CT", ct),), structures, mask, (plan,), tuple(warnings))


def write_patient(patient: Patient, folder: Path) -> None:
    """Write a patient in the layout. Occupancy is written as mask (>= 0.5): the layout holds no partial volumes.

    The folder appears when all of it is written, or not at all. Raises PatientDataError where the patient is not on a
    128x128x128 grid with axes along LPS, OutputError where the folder has content or cannot be written.
    """
    grid = patient.ct.grid
    if grid.shape != (SIDE,) * 3 or not np.allclose(np.reshape(grid.direction, (3, 3)), np.eye(3), atol=1e-6):
        raise PatientDataError(
            "The OpenKBP layout needs a 128x128x128 grid with axes along LPS.",
            where=patient.pseudonym,
            remedy="Resample the patient first.",
        )
    column_mm, row_mm, slice_mm = grid.spacing_mm
    stored = np.clip(to_file_order(patient.ct.values) + HU_OFFSET, 0, HIGHEST_CT_VALUE)
    with whole_folder(folder) as aside:
        (aside / "voxel_dimensions.csv").write_text(f"{row_mm!r}\n{column_mm!r}\n{slice_mm!r}\n")
        _write_sparse(aside / "ct.csv", np.flatnonzero(stored), stored.reshape(-1))
        for file_name, name in {**STRUCTURE_FILES, MASK_FILE: DOSE_MASK}.items():
            structure = patient.dose_mask if name == DOSE_MASK else patient.structures.get(name)
            if structure is not None:
                _write_sparse(aside / f"{file_name}.csv", np.flatnonzero(to_file_order(structure.mask)))
        if patient.plans and patient.plan.dose is not None:
            write_dose(patient.plan.dose, aside / "dose.csv")


def write_dose(dose: Volume, path: Path) -> None:
    """Write a dose in Gy as the benchmark's submission format: rows for the voxels above 0 Gy.

    Raises OutputError where it cannot be written.
    """
    flat = to_file_order(dose.values).reshape(-1)
    with whole_file(path) as aside:
        _write_sparse(aside, np.flatnonzero(flat > 0), flat)


def read_dose(path: Path, patient: Patient) -> Volume:
    """A dose in the layout, of a patient that was read from it.

    Raises PatientDataError where the file is damaged, or the patient is not on a 128x128x128 grid.
    """
    if patient.ct.grid.shape != (SIDE, SIDE, SIDE):
        raise PatientDataError(
            "A dose in the OpenKBP layout needs a patient in that layout.",
            where=path.name,
            remedy="Give an RTDOSE or an image file.",
        )
    return _read_dose(path, patient.ct.grid, patient.dose_mask)


def to_file_order(values: NDArray) -> NDArray:
    """(slice, row, column) in LPS to the layout's (posterior, left, inferior)."""
    return values[::-1].transpose(1, 2, 0)


def from_file_order(values: NDArray) -> NDArray:
    """The layout's (posterior, left, inferior) to (slice, row, column) in LPS."""
    return np.ascontiguousarray(values.transpose(2, 0, 1)[::-1])


@dataclass(frozen=True)
class _Rows:
    indices: NDArray[np.int64]
    values: NDArray[np.float64] | None


def _read_rows(path: Path, *, with_values: bool) -> _Rows:
    header, _, body = _read_bytes(path).partition(b"\n")
    if header.split(b",")[0].strip().isdigit():
        raise PatientDataError(
            "The header line is missing.", where=path.name, remedy="The first line must read ',data'."
        )
    if not body.strip():
        raise PatientDataError(
            "The file has no rows.",
            where=path.name,
            remedy="Delete it if the structure is not contoured, or copy it anew.",
        )
    if not body.endswith(b"\n"):
        raise PatientDataError(
            "The last line does not end: the file looks truncated.", where=path.name, remedy="Copy it anew."
        )
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("error")
            table = np.loadtxt(
                body.decode("ascii").splitlines(), delimiter=",", ndmin=2, usecols=(0, 1) if with_values else (0,)
            )
    except (ValueError, UnicodeDecodeError, UserWarning, DeprecationWarning) as error:
        raise PatientDataError(
            f"The file cannot be read ({_one_line(error)}).",
            where=path.name,
            remedy="Copy it anew: it may be truncated.",
        ) from error
    if not np.isfinite(table).all():
        raise PatientDataError(
            f"Row {int(np.argmin(np.isfinite(table).all(axis=1))) + 1} is not a finite number.",
            where=path.name,
            remedy="Every index and value must be a number.",
        )
    indices = table[:, 0].astype(np.int64)
    if (indices != table[:, 0]).any():
        raise PatientDataError("An index is not a whole number.", where=path.name)
    outside = (indices < 0) | (indices >= VOXELS)
    if outside.any():
        raise PatientDataError(f"Index {indices[outside][0]} lies outside the 128x128x128 grid.", where=path.name)
    if np.unique(indices).size != indices.size:
        raise PatientDataError("A voxel is listed twice.", where=path.name)
    return _Rows(indices, table[:, 1] if with_values else None)


def _read_grid(path: Path) -> Grid:
    try:
        sizes = np.loadtxt(_read_bytes(path).decode("ascii").splitlines(), ndmin=1)
    except ValueError as error:
        raise PatientDataError(f"The voxel size cannot be read ({_one_line(error)}).", where=path.name) from error
    if sizes.shape != (3,) or not np.isfinite(sizes).all() or not ((sizes > 0.1) & (sizes < 20)).all():
        raise PatientDataError(
            f"The voxel size must be three numbers between 0.1 and 20 mm, not {sizes.tolist()}.", where=path.name
        )
    row_mm, column_mm, slice_mm = (float(s) for s in sizes)
    spacing = (column_mm, row_mm, slice_mm)
    origin = tuple(-(SIDE - 1) / 2 * s for s in spacing)
    return Grid((SIDE,) * 3, spacing, (origin[0], origin[1], origin[2]))


def _read_ct(path: Path, grid: Grid, warnings: list[str]) -> Volume:
    rows = _read_rows(path, with_values=True)
    assert rows.values is not None
    low, high = rows.values.min(), rows.values.max()
    if low < 0 or high > HIGHEST_CT_IN_DATA:
        raise PatientDataError(
            f"CT values run from {low:g} to {high:g}; the layout stores HU + 1024, 0 to 4095.",
            where=path.name,
            remedy="Check the rescale intercept of its source.",
        )
    if high < HU_OFFSET:
        raise PatientDataError(
            f"The highest CT value is {high:g}: no tissue is denser than water.",
            where=path.name,
            remedy="The layout stores HU + 1024; these look like unshifted HU.",
        )
    clipped = int((rows.values > HIGHEST_CT_VALUE).sum())
    if clipped:
        warnings.append(
            f"{counted(clipped, 'CT voxel')} above {HIGHEST_CT_VALUE - HU_OFFSET} HU (up to "
            f"{high - HU_OFFSET:.0f}) {'was' if clipped == 1 else 'were'} clipped: ct.csv mixes 12- and 16-bit sources."
        )
    hu = np.full(VOXELS, -HU_OFFSET, np.int16)
    hu[rows.indices] = np.round(np.minimum(rows.values, HIGHEST_CT_VALUE)) - HU_OFFSET
    return Volume(from_file_order(hu.reshape((SIDE,) * 3)), grid, Quantity.HU)


def _read_structure(path: Path, name: str, grid: Grid, kind: StructureKind) -> Structure:
    mask = np.zeros(VOXELS, bool)
    mask[_read_rows(path, with_values=False).indices] = True
    return Structure.from_array(name, from_file_order(mask.reshape((SIDE,) * 3)), grid, kind, path.stem)


def _read_dose(path: Path, grid: Grid, mask: Structure) -> Volume:
    rows = _read_rows(path, with_values=True)
    assert rows.values is not None
    if rows.values.min() < 0 or rows.values.max() > HIGHEST_DOSE_GY:
        raise PatientDataError(
            f"Doses run from {rows.values.min():g} to {rows.values.max():g}; expected 0 to {HIGHEST_DOSE_GY:g} Gy.",
            where=path.name,
            remedy="Is the unit cGy?",
        )
    gy = np.zeros(VOXELS, np.float32)
    gy[rows.indices] = rows.values
    values = from_file_order(gy.reshape((SIDE,) * 3))
    outside = int(((values > 0) & ~mask.mask).sum())
    if outside:
        raise PatientDataError(
            f"{counted(outside, 'voxel has', 'voxels have')} dose outside the feasible-dose mask.",
            where=path.name,
            remedy=f"Check that dose.csv and {MASK_FILE}.csv belong together.",
        )
    share = float((values[mask.mask] > 0).mean())
    if share < SMALLEST_DOSE_SHARE:
        raise PatientDataError(
            f"The dose covers only {share:.0%} of the feasible-dose mask: it looks truncated.",
            where=path.name,
            remedy="Copy it anew, or check that the files belong together.",
        )
    return Volume(values, grid, Quantity.DOSE_GY)


def _require_cover(ct: Volume, mask: Structure) -> None:
    share = float((ct.values[mask.mask] > -HU_OFFSET).mean())
    if share < SMALLEST_CT_SHARE:
        raise PatientDataError(
            f"The CT covers only {share:.0%} of the feasible-dose mask: it looks truncated.",
            where="ct.csv",
            remedy="Copy it anew, or check that the files belong together.",
        )


def _require_targets_inside(structures: dict[str, Structure], mask: Structure) -> None:
    for structure in structures.values():
        if structure.kind is not StructureKind.TARGET:
            continue
        share = float(mask.mask[structure.box][structure.box_occupancy > 0].mean())
        if share < SMALLEST_TARGET_SHARE:
            raise PatientDataError(
                f"Only {share:.0%} of {structure.source_name} lies inside it: the mask looks truncated.",
                where=f"{MASK_FILE}.csv",
                remedy="Copy it anew, or check that the files belong together.",
            )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PatientDataError(f"The file cannot be read ({error.strerror}).", where=path.name) from error


def pseudonym_of(folder: Path) -> str:
    """The benchmark's own number where the folder bears one, else a hash of the CT: folders may bear names."""
    name = folder.resolve().name
    number = re.fullmatch(r"pt_(\d{1,3})", name)
    if number and int(number[1]) in BENCHMARK_NUMBERS:
        return name
    return "patient-" + sha256(_read_bytes(folder / "ct.csv")).hexdigest()[:8]


def _write_sparse(path: Path, indices: NDArray, values: NDArray | None = None) -> None:
    with path.open("w", newline="\n") as out:
        out.write(",data\n")
        if values is None:
            out.writelines(f"{i},\n" for i in indices.tolist())
        else:
            chosen = values.reshape(-1)[indices].tolist()
            out.writelines(f"{i},{v:.7g}\n" for i, v in zip(indices.tolist(), chosen, strict=True))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
