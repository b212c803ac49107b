"""What is explained: a number per cell, made from the logits, or one of a sample's gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fcm_estimators._checks import listed, require_key
from fcm_estimators._fitting.gate_targets import soft_gates
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating import PolygonGate
from fcm_estimators.nn import AttentionContext, PolygonFormer, SetModule, streamed
from fcm_estimators.nn.soft_gates import SoftGate, soft_members
from fcm_estimators.polygon_regressor import PolygonRegressor

OUTPUTS = ("log_odds", "probability")


@dataclass(frozen=True)
class ClassOutput:
    """Log-odds or probability of a class, against the rest or against one other class.

    Parameters
    ----------
    positive : int
        Column of the class.
    negative : int or None
        Column of the class to compare with; None for all others together.
    kind : {"log_odds", "probability"}
    name : str
        For tables, pictures and the run record.
    """

    positive: int
    negative: int | None
    kind: str
    name: str

    def __call__(self, logits: Tensor) -> Tensor:
        """Output per cell from what the net gives, (N, C) -> (N,)."""
        if self.kind == "probability":
            return torch.softmax(logits, -1)[:, self.positive]
        if self.negative is not None:
            return logits[:, self.positive] - logits[:, self.negative]
        rest = [c for c in range(logits.shape[1]) if c != self.positive]
        return logits[:, self.positive] - torch.logsumexp(logits[:, rest], -1)

    def total(self, module: SetModule, x: Tensor, cells: Tensor) -> Tensor:
        """Sum over the targets among the cells ``x`` of one sample, a scalar."""
        return self(streamed(module, x).outputs)[cells].sum()

    def mean(
        self, module: SetModule, x: Tensor, contexts: Sequence[AttentionContext] | None = None
    ) -> Tensor:
        """Mean over all cells of one sample, in its own or other contexts, a scalar."""
        return self(module(x, contexts=contexts)).mean()


@dataclass(frozen=True)
class VertexOutput:
    """One coordinate of one vertex of a gate's polygon, in the caller's units.

    The vertex as the net predicts it; what is done to vertices at the end of an axis comes later.

    Parameters
    ----------
    gate, vertex, axis : int
        Position of the gate, of the vertex, 0 for x and 1 for y.
    name : str
    """

    gate: int
    vertex: int
    axis: int
    name: str

    def total(self, module: SetModule, x: Tensor, cells: Tensor) -> Tensor:
        """Coordinate in one sample, a scalar; it has no targets to choose among."""
        return self.mean(module, x)

    def mean(self, module: SetModule, x: Tensor) -> Tensor:
        """Coordinate in one sample, a scalar."""
        return self.coordinate(module, streamed(module, x).contexts)

    def coordinate(self, module: SetModule, contexts: Sequence[AttentionContext]) -> Tensor:
        """Coordinate in one sample, from its contexts."""
        net = cast(PolygonFormer, module)
        no_cells = net.input_mean.new_zeros(0, len(net.input_mean))
        vertices = net.polygons(no_cells, extend=False, contexts=contexts)
        return vertices[0, self.gate, self.vertex, self.axis]


@dataclass(frozen=True)
class SizeOutput:
    """Soft count of the cells in a gate and its parents.

    Parameters
    ----------
    gates : list of SoftGate
    gate : int
        Position among them.
    name : str
    """

    gates: list[SoftGate]
    gate: int
    name: str

    def __call__(self, logits: Tensor) -> Tensor:
        """Soft membership per cell from what the net gives, (N, G) -> (N,)."""
        return soft_members(self.gates, torch.sigmoid(logits))[:, self.gate]

    def total(self, module: SetModule, x: Tensor, cells: Tensor) -> Tensor:
        """Sum of the soft membership of the targets, a scalar."""
        return self(streamed(module, x).outputs)[cells].sum()

    def mean(self, module: SetModule, x: Tensor) -> Tensor:
        """Soft count over all cells of one sample, a scalar."""
        everything = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return self.total(module, x, everything)


Output = ClassOutput | VertexOutput | SizeOutput


def gate_output(
    estimator: PolygonRegressor,
    gate: str,
    vertex: int | None,
    axis: str | None,
    size: bool,
) -> VertexOutput | SizeOutput:
    """Resolve a gate's vertex coordinate or size by name.

    Raises
    ------
    InvalidInputError, MissingKeyError
        An unknown gate, vertex or axis, a boolean gate's vertex, or both or neither of vertex and
        size; the message lists what there is.
    """
    require_key(gate, estimator.tree_.gates, "the gate")
    if size == (vertex is not None):
        raise InvalidInputError(
            f"gate={gate!r}: say what of it, either size=True or vertex=<number> with axis='x' or "
            "'y'."
        )
    names = estimator.gates_
    if size:
        place = list(estimator.tree_.gates).index(gate)
        return SizeOutput(soft_gates(estimator.tree_), place, f"size of {gate}")
    if gate not in names:
        raise InvalidInputError(
            f"Gate {gate!r} combines others and has no vertices; gates with a polygon are "
            f"{listed(names)}."
        )
    n_vertices = estimator.net_.module_.gates.log_radius.shape[1]
    if not isinstance(vertex, (int, np.integer)) or not 0 <= vertex < n_vertices:
        raise InvalidInputError(
            f"vertex={vertex!r}: the polygons have the vertices 0 to {n_vertices - 1}."
        )
    if axis not in ("x", "y"):
        raise InvalidInputError(f"axis={axis!r} is neither 'x' nor 'y'.")
    polygon = cast(PolygonGate, estimator.tree_[gate])
    marker = polygon.x if axis == "x" else polygon.y
    return VertexOutput(
        names.index(gate),
        int(vertex),
        "xy".index(axis),
        f"{marker} of vertex {vertex} of {gate}",
    )


def class_output(
    classes: np.ndarray, default: Any, target: Any, versus: Any, kind: str
) -> ClassOutput:
    """Resolve a target by name.

    Parameters
    ----------
    classes : ndarray of shape (C,)
    default : label or None
        Explained where ``target`` is None.
    target, versus : label or None
    kind : {"log_odds", "probability"}

    Raises
    ------
    InvalidInputError
        An unknown class, output or combination; the message lists what there is.
    """
    if kind not in OUTPUTS:
        raise InvalidInputError(f"output={kind!r} is not among {listed(OUTPUTS)}.")
    if versus is not None and kind == "probability":
        raise InvalidInputError(
            "A difference of two classes has no probability; use output='log_odds' with versus."
        )
    chosen = default if target is None else target
    if chosen is None:
        raise InvalidInputError(
            f"There are more than two classes: name one as target, of {listed(classes)}."
        )
    for what, label in (("target", chosen), ("versus", versus)):
        if label is not None and label not in classes:
            raise InvalidInputError(f"{what}={label!r} is not among the classes {listed(classes)}.")
    if versus is not None and versus == chosen:
        raise InvalidInputError(f"target and versus are both {chosen!r}; name two classes.")
    column = {label: i for i, label in enumerate(classes.tolist())}
    negative = None if versus is None else column[versus]
    against = "the rest" if versus is None else str(versus)
    name = f"P({chosen})" if kind == "probability" else f"log-odds of {chosen} against {against}"
    return ClassOutput(column[chosen], negative, kind, name)
