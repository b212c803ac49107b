"""Training draws for gates, with points of the experts' planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fcm_estimators._fitting.draws import SampleDraws

# Points of an expert's plane in one draw of a sample, per gate.
_PROBES_PER_DRAW = 48


class Probes(NamedTuple):
    """Points of the planes of one sample, inside or outside of the expert's polygons.

    Attributes
    ----------
    gate : ndarray of int, shape (P,)
        Position of the gate.
    place : ndarray of shape (P, 2)
        In the data's units.
    inside : ndarray of bool, shape (P,)
    """

    gate: np.ndarray
    place: np.ndarray
    inside: np.ndarray


class GateDraws(SampleDraws):
    """Training draws for gates; the target is stratum and membership.

    The target of a row has 1 + G columns: the stratum (-1 for a point that is no cell), then 1
    inside, 0 outside, -1 unknown, -2 outside of the parent, for each gate.

    Parameters
    ----------
    *args, **kwargs
        Of :class:`SampleDraws`; ``y`` is the stratum of each cell.
    axes : sequence of G pairs of int
        Markers of each gate.
    probes : sequence of Probes or None
        One per sample. Points are added to a draw with the other markers of random cells, and
        distorted as these are; they are in no context.
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
        known[row, 1 + gate] = probes.inside[picked]
        return np.concatenate([x, points]), np.concatenate([target, known])
