"""Outlines in the units of the data and limits of the axes, for pictures of gates."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from fcm_estimators.gating.coordinates import data_values
from fcm_estimators.gating.gates import PolygonGate


def outline_in_data(adata: AnnData, gate: PolygonGate) -> np.ndarray:
    """Vertices of a polygon in the units of ``adata.X``, shape (V, 2)."""
    return np.column_stack(
        [
            data_values(adata, gate, marker, transform, gate.vertices[:, i])
            for i, (marker, transform) in enumerate(zip(gate.markers, gate.transforms, strict=True))
        ]
    )


def picture_limits(cells: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits, each of shape (2,), of a picture of cells with outlines.

    The limits contain all cells and follow the outlines for at most a sixth of the width of the
    cells beyond them. Where there are no cells, the data do not determine an outline, so it may be
    far away.

    Parameters
    ----------
    cells : ndarray of shape (n, 2)
    corners : ndarray of shape (V, 2)
        Vertices of all outlines.
    """
    low, high = cells.min(0), cells.max(0)
    width = np.where(high > low, high - low, 1.0)
    low = np.clip(corners.min(0), low - width / 6, low)
    high = np.clip(corners.max(0), high, high + width / 6)
    return low - 0.03 * width, high + 0.03 * width
