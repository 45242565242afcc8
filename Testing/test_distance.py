"""Distances to a structure's surface, against SimpleITK's."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from RTDigitalTwinLib.dosimetry.distance import signed_distance_mm


def test_distances_are_the_exact_ones() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((3, 18, 22, 26))
    blob = np.zeros((18, 22, 26), bool)
    blob[4:12, 3:18, 6:21] = True
    for mask in (noise[0] > 0.9, noise[1] > 0.3, blob, ~blob):
        spacing_mm = (2.0, 3.5, 5.0)
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(spacing_mm)
        exact = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True))
        for reach_mm in (12.0, 500.0):
            found = signed_distance_mm(mask, spacing_mm, reach_mm)
            assert np.allclose(found, np.clip(exact, -reach_mm, reach_mm), atol=1e-3)
    with pytest.raises(ValueError, match="empty"):
        signed_distance_mm(np.zeros((4, 4, 4), bool), (1.0, 1.0, 1.0), 10.0)
