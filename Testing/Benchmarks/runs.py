"""Where the time of ``run`` and ``loop`` goes, by the stages they write in their summaries."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.loop import LoopSettings, loop_patient
from RTDigitalTwinLib.model.features import build_features
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.run import SAMPLE, RunSettings, run_patient
from RTDigitalTwinLib.solver.sampling import sample_dose
from Testing.Benchmarks.framework import Benchmark, Effort, Skipped, Values, seconds_of
from Testing.Benchmarks.patients import chosen_patient, shared_folder

ARITHMETIC = ("planning", "prediction")
PATIENT = "pt_201"


def _source(name: str) -> str | Path:
    if name == SAMPLE:
        return name
    folder = shared_folder(name)
    if folder is None:
        raise Skipped(f"{name} of OpenKBP is not here; $RTDT_OPENKBP names a folder with its CSV files")
    return folder


def share_of_arithmetic(name: str) -> Benchmark:
    def setup(effort: Effort) -> Values:
        source = _source(name)
        keep_freed_memory()
        started = seconds_of(lambda: subprocess.run([sys.executable, "-c", "import RTDigitalTwinLib.run"], check=True))
        with tempfile.TemporaryDirectory() as place:
            summary: dict[str, Any] = {}
            out = Path(place) / "run"
            whole = seconds_of(lambda: summary.update(run_patient(source, out, RunSettings(device="cpu"))))
        stages: Mapping[str, float] = summary["provenance"]["stage_seconds"]
        total = whole + started
        arithmetic = sum(stages.get(stage, 0.0) for stage in ARITHMETIC)
        facts: dict[str, Any] = {"seconds": round(total, 2), "imports_percent": round(100 * started / total, 1)}
        facts |= {f"{stage} percent".replace(" ", "_"): round(100 * s / total, 1) for stage, s in stages.items()}
        if source != SAMPLE:
            patient, network = load_patient(source), DoseSurrogate.load(device="cpu").network
            features = seconds_of(lambda: build_features(patient, network.configuration.channels))
            facts["features_percent_of_the_run_inside_prediction"] = round(100 * features / total, 1)
        return Values((1.0,), (arithmetic / total,), facts)

    return Benchmark(
        f"share of arithmetic, run {name}",
        "all of the run, imports too",
        "planning and prediction",
        setup,
        unit="of the run",
        target=0.6,
    )


def loop_by_stage(effort: Effort) -> Values:
    keep_freed_memory()
    fractions, source = effort.of(3, 1), _source(PATIENT)
    with tempfile.TemporaryDirectory() as place:
        summary: dict[str, Any] = {}
        settings = LoopSettings(fractions=fractions, device="cpu", views=False)
        whole = seconds_of(lambda: summary.update(loop_patient(source, Path(place) / "loop", settings)))
    patient, surrogate = chosen_patient(), DoseSurrogate.load(device="cpu")
    one = seconds_of(lambda: sample_dose(surrogate, patient, settings.samples))
    stages = summary["provenance"]["stage_seconds"]
    facts = {"fractions": fractions, "stage_seconds": stages, "seconds_of_one_prediction": round(one, 2)}
    return Values((one,), (whole,), facts)


BENCHMARKS = (
    share_of_arithmetic(SAMPLE),
    share_of_arithmetic(PATIENT),
    Benchmark("loop by stage", "one prediction of 32 samples", "the whole loop of the first fractions", loop_by_stage),
)
