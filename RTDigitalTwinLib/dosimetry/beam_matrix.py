"""The map from fluence to dose at chosen voxels as a sparse matrix: for searches that apply it hundreds of times."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from RTDigitalTwinLib.dosimetry.beams import CoplanarBeams


class BeamMatrix:
    """What ``CoplanarBeams.dose`` and ``transposed`` give, at some voxels; on a CPU, without gradients.

    Each beam reaches a voxel from two rays: (voxels, 2 x beams) numbers, kept once by rows and once by columns.
    """

    def __init__(self, beams: CoplanarBeams, places: Tensor) -> None:
        """``places`` are flat indices of the voxels in ``beams.shape``."""
        self._beams, self._shape = beams, beams.fluence_shape
        rays, weights = (t.numpy() for t in beams.taps(places))
        rows = np.arange(len(places) + 1) * rays.shape[1]
        size = (len(places), int(np.prod(self._shape)))
        self._matrix = csr_array((weights.reshape(-1), rays.reshape(-1).astype(np.int32), rows.astype(np.int32)), size)
        self._transposed = self._matrix.T.tocsr()

    def dose(self, fluence: Tensor) -> Tensor:
        """Dose (voxels,) of a fluence (beams, slices, rays), in its units."""
        return torch.from_numpy(self._matrix @ self._beams.blurred(fluence).reshape(-1).numpy())

    def transposed(self, values: Tensor) -> Tensor:
        """The adjoint of ``dose``: values (voxels,) gathered along the rays, (beams, slices, rays)."""
        gathered = torch.from_numpy(self._transposed @ values.numpy()).view(self._shape)
        return self._beams.blurred_back(gathered)
