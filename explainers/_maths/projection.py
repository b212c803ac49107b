"""Arrows on an embedding: where a cell would go if its markers moved along the gradient."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

# Share of a neighbourhood's variance added to each direction, so that flat ones stay solvable.
_RIDGE = 1e-6
_CHUNK = 20_000


def project_arrows(
    markers: np.ndarray, embedding: np.ndarray, arrows: np.ndarray, n_neighbors: int
) -> np.ndarray:
    """Displacement in an embedding that goes with a displacement in marker space.

    Around every cell the embedding is approximated by the linear map that best carries the
    differences to its nearest neighbours over (weighted least squares); the map is applied to the
    arrow. Where the embedding is a linear projection this is that projection. Directions in which
    a neighbourhood has no spread carry nothing over.

    Parameters
    ----------
    markers : ndarray of shape (N, M)
        In units that make the markers comparable.
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
        # The first is the cell itself, or a twin of it, which adds nothing.
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
