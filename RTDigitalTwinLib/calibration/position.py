"""Where the patient lies in the room, as observed by couch shifts, and what that makes of a belief about the dose.

The dose is taken as fixed in the room: tissue moved by s gets the dose that was planned s further on
(``dosimetry.delivery``), so that a dose believed at one position is read at the difference to another. A couch shift
holds from its fraction on until the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.calibration.read_off import read_off
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.observation import CouchShiftObservation, Observation
from RTDigitalTwinLib.solver.correlation import MaskBox
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.narrowing import Narrowing

NOWHERE_MM = (0.0, 0.0, 0.0)
PATHS_SEED = 1
LEAST_GY = 1e-3


@dataclass(frozen=True)
class Position:
    """Positions in the room against the plan's, LPS in mm.

    Attributes
    ----------
    measured_mm : when dose was measured.
    then_mm : from that on to the last one observed.
    noise_mm : standard deviation of the last one, along each axis; 0 where dose was measured at it.
    measured_noise_mm : of the one where dose was measured; None where it was not observed in every measured fraction.
    """

    measured_mm: tuple[float, float, float] = NOWHERE_MM
    then_mm: tuple[float, float, float] = NOWHERE_MM
    noise_mm: float = 0.0
    measured_noise_mm: float | None = None

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> Position:
        """Raises PatientDataError where dose was measured at more than one position."""
        shifts = [o for o in observations if isinstance(o, CouchShiftObservation)]
        if not shifts:
            return cls()
        in_order = sorted(shifts, key=lambda o: o.moment.fraction)
        seen: dict[tuple[float, float, float], str] = {}
        holding: list[CouchShiftObservation | None] = []  # at each measured fraction
        noises: list[float | None] = []  # of the position there
        for observation in observations:
            if isinstance(observation, CouchShiftObservation):
                continue
            first = observation.moment.fraction - observation.moment.fractions + 1
            for fraction in range(first, observation.moment.fraction + 1):
                held = next((o for o in reversed(in_order) if o.moment.fraction <= fraction), None)
                seen[NOWHERE_MM if held is None else held.shift_mm] = observation.label
                holding.append(held)
                # From day to day the position differs: an image tells that of its own.
                noises.append(held.noise.floor if held is not None and held.moment.fraction == fraction else None)
        if len(seen) > 1:
            raise PatientDataError(
                "Dose was measured before a couch shift and after it, and one belief cannot hold both.",
                where=next(reversed(seen.values())),
                remedy="Begin from the network's own belief with the couch shift and the measurements after it.",
            )
        last = in_order[-1]
        measured = next(iter(seen), last.shift_mm)
        x, y, z = (float(a - b) for a, b in zip(last.shift_mm, measured, strict=True))
        is_known = bool(holding) and all(held is last for held in holding)  # what was measured there says all there is
        known = [noise for noise in noises if noise is not None]
        noise_mm = max(known) if known and len(known) == len(noises) else None
        return cls(measured, (x, y, z), 0.0 if is_known else last.noise.floor, noise_mm)


def moved(drawn: DoseEnsemble, shift_mm: tuple[float, float, float]) -> DoseEnsemble:
    """Samples of a dose at another position; the given ones where there is no shift."""
    if not any(shift_mm):
        return drawn
    move = _mover(drawn, shift_mm)
    dose = np.maximum(move(drawn.deterministic_gy), 0)
    samples = [np.maximum(move(drawn.sample_gy(k)), 0) - dose for k in range(drawn.count)]
    ratio = drawn.floor_ratio
    return replace(
        drawn,
        deterministic_gy=dose,
        deviations_gy=np.stack(samples).astype(np.float16) if samples else drawn.deviations_gy,
        floor_ratio=None if ratio is None else np.maximum(move(ratio - 1) + 1, 0),
        narrowing=None
        if drawn.narrowing is None
        else Narrowing(*(moved(e, shift_mm) for e in drawn.narrowing.ensembles)),
    )


def unsure_of(drawn: DoseEnsemble, noise_mm: float, variance: NDArray[np.float64]) -> DoseEnsemble:
    """Samples with what not knowing the position exactly adds to their spread, to first order.

    ``variance`` (mask voxels,) is that of each voxel in Gy^2 without it.
    """
    if not noise_mm or not drawn.has_spread:
        return drawn
    mean = drawn.mean.values.reshape(-1)[drawn.crop.mask_indices].astype(np.float32)
    slopes = noise_mm * MaskBox(drawn.crop).slopes(mean)
    wider = np.sqrt(1 + np.square(slopes).sum(axis=0) / np.maximum(variance, LEAST_GY**2)).astype(np.float32)
    about = drawn.deviations_gy.mean(axis=0, dtype=np.float32)
    deviations = (about + wider * (drawn.deviations_gy - about)).astype(np.float16)
    ratio = wider if drawn.floor_ratio is None else wider * drawn.floor_ratio
    narrowing = drawn.narrowing
    if narrowing is not None:
        paths = narrowing.after.deviations_gy
        steps = np.random.default_rng(PATHS_SEED).standard_normal((len(paths), 3)).astype(np.float32)
        steps[0] = 0  # what is expected itself
        narrowing = replace(
            narrowing, after=replace(narrowing.after, deviations_gy=(paths + steps @ slopes).astype(np.float16))
        )
    return replace(drawn, deviations_gy=deviations, floor_ratio=ratio, narrowing=narrowing)


def _mover(
    drawn: DoseEnsemble, shift_mm: tuple[float, float, float]
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    grid, box = drawn.crop.grid, MaskBox(drawn.crop)
    axes = np.reshape(grid.direction, (3, 3)) * grid.spacing_mm
    steps = (np.linalg.inv(axes) @ np.asarray(shift_mm))[::-1]

    def move(values: NDArray) -> NDArray[np.float32]:
        full = box.spread(values[None].astype(np.float32))[0]
        return read_off(full, steps).reshape(-1)[box.places]

    return move
