"""DVHs against those of Eclipse, CERR and SlicerRT for SlicerRT's EclipseProstate test data (MIT licence).

Its structures are planar contours on the dose's slices. The data are found in ../shared/slicerrt-prostate beside the
repository, or in $RTDT_SHARED/slicerrt-prostate; without them the tests are skipped.
"""

from __future__ import annotations

import csv
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, StructureDose
from RTDigitalTwinLib.dosimetry.inside_voxels import structure_dose_of
from RTDigitalTwinLib.patient.grid import Grid
from RTDigitalTwinLib.patient.structure import Structure
from RTDigitalTwinLib.patient.volume import Quantity, Volume
from Testing.contours import occupancy_of_contours

vtk = pytest.importorskip("vtk")
numpy_support = pytest.importorskip("vtk.util.numpy_support")

SHARED = Path(os.environ.get("RTDT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
DATA = SHARED / "slicerrt-prostate"
STRUCTURES = ("BODY", "Bladder", "FemoralHeadLt", "FemoralHeadRT", "PTV", "Rectum")
AGREEING_PERCENT = 97.5  # of bins, as SlicerRT's own tests ask
CRITERION_PERCENT = 1.0  # of the highest dose, and of the structure's volume

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="SlicerRT's EclipseProstate data not found: set RTDT_SHARED")


def plain(name: str) -> str:
    return re.sub(r"[^A-Za-z]", "", name)


@pytest.fixture(scope="module")
def dose() -> Volume:
    image = sitk.ReadImage(str(DATA / "EclipseProstate_Dose.nrrd"))
    columns, rows, slices = image.GetSize()
    grid = Grid((slices, rows, columns), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return Volume(sitk.GetArrayFromImage(image), grid, Quantity.DOSE_GY)


@pytest.fixture(scope="module")
def inside(dose: Volume) -> dict[str, StructureDose]:
    """The dose in every structure, by its name without spaces."""
    found = {}
    for file in sorted((DATA / "EclipseProstate_Structures.seg").glob("*.vtp")):
        reader = vtk.vtkXMLPolyDataReader()
        reader.SetFileName(str(file))
        reader.Update()
        polydata = reader.GetOutput()
        name = plain(polydata.GetFieldData().GetAbstractArray("Segment_Name").GetValue(0))
        occupancy = occupancy_of_contours(contours_of(polydata), dose.grid)
        found[name] = structure_dose_of(dose, Structure.from_array(name, occupancy, dose.grid))
    return found


def contours_of(polydata: Any) -> list[NDArray]:
    """Closed polylines (points, 3), turned from RAS to LPS."""
    points = numpy_support.vtk_to_numpy(polydata.GetPoints().GetData()) * [-1, -1, 1]
    ends = numpy_support.vtk_to_numpy(polydata.GetLines().GetOffsetsArray())
    places = numpy_support.vtk_to_numpy(polydata.GetLines().GetConnectivityArray())
    return [points[places[a:b]] for a, b in pairwise(ends)]


def read_table(system: str) -> dict[str, tuple[NDArray, NDArray, float]]:
    """By structure the doses in Gy, volumes in % and the structure's volume in cc."""
    with (DATA / f"EclipseProstate_DvhTable_{system}.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    curves = {}
    for column in range(0, len(head) - 1, 2):
        if not head[column]:
            continue
        points = [(float(r[column]), float(r[column + 1])) for r in rows if len(r) > column + 1 and r[column]]
        name = plain(head[column].split(" Dose")[0].replace("_DvhArray", ""))
        volume = re.search(r"([\d.]+) cc", head[column + 1])
        assert volume is not None
        dose_gy, percent = np.array(points).T
        curves[name] = (dose_gy, percent, float(volume[1]))
    return curves


def agreeing_percent(found: StructureDose, dose_gy: NDArray, percent: NDArray, highest_gy: float) -> float:
    """Share of the bins that lie within 1 % of dose and volume of our curve, taken together as a distance.

    Bins where all or none of the volume is left say little; like SlicerRT we count them all the same.
    """
    axis = np.linspace(0, 1.05 * highest_gy, 5000)
    ours = 100 * found.volume_at_dose_ratio(axis)[0]
    away = ((axis - dose_gy[:, None]) / (CRITERION_PERCENT / 100 * highest_gy)) ** 2
    away += ((ours - percent[:, None]) / CRITERION_PERCENT) ** 2
    return 100 * float((away.min(axis=1) <= 1).mean())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("system", ["Eclipse", "SlicerRT", "CERR"])
def test_bins_agree(system: str, structure: str, inside: dict[str, StructureDose], dose: Volume) -> None:
    dose_gy, percent, volume_cc = read_table(system)[structure]
    found = inside[structure]
    assert found.volume_cc == pytest.approx(volume_cc, rel=0.02)
    falling = (percent < 99.9) & (percent > 0.1)
    highest_gy = float(dose.values.max())
    assert agreeing_percent(found, dose_gy, percent, highest_gy) >= AGREEING_PERCENT
    assert agreeing_percent(found, dose_gy[falling], percent[falling], highest_gy) >= AGREEING_PERCENT


def test_metrics_agree_with_slicerrt(inside: dict[str, StructureDose]) -> None:
    """Mean and doses to 1 % of the highest dose, volumes to 1 point; SlicerRT reads 0.2 Gy bins."""
    with (DATA / "EclipseProstate_DvhMetrics_SlicerRT.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"Mean dose (GY)": "mean", "V20 (%)": "V20", "V5 (%)": "V5", "D2cc (GY)": "D2cc", "D5% (GY)": "D5"}
    assert {plain(row["Structure"]) for row in rows} == set(STRUCTURES)
    for row in rows:
        for column, metric in columns.items():
            found = inside[plain(row["Structure"])].metric(DvhMetric.parse(metric))[0]
            assert found == pytest.approx(float(row[column]), abs=1.0 if metric[0] == "V" else 0.47), (row, metric)
