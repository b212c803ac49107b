"""Training draws for gates, with points in the planes of the expert's polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fcm_estimators._fitting.draws import SampleDraws

# Points per gate in one draw of a sample.
_PROBES_PER_DRAW = 48


# Stratum of points in and around an expert's polygon, which fade during training; of those of rare
# gates, which last; and of points around the hull of the cells of a gate that nobody drew. Cells
# have a stratum of 0 or more.
DRAWN, LASTING, AROUND = -1, -2, -3


class Probes(NamedTuple):
    """Points of the planes of one sample that are no cells.

    Attributes
    ----------
    gate : ndarray of int, shape (P,)
        Position of the gate.
    place : ndarray of shape (P, 2)
        Position in the plane of the gate, in the units of the data.
    inside : ndarray of bool, shape (P,)
        Whether the point is inside the polygon.
    stratum : ndarray of int, shape (P,)
        DRAWN, LASTING or AROUND.
    """

    gate: np.ndarray
    place: np.ndarray
    inside: np.ndarray
    stratum: np.ndarray


class GateDraws(SampleDraws):
    """Training draws for gates. The target of a cell is its stratum and its membership.

    The target has 1 + G columns. The first is the stratum, negative for a point. The
    others hold for each gate 1 inside, 0 outside, -1 unknown, -2 outside of the parent.

    Parameters
    ----------
    *args, **kwargs
        Passed to :class:`SampleDraws`; ``y`` is the stratum of each cell.
    axes : sequence of G pairs of int
        Markers of each gate.
    probes : sequence of Probes or None
        One per sample. A draw adds points, which take the other markers from random cells and get
        the same distortion. They are not in the context.
    """

    def __init__(
        self,
        *args: Any,
        axes: Sequence[tuple[int, int]],
        probes: Sequence[Probes | None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.axes, self.probes = np.asarray(axes).reshape(-1, 2), probes

    def _look_up(
        self, s: int, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        x, target = super()._look_up(s, rows, rng)
        probes = self.probes[s]
        if probes is None:
            return x, target
        size = min(len(probes.gate), _PROBES_PER_DRAW * len(self.axes))
        picked = rng.choice(len(probes.gate), size, replace=False, shuffle=False)
        gate, row = probes.gate[picked], np.arange(size)
        points = x[rng.integers(len(x), size=size)]
        points[row[:, None], self.axes[gate]] = probes.place[picked]
        known = np.full((size, target.shape[1]), -1, dtype=target.dtype)
        known[:, 0] = probes.stratum[picked]
        known[row, 1 + gate] = probes.inside[picked]
        return np.concatenate([x, points]), np.concatenate([target, known])
