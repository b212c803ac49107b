"""A gating tree together with the positions of its markers in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fcm_estimators._checks import listed
from fcm_estimators._fitting.gate_targets import polygons_of, soft_gates
from fcm_estimators.exceptions import MarkerMismatchError
from fcm_estimators.gating import GatingTree, PolygonGate
from fcm_estimators.gating.membership import members_of
from fcm_estimators.nn.soft_gates import SoftGate
from fcm_estimators.preprocessing.recorded import MarkerState


@dataclass(frozen=True)
class GatePlan:
    """Gates that a model predicts, and the positions of their markers.

    Attributes
    ----------
    tree : GatingTree
    axes : list of G pairs of int
        Position of the x and y marker of each gate with a polygon.
    """

    tree: GatingTree
    axes: list[tuple[int, int]]

    @classmethod
    def of(cls, tree: GatingTree, markers: Sequence[str]) -> GatePlan:
        """Plan of a tree.

        Raises
        ------
        MarkerMismatchError
            A gate needs a marker that the model does not read.
        """
        axes = []
        for gate in polygons_of(tree):
            missing = [m for m in (gate.x, gate.y) if m not in markers]
            if missing:
                raise MarkerMismatchError(
                    f"Gate {gate.name!r} needs marker(s) {listed(missing)}, but the model reads "
                    f"{listed(markers)}. Add them to markers=[...], or leave out that gate."
                )
            axes.append((markers.index(gate.x), markers.index(gate.y)))
        return cls(tree, axes)

    @property
    def polygons(self) -> list[str]:
        """Names of the gates with a polygon, in the order of the net."""
        return [gate.name for gate in polygons_of(self.tree)]

    @cached_property
    def hierarchy(self) -> list[SoftGate]:
        """All gates in the form of the nets; the loss takes the parents of polygons from it."""
        return soft_gates(self.tree)

    def drawn(self, vertices: np.ndarray, states: Mapping[str, MarkerState]) -> GatingTree:
        """Tree with the polygons of one sample.

        Parameters
        ----------
        vertices : ndarray of shape (G, V, 2)
        states : mapping of marker to (transform, compensated)
            State of the values of each marker. Markers without a recorded state are missing.
        """
        shape = dict(zip(self.polygons, vertices, strict=True))
        gates = []
        for gate in self.tree:
            if isinstance(gate, PolygonGate):
                x, y = (states.get(m, ("none", False)) for m in (gate.x, gate.y))
                gate = replace(
                    gate,
                    vertices=shape[gate.name],
                    transform_x=x[0],
                    transform_y=y[0],
                    compensation="spillover" if x[1] or y[1] else "none",
                )
            gates.append(gate)
        return GatingTree(gates)

    def members(self, tree: GatingTree, x: np.ndarray) -> np.ndarray:
        """Cells inside each gate of a tree with polygons.

        Parameters
        ----------
        tree : GatingTree
            Tree that :meth:`drawn` returned.
        x : ndarray of shape (n, M)
            Cells of one sample.

        Returns
        -------
        ndarray of bool, shape (n, number of all gates)
            Columns as ``tree.gates``.
        """
        axes = dict(zip(self.polygons, self.axes, strict=True))

        def places(gate: PolygonGate, rows: np.ndarray) -> np.ndarray:
            return np.asarray(x[rows][:, axes[gate.name]], dtype=np.float64)

        inside = members_of(tree, len(x), places)
        return np.column_stack([inside[name] for name in tree.gates])
