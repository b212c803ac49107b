"""Outlines in the units of the data and limits of the axes, for pictures of gates."""

from __future__ import annotations

import numpy as np
import shapely
from anndata import AnnData

from fcm_estimators.gating.coordinates import data_values
from fcm_estimators.gating.gates import PolygonGate
from fcm_estimators.preprocessing.ticks import marker_column

# Margin of pictures around the cells, as a share of the width of the cells.
_FRAME = 0.03


def outline_in_data(adata: AnnData, gate: PolygonGate) -> np.ndarray:
    """Vertices of a polygon in the units of ``adata.X``, shape (V, 2)."""
    return np.column_stack(
        [
            data_values(adata, gate, marker, transform, gate.vertices[:, i])
            for i, (marker, transform) in enumerate(zip(gate.markers, gate.transforms, strict=True))
        ]
    )


def outline_in_frame(adata: AnnData, markers: tuple[str, str], outline: np.ndarray) -> np.ndarray:
    """Part of an outline in a frame around all cells, for drawing, shape (n, 2).

    A gate that is open at the end of an axis reaches beyond it, where there are no cells. An
    outline in the frame, and one with no part or several parts in it, are returned as they are.

    Parameters
    ----------
    adata : AnnData
    markers : pair of str
    outline : ndarray of shape (V, 2)
        In the units of ``adata.X``.
    """
    places = np.asarray(adata.X[:, [marker_column(adata, marker) for marker in markers]])
    low, high = places.min(0), places.max(0)
    margin = _FRAME * (high - low)
    frame = shapely.box(*(low - margin), *(high + margin))
    polygon = shapely.Polygon(outline)
    if frame.contains(polygon):
        return outline
    part = polygon.intersection(frame)
    if not isinstance(part, shapely.Polygon) or part.is_empty:
        return outline
    return np.asarray(shapely.get_coordinates(part.exterior)[:-1])


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
    return low - _FRAME * width, high + _FRAME * width
