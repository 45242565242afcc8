"""Patients that several tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.weights import save_weights
from RTDigitalTwinLib.patient import openkbp
from RTDigitalTwinLib.patient.grid import Box
from RTDigitalTwinLib.patient.patient import Image, Patient
from RTDigitalTwinLib.patient.plan import Prescription
from RTDigitalTwinLib.patient.structure import Structure, StructureKind
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from RTDigitalTwinLib.solver.calibration_file import StoredCalibration, calibration_path, save_calibration
from Testing.builders import FINE, hand_made_calibration
from Testing.dicom_sets import NAMES, PLANTED, edited, set_identity, small_set

SHARED_VARIABLE = "RTDT_OPENKBP"
SHARED_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "openkbp"
SHARED_PATIENTS = ("pt_201", "pt_210", "pt_220")


@pytest.fixture(scope="session")
def sample() -> Patient:
    """The built-in sample patient."""
    return Patient.sample(seed=0)


def blurred_target_dose(patient: Patient) -> Volume:
    """A dose to test with: the prescription in the targets, blurred by 8 mm, in the mask, and scatter of 1 Gy."""
    gy = np.zeros(patient.ct.grid.shape, np.float32)
    for name, level in patient.plan.prescription.target_dose_gy:
        gy = np.maximum(gy, level * patient.structures[name].occupancy)
    image = sitk.GetImageFromArray(gy)
    image.SetSpacing(patient.ct.grid.spacing_mm)
    blurred = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, 64.0))
    return Volume(
        np.where(patient.dose_mask.mask, np.maximum(blurred, 1.0), 0).astype(np.float32),
        patient.ct.grid,
        Quantity.DOSE_GY,
    )


def cropped(patient: Patient, box: Box) -> Patient:
    """A patient on a part of its grid, without what lies outside of it."""
    grid = patient.ct.grid.cropped(box)

    def cut(structure: Structure) -> Structure:
        return Structure.from_array(structure.name, structure.occupancy[box], grid, structure.kind)

    return replace(
        patient,
        images=(Image("CT", Volume(patient.ct.values[box], grid, patient.ct.quantity)),),
        structures={name: cut(s) for name, s in patient.structures.items() if s.occupancy[box].any()},
        dose_mask=cut(patient.dose_mask),
    )


@pytest.fixture(scope="session")
def sample_folder(sample: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample patient in the OpenKBP layout, with a dose to test with. Read only: copy before changing it."""
    folder = tmp_path_factory.mktemp("openkbp") / "pt_1"
    openkbp.write_patient(sample, folder)
    openkbp.write_dose(blurred_target_dose(sample), folder / "dose.csv")
    return folder


@pytest.fixture
def damaged_folder(sample_folder: Path, tmp_path: Path) -> Path:
    """A copy of the sample folder to damage."""
    return Path(shutil.copytree(sample_folder, tmp_path / "pt_1"))


@pytest.fixture(scope="session")
def dicom_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Patient]:
    """A small patient as a DICOM-RT set, and as it was before. Read only: copy before changing it."""
    folder = tmp_path_factory.mktemp("dicom") / "set"
    return folder, small_set(folder)


@pytest.fixture
def damaged_set(dicom_set: tuple[Path, Patient], tmp_path: Path) -> Path:
    """A copy of the DICOM-RT set to damage."""
    return Path(shutil.copytree(dicom_set[0], tmp_path / "set"))


