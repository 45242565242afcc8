"""How far the watch's cumulative sum goes on courses without any change: what its threshold must be above.

python -m Testing.Benchmarks.course_watch [DATA PATIENT...] [--seeds 20]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from RTDigitalTwinLib.calibration.belief import prior_of
from RTDigitalTwinLib.calibration.calibrator import SAMPLES
from RTDigitalTwinLib.course import Course, prepared
from RTDigitalTwinLib.course_record import CourseSettings
from RTDigitalTwinLib.decision.policies import Static
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.twin import Twin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("patients", nargs="*")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    if options.data is None:
        print("No patients are given, so nothing is measured.")
        return
    every: list[float] = []
    for name in options.patients:
        prior = prior_of(Twin(load_patient(options.data / name)).dose_belief)
        common = CourseSettings()
        drawn, known = prepared(prior.sample(SAMPLES, 0), common)
        highest, ratios = [], []
        for seed in range(100, 100 + options.seeds):
            settings = CourseSettings(shift_at=None, policy=Static(), seed=seed, project_every=1000)
            records = list(Course(prior, drawn, settings, known).fractions(known_until=settings.fractions))
            highest.append(max(r.alarm_sum for r in records))
            ratios += [r.innovation_ratio for r in records[1:]]
        every += highest
        quantiles = ", ".join(f"{v:.2f}" for v in np.quantile(highest, [0.5, 0.9, 0.95, 1.0]))
        print(f"{name}: highest sum 50, 90, 95, 100 %: {quantiles}; innovation {np.mean(ratios):.2f} of expected",
              flush=True)  # fmt: skip
    quantiles = ", ".join(f"{v:.2f}" for v in np.quantile(every, [0.5, 0.9, 0.95, 0.98, 1.0]))
    print(f"{len(every)} courses: 50, 90, 95, 98, 100 %: {quantiles}")


if __name__ == "__main__":
    main()
