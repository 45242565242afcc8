"""How often the watch is wrong without a change, how soon it is right after one, and the threshold for a stated rate.

Many courses are cheap here: a fraction's readings follow from where the anatomy lies, and are read off a lattice of
displacements that was worked out once for each patient; the network has a part in the belief alone. A course learns
the patient after the first week, as the triggered policy does, and goes on without a reaction to alarms.

python -m Testing.Benchmarks.course_watch [DATA PATIENT...] [--seeds 50] [--rate 0.05]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from RTDigitalTwinLib.calibration.belief import prior_of
from RTDigitalTwinLib.calibration.change_fit import fit_change
from RTDigitalTwinLib.calibration.fraction_readings import FractionReadings
from RTDigitalTwinLib.calibration.watch import Watch, WatchSettings
from RTDigitalTwinLib.course import prepared
from RTDigitalTwinLib.course_record import CourseSettings
from RTDigitalTwinLib.decision.policies import Triggered
from RTDigitalTwinLib.decision.ranking import FEWEST_SAMPLES
from RTDigitalTwinLib.dosimetry.delivery import Change
from RTDigitalTwinLib.dosimetry.fraction_delivery import READINGS, Deliveries, SetupErrors, Treatment
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.report.course_tables import clopper_pearson
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.twin import Twin

FRACTIONS, SHIFT_AT, FIRST_SEED = 35, 11, 100
STEP_MM = 3.0
LOWEST_MM, HIGHEST_MM = np.array([-6.0, -6.0, -12.0]), np.array([6.0, 12.0, 6.0])  # LPS, of the lattice
CHANGES = {
    "none": Change(),
    "5 mm": Change(shift_mm=(0.0, 4.0, -3.0)),
    "10 mm": Change(shift_mm=(0.0, 8.0, -6.0)),
    "parotids 15 %": Change(parotid_shrinkage_ratio=0.15),
}


@dataclass(frozen=True, eq=False)
class Lattice:
    """Exact readings (readings, l, p, s) at displacements of the anatomy, without or with a change of its shape."""

    values: NDArray[np.float64]

    @classmethod
    def of(cls, drawn: DoseEnsemble, known: FractionReadings, change: Change, highest_mm: NDArray) -> Lattice:
        shape = replace(change, shift_mm=(0.0, 0.0, 0.0))
        truth = Deliveries(drawn.patient, drawn.crop.mask_indices, shape, 2, SetupErrors(0.0, 0.0, 0.0, 0.0), 0)
        lowest = np.maximum(LOWEST_MM, -6.0) if shape != Change() else LOWEST_MM
        axes = [np.arange(low, high + STEP_MM / 2, STEP_MM) for low, high in zip(lowest, highest_mm, strict=True)]
        found = np.empty((known.count, *(len(axis) for axis in axes)))
        for place in np.ndindex(*found.shape[1:]):
            x, y, z = (float(axis[k]) for axis, k in zip(axes, place, strict=True))
            found[(slice(None), *place)] = known.of_dose(truth.expected_gy(2, Treatment((x, y, z))))
        return cls(found)

    def at(self, moved_mm: NDArray[np.float64], lowest_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """(fractions, readings) at displacements (fractions, 3)."""
        index = ((moved_mm - lowest_mm) / STEP_MM).T
        return np.stack([map_coordinates(of, index, order=3, mode="nearest") for of in self.values], axis=1)


def readings_of(
    drawn: DoseEnsemble, known: FractionReadings, lattice: Lattice, lowest: NDArray, change: Change, seed: int,
    fractions: range,
) -> NDArray[np.float64]:  # fmt: skip
    """(fractions, readings) of a course's fractions as ``Course`` draws them, all with the change."""
    truth = Deliveries(drawn.patient, drawn.crop.mask_indices, change, 1, known.setup, seed)
    days = [truth.day(f) for f in fractions]
    moved = np.array([truth.lasting_mm(f) + day for f, (day, _) in zip(fractions, days, strict=True)])
    exact = lattice.at(moved, lowest) * (1 + np.array([output for _, output in days]))[:, None]
    noise = [truth.chance(READINGS, f).standard_normal(known.count) for f in fractions]
    return np.maximum(exact + known.noise_std(exact) * np.array(noise), 0)


def lattice_error(drawn: DoseEnsemble, known: FractionReadings, lattice: Lattice, seeds: int = 20) -> float:
    """Root mean square of what the lattice is wrong by, in standard deviations of the readings' noise."""
    off = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        truth = Deliveries(drawn.patient, drawn.crop.mask_indices, Change(), None, known.setup, seed)
        day, output = truth.day(1)
        exact = known.of_dose(truth.dose_gy(1, Treatment()))
        read = lattice.at((truth.lasting_mm(1) + day)[None], LOWEST_MM)[0] * (1 + output)
        off.append((read - exact) / known.noise_std(exact))
    return float(np.sqrt(np.square(off).mean()))


