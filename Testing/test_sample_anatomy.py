"""The built-in sample patient: deterministic, rightly oriented, and like the patients the network was trained on.

Ranges marked "OpenKBP" are the rounded 10th to 90th percentiles measured over 70 public training patients (Babier et
al., Medical Physics 48, 5549, 2021), on voxel masks; only these summary figures are kept.
"""

from __future__ import annotations

import numpy as np
import pytest

from RTDigitalTwinLib.patient import naming
from RTDigitalTwinLib.patient.anatomy_check import check_orientation
from RTDigitalTwinLib.patient.anatomy_shapes import AnatomyFrame, ellipsoid, tube
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.patient.sample_anatomy import sample_patient
from RTDigitalTwinLib.patient.structure import StructureKind
from RTDigitalTwinLib.patient.volume import Quantity

SEEDS = (0, 1, 2)

VOLUME_CC = {  # OpenKBP
    "Brainstem": (11.9, 33.0),
    "SpinalCord": (15.7, 38.2),
    "Parotid_L": (13.4, 39.2),
    "Parotid_R": (16.4, 41.3),
    "Esophagus": (7.4, 18.2),
    "Larynx": (7.8, 37.8),
    "Bone_Mandible": (42.2, 81.4),
    "PTV_5600": (102, 588),
    "PTV_6300": (6, 348),
    "PTV_7000": (113, 558),
}
FROM_BRAINSTEM_MM = {  # OpenKBP, centroid minus the brainstem's, (x, y, z) ranges in LPS
    "Parotid_L": ((52, 65), (-34.1, -16.5), (-52, -22)),
    "Parotid_R": ((-65, -52), (-33.5, -17.3), (-51, -23)),
    "Bone_Mandible": ((-4.3, 4.5), (-83.5, -55.3), (-70, -35)),
    "SpinalCord": ((-3.5, 3.6), (5.7, 32.8), (-153, -102)),
    "Larynx": ((-3.2, 4.4), (-52.7, -21.5), (-138, -92)),
    "Esophagus": ((-4, 8), (-14.2, 22.2), (-208, -153)),
    "PTV_7000": ((-30.5, 32.4), (-55.6, -17.8), (-105.5, -41.3)),
}


@pytest.fixture(scope="module", params=SEEDS)
def patient(request) -> Patient:
    return sample_patient(request.param)


def test_same_seed_gives_the_same_patient_to_the_bit():
    np.random.seed(1)  # global random state must not matter
    first = sample_patient(4)
    np.random.seed(2)
    second = Patient.sample(4)
    assert first.pseudonym == second.pseudonym == "sample-4"
    np.testing.assert_array_equal(first.ct.values, second.ct.values)
    np.testing.assert_array_equal(first.dose_mask.mask, second.dose_mask.mask)
    for name, structure in first.structures.items():
        np.testing.assert_array_equal(structure.occupancy, second.structures[name].occupancy)


def test_seeds_give_different_patients():
    patients = [sample_patient(seed) for seed in range(6)]
    volumes = {round(p.structures["PTV_7000"].volume_cc, 3) for p in patients}
    assert len(volumes) == len(patients)
    sides = {np.sign(p.structures["PTV_7000"].centroid_mm[0] - p.structures["Brainstem"].centroid_mm[0])
             for p in patients}  # fmt: skip
    assert sides == {-1, 1}  # the tumour is on the right in some, on the left in others
    assert (patients[0].ct.values != patients[1].ct.values).mean() > 0.1  # the body alone is a quarter of the grid


def test_grid_is_centred_lps(patient):
    grid = patient.ct.grid
    assert grid.shape == (128, 128, 128)
    np.testing.assert_allclose(np.reshape(grid.direction, (3, 3)), np.eye(3), atol=0)
    np.testing.assert_allclose(grid.to_lps_mm((63.5, 63.5, 63.5)), 0, atol=1e-9)
    assert patient.ct.quantity is Quantity.HU
    assert patient.images[0].modality == "CT"


