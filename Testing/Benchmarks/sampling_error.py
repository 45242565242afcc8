"""How much the mean of 32 samples varies with the seed: stratified dropout, as it is drawn, against independent.

Prints one JSON line. The patient is that of the sampling benchmark; errors are root mean squares over its dose mask of
the standard deviation over seeds, and the ratio is what to quote.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.solver.sampling import STRATIFIED_TOGETHER
from Testing.Benchmarks.sampling import SAMPLES, median_patient

SEEDS = 16


def main() -> None:
    patient = median_patient()
    surrogate = DoseSurrogate.load(device="cpu")
    features = surrogate.features(patient)
    encoded = surrogate.encode(features)

    def mean_gy(seed: int, block: int) -> NDArray:
        factors = surrogate.network.draw_factors(SAMPLES, torch.Generator().manual_seed(seed), block)
        parts = (surrogate.decode(encoded, features, [f[k : k + 1] for f in factors])[0] for k in range(SAMPLES))
        return np.mean(list(parts), axis=0)

    errors_gy = {
        name: np.std([mean_gy(seed, block) for seed in range(SEEDS)], axis=0, ddof=1)
        for name, block in (("independent", 1), ("stratified", STRATIFIED_TOGETHER))
    }
    squares = {name: float(np.mean(error**2)) for name, error in errors_gy.items()}
    result = {
        "benchmark": "sampling_error",
        "patient": patient.pseudonym,
        "samples": SAMPLES,
        "seeds": SEEDS,
        **{f"standard_error_{name}_gy": round(square**0.5, 4) for name, square in squares.items()},
        "ratio_of_errors": round((squares["independent"] / squares["stratified"]) ** 0.5, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
