"""Monte Carlo dropout: one encoding, any number of decodings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from RTDigitalTwinLib.solver.side_by_side import side_by_side

DECODED_TOGETHER = {"cpu": 4, "cuda": 16}
STRATIFIED_TOGETHER = 32


def sample_dose(
    surrogate: DoseSurrogate, patient: Patient, samples: int, seed: int = 0, progress: Progress = silent
) -> DoseEnsemble:
    """Predict a patient's dose with its sampled spread.

    The encoder runs once; each sample decodes with its own whole-channel dropout, drawn from ``seed``, so that the
    same seed gives the same samples and the dropout of the first k of n samples is that of k. Over every 32 samples it
    is stratified: their mean varies less with the seed than that of independent ones. ``samples`` 0 is deterministic.
    Raises RTDigitalTwinError for a negative number; ``progress`` may cancel by raising.
    """
    if samples < 0:
        raise RTDigitalTwinError(f"The number of samples must be 0 or more, not {samples}.")
    progress(0.0, "features")
    features = surrogate.features(patient)
    progress(0.02, "encoder")
    encoded = surrogate.encoded(patient)
    decode = surrogate.decoder(encoded, features)
    deterministic = surrogate.deterministic_gy(patient)
    deviations = np.empty((samples, deterministic.size), np.float16)
    factors = surrogate.network.draw_factors(samples, torch.Generator().manual_seed(seed), STRATIFIED_TOGETHER)
    together = DECODED_TOGETHER.get(surrogate.device.type, 1)
    parts = [slice(first, min(first + together, samples)) for first in range(0, samples, together)]

    def decoded(part: slice) -> NDArray[np.float32]:
        return decode([f[part] for f in factors])

    with side_by_side(decoded, parts, surrogate.device.type) as doses:
        for part, dose_gy in zip(parts, doses, strict=True):
            progress(0.05 + 0.95 * part.start / samples, f"sample {part.start + 1} of {samples}")
            deviations[part] = dose_gy - deterministic
    progress(1.0, "done")
    return DoseEnsemble(
        patient, features.crop, deterministic, deviations, seed if samples else None, surrogate.weights_sha256
    )
