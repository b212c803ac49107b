"""Gating trees as plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fcm_estimators._types import Entries
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating._tree import GatingTree
from fcm_estimators.gating.gates import BooleanGate, PolygonGate

_CLASSES: Entries = {
    kind.__name__: kind for kind in (PolygonGate, RectangleGate, EllipsoidGate, BooleanGate)
}


def tree_records(tree: GatingTree) -> list[Entries]:
    """Gates of a tree as dicts of text, numbers and lists; ``spillover`` is not included."""
    return [
        {
            "type": type(gate).__name__,
            **{name: _plain(value) for name, value in vars(gate).items()},
        }
        for gate in tree
    ]


def tree_of_records(records: Sequence[Entries]) -> GatingTree:
    """Tree from the records that :func:`tree_records` returned."""
    return GatingTree(
        [
            _CLASSES[record["type"]](**{k: v for k, v in record.items() if k != "type"})
            for record in records
        ]
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
