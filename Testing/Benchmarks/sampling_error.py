"""How much the mean of 32 samples varies with the seed: stratified dropout, as it is drawn, against independent."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.allocation import keep_freed_memory
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.solver.sampling import DECODED_TOGETHER, STRATIFIED_TOGETHER
from Testing.Benchmarks.framework import Benchmark, Effort, Values
from Testing.Benchmarks.patients import chosen_patient
from Testing.Benchmarks.sampling import SAMPLES


def standard_errors(effort: Effort) -> Values:
    """Root mean squares over the dose mask of the mean's standard deviation over seeds."""
    keep_freed_memory()
    seeds, patient = effort.of(12, 4), chosen_patient()
    surrogate = DoseSurrogate.load(device="cpu")
    features = surrogate.features(patient)
    decode = surrogate.decoder(surrogate.encode(features), features)
    together = DECODED_TOGETHER["cpu"]

    def mean_gy(seed: int, block: int) -> NDArray:
        factors = surrogate.network.draw_factors(SAMPLES, torch.Generator().manual_seed(seed), block)
        parts = [decode([f[k : k + together] for f in factors]) for k in range(0, SAMPLES, together)]
        return np.concatenate(parts).mean(axis=0)

    errors = [
        float(np.sqrt(np.mean(np.std([mean_gy(seed, block) for seed in range(seeds)], axis=0, ddof=1) ** 2)))
        for block in (STRATIFIED_TOGETHER, 1)
    ]
    return Values((errors[0],), (errors[1],), {"patient": patient.pseudonym, "samples": SAMPLES, "seeds": seeds})


BENCHMARKS = (
    Benchmark(
        "variance reduction",
        "standard error of the mean, stratified masks",
        "the same, independent masks",
        standard_errors,
        unit="Gy",
        target=1.4,
    ),
)
