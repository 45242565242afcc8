"""Doses and structures for a patient's record: any dose with a description and a label, under the source's identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from RTDigitalTwinLib.errors import OutputError, PatientDataError
from RTDigitalTwinLib.patient.dicom_patient import read_patient, source_origin
from RTDigitalTwinLib.patient.dose_file import SIMULATION_REMARK, read_dose_image
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.record import record_origin, write_dose_record, write_structures_record
from RTDigitalTwinLib.solver.dose_ensemble import DoseEnsemble
from Testing.builders import hand_made_calibration, hand_made_ensemble
from Testing.dicom_sets import dose_of
from Testing.test_dicom_export import errors_found


@pytest.fixture(scope="module")
def prediction(dicom_set: tuple[Path, Patient]) -> DoseEnsemble:
    return hand_made_ensemble(read_patient(dicom_set[0]))


def test_any_dose_is_written_with_its_description_and_label(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    folder, patient = dicom_set
    origin = source_origin(folder)
    chosen = Volume(0.9 * dose_of(patient), patient.ct.grid, Quantity.DOSE_GY)
    (path,) = write_dose_record(tmp_path, chosen, origin, "Spare Parotid_L", label="spare_Parotid_L")
    ds = pydicom.dcmread(path)
    assert path.name == "RTDOSE.spare_Parotid_L.dcm" and errors_found(path) == []
    assert ds.SeriesDescription == "Spare Parotid_L (RTDigitalTwin, research)"
    assert ds.PatientID == origin.patient_id and ds.FrameOfReferenceUID == origin.frame_uid
    read = read_dose_image(path)
    assert read.is_predicted and read.plan_uids == (origin.plan_uid,)
    np.testing.assert_allclose(read.dose.values, chosen.values, atol=0.51 * float(ds.DoseGridScaling) + 1e-5)
    change = Volume(0.1 * dose_of(patient), patient.ct.grid, Quantity.DOSE_DIFFERENCE_GY)
    (other,) = write_dose_record(tmp_path, change, origin, "Less by sparing", label="less")
    assert pydicom.dcmread(other).DoseType == "ERROR"


@pytest.mark.parametrize(("calibrated", "spread"), [(True, "half_width_95"), (False, "std")])
def test_the_spread_of_an_ensemble_goes_beside_its_mean(
    prediction: DoseEnsemble, dicom_set: tuple[Path, Patient], tmp_path: Path, calibrated: bool, spread: str
) -> None:
    dose = replace(prediction, calibration=hand_made_calibration() if calibrated else None)
    origin = source_origin(dicom_set[0])
    paths = write_dose_record(tmp_path, dose, origin, "Boost PTV_7000", label="boost", simulated=True)
    assert [path.name for path in paths] == ["RTDOSE.boost.mean.dcm", f"RTDOSE.boost.{spread}.dcm"]
    read = read_dose_image(paths[0])
    assert read.is_predicted and SIMULATION_REMARK in read.remarks
    for path in paths:
        assert errors_found(path) == []
        assert pydicom.dcmread(path).SeriesDescription.startswith("Simulated: Boost PTV_7000, ")
    with pytest.raises(PatientDataError, match="DoseType is ERROR"):
        read_dose_image(paths[1])


def test_a_long_description_is_cut_but_what_we_say_is_not(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    folder, patient = dicom_set
    dose = Volume(dose_of(patient), patient.ct.grid, Quantity.DOSE_GY)
    (path,) = write_dose_record(tmp_path, dose, source_origin(folder), "Spare the gland on the left and " * 3)
    said = pydicom.dcmread(path).SeriesDescription
    assert path.name == "RTDOSE.dcm" and len(said) <= 64
    assert said.startswith("Spare the gland") and said.endswith(" (RTDigitalTwin, research)")


@pytest.mark.parametrize("label", ["../out", "a b", "a.b", "-x", "x" * 41, "Müller", "a/b"])
def test_a_label_that_makes_no_file_name_is_refused(
    dicom_set: tuple[Path, Patient], tmp_path: Path, label: str
) -> None:
    folder, patient = dicom_set
    dose = Volume(dose_of(patient), patient.ct.grid, Quantity.DOSE_GY)
    with pytest.raises(OutputError, match="no label for a file"):
        write_dose_record(tmp_path, dose, source_origin(folder), "Dose", label=label)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(dicom_set: tuple[Path, Patient], tmp_path: Path) -> None:
    folder, patient = dicom_set
    dose = Volume(dose_of(patient), patient.ct.grid, Quantity.DOSE_GY)
    origin = record_origin(folder, tmp_path / "out", tmp_path / "record")
    (path,) = write_dose_record(tmp_path, dose, origin, "Dose", label="a")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="was written before"):
        write_dose_record(tmp_path, dose, origin, "Dose", label="a")
    assert path.read_bytes() == before
    with pytest.raises(PatientDataError, match="not predicted"):
        write_dose_record(tmp_path, dose, origin, "Dose", label="b", predicted=False, simulated=True)
    assert write_structures_record(tmp_path, patient, origin).is_file()
