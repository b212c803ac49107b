"""Predict the polygons of a gating tree from all cells of a sample.

A gate is a *star polygon*: a centre and V radii at fixed angles. Its vertices are ordered by
construction; it never crosses itself and need not be convex. Let ``w`` be the inverse radii, and
``p`` the position of a cell relative to the centre, between the directions ``u_k`` and ``u_k+1``.
The relative distance of the cell from the centre is

    rho(p) = (w_k+1 cross(u_k, p) + w_k cross(p, u_k+1)) / sin(2 pi / V)

It is 0 at the centre and 1 on the outline. ``rho`` is linear in ``p`` within each sector, so its
gradient is finite everywhere, also at the centre.

References
----------
Kowarsch et al., *Towards Self-explainable Transformers for Cell Classification in Flow Cytometry
Data*, iMIMIC 2022. That paper predicts unordered vertices and takes their convex hull.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcm_estimators.nn.relu_attention import AttentionContext, attend, attention_context
from fcm_estimators.nn.reluformer import LayerTrace, SetModule

# Width of the soft outline: the logit of the membership is -log(rho) / _SOFTNESS.
_SOFTNESS = 0.1
# Below this rho, a cell is inside and its logit is constant, without a gradient.
_CORE = 0.05
# Largest change by a net: of the centre in training SD, of the logarithm of a radius.
_CENTRE_BOUND = 2.0
_RADIUS_BOUND = 1.5
# Of a gate that is open at the end of an axis, a vertex within NEAR_LIMIT of the end is moved
# outwards until it is _BEYOND_LIMIT beyond the end (both are shares of the axis), so that saturated
# events stay inside. Its distance from the centre grows at most by the factor _MAX_EXTENSION.
NEAR_LIMIT, _BEYOND_LIMIT, _MAX_EXTENSION = 0.01, 0.05, 2.0


class Shapes(NamedTuple):
    """Star polygons of S samples and G gates.

    Attributes
    ----------
    centre : Tensor of shape (S, G, 2)
        Centres in training SD of the plane's markers.
    log_radius : Tensor of shape (S, G, V)
        Logarithm of the radii, in units of the gate's ``spread``.
    """

    centre: Tensor
    log_radius: Tensor


class StarGates(nn.Module):
    """Planes of the gates, and the typical polygon in each.

    Parameters
    ----------
    axes : sequence of G pairs of int
        Markers of the x and y axis of each gate.
    n_vertices : int
        Vertices V.

    Attributes
    ----------
    centre, spread : Tensor of shape (G, 2)
        Buffers: typical centre, and SD of the cells inside; both in training SD of the markers.
    log_radius : Tensor of shape (G, V)
        Buffer: typical radii, in units of ``spread``.
    limits : Tensor of shape (2, G, 2)
        Buffer: lower and upper ends of the axes, in training SD.
    is_open : bool Tensor of shape (2, G, 2)
        Buffer: whether the gate holds what is at or beyond that end.
    """

    axes: Tensor
    centre: Tensor
    spread: Tensor
    log_radius: Tensor
    limits: Tensor
    is_open: Tensor
    directions: Tensor

    def __init__(self, axes: Sequence[tuple[int, int]], n_vertices: int) -> None:
        super().__init__()
        n_gates = len(axes)
        angle = 2 * math.pi * torch.arange(n_vertices, dtype=torch.float64) / n_vertices
        directions = torch.stack([angle.cos(), angle.sin()], 1)
        self.register_buffer("axes", torch.tensor(axes, dtype=torch.int64).reshape(n_gates, 2))
        self.register_buffer("centre", torch.zeros(n_gates, 2))
        self.register_buffer("spread", torch.ones(n_gates, 2))
        self.register_buffer("log_radius", torch.full((n_gates, n_vertices), math.log(2.0)))
        unlimited = torch.full((1, n_gates, 2), math.inf)
        self.register_buffer("limits", torch.cat([-unlimited, unlimited]))
        self.register_buffer("is_open", torch.ones(2, n_gates, 2, dtype=torch.bool))
        self.register_buffer("directions", directions.float(), persistent=False)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of one polygon: two for the centre, V radii."""
        return 2 + self.log_radius.shape[1]

    def shapes(self, change: Tensor) -> Shapes:
        """Make polygons by bounded changes of the typical ones.

        Parameters
        ----------
        change : Tensor of shape (S, G, 2 + V)
            Unbounded changes; 0 gives the typical polygon.
        """
        moved = _CENTRE_BOUND * torch.tanh(change[..., :2] / _CENTRE_BOUND)
        factor = _RADIUS_BOUND * torch.tanh(change[..., 2:] / _RADIUS_BOUND)
        return Shapes(self.centre + moved, self.log_radius + factor)

    def membership(self, z: Tensor, shapes: Shapes, offsets: Sequence[int]) -> Tensor:
        """Soft membership of each cell in each gate, regardless of parents.

        Parameters
        ----------
        z : Tensor of shape (N, M)
            Standardised cells, samples packed.
        shapes : Shapes of S samples
        offsets : sequence of S + 1 int

        Returns
        -------
        Tensor of shape (N, G)
            Logits: 0 on the outline, positive inside.
        """
        counts = torch.tensor(offsets, device=z.device).diff()
        rows = torch.repeat_interleave(torch.arange(len(counts), device=z.device), counts)
        place = (z[:, self.axes] - shapes.centre[rows]) / self.spread
        rho = self._relative_distance(place, torch.exp(-shapes.log_radius), rows)
        # Below _CORE the cell is inside for any outline, and clamp gives no gradient.
        return -torch.log(rho.clamp(min=_CORE)) / _SOFTNESS

    def _relative_distance(self, place: Tensor, inverse: Tensor, rows: Tensor) -> Tensor:
        """``rho`` of cells at ``place`` (N, G, 2) in polygons with ``inverse`` radii (S, G, V)."""
        n_vertices = inverse.shape[-1]
        step = 2 * math.pi / n_vertices
        with torch.no_grad():
            angle = torch.atan2(place[..., 1], place[..., 0])
            first = torch.floor(angle / step).long() % n_vertices
        second = (first + 1) % n_vertices
        gate = torch.arange(place.shape[1], device=place.device)
        w_first, w_second = (inverse[rows[:, None], gate, k] for k in (first, second))
        u_first, u_second = (self.directions[k] for k in (first, second))
        return (w_second * _cross(u_first, place) + w_first * _cross(place, u_second)) / math.sin(
            step
        )

    def set_limits(self, ends: Tensor, is_open: Tensor | None = None) -> None:
        """Set the ends of the axes.

        Parameters
        ----------
        ends : Tensor of shape (2, M)
            Lowest and highest cell of each marker.
        is_open : bool Tensor of shape (2, G, 2), optional
            Default: all gates are open at all ends.
        """
        self.limits.copy_(ends[:, self.axes])
        self.is_open.fill_(True)
        if is_open is not None:
            self.is_open.copy_(is_open)

    def vertices(self, shapes: Shapes) -> Tensor:
        """Predicted vertices in training SD, anticlockwise; shape (S, G, V, 2)."""
        radius = torch.exp(shapes.log_radius).unsqueeze(-1) * self.directions
        return shapes.centre.unsqueeze(2) + radius * self.spread.unsqueeze(1)

    def extended(self, shapes: Shapes) -> Tensor:
        """Vertices; those at an open end of an axis are moved beyond it, away from the centre.

        The polygon remains a star around its centre.
        """
        centre = shapes.centre.unsqueeze(2)
        arm = self.vertices(shapes) - centre
        low, high = self.limits.unsqueeze(2)
        outward = arm.sign()
        end = torch.where(outward > 0, high, low)
        length = high - low
        # Whether the vertex is near the end, and how far it has to reach, along each axis.
        near = (end - centre - arm) * outward <= NEAR_LIMIT * length
        lower, upper = self.is_open.unsqueeze(2)
        near &= torch.where(outward > 0, upper, lower)
        reach = (end - centre) * outward + _BEYOND_LIMIT * length
        factor = torch.where(near & (arm.abs() > 1e-6), reach / arm.abs().clamp(min=1e-6), 1.0)
        return centre + arm * factor.amax(-1, keepdim=True).clamp(1.0, _MAX_EXTENSION)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


