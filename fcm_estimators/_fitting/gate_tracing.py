"""Star polygons traced around known cells, without a net."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from fcm_estimators._fitting.gate_fit import first_radii, place_gates
from fcm_estimators._fitting.gate_loss import MIN_INSIDE
from fcm_estimators.nn import PolygonFormer
from fcm_estimators.nn.polygon_head import Shapes, StarGates
from fcm_estimators.nn.soft_gates import SoftGate, soft_parents

# Cells for the fit by gradients; the search of the radii uses all cells.
_FIT_CELLS = 20_000
# Rounds of the search over all radii, and how far beyond the last cell an outline goes at most.
_ROUNDS, _MARGIN = 20, 1.05
# Radii in units of the gate's spread that the search allows.
_SMALLEST, _LARGEST = 0.01, 100.0


def traced_vertices(
    module: PolygonFormer,
    x: np.ndarray,
    inside: np.ndarray,
    hierarchy: Sequence[SoftGate],
    rng: np.random.Generator,
) -> np.ndarray:
    """Vertices of star polygons around the expert's cells of one sample, (G, V, 2).

    There are two starts: the centre of the cells inside with the quantiles of their distances in
    each direction, and a fit by gradients. From each start, one radius after the other is set to
    the value with the highest F1, until none improves. The best result is taken, so no start is
    better. Parents are traced first, and a gate is applied inside its traced parents.

    Parameters
    ----------
    module : PolygonFormer
        Trained net; not changed.
    x : ndarray of shape (n, M)
    inside : int ndarray of shape (n, G)
        1 inside, 0 outside, -1 unknown, -2 outside of the parent.
    hierarchy : sequence of SoftGate
    rng : numpy Generator
    """
    module = copy.deepcopy(module).float().cpu()
    gates = module.gates
    z = module.standardise(torch.from_numpy(x.astype(np.float32))).numpy()
    rows = np.sort(rng.choice(len(x), min(len(x), _FIT_CELLS), replace=False))
    place_gates(gates, z[rows], inside[rows], [0, len(rows)], hierarchy)
    own = torch.ones(len(z), len(gates.axes), dtype=torch.float64)
    for g in range(len(gates.axes)):
        place = z[:, gates.axes[g].numpy()].astype(np.float64)
        if (inside[:, g] == 1).sum() >= MIN_INSIDE:
            in_parent = soft_parents(hierarchy, own)[:, g].numpy() > 0
            used = in_parent & (inside[:, g] != -1)
            _trace(gates, g, place[used], inside[used, g] == 1, (inside[:, g] == 1).sum())
        own[:, g] = torch.from_numpy(_members(gates, g, place)).double()
    with torch.no_grad():
        shapes = Shapes(gates.centre[None], gates.log_radius[None])
        return module.in_units(gates.vertices(shapes))[0].numpy()


def _trace(gates: StarGates, g: int, place: np.ndarray, inside: np.ndarray, n_inside: int) -> None:
    """Set centre and radii of one gate to the best that the search finds.

    Parameters
    ----------
    gates : StarGates
        Holds the fit by gradients; changed in place.
    g : int
    place : ndarray of shape (n, 2)
        Cells of the traced parent.
    inside : ndarray of bool, shape (n,)
    n_inside : int
        Cells inside the expert's gate, in the traced parent or not.
    """
    spread = gates.spread[g].numpy().astype(np.float64)
    mean = place[inside].mean(0) if inside.any() else gates.centre[g].numpy()
    starts = [
        (mean, first_radii((place[inside] - mean) / spread, gates.log_radius.shape[1])),
        (gates.centre[g].numpy().astype(np.float64), gates.log_radius[g].exp().numpy()),
    ]
    found = []
    for centre, radii in starts:
        search = _RadiusSearch((place - centre) / spread, inside, n_inside, radii)
        found.append((search.improved(), centre, search.radii))
    _, centre, radii = max(found, key=lambda entry: entry[0])
    gates.centre[g] = torch.from_numpy(centre)
    gates.log_radius[g] = torch.from_numpy(np.log(radii))


def _members(gates: StarGates, g: int, place: np.ndarray) -> np.ndarray:
    """Cells inside one polygon, regardless of its parent."""
    spread, centre = gates.spread[g].numpy(), gates.centre[g].numpy()
    nothing = np.zeros(len(place), dtype=bool)
    radii = gates.log_radius[g].double().exp().numpy()
    search = _RadiusSearch((place - centre) / spread, nothing, 0, radii)
    return np.asarray(search.distance() <= 1)


class _RadiusSearch:
    """Radii of one star polygon with the highest F1, one after the other.

    A cell in the sector of the directions ``k`` and ``k + 1`` is inside if ``w_k a + w_k+1 b <= 1``
    with the inverse radii ``w``. All other radii given, it is therefore inside up to a threshold of
    ``w_k``. Sorted by their thresholds, the cells enter one by one.
    """

    def __init__(
        self, place: np.ndarray, inside: np.ndarray, n_inside: int, radii: np.ndarray
    ) -> None:
        n_vertices = len(radii)
        step = 2 * np.pi / n_vertices
        self.inverse = 1 / np.clip(radii.astype(np.float64), _SMALLEST, _LARGEST)
        self.inside, self.n_inside = inside, n_inside
        angle = np.arctan2(place[:, 1], place[:, 0])
        self.sector = np.floor(angle / step).astype(int) % n_vertices
        first = np.stack([np.cos(step * self.sector), np.sin(step * self.sector)])
        after = np.stack([np.cos(step * (self.sector + 1)), np.sin(step * (self.sector + 1))])
        x, y = place.T
        # Not negative, but for rounding at the ends of a sector.
        self.first = np.maximum(x * after[1] - y * after[0], 0) / np.sin(step)
        self.second = np.maximum(first[0] * y - first[1] * x, 0) / np.sin(step)
        self.rows = [np.flatnonzero(self.sector == k) for k in range(n_vertices)]

    @property
    def radii(self) -> np.ndarray:
        """Radius of each vertex, (V,)."""
        return 1 / self.inverse

    def distance(self) -> np.ndarray:
        """Distance of each cell from the centre relative to the outline, (n,)."""
        after = np.roll(self.inverse, -1)
        sector = self.sector
        return np.asarray(self.inverse[sector] * self.first + after[sector] * self.second)

    def improved(self) -> float:
        """Search until no radius improves F1; return F1."""
        best = self._f1(self.distance() <= 1)
        for _ in range(_ROUNDS):
            before = best
            for k in range(len(self.inverse)):
                best = max(best, self._improve(k, best))
            if best <= before:
                break
        return best

    def _f1(self, called: np.ndarray) -> float:
        total = called.sum() + self.n_inside
        return float(2 * (called & self.inside).sum() / total) if total else 0.0

    def _improve(self, k: int, best: float) -> float:
        """Set the radius of vertex k if that gives a higher F1; return the highest found."""
        n = len(self.inverse)
        here, before = self.rows[k], self.rows[k - 1]
        rows = np.concatenate([here, before])
        slope = np.concatenate([self.first[here], self.second[before]])
        rest = np.concatenate(
            [
                self.inverse[(k + 1) % n] * self.second[here],
                self.inverse[k - 1] * self.first[before],
            ]
        )
        limit = np.where(rest <= 1, np.inf, -np.inf)
        np.divide(1 - rest, slope, out=limit, where=slope > 0)
        order = np.argsort(-limit, kind="stable")
        limit, inside = limit[order], self.inside[rows][order]
        called = self.distance() <= 1
        others = called.sum() - called[rows].sum()
        others_inside = (called & self.inside).sum() - (called & self.inside)[rows].sum()
        held = np.r_[0, np.cumsum(inside)] + others_inside
        taken = np.arange(len(rows) + 1) + others
        scores = 2 * held / np.maximum(taken + self.n_inside, 1)
        # The outline is between the cells m - 1 and m; radii beyond the limits are not allowed.
        last, beyond = np.r_[np.inf, limit], np.r_[limit, -np.inf]
        low, high = 1 / _LARGEST, 1 / _SMALLEST
        allowed = (last > beyond) & (last > low) & (beyond < high)
        scores = np.where(allowed, scores, -1)
        m = int(scores.argmax())
        if scores[m] <= best:
            return best
        upper, lower = min(last[m], high), max(beyond[m], low)
        self.inverse[k] = (upper + max(lower, upper / _MARGIN)) / 2
        return float(scores[m])
