"""Whole samples of any size, chunk by chunk: exact forward and backward at bounded memory.

All that a layer needs of the other cells is its context, a mean over cells. A sample therefore
goes through the net in sweeps: one that makes the context of the first layer, then one per layer
that reads the layer's queries, computes its output, and from that, while it is in the cache, the
queries of the next layer, stored in their place, and the next context. The residual of a layer is
its query, so queries are all that is stored.

Backward the same in reverse: a context's gradient is a sum over cells as well. Each sweep
recomputes one layer from its stored queries, chunk by chunk, and puts the gradient of the queries
in their place; the gradient of the context goes back through keys and values in the next sweep.

References
----------
Katharopoulos et al., *Transformers are RNNs*, arXiv 2006.16236 (attention as sums over cells);
Chen et al., *Training deep nets with sublinear memory cost*, arXiv 1604.06174 (recomputation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fcm_estimators.nn._backward import BackwardSweeps
from fcm_estimators.nn._contexts import divided, of_samples, packed
from fcm_estimators.nn._kernels import Kernels
from fcm_estimators.nn.relu_attention import AttentionContext, context_sums
from fcm_estimators.nn.reluformer import ReluFormerLayer, SetModule
from fcm_estimators.nn.sources import CellSource, PackedCells, Piece, Rows, Stored

# Rows that a GPU works on at once: enough to fill it.
_GPU_ROWS = 1 << 18
# Bytes of a chunk's buffers, in rows of the width. Between 4 and 16 MB the time per cell differs
# by less than a tenth; more does not fit into the caches, less is spent on calls.
_CHUNK_BYTES, _ROW_BUFFERS, _FEWEST_ROWS = 8 << 20, 8, 256


def chunk_rows(module: SetModule, like: Tensor) -> int:
    """Cells per chunk: on a CPU, what a layer computes of them stays in the cache."""
    if like.device.type != "cpu":
        return _GPU_ROWS
    row = _ROW_BUFFERS * module.hidden_dim * like.element_size()
    return max(_FEWEST_ROWS, _CHUNK_BYTES // row)


class Stream:
    """Cells on their way through a net, sweep by sweep.

    The contexts are made at once; what follows is read by chunk.

    Parameters
    ----------
    module : SetModule
        Of the dtype and on the device of the cells.
    source : CellSource
    weight : Tensor of shape (N,), optional
        Weight of each cell in the contexts.
    chunk_size : int, optional
        Cells per chunk. Default: :func:`chunk_rows`.
    keep_layers : bool, default False
        Keep the queries of all layers, which :meth:`backward` needs, instead of one layer's.
    precision : torch.dtype, optional
        Of the layers' arithmetic and of what is kept, lower than the module's: ``bfloat16``, or
        ``float16``. Contexts are summed in float32 and float64 all the same. Forward only.
    store : callable, default Stored.new
        Makes what keeps rows between sweeps.

    Attributes
    ----------
    contexts : list of AttentionContext
        Of all layers, and of the pooling where the module has one.
    """

    def __init__(
        self,
        module: SetModule,
        source: CellSource,
        *,
        weight: Tensor | None = None,
        chunk_size: int | None = None,
        keep_layers: bool = False,
        precision: torch.dtype | None = None,
        store: Callable[[int, int, Tensor], Rows] = Stored.new,
    ) -> None:
        self.module, self.source = module, source
        self._weights = weight
        self._like = module.input_mean
        self._rows = min(chunk_size or chunk_rows(module, self._like), max(source.n_cells, 1))
        self.layers = [cast(ReluFormerLayer, layer) for layer in module.layers]
        n_stores = len(self.layers) if keep_layers else 1
        low = self._like if precision is None else self._like.to(precision)
        stores = [store(source.n_cells, module.hidden_dim, low) for _ in range(n_stores)]
        self.queries = stores if keep_layers else stores * len(self.layers)
        self._keeps_layers = keep_layers and precision is None
        with torch.no_grad():
            self._kernels = Kernels(self.layers, self._rows, low)
            self.total = self._count()
            self.contexts = self._encode()
            self._add_pooled_context()

    # -- forward ------------------------------------------------------------------------------

    def chunks(self) -> Iterator[tuple[int, int, Sequence[Piece]]]:
        """Start, stop and pieces of each chunk."""
        n_cells = self.source.n_cells
        for start in range(0, n_cells, self._rows):
            stop = min(start + self._rows, n_cells)
            yield start, stop, self.source.pieces(start, stop)

    def _weight(self, start: int, stop: int) -> Tensor | None:
        return None if self._weights is None else self._weights[start:stop].to(self._like.dtype)

    def _count(self) -> Tensor:
        """Weight of all cells of each sample, 1 where there is none; shape (S,), float64."""
        total = self._like.new_zeros(self.source.n_samples, dtype=torch.float64)
        for start, stop, pieces in self.chunks():
            weight = self._weight(start, stop)
            for sample, first, last in pieces:
                counted = last - first if weight is None else weight[first:last].double().sum()
                total[sample] += counted
        return torch.where(total > 0, total, torch.ones_like(total))

    def _encode(self) -> list[AttentionContext]:
        """Contexts of all layers; afterwards the queries of the last layer are stored."""
        contexts: list[AttentionContext] = []
        for number, queries in enumerate(self.queries):
            sums = self._kernels.zero_sums(self.source.n_samples)
            cells = self._outputs_of(number - 1, contexts[-1]) if number else self._standardised()
            for start, stop, pieces, h in cells:
                projected = self._kernels.project(number, h)
                queries.put(start, self._kernels.queries(projected))
                self._kernels.add(sums, projected, pieces, self._weight(start, stop))
            contexts.append(self._kernels.context(sums, self.total))
        return contexts

    def _standardised(self) -> Iterator[tuple[int, int, Sequence[Piece], Tensor]]:
        for start, stop, pieces in self.chunks():
            yield start, stop, pieces, self.module.standardise(self.source.read(start, stop))

    def _outputs_of(
        self, number: int, context: AttentionContext
    ) -> Iterator[tuple[int, int, Sequence[Piece], Tensor]]:
        """Chunks with the output of a layer from its stored queries."""
        readers = self._kernels.readers(context)
        for start, stop, pieces in self.chunks():
            q = self.queries[number].get(start, stop)
            yield start, stop, pieces, self._kernels.read(number, q, pieces, readers)

    def _add_pooled_context(self) -> None:
        shape = (self.source.n_samples, *self.contexts[-1].key_value.shape[1:])
        zeros = torch.zeros(shape, dtype=torch.float64, device=self._like.device)
        pooled = AttentionContext(zeros, zeros[..., 0].clone())
        for start, stop, pieces, h in self._outputs_of(len(self.layers) - 1, self.contexts[-1]):
            made = self.module.pool(h.to(self._like.dtype), self.source.read(start, stop))
            if made is None:
                return
            sums = self.sums(*made, start, stop, pieces)
            for piece, parts in zip(pieces, sums, strict=True):
                for into, part in zip(pooled, parts, strict=True):
                    into[piece.sample] += part
        self.contexts.append(divided(pooled, self.total))

    def sums(
        self, k: Tensor, v: Tensor, start: int, stop: int, pieces: Sequence[Piece]
    ) -> list[tuple[Tensor, Tensor]]:
        """What a chunk adds to the context of each of its samples."""
        phi, weight = torch.relu(k), self._weight(start, stop)
        if weight is not None:
            phi = phi * weight.unsqueeze(1)
        n_heads = self.module.n_heads
        return [context_sums(phi[first:last], v[first:last], n_heads) for _, first, last in pieces]

    @property
    def pools(self) -> bool:
        """Whether the outputs are read from a pooled context, and not from encoded cells."""
        return len(self.contexts) > len(self.layers)

    @torch.no_grad()
    def outputs(self) -> Iterator[tuple[int, int, Tensor]]:
        """Start and stop of each chunk and the outputs of its cells."""
        if self.pools:
            cells: Iterator = ((*chunk, None) for chunk in self.chunks())
        else:
            cells = self._outputs_of(len(self.layers) - 1, self.contexts[-1])
        for start, stop, pieces, h in cells:
            encoded = None if h is None else h.to(self._like.dtype)
            yield start, stop, self.read_out(self.source.read(start, stop), encoded, pieces)

    @torch.no_grad()
    def looking(self, number: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Start and stop of each chunk, queries and keys of a layer; in buffers used again.

        Parameters
        ----------
        number : int
            Of the layer; the stream has to keep layers. L for the pooling, whose keys come with
            no queries.
        """
        if number == 0:
            cells = self._standardised()
        else:
            cells = self._outputs_of(number - 1, self.contexts[number - 1])
        width = self.module.hidden_dim
        for start, stop, _, h in cells:
            if number < len(self.layers):
                projected = self._kernels.project(number, h)
                yield start, stop, projected[:, :width], projected[:, width : 2 * width]
            else:
                h = h.to(self._like.dtype)
                k, _ = cast(Any, self.module.pool(h, self.source.read(start, stop)))
                yield start, stop, k[:, :0], k

    def read_out(
        self, x: Tensor, h: Tensor | None, pieces: Sequence[Piece], pooled: Any = None
    ) -> Tensor:
        """Outputs of a chunk; ``pooled`` is the pooled context of its samples."""
        samples, offsets = packed(pieces)
        contexts = [of_samples(context, samples) for context in self.contexts]
        if pooled is not None:
            contexts[-1] = pooled
        return self.module.read_out(x, cast(Tensor, h), offsets, contexts=contexts)

    # -- backward -----------------------------------------------------------------------------

    def backward(
        self,
        grad_outputs: Callable[[int, int, Tensor], Tensor] | None,
        grad_pooled: Sequence[Tensor | None] = (None, None),
        *,
        into: Rows | None = None,
        parameters: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Gradient with respect to all cells and the parameters.

        The stored queries are used up: it can be called once.

        Parameters
        ----------
        grad_outputs : callable or None
            ``grad_outputs(start, stop, outputs)``: gradient with respect to the outputs of these
            cells. None for zero.
        grad_pooled : pair of Tensor or None
            Gradient with respect to the pooled context, beside what comes from the outputs.
        into : Rows of zeros, shape (N, M), optional
            Where to add the gradient with respect to the cells.
        parameters : sequence of Tensor
            Of the module.

        Returns
        -------
        list of Tensor
            Gradients of the parameters.
        """
        if not self._keeps_layers:
            raise RuntimeError(
                "The layers were not kept, or were used up by a backward before. Make the stream "
                "with keep_layers=True, anew for every backward."
            )
        self._keeps_layers = False
        sweeps = BackwardSweeps(self, grad_outputs, into, parameters)
        after = sweeps.pooled(grad_pooled) if self.pools else None
        for number in reversed(range(len(self.layers))):
            after = sweeps.layer(number, after)
        sweeps.first(cast(AttentionContext, after))
        return sweeps.of_parameters


class Streamed(NamedTuple):
    """What a net makes of cells that went through it chunk by chunk.

    Attributes
    ----------
    outputs : Tensor of shape (N, n_outputs)
    contexts : list of AttentionContext
        Of all layers, cut off from the graph, and of the pooling where the module has one.
    """

    outputs: Tensor
    contexts: list[AttentionContext]


def streamed(
    module: SetModule,
    x: Tensor,
    offsets: Sequence[int] | None = None,
    *,
    context_weight: Tensor | None = None,
    parameters: Sequence[Tensor] = (),
    chunk_size: int | None = None,
    precision: torch.dtype | None = None,
) -> Streamed:
    """Run a net on whole samples, chunk by chunk: the same result at a fraction of the memory.

    Backward works chunk by chunk too: beside the gradient of the cells, memory is one row of the
    width per cell and layer. Second derivatives are not provided.

    Parameters
    ----------
    module : SetModule
    x : Tensor of shape (N, M)
        Cells in the caller's units, samples packed.
    offsets : sequence of S + 1 int, optional
        Row limits of the samples. Default: all rows are one sample.
    context_weight : Tensor of shape (N,), optional
        Weight of each cell in the contexts; it gets no gradient.
    parameters : sequence of Tensor, optional
        Parameters of the module that get a gradient. Default: none.
    chunk_size : int, optional
        Cells per chunk. Default: by the cache.
    precision : torch.dtype, optional
        ``bfloat16`` (or ``float16``) for the layers' arithmetic, which a GPU does faster; contexts
        are summed in float32 and float64 all the same. Without gradients. Default: the module's.

    Returns
    -------
    Streamed

    Raises
    ------
    ValueError
        A lower precision where a gradient is asked for.

    Examples
    --------
    >>> import torch
    >>> from fcm_estimators.nn import ReluFormer, streamed
    >>> net, cells = ReluFormer(n_markers=5, n_outputs=2), torch.randn(300, 5, requires_grad=True)
    >>> streamed(net, cells, chunk_size=64).outputs.sum().backward()
    >>> cells.grad.shape
    torch.Size([300, 5])
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    source = PackedCells(x.detach(), offsets)
    differentiable = torch.is_grad_enabled() and (x.requires_grad or bool(parameters))
    if differentiable and precision is not None:
        raise ValueError(
            f"precision={precision} is for prediction; leave it None for gradients, or call it "
            "inside torch.no_grad()"
        )
    stream = Stream(
        module,
        source,
        weight=context_weight,
        chunk_size=chunk_size,
        keep_layers=differentiable,
        precision=precision,
    )
    contexts = list(stream.contexts)
    if not differentiable:
        return Streamed(_collected(stream), contexts)
    outputs, *pooled = _Streamed.apply(stream, x, *parameters)
    if pooled:
        contexts[-1] = AttentionContext(*pooled)
    return Streamed(outputs, contexts)


def streamed_contexts(
    module: SetModule, x: Tensor, offsets: Sequence[int] | None = None
) -> list[AttentionContext]:
    """Contexts of all layers, and of the pooling, chunk by chunk and without gradients.

    Parameters
    ----------
    module, x, offsets
        As for :func:`streamed`.
    """
    return Stream(module, PackedCells(x.detach(), offsets)).contexts


def _collected(stream: Stream) -> Tensor:
    parts = [outputs for _, _, outputs in stream.outputs()]
    return torch.cat(parts)


class _Streamed(torch.autograd.Function):
    """Outputs, and the pooled context, as functions of cells and parameters."""

    @staticmethod
    def forward(ctx: Any, stream: Stream, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.stream, ctx.parameters = stream, parameters
        ctx.set_materialize_grads(False)
        pooled = stream.contexts[-1] if stream.pools else ()
        return (_collected(stream), *(part.clone() for part in pooled))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *pooled: Tensor | None) -> tuple[Any, ...]:
        stream = ctx.stream
        into = None
        if ctx.needs_input_grad[1]:
            into = Stored(torch.zeros_like(stream.source.x))
        of_parameters = stream.backward(
            None if grad is None else lambda start, stop, _: grad[start:stop],
            pooled or (None, None),
            into=into,
            parameters=ctx.parameters,
        )
        return None, None if into is None else into.rows, *of_parameters