class GatePooling(nn.Module):
    """ReLU attention of one learned query per gate to the encoded cells of a sample.

    ``r = attend(q, context)``, ``h = LayerNorm(q + r)``, ``y = LayerNorm(h + relu(W h + b))``. This
    is a layer of the encoder with learned queries. Values include the markers in addition to the
    encoded cell. The output includes ``r`` in addition to ``y``: it tells where the attended cells
    are, without a norm.

    Parameters
    ----------
    n_markers, n_gates, hidden_dim, n_heads : int
    eps : float
    """

    def __init__(
        self, n_markers: int, n_gates: int, hidden_dim: int, n_heads: int, eps: float
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.eps = eps
        self.query = nn.Parameter(torch.randn(n_gates, hidden_dim))
        self.key = nn.Linear(hidden_dim, hidden_dim)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.place = nn.Linear(n_markers, hidden_dim)
        self.feedforward = nn.Linear(hidden_dim, hidden_dim)
        self.norm_attention = nn.LayerNorm(hidden_dim)
        self.norm_feedforward = nn.LayerNorm(hidden_dim)

    def trace(
        self,
        h: Tensor,
        z: Tensor,
        offsets: Sequence[int],
        *,
        context: AttentionContext | None = None,
        context_weight: Tensor | None = None,
    ) -> LayerTrace:
        """Attend to packed cells.

        ``k`` has N rows of width D. Per sample, ``q`` has G rows of width D, and ``output`` has G
        rows of width 2 D.
        """
        k, v = self.keys_values(h, z)
        if context is None:
            context = attention_context(k, v, offsets, self.n_heads, weight=context_weight)
        q, output = self.read(context)
        return LayerTrace(q, k, context, output)

    def keys_values(self, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (N, D) each, of encoded cells ``h`` and standardised cells ``z``."""
        return self.key(h), self.value(h) + self.place(z)

    def read(self, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """Queries (S G, D), and their output (S G, 2 D) for the context of S samples."""
        n_samples, n_gates = len(context.key), len(self.query)
        q = self.query.repeat(n_samples, 1)
        limits = [n_gates * s for s in range(n_samples + 1)]
        read = attend(q, context, limits, self.n_heads, self.eps)
        g = self.norm_attention(q + read)
        y = self.norm_feedforward(g + torch.relu(self.feedforward(g)))
        return q, torch.cat([y, read * read.shape[1] ** 0.5], 1)


class PolygonFormer(SetModule):
    """Predict the polygon of every gate from all cells of a sample, and soft membership.

    Parameters
    ----------
    n_markers : int
        Markers M.
    axes : sequence of G pairs of int
        Markers of the x and y axis of each gate.
    n_vertices : int, default 16
        Vertices V.
    **encoder
        Further parameters of :class:`SetModule`.

    Examples
    --------
    >>> import torch
    >>> from fcm_estimators.nn import PolygonFormer
    >>> net = PolygonFormer(n_markers=5, axes=[(0, 1), (2, 3), (2, 4)])
    >>> cells = torch.randn(300, 5)
    >>> net(cells, offsets=[0, 100, 300]).shape  # two samples, three gates
    torch.Size([300, 3])
    >>> net.polygons(cells, offsets=[0, 100, 300]).shape
    torch.Size([2, 3, 16, 2])
    """

    def __init__(
        self,
        n_markers: int,
        axes: Sequence[tuple[int, int]],
        n_vertices: int = 16,
        **encoder: Any,
    ) -> None:
        super().__init__(n_markers, **encoder)
        self.gates = StarGates(axes, n_vertices)
        width = self.hidden_dim
        self.pooling = GatePooling(n_markers, len(axes), width, self.n_heads, self.eps)
        # With zeros, training starts from the typical polygons.
        self.weight = nn.Parameter(torch.zeros(len(axes), 2 * width, self.gates.n_parameters))
        self.bias = nn.Parameter(torch.zeros(len(axes), self.gates.n_parameters))
        self.register_buffer("change_scale", torch.ones(len(axes), 1))
        self.register_buffer("change_offset", torch.zeros(len(axes), self.gates.n_parameters))

    change_scale: Tensor
    change_offset: Tensor

    def forget_calibration(self) -> None:
        """Let predicted changes be as the net has learnt them."""
        self.change_scale.fill_(1.0)
        self.change_offset.fill_(0.0)

    def shapes(
        self,
        encoded: Tensor,
        z: Tensor,
        offsets: Sequence[int],
        *,
        contexts: Sequence[AttentionContext] | None = None,
        context_weight: Tensor | None = None,
    ) -> Shapes:
        """Polygons from encoded and standardised cells."""
        if contexts is not None:
            return self.shapes_in(contexts[len(self.layers)])
        step = self.pooling.trace(encoded, z, offsets, context_weight=context_weight)
        return self.gates.shapes(self._change_of(step.output))

    def shapes_in(self, context: AttentionContext) -> Shapes:
        """Polygons from the context that the queries of the gates read."""
        return self.gates.shapes(self.change_in(context))

    def change_in(self, context: AttentionContext) -> Tensor:
        """Unbounded changes of the typical polygons, shape (S, G, 2 + V)."""
        return self._change_of(self.pooling.read(context)[1])

    def _change_of(self, output: Tensor) -> Tensor:
        pooled = torch.unflatten(output, 0, (-1, len(self.weight)))
        learnt = torch.einsum("sgd,gdp->sgp", pooled, self.weight) + self.bias
        return learnt * self.change_scale + self.change_offset

    @torch.no_grad()
    def adjust(self, scale: Tensor, offset: Tensor) -> None:
        """Replace every learnt change by ``scale * change + offset`` from now on.

        Parameters
        ----------
        scale : Tensor of shape (G, 1)
        offset : Tensor of shape (G, 2 + V)
        """
        self.change_scale.copy_(scale)
        self.change_offset.copy_(offset)

    def pool(self, encoded: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the cells, for the queries of the gates."""
        return self.pooling.keys_values(encoded, self.standardise(x))

    def read_out(
        self,
        x: Tensor,
        encoded: Tensor,
        offsets: Sequence[int],
        *,
        contexts: Sequence[AttentionContext] | None = None,
        context_weight: Tensor | None = None,
    ) -> Tensor:
        """Logits of the membership of every cell in every gate, shape (N, G)."""
        shapes = self.shapes(
            encoded, self.standardise(x), offsets, contexts=contexts, context_weight=context_weight
        )
        return self.gates.membership(self.standardise(x), shapes, offsets)

    def polygons(
        self,
        x: Tensor,
        offsets: Sequence[int] | None = None,
        *,
        extend: bool = True,
        contexts: Sequence[AttentionContext] | None = None,
    ) -> Tensor:
        """Vertices of every gate in the caller's units, shape (S, G, V, 2).

        With ``extend``, vertices at the end of an axis of the training data are moved beyond it.
        With ``contexts``, the polygons depend only on them, and not on the cells ``x``.
        """
        if contexts is not None:
            shapes = self.shapes_in(contexts[len(self.layers)])
        else:
            offsets = [0, len(x)] if offsets is None else offsets
            shapes = self.shapes(self.encode(x, offsets), self.standardise(x), offsets)
        return self.in_units(self.gates.extended(shapes) if extend else self.gates.vertices(shapes))

    def typical(self) -> Tensor:
        """Vertices of the typical polygons in the caller's units, shape (G, V, 2)."""
        gates = self.gates
        shapes = Shapes(gates.centre.unsqueeze(0), gates.log_radius.unsqueeze(0))
        return self.in_units(gates.extended(shapes))[0]

    def in_units(self, vertices: Tensor) -> Tensor:
        """Vertices (..., G, V, 2) in the caller's units, from training SD."""
        axes = self.gates.axes
        return vertices * self.input_scale[axes].unsqueeze(1) + self.input_mean[axes].unsqueeze(1)

    def contexts(
        self,
        x: Tensor,
        offsets: Sequence[int] | None = None,
        *,
        context_weight: Tensor | None = None,
    ) -> list[AttentionContext]:
        """Contexts of all layers and of the pooling, for the samples in ``x``."""
        offsets = [0, len(x)] if offsets is None else offsets
        steps = list(self.trace(x, offsets, context_weight=context_weight))
        pooled = self.pooling.trace(
            steps[-1].output, self.standardise(x), offsets, context_weight=context_weight
        )
        return [*(s.context for s in steps), pooled.context]
