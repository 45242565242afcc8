"""Who is unlike the training patients."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from RTDigitalTwinLib.errors import TrainingError
from RTDigitalTwinLib.model.familiarity import FALSE_ALARM_RATIO, Familiarity, describe
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Volume


def like(described: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    """A patient near another: everything off by a few units, and the two parotids' places together."""
    shared = rng.normal(0, 4)
    near = {
        k: v + shared * ("Parotid" in k and "left" in k) + rng.normal(0, 2 + 0.03 * abs(v))
        for k, v in described.items()
    }
    near["log volume of PTV_7000"] = described["log volume of PTV_7000"] + rng.normal(0, 0.5)
    if rng.random() < 0.4:  # many have no PTV_6300
        near |= {k: np.nan for k in near if "PTV_6300" in k}
    return near


@pytest.fixture(scope="module")
def trained(sample: Patient) -> Familiarity:
    rng = np.random.default_rng(0)
    return Familiarity.fit([like(describe(sample), rng) for _ in range(150)])


def on(patient: Patient, grid: Grid, *, hu_factor: float = 1.0) -> Patient:
    """The same arrays on another grid."""
    hu = np.clip(patient.ct.values * hu_factor, -1000, 3071).astype(np.int16)
    ct = Volume(hu, grid, patient.ct.quantity)

    def moved(structure: Structure) -> Structure:
        return replace(structure, grid=grid)

    structures = {name: moved(s) for name, s in patient.structures.items()}
    return replace(patient, images=(Image("CT", ct),), structures=structures, dose_mask=moved(patient.dose_mask))


def test_a_patient_of_the_kind_is_familiar(trained: Familiarity, sample: Patient) -> None:
    verdict = trained.judge(sample)
    assert verdict.is_familiar and verdict.warning() == "" and 0 < verdict.score < trained.threshold


def test_alarms_are_as_rare_as_promised(trained: Familiarity, sample: Patient) -> None:
    rng = np.random.default_rng(1)
    alarms = [not trained.judge_described(like(describe(sample), rng)).is_familiar for _ in range(600)]
    # 1 % of 600 is 6; the threshold itself is a quantile of 150 patients
    assert np.mean(alarms) < 4 * FALSE_ALARM_RATIO


def test_other_voxels_laterality_orientation_and_scale_are_noticed(trained: Familiarity, sample: Patient) -> None:
    grid = sample.ct.grid
    large = replace(grid, spacing_mm=(9.0, 9.0, 9.0))
    verdict = trained.judge(on(sample, large))
    assert not verdict.is_familiar and "unlike" in verdict.warning()
    swapped = {"Parotid_L": sample.structures["Parotid_R"], "Parotid_R": sample.structures["Parotid_L"]}
    verdict = trained.judge(replace(sample, structures={**sample.structures, **swapped}))
    assert not verdict.is_familiar and any("Parotid_L" in reason for reason in verdict.reasons)
    flipped = {
        name: Structure.from_array(name, s.occupancy[::-1], grid, s.kind) for name, s in sample.structures.items()
    }
    mask = sample.dose_mask
    upside_down = replace(
        sample,
        structures=flipped,
        dose_mask=Structure.from_array(mask.name, mask.occupancy[::-1], grid, mask.kind),
    )
    assert not trained.judge(upside_down).is_familiar
    verdict = trained.judge(on(sample, grid, hu_factor=4.0))
    assert not verdict.is_familiar and any("CT" in reason or "bone" in reason for reason in verdict.reasons)


def test_a_missing_main_target_is_said(trained: Familiarity, sample: Patient) -> None:
    assert trained.always == ("PTV_5600", "PTV_7000")
    without = replace(sample, structures={k: s for k, s in sample.structures.items() if k != "PTV_7000"})
    verdict = trained.judge(without)
    assert not verdict.is_familiar and "no PTV_7000" in verdict.warning()


def test_it_comes_back_from_json(trained: Familiarity, sample: Patient) -> None:
    again = Familiarity.from_dict(json.loads(json.dumps(trained.as_dict(), allow_nan=False)))
    assert again.judge(sample).score == pytest.approx(trained.judge(sample).score, rel=1e-3)
    with pytest.raises(ValueError, match="another number"):
        Familiarity.from_dict({**trained.as_dict(), "mean": [1.0]})


def test_few_patients_say_nothing(sample: Patient) -> None:
    with pytest.raises(TrainingError, match="At least 40"):
        Familiarity.fit([describe(sample)] * 10)
