"""What pictures of gates need: outlines in the units of the data, ends of the axes."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from fcm_estimators.gating._coordinates import data_values
from fcm_estimators.gating._gates import PolygonGate


def outline_in_data(adata: AnnData, gate: PolygonGate) -> np.ndarray:
    """Vertices of a polygon in the units of ``adata.X``, shape (V, 2)."""
    return np.column_stack(
        [
            data_values(adata, gate, marker, transform, gate.vertices[:, i])
            for i, (marker, transform) in enumerate(zip(gate.markers, gate.transforms, strict=True))
        ]
    )


def picture_limits(cells: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of a picture of cells, (n, 2), with outlines around some of them.

    Where there are no cells the data do not say where an outline should be, so that it may be
    anywhere; it is followed for a sixth of the width of the cells.
    """
    low, high = cells.min(0), cells.max(0)
    width = np.where(high > low, high - low, 1.0)
    low = np.clip(corners.min(0), low - width / 6, low)
    high = np.clip(corners.max(0), high, high + width / 6)
    return low - 0.03 * width, high + 0.03 * width
