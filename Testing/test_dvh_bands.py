"""Bands around a DVH: pointwise and simultaneous."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from RTDigitalTwinLib.dosimetry.dvh import dose_axis_gy
from RTDigitalTwinLib.errors import RTDigitalTwinError
from RTDigitalTwinLib.solver.bands import BandScale
from RTDigitalTwinLib.solver.ensemble import VOLUME_RATIOS, DvhEnsemble


def made_up_curves(rng: np.random.Generator, count: int) -> DvhEnsemble:
    """DVHs whose dose at a volume wanders about 40 to 10 Gy by three smooth, independent waves of 1 Gy."""
    waves = np.stack([np.ones_like(VOLUME_RATIOS), np.sin(3 * VOLUME_RATIOS), np.cos(7 * VOLUME_RATIOS)])
    doses = 40 - 30 * VOLUME_RATIOS + rng.standard_normal((count, 3)) @ waves
    doses = np.minimum.accumulate(doses, axis=1)
    axis = dose_axis_gy(50)
    curves = [np.interp(axis, d[::-1], VOLUME_RATIOS[::-1], left=1, right=0) for d in doses]
    return DvhEnsemble(np.array(curves), "ratio", None, "Larynx", axis, doses)


def test_simultaneous_bands_hold_whole_curves() -> None:
    """A 90 % band of 39 curves holds a whole new one nine times in ten; a pointwise one does so far less often."""
    rng = np.random.default_rng(0)
    whole = {False: 0, True: 0}
    trials = 150
    for _ in range(trials):
        curves, new = made_up_curves(rng, 39), made_up_curves(rng, 1)
        for simultaneous in whole:
            low, high = curves.band(0.9, simultaneous=simultaneous)
            inside = (low <= new.samples[0] + 0.005) & (new.samples[0] - 0.005 <= high)
            whole[simultaneous] += bool(inside.all())
    assert whole[True] / trials == pytest.approx(0.9, abs=0.08)  # three standard errors
    assert whole[False] / trials < 0.8


def test_a_calibrated_simultaneous_band_is_wider_than_the_pointwise_one() -> None:
    curves = replace(
        made_up_curves(np.random.default_rng(1), 39), scale=BandScale((1.0, 1.3, 1.7, 2.2, 2.6, 3.0), 0.25)
    )
    point_low, point_high = curves.band(0.9)
    low, high = curves.band(0.9, simultaneous=True)
    assert (low <= point_low + 1e-12).all() and (high >= point_high - 1e-12).all()
    assert (high - low).mean() > 1.1 * (point_high - point_low).mean()


def test_too_few_samples_give_no_simultaneous_band() -> None:
    with pytest.raises(RTDigitalTwinError, match="needs at least 19 samples, not 18"):
        made_up_curves(np.random.default_rng(0), 18).band(0.95, simultaneous=True)
    made_up_curves(np.random.default_rng(0), 19).band(0.95, simultaneous=True)
