"""DICOM-RT of others: a clinical case with its planning system's DVHs, and sets made by plastimatch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib.cli import main
from RTDigitalTwinLib.dosimetry.dvh import StructureDose
from RTDigitalTwinLib.patient.dicom_ct import read_ct
from RTDigitalTwinLib.patient.dicom_dose import DicomDose, read_dose
from RTDigitalTwinLib.patient.dicom_index import RTDOSE, RTPLAN, RTSTRUCT, index_folder
from RTDigitalTwinLib.patient.dicom_plan import read_plan
from RTDigitalTwinLib.patient.dicom_structures import Roi, occupancies, read_rois, roi_structure
from RTDigitalTwinLib.patient.overrides import Overrides

SHARED_VARIABLE = "RTDT_SHARED"
SHARED_FOLDER = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="module")
def breast() -> Path:
    """A clinical breast case (dicompyler-core's test data); skipped where it is not at hand."""
    folder = Path(os.environ.get(SHARED_VARIABLE) or SHARED_FOLDER) / "dicom-rt" / "breast"
    if not (folder / "rtdose.dcm").is_file():
        pytest.skip(f"the clinical breast case was not found: set {SHARED_VARIABLE} to the folder of dicom-rt/breast")
    return folder


def test_the_clinical_case_is_inspected(breast: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(breast)]) == 1  # of the CT it has one slice
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "The CT series has 1 slice; a volume needs two or more.",
        "PLAN: up to 14.7 Gy; 194 x 129 x 98 voxels of 2.5 x 2.5 x 3 mm, axes LPS",
        "14 Gy to targets in 7 fractions, 4 fixed coplanar fields, UNAPPROVED",
        "BODY = External: exact (of type EXTERNAL)",
        "Tumor Bed Block: planning helper",
    ):
        assert text in said, said
    for secret in ("123456", "boost"):
        assert secret not in said


@pytest.fixture(scope="module")
def case(breast: Path) -> tuple[DicomDose, dict[int, Roi], list[pydicom.Dataset]]:
    patient = index_folder(breast).patient()
    (dose,), (structures,) = patient.of_kind(RTDOSE), patient.of_kind(RTSTRUCT)
    embedded = pydicom.dcmread(breast / "rtdose.dcm").DVHSequence
    return read_dose(dose), {roi.number: roi for roi in read_rois(structures)}, list(embedded)


def test_its_plan(breast: Path) -> None:
    (file,) = index_folder(breast).patient().of_kind(RTPLAN)
    plan = read_plan(file)
    assert (plan.fractions, plan.site_doses_gy, plan.gantry_angles_deg) == (7, (14.0,), (0.0, 56.0, 150.0, 327.0))


@pytest.mark.parametrize("name", ["Breast", "Heart", "Lt Lung", "Tumor Bed", "Tumor Bed Block"])
def test_dvhs_are_the_planning_systems(
    case: tuple[DicomDose, dict[int, Roi], list[pydicom.Dataset]], name: str
) -> None:
    """Volume within 3 %, mean dose within 1 %, curves within half a percent of the volume on average.

    The planning system samples structures in its own way. Single bins of 0.01 Gy of a steep curve differ by more, and
    structures below 2 cc by up to half of their volume.
    """
    dose, rois, embedded = case
    (number,) = (n for n, roi in rois.items() if roi.name == name)
    (theirs,) = (d for d in embedded if d.DVHReferencedROISequence[0].ReferencedROINumber == number)
    grid = dose.dose.grid
    structure = roi_structure(rois[number], grid, {})
    inside = structure.box_occupancy > 0
    doses = dose.dose.values[structure.box][inside][None].astype(np.float32)
    ours = StructureDose(doses, structure.box_occupancy[inside], grid.voxel_volume_mm3 / 1000)
    widths, volumes = np.array(theirs.DVHData, float).reshape(-1, 2).T
    assert ours.volume_cc == pytest.approx(volumes[0], rel=0.03)
    # The curve's area is the mean dose; the file's own DVHMeanDose is in percent of 14 Gy, whatever its unit says.
    mean_gy = float((widths * volumes).sum() / volumes[0])
    assert mean_gy == pytest.approx(float(theirs.DVHMeanDose) * 0.14, rel=0.01)
    assert float(ours.mean_gy()[0]) == pytest.approx(mean_gy, rel=0.01)
    curve = ours.volume_at_dose_ratio(np.cumsum(widths) - widths)[0]
    assert np.abs(curve - volumes / volumes[0]).mean() < 0.005


@pytest.mark.parametrize(
    "pattern",
    [
        ["sphere", "--radius", "30 20 25", "--center", "10 -5 0"],
        ["rect", "--rect-size", "-31 29 -20 25 -24 21"],
        ["donut", "--donut-radius", "50 50 20", "--donut-rings", "2"],
        ["multi-sphere"],
    ],
)
def test_sets_of_plastimatch(pattern: list[str], tmp_path: Path) -> None:
    if shutil.which("plastimatch") is None:
        pytest.skip("plastimatch is not installed")
    made = ["plastimatch", "synth", "--pattern", *pattern, "--dim", "96 90 40", "--spacing", "2 2 3", "--origin",
            "-95 -89 -58.5", "--background", "-1000", "--foreground", "30"]  # fmt: skip
    subprocess.run([*made, "--output-dicom", str(tmp_path / "dicom")], check=True, capture_output=True)
    masks = ["plastimatch", "convert", "--input", str(tmp_path / "dicom"), "--output-prefix", str(tmp_path / "masks"),
             "--prefix-format", "mha"]  # fmt: skip
    subprocess.run(masks, check=True, capture_output=True)
    patient = index_folder(tmp_path / "dicom").patient()
    (series,) = patient.ct_series.values()
    ct = read_ct(series, Overrides(), [])
    (file,) = patient.of_kind(RTSTRUCT)
    rois = read_rois(file)
    drawn = occupancies(rois, ct.grid, {})
    assert drawn
    truth = ct.values > -485
    for roi in rois:
        mask = drawn[roi.number].mask
        assert 2 * (truth & mask).sum() / (truth.sum() + mask.sum()) > 0.97, roi.name
        if pattern[0] == "donut":
            continue  # plastimatch draws over the holes of its own keyhole contours
        image = sitk.ReadImage(str(tmp_path / "masks" / f"{roi.name.replace(' ', '_')}.mha"))
        theirs = sitk.GetArrayFromImage(image) > 0
        assert image.GetOrigin() == pytest.approx(ct.grid.origin_mm, abs=1e-3)
        dice = 2 * (theirs & mask).sum() / (theirs.sum() + mask.sum())
        assert dice > 0.97, (roi.name, dice)
