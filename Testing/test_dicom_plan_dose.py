"""RTDOSE and RTPLAN: units, scaling, frame offsets, parts of plans, fractions and beams."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.errors import PatientDataError
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, read_patient
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import Approval
from Testing.builders import OBLIQUE_DIRECTION
from Testing.dicom_sets import accepting, dose_in, dose_of, edited, plan_in

# The dose


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("DoseGridScaling", None, "DoseGridScaling is missing"),
        ("DoseGridScaling", 0, "must be above 0"),
        ("DoseGridScaling", "1000", "reaches"),
        ("DoseUnits", "RELATIVE", "DoseUnits is RELATIVE"),
        ("DoseUnits", None, "DoseUnits is missing"),
        ("DoseType", "ERROR", "DoseType is ERROR"),
        ("GridFrameOffsetVector", None, "GridFrameOffsetVector is missing"),
        ("GridFrameOffsetVector", [5.0 * i + 3 for i in range(24)], "neither 0 nor the position"),
        ("GridFrameOffsetVector", [0.0] + [5.0 * i + 1 for i in range(1, 24)], "not evenly"),
        ("GridFrameOffsetVector", [5.0 * i for i in range(23)], "23 entries for 24 frames"),
    ],
)
def test_a_dose_of_open_meaning_is_refused(damaged_set: Path, tag: str, value: object, message: str) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        if value is None:
            del ds[tag]
        else:
            setattr(ds, tag, value)
    with pytest.raises(PatientDataError, match=message):
        dose_in(damaged_set)
    patient = read_patient(damaged_set)  # the rest is read, and it is told
    assert patient.plan.dose is None
    assert any(text.startswith("A dose was left out") for text in patient.warnings)


@pytest.mark.parametrize("summation", ["BEAM", "FRACTION", "MULTI_PLAN"])
def test_a_part_is_not_taken_for_the_plan(damaged_set: Path, summation: str) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.DoseSummationType = summation
    assert dose_in(damaged_set).summation == summation
    patient = read_patient(damaged_set)
    assert patient.plan.dose is None
    assert any(f"summation {summation} was left out" in text for text in patient.warnings)


def test_effective_dose_is_labelled(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.DoseType = "EFFECTIVE"
    assert any("EFFECTIVE" in text for text in read_patient(damaged_set).warnings)


def test_both_kinds_of_frame_offsets_and_either_sense(damaged_set: Path) -> None:
    relative = dose_in(damaged_set).dose
    z = relative.grid.origin_mm[2]
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.GridFrameOffsetVector = [z + 5.0 * i for i in range(24)]
    absolute = dose_in(damaged_set).dose
    assert absolute.grid.same_as(relative.grid)
    np.testing.assert_array_equal(absolute.values, relative.values)
    with edited(damaged_set / "RTDOSE.dcm") as ds:  # top frame first
        ds.ImagePositionPatient[2] = z + 5.0 * 23
        ds.GridFrameOffsetVector = [-5.0 * i for i in range(24)]
        ds.PixelData = ds.pixel_array[::-1].tobytes()
    downwards = dose_in(damaged_set).dose
    assert downwards.grid.same_as(relative.grid)
    np.testing.assert_array_equal(downwards.values, relative.values)


def test_a_dose_on_a_smaller_grid_is_undefined_beyond_it(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        pixels = ds.pixel_array[6:18]
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 6 * 5.0
        ds.NumberOfFrames, ds.GridFrameOffsetVector = 12, [5.0 * i for i in range(12)]
        ds.PixelData = pixels.tobytes()
    patient = read_patient(damaged_set)
    dose = dose_of(patient)
    assert np.isnan(dose[:5]).all() and np.isfinite(dose[6:18]).all()
    assert any("of SpinalCord; beyond it the dose is not known" in text for text in patient.warnings)
    assert not any("of PTV_7000; beyond" in text for text in patient.warnings)


def test_a_dose_of_other_axes_and_spacing_is_resampled_in_the_patient(damaged_set: Path) -> None:
    """A ramp along all three axes, stored with rows along the patient's columns and slices towards the feet."""
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        origin = np.array([-70.0, -60.0, 45.0])
        shape, steps = (20, 30, 26), (4.5, 5.0, 4.0)  # frames down, rows along x, columns along y
        frames, rows, columns = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
        x, y, z = origin[0] + steps[1] * rows, origin[1] + steps[2] * columns, origin[2] - steps[0] * frames
        gy = 30 + 0.1 * x + 0.15 * y - 0.2 * z
        ds.ImagePositionPatient, ds.ImageOrientationPatient = list(origin), [0, 1, 0, 1, 0, 0]
        ds.PixelSpacing, ds.NumberOfFrames = [steps[1], steps[2]], shape[0]
        ds.Rows, ds.Columns = shape[1:]
        ds.GridFrameOffsetVector = [steps[0] * k for k in range(shape[0])]
        ds.DoseGridScaling = "0.001"
        ds.PixelData = np.round(gy / 0.001).astype("<u2").tobytes()
    patient = read_patient(damaged_set)
    grid, values = patient.ct.grid, dose_of(patient)
    positions = grid.to_lps_mm(np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1))
    wanted = 30 + positions @ (0.1, 0.15, -0.2)
    ends = np.stack([origin, origin + (steps[1] * 29, steps[2] * 25, -steps[0] * 19)])
    low, high = ends.min(axis=0), ends.max(axis=0)
    between_centres = ((positions >= low) & (positions <= high)).all(axis=-1)
    assert 0.3 < between_centres.mean() < 0.6
    np.testing.assert_allclose(values[between_centres], wanted[between_centres], atol=0.002)
    half = np.array([steps[1], steps[2], steps[0]]) / 2 + 1e-3  # the outer voxels reach so far beyond their centres
    beyond = ((positions < low - half) | (positions > high + half)).any(axis=-1)
    assert np.isnan(values[beyond]).all()


