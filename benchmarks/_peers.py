"""Other ways to read whole samples, for comparison; written plainly from their papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class _SameLayers(nn.Module):
    """The layers of a ReluFormer, with its weights, around another attention.

    Parameters
    ----------
    net : ReluFormer
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the cells of one sample."""
        h = self.net.standardise(x)
        for layer in self.net.layers:
            q = layer.query(h)
            parts = (q, layer.key(h), layer.value(h))
            heads = (part.view(len(x), layer.n_heads, -1).transpose(0, 1) for part in parts)
            out = self.attend(layer, *heads).transpose(0, 1).reshape(len(x), -1)
            h = layer.norm_attention(q + out)
            h = layer.norm_feedforward(h + torch.relu(layer.feedforward(h)))
        return self.net.output(h)


class PublishedReluFormer(_SameLayers):
    """ReluFormer of arXiv 2307.14581, written as the equations stand."""

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Heads first: (H, N, d) each."""
        phi_q, phi_k = torch.relu(q), torch.relu(k)
        normaliser = (phi_q * phi_k.sum(1, keepdim=True)).sum(-1, keepdim=True)
        out = (phi_q @ (phi_k.transpose(1, 2) @ v)) / (normaliser + layer.eps * q.shape[1])
        return out / (q.shape[0] * q.shape[2]) ** 0.5


class SoftmaxTransformer(_SameLayers):
    """The same layers with softmax attention, by torch's own kernel."""

    def attend(self, layer: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Heads first: (H, N, d) each."""
        return scaled_dot_product_attention(q[None], k[None], v[None])[0]


class InducedSetTransformer(nn.Module):
    """Set transformer with inducing points: Lee et al., arXiv 1810.00825, equations 6 to 10.

    Parameters
    ----------
    n_markers, n_outputs : int
    width, n_heads, n_layers, n_points : int
    """

    def __init__(
        self,
        n_markers: int,
        n_outputs: int,
        width: int = 32,
        n_heads: int = 4,
        n_layers: int = 4,
        n_points: int = 16,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(n_markers, width)
        self.blocks = nn.ModuleList(
            _InducedBlock(width, n_heads, n_points) for _ in range(n_layers)
        )
        self.output = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the cells of one sample."""
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.output(h)


class _InducedBlock(nn.Module):
    def __init__(self, width: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(n_points, width))
        self.gather, self.spread = _AttentionBlock(width, n_heads), _AttentionBlock(width, n_heads)

    def forward(self, h: Tensor) -> Tensor:
        return self.spread(h, self.gather(self.points, h))


class _AttentionBlock(nn.Module):
    """``H = LayerNorm(X + attention(X, Y, Y))``, ``LayerNorm(H + relu(linear(H)))``."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.mix, self.feedforward = (
            nn.Linear(width, width) for _ in range(5)
        )
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (
            part.view(1, len(part), self.n_heads, -1).transpose(1, 2)
            for part in (self.query(x), self.key(y), self.value(y))
        )
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), -1)
        h = self.norm_attention(x + self.mix(out))
        return self.norm_feedforward(h + torch.relu(self.feedforward(h)))
