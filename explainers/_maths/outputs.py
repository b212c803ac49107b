"""Explained outputs: a number per cell, or a number of a gate of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fcm_estimators.nn import PolygonFormer, SetModule, streamed
from fcm_estimators.nn.relu_attention import AttentionContext
from fcm_estimators.nn.reluformer import ScaledModule
from fcm_estimators.nn.soft_gates import SoftGate, soft_members


@dataclass(frozen=True)
class ClassOutput:
    """Log-odds or probability of a class, against the rest or against one other class.

    Parameters
    ----------
    positive : int
        Column of the class.
    negative : int or None
        Column of the class to compare with; None for all other classes together.
    kind : {"log_odds", "probability", "share"}
    name : str
        Name in tables, plots and the run record.
    threshold : float, default 0
        Log-odds at which a "share" is 1/2.
    """

    positive: int
    negative: int | None
    kind: str
    name: str
    threshold: float = 0.0
    is_mean = True

    def __call__(self, logits: Tensor) -> Tensor:
        """Output per cell from the logits of the net, (N, C) -> (N,)."""
        if self.kind == "probability":
            return torch.softmax(logits, -1)[:, self.positive]
        if self.negative is not None:
            return logits[:, self.positive] - logits[:, self.negative]
        rest = [c for c in range(logits.shape[1]) if c != self.positive]
        log_odds = logits[:, self.positive] - torch.logsumexp(logits[:, rest], -1)
        return torch.sigmoid(log_odds - self.threshold) if self.kind == "share" else log_odds

    def total(self, module: ScaledModule, x: Tensor, cells: Tensor) -> Tensor:
        """Sum over the targets among the cells ``x`` of one sample; a scalar."""
        if not isinstance(module, SetModule):
            return self(module(x))[cells].sum()
        return self(streamed(module, x).outputs)[cells].sum()

    def mean(
        self, module: ScaledModule, x: Tensor, contexts: Sequence[AttentionContext] | None = None
    ) -> Tensor:
        """Mean over all cells of one sample, in its own or other contexts; a scalar."""
        given = {} if contexts is None else {"contexts": contexts}
        return self(module(x, **given)).mean()


@dataclass(frozen=True)
class VertexOutput:
    """One coordinate of one vertex of a gate's polygon, in the user's units.

    The vertex is that of the net, before vertices at the end of an axis are moved.

    Parameters
    ----------
    gate, vertex, axis : int
        Position of the gate, number of the vertex, and 0 for x or 1 for y.
    name : str
    """

    gate: int
    vertex: int
    axis: int
    name: str
    is_mean = False

    def total(self, module: ScaledModule, x: Tensor, cells: Tensor) -> Tensor:
        """Coordinate in one sample; a scalar. It does not depend on the targets."""
        return self.mean(module, x)

    def mean(self, module: ScaledModule, x: Tensor) -> Tensor:
        """Coordinate in one sample; a scalar."""
        net = cast(PolygonFormer, module)
        return self.coordinate(net, streamed(net, x).contexts)

    def coordinate(self, module: SetModule, contexts: Sequence[AttentionContext]) -> Tensor:
        """Coordinate in one sample, from its contexts."""
        net = cast(PolygonFormer, module)
        no_cells = net.input_mean.new_zeros(0, len(net.input_mean))
        vertices = net.polygons(no_cells, extend=False, contexts=contexts)
        return vertices[0, self.gate, self.vertex, self.axis]


@dataclass(frozen=True)
class SizeOutput:
    """Soft number of the cells in a gate and its parents.

    Parameters
    ----------
    gates : list of SoftGate
    gate : int
        Position of the gate in ``gates``.
    name : str
    """

    gates: list[SoftGate]
    gate: int
    name: str
    is_mean = False

    def __call__(self, logits: Tensor) -> Tensor:
        """Soft membership per cell from the logits of the net, (N, G) -> (N,)."""
        return soft_members(self.gates, torch.sigmoid(logits))[:, self.gate]

    def total(self, module: ScaledModule, x: Tensor, cells: Tensor) -> Tensor:
        """Sum of the soft membership of the targets; a scalar."""
        return self(streamed(cast(PolygonFormer, module), x).outputs)[cells].sum()

    def mean(self, module: ScaledModule, x: Tensor) -> Tensor:
        """Sum over all cells of one sample; a scalar."""
        everything = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return self.total(module, x, everything)


Output = ClassOutput | VertexOutput | SizeOutput
