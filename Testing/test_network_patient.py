"""A clinical patient as the network sees it: resampling, disjoint targets, prescriptions, where dose can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from RTDigitalTwinLib.errors import GeometryError, PatientDataError
from RTDigitalTwinLib.model.network_patient import network_grid, network_patient, scaled_names
from RTDigitalTwinLib.patient.averaging import Averaging, aligned_grid
from RTDigitalTwinLib.patient.dicom_patient import DicomChoice, read_patient
from RTDigitalTwinLib.patient.dose_region import body_and_couch, body_of, couch_note, dose_region
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.plan import Plan, Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.report.dose_review import overlaps
from RTDigitalTwinLib.run import on_ct
from Testing.builders import FINE, FRAME, GRIDS, axial_grid, ball, small_patient
from Testing.dicom_sets import dose_of, edit_all, edited


def prescribed(patient: Patient, levels: dict[str, float], fractions: int) -> Patient:
    return replace(patient, plans=(Plan(Prescription(tuple(levels.items()), fractions)),))


# Resampling


def test_a_patient_like_the_training_data_passes_unchanged(sample: Patient) -> None:
    for patient in (small_patient(), sample):
        prepared = network_patient(patient)
        assert prepared.seen is patient and prepared.shown is patient and not prepared.is_extrapolated


@pytest.mark.parametrize("turned", [False, True])
def test_averages_keep_volumes_and_means_on_any_order_of_axes(turned: bool) -> None:
    grid = GRIDS["sagittal"]() if turned else FINE
    target = aligned_grid(grid, (8.0, 8.0, 5.0))
    mask = ball(grid, (10, -6, 3), (30, 24, 28))
    structure = Structure.from_array("Ball", mask, grid)
    averaging = Averaging(grid, target)
    moved = averaging.structure(structure)
    assert moved.volume_cc == pytest.approx(structure.volume_cc, rel=1e-5)
    assert moved.centroid_mm == pytest.approx(structure.centroid_mm, abs=0.1)
    values = np.random.default_rng(1).normal(40, 20, grid.shape)
    averaged = averaging.values(values, 0.0)
    total_before, total_after = values.sum() * grid.voxel_volume_mm3, averaged.sum() * target.voxel_volume_mm3
    assert total_after == pytest.approx(total_before, rel=1e-5)


def test_a_linear_ramp_stays_one_when_slices_get_finer() -> None:
    target = aligned_grid(FINE, (4.0, 4.0, 2.5))
    ramp = np.broadcast_to(np.arange(24.0)[:, None, None], FINE.shape)
    moved = Averaging(FINE, target).values(ramp, 0.0)
    z = target.origin_mm[2] + 2.5 * np.arange(target.shape[0])
    np.testing.assert_allclose(moved[1:-1, 5, 5], ((z - FINE.origin_mm[2]) / 5.0)[1:-1], atol=1e-4)


def test_beyond_the_source_lies_air() -> None:
    target = replace(FINE, origin_mm=(-500.0, -71.0, -57.5))
    moved = Averaging(FINE, target).values(np.full(FINE.shape, 30.0), -1000.0)
    assert moved[0, 0, 0] == pytest.approx(-1000)


def test_an_oblique_scan_is_straightened() -> None:
    patient = small_patient(GRIDS["oblique"]())
    prepared = network_patient(patient)
    assert np.allclose(np.reshape(prepared.seen.ct.grid.direction, (3, 3)), np.eye(3))
    for name, structure in patient.structures.items():
        moved = prepared.seen.structures[name]
        assert moved.volume_cc == pytest.approx(structure.volume_cc, rel=0.03), name
        assert moved.centroid_mm == pytest.approx(structure.centroid_mm, abs=0.5)
    with pytest.raises(GeometryError, match="along LPS"):
        Averaging(patient.ct.grid, patient.ct.grid)


def test_a_fine_scan_is_averaged_and_that_is_told() -> None:
    patient = small_patient(FINE)
    prepared = network_patient(patient)
    grid = prepared.shown.ct.grid
    assert grid.spacing_mm == (3.90625, 3.90625, 5.0) and grid.frame_of_reference == FRAME
    assert prepared.shown.warnings[-1].startswith("Predicted on 41 x 37 x 24 voxels of 3.91 x 3.91 x 5.00 mm")
    for name, structure in patient.structures.items():
        assert prepared.shown.structures[name].volume_cc == pytest.approx(structure.volume_cc, rel=1e-3)
    assert set(np.unique(prepared.shown.dose_mask.box_occupancy)) <= {0.0, 1.0}
    total = [dose_of(p).sum() * p.ct.grid.voxel_volume_mm3 for p in (patient, prepared.shown)]
    assert total[1] == pytest.approx(total[0], rel=1e-3)


@pytest.mark.parametrize("grid", [None, FINE], ids=["as it is", "averaged"])
def test_an_unknown_dose_stays_unknown(grid: Grid | None) -> None:
    patient = small_patient(grid)
    gy = dose_of(patient).copy()
    gy[:, :, :7] = np.nan
    plan = replace(patient.plan, dose=Volume(gy, patient.ct.grid, Quantity.DOSE_GY))
    shown, whole = (network_patient(p).shown for p in (replace(patient, plans=(plan,)), patient))
    known = np.isfinite(dose_of(shown))
    np.testing.assert_allclose(dose_of(shown)[known], dose_of(whole)[known], atol=1e-4)
    lost = 7 if grid is None else 4  # of 3.9 mm, the last one by half
    assert known[:, :, lost:].all() and not known[:, :, :lost].any()


def test_a_dose_mask_too_small_for_the_coarse_voxels_is_refused() -> None:
    patient = small_patient(FINE)
    speck = np.zeros(FINE.shape, bool)
    speck[12, 40, 40] = True
    mask = Structure.from_array("FeasibleDose", speck, FINE, StructureKind.REGION)
    with pytest.raises(GeometryError, match="FeasibleDose: .*half"):
        network_patient(replace(patient, dose_mask=mask))


def test_thick_slices_of_a_fine_scan_are_interpolated() -> None:
    grid = network_grid(Grid((40, 512, 512), (0.98, 0.98, 10.0)))
    assert grid.spacing_mm == (3.90625, 3.90625, 2.5) and grid.shape == (160, 129, 129)


def test_the_way_back_costs_little_where_dose_is_smooth() -> None:
    """Error of averaging to the network's grid and interpolating back, for a dose of the small patient."""
    patient = small_patient(FINE)
    shown = network_patient(patient).shown
    back = on_ct(Volume(dose_of(shown), shown.ct.grid, Quantity.DOSE_GY), FINE).values
    inside = patient.structures["PTV_7000"].mask
    assert np.abs(back - dose_of(patient))[inside].mean() < 0.5
    assert np.isfinite(back).all()


