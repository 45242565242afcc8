"""A new CT as an observation: the shift it tells, how surely, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.ledger import read_ledger
from RTDigitalTwinLib.observe import ObserveSettings, observe_patient
from RTDigitalTwinLib.patient.identity import Identity
from RTDigitalTwinLib.patient.new_ct import NewCt, read_new_ct, seen_shift
from RTDigitalTwinLib.patient.overrides import Overrides
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.registration import Registration
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume, write_nrrd
from Testing.dicom_sets import small_set

SHIFT_MM = (3.0, -2.0, 5.0)
NOISE_HU = 20.0
NOBODY = Identity("", "", "")
STRICT = Overrides()


def moved_ct(ct: Volume, shift_mm: tuple[float, float, float], turn_deg: float = 0.0) -> Volume:
    """The CT of the same tissue moved and turned about the grid's middle and the long axis, with noise of its own."""
    frame = ct.grid.frame_of_reference
    back = Rotation.from_euler("z", -turn_deg, degrees=True).as_matrix()
    middle = ct.grid.to_lps_mm((np.array(ct.grid.shape) - 1) / 2)
    offset = middle - back @ (middle + shift_mm)
    x, y, z = offset.tolist()
    found = Registration(frame, frame, tuple(back.ravel().tolist()), (x, y, z)).onto(ct, ct.grid).values
    noise = np.random.default_rng(1).normal(0, NOISE_HU, found.shape)
    return Volume((np.nan_to_num(found, nan=-1000.0) + noise).clip(-1024).astype(np.float32), ct.grid, Quantity.HU)