@pytest.fixture(scope="session")
def shared_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three public validation patients; skipped, with the reason, where the data are not at hand."""
    data = Path(os.environ.get(SHARED_VARIABLE) or SHARED_FOLDER)
    out = tmp_path_factory.mktemp("shared") / "validation-pats"
    if holds_packed(data, "unpack.py"):
        command = [sys.executable, str(data / "unpack.py"), str(out.parent), "--split", "validation"]
        subprocess.run([*command, "--patients", *SHARED_PATIENTS], check=True)
        return out
    for folder in (data / "validation-pats", data):
        found = [path for path in sorted(folder.glob("pt_*")) if openkbp.recognises(path)]
        if found:
            out.mkdir()
            same = [path for path in found if path.name in SHARED_PATIENTS]
            for path in (same or found)[: len(SHARED_PATIENTS)]:
                (out / path.name).symlink_to(path.resolve())
            return out
    pytest.skip(f"public OpenKBP patients not found: set {SHARED_VARIABLE} to a folder with validation-pats")


@pytest.fixture(scope="session")
def independent_scores() -> Path:
    """Folder with packed patients and the score.py that reads them; skipped where there is none."""
    for folder in (Path(os.environ.get(SHARED_VARIABLE) or SHARED_FOLDER), SHARED_FOLDER):
        if holds_packed(folder, "score.py"):
            return folder
    pytest.skip("the independent score.py, which lies beside packed OpenKBP patients, is not at hand")


def holds_packed(folder: Path, script: str) -> bool:
    """Whether a folder holds packed OpenKBP patients and a script of theirs."""
    return (folder / script).is_file() and any(folder.glob("validation-pats/pt_*.npz"))


@pytest.fixture
def two_patients(sample: Patient, tmp_path: Path) -> Path:
    """Folder of two patients with small masks, quick to train on."""
    target = sample.structures["PTV_7000"]
    inside = np.zeros(target.mask.shape, bool)
    inside[target.box] = True
    mask = Structure.from_array(sample.dose_mask.name, inside, sample.ct.grid, StructureKind.REGION)
    small = replace(sample, structures={"PTV_7000": target}, dose_mask=mask)
    plan = replace(small.plan, prescription=Prescription((("PTV_7000", 70.0),), 35))
    dose = blurred_target_dose(replace(small, plans=(plan,)))
    for name in ("pt_1", "pt_2"):
        openkbp.write_patient(small, tmp_path / "data" / name)
        openkbp.write_dose(dose, tmp_path / "data" / name / "dose.csv")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def narrow_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network, quick to run, whose bands are said to be calibrated."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    sha = save_weights(DoseUNet(NetworkConfiguration(widths=(8, 8, 16, 16, 32), dropout_ratio=0.3)), path, {})
    save_calibration(StoredCalibration(hand_made_calibration(), {}), calibration_path(path), sha)
    return path


@pytest.fixture(scope="session")
def target_folder(sample: Patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample patient's target alone, with a mask around it and a dose: quick to predict. Read only."""
    target = sample.structures["PTV_7000"]
    inside = np.zeros(target.mask.shape, bool)
    inside[target.box] = True
    mask = Structure.from_array(sample.dose_mask.name, inside, sample.ct.grid, StructureKind.REGION)
    plan = replace(sample.plan, prescription=Prescription((("PTV_7000", 70.0),), 35))
    small = replace(sample, structures={"PTV_7000": target}, dose_mask=mask, plans=(plan,))
    folder = tmp_path_factory.mktemp("source") / "pt_1"
    openkbp.write_patient(small, folder)
    openkbp.write_dose(blurred_target_dose(small), folder / "dose.csv")
    return folder


@pytest.fixture(scope="session")
def clinical_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine scan of a named patient with Spanish structures, in a folder that bears the name."""
    folder = tmp_path_factory.mktemp("clinic") / "Longstocking"
    small_set(folder, FINE)
    set_identity(folder, PLANTED)
    with edited(folder / "RTSTRUCT.dcm") as ds:
        for roi in ds.StructureSetROISequence:
            roi.ROIName = NAMES.get(roi.ROIName, roi.ROIName)
    return folder


# Of tests that walk through the module's window, one application a file.


@pytest.fixture(scope="module")
def host() -> Iterator[Any]:
    """A running application to load the module in."""
    from Testing.host.fixtures import running_application

    with running_application() as running:
        yield running


@pytest.fixture(scope="module")
def module(host: Any) -> Any:
    """The module with its window."""
    return host.load_module()


@pytest.fixture
def nothing_goes_unseen(host: Any) -> Iterator[None]:
    """No exception left a slot, and no box was shown that the test did not expect."""
    host.dialogs.messages.clear()
    yield
    assert host.uncaught == []


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the tests of a file share."""
    return tmp_path_factory.mktemp("kept")
