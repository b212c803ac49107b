"""Gating trees as plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fcm_estimators._types import Entries
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating._tree import GatingTree
from fcm_estimators.gating.gates import BooleanGate, PolygonGate

_CLASSES: Entries = {
    kind.__name__: kind for kind in (PolygonGate, RectangleGate, EllipsoidGate, BooleanGate)
}

_MATRIX = "spillover"


def tree_records(tree: GatingTree) -> list[Entries]:
    """Gates of a tree, and its matrix if it has one, as dicts of text, numbers and lists."""
    records: list[Entries] = [
        {
            "type": type(gate).__name__,
            **{name: _plain(value) for name, value in vars(gate).items()},
        }
        for gate in tree
    ]
    if tree.spillover is not None:
        channels = [str(name) for name in tree.spillover.columns]
        values = tree.spillover.to_numpy().tolist()
        records.append({"type": _MATRIX, "channels": channels, "values": values})
    return records


def tree_of_records(records: Sequence[Entries]) -> GatingTree:
    """Tree from the records that :func:`tree_records` returned."""
    spillover = None
    gates = []
    for record in records:
        values = {k: v for k, v in record.items() if k != "type"}
        if record["type"] == _MATRIX:
            names = values["channels"]
            spillover = pd.DataFrame(values["values"], index=names, columns=names)
        else:
            gates.append(_CLASSES[record["type"]](**values))
    return GatingTree(gates, spillover=spillover)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
