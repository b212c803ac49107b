"""Attention of one sample without the N x N matrix: tensors in, tensors out.

``A_ij = relu(q_i)·relu(k_j) / (N n_i)`` with ``n_i = relu(q_i)·K + eps`` is a product of two
narrow matrices per head. Means over queries, sums over keys and products with a vector therefore
cost O(N d), and everything below is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fcm_estimators.nn import LayerTrace
from fcm_estimators.nn.relu_attention import query_readers, split_heads


def population_attention(
    step: LayerTrace, n_heads: int, eps: float, readers: Tensor, read: Tensor
) -> Tensor:
    """Share of attention that each population of queries gives to each population of keys.

    Parameters
    ----------
    step : LayerTrace
        One layer of one sample.
    n_heads : int
    eps : float
        The layer's, on the mean normaliser.
    readers : bool Tensor of shape (P, N)
        Populations of queries; an empty one gives NaN.
    read : bool Tensor of shape (R, N)
        Populations of keys.

    Returns
    -------
    Tensor of shape (H, P, R), float64
        ``(1/|P|) sum_{i in P} sum_{j in R} A_ij``.
    """
    n_cells = step.q.shape[0]
    ratio = query_readers(step.q, step.context, 0, n_heads, eps).double()
    keys = split_heads(torch.relu(step.k), n_heads).double()
    reader = torch.stack([ratio[mask].mean(0) for mask in readers])
    total = torch.stack([keys[mask].sum(0) for mask in read])
    return torch.einsum("phd,rhd->hpr", reader, total) / n_cells


def rollout(steps: list[LayerTrace], n_heads: int, eps: float, queries: Tensor) -> Tensor:
    """Attention rollout: mass that reaches each input cell from the queries through all layers.

    Each layer is ``(I + mean over heads of A) / 2``; the product is applied to the uniform vector
    on the queries, from the last layer to the first. Mass that ``eps`` absorbs stays missing.

    Parameters
    ----------
    steps : list of LayerTrace
        All layers of one sample.
    n_heads : int
    eps : float
    queries : bool Tensor of shape (N,)

    Returns
    -------
    Tensor of shape (N,), float64

    References
    ----------
    Abnar, Zuidema, *Quantifying attention flow in transformers*, arXiv 2005.00928.
    """
    mass = queries.double() / queries.sum().clamp(min=1)
    for step in reversed(steps):
        ratio = query_readers(step.q, step.context, 0, n_heads, eps).double()
        keys = split_heads(torch.relu(step.k), n_heads).double()
        reader = torch.einsum("n,nhd->hd", mass, ratio)
        moved = torch.einsum("nhd,hd->n", keys, reader) / (len(mass) * n_heads)
        mass = (mass + moved) / 2
    return mass
