"""Packed cohorts: what they keep, and that damage is noticed."""

from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import Cancelled, PatientDataError, TrainingError
from RTDigitalTwinLib.model.features import CHANNELS, build_features
from RTDigitalTwinLib.model.training_data import TRAINING_SPLIT, VALIDATION_SPLIT, TrainingCase
from RTDigitalTwinLib.patient.packed import DOSE_STEP_GY, HU_STEP, read_packed, write_packed
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from Testing.builders import oblique_grid, small_patient


@pytest.fixture(scope="module")
def patient(sample_folder: Path) -> Patient:
    return Patient.load(sample_folder)


@pytest.fixture(scope="module")
def cohort(patient: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "two.cohort"
    write_packed(path, {TRAINING_SPLIT: [patient], VALIDATION_SPLIT: [small_patient(oblique_grid())]})
    return path


def test_packing_loses_what_it_says(patient: Patient, cohort: Path) -> None:
    packed = read_packed(cohort)[TRAINING_SPLIT][0]
    assert packed.pseudonym == patient.pseudonym and packed.warnings == patient.warnings
    assert packed.plan.prescription == patient.plan.prescription
    assert packed.plan.gantry_angles_deg == patient.plan.gantry_angles_deg
    assert packed.ct.grid.spacing_mm == patient.ct.grid.spacing_mm
    start = patient.ct.grid.to_index(packed.ct.grid.origin_mm)
    box = tuple(slice(round(a), round(a) + n) for a, n in zip(start, packed.ct.grid.shape, strict=True))
    assert packed.plan.dose is not None and patient.plan.dose is not None
    dose_error = np.abs(packed.plan.dose.values - patient.plan.dose.values[box])
    assert 0 < dose_error.max() <= DOSE_STEP_GY / 2 + 1e-5
    assert packed.plan.dose.values.sum() == pytest.approx(patient.plan.dose.values.sum(), rel=1e-4)
    hu = np.clip(patient.ct.values[box], -1000, 3071)
    hu_error = np.abs(packed.ct.values - hu)[hu >= -950]
    assert 0 < hu_error.max() <= HU_STEP / 2 and packed.ct.values[hu < -950].max() == -1000
    assert list(packed.structures) == list(patient.structures)
    for name, structure in (*patient.structures.items(), ("mask", patient.dose_mask)):
        other = packed.dose_mask if name == "mask" else packed.structures[name]
        assert other.kind is structure.kind
        assert np.array_equal(other.mask, structure.mask[box]) and structure.mask.sum() == other.mask.sum()


def test_the_network_sees_the_same(patient: Patient, cohort: Path) -> None:
    packed = build_features(read_packed(cohort)[TRAINING_SPLIT][0])
    plain = build_features(patient)
    assert np.array_equal(packed.crop.mask, plain.crop.mask)
    inside = plain.crop.mask
    for name, ours, theirs in zip(CHANNELS, packed.channels, plain.channels, strict=True):
        assert np.abs(ours - theirs)[inside].mean() < 0.003, name  # 0.2 Gy, or 3 HU


def test_any_direction_of_the_grid_is_kept(cohort: Path) -> None:
    packed, plain = read_packed(cohort)[VALIDATION_SPLIT][0], small_patient(oblique_grid())
    assert packed.ct.grid.direction == plain.ct.grid.direction
    for name, structure in plain.structures.items():
        assert packed.structures[name].centroid_mm == pytest.approx(structure.centroid_mm, abs=1e-6)
        assert packed.structures[name].volume_cc == pytest.approx(structure.volume_cc)


def test_damage_is_noticed(cohort: Path, tmp_path: Path) -> None:
    content = bytearray(cohort.read_bytes())
    damaged = tmp_path / "damaged.cohort"
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(content), 60):
        altered = bytearray(content)
        altered[position] ^= 0x10
        damaged.write_bytes(altered)
        try:
            read = read_packed(damaged)
        except PatientDataError as error:
            assert "damaged" in str(error) or "format" in str(error)
        else:  # a bit of the archive that says nothing, such as a date
            assert [p.pseudonym for p in read[TRAINING_SPLIT]] == ["sample"]
            assert read[TRAINING_SPLIT][0].plan.dose is not None
    directory = content.rindex(b"PK\x01\x02")
    for position in range(directory, len(content)):
        for bit in (0x01, 0x80):
            altered = bytearray(content)
            altered[position] ^= bit
            damaged.write_bytes(altered)
            with suppress(PatientDataError):
                read_packed(damaged)
    for part in (content[:1000], content[: len(content) // 2], b"", b"a,b\n"):
        damaged.write_bytes(part)
        with pytest.raises(PatientDataError, match="damaged.cohort: The cohort is damaged"):
            read_packed(damaged)
    with pytest.raises(PatientDataError, match="no such file"):
        read_packed(tmp_path / "nowhere.cohort")
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr("cohort.json", json.dumps({"format": 99, "splits": {}}))
    with pytest.raises(PatientDataError, match="format 99"):
        read_packed(damaged)


def test_cancelling_is_no_damage(cohort: Path) -> None:
    def cancel(done_ratio: float, message: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        read_packed(cohort, cancel)


def test_what_does_not_fit_is_refused(patient: Patient, tmp_path: Path) -> None:
    path = tmp_path / "x.cohort"
    unknown = small_patient()
    assert unknown.plan.dose is not None
    gy = unknown.plan.dose.values.copy()
    gy[:8] = np.nan
    dose = Volume(gy, unknown.ct.grid, Quantity.DOSE_GY)
    unknown = replace(unknown, plans=(replace(unknown.plan, dose=dose),))
    with pytest.raises(PatientDataError, match="small-patient: .*not known"):
        write_packed(path, {TRAINING_SPLIT: [unknown]})
    with pytest.raises(TrainingError, match="small-patient: .*not known"):
        TrainingCase.of(unknown)
    faint = np.zeros(unknown.ct.grid.shape, np.float32)
    faint[12, 18, 20] = 0.4
    tiny = Structure.from_array("Tiny", faint, unknown.ct.grid, StructureKind.ORGAN)
    with pytest.raises(PatientDataError, match="small-patient/Tiny: .*fills no voxel"):
        write_packed(path, {TRAINING_SPLIT: [replace(small_patient(), structures={"Tiny": tiny})]})
    with pytest.raises(PatientDataError, match="small-patient: .*no reference dose"):
        write_packed(path, {TRAINING_SPLIT: [small_patient(with_dose=False)]})
    small = small_patient()
    mask = small.dose_mask.mask
    many = {f"S{i}": Structure.from_array(f"S{i}", mask, small.ct.grid, StructureKind.ORGAN) for i in range(32)}
    with pytest.raises(PatientDataError, match="At most 31"):
        write_packed(path, {TRAINING_SPLIT: [replace(small, structures=many)]})
    assert not path.exists()


def test_the_command_line_packs(sample_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    for name in ("pt_1", "pt_2"):
        (tmp_path / "data" / name).symlink_to(sample_folder)
    assert main(["pack", str(tmp_path / "data"), "--out", str(tmp_path / "two.cohort")]) == 0
    assert "MB" in capsys.readouterr().out
    splits = read_packed(tmp_path / "two.cohort")
    assert {split: len(patients) for split, patients in splits.items()} == {TRAINING_SPLIT: 1, VALIDATION_SPLIT: 1}
    assert main(["pack", str(tmp_path / "data"), "--out", str(tmp_path / "two.zip")]) == 1
    assert ".cohort" in capsys.readouterr().err