@pytest.fixture(scope="module")
def new_ct(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("new ct") / "day 8.nrrd"
    write_nrrd(moved_ct(Patient.load(target_folder).ct, SHIFT_MM), str(path))
    return path


def test_the_shift_comes_out_within_what_is_said_of_it(
    new_ct: Path, target_folder: Path, narrow_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["observe", str(target_folder), "--out", str(out), "--new-ct", f"{new_ct}=8", "--samples", "4"]
    assert main([*command, "--weights", str(narrow_weights), "--device", "cpu"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    (row,) = summary["observations"]
    assert (row["kind"], row["fraction"], row["absorbed"]) == ("couch shift", 8, True)
    found = [row[axis] for axis in ("x_mm", "y_mm", "z_mm")]
    assert np.abs(np.subtract(found, SHIFT_MM)).max() < 2 * row["noise_floor"]  # two standard deviations
    assert row["noise_floor"] < 2.0  # half a voxel of the planning CT
    (told,) = (w for w in summary["warnings"] if w.startswith("The new CT of fraction 8"))
    assert "shows the patient shifted by" in told and "HU on average" in told
    assert any("names no patient" in warning for warning in summary["warnings"])
    assert "The new CT of fraction 8" in (out / "report.html").read_text(encoding="utf-8")
    assert "The new CT of fraction 8" in " ".join(capsys.readouterr().err.split())
    assert any(row["before"] != row["after"] for row in summary["metrics"])
    assert str(new_ct.parent) not in (out / "summary.json").read_text()
    ledger = [e for e in read_ledger(out / "ledger.jsonl") if e.kind == "observed"]
    assert ledger[0].content["observations"][0]["kind"] == "couch shift"
    arguments = ["replay", str(out / "ledger.jsonl"), str(target_folder), "--device", "cpu"]
    assert main([*arguments, "--weights", str(narrow_weights)]) == 0


def coarse(patient: Patient) -> Patient:
    """Every second voxel of it: quick to register."""
    grid = patient.ct.grid
    (x, y, z), (slices, rows, columns) = grid.spacing_mm, grid.shape
    shape = (-(-slices // 2), -(-rows // 2), -(-columns // 2))
    thin = replace(grid, shape=shape, spacing_mm=(2 * x, 2 * y, 2 * z))
    ct = Volume(np.ascontiguousarray(patient.ct.values[::2, ::2, ::2]), thin, Quantity.HU)
    region = patient.dose_mask
    mask = Structure.from_array(region.name, region.mask[::2, ::2, ::2], thin, region.kind)
    return replace(patient, images=(replace(patient.images[0], volume=ct),), structures={}, dose_mask=mask, plans=())


def framed_as(patient: Patient, frame: str) -> Patient:
    grid = replace(patient.ct.grid, frame_of_reference=frame)
    mask = Structure.from_array(patient.dose_mask.name, patient.dose_mask.mask, grid, patient.dose_mask.kind)
    ct = replace(patient.images[0], volume=replace(patient.ct, grid=grid))
    return replace(patient, images=(ct,), dose_mask=mask)


def seen(ct: Volume, patient: Patient, new: Identity | None = None, overrides: Overrides = STRICT) -> str:
    warnings: list[str] = []
    mine = NOBODY if new is None else Identity("a", "A", "")
    return seen_shift(NewCt(ct, new), patient, mine, 2, overrides, warnings, where="day 8").words


def test_what_no_shift_tells_of_is_refused(target_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = coarse(Patient.load(target_folder))
    with pytest.raises(PatientDataError, match="rotated by [56]"):
        seen(moved_ct(patient.ct, (0.0, 0.0, 0.0), 6.0), patient)
    mirrored = np.ascontiguousarray(patient.ct.values[::-1, ::-1])  # feet first and prone: no rigid motion undoes it
    with pytest.raises(PatientDataError, match="does not fit the planning CT"):
        seen(Volume(mirrored, patient.ct.grid, Quantity.HU), patient)

    def too_early(*_: object, **__: object) -> None:
        raise AssertionError("whose it is comes before the registration")

    monkeypatch.setattr("RTDigitalTwinLib.patient.new_ct.registered", too_early)
    with pytest.raises(PatientDataError, match="another patient"):
        seen(patient.ct, patient, Identity("b", "B", ""))
    other = replace(patient.ct, grid=replace(patient.ct.grid, frame_of_reference="1.2.4"))
    framed = framed_as(patient, "1.2.3")
    with pytest.raises(PatientDataError, match="another frame of reference"):
        seen(other, framed, Identity("a", "A", ""))


def test_where_a_new_ct_is_read_from(target_folder: Path, tmp_path: Path) -> None:
    small_set(tmp_path / "set")
    read = read_new_ct(tmp_path / "set", STRICT)
    assert read.identity is not None and read.ct.quantity is Quantity.HU
    own = read_new_ct(target_folder, STRICT)
    assert own.identity == Identity("pt_1", "", "") and own.ct.grid.same_as(Patient.load(target_folder).ct.grid)
    with pytest.raises(PatientDataError, match="no such folder"):
        read_new_ct(tmp_path / "nothing", STRICT)
    (tmp_path / "text.nrrd").write_text("no image")
    with pytest.raises(PatientDataError, match="cannot be read as an image"):
        read_new_ct(tmp_path / "text.nrrd", STRICT)
    dose = Volume(np.ones((9, 9, 9), np.float32), replace(own.ct.grid, shape=(9, 9, 9)), Quantity.DOSE_GY)
    write_nrrd(dose, str(tmp_path / "dose.nrrd"))
    with pytest.raises(PatientDataError, match="no CT in HU"):
        read_new_ct(tmp_path / "dose.nrrd", STRICT)
    for path in (tmp_path / "set").rglob("*.dcm"):
        if path.name.startswith("CT"):
            path.unlink()
    with pytest.raises(PatientDataError, match="no CT series"):
        read_new_ct(tmp_path / "set", STRICT)
    settings = ObserveSettings(device="cpu")
    with pytest.raises(RTDigitalTwinError, match="nothing to observe"):
        observe_patient(target_folder, None, tmp_path / "out", settings)
    renamed = Path(shutil.copytree(target_folder, tmp_path / "pt_2"))
    with pytest.raises(PatientDataError, match="another patient"):
        observe_patient(renamed, None, tmp_path / "out", replace(settings, new_cts=((target_folder, 1),)))
    assert not (tmp_path / "out").exists()
