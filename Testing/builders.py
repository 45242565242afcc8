"""Small hand-made patients and predictions, on grids of several directions, for tests that need no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.model.crop import crop_around
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.naming import DOSE_MASK
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.solver.bands import DOSE_EDGES_GY, LEVELS, REMAINDER, BandCalibration
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble

SHAPE = (24, 36, 40)
SPACING_MM = (4.0, 4.0, 5.0)
FRAME = "1.2.826.0.1.3680043.8.498.1"

_TURN = np.deg2rad(20)
OBLIQUE_DIRECTION = tuple(
    (
        np.array([[np.cos(_TURN), -np.sin(_TURN), 0], [np.sin(_TURN), np.cos(_TURN), 0], [0, 0, 1]])
        @ np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    ).ravel()
)
# Columns towards posterior, rows towards the feet, slices towards the right: a sagittal scan.
SAGITTAL_DIRECTION = tuple(np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=float).ravel())


def axial_grid() -> Grid:
    """Axes along LPS, centred off 0."""
    return Grid(SHAPE, SPACING_MM, (-75.0, -68.5, -31.25), frame_of_reference=FRAME)


def oblique_grid() -> Grid:
    """Turned about two axes, as a tilted head."""
    return Grid(SHAPE, SPACING_MM, (-55.5, -70.25, -20.0), OBLIQUE_DIRECTION, FRAME)


def sagittal_grid() -> Grid:
    """Slices from left to right."""
    return Grid((40, 24, 36), (4.0, 5.0, 4.0), (78.0, -70.0, 60.0), SAGITTAL_DIRECTION, FRAME)


GRIDS: dict[str, Callable[[], Grid]] = {"axial": axial_grid, "oblique": oblique_grid, "sagittal": sagittal_grid}


def ball(grid: Grid, offset_mm: tuple[float, float, float], radii_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Mask of an ellipsoid, ``offset_mm`` (LPS) from the grid's middle."""
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    middle = grid.to_lps_mm((np.array(grid.shape) - 1) / 2)
    away = (grid.to_lps_mm(indices) - middle - offset_mm) / radii_mm
    return (away**2).sum(axis=-1) <= 1


def small_patient(grid: Grid | None = None, *, with_dose: bool = True) -> Patient:
    """A patient of one target and three organs, 34,560 voxels: quick, and the same each time."""
    grid = grid or axial_grid()
    body = ball(grid, (0, 0, 0), (66, 58, 200))
    hu = np.where(body, 30, -1000)
    masks = {
        "PTV_7000": ball(grid, (18, -12, 2), (16, 16, 18)),
        "SpinalCord": ball(grid, (0, 34, 0), (7, 7, 200)) & body,
        "Parotid_R": ball(grid, (-42, 0, 10), (12, 14, 16)),
        "Parotid_L": ball(grid, (42, 6, 10), (12, 14, 16)),
    }
    hu[masks["PTV_7000"]] = 60
    hu[masks["SpinalCord"]] = 45
    hu[ball(grid, (0, 34, 0), (13, 13, 200)) & ~masks["SpinalCord"]] = 600
    hu += (7 * np.random.default_rng(0).standard_normal(grid.shape)).astype(int)
    ct = Volume(hu.astype(np.int16), grid, Quantity.HU)
    kinds = {"PTV_7000": StructureKind.TARGET}
    structures = {
        name: Structure.from_array(name, mask, grid, kinds.get(name, StructureKind.ORGAN))
        for name, mask in masks.items()
    }
    mask = Structure.from_array(DOSE_MASK, body, grid, StructureKind.REGION)
    plan = Plan(Prescription((("PTV_7000", 70.0),), 35), label="hand-made")
    patient = Patient("small-patient", (Image("CT", ct),), structures, mask, (plan,))
    if not with_dose:
        return patient
    return replace(patient, plans=(replace(plan, dose=falling_dose(patient)),))


def falling_dose(patient: Patient) -> Volume:
    """70 Gy in the target, falling smoothly with the distance from it; 0 outside the mask."""
    grid = patient.ct.grid
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    away_mm = np.linalg.norm(grid.to_lps_mm(indices) - patient.structures["PTV_7000"].centroid_mm, axis=-1)
    gy = np.where(patient.dose_mask.mask, 70 / (1 + np.exp((away_mm - 26) / 7)), 0)
    return Volume(gy.astype(np.float32), grid, Quantity.DOSE_GY)


def hand_made_calibration(samples: int = 8) -> BandCalibration:
    """Bands of twice the spread at 95 %, everywhere."""
    factors = tuple(2.0 * level / 0.95 for level in LEVELS)
    kinds = ("target", "organ")
    return BandCalibration(
        {key: (factors,) * (len(DOSE_EDGES_GY) + 1) for key in (*kinds, REMAINDER)},
        {f"{key} Gy": factors for key in kinds},
        dict.fromkeys(kinds, factors),
        patients=40,
        samples=samples,
    )


def hand_made_ensemble(patient: Patient, samples: int = 8, seed: int = 0) -> DoseEnsemble:
    """A prediction that a network might have made: the falling dose, 2 % too high, with smooth seeded deviations.

    Each sample is off by a plane wave of a few Gy where there is dose. ``samples`` 0 is deterministic.
    """
    crop = crop_around(patient)
    grid = patient.ct.grid
    expected = 1.02 * falling_dose(patient).values.reshape(-1)[crop.mask_indices]
    rng = np.random.default_rng(seed)
    positions = grid.to_lps_mm(np.stack(np.unravel_index(crop.mask_indices, grid.shape), axis=-1))
    waves = rng.normal(0, 1 / 25, (samples, 3)) @ positions.T + rng.uniform(0, 2 * np.pi, (samples, 1))
    deviations = 3 * np.sin(waves) * (expected / 70)
    return DoseEnsemble(
        patient,
        crop,
        expected.astype(np.float32),
        deviations.astype(np.float16),
        seed if samples else None,
        "0" * 64,
    )


# A planning CT's pixels, finer than the network's.
FINE = Grid((24, 72, 80), (2.0, 2.0, 5.0), (-79.0, -71.0, -57.5), frame_of_reference=FRAME)
