"""Reading and drawing 120 slices of 512 x 512 with 25 structures, beside plastimatch where that is installed."""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from RTDigitalTwinLib.patient.dicom_ct import read_ct
from RTDigitalTwinLib.patient.dicom_export import write_patient
from RTDigitalTwinLib.patient.dicom_index import RTSTRUCT, index_folder
from RTDigitalTwinLib.patient.dicom_structures import occupancies, read_rois
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.stopwatch import Stopwatch
from Testing.Benchmarks.framework import Benchmark, Effort, Values, peak_memory_mib

GRID = Grid((120, 512, 512), (0.9765625, 0.9765625, 2.5), (-249.5, -249.5, -148.75))
STRUCTURES = 25


def ellipsoid(centre_mm: NDArray, radii_mm: NDArray) -> NDArray[np.float32]:
    """Occupancy with a soft edge of about a pixel."""
    slices, rows, columns = (np.arange(n, dtype=np.float32) for n in GRID.shape)
    z = (GRID.origin_mm[2] + GRID.spacing_mm[2] * slices)[:, None, None]
    y = (GRID.origin_mm[1] + GRID.spacing_mm[1] * rows)[:, None]
    x = GRID.origin_mm[0] + GRID.spacing_mm[0] * columns
    (a, b, c), (r, s, t) = centre_mm.astype(np.float32), radii_mm.astype(np.float32)
    out = np.sqrt(((x - a) / r) ** 2 + ((y - b) / s) ** 2 + ((z - c) / t) ** 2) - 1
    return np.clip(0.5 - out * min(r, s, t) / 2, 0, 1).astype(np.float32)


def made_patient() -> Patient:
    rng = np.random.default_rng(0)
    body = ellipsoid(np.zeros(3), np.array([200.0, 140, 400]))
    hu = np.where(body >= 0.5, 30, -1000) + rng.normal(0, 10, GRID.shape)
    structures = {}
    for i in range(STRUCTURES - 1):
        name = f"organ {i}" if i else "PTV_7000"
        occupancy = ellipsoid(rng.uniform([-100, -70, -60], [100, 70, 60]), rng.uniform(15, 70, 3))
        kind = StructureKind.ORGAN if i else StructureKind.TARGET
        structures[name] = Structure.from_array(name, occupancy, GRID, kind)
    return Patient(
        "benchmark",
        (Image("CT", Volume(hu.astype(np.int16), GRID, Quantity.HU)),),
        structures,
        Structure.from_array("FeasibleDose", body, GRID, StructureKind.REGION),
        (Plan(Prescription((("PTV_7000", 70.0),), 35)),),
    )


def read_all(folder: Path) -> tuple[dict[str, float], float, float]:
    """Seconds of each stage, seconds of CPU, and the process's peak of memory in MiB."""
    watch, cpu = Stopwatch(), time.process_time()
    with watch.stage("index"):
        patient = index_folder(folder).patient()
        (series,) = patient.ct_series.values()
    with watch.stage("CT"):
        ct = read_ct(series, Overrides(), [])
    with watch.stage("contours"):
        rois = read_rois(patient.of_kind(RTSTRUCT)[0])
    with watch.stage("drawing"):
        assert len(occupancies(rois, ct.grid, {})) == STRUCTURES
    return watch.rounded(), time.process_time() - cpu, peak_memory_mib()


def plastimatch_seconds(folder: Path, place: Path) -> float:
    """Of its CPU, the writing of its masks included."""
    command = ["plastimatch", "convert", "--input", str(folder), "--output-img", str(place / "ct.mha"),
               "--output-prefix", str(place / "masks"), "--prefix-format", "mha"]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def reading(effort: Effort) -> Values:
    theirs = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        write_patient(made_patient(), folder)
        with get_context("spawn").Pool(1) as fresh:  # without the memory that making the set took
            runs = []
            for _ in range(effort.of(3, 1)):
                runs.append(fresh.apply(read_all, (folder,)))
                if shutil.which("plastimatch"):
                    theirs.append(plastimatch_seconds(folder, Path(place)))
    facts = {
        "slices": GRID.shape[0],
        "structures": STRUCTURES,
        "our_stage_seconds": min(runs, key=lambda run: run[1])[0],
        "our_peak_memory_mib": round(max(run[2] for run in runs)),
        "plastimatch": "writes its masks too" if theirs else "not installed",
    }
    return Values(tuple(run[1] for run in runs), tuple(theirs), facts)


BENCHMARKS = (
    Benchmark(
        "DICOM reading and rasterising",
        "CT of 120 slices, 25 structures drawn",
        "plastimatch convert",
        reading,
        unit="s of CPU",
    ),
)
