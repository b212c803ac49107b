"""Convex polygons around the cells of each gate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import ConvexHull, QhullError

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating.coordinates import plane_of
from fcm_estimators.gating.gates import PolygonGate


def traced_gates(
    adata: AnnData,
    membership: pd.DataFrame,
    planes: Mapping[str, tuple[str, str, str]],
    trim: float,
) -> list[PolygonGate]:
    """Trace a polygon for each gate; arguments as :meth:`GatingTree.from_labels`."""
    missing = [name for name in planes if name not in membership]
    if missing:
        raise MissingKeyError(
            f"Gates {listed(missing)} have no column; there is {listed(membership.columns)}."
        )
    gates = []
    for name, (parent, x, y) in planes.items():
        points, state = plane_of(adata, x, y)
        hull = _trimmed_hull(name, points[membership[name].to_numpy(dtype=bool)], trim)
        gates.append(PolygonGate(name, x, y, hull, parent, **state))
    return gates


def _trimmed_hull(name: str, points: np.ndarray, trim: float) -> np.ndarray:
    """Vertices of the convex hull, shape (V, 2), without points beyond ``trim`` SD."""
    if len(points) >= 3:
        centred = points - points.mean(0)
        covariance = np.cov(points.T)
        if np.linalg.matrix_rank(covariance) == 2:
            distance = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
            points = points[distance <= trim**2]
    try:
        return np.asarray(points[ConvexHull(points).vertices])
    except (QhullError, ValueError) as error:
        raise InvalidInputError(
            f"Gate {name!r} has {len(points)} cells, which span no area. It needs three or more "
            "cells that do not lie on a line."
        ) from error
