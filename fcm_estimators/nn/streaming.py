"""Run nets on whole samples of any size, chunk by chunk: exact results in bounded memory.

A cell depends on the other cells only through the context of each layer, which is a mean over
cells. A sample therefore goes through the net in sweeps. The first sweep makes the context of the
first layer. Then there is one sweep per layer: it reads the queries of the layer and computes the
output. While the output is in the cache, it computes the queries of the next layer, stores them in
place of the old ones, and adds to the next context. The residual of a layer is its query, so only
queries are stored.

Backward works in reverse, because the gradient of a context is a sum over cells as well. Each sweep
recomputes one layer from its stored queries, chunk by chunk, and replaces the queries by their
gradient. The gradient of the context goes back through keys and values in the next sweep.

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

# Rows per chunk on a GPU: enough to use all of it.
_GPU_ROWS = 1 << 18
# Bytes of the buffers of a chunk, number of buffers, and smallest number of rows. Between 4 and
# 16 MB the time per cell differs by less than a tenth. Larger chunks do not fit into the caches;
# with smaller chunks, the time goes into calls.
_CHUNK_BYTES, _ROW_BUFFERS, _FEWEST_ROWS = 8 << 20, 8, 256


def chunk_rows(module: SetModule, like: Tensor) -> int:
    """Cells per chunk. On a CPU, the buffers of a layer then stay in the cache."""
    if like.device.type != "cpu":
        return _GPU_ROWS
    row = _ROW_BUFFERS * module.hidden_dim * like.element_size()
    return max(_FEWEST_ROWS, _CHUNK_BYTES // row)


class Stream:
    """Cells that go through a net in sweeps.

    The constructor computes the contexts. Outputs and gradients are then computed by chunk.

    Parameters
    ----------
    module : SetModule
        Its dtype and device must be those of the cells.
    source : CellSource
    weight : Tensor of shape (N,), optional
        Weight of each cell in the contexts. Default: 1 for all.
    chunk_size : int, optional
        Cells per chunk. Default: :func:`chunk_rows`.
    keep_layers : bool, default False
        Keep the queries of all layers, as :meth:`backward` needs, instead of those of one layer.
    precision : torch.dtype, optional
        Precision of the layers' arithmetic and of stored rows: ``bfloat16`` or ``float16``.
        Contexts are still summed in float32 and float64. Forward only. Default: the module's.
    store : callable, default Stored.new
        Makes a store of rows between sweeps, from the number of rows, their width and a tensor of
        their dtype and device.

    Attributes
    ----------
    contexts : list of AttentionContext
        Contexts of all layers, and of the pooling if the module has one.
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
            self.kernels = Kernels(self.layers, self._rows, low)
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
        """Total weight of the cells of each sample, 1 if it is 0; shape (S,), float64."""
        total = self._like.new_zeros(self.source.n_samples, dtype=torch.float64)
        for start, stop, pieces in self.chunks():
            weight = self._weight(start, stop)
            for sample, first, last in pieces:
                counted = last - first if weight is None else weight[first:last].double().sum()
                total[sample] += counted
        return torch.where(total > 0, total, torch.ones_like(total))

    def _encode(self) -> list[AttentionContext]:
        """Contexts of all layers; the queries of the last layer remain stored."""
        contexts: list[AttentionContext] = []
        for number, queries in enumerate(self.queries):
            sums = self.kernels.zero_sums(self.source.n_samples)
            cells = self._outputs_of(number - 1, contexts[-1]) if number else self._standardised()
            for start, stop, pieces, h in cells:
                projected = self.kernels.project(number, h)
                queries.put(start, self.kernels.queries(projected))
                self.kernels.add(sums, projected, pieces, self._weight(start, stop))
            contexts.append(self.kernels.context(sums, self.total))
        return contexts

    def _standardised(self) -> Iterator[tuple[int, int, Sequence[Piece], Tensor]]:
        for start, stop, pieces in self.chunks():
            yield start, stop, pieces, self.module.standardise(self.source.read(start, stop))

    def _outputs_of(
        self, number: int, context: AttentionContext
    ) -> Iterator[tuple[int, int, Sequence[Piece], Tensor]]:
        """Yield chunks with the output of a layer, computed from its stored queries."""
        readers = self.kernels.readers(context)
        for start, stop, pieces in self.chunks():
            q = self.queries[number].get(start, stop)
            yield start, stop, pieces, self.kernels.read(number, q, pieces, readers)

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
        """Sums that a chunk adds to the context of each of its samples."""
        phi, weight = torch.relu(k), self._weight(start, stop)
        if weight is not None:
            phi = phi * weight.unsqueeze(1)
        n_heads = self.module.n_heads
        return [context_sums(phi[first:last], v[first:last], n_heads) for _, first, last in pieces]

    @property
    def pools(self) -> bool:
        """Whether the outputs are read from a pooled context instead of encoded cells."""
        return len(self.contexts) > len(self.layers)

    @torch.no_grad()
    def outputs(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield start, stop and outputs of each chunk."""
        cells: Iterator[tuple[int, int, Sequence[Piece], Tensor | None]]
        if self.pools:
            cells = ((*chunk, None) for chunk in self.chunks())
        else:
            cells = self._outputs_of(len(self.layers) - 1, self.contexts[-1])
        for start, stop, pieces, h in cells:
            encoded = None if h is None else h.to(self._like.dtype)
            yield start, stop, self.read_out(self.source.read(start, stop), encoded, pieces)

    @torch.no_grad()
    def looking(self, number: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield start, stop, queries and keys of each chunk in a layer, in reused buffers.

        Parameters
        ----------
        number : int
            Number of the layer, from 0; the stream must keep layers. L is the pooling, which has
            keys but no queries.
        """
        if number == 0:
            cells = self._standardised()
        else:
            cells = self._outputs_of(number - 1, self.contexts[number - 1])
        width = self.module.hidden_dim
        for start, stop, _, h in cells:
            if number < len(self.layers):
                projected = self.kernels.project(number, h)
                yield start, stop, projected[:, :width], projected[:, width : 2 * width]
            else:
                h = h.to(self._like.dtype)
                made = self.module.pool(h, self.source.read(start, stop))
                k, _ = cast(tuple[Tensor, Tensor], made)
                yield start, stop, k[:, :0], k

    def read_out(
        self,
        x: Tensor,
        h: Tensor | None,
        pieces: Sequence[Piece],
        pooled: AttentionContext | None = None,
    ) -> Tensor:
        """Outputs of a chunk. ``pooled`` replaces the pooled context of its samples."""
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
        into_weight: Rows | None = None,
        parameters: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Compute the gradient with respect to all cells, their weights and the parameters.

        This overwrites the stored queries, so it can be called only once.

        Parameters
        ----------
        grad_outputs : callable or None
            ``grad_outputs(start, stop, outputs)`` returns the gradient with respect to the outputs
            of these cells. None: the gradient is 0.
        grad_pooled : pair of Tensor or None
            Gradient with respect to the pooled context, in addition to that from the outputs.
        into : Rows of zeros, shape (N, M), optional
            Store to which the gradient with respect to the cells is added.
        into_weight : Rows of zeros, shape (N, 1), optional
            The same for the weight of each cell in the contexts.
        parameters : sequence of Tensor
            Parameters of the module that get a gradient.

        Returns
        -------
        list of Tensor
            Gradients of the parameters.
        """
        if not self._keeps_layers:
            raise RuntimeError(
                "The layers were not kept, or were overwritten by a backward before. Make a new "
                "stream with keep_layers=True for every backward."
            )
        self._keeps_layers = False
        sweeps = BackwardSweeps(self, grad_outputs, into, into_weight, parameters)
        after = None
        if self.pools:
            after = sweeps.pooled(grad_pooled)
            sweeps.add_excess(after, self.contexts[-1])
        for number in reversed(range(len(self.layers))):
            after = sweeps.layer(number, after)
            sweeps.add_excess(after, self.contexts[number])
        sweeps.first(cast(AttentionContext, after))
        return sweeps.of_parameters


class Streamed(NamedTuple):
    """Outputs and contexts of cells that went through a net chunk by chunk.

    Attributes
    ----------
    outputs : Tensor of shape (N, n_outputs)
    contexts : list of AttentionContext
        Contexts of all layers, detached from the graph, and of the pooling if the module has one.
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
    """Run a net on whole samples, chunk by chunk: the same result with much less memory.

    Backward also works chunk by chunk. In addition to the gradient of the cells, it needs memory
    for one row of ``hidden_dim`` per cell and layer. There are no second derivatives.

    Parameters
    ----------
    module : SetModule
    x : Tensor of shape (N, M)
        Cells in the caller's units, samples packed.
    offsets : sequence of S + 1 int, optional
        Row limits of the samples. Default: all rows are one sample.
    context_weight : Tensor of shape (N,), optional
        Weight of each cell in the contexts. It gets no gradient. Default: 1 for all.
    parameters : sequence of Tensor, optional
        Parameters of the module that get a gradient. Default: none.
    chunk_size : int, optional
        Cells per chunk. Default: the number that fits into the cache.
    precision : torch.dtype, optional
        ``bfloat16`` or ``float16`` for the layers' arithmetic, which is faster on a GPU. Contexts
        are still summed in float32 and float64. It excludes gradients. Default: the module's.

    Returns
    -------
    Streamed

    Raises
    ------
    ValueError
        If ``precision`` is given and a gradient is needed.

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
            f"precision={precision} is for prediction only; leave it None for gradients, or call "
            "this function inside torch.no_grad()"
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
    # torch gives this method no types.
    apply: Callable[..., tuple[Tensor, ...]] = _Streamed.apply
    outputs, *pooled = apply(stream, x, *parameters)
    if pooled:
        contexts[-1] = AttentionContext(*pooled)
    return Streamed(outputs, contexts)


def streamed_contexts(
    module: SetModule, x: Tensor, offsets: Sequence[int] | None = None
) -> list[AttentionContext]:
    """Compute the contexts of all layers and of the pooling by chunk, without gradients.

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
    """Outputs and the pooled context as functions of cells and parameters."""

    @staticmethod
    def forward(ctx: Any, stream: Stream, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.stream, ctx.parameters = stream, parameters
        ctx.set_materialize_grads(False)
        pooled = stream.contexts[-1] if stream.pools else ()
        return (_collected(stream), *(part.clone() for part in pooled))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, *pooled: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        stream: Stream = ctx.stream
        into = None
        if ctx.needs_input_grad[1]:
            into = Stored(torch.zeros_like(cast(PackedCells, stream.source).x))
        of_parameters = stream.backward(
            None if grad is None else lambda start, stop, _: grad[start:stop],
            pooled or (None, None),
            into=into,
            parameters=ctx.parameters,
        )
        return None, None if into is None else into.rows, *of_parameters
