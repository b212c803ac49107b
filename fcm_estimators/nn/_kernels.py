"""The arithmetic of a layer on one chunk of cells, in buffers that are reused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from fcm_estimators.nn.relu_attention import PARTIAL_ROWS, AttentionContext, block_diagonal
from fcm_estimators.nn.reluformer import ReluFormerLayer
from fcm_estimators.nn.sources import Piece


class Kernels:
    """Layers of an encoder, prepared for chunks of up to ``rows`` cells, without gradients.

    One product gives queries, keys and values, with a column of ones behind the values. A second
    product then gives all sums of a context.

    Parameters
    ----------
    layers : sequence of L ReluFormerLayer
    rows : int
    like : Tensor
        Tensor with the dtype and device of the cells.
    """

    def __init__(self, layers: Sequence[ReluFormerLayer], rows: int, like: Tensor) -> None:
        first = layers[0].query
        self._width, self._n_heads = first.out_features, layers[0].n_heads
        self._like, self._on_gpu = like, like.device.type != "cpu"
        self._layers = [_prepared(layer, like.dtype) for layer in layers]
        width = self._width
        self._projected = like.new_empty(rows, 3 * width + 1)
        self._phi, self._attended = like.new_empty(rows, width), like.new_empty(rows, width)
        self._norm = like.new_empty(rows, self._n_heads)

    def zero_sums(self, n_samples: int) -> Tensor:
        """Return sums of 0, shape (S, D, D + 1), float64."""
        shape = (n_samples, self._width, self._width + 1)
        return torch.zeros(shape, dtype=torch.float64, device=self._like.device)

    def project(self, layer: int, h: Tensor) -> Tensor:
        """Project cells ``h`` to queries, keys, values and ones, (n, 3 D + 1), in a buffer."""
        prepared = self._layers[layer]
        out = self._projected[: len(h)]
        return torch.addmm(prepared.bias, h.to(out.dtype), prepared.weight, out=out)

    def queries(self, projected: Tensor) -> Tensor:
        """Select the queries from the output of :meth:`project`."""
        return projected[:, : self._width]

    def add(
        self, sums: Tensor, projected: Tensor, pieces: Sequence[Piece], weight: Tensor | None
    ) -> None:
        """Add the output of :meth:`project` to the sums of its samples; overwrite its keys."""
        phi = projected[:, self._width : 2 * self._width].relu_()
        if weight is not None:
            phi.mul_(weight.unsqueeze(1))
        values = projected[:, 2 * self._width :]
        for sample, start, stop in pieces:
            whole = 0
            if self._on_gpu:
                # All whole parts in one product: a GPU waits longer for a call than it computes.
                whole = (stop - start) // PARTIAL_ROWS * PARTIAL_ROWS
                parts = (part[start : start + whole] for part in (phi, values))
                p, v = (torch.unflatten(_summable(x), 0, (-1, PARTIAL_ROWS)) for x in parts)
                sums[sample].add_(torch.bmm(p.transpose(1, 2), v).sum(0, dtype=torch.float64))
            for first in range(start + whole, stop, PARTIAL_ROWS):
                rows = slice(first, min(first + PARTIAL_ROWS, stop))
                sums[sample].add_(_summable(phi[rows]).T @ _summable(values[rows]))

    def context(self, sums: Tensor, total: Tensor) -> AttentionContext:
        """Contexts of S samples, from their sums and the total weight of their cells."""
        mean = sums / total[:, None, None]
        heads = torch.unflatten(mean[:, :, : self._width], 1, (self._n_heads, -1))
        heads = torch.unflatten(heads, 3, (self._n_heads, -1)).diagonal(dim1=1, dim2=3)
        key = torch.unflatten(mean[:, :, self._width], 1, (self._n_heads, -1))
        return AttentionContext(heads.permute(0, 3, 1, 2).contiguous(), key.contiguous())

    def readers(self, context: AttentionContext) -> list[tuple[Tensor, Tensor]]:
        """Matrices by which :meth:`read` multiplies queries, per sample: (D, D) and (D, H)."""
        scale, dtype = self._width**-0.5, self._like.dtype
        key_value = block_diagonal((context.key_value * scale).to(dtype))
        key = block_diagonal(context.key.unsqueeze(-1).to(dtype))
        return list(zip(key_value, key, strict=True))

    def read(
        self,
        number: int,
        q: Tensor,
        pieces: Sequence[Piece],
        readers: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Output of a layer, (n, D), from the queries of a chunk and :meth:`readers`."""
        layer, n = self._layers[number], len(q)
        phi = torch.clamp_min(q, 0, out=self._phi[:n])
        attended, norm = self._attended[:n], self._norm[:n]
        for sample, start, stop in pieces:
            key_value, key = readers[sample]
            torch.mm(phi[start:stop], key_value, out=attended[start:stop])
            torch.mm(phi[start:stop], key, out=norm[start:stop])
        norm.add_(layer.eps)
        torch.unflatten(attended, 1, (self._n_heads, -1)).div_(norm.unsqueeze(2))
        norm_of = _normalised if self._on_gpu else _plainly_normalised
        h = norm_of(attended.add_(q), *layer.norm_attention)
        y = torch.addmm(layer.forward_bias, h, layer.forward_weight, out=phi)
        return norm_of(y.relu_().add_(h), *layer.norm_feedforward)


class _Prepared(NamedTuple):
    """Weights of a layer in the form of the products; norms are (weight, bias, eps)."""

    weight: Tensor
    bias: Tensor
    forward_weight: Tensor
    forward_bias: Tensor
    norm_attention: tuple[Tensor, Tensor, float]
    norm_feedforward: tuple[Tensor, Tensor, float]
    eps: float


def _prepared(layer: ReluFormerLayer, dtype: torch.dtype) -> _Prepared:
    linear = (layer.query, layer.key, layer.value)
    ones = layer.query.weight.new_zeros(1, layer.query.in_features)
    weight = torch.cat([*(part.weight for part in linear), ones])
    bias = torch.cat([*(part.bias for part in linear), ones.new_ones(1)])
    forward = layer.feedforward
    norms = [
        (norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
        for norm in (layer.norm_attention, layer.norm_feedforward)
    ]
    return _Prepared(
        weight.T.to(dtype).contiguous(),
        bias.to(dtype),
        forward.weight.T.to(dtype),
        forward.bias.to(dtype),
        norms[0],
        norms[1],
        layer.eps,
    )


def _plainly_normalised(h: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return layer_norm(h, [h.shape[1]], weight, bias, eps)


def _normalised(h: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm in several steps, which for short rows are faster on a GPU than one.

    Half precision is not precise enough for the steps.
    """
    if h.dtype in (torch.float16, torch.bfloat16):
        return _plainly_normalised(h, weight, bias, eps)
    centred = h - h.mean(1, keepdim=True)
    spread = torch.linalg.vector_norm(centred, dim=1, keepdim=True).square_().div_(h.shape[1])
    return torch.addcmul(bias, centred.mul_(spread.add_(eps).rsqrt_()), weight)


def _summable(x: Tensor) -> Tensor:
    """Convert half to single precision: in half, sums of keys overflow or lose small keys."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