# Nested targets


def nested(grid: Grid | None = None) -> Patient:
    patient = small_patient(grid, with_dose=False)
    grid = patient.ct.grid
    wide = Structure.from_array("PTV_5600", ball(grid, (18, -12, 2), (28, 28, 30)), grid, StructureKind.TARGET)
    patient = replace(patient, structures={**patient.structures, "PTV_5600": wide})
    return prescribed(patient, {"PTV_5600": 56.0, "PTV_7000": 70.0}, 35)


def test_nested_targets_are_made_disjoint_and_the_higher_wins() -> None:
    patient = nested()
    shown = network_patient(patient).shown
    high, low = shown.structures["PTV_7000"], shown.structures["PTV_5600"]
    assert high is patient.structures["PTV_7000"]
    np.testing.assert_array_equal(low.mask, patient.structures["PTV_5600"].mask & ~high.mask)
    (note,) = shown.warnings
    share = 100 * high.volume_cc / patient.structures["PTV_5600"].volume_cc
    assert note == f"PTV_5600: {high.volume_cc:.1f} cc ({share:.0f} % of it) lie in targets of higher dose and " \
                   f"count there, as in the training data: {low.volume_cc:.1f} of " \
                   f"{patient.structures['PTV_5600'].volume_cc:.1f} cc are left."  # fmt: skip


