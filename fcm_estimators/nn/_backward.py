"""Backward sweeps through a stream, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from fcm_estimators.nn._contexts import (
    add_parts,
    divided,
    leaves,
    of_samples,
    packed,
    zeros_like,
)
from fcm_estimators.nn.relu_attention import AttentionContext, block_diagonal
from fcm_estimators.nn.sources import Piece, Rows

if TYPE_CHECKING:
    from fcm_estimators.nn.streaming import Stream


class BackwardSweeps:
    """Backward sweeps through a stream; gradients of contexts are those of their sums."""

    def __init__(
        self,
        stream: Stream,
        grad_outputs: Callable[[int, int, Tensor], Tensor] | None,
        into: Rows | None,
        into_weight: Rows | None,
        parameters: Sequence[Tensor],
    ) -> None:
        self.stream, self._grad_outputs, self._into = stream, grad_outputs, into
        self._into_weight = into_weight
        # What the gradient of each weight of a sample is too large by.
        self._excess = torch.zeros_like(stream.total)
        self._parameters = list(parameters)
        self.of_parameters = [torch.zeros_like(parameter) for parameter in parameters]

    def pooled(self, given: Sequence[Tensor | None]) -> AttentionContext:
        """Gradient of the pooled context; ``given`` is the part that bypasses the outputs."""
        stream = self.stream
        found = zeros_like(stream.contexts[-1])
        for into, part in zip(found, given, strict=True):
            if part is not None:
                into += part
        if self._grad_outputs is None:
            return divided(found, stream.total)
        for start, stop, pieces in stream.chunks():
            samples, _ = packed(pieces)
            context, x = leaves(of_samples(stream.contexts[-1], samples)), self._cells(start, stop)
            with torch.enable_grad():
                outputs = stream.read_out(x, None, pieces, context)
            targets = [(outputs, self._grad_outputs(start, stop, outputs.detach()))]
            add_parts(found, samples, self._differentiate(targets, list(context), x, start))
        return divided(found, stream.total)

    def layer(self, number: int, after: AttentionContext | None) -> AttentionContext:
        """Gradient of a layer's context; the layer's queries are replaced by their gradient.

        ``after`` is the gradient of the next context, None if the outputs follow.
        """
        stream, layer = self.stream, self.stream.layers[number]
        last = number + 1 == len(stream.layers)
        found = zeros_like(stream.contexts[number])
        for start, stop, pieces in stream.chunks():
            samples, offsets = packed(pieces)
            context = leaves(of_samples(stream.contexts[number], samples))
            q = stream.queries[number].get(start, stop).detach().requires_grad_()
            x = self._cells(start, stop) if last else None
            with torch.enable_grad():
                h = layer.read(q, context, offsets)
                if not last:
                    targets = self._projected(number + 1, h, start, stop, pieces, after)
                elif after is not None:
                    made = cast(tuple[Tensor, Tensor], stream.module.pool(h, cast(Tensor, x)))
                    targets = self._summed(*made, start, stop, pieces, after)
                elif self._grad_outputs is not None:
                    outputs = stream.read_out(cast(Tensor, x), h, pieces)
                    targets = [(outputs, self._grad_outputs(start, stop, outputs.detach()))]
                else:
                    targets = []
            of_q, *of_context = self._differentiate(targets, [q, *context], x, start)
            stream.queries[number].put(start, of_q)
            add_parts(found, samples, of_context)
        return divided(found, stream.total)

    def first(self, after: AttentionContext) -> None:
        """Add the gradient of the cells through the projections of the first layer.

        Then the gradient of the weights is complete.
        """
        for start, stop, pieces in self.stream.chunks():
            x = self._cells(start, stop)
            with torch.enable_grad():
                z = self.stream.module.standardise(x)
                targets = self._projected(0, z, start, stop, pieces, after)
            self._differentiate(targets, [], x, start)
        if self._into_weight is not None:
            for start, stop, pieces in self.stream.chunks():
                grad = self._into_weight.get(start, stop)
                for sample, first, last in pieces:
                    grad[first:last] -= self._excess[sample].to(grad.dtype)
                self._into_weight.put(start, grad)

    def _add_to_weights(
        self,
        k: Tensor,
        v: Tensor,
        start: int,
        stop: int,
        pieces: Sequence[Piece],
        after: AttentionContext,
    ) -> None:
        """Add the gradient of the weights of a chunk through one context.

        A context is ``C = sum_j w_j c_j / sum_j w_j``, so ``dF/dw_j = G · (c_j - C)`` with the
        gradient G of the sum. The part with C is the same for all cells of a sample.
        """
        if self._into_weight is None:
            return
        phi = torch.relu(k)
        matrices = block_diagonal(after.key_value).to(k.dtype)
        keys = after.key.flatten(1).to(k.dtype)
        parts = [
            (phi[first:last] @ matrices[sample] * v[first:last]).sum(1)
            + phi[first:last] @ keys[sample]
            for sample, first, last in pieces
        ]
        before = self._into_weight.get(start, stop)
        self._into_weight.put(start, before + torch.cat(parts).detach().unsqueeze(1))

    def add_excess(self, gradient: AttentionContext, context: AttentionContext) -> None:
        """Take note of the part of the gradient of the weights that all cells share."""
        for grad, mean in zip(gradient, context, strict=True):
            self._excess += (grad * mean).flatten(1).sum(1)

    def _cells(self, start: int, stop: int) -> Tensor:
        x = self.stream.source.read(start, stop).detach()
        return x if self._into is None else x.requires_grad_()

    def _projected(
        self,
        number: int,
        h: Tensor,
        start: int,
        stop: int,
        pieces: Sequence[Piece],
        after: AttentionContext | None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Queries and sums that a layer computes from its input, each with its gradient."""
        layer = self.stream.layers[number]
        queries = layer.query(h), self.stream.queries[number].get(start, stop)
        k, v = layer.key(h), layer.value(h)
        return [queries, *self._summed(k, v, start, stop, pieces, cast(AttentionContext, after))]

    def _summed(
        self,
        k: Tensor,
        v: Tensor,
        start: int,
        stop: int,
        pieces: Sequence[Piece],
        after: AttentionContext,
    ) -> list[tuple[Tensor, Tensor]]:
        """Sums that keys and values add to the contexts, each with its gradient."""
        self._add_to_weights(k, v, start, stop, pieces, after)
        sums = self.stream.sums(k, v, start, stop, pieces)
        return [
            (part, grad[sample])
            for (sample, _, _), parts in zip(pieces, sums, strict=True)
            for part, grad in zip(parts, after, strict=True)
        ]

    def _differentiate(
        self,
        targets: list[tuple[Tensor, Tensor]],
        leaves: list[Tensor],
        x: Tensor | None,
        start: int,
    ) -> list[Tensor]:
        """Return the gradients of the leaves; add up those of the cells and parameters."""
        cells = [x] if x is not None and x.requires_grad else []
        inputs = [*leaves, *cells, *self._parameters]
        if not targets or not inputs:
            return [torch.zeros_like(leaf) for leaf in leaves]
        outputs, given = zip(*targets, strict=True)
        grads = torch.autograd.grad(outputs, inputs, given, allow_unused=True)
        n_leaves, n_cells = len(leaves), len(cells)
        if cells and grads[n_leaves] is not None and self._into is not None:
            before = self._into.get(start, start + len(cells[0]))
            self._into.put(start, before + grads[n_leaves])
        for total, grad in zip(self.of_parameters, grads[n_leaves + n_cells :], strict=True):
            if grad is not None:
                total += grad
        return [
            torch.zeros_like(leaf) if grad is None else grad
            for leaf, grad in zip(leaves, grads[:n_leaves], strict=True)
        ]
