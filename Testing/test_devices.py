"""The engine on another device: what takes a device must do all of its work there.

Without a GPU the work is done on torch's device ``meta``, whose tensors hold no numbers: an operation between it and
the processor is an error there as on a GPU. Numbers are compared where a CUDA device is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.dosimetry.dvh import DvhMetric, StructureDose
from RTDigitalTwinLib.dosimetry.fractionation import eqd2_gy
from RTDigitalTwinLib.dosimetry.inside_voxels import StructureVoxels, doses_inside
from RTDigitalTwinLib.dosimetry.plan_quality import geud_gy, integral_dose_gy_l, plan_quality
from RTDigitalTwinLib.model.biology import load_biology
from RTDigitalTwinLib.patient.structure import Structure
from Testing.builders import axial_grid, ball

SAMPLES = 3
WORK: dict[str, Callable[[StructureDose], object]] = {
    "DVH": lambda dose: dose.volume_at_dose_ratio([0.0, 20.0, 40.0]),
    "dose at volume": lambda dose: dose.doses_at_volume_gy([0.02, 0.95]),
    **{
        text: partial(StructureDose.metric, metric=DvhMetric.parse(text))
        for text in ("D95", "D0.1cc", "V20", "V20[cc]")
    },
    "mean, min, max": lambda dose: (dose.mean_gy(), dose.min_gy(), dose.max_gy()),
    "gEUD": lambda dose: geud_gy(dose, 8.0),
    "gEUD of EQD2": lambda dose: geud_gy(dose, 8.0, of=lambda gy: eqd2_gy(gy, 35, 3.0)),
    "plan quality": lambda dose: plan_quality(dose, dose, 40.0),
    "integral dose": integral_dose_gy_l,
    **{f"biology {k}": partial(model.of, fractions=35) for k, model in enumerate(load_biology())},
}


class Brought(list):
    """Tensors that were brought back to the processor."""


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brought]:
    """Ones in place of the numbers that a tensor of the device does not hold. Notes where each came from."""
    found = Brought()

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.device.type)
        return torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu")

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor, **_: np.ones(tuple(tensor.shape)))
    yield found


def structure() -> Structure:
    grid = axial_grid()
    return Structure.from_array("Larynx", 0.7 * ball(grid, (0, 0, 0), (20, 20, 20)), grid)


@pytest.mark.parametrize("work", WORK)
def test_all_work_stays_on_the_device(work: str, brought: Brought) -> None:
    """A tensor of another device in the middle of it would raise; what comes back comes from the device."""
    voxels = StructureVoxels.of(structure())
    needed, compact = voxels.gathered()
    middle, half = doses_inside(torch.empty((SAMPLES, needed.size), device="meta"), compact)
    assert middle.device.type == half.device.type == "meta"
    WORK[work](StructureDose(middle, voxels.occupancy, voxels.voxel_volume_cc, half, name="Larynx"))
    assert brought and brought[0] == "meta"


def test_a_tensor_left_behind_is_noticed(brought: Brought) -> None:
    """The watch itself: occupancy weights on the processor beside doses on the device."""
    dose = StructureDose(torch.empty((1, 4), device="meta"), np.ones(4, np.float32), 0.1)
    dose.__dict__["_weights"] = torch.ones(4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="device"):
        dose.mean_gy()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("work", WORK)
def test_a_gpu_gives_the_same_numbers(work: str) -> None:
    voxels = StructureVoxels.of(structure())
    needed, compact = voxels.gathered()
    gy = torch.from_numpy(np.random.default_rng(0).uniform(20, 60, (SAMPLES, needed.size)).astype(np.float32))
    found = []
    for device in ("cpu", "cuda"):
        middle, half = doses_inside(gy.to(device), compact)
        found.append(WORK[work](StructureDose(middle, voxels.occupancy, voxels.voxel_volume_cc, half)))
    flat = [np.concatenate([np.ravel(v) for v in np.atleast_1d(np.array(_values(f), object))]) for f in found]
    assert flat[1].astype(float) == pytest.approx(flat[0].astype(float), rel=1e-5, abs=1e-7)


def _values(found: object) -> list:
    if isinstance(found, tuple):
        return list(found)
    return list(vars(found).values()) if hasattr(found, "conformity") else [found]
