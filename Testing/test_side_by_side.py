"""Samples decoded in several threads: as one after the other, and nothing of the process is left changed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from RTDigitalTwinLib.errors import Cancelled, ModelError
from RTDigitalTwinLib.model.network import DoseUNet, NetworkConfiguration
from RTDigitalTwinLib.model.surrogate import DoseSurrogate
from RTDigitalTwinLib.patient.patient import Patient
from RTDigitalTwinLib.solver.sampling import sample_dose
from RTDigitalTwinLib.solver.side_by_side import side_by_side

THREADS = 3


@pytest.fixture
def threads() -> Iterator[int]:
    """More than one, whatever the tests run with; put back, as are the flags that a GPU's library has."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    flags = _flags()
    yield THREADS
    assert (torch.get_num_threads(), _flags()) == (THREADS, flags)
    torch.set_num_threads(before)


def _flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32


@pytest.fixture(scope="module")
def surrogate() -> DoseSurrogate:
    torch.manual_seed(1)
    network = DoseUNet(NetworkConfiguration(widths=(4, 4, 8, 8, 16)))
    return DoseSurrogate(network.eval(), torch.device("cpu"))


def test_samples_are_those_of_one_thread(surrogate: DoseSurrogate, sample: Patient, threads: int) -> None:
    ours = sample_dose(surrogate, sample, 10, seed=3)
    torch.set_num_threads(1)
    alone = sample_dose(surrogate, sample, 10, seed=3)
    torch.set_num_threads(threads)
    # Half precision of the deviations; convolutions may round in another order.
    assert np.abs(ours.deviations_gy.astype(float) - alone.deviations_gy).max() < 0.02
    assert ours.deviations_gy.astype(float).std() > 0.1
    again = sample_dose(surrogate, sample, 10, seed=3)
    assert np.array_equal(again.deviations_gy, ours.deviations_gy)


def test_cancelling_leaves_nothing_changed(surrogate: DoseSurrogate, sample: Patient, threads: int) -> None:
    def progress(done: float, message: str) -> None:
        if message.startswith("sample 5"):
            raise Cancelled

    with pytest.raises(Cancelled):
        sample_dose(surrogate, sample, 32, seed=3, progress=progress)


def test_errors_of_one_part_are_raised(surrogate: DoseSurrogate, sample: Patient, threads: int) -> None:
    broken = DoseSurrogate(DoseUNet(surrogate.network.configuration), torch.device("cpu"))
    with torch.no_grad():
        broken.network.last.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="no finite numbers"):
        sample_dose(broken, sample, 10, seed=3)


def test_results_come_in_the_order_of_the_parts(threads: int) -> None:
    def work(part: int) -> tuple[int, int]:
        time.sleep(0.02 * (part % 2 == 0))
        return part, torch.get_num_threads()

    with side_by_side(work, range(7), "cpu") as found:
        assert list(found) == [(part, 1) for part in range(7)]
    with side_by_side(work, range(2), "cuda") as found:  # one after the other, in this thread
        assert list(found) == [(part, threads) for part in range(2)]