def test_plan_is_the_nine_field_simultaneous_boost(patient):
    assert patient.plan.prescription.target_dose_gy == naming.TARGET_DOSE_GY
    assert patient.plan.prescription.fractions == 35
    assert patient.plan.gantry_angles_deg == (0, 40, 80, 120, 160, 200, 240, 280, 320)
    assert patient.plan.dose is None
    assert patient.plan.label == "Sample plan"


def test_structures_have_their_names_and_kinds(patient):
    assert set(patient.organs) == set(naming.ORGANS_AT_RISK)
    assert set(patient.targets) == set(naming.TARGETS)
    assert patient.dose_mask.name == naming.DOSE_MASK
    assert patient.dose_mask.kind is StructureKind.REGION


def test_orientation(patient):
    assert check_orientation(patient.structures) == []
    at = {name: structure.centroid_mm for name, structure in patient.structures.items()}
    assert at["Parotid_L"][0] - at["Parotid_R"][0] > 100  # OpenKBP medians: 58 mm to either side
    assert at["Brainstem"][2] - at["Esophagus"][2] > 150
    assert at["SpinalCord"][1] - at["Bone_Mandible"][1] > 60


@pytest.mark.parametrize("name", VOLUME_CC)
def test_volumes_are_those_of_patients(patient, name):
    low, high = VOLUME_CC[name]
    structure = patient.structures[name]
    mask_cc = structure.mask.sum() * structure.grid.voxel_volume_mm3 / 1000
    assert low <= mask_cc <= high
    # Partial volumes and their mask agree; thin curved structures (oesophagus, 3 voxels wide) lose most: 15 %.
    assert structure.volume_cc == pytest.approx(mask_cc, rel=0.15)


@pytest.mark.parametrize("name", FROM_BRAINSTEM_MM)
def test_positions_are_those_of_patients(patient, name):
    offset = np.subtract(patient.structures[name].centroid_mm, patient.structures["Brainstem"].centroid_mm)
    for value, (low, high) in zip(offset, FROM_BRAINSTEM_MM[name], strict=True):
        assert low <= value <= high


def test_targets_are_disjoint_and_inside_the_dose_mask(patient):
    total = sum(target.occupancy for target in patient.targets.values())
    assert total.max() <= 1 + 1e-6  # float32 rounding of differences
    assert sum(target.mask.astype(int) for target in patient.targets.values()).max() == 1
    assert not (total[~patient.dose_mask.mask] > 0).any()


def test_targets_keep_off_cord_and_skin(patient):
    total = sum(target.occupancy for target in patient.targets.values())
    for name in ("SpinalCord", "Brainstem"):
        assert (total[patient.structures[name].occupancy > 0.5] < 0.5).all()
    # Gland cores are spared: OpenKBP's 90th percentile of a parotid inside the targets is 0.32.
    for name in ("Parotid_L", "Parotid_R"):
        gland = patient.structures[name].occupancy
        assert (gland * total).sum() / gland.sum() <= 0.32


def test_dose_mask_is_the_body_around_the_targets(patient):
    mask, slice_mm = patient.dose_mask.mask, patient.ct.grid.spacing_mm[2]
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    targets = np.flatnonzero(np.any([t.mask.any(axis=(1, 2)) for t in patient.targets.values()], axis=0))
    assert 2.5 <= (targets[0] - slices[0]) * slice_mm <= 69  # OpenKBP
    assert 2.5 <= (slices[-1] - targets[-1]) * slice_mm <= 57  # OpenKBP
    assert 51_000 <= mask.sum() <= 203_000  # OpenKBP
    assert 0.03 <= (patient.ct.values[mask] < -400).mean() <= 0.12  # airways and the skin's rim; OpenKBP
    body = patient.ct.values[slices[0] : slices[-1] + 1] > -400
    assert mask[slices[0] : slices[-1] + 1][body].mean() > 0.99


