"""Apply gates to cells, parents before children."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating.gates import BooleanGate


def members_of(
    tree: Iterable[Gate], n_cells: int, coordinates: Callable[[Any, np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Find the cells inside each gate.

    Parameters
    ----------
    tree : GatingTree
        Or other gates, each after its parent and its operands.
    n_cells : int
    coordinates : callable
        Takes a gate and rows (ndarray of int, shape (n,)). Returns the coordinates of these cells
        in the units of the gate, shape (n, axes).

    Returns
    -------
    dict of gate name to ndarray of bool, shape (n_cells,)
    """
    everything = np.ones(n_cells, dtype=bool)
    inside: dict[str, np.ndarray] = {}
    for gate in tree:
        parent = inside.get(gate.parent, everything)
        if isinstance(gate, BooleanGate):
            inside[gate.name] = parent & gate.combine([inside[o] for o in gate.operands])
            continue
        rows = np.flatnonzero(parent)
        inside[gate.name] = np.zeros(n_cells, dtype=bool)
        inside[gate.name][rows] = gate.contains(coordinates(gate, rows))
    return inside
