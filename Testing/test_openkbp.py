"""The OpenKBP layout: reading, writing, and every way its files can be wrong."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.errors import OutputError, PatientDataError
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.naming import ORGANS_AT_RISK, TARGETS
from RTDigitalTwinLib.patient.patient import Patient
from Testing.conftest import cropped


def test_round_trip_keeps_everything_the_layout_holds(sample: Patient, sample_folder: Path) -> None:
    read = Patient.load(sample_folder)
    assert read.pseudonym == "pt_1"
    assert read.ct.grid.same_as(sample.ct.grid)
    # the layout holds whole HU and no air: what is below -1024 HU becomes -1024
    assert np.array_equal(read.ct.values, np.maximum(np.round(sample.ct.values), -1024))
    assert set(read.structures) == {*ORGANS_AT_RISK, *TARGETS}
    for name, structure in sample.structures.items():
        assert np.array_equal(read.structures[name].mask, structure.mask), name
        assert read.structures[name].kind is structure.kind
    assert np.array_equal(read.dose_mask.mask, sample.dose_mask.mask)
    assert read.plan.prescription == sample.plan.prescription
    assert read.plan.dose is not None and read.plan.dose.values.max() > 50


def test_axes_are_turned_to_right_handed_lps() -> None:
    file_order = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # posterior, left, inferior
    lps = openkbp.from_file_order(file_order)
    assert lps.shape == (4, 2, 3)
    assert lps[0, 1, 2] == file_order[1, 2, 3]  # the lowest slice is the last one stored
    assert np.array_equal(openkbp.to_file_order(lps), file_order)


def append(line: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text() + line)


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].rstrip(b"\n"))


def cut_at_a_line(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))


def values_times(factor: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        header, *rows = path.read_text().splitlines()
        scaled = [f"{i},{float(v) * factor:.6g}" for i, v in (row.split(",") for row in rows)]
        path.write_text("\n".join([header, *scaled]) + "\n")

    return change


DAMAGES = [
    ("ct.csv", Path.unlink, "ct.csv.*missing"),
    ("possible_dose_mask.csv", Path.unlink, "possible_dose_mask.csv.*missing"),
    ("voxel_dimensions.csv", Path.unlink, "voxel_dimensions.csv.*missing"),
    ("ct.csv", cut_in_half, "ct.csv.*truncated"),
    ("ct.csv", cut_at_a_line, "ct.csv.*covers only.*truncated"),
    ("dose.csv", cut_in_half, "dose.csv.*truncated"),
    ("dose.csv", cut_at_a_line, "dose.csv.*covers only.*truncated"),
    ("possible_dose_mask.csv", cut_at_a_line, "possible_dose_mask.csv.*truncated"),
    ("Larynx.csv", lambda p: p.write_text(p.read_text().partition("\n")[2]), "Larynx.csv.*header"),
    ("Larynx.csv", lambda p: (p.unlink(), p.mkdir()), "Larynx.csv.*cannot be read"),
    ("Larynx.csv", append("99999999,\n"), "Larynx.csv.*99999999.*outside"),
    ("Larynx.csv", append("-1,\n"), "Larynx.csv.*-1.*outside"),
    ("Larynx.csv", append("nan,\n"), "Larynx.csv.*not a finite number"),
    ("Larynx.csv", append("3.5,\n"), "Larynx.csv.*whole number"),
    ("Larynx.csv", append("soon,\n"), "Larynx.csv.*cannot be read"),
    ("Larynx.csv", lambda p: p.write_text(",data\n"), "Larynx.csv.*no rows"),
    ("Larynx.csv", lambda p: p.write_text(""), "Larynx.csv.*no rows"),
    ("Larynx.csv", lambda p: p.write_bytes(b",data\n\xff\xfe,\n"), "Larynx.csv.*cannot be read"),
    ("PTV70.csv", lambda p: p.write_text(",data\n5,\n5,\n"), "PTV70.csv.*twice"),
    ("ct.csv", append("1,nan\n"), "ct.csv.*not a finite number"),
    ("ct.csv", append("1,-50\n"), "ct.csv.*-50"),
    ("ct.csv", append("1,70000\n"), "ct.csv.*70000"),
    ("ct.csv", values_times(0.1), "ct.csv.*unshifted HU"),
    ("dose.csv", values_times(100), "dose.csv.*cGy"),
    ("dose.csv", append("1,20\n"), "dose.csv.*outside the feasible-dose mask"),
    ("voxel_dimensions.csv", lambda p: p.write_text("3.9\n3.9\n"), "voxel_dimensions.csv.*three numbers"),
    ("voxel_dimensions.csv", lambda p: p.write_text("3.9\n3.9\n-2\n"), "voxel_dimensions.csv.*three numbers"),
    ("voxel_dimensions.csv", lambda p: p.write_text("3.9\nx\n2\n"), "voxel_dimensions.csv.*cannot be read"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES, ids=[f"{n}-{m[-12:]}" for n, _, m in DAMAGES])
def test_damage_is_named(damaged_folder: Path, name: str, damage: Callable, message: str) -> None:
    damage(damaged_folder / name)
    with pytest.raises(PatientDataError, match=message):
        Patient.load(damaged_folder)


def test_no_target_at_all_is_refused(damaged_folder: Path) -> None:
    for name in openkbp.TARGET_FILES:
        (damaged_folder / f"{name}.csv").unlink()
    with pytest.raises(PatientDataError, match="no planning target volume"):
        Patient.load(damaged_folder)


def test_an_absent_organ_is_fine_and_said(damaged_folder: Path) -> None:
    (damaged_folder / "Larynx.csv").unlink()
    patient = Patient.load(damaged_folder)
    assert "Larynx" not in patient.structures
    assert any("Larynx is absent" in warning for warning in patient.warnings)


def test_an_absent_target_lowers_the_prescription(damaged_folder: Path) -> None:
    (damaged_folder / "PTV70.csv").unlink()
    assert Patient.load(damaged_folder).plan.prescription.highest_gy == 63.0


def test_16_bit_ct_values_are_clipped_and_said(damaged_folder: Path) -> None:
    header, first, *rest = (damaged_folder / "ct.csv").read_text().splitlines()
    index = first.split(",")[0]
    (damaged_folder / "ct.csv").write_text("\n".join([header, f"{index},22575", *rest]) + "\n")
    patient = Patient.load(damaged_folder)
    assert patient.ct.values.max() == 3071
    assert any("clipped" in warning for warning in patient.warnings)


def test_swapped_parotids_are_refused(damaged_folder: Path) -> None:
    left, right = damaged_folder / "LeftParotid.csv", damaged_folder / "RightParotid.csv"
    aside = left.rename(damaged_folder / "aside")
    right.rename(left)
    aside.rename(right)
    with pytest.raises(PatientDataError, match="Parotid_R must lie to the right"):
        Patient.load(damaged_folder)


def test_a_flipped_patient_is_refused(sample: Patient, damaged_folder: Path) -> None:
    for path in damaged_folder.glob("*.csv"):
        if path.stem == "voxel_dimensions":
            continue
        header, *rows = path.read_text().splitlines()
        flipped = []
        for row in rows:
            index, value = row.split(",")
            flipped.append(f"{int(index) // 128 * 128 + 127 - int(index) % 128},{value}")  # head to foot
        path.write_text("\n".join([header, *flipped]) + "\n")
    with pytest.raises(PatientDataError, match="orientation"):
        Patient.load(damaged_folder)


def test_a_folder_with_a_name_gives_a_pseudonym(damaged_folder: Path) -> None:
    named = damaged_folder.rename(damaged_folder.parent / "Smith_John")
    pseudonym = Patient.load(named).pseudonym
    assert pseudonym.startswith("patient-") and "Smith" not in pseudonym
    numbered = named.rename(named.parent / "pt_99887766")  # no number of the benchmark: perhaps a hospital's
    assert Patient.load(numbered).pseudonym == pseudonym


def test_what_is_not_a_patient_is_said(tmp_path: Path, sample_folder: Path) -> None:
    with pytest.raises(PatientDataError, match="no such folder"):
        Patient.load(tmp_path / "nowhere")
    with pytest.raises(PatientDataError, match="nothing known"):
        Patient.load(tmp_path)
    with pytest.raises(PatientDataError, match="a file, not a folder"):
        Patient.load(sample_folder / "ct.csv")
    with pytest.raises(PatientDataError, match="1 patient, not one.*pt_1"):
        Patient.load(sample_folder.parent)
    (tmp_path / "slice.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(PatientDataError, match="DICOM"):
        Patient.load(tmp_path)


def test_writing_needs_the_layouts_grid(sample: Patient, tmp_path: Path) -> None:
    small = cropped(sample, (slice(0, 64), slice(0, 128), slice(0, 128)))
    with pytest.raises(PatientDataError, match="128x128x128"):
        openkbp.write_patient(small, tmp_path / "pt_2")


def test_a_patient_is_written_whole_or_not_at_all(
    sample: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*unused: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "pt_3").mkdir()
    (tmp_path / "pt_3" / "ct.csv").write_text("another patient's")
    with pytest.raises(OutputError, match="pt_3: .*not empty"):
        openkbp.write_patient(sample, tmp_path / "pt_3")
    with monkeypatch.context() as patched:
        patched.setattr(openkbp, "_write_sparse", full)
        with pytest.raises(OutputError, match="pt_2: .*No space left"):
            openkbp.write_patient(sample, tmp_path / "pt_2")
    assert [path.name for path in tmp_path.rglob("*")] == ["pt_3", "ct.csv"]


def test_public_patients_are_read(shared_patients: Path) -> None:
    for folder in sorted(shared_patients.iterdir())[:3]:
        patient = Patient.load(folder)
        assert patient.plan.dose is not None
        assert 60 < patient.plan.dose.values.max() < 85
        assert patient.pseudonym == folder.name
