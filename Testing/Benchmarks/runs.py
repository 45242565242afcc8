"""Where the time of ``run`` and ``loop`` goes, by the stages they write in their summaries; memory of ``run``."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.loop import LoopSettings, loop_patient
from RTDigitalTwinLib.model.features import build_features
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.loading import load_patient
from RTDigitalTwinLib.run import SAMPLE, RunSettings, run_patient
from RTDigitalTwinLib.solver.sampling import sample_dose
from Testing.Benchmarks.framework import Benchmark, Effort, Skipped, Values, seconds_of, spent_by
from Testing.Benchmarks.patients import chosen_patient, shared_folder

ARITHMETIC = ("planning", "prediction")
PATIENT = "pt_201"
LIMIT_MIB = 1907  # 2 GB, asked for up to 256 samples


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
        imports = "import RTDigitalTwinLib.run, RTDigitalTwinLib.scene.snapshot"
        started = spent_by(lambda: subprocess.run([sys.executable, "-c", imports], check=True))
        importlib.import_module("RTDigitalTwinLib.scene.snapshot")  # so that the run has no more of it
        with tempfile.TemporaryDirectory() as place:
            summary: dict[str, Any] = {}
            out = Path(place) / "run"
            whole = spent_by(lambda: summary.update(run_patient(source, out, RunSettings(device="cpu"))))
        told = summary["provenance"]
        facts: dict[str, Any] = {}
        shares = {}
        for clock, stages, ran, begun in (
            ("processor", told["stage_processor_seconds"], whole.processor_s, started.processor_s),
            ("clock", told["stage_seconds"], whole.seconds, started.seconds),
        ):
            total = ran + begun
            parts = {"imports": begun} | stages
            parts["rest"] = total - sum(parts.values())
            percent = {stage: round(100 * seconds / total, 1) for stage, seconds in parts.items()}
            facts |= {f"{clock}_seconds": round(total, 2), f"{clock}_percent": percent}
            shares[clock] = sum(stages.get(stage, 0.0) for stage in ARITHMETIC) / total
        facts["share_by_the_clock"] = round(shares["clock"], 3)
        if source != SAMPLE:
            patient, network = load_patient(source), DoseSurrogate.load(device="cpu").network
            features = seconds_of(lambda: build_features(patient, network.configuration.channels), processor=True)
            facts["processor_seconds_of_features_inside_prediction"] = round(features, 2)
        return Values((1.0,), (shares["processor"],), facts)

    return Benchmark(
        f"share of arithmetic, run {name}",
        "all of the run, imports too",
        "planning and prediction",
        setup,
        unit="of the run's processor seconds",
        target=0.6,
    )


def peak_memory(effort: Effort) -> Values:
    """Of the whole command, pictures too, in processes of their own; the memory of small and large predictions."""
    source = _source(PATIENT)
    few, many = effort.of(32, 8), effort.of(256, 32)
    with tempfile.TemporaryDirectory() as place:
        peaks = {n: _peak_mib(["run", str(source), "--samples", str(n), "--out", f"{place}/{n}"]) for n in (few, many)}
    each = (peaks[many] - peaks[few]) / (many - few)
    facts = {
        "patient": PATIENT,
        "mib_by_samples": peaks,
        "mib_a_further_sample": round(each, 2),
        "limit_mib": LIMIT_MIB,
    }
    return Values((peaks[many],), (peaks[few],), facts)


def _peak_mib(arguments: list[str]) -> float:
    """The most memory that a command of ours held at once."""
    command = [sys.executable, "-m", "RTDigitalTwinLib", *arguments, "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return round(used.ru_maxrss / 1024)


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
    Benchmark(
        "peak memory of run",
        "of the most samples",
        "of the fewest",
        peak_memory,
        unit="MiB",
    ),
    Benchmark("loop by stage", "one prediction of 32 samples", "the whole loop of the first fractions", loop_by_stage),
)
