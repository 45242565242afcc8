"""Scores of the dose prediction over a cohort with reference doses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from RTDigitalTwinLib.calibration.coverage import Coverage, CoverageTally, Sharpness, coverage_of, sharpness_of
from RTDigitalTwinLib.dosimetry.openkbp_score import PatientScore, cohort_scores_gy, score_patient
from RTDigitalTwinLib.errors import OutputError
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.loading import load_patients, require_outside_patients
from RTDigitalTwinLib.progress import Progress, silent
from RTDigitalTwinLib.solver.calibration_file import StoredCalibration
from RTDigitalTwinLib.solver.sampling import sample_dose


@dataclass(frozen=True)
class Evaluated:
    """One patient's scores and the seconds its prediction took, reading not counted.

    Coverage and sharpness are known for two and more samples.
    """

    pseudonym: str
    score: PatientScore
    seconds: float
    coverage: Coverage | None = None
    sharpness: Sharpness | None = None
    calibrated: bool = False


@dataclass(frozen=True)
class Evaluation:
    """A cohort's scores."""

    patients: tuple[Evaluated, ...]
    samples: int
    seed: int
    weights_sha256: str
    device: str
    bands: str

    def as_dict(self) -> dict:
        """For JSON: doses in Gy, seconds of prediction."""
        dose, dvh = cohort_scores_gy(p.score for p in self.patients)
        return {
            "patients": len(self.patients),
            "dose_score_gy": round(dose, 4),
            "dvh_score_gy": round(dvh, 4),
            "seconds_per_patient": round(sum(p.seconds for p in self.patients) / len(self.patients), 3),
            "samples": self.samples,
            "seed": self.seed if self.samples else None,
            "device": self.device,
            "weights_sha256": self.weights_sha256,
            **self._bands(),
            "per_patient": [
                {
                    "patient": p.pseudonym,
                    "dose_error_gy": round(p.score.dose_error_gy, 4),
                    "dvh_error_gy": round(p.score.dvh_error_gy, 4),
                    "seconds": round(p.seconds, 3),
                    "dvh_errors_gy": {f"{s} {m}": round(e, 3) for (s, m), e in p.score.dvh_errors_gy.items()},
                }
                for p in self.patients
            ],
        }

    def _bands(self) -> dict[str, object]:
        tally = CoverageTally()
        for p in self.patients:
            if p.coverage is not None and p.sharpness is not None:
                tally.add(p.coverage, p.sharpness)
        return {"bands": self.bands, **tally.as_dict()} if tally.patients else {}


def evaluate(
    surrogate: DoseSurrogate,
    folders: Sequence[Path],
    samples: int = 0,
    seed: int = 0,
    predictions: Path | None = None,
    progress: Progress = silent,
    calibration: StoredCalibration | None = None,
) -> Evaluation:
    """Score every patient's deterministic dose (``samples`` 0) or the mean of its samples, and then its bands.

    With ``calibration`` these are calibrated, for each patient without its own part in it.

    ``predictions`` is a folder for the doses in the benchmark's submission format. Raises PatientDataError for a
    patient without reference dose, OutputError where predictions cannot be written or would lie in a patient's folder.
    """
    if predictions is not None:
        require_outside_patients(predictions)
    evaluated: list[Evaluated] = []
    for i, folder in enumerate(folders):
        progress(i / len(folders), f"patient {i + 1} of {len(folders)}")
        (patient,) = load_patients([folder])
        if predictions is not None and any(e.pseudonym == patient.pseudonym for e in evaluated):
            raise OutputError(
                f"Two patients are called {patient.pseudonym}, so their predictions would overwrite each other.",
                remedy="Evaluate one split at a time.",
            )
        start = time.perf_counter()
        ensemble = sample_dose(surrogate, patient, samples, seed)
        dose = ensemble.mean
        seconds = time.perf_counter() - start
        if calibration is not None:
            ensemble = replace(ensemble, calibration=calibration.for_patient(patient.pseudonym))
        coverage = coverage_of(ensemble) if ensemble.has_spread else None
        sharpness = sharpness_of(ensemble) if ensemble.has_spread else None
        score = score_patient(patient, dose.values)
        evaluated.append(Evaluated(patient.pseudonym, score, seconds, coverage, sharpness, ensemble.is_calibrated))
        if predictions is not None:
            openkbp.write_dose(dose, predictions / f"{patient.pseudonym}.csv")
    progress(1.0, "done")
    bands = "sampled"
    if calibration is not None and all(e.coverage is None or e.calibrated for e in evaluated):
        own = sum(e.pseudonym in calibration.without for e in evaluated)
        bands = f"calibrated; {own} of {len(evaluated)} patients had a part in it and are judged without theirs"
    return Evaluation(tuple(evaluated), samples, seed, surrogate.weights_sha256, str(surrogate.device), bands)
