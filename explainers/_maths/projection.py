"""Arrows on an embedding that correspond to displacements in marker space."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

# Share of the variance of a neighbourhood that is added to each direction, so that the system can
# be solved if the neighbourhood is flat.
_RIDGE = 1e-6
_CHUNK = 20_000


def project_arrows(
    markers: np.ndarray, embedding: np.ndarray, arrows: np.ndarray, n_neighbors: int
) -> np.ndarray:
    """Displacements in an embedding that correspond to displacements in marker space.

    Around each cell, a linear map approximates the embedding. It is fitted to the differences to
    the nearest neighbours by weighted least squares and then applied to the arrow. If the
    embedding is a linear projection, the map is this projection. Directions without spread in the
    neighbourhood contribute nothing.

    Parameters
    ----------
    markers : ndarray of shape (N, M)
        Markers in comparable units.
    embedding : ndarray of shape (N, E)
    arrows : ndarray of shape (N, M)
        Displacements, in the same units as ``markers``.
    n_neighbors : int

    Returns
    -------
    ndarray of shape (N, E)
    """
    n_neighbors = min(n_neighbors, len(markers) - 1)
    neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(markers)
    out = np.empty((len(markers), embedding.shape[1]))
    for start in range(0, len(markers), _CHUNK):
        rows = slice(start, start + _CHUNK)
        distance, index = neighbours.kneighbors(markers[rows], n_neighbors + 1)
        # The first neighbour is the cell itself or an equal one, which contributes nothing.
        x = markers[index] - markers[rows][:, None]
        e = embedding[index] - embedding[rows][:, None]
        width = distance[:, -1:]
        weight = np.exp(-2 * np.square(distance / np.where(width > 0, width, 1)))[..., None]
        gram = np.einsum("nki,nkj->nij", weight * x, x)
        trace = np.trace(gram, axis1=1, axis2=2)
        diagonal = np.arange(x.shape[2])
        gram[:, diagonal, diagonal] += (_RIDGE * trace / x.shape[2] + 1e-30)[:, None]
        cross = np.einsum("nki,nke->nie", weight * x, e)
        jacobian = np.linalg.solve(gram, cross)
        out[rows] = np.einsum("ni,nie->ne", arrows[rows], jacobian)
    return out
