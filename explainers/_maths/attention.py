"""Attention of one sample without the N x N matrix, chunk by chunk.

``A_ij = relu(q_i)·relu(k_j) / (N n_i)`` with ``n_i = relu(q_i)·K + eps`` is a product of two
narrow matrices per head. Means over queries, sums over keys and products with a vector therefore
cost O(N d) and are exact. All functions take a :class:`~fcm_estimators.nn.streaming.Stream` of
one sample that keeps its layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcm_estimators.nn import PolygonFormer
from fcm_estimators.nn.relu_attention import attend, query_readers, split_heads
from fcm_estimators.nn.streaming import Stream


def query_mean(stream: Stream, layer: int, queries: Tensor) -> Tensor:
    """Reader of keys: mean over queries of ``relu(q_i) / n_i``, shape (H, d), float64.

    Parameters
    ----------
    stream : Stream
    layer : int
    queries : bool Tensor of shape (N,)
        Without queries, the mean is zero.
    """
    total: Tensor | float = 0.0
    for start, stop, ratio, _ in _factors(stream, layer):
        total = total + ratio[queries[start:stop]].sum(0)
    return torch.as_tensor(total) / max(int(queries.sum()), 1)


def gate_query(stream: Stream, gate: int) -> Tensor:
    """Reader of keys for the query of a gate, shape (H, d), float64."""
    module = stream.module
    if not isinstance(module, PolygonFormer):
        raise TypeError(f"a {type(module).__name__} has no gates")
    with torch.no_grad():
        query, _ = module.pooling.read(stream.contexts[-1])
        chosen = query[gate : gate + 1]
        ratio = query_readers(chosen, stream.contexts[-1], 0, module.n_heads, module.eps)
    return ratio.double().sum(0)


def relative_attention(
    stream: Stream, layer: int, reader: Tensor
) -> tuple[Tensor, Iterator[tuple[int, int, Tensor]]]:
    """Attention that each cell receives from each head.

    Parameters
    ----------
    stream : Stream
    layer : int
        The number of layers L means the attention of the gates.
    reader : Tensor of shape (H, d)
        Result of :func:`query_mean` or :func:`gate_query`.

    Returns
    -------
    given : Tensor of shape (H,)
        Share of the attention that ``eps`` does not absorb.
    chunks : iterator of (start, stop, Tensor of shape (n, H))
        Attention relative to uniform: the mean over the sample is 1. 0 for a head that gives no
        attention.
    """
    # The mean of the keys gives the sum of the attention that all cells receive.
    given = (stream.contexts[layer].key[0] * reader).sum(1)
    shares = reader / torch.where(given > 0, given, 1.0)[:, None]
    weight: Tensor = torch.block_diag(*shares).T  # type: ignore[no-untyped-call]
    chunks = (
        (start, stop, torch.relu(k).double() @ weight)
        for start, stop, _, k in stream.looking(layer)
    )
    return given, chunks


def population_attention(stream: Stream, layer: int, readers: Tensor, read: Tensor) -> Tensor:
    """Share of attention that each population of queries gives to each population of keys.

    Parameters
    ----------
    stream : Stream
    layer : int
    readers : bool Tensor of shape (P, N)
        Populations of queries; an empty population gives NaN.
    read : bool Tensor of shape (R, N)
        Populations of keys.

    Returns
    -------
    Tensor of shape (H, P, R), float64
        ``(1/|P|) sum_{i in P} sum_{j in R} A_ij``.
    """
    ratios: Any = 0.0
    keys: Any = 0.0
    for start, stop, ratio, key in _factors(stream, layer):
        ratios = ratios + torch.einsum("pn,nhd->phd", readers[:, start:stop].double(), ratio)
        keys = keys + torch.einsum("rn,nhd->rhd", read[:, start:stop].double(), key)
    means = ratios / readers.sum(1)[:, None, None]
    return torch.einsum("phd,rhd->hpr", means, keys) / stream.source.n_cells


def attention_matrix(stream: Stream, layer: int, queries: Tensor) -> Tensor:
    """Attention of chosen cells to all cells, as a matrix.

    Parameters
    ----------
    stream : Stream
    layer : int
    queries : bool Tensor of shape (N,)
        The cells of the Q rows.

    Returns
    -------
    Tensor of shape (H, Q, N), in the precision of the net
    """
    parts = list(_factors(stream, layer))
    readers = torch.cat([ratio[queries[start:stop]] for start, stop, ratio, _ in parts])
    matrices = [torch.einsum("qhd,nhd->hqn", readers, key) for _, _, _, key in parts]
    found = torch.cat(matrices, dim=2) / stream.source.n_cells
    return found.to(stream.module.input_mean.dtype)


def rollout(stream: Stream, queries: Tensor, share: float | None) -> Tensor:
    """Attention rollout: mass that reaches each input cell from the queries through all layers.

    Row i of a layer is ``(1 - a_i) I + a_i (mean over heads of A)``. The product of the layers is
    applied to the uniform vector on the queries, from the last layer to the first. Mass that
    ``eps`` absorbs is lost.

    Parameters
    ----------
    stream : Stream
    queries : bool Tensor of shape (N,)
    share : float or None
        ``a``, the share that a cell takes from the attention; the rest is its residual. None:
        measured for each cell, see :func:`attention_share`.

    Returns
    -------
    Tensor of shape (N,), float64

    References
    ----------
    Abnar, Zuidema, *Quantifying attention flow in transformers*, arXiv 2005.00928 (a = 1/2).
    """
    mass = queries.double() / queries.sum().clamp(min=1)
    for layer in reversed(range(len(stream.module.layers))):
        moving = mass * (attention_share(stream, layer) if share is None else share)
        reader: Tensor | float = 0.0
        for start, stop, ratio, _ in _factors(stream, layer):
            reader = reader + torch.einsum("n,nhd->hd", moving[start:stop], ratio)
        given, chunks = relative_attention(stream, layer, torch.as_tensor(reader))
        moved = [(relative * given).mean(1) for _, _, relative in chunks]
        mass = mass - moving + torch.cat(moved) / len(mass)
    return mass


def attention_share(stream: Stream, layer: int) -> Tensor:
    """Share of the attention in what each cell takes from a layer, beside its residual.

    ``|o_i| / (|o_i| + |q_i|)``, with the output o of the attention and the query q, which is the
    residual of a layer. Both are added before the layer norm.

    Returns
    -------
    Tensor of shape (N,), float64

    References
    ----------
    Kobayashi et al., *Incorporating residual and normalization layers into analysis of masked
    language models*, arXiv 2109.07152 (mixing ratio).
    """
    module, context, parts = stream.module, stream.contexts[layer], []
    for start, stop, q, _ in stream.looking(layer):
        with torch.no_grad():
            out = attend(q, context, [0, stop - start], module.n_heads, module.eps)
        taken, kept = out.double().norm(dim=1), q.double().norm(dim=1)
        parts.append(taken / (taken + kept).clamp(min=torch.finfo(torch.float64).tiny))
    return torch.cat(parts)


def _factors(stream: Stream, layer: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Start and stop of each chunk, and the two factors of its attention, (n, H, d), float64."""
    n_heads, eps = stream.module.n_heads, stream.module.eps
    for start, stop, q, k in stream.looking(layer):
        ratio = query_readers(q, stream.contexts[layer], 0, n_heads, eps)
        yield start, stop, ratio.double(), split_heads(torch.relu(k), n_heads).double()


def assigned_heads(relative: np.ndarray) -> np.ndarray:
    """Head that attends most to each cell: number, -1 for none, -2 for cells not analysed.

    Parameters
    ----------
    relative : ndarray of shape (n_cells, n_heads)
        Received attention relative to uniform.
    """
    missing = np.isnan(relative).any(1)
    filled = np.nan_to_num(relative)
    best: np.ndarray = filled.argmax(1)
    best[filled.max(1) <= 1] = -1
    best[missing] = -2
    return best
