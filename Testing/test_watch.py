"""The watch of a course: quiet without a change, though readings vary more than expected, and not for one bad day."""

from __future__ import annotations

import numpy as np
import pytest

from RTDigitalTwinLib.calibration.watch import THRESHOLD, Watch, WatchSettings
from RTDigitalTwinLib.errors import RTDigitalTwinError

COUNT, FRACTIONS = 10, 35


def watched(readings: np.ndarray, settings: WatchSettings | None = None) -> list[Watch]:
    """After each fraction; a day is believed to vary by 1 in each reading, what a patient's mean is by 2."""
    watch = Watch(settings or WatchSettings(), np.zeros(COUNT), 4 * np.eye(COUNT))
    seen = []
    for fraction, read in enumerate(readings, start=1):
        watch = watch.after(fraction, read, np.eye(COUNT))
        seen.append(watch)
    return seen


def course(seed: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 2 * rng.standard_normal(COUNT) + spread * rng.standard_normal((FRACTIONS, COUNT))


def test_it_is_quiet_without_a_change() -> None:
    """As believed, and for a patient whose readings vary by 1.4 times that: twice the variance."""
    for spread, most in ((1.0, 1), (1.4, 6)):
        alarms = sum(any(w.alarm for w in watched(course(seed, spread))) for seed in range(40))
        assert alarms <= most
    assert watched(course(0, 1.4))[-1].usual_ratio == pytest.approx(2, abs=0.5)


def test_a_lasting_change_is_seen_and_one_bad_day_is_not() -> None:
    """A change of 3 standard deviations of a day in four of ten readings; a day that is 30 off."""
    delays, found = [], []
    for seed in range(20):
        changed = course(seed)
        changed[14:, :4] += 3
        seen = watched(changed)
        first = next(k for k, w in enumerate(seen, start=1) if w.alarm)
        delays.append(first - 15)
        found.append(seen[first - 1].since)
        bad = course(seed)
        bad[14] += 30
        assert not any(w.alarm for w in watched(bad)[:15])
    assert min(delays) >= 0 and np.median(delays) <= 6
    assert abs(np.median(np.array(found, float)) - 15) <= 2


def test_the_first_fraction_tells_of_the_patient() -> None:
    far = course(3) + 5
    (first, *_) = watched(far)
    assert first.total == 0 and first.since is None and first.average is None
    assert np.abs(first.expected_gy - 0.8 * far[0]).max() < 1e-9  # 4 of 4 + 1


def test_settings_that_cannot_be() -> None:
    for wrong in ({"threshold": 0.0}, {"memory": 0.0}, {"memory": 1.5}, {"threshold": float("nan")}):
        with pytest.raises(RTDigitalTwinError, match="No watch"):
            WatchSettings(**wrong)
    assert WatchSettings().threshold == THRESHOLD