def test_hounsfield_units(patient):
    hu = patient.ct.values
    assert hu.min() == -1024
    assert hu.max() <= 3071
    corners = hu[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == -1024).all()  # air outside the patient, without noise
    inside = hu[patient.dose_mask.mask]
    inside = inside[inside > -400]
    assert -12.5 <= np.median(inside) <= 24  # OpenKBP
    assert 0.19 <= ((inside > -200) & (inside < -30)).mean() <= 0.40  # fat; OpenKBP
    assert 0.45 <= ((inside > -30) & (inside < 150)).mean() <= 0.63  # soft tissue; OpenKBP
    assert 0.08 <= (inside > 250).mean() <= 0.15  # bone; OpenKBP
    assert 1143 <= np.percentile(inside, 99.5) <= 1550  # OpenKBP
    jaw = hu[patient.structures["Bone_Mandible"].mask]
    assert 490 <= np.median(jaw) <= 791  # OpenKBP


def test_noise_level_in_the_brainstem(patient):
    """OpenKBP: the standard deviation over the brainstem's voxels, in HU."""
    assert 9.1 <= patient.ct.values[patient.structures["Brainstem"].mask].std() <= 19.4


def test_organs_lie_inside_the_body(patient):
    grid = patient.ct.grid
    body = patient.ct.values > -400
    for name, organ in patient.organs.items():
        x, y, z = organ.centroid_mm
        s, r, c = np.round(grid.to_index((x, y, z))).astype(int)
        assert body[s, r, : c + 1].any() and body[s, r, c:].any(), name
        flesh = body[organ.mask].mean()
        # The larynx holds its air: OpenKBP's lowest tenth of its voxels is below -770 HU.
        assert flesh > (0.6 if name == "Larynx" else 0.97), name


def test_painted_sphere_has_its_volume():
    """A linear ramp of width e across the surface of a sphere of radius R adds exactly e^2 / (4 R^2) of its volume."""
    grid = Grid((40, 40, 40), (2.0, 2.0, 2.0), (-39.0, -39.0, -39.0))
    frame = AnatomyFrame(grid, np.diag((1.1, 1.0, 1.0)), np.zeros(3), 2.0)
    sphere_cc = frame.full(ellipsoid((0, 0, 0), (10, 10, 10))).sum() * 8 / 1000
    assert sphere_cc == pytest.approx(1.1 * 4 / 3 * np.pi * 1.01, rel=0.002)  # 5 voxels to a radius
    # A capsule's cylinder gains a third of a sphere's share, its ends all of it: 1 % together; 0.5 % for the sampling.
    capsule_cc = frame.full(tube([(0, 0, -15), (0, 0, 15)], [8, 8])).sum() * 8 / 1000
    assert capsule_cc == pytest.approx(1.1 * np.pi * (0.64 * 3 + 4 / 3 * 0.512), rel=0.015)


def test_shapes_combine():
    """Union, intersection and difference of two spheres add up as sets do; a cut's sharp rim blurs (2 %)."""
    frame = AnatomyFrame(Grid((40, 40, 40), (2.0, 2.0, 2.0), (-39.0, -39.0, -39.0)), np.eye(3), np.zeros(3), 2.0)
    a, b = ellipsoid((-5, 0, 0), (12, 12, 12)), ellipsoid((7, 0, 0), (10, 10, 10))
    size = {k: frame.full(s).sum() for k, s in {"a": a, "b": b, "or": a | b, "and": a & b, "minus": a - b}.items()}
    assert size["or"] == pytest.approx(size["a"] + size["b"] - size["and"], rel=1e-3)
    assert size["minus"] == pytest.approx(size["a"] - size["and"], rel=2e-2)
    assert frame.box(ellipsoid((200, 0, 0), (5, 5, 5))) is None