def watched(known: FractionReadings, readings: NDArray[np.float64]) -> NDArray[np.float64]:
    """(fractions,) what the alarm is raised by."""
    lasting = known.lasting(known.mean_gy, known.setup.systematic_mm)
    watch = Watch(WatchSettings(), known.base_gy, known.between + lasting)
    daily, totals = known.daily(known.mean_gy), []
    for fraction, read in enumerate(readings, start=1):
        watch = watch.after(fraction, read, daily)
        totals.append(watch.total)
        if fraction == Triggered().first:
            fitted = fit_change(known, readings[:fraction], readings[:0]).before
            daily = known.daily(known.mean_gy + fitted.shift_gy)
    return np.array(totals)


def of_patient(drawn: DoseEnsemble, known: FractionReadings, seeds: int) -> dict[str, NDArray[np.float64]]:
    """(seeds, fractions) of every change; all of a seed are alike until it comes."""
    still = Lattice.of(drawn, known, Change(), HIGHEST_MM)
    found: dict[str, list[NDArray]] = {name: [] for name in CHANGES}
    print(f"The lattice is wrong by {lattice_error(drawn, known, still):.3f} of the noise.")
    narrow = np.full(3, 6.0)
    shrunk = {n: Lattice.of(drawn, known, c, narrow) for n, c in CHANGES.items() if c.parotid_shrinkage_ratio}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        planned = readings_of(drawn, known, still, LOWEST_MM, Change(), seed, range(1, FRACTIONS + 1))
        for name, change in CHANGES.items():
            after = readings_of(
                drawn, known, shrunk.get(name, still), -narrow if name in shrunk else LOWEST_MM, change, seed,
                range(SHIFT_AT, FRACTIONS + 1),
            )  # fmt: skip
            found[name].append(watched(known, np.concatenate([planned[: SHIFT_AT - 1], after])))
    return {name: np.array(rows) for name, rows in found.items()}


def rate_words(totals: NDArray[np.float64], threshold: float) -> str:
    """How many courses without a change have an alarm, with an exact interval; all at least once."""
    hits = int((totals.max(axis=1) >= threshold).sum())
    low, high = clopper_pearson(hits, len(totals))
    return f"{hits} of {len(totals)} courses ({100 * low:.1f} to {100 * high:.1f} %)"


def delay_words(totals: NDArray[np.float64], threshold: float) -> str:
    """Of courses without an alarm before the change: how many have one after it, and after how many fractions."""
    quiet = totals[totals[:, : SHIFT_AT - 1].max(axis=1) < threshold][:, SHIFT_AT - 1 :] >= threshold
    seen = quiet[quiet.any(axis=1)].argmax(axis=1)
    soon = int((seen < 10).sum())
    middle = f", median delay {np.median(seen):.0f}, 90 % within {np.quantile(seen, 0.9):.0f}" if seen.size else ""
    return f"{len(seen)} of {len(quiet)} seen, {soon} within 10 fractions{middle}"


def report(found: dict[str, dict[str, NDArray[np.float64]]], rate: float) -> None:
    """Threshold for the rate, and rates and delays at the committed threshold."""
    committed = WatchSettings().threshold
    without = np.concatenate([of["none"] for of in found.values()])
    print(f"Threshold that {100 * (1 - rate):g} % of all courses stay below: "
          f"{np.quantile(without.max(axis=1), 1 - rate):.2f}; committed {committed:g}")  # fmt: skip
    for left_out in found:
        others = np.concatenate([of["none"] for name, of in found.items() if name != left_out])
        if found.keys() - {left_out}:
            chosen = float(np.quantile(others.max(axis=1), 1 - rate))
            print(f"  chosen without {left_out}: {chosen:.2f}, there {rate_words(found[left_out]['none'], chosen)}")
    print(f"False alarms at {committed:g}: {rate_words(without, committed)}")
    for name in CHANGES:
        if name != "none":
            print(f"{name}: {delay_words(np.concatenate([of[name] for of in found.values()]), committed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("patients", nargs="*")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--rate", type=float, default=0.05, help="of courses with a false alarm (default 0.05)")
    options = parser.parse_args()
    if options.data is None:
        print("No patients are given, so nothing is measured.")
        return
    found = {}
    for name in options.patients:
        prior = prior_of(Twin(load_patient(options.data / name)).dose_belief)
        drawn, known = prepared(prior.sample(FEWEST_SAMPLES, 0), CourseSettings())
        found[name] = of_patient(drawn, known, options.seeds)
        highest = found[name]["none"].max(axis=1)
        print(f"{name}: highest, 50, 90, 100 %: {', '.join(f'{v:.1f}' for v in np.quantile(highest, [0.5, 0.9, 1]))}; "
              f"{time.process_time():.0f} s of CPU so far", flush=True)  # fmt: skip
    report(found, options.rate)


if __name__ == "__main__":
    main()
