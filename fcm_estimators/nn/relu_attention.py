"""Attention with ReLU as feature map: the linear form and a dense reference.

Cells of several samples are *packed* into one block of rows, without padding. Sample ``s`` has the
rows ``offsets[s]:offsets[s + 1]``. ``offsets`` is a Python list, so that slicing never waits for a
device.

A cell reads all other cells of its sample through two means over cells, the
:class:`AttentionContext`. They are means and not sums, so that the result and its numerical error
do not depend on the number of cells. They are accumulated in float64.

References
----------
Kowarsch et al., *Explainable Techniques for Analyzing Flow Cytometry Cell Transformers*,
arXiv 2307.14581; Qin et al., *cosFormer*, arXiv 2202.08791 (the feature map).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of one float32 partial sum. Partial sums are added in float64, so the rounding error of any
# context is that of a sample of this size.
PARTIAL_ROWS = 8192


class AttentionContext(NamedTuple):
    """Summary of all cells of each sample for one attention layer.

    Attributes
    ----------
    key_value : Tensor of shape (S, H, d, d), float64
        Mean over cells of ``relu(k) v^T``, per sample and head.
    key : Tensor of shape (S, H, d), float64
        Mean over cells of ``relu(k)``.
    """

    key_value: Tensor
    key: Tensor

    def detach(self) -> AttentionContext:
        """Detach the context from the graph; cells are then independent given the context."""
        return AttentionContext(self.key_value.detach(), self.key.detach())


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """View (N, D) as (N, H, d); heads are contiguous blocks of columns."""
    return torch.unflatten(x, -1, (n_heads, -1))


def attention_context(
    k: Tensor,
    v: Tensor,
    offsets: Sequence[int],
    n_heads: int,
    *,
    weight: Tensor | None = None,
) -> AttentionContext:
    """Mean of ``relu(k) v^T`` and of ``relu(k)`` over the cells of each sample.

    Parameters
    ----------
    k, v : Tensor of shape (N, D)
        Keys and values of all cells, samples packed.
    offsets : sequence of S + 1 int
        Row limits of the samples.
    n_heads : int
        Number of heads H; ``D = H d``.
    weight : Tensor of shape (N,), optional
        Weight of each cell in the means. A cell of weight 0 still attends. Default: 1 for all.

    Returns
    -------
    AttentionContext
        All zero for a sample without cells, or whose weights sum to 0.
    """
    phi = torch.relu(k)
    if weight is None:
        sizes = [float(stop - start) for start, stop in pairwise(offsets)]
        total = torch.tensor(sizes, dtype=torch.float64, device=k.device)
    else:
        phi = phi * weight.to(phi.dtype).unsqueeze(-1)
        total = torch.stack([part.sum() for part in _split(weight.double(), offsets)])
    total = torch.where(total > 0, total, torch.ones_like(total)).view(-1, 1, 1)
    parts = zip(_split(phi, offsets), _split(v, offsets), strict=True)
    sums = [context_sums(phi_s, v_s, n_heads) for phi_s, v_s in parts]
    key_value, key = (torch.stack(column) for column in zip(*sums, strict=True))
    return AttentionContext(key_value / total.unsqueeze(-1), key / total)


def context_sums(phi: Tensor, v: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    """Sum over cells for the context of one sample.

    Parameters
    ----------
    phi : Tensor of shape (n, D)
        ``relu(k)``, weighted.
    v : Tensor of shape (n, D)
    n_heads : int

    Returns
    -------
    Tensor of shape (H, d, d) and Tensor of shape (H, d), float64
        Sums of ``phi v^T`` and of ``phi``.
    """
    # The product of all heads is computed at once, and its diagonal blocks are taken. At the
    # widths in use, this is cheaper than a batched product of strided heads.
    parts = zip(torch.split(phi, PARTIAL_ROWS), torch.split(v, PARTIAL_ROWS), strict=True)
    sums = [((part.T @ values).double(), part.sum(0).double()) for part, values in parts]
    full, k_sum = (sum(column[1:], column[0]) for column in zip(*sums, strict=True))
    width = phi.shape[-1] // n_heads
    full = full.view(n_heads, width, n_heads, width)
    return full.diagonal(dim1=0, dim2=2).permute(2, 0, 1), split_heads(k_sum, n_heads)


def attend(
    q: Tensor, context: AttentionContext, offsets: Sequence[int], n_heads: int, eps: float
) -> Tensor:
    """Compute what each cell reads from the context of its sample (linear form).

    The result is ``relu(q) · KV / (relu(q) · K + eps) / sqrt(D)`` with the means KV and K of the
    context. With ``eps = e / N`` it equals the published form, which adds ``e`` to the sum over N
    cells.

    Parameters
    ----------
    q : Tensor of shape (N, D)
    context : AttentionContext of S samples
    offsets : sequence of S + 1 int
    n_heads : int
    eps : float
        Added to the mean normaliser. A query whose normaliser is far below ``eps`` attends to
        nothing.

    Returns
    -------
    Tensor of shape (N, D), dtype of ``q``
    """
    width = q.shape[-1]
    key_value = block_diagonal((context.key_value * width**-0.5).to(q.dtype))
    key = block_diagonal(context.key.unsqueeze(-1).to(q.dtype))
    parts = zip(_split(torch.relu(q), offsets), torch.cat([key_value, key], -1), strict=True)
    products = [phi @ matrix for phi, matrix in parts]
    both = products[0] if len(products) == 1 else torch.cat(products)
    numerator, normaliser = torch.split(both, [width, n_heads], -1)
    return (split_heads(numerator, n_heads) / (normaliser + eps).unsqueeze(-1)).flatten(1)


def _split(x: Tensor, offsets: Sequence[int]) -> tuple[Tensor, ...]:
    """Rows of each sample. One split costs one copy in backward; slices cost one copy each."""
    return torch.split(x, [stop - start for start, stop in pairwise(offsets)])


def block_diagonal(blocks: Tensor) -> Tensor:
    """Matrices of shape (..., H a, H b) with blocks of shape (..., H, a, b), else 0."""
    n = blocks.shape[-3]
    own = torch.eye(n, dtype=blocks.dtype, device=blocks.device).view(n, 1, n, 1)
    return (blocks.unsqueeze(-2) * own).flatten(-2).flatten(-3, -2)


def received_attention(
    q: Tensor,
    k: Tensor,
    context: AttentionContext,
    offsets: Sequence[int],
    n_heads: int,
    eps: float,
    *,
    queries: Tensor | None = None,
) -> Tensor:
    """Attention that each cell receives per head, mean over the queries of its sample.

    ``r_j = mean_{i in Q} A_ij`` with ``A_ij = relu(q_i)·relu(k_j) / (N (relu(q_i)·K + eps))``. The
    result is exact. The cost is linear in the number of cells, because the mean over queries is
    taken before the product with the keys.

    Parameters
    ----------
    q, k : Tensor of shape (N, D)
    context : AttentionContext of S samples
    offsets : sequence of S + 1 int
    n_heads : int
    eps : float
        The ``eps`` of the layer, added to the mean normaliser.
    queries : bool Tensor of shape (N,), optional
        The set Q. Default: all cells of the sample. The result is 0 for a sample without queries.

    Returns
    -------
    Tensor of shape (N, H)
        The sum over the cells of a sample is at most 1; ``eps`` absorbs the rest.
    """
    phi_k = torch.relu(k)
    out = []
    for s, (start, stop) in enumerate(pairwise(offsets)):
        rows = q[start:stop] if queries is None else q[start:stop][queries[start:stop]]
        reader = query_readers(rows, context, s, n_heads, eps).double().sum(0)
        reader = reader / (max(len(rows), 1) * max(stop - start, 1))
        out.append(phi_k[start:stop] @ block_diagonal(reader.unsqueeze(-1).to(phi_k.dtype)))
    return torch.cat(out)


def head_overlap(received: Tensor, offsets: Sequence[int]) -> Tensor:
    """Measure how much the heads attend to the same cells.

    Parameters
    ----------
    received : Tensor of shape (N, H)
        Received attention.
    offsets : sequence of S + 1 int

    Returns
    -------
    Tensor, scalar
        Cosine similarity of the attention of two heads over the cells of a sample, mean over pairs
        of heads and over samples. 1: all heads attend to the same cells. 0: no two heads share a
        cell, or there is only one head.
    """
    n_heads = received.shape[1]
    total = received.new_zeros(())
    for rows in _split(received, offsets):
        unit = torch.nn.functional.normalize(rows, dim=0)
        alike = unit.T @ unit
        total = total + alike.sum() - alike.diagonal().sum()
    return total / max(n_heads * (n_heads - 1) * (len(offsets) - 1), 1)


def head_unevenness(received: Tensor, offsets: Sequence[int], weight: Tensor) -> Tensor:
    """Measure how unevenly all heads together attend to the cells.

    Parameters
    ----------
    received : Tensor of shape (N, H)
        Received attention.
    offsets : sequence of S + 1 int
    weight : Tensor of shape (N,)
        Weight of each cell.

    Returns
    -------
    Tensor, scalar
        1 minus the cosine similarity of the sum over heads and uniform attention, mean over
        samples. 0: all cells receive the same attention. Near 1: a few cells receive nearly all.
    """
    total = received.new_zeros(())
    for rows, w in zip(_split(received.sum(1), offsets), _split(weight, offsets), strict=True):
        norm = w.sum().clamp(min=1e-12)
        mean, square = (w * rows).sum() / norm, (w * rows.square()).sum() / norm
        total = total + 1 - mean * square.clamp(min=1e-24).rsqrt()
    return total / max(len(offsets) - 1, 1)


def query_readers(
    q: Tensor, context: AttentionContext, sample: int, n_heads: int, eps: float
) -> Tensor:
    """``relu(q_i) / (relu(q_i)·K + eps)``: N times a row of A before the product with the keys.

    Parameters
    ----------
    q : Tensor of shape (n, D)
        Queries of one sample.
    context : AttentionContext of S samples
    sample : int
        Position of the sample in ``context``.
    n_heads : int
    eps : float

    Returns
    -------
    Tensor of shape (n, H, d)
    """
    phi = torch.relu(q)
    normaliser = phi @ block_diagonal(context.key[sample].unsqueeze(-1).to(phi.dtype)) + eps
    return split_heads(phi, n_heads) / normaliser.unsqueeze(-1)


def dense_attention(q: Tensor, k: Tensor, n_heads: int, eps: float) -> Tensor:
    """Attention matrix of one sample, written like the equation; for tests.

    Parameters
    ----------
    q, k : Tensor of shape (N, D)
    n_heads : int
    eps : float
        Added to the mean normaliser, as in :func:`attend`.

    Returns
    -------
    Tensor of shape (H, N, N)
        ``A[h, i, j]`` is the attention of cell i to cell j in head h.
    """
    phi_q = split_heads(torch.relu(q), n_heads).transpose(0, 1)
    phi_k = split_heads(torch.relu(k), n_heads).transpose(0, 1)
    scores = phi_q @ phi_k.transpose(1, 2)
    return scores / (scores.sum(-1, keepdim=True) + eps * len(k))


def dense_attend(q: Tensor, k: Tensor, v: Tensor, n_heads: int, eps: float) -> Tensor:
    """Output of the attention of one sample, from the N x N matrix; for tests."""
    values = split_heads(v, n_heads).transpose(0, 1)
    out = dense_attention(q, k, n_heads, eps) @ values
    scale: float = q.shape[-1] ** -0.5
    return out.transpose(0, 1).flatten(1) * scale
