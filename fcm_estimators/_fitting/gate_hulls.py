"""Points around the cells of gates that nobody drew, which keep outlines near their cells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import shapely
from shapely.affinity import scale

from fcm_estimators._fitting.gate_draws import AROUND, LASTING, Probes
from fcm_estimators._fitting.gate_loss import MIN_INSIDE
from fcm_estimators.nn.polygon_head import NEAR_LIMIT

# Share of the cells inside that the hull holds.
HULL_SHARE = 0.995
# The hull of few cells is too small. That of a population has 1.3 times the area of the hull of
# 1,000 of its cells and 4.9 times that of 20; between them the ratio is a power of their number.
_AREA_AT_1000, _AREA_POWER, _LEAST_AREA = 1.3, -0.34, 1.3
# A gate with a larger share of its cells at the end of an axis is open there.
_OPEN_SHARE = 1e-3
# Points of each gate and sample, and their margin as a share of the extent of the hull.
_POINTS, _MARGIN = 600, 0.5
# A gate with fewer cells inside, in all training samples together, is rare.
RARE = 1000


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


def open_ends(
    x: np.ndarray,
    inside: np.ndarray,
    axes: Sequence[tuple[int, int]],
    drawn: Sequence[Probes | None],
) -> np.ndarray:
    """Ends of the axes at which each gate is open, as bool of shape (2, G, 2).

    A gate is open at an end if more than 0.1 % of its cells are within 1 % of the axis from the
    end, or if an expert's polygon holds points there.

    Parameters
    ----------
    x, inside, axes, drawn
        As for :func:`hull_probes`.
    """
    ends = np.stack([x.min(0), x.max(0)])[:, np.asarray(axes)]
    reach = NEAR_LIMIT * (ends[1] - ends[0])
    found = np.zeros(ends.shape, dtype=bool)
    for g, pair in enumerate(axes):
        cells = x[inside[:, g] == 1][:, pair]
        held = [p.place[(p.gate == g) & p.inside] for p in drawn if p is not None]
        for places, share in ((cells, _OPEN_SHARE), (np.concatenate([cells[:0], *held]), 0.0)):
            if len(places):
                near = places <= ends[0, g] + reach[g], places >= ends[1, g] - reach[g]
                found[:, g] |= np.mean(near, axis=1) > share
    return found


def hull_probes(
    x: np.ndarray,
    inside: np.ndarray,
    offsets: Sequence[int],
    axes: Sequence[tuple[int, int]],
    is_open: np.ndarray,
    drawn: Sequence[Probes | None],
    rng: np.random.Generator,
) -> list[Probes | None]:
    """Points outside of the room of each gate, for the gates that no expert has drawn.

    The room of a gate in a sample is the hull of its cells there and of those in all samples,
    moved to the mean of the sample. Neither these points nor others that last and are outside of
    their gate are beyond an end of an axis at which the gate is open.

    The hull of a rare gate, with fewer than 1,000 cells inside in all samples together, says little
    about its shape. If experts have drawn it, their points last, and samples without an outline of
    it get these points, moved to the mean of the sample.

    Parameters
    ----------
    x : ndarray of shape (N, M)
        Cells, samples packed.
    inside : int ndarray of shape (N, G)
        1 inside.
    offsets : sequence of S + 1 int
    axes : sequence of G pairs of int
    is_open : ndarray of bool, shape (2, G, 2)
        Ends at which each gate is open (:func:`open_ends`).
    drawn : sequence of S Probes or None
        Points of the expert's polygons, which the result includes.
    rng : numpy Generator
    """
    # Beyond the lowest and highest values is all that a gate without open ends may not hold.
    ends = np.stack([x.min(0), x.max(0)])[:, np.asarray(axes)]
    limits = np.where(is_open, ends, np.array([-np.inf, np.inf])[:, None, None])
    found: list[list[Probes]] = [[] for _ in drawn]
    for g, pair in enumerate(axes):
        places = [x[i:j][inside[i:j, g] == 1][:, pair].astype(float) for i, j in pairwise(offsets)]
        means = [p.mean(0) if len(p) >= MIN_INSIDE else None for p in places]
        outlines = [None if p is None else _of_gate(p, g) for p in drawn]
        shape: Probes | None = None
        if sum(map(len, places)) < RARE:
            outlines = [None if o is None else _lasting(o, limits[:, g]) for o in outlines]
            shape = _common_shape(outlines, means)
        centred = [p - m for p, m in zip(places, means, strict=True) if m is not None]
        usual = shapely.get_coordinates(hull_of(np.concatenate(centred))) if centred else None
        n_cells = sum(map(len, centred))
        for s, (here, mean, outline) in enumerate(zip(places, means, outlines, strict=True)):
            if outline is not None:
                found[s].append(outline)
            elif mean is not None and shape is not None:
                moved = shape._replace(place=(shape.place + mean).astype(x.dtype))
                moved = _lasting(moved, limits[:, g])
                chosen = rng.permutation(len(moved.gate))[:_POINTS]
                found[s].append(Probes(*(part[chosen] for part in moved)))
            elif mean is not None and usual is not None:
                corners = np.concatenate([usual + mean, shapely.get_coordinates(hull_of(here))])
                room = room_for(shapely.MultiPoint(corners).convex_hull, n_cells)
                points = _points_outside(room, limits[:, g], rng).astype(x.dtype)
                gate, outside, stratum = (
                    np.full(len(points), value) for value in (g, False, AROUND)
                )
                found[s].append(Probes(gate, points, outside, stratum))
    return [
        Probes(*(np.concatenate(part) for part in zip(*parts, strict=True))) if parts else None
        for parts in found
    ]


def _of_gate(probes: Probes, g: int) -> Probes | None:
    """Points of one gate; None if there are none."""
    rows = probes.gate == g
    return Probes(*(part[rows] for part in probes)) if rows.any() else None


def _lasting(probes: Probes, limits: np.ndarray) -> Probes:
    """The points that are inside of the gate or within limits (2, 2), to last."""
    kept = probes.inside | ((probes.place >= limits[0]) & (probes.place <= limits[1])).all(1)
    probes = probes._replace(stratum=np.full(len(probes.gate), LASTING))
    return Probes(*(part[kept] for part in probes))


def _common_shape(
    outlines: Sequence[Probes | None], means: Sequence[np.ndarray | None]
) -> Probes | None:
    """Points of all outlines of a gate, relative to the mean of the cells inside."""
    centred = [
        o._replace(place=o.place - m)
        for o, m in zip(outlines, means, strict=True)
        if o is not None and m is not None
    ]
    if not centred:
        return None
    return Probes(*(np.concatenate(part) for part in zip(*centred, strict=True)))


def _points_outside(
    room: shapely.Geometry, limits: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Points around a room and within limits (2, 2), as an array of shape (n, 2)."""
    start, stop = np.reshape(room.bounds, (2, 2))
    margin = _MARGIN * (stop - start)
    low, high = np.maximum(start - margin, limits[0]), np.minimum(stop + margin, limits[1])
    points: np.ndarray = rng.uniform(low, np.maximum(low, high), size=(_POINTS, 2))
    points = points[~shapely.contains_xy(room, points)]
    return points
