"""Observations and the files they come in: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from RTDigitalTwinLib.calibration.measurements import (
    COLUMNS,
    as_row,
    check_measurements,
    from_row,
    read_measurements,
    write_measurements,
)
from RTDigitalTwinLib.errors import PatientDataError, RTDigitalTwinError
from RTDigitalTwinLib.patient.dicom_export import fresh_origin, write_dose
from RTDigitalTwinLib.patient.observation import (
    DoseObservation,
    MetricObservation,
    Moment,
    NoiseModel,
    PointObservation,
    require_apart,
    require_fit,
    same_observation,
)
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume, write_nrrd
from Testing.builders import oblique_grid, small_patient
from Testing.dicom_sets import edited

NOISE = NoiseModel(0.02, 0.01)
MEAN = MetricObservation("Parotid_L", "mean", 0.4, Moment(1.0, 2), NOISE, "log")
D95 = MetricObservation("PTV_7000", "D95", 3.8, Moment(2.0, 3, 2), NOISE, "log")
V20 = MetricObservation("Parotid_R", "V0.5", 41.0, Moment(2.0, 3, 2), NoiseModel(0.0, 2.0), "log")


@pytest.fixture(scope="module")
def patient() -> Patient:
    return small_patient()


@pytest.fixture(scope="module")
def point(patient: Patient) -> PointObservation:
    x, y, z = patient.structures["PTV_7000"].centroid_mm
    return PointObservation((x, y, z), 2.0, Moment(3.0, 4), NOISE, "diode")


@pytest.fixture
def rows(point: PointObservation) -> list[dict]:
    return [{"patient": "small-patient"} | as_row(o) for o in (MEAN, D95, V20, point)]


def as_csv(folder: Path, rows: list[dict], columns: tuple[str, ...] = COLUMNS) -> Path:
    path = folder / "day.csv"
    lines = [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_is_written_is_read_again(patient: Patient, point: PointObservation, tmp_path: Path) -> None:
    observations = (MEAN, D95, V20, replace(point, simulated=True))
    write_measurements(observations, patient.pseudonym, tmp_path / "day.csv")
    assert read_measurements(tmp_path / "day.csv", patient) == observations


def test_json_says_the_same(patient: Patient, rows: list[dict], point: PointObservation, tmp_path: Path) -> None:
    path = tmp_path / "day.json"
    bare = [{k: v for k, v in row.items() if k != "patient"} for row in rows]
    path.write_text(json.dumps({"patient": "small-patient", "observations": bare}))
    assert read_measurements(path, patient) == (MEAN, D95, V20, point)


def test_a_dose_volume_lies_beside_its_row(tmp_path: Path) -> None:
    patient = small_patient(oblique_grid())
    assert patient.plan.dose is not None
    one_fraction = Volume(patient.plan.dose.values / 35, patient.ct.grid, Quantity.DOSE_GY)
    write_nrrd(one_fraction, str(tmp_path / "fraction.nrrd"))
    given = DoseObservation(one_fraction, Moment(0, 1), NOISE, "EPID", blur_mm=3.0)
    path = as_csv(tmp_path, [{"patient": "small-patient", "file": "fraction.nrrd"} | as_row(given)])
    (read,) = read_measurements(path, patient)
    assert same_observation(read, given)


def test_a_dose_volume_may_be_rtdose(tmp_path: Path) -> None:
    patient = small_patient(oblique_grid())
    assert patient.plan.dose is not None
    one_fraction = Volume(patient.plan.dose.values / 35, patient.ct.grid, Quantity.DOSE_GY)
    origin = fresh_origin(patient)
    write_dose(one_fraction, tmp_path / "fraction.dcm", origin, "delivered")
    given = DoseObservation(one_fraction, Moment(0, 1), NOISE, "log")
    path = as_csv(tmp_path, [{"patient": "small-patient", "file": "fraction.dcm"} | as_row(given)])
    (read,) = read_measurements(path, patient)
    assert isinstance(read, DoseObservation)
    step_gy = one_fraction.values.max() / 65535
    seen = read.dose.resampled(patient.ct.grid).values
    known = np.isfinite(seen)
    assert known.mean() > 0.99 and np.abs(seen - one_fraction.values)[known].max() < 2 * step_gy
    write_dose(one_fraction, tmp_path / "fraction.dcm", replace(origin, frame_uid="1.2.3"), "of another patient")
    with pytest.raises(PatientDataError, match=r"line 2.*frames of reference differ"):
        read_measurements(path, patient)
    for tag, value, said in (
        ("DoseSummationType", "BEAM", "a part of what was delivered"),
        ("DoseType", "EFFECTIVE", "no physical dose"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.481.5", "is RTPLAN, not RTDOSE"),
    ):
        write_dose(one_fraction, tmp_path / "fraction.dcm", origin, "delivered")
        with edited(tmp_path / "fraction.dcm") as dataset:
            setattr(dataset, tag, value)
        with pytest.raises(PatientDataError, match=f"line 2, fraction.dcm: .*{said}"):
            read_measurements(path, patient)


def test_noise_adds_in_quadrature() -> None:
    assert NoiseModel(0.03, 0.4).std(10.0) == pytest.approx(0.5, abs=1e-12)  # 0.3 and 0.4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unit": "cGy"}, "line 2: The unit is cGy, not Gy. Give the value in Gy. Divide cGy by 100"),
        ({"value": 40.0}, "Give Gy, not cGy"),
        ({"value": "nan"}, "value is no finite number"),
        ({"value": "inf"}, "value is no finite number"),
        ({"value": ""}, "A metric needs value"),
        ({"value": -0.1}, "outside 0 to"),
        (
            {"structure": "Cochlea_L"},
            "line 2, Cochlea_L: The patient has no structure of this name; there are PTV_7000",
        ),
        ({"metric": "D9x"}, "no DVH metric"),
        ({"metric": "V20"}, "The unit is Gy, not %"),
        ({"x_mm": 3}, "A metric has no x_mm"),
        ({"kind": "guess"}, "no kind of measurement"),
        ({"fraction": 0}, "cannot sum over 1 fraction up to fraction 0"),
        ({"fraction": 36, "days": 1}, "There is no fraction 36: 35 are prescribed"),
        ({"fraction": 1.5}, "no whole number"),
        ({"days": -1}, "Days since treatment started"),
        ({"noise_ratio": 0, "noise_floor": 0}, "without noise"),
        ({"noise_floor": -1}, "The noise must be numbers of 0 or more"),
        ({"simulated": "perhaps"}, "true or false"),
        ({"patient": "pt_9"}, "are of patient pt_9"),
        ({"patient": ""}, "none named"),
        ({"days": 9, "fraction": 9}, "line 3: .*stands after"),
    ],
)
def test_refused_rows(patient: Patient, rows: list[dict], tmp_path: Path, change: dict, said: str) -> None:
    rows[0] |= change
    with pytest.raises(PatientDataError, match=said) as caught:
        read_measurements(as_csv(tmp_path, rows), patient)
    assert "day.csv" in str(caught.value) and str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_mistakes_are_found_before_the_patient_is_read(rows: list[dict], tmp_path: Path, suffix: str) -> None:
    """In JSON an observation has its number, in CSV a line."""
    place = "line 3" if suffix == "csv" else "observation 2"

    def written(changed: dict) -> Path:
        given = [rows[0], rows[1] | changed, *rows[2:]]
        if suffix == "csv":
            return as_csv(tmp_path, given)
        path = tmp_path / "day.json"
        bare = [{k: v for k, v in row.items() if k != "patient"} for row in given]
        path.write_text(json.dumps({"patient": "small-patient", "observations": bare}))
        return path

    check_measurements(written({}))
    for change, said in (
        ({"unit": "cGy"}, "The unit is cGy, not Gy"),
        ({"value": "1,2" if suffix == "json" else "twelve"}, "value is no finite number"),
        ({"metric": "D9x"}, "no DVH metric"),
        ({"kind": "guess"}, "no kind of measurement"),
        ({"noise_floor": ""}, "A metric needs noise_floor"),
        ({"days": 9, "fraction": 9}, "stands after"),
    ):
        where = "line 4" if said == "stands after" and suffix == "csv" else place
        where = "observation 3" if said == "stands after" and suffix == "json" else where
        with pytest.raises(PatientDataError, match=f"day.{suffix}, {where}.*{said}"):
            check_measurements(written(change))


def test_of_a_dose_volume_the_file_is_looked_for(tmp_path: Path) -> None:
    row: dict = {"patient": "small-patient", "kind": "dose", "file": "day.nrrd", "unit": "Gy", "source": "EPID"}
    row |= {"days": 0, "fraction": 1, "fractions": 1, "noise_ratio": 0.02, "noise_floor": 0.01}
    path = as_csv(tmp_path, [row])
    with pytest.raises(PatientDataError, match="line 2, day.nrrd: The dose volume is not there"):
        check_measurements(path)
    (tmp_path / "day.nrrd").write_text("an image, for all that is looked at")
    check_measurements(path)
    with pytest.raises(PatientDataError, match="line 2: blur_mm is no finite number"):
        check_measurements(as_csv(tmp_path, [row | {"blur_mm": "wide"}]))
    with pytest.raises(PatientDataError, match="of several patients: pt_9, small-patient"):
        check_measurements(as_csv(tmp_path, [row, row | {"patient": "pt_9", "fraction": 2}]))


def test_lines_are_counted_as_an_editor_does(patient: Patient, rows: list[dict], tmp_path: Path) -> None:
    path = as_csv(tmp_path, [rows[0] | {"unit": "cGy"}])
    header, row = path.read_text().splitlines()
    path.write_text(f"{header}\n\n{row}\n")
    with pytest.raises(PatientDataError, match="day.csv, line 3: The unit"):
        read_measurements(path, patient)
    with pytest.raises(PatientDataError, match="day.csv, row 1: The unit"):
        read_measurements(path, patient, of_table=True)


def test_twice_the_same_is_refused(patient: Patient, rows: list[dict], tmp_path: Path) -> None:
    with pytest.raises(PatientDataError, match="line 3, Parotid_L mean: Fraction 2 holds this more than once"):
        read_measurements(as_csv(tmp_path, [rows[0], rows[0]]), patient)
    with pytest.raises(PatientDataError, match="not yet absorbed"):
        require_fit([MEAN], patient, absorbed=[MEAN])


def test_unknown_columns_and_damaged_files_are_refused(patient: Patient, rows: list[dict], tmp_path: Path) -> None:
    with pytest.raises(PatientDataError, match="Nothing is known of 'dose'"):
        read_measurements(as_csv(tmp_path, rows, (*COLUMNS, "dose")), patient)
    with pytest.raises(PatientDataError, match="There is no patient"):
        read_measurements(as_csv(tmp_path, rows, COLUMNS[1:]), patient)
    with pytest.raises(PatientDataError, match="no measurement"):
        read_measurements(as_csv(tmp_path, []), patient)
    path = as_csv(tmp_path, rows)
    path.write_text(path.read_text() + "small-patient,metric\n")
    with pytest.raises(PatientDataError, match="line 6: The line has not as many cells"):
        read_measurements(path, patient)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PatientDataError, match="cannot be read"):
        read_measurements(path, patient)
    broken = tmp_path / "day.json"
    for text in ("{", "[]", '{"patient": "small-patient"}', '{"patient": "small-patient", "observations": [1]}'):
        broken.write_text(text)
        with pytest.raises(PatientDataError, match="cannot be read"):
            read_measurements(broken, patient)
    with pytest.raises(PatientDataError, match="No such file"):
        read_measurements(tmp_path / "none.csv", patient)


def test_points_outside_are_refused(patient: Patient, point: PointObservation) -> None:
    for position in ((500.0, 0.0, 0.0), (74.0, 60.0, 0.0)):  # off the grid, and beside the patient
        with pytest.raises(PatientDataError, match="where no dose is predicted"):
            require_fit([replace(point, position_mm=position)], patient)


def test_dose_volumes_must_cover_the_patient_in_gy(patient: Patient) -> None:
    grid, values = patient.ct.grid, np.full(patient.ct.grid.shape, 1.0, np.float32)
    good = DoseObservation(Volume(values, grid, Quantity.DOSE_GY), Moment(0, 1), NOISE, "EPID")
    require_fit([good], patient)
    with pytest.raises(PatientDataError, match="not cGy"):
        require_fit([replace(good, dose=Volume(100 * values, grid, Quantity.DOSE_GY))], patient)
    half = np.where(np.arange(grid.shape[0])[:, None, None] < 18, np.nan, values)
    with pytest.raises(PatientDataError, match="covers .* of the voxels"):
        require_fit([replace(good, dose=Volume(half, grid, Quantity.DOSE_GY))], patient)
    elsewhere = replace(grid, frame_of_reference="1.2.3")
    with pytest.raises(RTDigitalTwinError, match="frames of reference differ"):
        require_fit([replace(good, dose=Volume(values, elsewhere, Quantity.DOSE_GY))], patient)


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.nrrd", "not there"), ("../x.nrrd", "in the folder"), ("bad.nrrd", "cannot be read"),
     ("std.nrrd", "holds Gy, standard deviation, not a dose")],
)  # fmt: skip
def test_dose_files_are_checked(patient: Patient, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "bad.nrrd").write_text("no image")
    spread = Volume(patient.ct.values, patient.ct.grid, Quantity.DOSE_STD_GY)
    write_nrrd(spread, str(tmp_path / "std.nrrd"))
    row: dict = {"patient": "small-patient", "kind": "dose", "file": name, "unit": "Gy", "source": "EPID"}
    row |= {"days": 0, "fraction": 1, "fractions": 1, "noise_ratio": 0.02, "noise_floor": 0.01}
    with pytest.raises(PatientDataError, match=f"line 2, {name}: .*{said}"):
        read_measurements(as_csv(tmp_path, [row]), patient)


def test_rows_are_values(point: PointObservation) -> None:
    assert from_row(as_row(point)) == point
    assert from_row(as_row(D95)) == D95


def test_the_same_fractions_do_not_count_twice(patient: Patient) -> None:
    whole = replace(MEAN, moment=Moment(6.0, 5, 5))
    third, sixth = replace(MEAN, moment=Moment(2.0, 3)), replace(MEAN, moment=Moment(7.0, 6))
    require_apart([whole, sixth])
    with pytest.raises(PatientDataError, match="Fractions 3 overlap with fractions 1 to 5"):
        require_apart([third], absorbed=[whole])
    with pytest.raises(PatientDataError, match="count twice"):
        require_apart([whole, third])
    require_apart([whole, replace(third, metric="D2")])  # another value of the same fractions tells more
    dose = Volume(np.ones(patient.ct.grid.shape, np.float32), patient.ct.grid, Quantity.DOSE_GY)
    volume = DoseObservation(dose, Moment(2.0, 3), MEAN.noise, "log files")
    with pytest.raises(PatientDataError, match="overlap"):
        require_apart([volume, replace(third, source="log files")])
    require_apart([volume, replace(third, source="diode")])