def test_a_review_and_a_prediction_tell_the_same_overlap() -> None:
    """A voxel of a common border is in both targets in part, and no overlap as long as the parts fill it at most."""
    grid = axial_grid()
    high, low = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    high[8:14, 10:20, 10:15], low[8:14, 10:20, 16:25] = 1, 1
    high[8:14, 10:20, 15], low[8:14, 10:20, 15] = 0.4, 0.6
    low[8, 10:20, 10:15] = 1
    targets = {
        name: Structure.from_array(name, part, grid, StructureKind.TARGET)
        for name, part in (("PTV_5600", low), ("PTV_7000", high))
    }
    shared_cc = 50 * grid.voxel_volume_mm3 / 1000  # of one slice
    assert targets["PTV_5600"].shared_cc(targets["PTV_7000"]) == pytest.approx(shared_cc, rel=1e-5)
    patient = small_patient(with_dose=False)
    patient = replace(patient, structures={**patient.structures, **targets})
    both = prescribed(patient, levels := {"PTV_5600": 56.0, "PTV_7000": 70.0}, 35)
    percent = f"{100 * shared_cc / targets['PTV_5600'].volume_cc:.0f} %"
    (reviewed,) = overlaps(both, levels)
    predicted = network_patient(both).shown.warnings[0]
    assert f"{shared_cc:.1f} cc ({percent} of PTV_5600)" in reviewed
    assert f"PTV_5600: {shared_cc:.1f} cc ({percent} of it)" in predicted


def test_targets_that_only_touch_stay_as_they_are(sample: Patient) -> None:
    assert network_patient(sample).shown is sample  # partial voxels shared along the borders


def test_neighbours_keep_the_voxels_they_share() -> None:
    """Partial voxels along a common border, on a fine grid: nothing is lost by averaging."""
    patient = small_patient(FINE, with_dose=False)
    left, right = np.zeros(FINE.shape, np.float32), np.zeros(FINE.shape, np.float32)
    left[8:14, 20:40, 30:40], right[8:14, 20:40, 41:50] = 1, 1
    left[8:14, 20:40, 40], right[8:14, 20:40, 40] = 0.4, 0.6
    targets = {
        name: Structure.from_array(name, part, FINE, StructureKind.TARGET)
        for name, part in (("PTV_5600", left), ("PTV_7000", right))
    }
    with_targets = replace(patient, structures={**patient.structures, **targets})
    both = prescribed(with_targets, {"PTV_5600": 56.0, "PTV_7000": 70.0}, 35)
    shown = network_patient(both).shown
    for name, target in targets.items():
        assert shown.structures[name].volume_cc == pytest.approx(target.volume_cc, rel=1e-5)


def test_neighbours_that_overlap_elsewhere_keep_the_voxels_they_share() -> None:
    grid = axial_grid()
    high, low = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    high[8:14, 10:20, 10:15], low[8:14, 10:20, 16:25] = 1, 1
    high[8:14, 10:20, 15], low[8:14, 10:20, 15] = 0.4, 0.6
    low[8, 10:20, 10:15] = 1  # drawn over the higher one in one slice
    targets = {
        name: Structure.from_array(name, part, grid, StructureKind.TARGET)
        for name, part in (("PTV_5600", low), ("PTV_7000", high))
    }
    patient = small_patient(with_dose=False)
    patient = replace(patient, structures={**patient.structures, **targets})
    shown = network_patient(prescribed(patient, {"PTV_5600": 56.0, "PTV_7000": 70.0}, 35)).shown
    low[8, 10:20, 10:15] = 0
    np.testing.assert_allclose(shown.structures["PTV_5600"].occupancy, low, atol=1e-6)
    np.testing.assert_array_equal(shown.structures["PTV_7000"].occupancy, high)


def test_a_target_wholly_inside_a_higher_one_is_refused() -> None:
    patient = nested()
    swapped = prescribed(patient, {"PTV_7000": 56.0, "PTV_5600": 70.0}, 35)
    with pytest.raises(PatientDataError, match="PTV_7000: The target lies inside those of higher dose"):
        network_patient(swapped)


