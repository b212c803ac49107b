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
