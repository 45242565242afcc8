"""What observing is worth: error of the next fractions' dose before and after, by every calibrator, on a known truth.

The truth is simulated (see ``dosimetry.delivery``): the patient's reference dose stays in the room, the anatomy moves.
The network has no part in it. Patients are those in $RTDT_OPENKBP whose pseudonyms are given as arguments. Each case
appends a JSON line to $RTDT_STUDY (by default observing.jsonl in the working directory) and is not done again, so that
an interrupted study goes on. Ends with a table of means over patients.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from RTDigitalTwinLib.calibration.calibrator import SAMPLES, Calibrator, gather
from RTDigitalTwinLib.calibration.choice import METHODS, calibrator_named
from RTDigitalTwinLib.calibration.measuring import Wanted, measure_scalars, measure_volume
from RTDigitalTwinLib.dosimetry.delivery import Change, delivered_dose
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.patient.observation import Moment, NoiseModel, Observation
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Volume
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.twin import Twin

NOISE = NoiseModel(0.02, 0.005)  # 2 % of the local dose and 0.005 Gy a fraction
BLUR_MM = 3.0
CHANGES = {
    "as planned": Change(),
    "shift 5 mm": Change(shift_mm=(3.0, 0.0, 4.0)),
    "output +5 %": Change(output_error_ratio=0.05),
}
OBSERVED = ("scalars", "volume")
FIRST = Moment(0.0, 1)
SEED = 1
COLUMNS = ("mask_gy", "observed_gy", "elsewhere_gy", "structure_mean_gy", "coverage_ratio", "width_gy", "seconds")


def wanted(patient: Patient) -> list[Wanted]:
    """The mean of every structure, and points in the first target and the first two organs."""
    named = [*list(patient.targets.values())[:1], *list(patient.organs.values())[:2]]
    return [*((name, "mean") for name in patient.structures), *(s.centroid_mm for s in named)]


def errors(drawn: DoseEnsemble, truth: Volume) -> dict[str, float]:
    """Mean absolute errors in Gy over the mask, inside and outside structures, of structure means; the 95 % bands."""
    indices = drawn.crop.mask_indices
    true = truth.values.reshape(-1)[indices]
    inside = np.any([s.mask.reshape(-1)[indices] for s in drawn.patient.structures.values()], axis=0)
    off = np.abs(drawn.mean.values.reshape(-1)[indices] - true)
    low, high = (v.values.reshape(-1)[indices] for v in drawn.band(0.95))
    means = [
        abs(float(drawn.metric(name, "mean").mean) - structure_dose_of(truth, structure).mean_gy()[0])
        for name, structure in drawn.patient.structures.items()
    ]
    return {
        "mask_gy": float(off.mean()),
        "observed_gy": float(off[inside].mean()),
        "elsewhere_gy": float(off[~inside].mean()),
        "structure_mean_gy": float(np.mean(means)),
        "coverage_ratio": float(((low <= true) & (true <= high)).mean()),
        "width_gy": float((high - low).mean()),
    }


def observe(patient: Patient, truth: Volume, change: Change, what: str) -> Sequence[Observation]:
    if what == "volume":
        return [measure_volume(patient, truth, FIRST, NOISE, change, SEED, BLUR_MM)]
    return measure_scalars(patient, truth, wanted(patient), FIRST, NOISE, change, SEED)


def study(folder: Path, names: Sequence[str], methods: Sequence[str], out: Path) -> None:
    """Every case not yet in ``out``."""
    done = {(r["patient"], r["change"], r["observed"], r["method"]) for r in read(out)}
    for name in names:
        cases = [c for c in product(CHANGES, OBSERVED, ("before", *methods)) if (name, *c) not in done]
        if not cases:
            continue
        patient = Patient.load(folder / name)
        belief = Twin(patient, device="cpu").dose_belief
        drawn = belief.sample(SAMPLES, 0)
        for change_name, what, method in cases:
            change = CHANGES[change_name]
            truth = delivered_dose(patient, change)
            found, seconds = drawn, 0.0
            if method != "before":
                calibrator: Calibrator = calibrator_named(method)
                began = time.perf_counter()
                posterior = calibrator.absorb(gather(belief, observe(patient, truth, change, what), drawn))
                seconds = time.perf_counter() - began
                found = posterior.applied(drawn) if posterior.decoder is None else posterior.sample(SAMPLES, 0)
            row = {"patient": name, "change": change_name, "observed": what, "method": method, "simulated": True}
            row |= {k: round(v, 4) for k, v in errors(found, truth).items()} | {"seconds": round(seconds, 2)}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def read(out: Path) -> list[dict]:
    """Rows of an earlier run; a last line that was cut off is left out and done again."""
    rows = []
    for line in out.read_text().splitlines() if out.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def table(rows: Sequence[dict]) -> str:
    """Means over patients: one line a change, kind of observation and method."""
    gathered = defaultdict(list)
    for row in rows:
        gathered[row["change"], row["observed"], row["method"]].append([row[c] for c in COLUMNS])
    lines = ["(truth and measurements are simulated)", " ".join(f"{c:>17}" for c in COLUMNS)]
    for key, values in gathered.items():
        numbers = " ".join(f"{v:17.3f}" for v in np.mean(values, axis=0))
        lines.append(f"{numbers}  {', '.join(key)} ({len(values)} patients)")
    return "\n".join(lines)


def main() -> int:
    data = os.environ.get("RTDT_OPENKBP")
    names = [a for a in sys.argv[1:] if a not in METHODS]
    if not data or not names:
        print("skipped: set RTDT_OPENKBP and name patients, for example: pt_201 pt_202 offsets kalman")
        return 0
    out = Path(os.environ.get("RTDT_STUDY", "observing.jsonl"))
    study(Path(data), names, [a for a in sys.argv[1:] if a in METHODS] or METHODS, out)
    print(table(read(out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