# Prescriptions


@pytest.mark.parametrize(
    ("levels", "fractions", "names"),
    [
        ((70,), 35, None),
        ((70, 63, 56), 35, None),
        ((63, 56), 35, None),
        ((70, 56), 33, {"PTV_7000": "PTV_7000", "PTV_5600": "PTV_5600"}),
        ((66, 60, 54), 33, {"PTV_6600": "PTV_7000", "PTV_6000": "PTV_6300", "PTV_5400": "PTV_5600"}),
        ((69.96, 59.4, 54), 33, {"PTV_6996": "PTV_7000", "PTV_5940": "PTV_6300", "PTV_5400": "PTV_5600"}),
        ((60, 54), 30, {"PTV_6000": "PTV_7000", "PTV_5400": "PTV_6300"}),
    ],
)
def test_levels_for_the_network(levels: tuple[float, ...], fractions: int, names: dict[str, str] | None) -> None:
    given = tuple((f"PTV_{round(100 * gy):04d}", gy) for gy in levels)
    assert scaled_names(Prescription(given, fractions)) == names


@pytest.mark.parametrize(
    ("levels", "fractions", "message"),
    [
        ((30,), 10, "30 Gy in 10 fractions is too far"),
        ((70,), 20, "70 Gy in 20 fractions is too far"),
        ((80,), 40, "80 Gy in 40 fractions is too far"),
        ((70, 45), 34, r"PTV_7000, PTV_4500: 70, 45 Gy.*do not each lie within 4 Gy"),
        ((66, 60, 59), 33, r"66, 60, 59 Gy, 70\.0, 63\.6, 62\.6 Gy when"),
    ],
)
def test_prescriptions_too_far_are_refused(levels: tuple[float, ...], fractions: int, message: str) -> None:
    given = tuple((f"PTV_{round(100 * gy):04d}", gy) for gy in levels)
    with pytest.raises(PatientDataError, match=message):
        scaled_names(Prescription(given, fractions))


def test_a_scaled_prescription_keeps_the_patients_own_names() -> None:
    patient = small_patient()
    target = replace(patient.structures["PTV_7000"], name="PTV_6600")
    structures = {name: s for name, s in patient.structures.items() if name != "PTV_7000"}
    bare = replace(patient, structures={**structures, "PTV_6600": target}, plans=())
    clinical = prescribed(bare, {"PTV_6600": 66.0}, 33)
    prepared = network_patient(clinical)
    assert prepared.is_extrapolated and prepared.dose_factor == pytest.approx(66 / 70)
    assert "PTV_7000" in prepared.seen.structures and "PTV_6600" not in prepared.seen.structures
    assert prepared.seen.plan.prescription == Prescription((("PTV_7000", 70.0),), 35)
    assert prepared.shown.plan.prescription == clinical.plan.prescription and "PTV_6600" in prepared.shown.structures
    assert prepared.shown.warnings[-1].startswith("Extrapolation: 66 Gy in 33 fractions")


# Body and feasible-dose region


def test_the_body_is_found_without_the_couch() -> None:
    patient = small_patient()
    grid = patient.ct.grid
    hu = patient.ct.values.copy()
    hu[:, 34:, :] = 100  # a couch apart from the body
    hu[:, 33, :] = -1000
    airway = ball(grid, (0, -20, 0), (8, 8, 200))
    hu[airway] = -1000
    body = body_of(Volume(hu, grid, Quantity.HU)).mask
    assert not body[:, 34:].any() and body[airway].all()
    drawn = ball(grid, (0, 0, 0), (66, 58, 200))
    drawn[:, 33:] = False
    assert 2 * (body & drawn).sum() / (body.sum() + drawn.sum()) > 0.98


