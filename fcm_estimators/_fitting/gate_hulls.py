"""Points around the cells of gates that nobody drew, which keep outlines near their cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import shapely
from shapely.affinity import scale

from fcm_estimators._fitting.gate_draws import Probes
from fcm_estimators._fitting.gate_loss import MIN_INSIDE

# Share of the cells inside that the hull holds.
HULL_SHARE = 0.995
# The hull of few cells is too small. That of a population has 1.3 times the area of the hull of
# 1,000 of its cells and 4.9 times that of 20; between them the ratio is a power of their number.
_AREA_AT_1000, _AREA_POWER, _LEAST_AREA = 1.3, -0.34, 1.3
# Points of each gate and sample, and their margin as a share of the extent of the hull.
_POINTS, _MARGIN = 600, 0.5


def hull_of(places: np.ndarray) -> shapely.Geometry:
    """Convex hull of 99.5 % of some places (n, 2), those nearest to their mean.

    Distances are those of Mahalanobis. Fewer than three places, or places on a line, have a hull
    without area.
    """
    centred = places - places.mean(0)
    spread = np.linalg.pinv(np.atleast_2d(np.cov(places.T)))
    distance = np.einsum("ni,ij,nj->n", centred, spread, centred)
    kept = places[distance <= np.quantile(distance, HULL_SHARE)]
    return shapely.MultiPoint(kept).convex_hull


def room_for(hull: shapely.Geometry, n_cells: int) -> shapely.Geometry:
    """The hull of some cells, enlarged to about that of their population."""
    area = max(_LEAST_AREA, _AREA_AT_1000 * (n_cells / 1000) ** _AREA_POWER)
    centre = hull.centroid
    return scale(hull, np.sqrt(area), np.sqrt(area), origin=(centre.x, centre.y))


def hull_probes(
    x: np.ndarray,
    inside: np.ndarray,
    offsets: Sequence[int],
    axes: Sequence[tuple[int, int]],
    drawn: Sequence[Probes | None],
    rng: np.random.Generator,
) -> list[Probes | None]:
    """Points outside of the room of each gate, for the gates that no expert has drawn.

    The room of a gate in a sample is the hull of its cells there and of those in all samples,
    moved to the mean of the sample. Points lie between the lowest and the highest value of each
    marker, so that a gate at the end of an axis may reach beyond it.

    Parameters
    ----------
    x : ndarray of shape (N, M)
        Cells, samples packed.
    inside : int ndarray of shape (N, G)
        1 inside.
    offsets : sequence of S + 1 int
    axes : sequence of G pairs of int
    drawn : sequence of S Probes or None
        Points of the expert's polygons, which the result includes.
    rng : numpy Generator
    """
    low, high = x.min(0), x.max(0)
    found: list[list[Probes]] = [[] if probes is None else [probes] for probes in drawn]
    for g, pair in enumerate(axes):
        places = [x[i:j][inside[i:j, g] == 1][:, pair].astype(float) for i, j in pairwise(offsets)]
        means = [p.mean(0) if len(p) >= MIN_INSIDE else None for p in places]
        centred = [p - m for p, m in zip(places, means, strict=True) if m is not None]
        if not centred:
            continue
        n_cells = sum(map(len, centred))
        usual = shapely.get_coordinates(hull_of(np.concatenate(centred)))
        for s, (here, mean) in enumerate(zip(places, means, strict=True)):
            if mean is None or (drawn[s] is not None and (drawn[s].gate == g).any()):
                continue
            corners = np.concatenate([usual + mean, shapely.get_coordinates(hull_of(here))])
            room = room_for(shapely.MultiPoint(corners).convex_hull, n_cells)
            start, stop = np.reshape(room.bounds, (2, 2))
            margin = _MARGIN * (stop - start)
            ends = (
                np.maximum(start - margin, low[[*pair]]),
                np.minimum(stop + margin, high[[*pair]]),
            )
            points = rng.uniform(*ends, size=(_POINTS, 2))
            points = points[~shapely.contains_xy(room, points)]
            nothing = np.zeros(len(points), dtype=bool)
            found[s].append(Probes(np.full(len(points), g), points.astype(x.dtype), nothing))
    return [
        Probes(*(np.concatenate(part) for part in zip(*parts, strict=True))) if parts else None
        for parts in found
    ]