def test_a_dose_that_misses_its_prescription_is_doubted(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.DoseGridScaling = f"{float(ds.DoseGridScaling) / 35:.10g}"
    assert any("does not fit its 70 Gy" in text for text in read_patient(damaged_set).warnings)


# The plan


@pytest.mark.parametrize(
    ("intent", "told"),
    [("CURATIVE", ""), ("", ""), ("RESEARCH", "RESEARCH"), ("VERIFICATION", "VERIFICATION"), ("LONGSTOCKING", "OTHER")],
)
def test_a_plan_that_was_not_made_to_treat_is_told(damaged_set: Path, intent: str, told: str) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.PlanIntent, ds.ApprovalStatus = intent, "APPROVED"
    read = read_patient(damaged_set)
    assert [text for text in read.warnings if "no clinical plan" in text] == (
        [f"This is no clinical plan: its intent is {told}. A comparison with its dose does not show how good a "
         "prediction is."] if told else []
    )  # fmt: skip
    assert ("no clinical plan" in read.plan.label) == bool(told)
    assert read.plan.approval is Approval.APPROVED and not any("The plan is " in text for text in read.warnings)


@pytest.mark.parametrize(
    ("status", "told"), [("UNAPPROVED", "is UNAPPROVED"), ("REJECTED", "is REJECTED"), ("APPROVED", ""), ("", "")]
)
def test_a_plan_that_was_not_approved_is_told(
    damaged_set: Path, status: str, told: str, capsys: pytest.CaptureFixture
) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.ApprovalStatus = status
    warned = [text for text in read_patient(damaged_set).warnings if text.startswith("The plan is ")]
    assert len(warned) == bool(told) and all(told in text for text in warned)
    assert main(["inspect", str(damaged_set)]) == 0
    assert ("Note: The plan is " in capsys.readouterr().out) == bool(told)


def test_a_plan_of_two_parts_is_refused(damaged_set: Path) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.FractionGroupSequence.append(ds.FractionGroupSequence[0])
    with pytest.raises(PatientDataError, match="the plan has 2 parts"):
        read_patient(damaged_set)


def test_names_and_plan_that_disagree_on_a_level(damaged_set: Path) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.DoseReferenceSequence[0].TargetPrescriptionDose = 60
    with pytest.raises(PatientDataError, match=r"open what they are: PTV_7000 \(the name says 70 Gy, the plan 60 Gy"):
        read_patient(damaged_set)


def test_a_plan_of_another_structure_set_tells_nothing_of_single_structures(damaged_set: Path) -> None:
    """The plan's 70 Gy are for the number of the target, which in the other set is the number of a gland."""
    shutil.copy(damaged_set / "RTSTRUCT.dcm", damaged_set / "other.dcm")
    with edited(damaged_set / "other.dcm") as ds:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StructureSetLabel = "other"
        for roi in ds.StructureSetROISequence:
            roi.ROIName = {"PTV_7000": "Parotid_R", "Parotid_R": "PTV60"}.get(roi.ROIName, roi.ROIName)
    names = {"PTV60": "PTV_6000"}
    with pytest.raises(PatientDataError, match="another structure set than the one used.*--accept plan"):
        read_patient(damaged_set, DicomChoice(structure_set="other", names=names))
    choice = replace(accepting("plan"), structure_set="other", names={**names, "Parotid_R": ""})
    patient = read_patient(damaged_set, choice)
    assert patient.plan.prescription.target_dose_gy == (("PTV_6000", 60.0),)
    assert any(text.startswith("Overridden by the user (plan)") for text in patient.warnings)
    assert "The plan prescribes 70 Gy, the highest target is 60 Gy by its name." in patient.warnings


def test_a_plan_that_refers_to_no_structure_set(damaged_set: Path) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        del ds.ReferencedStructureSetSequence
        ds.DoseReferenceSequence[0].TargetPrescriptionDose = 60
    patient = read_patient(damaged_set)
    assert patient.plan.prescription.target_dose_gy == (("PTV_7000", 70.0),)
    assert any(text.startswith("The plan refers to no structure set") for text in patient.warnings)
    assert "The plan prescribes 60 Gy, the highest target is 70 Gy by its name." in patient.warnings


def beam(angle: float, **more: Any) -> Dataset:
    item, point = Dataset(), Dataset()
    point.GantryAngle, point.GantryRotationDirection = angle, more.get("rotation", "NONE")
    point.PatientSupportAngle = more.get("couch", 0)
    item.TreatmentDeliveryType = more.get("delivery", "TREATMENT")
    item.RadiationType = more.get("radiation", "PHOTON")
    item.ControlPointSequence = [point]
    for later in more.get("to", ()):
        item.ControlPointSequence.append(Dataset())
        if later is not None:
            item.ControlPointSequence[-1].GantryAngle = later
    return item


def test_beam_angles(damaged_set: Path) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.BeamSequence = [beam(40, to=[None, 40]), beam(320), beam(-40), beam(90, delivery="SETUP")]
    plan = plan_in(damaged_set)
    assert plan.gantry_angles_deg == (40.0, 320.0) and plan.not_fixed_fields == ""


@pytest.mark.parametrize(
    ("beams", "message"),
    [
        ([beam(10, rotation="CW")], "1 beam of the plan is an arc"),
        ([beam(10, couch=20)], "not coplanar"),
        ([beam(40, to=[120])], "1 beam of the plan is an arc"),
        ([beam(40), beam(80, radiation="ELECTRON")], "1 beam of the plan is of no photons"),
        ([beam(40, radiation="")], "1 beam of the plan is of no photons"),
    ],
)
def test_beams_that_are_no_fixed_coplanar_fields(damaged_set: Path, beams: list[Dataset], message: str) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.BeamSequence = beams
    plan = plan_in(damaged_set)
    assert plan.gantry_angles_deg == () and message in plan.remarks[0]
    assert plan.not_fixed_fields == plan.remarks[0]


def test_angles_of_a_patient_lying_otherwise_are_not_used(damaged_set: Path) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.BeamSequence = [beam(40)]
        setup = Dataset()
        setup.PatientPosition = "FFS"
        ds.PatientSetupSequence = [setup]
    plan = plan_in(damaged_set)
    assert plan.gantry_angles_deg == () and "position FFS" in plan.remarks[0]
    assert Patient.load(damaged_set).plan.not_fixed_fields == plan.not_fixed_fields == plan.remarks[0]


# Whose dose it is, and where


def test_a_dose_of_several_plans_is_not_taken_for_one(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        other = deepcopy(ds.ReferencedRTPlanSequence[0])
        other.ReferencedSOPInstanceUID = generate_uid()
        ds.ReferencedRTPlanSequence.append(other)
    patient = read_patient(damaged_set)
    assert patient.plan.dose is None
    assert "1 dose files of several plans together were left out." in patient.warnings
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        del ds.ReferencedRTPlanSequence
    patient = read_patient(damaged_set)
    assert patient.plan.dose is not None
    assert any(text.startswith("A dose names no plan") for text in patient.warnings)


def test_a_prescription_that_only_centigray_explain_is_refused(damaged_set: Path) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.DoseReferenceSequence[0].TargetPrescriptionDose = 7000
    with pytest.raises(PatientDataError, match="TargetPrescriptionDose is 7000 Gy; at most 200.*in cGy"):
        read_patient(damaged_set)


def test_one_structure_with_two_prescriptions_is_refused(damaged_set: Path) -> None:
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.DoseReferenceSequence.append(deepcopy(ds.DoseReferenceSequence[0]))
    assert plan_in(damaged_set).roi_dose_gy[0][1] == 70
    with edited(damaged_set / "RTPLAN.dcm") as ds:
        ds.DoseReferenceSequence[-1].TargetPrescriptionDose = 60
    with pytest.raises(PatientDataError, match="one structure has two doses, 70 and 60 Gy"):
        read_patient(damaged_set)


@pytest.mark.parametrize("frames", [1, 12, 23, 25, None])
def test_a_wrong_number_of_frames_costs_the_dose(damaged_set: Path, frames: int | None) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        if frames is None:
            del ds.NumberOfFrames
        else:
            ds.NumberOfFrames = frames
    patient = read_patient(damaged_set)
    assert patient.plan.dose is None
    assert any(text.startswith("A dose was left out: (7FE0,0010)") for text in patient.warnings)


def test_a_dose_that_misses_part_of_the_target_is_told(damaged_set: Path) -> None:
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        pixels = ds.pixel_array[11:14]
        ds.ImagePositionPatient[2] = float(ds.ImagePositionPatient[2]) + 11 * 5.0
        ds.NumberOfFrames, ds.GridFrameOffsetVector = 3, [0, 5, 10]
        ds.PixelData = pixels.tobytes()
    warned = [text for text in read_patient(damaged_set).warnings if "of PTV_7000; beyond it" in text]
    assert len(warned) == 1 and 40 < float(warned[0].split()[4]) < 70


@pytest.mark.parametrize(
    "axes", [(-1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0)], ids=["feet first", "prone", "both"]
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_dose_lies_where_its_cosines_say(damaged_set: Path, axes: tuple[int, ...], absolute: bool) -> None:
    """The same dose with its rows and columns towards other sides, frames along the normal of that."""
    before = dose_of(read_patient(damaged_set))
    flip_x, flip_y, along = axes[0] < 0, axes[4] < 0, axes[0] * axes[4]
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        x, y, z = (float(v) for v in ds.ImagePositionPatient)
        frames, rows, columns = ds.pixel_array.shape
        start = z if along > 0 else z + (frames - 1) * 5.0
        ds.ImageOrientationPatient = list(axes)
        ds.ImagePositionPatient = [x + flip_x * (columns - 1) * 4.0, y + flip_y * (rows - 1) * 4.0, start]
        ds.PixelData = ds.pixel_array[::along, :: -1 if flip_y else 1, :: -1 if flip_x else 1].tobytes()
        ds.GridFrameOffsetVector = [start + along * 5.0 * k if absolute else 5.0 * k for k in range(frames)]
    np.testing.assert_allclose(dose_of(read_patient(damaged_set)), before, atol=1e-4)


def test_an_oblique_dose_on_another_grid_is_resampled_in_the_patient(damaged_set: Path) -> None:
    """A ramp on turned axes with steps of its own, over all of the CT; frames against the normal."""
    turned = np.reshape(OBLIQUE_DIRECTION, (3, 3))
    ct = read_patient(damaged_set).ct.grid
    steps, shape = np.array([3.5, 6.0, 4.5]), (60, 60, 90)  # along columns, rows, frames; frames, rows, columns
    middle = ct.to_lps_mm((np.array(ct.shape) - 1) / 2)
    origin = middle - turned @ (steps * (np.array(shape[::-1]) - 1) / 2 * (1, 1, -1))
    k, j, i = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    positions = origin + np.stack([i, j, -k], axis=-1) * steps @ turned.T
    slope = np.array([0.08, 0.11, -0.1])
    with edited(damaged_set / "RTDOSE.dcm") as ds:
        ds.ImagePositionPatient = [f"{v:.6f}" for v in origin]
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in (*turned[:, 0], *turned[:, 1])]
        ds.PixelSpacing, ds.NumberOfFrames = [steps[1], steps[0]], shape[0]
        ds.Rows, ds.Columns = shape[1:]
        ds.GridFrameOffsetVector = [-steps[2] * n for n in range(shape[0])]
        ds.DoseGridScaling = "0.001"
        gy = np.maximum(60 + (positions - middle) @ slope, 0)
        ds.PixelData = np.round(gy / 0.001).astype("<u4").tobytes()
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 32, 32, 31
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in ct.shape], indexing="ij"), axis=-1)
    wanted = 60 + (ct.to_lps_mm(indices) - middle) @ slope
    assert wanted.min() > 20
    np.testing.assert_allclose(dose_of(read_patient(damaged_set)), wanted, atol=0.002)
