"""ReluFormer: an encoder of whole samples and a linear head for each cell."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from fcm_estimators.nn.relu_attention import AttentionContext, attend, attention_context


class LayerTrace(NamedTuple):
    """Results of one layer; they suffice to compute its attention without running it again.

    Attributes
    ----------
    q, k : Tensor of shape (N, D)
        Queries and keys before the feature map.
    context : AttentionContext
        Context of the layer.
    output : Tensor of shape (N, D)
        Output of the layer and input of the next.
    """

    q: Tensor
    k: Tensor
    context: AttentionContext
    output: Tensor


class ReluFormerLayer(nn.Module):
    """One layer: ReLU attention and a feed-forward step.

    ``h = LayerNorm(q + attend(q, context))``, ``y = LayerNorm(h + relu(W h + b))``. As published,
    the residual is the projected query.

    Parameters
    ----------
    in_dim : int
        Width of the input: the number of markers M for the first layer, D for the others.
    hidden_dim : int
        Width D.
    n_heads : int
        Number of heads H; divides D.
    eps : float
        Added to the mean normaliser of the attention.

    References
    ----------
    arXiv 2307.14581, section on the ReluFormer.
    """

    def __init__(self, in_dim: int, hidden_dim: int, n_heads: int, eps: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.eps = eps
        self.query = nn.Linear(in_dim, hidden_dim)
        self.key = nn.Linear(in_dim, hidden_dim)
        self.value = nn.Linear(in_dim, hidden_dim)
        self.feedforward = nn.Linear(hidden_dim, hidden_dim)
        self.norm_attention = nn.LayerNorm(hidden_dim)
        self.norm_feedforward = nn.LayerNorm(hidden_dim)

    def trace(
        self,
        h: Tensor,
        offsets: Sequence[int],
        *,
        context: AttentionContext | None = None,
        context_weight: Tensor | None = None,
    ) -> LayerTrace:
        """Run the layer on packed cells.

        Parameters
        ----------
        h : Tensor of shape (N, in_dim)
        offsets : sequence of S + 1 int
        context : AttentionContext, optional
            Context that the cells attend to. Default: it is computed from ``h``.
        context_weight : Tensor of shape (N,), optional
            Weight of each cell in the context. Default: 1 for all.

        Returns
        -------
        LayerTrace
        """
        q, k = self.query(h), self.key(h)
        if context is None:
            context = attention_context(
                k, self.value(h), offsets, self.n_heads, weight=context_weight
            )
        return LayerTrace(q, k, context, self.read(q, context, offsets))

    def read(self, q: Tensor, context: AttentionContext, offsets: Sequence[int]) -> Tensor:
        """Output of the layer, (N, D), from its queries and the context that they read."""
        h: Tensor = self.norm_attention(q + attend(q, context, offsets, self.n_heads, self.eps))
        y: Tensor = self.norm_feedforward(h + torch.relu(self.feedforward(h)))
        return y


class ScaledModule(nn.Module):
    """Net that clips and standardises its input; base class of all nets of the estimators.

    The module clips its inputs (buffers ``input_lowest`` and ``input_highest``) and standardises
    them (``input_mean`` and ``input_scale``), so gradients are per unit of the caller's values and
    the state dict is the complete model. Contexts are means over cells; without limits, one wild
    value would move them. A clipped value has gradient 0.

    Parameters
    ----------
    n_markers : int
        Markers M.
    """

    input_mean: Tensor
    input_scale: Tensor
    input_lowest: Tensor
    input_highest: Tensor

    def __init__(self, n_markers: int) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.zeros(n_markers))
        self.register_buffer("input_scale", torch.ones(n_markers))
        self.register_buffer("input_lowest", torch.full((n_markers,), -torch.inf))
        self.register_buffer("input_highest", torch.full((n_markers,), torch.inf))

    @property
    def name(self) -> str:
        """Name of the class of the net."""
        return type(self).__name__

    def forget_calibration(self) -> None:
        """Reset what was fitted to held-out samples after training; nothing by default."""

    def copy_scale(self, other: ScaledModule) -> None:
        """Take over the buffers of another net, which were measured on its training data.

        Calibration is not among them: it suits the parameters of the other net.
        """
        for name, value in other.named_buffers():
            self.get_buffer(name).copy_(value)
        self.forget_calibration()

    def standardise(self, x: Tensor) -> Tensor:
        """Clip cells, and standardise them by the mean and SD of the training data."""
        clipped = x.clamp(self.input_lowest, self.input_highest)
        return (clipped - self.input_mean) / self.input_scale


class SetModule(ScaledModule):
    """Encoder of whole samples that standardises its input; base class of the two models.

    Subclasses compute their outputs from the encoded cells in :meth:`read_out`. They do not
    override the way there: streams run the layers themselves.

    Parameters
    ----------
    n_markers : int
        Markers M.
    hidden_dim : int, default 32
        Width D.
    n_heads : int, default 4
        Heads H; must divide ``hidden_dim``.
    n_layers : int, default 4
        Number of layers L.
    eps : float, default 1e-2
        Added to the mean normaliser of the attention. The published form adds 1e-5 to the sum over
        N cells, which corresponds to ``eps = 1e-5 / N``.
    stand_ins : bool, default False
        Whether a marker may be missing, as NaN. A missing marker is 0 after standardisation, and a
        learned vector of shape (M,) is added for it. Not part of the published form.
    """

    stand_in: nn.Parameter | None

    def __init__(
        self,
        n_markers: int,
        *,
        hidden_dim: int = 32,
        n_heads: int = 4,
        n_layers: int = 4,
        eps: float = 1e-2,
        stand_ins: bool = False,
    ) -> None:
        super().__init__(n_markers)
        if hidden_dim % n_heads:
            raise ValueError(
                f"hidden_dim={hidden_dim} is not a multiple of n_heads={n_heads}; "
                "heads are equal blocks of the width"
            )
        vectors = nn.Parameter(torch.zeros(n_markers, n_markers)) if stand_ins else None
        self.register_parameter("stand_in", vectors)
        self.hidden_dim, self.n_heads, self.eps = hidden_dim, n_heads, eps
        widths = [n_markers] + [hidden_dim] * n_layers
        self.layers = nn.ModuleList(
            ReluFormerLayer(width, hidden_dim, n_heads, eps) for width in widths[:-1]
        )

    def standardise(self, x: Tensor) -> Tensor:
        """Clip and standardise cells, and stand in for missing markers."""
        z = super().standardise(x)
        if self.stand_in is None:
            return z
        missing = torch.isnan(z)
        return z.masked_fill(missing, 0) + missing.to(z.dtype) @ self.stand_in

    @torch.no_grad()
    def without(self, markers: Sequence[int]) -> Self:
        """A net of the published form that does not read some markers.

        Its outputs are those of this net for cells where these markers are NaN.

        Parameters
        ----------
        markers : sequence of int
            Positions of the markers. This net has ``stand_ins``.
        """
        vectors = cast(Tensor, self.stand_in)
        kept = [i for i in range(len(self.input_mean)) if i not in set(markers)]
        net = copy.deepcopy(self)
        for name, values in self.named_buffers(recurse=False):
            if name.startswith("input_"):
                setattr(net, name, values[kept])
        net.stand_in = None
        first = cast(ReluFormerLayer, net.layers[0])
        for linear in (first.query, first.key, first.value):
            linear.bias.add_(linear.weight @ vectors[list(markers)].sum(0))
            linear.weight = nn.Parameter(linear.weight[:, kept].contiguous())
            linear.in_features = len(kept)
        return net

    def trace(
        self,
        x: Tensor,
        offsets: Sequence[int] | None = None,
        *,
        contexts: Sequence[AttentionContext] | None = None,
        context_weight: Tensor | None = None,
    ) -> Iterator[LayerTrace]:
        """Run the layers one after the other and yield the results of each.

        Parameters are those of :meth:`forward`.
        """
        offsets = [0, len(x)] if offsets is None else offsets
        h = self.standardise(x)
        for i, layer in enumerate(self.layers):
            step = cast(ReluFormerLayer, layer).trace(
                h,
                offsets,
                context=None if contexts is None else contexts[i],
                context_weight=context_weight,
            )
            yield step
            h = step.output

    def encode(
        self,
        x: Tensor,
        offsets: Sequence[int] | None = None,
        *,
        contexts: Sequence[AttentionContext] | None = None,
        context_weight: Tensor | None = None,
    ) -> Tensor:
        """Output of the last layer for each cell; parameters are those of :meth:`forward`."""
        steps = self.trace(x, offsets, contexts=contexts, context_weight=context_weight)
        return deque(steps, maxlen=1).pop().output

    def pool(self, encoded: Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values of an additional context of the encoded cells; None for no context."""
        return None

    def read_out(
        self,
        x: Tensor,
        encoded: Tensor,
        offsets: Sequence[int],
        *,
        contexts: Sequence[AttentionContext] | None = None,
        context_weight: Tensor | None = None,
    ) -> Tensor:
        """Outputs per cell, shape (N, n_outputs), from encoded cells of shape (N, D).

        If ``contexts`` include that of :meth:`pool`, the encoded cells are not used: the outputs
        depend only on the markers of the cells and on the contexts.
        """
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        offsets: Sequence[int] | None = None,
        *,
        contexts: Sequence[AttentionContext] | None = None,
        context_weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the outputs of every cell.

        Parameters
        ----------
        x : Tensor of shape (N, M)
            Cells in the caller's units, samples packed.
        offsets : sequence of S + 1 int, optional
            Row limits of the samples. Default: all rows are one sample.
        contexts : sequence of AttentionContext, optional
            Contexts from :meth:`contexts`, used instead of those of ``x``. Cells are then
            independent of each other.
        context_weight : Tensor of shape (N,), optional
            Weight of each cell in the contexts. A cell of weight 0 only reads the contexts.

        Returns
        -------
        Tensor of shape (N, n_outputs)
        """
        offsets = [0, len(x)] if offsets is None else offsets
        h = self.encode(x, offsets, contexts=contexts, context_weight=context_weight)
        return self.read_out(x, h, offsets, contexts=contexts, context_weight=context_weight)

    def contexts(
        self,
        x: Tensor,
        offsets: Sequence[int] | None = None,
        *,
        context_weight: Tensor | None = None,
    ) -> list[AttentionContext]:
        """Contexts of all layers for the samples in ``x``."""
        return [s.context for s in self.trace(x, offsets, context_weight=context_weight)]


class ReluFormer(SetModule):
    """Compute the logits of each cell from all cells of its sample.

    Parameters
    ----------
    n_markers : int
        Markers M.
    n_outputs : int
        Outputs per cell, one logit per class.
    **encoder
        Further parameters of :class:`SetModule`.

    Examples
    --------
    >>> import torch
    >>> from fcm_estimators.nn import ReluFormer
    >>> net = ReluFormer(n_markers=5, n_outputs=2)
    >>> cells = torch.randn(300, 5)
    >>> net(cells, offsets=[0, 100, 300]).shape  # two samples, 100 and 200 cells
    torch.Size([300, 2])
    """

    def __init__(self, n_markers: int, n_outputs: int, **encoder: Any) -> None:
        super().__init__(n_markers, **encoder)
        self.output = nn.Linear(self.hidden_dim, n_outputs)

    def read_out(
        self,
        x: Tensor,
        encoded: Tensor,
        offsets: Sequence[int],
        *,
        contexts: Sequence[AttentionContext] | None = None,
        context_weight: Tensor | None = None,
    ) -> Tensor:
        """Logits of encoded cells, shape (N, n_outputs)."""
        logits: Tensor = self.output(encoded)
        return logits