def test_a_couch_that_touches_the_patient_is_told_of(damaged_set: Path) -> None:
    """A thick one is taken for body where there is no outline; an outline that is confirmed leaves it out."""
    with edited(damaged_set / "RTSTRUCT.dcm") as ds:
        next(roi for roi in ds.StructureSetROISequence if roi.ROIName == "FeasibleDose").ROIName = "Patient outline"

    def lay_on_couch(ds: Dataset, _: int) -> None:
        pixels = ds.pixel_array.copy()
        pixels[32:36, :] = 100
        ds.PixelData = pixels.tobytes()

    edit_all(damaged_set, "CT*", lay_on_couch)
    guessed = read_patient(damaged_set, DicomChoice(names={"Patient outline": ""}))
    (told,) = (text for text in guessed.warnings if text.startswith("There is no outline of the body"))
    assert "a couch, mask or cushion that touches the patient counts as body" in told and "External" in told
    drawn = read_patient(damaged_set, DicomChoice(names={"Patient outline": "External"}))
    assert guessed.dose_mask.mask[:, 33, :5].any() and not drawn.dose_mask.mask[:, 33, :5].any()
    assert not any("outline of the body" in text for text in drawn.warnings)


@pytest.mark.parametrize("is_box", [False, True])
def test_a_couch_of_thin_walls_is_taken_off_the_sample(sample: Patient, is_box: bool) -> None:
    """Its top alone, or its shell all around of which filling the holes would make a block."""
    alone, nothing = body_and_couch(sample.ct)
    assert nothing == 0
    back = int(np.flatnonzero(alone.mask.any(axis=(0, 2)))[-1])
    couch = np.zeros(sample.ct.grid.shape, bool)
    couch[:, back, 3:-3] = True
    if is_box:
        couch[:, back : back + 12, [3, -4]] = couch[:, back + 12, 3:-3] = True
    hu = np.where(couch & ~alone.mask, 100, sample.ct.values)
    body, couch_cc = body_and_couch(Volume(hu, sample.ct.grid, Quantity.HU))
    cc = sample.ct.grid.voxel_volume_mm3 / 1000
    assert couch_cc > (7000 if is_box else 400) and f"{couch_cc:.0f} cc of thin walls" in couch_note(couch_cc)
    assert (body.mask & ~alone.mask).sum() * cc < 150 and (alone.mask & ~body.mask).sum() * cc < 60


@pytest.mark.parametrize("name", ["axial", "sagittal"])
def test_the_region_ends_at_its_margins_from_the_targets(name: str) -> None:
    grid = GRIDS[name]()
    tall: NDArray[np.bool_] = ball(grid, (0, 0, 0), (60, 60, 500))
    body = Structure.from_array("External", tall, grid, StructureKind.REGION)
    target = Structure.from_array("PTV_7000", ball(grid, (0, 0, 0), (12, 12, 12)), grid, StructureKind.TARGET)
    region = dose_region(body, [target])

    def heights(structure: Structure) -> tuple[float, float]:
        z = grid.to_lps_mm(np.argwhere(structure.mask))[:, 2]
        return float(z.min()), float(z.max())

    low, high = heights(target)
    step = 5.0
    assert heights(region)[0] == pytest.approx(low - 30, abs=step / 2)
    assert heights(region)[1] == pytest.approx(high + 20, abs=step / 2)


def test_an_empty_scan_has_no_body() -> None:
    grid = axial_grid()
    with pytest.raises(PatientDataError, match="No body"):
        body_of(Volume(np.full(grid.shape, -1000, np.int16), grid, Quantity.HU))


def test_the_body_rule_on_public_patients(shared_patients: Path) -> None:
    """Between their targets' ends OpenKBP's masks are bodies: 0.97 to 0.999 (10th to 90th percentile of 50) overlap.

    Beyond the masks their CT is blank, so that nothing can be said of the margins here.
    """
    for folder in sorted(shared_patients.iterdir()):
        patient = Patient.load(folder)
        heights = np.any([t.mask.any(axis=(1, 2)) for t in patient.targets.values()], axis=0)
        body, mask = body_of(patient.ct).mask[heights], patient.dose_mask.mask[heights]
        assert 2 * (body & mask).sum() / (body.sum() + mask.sum()) > 0.95, patient.pseudonym
