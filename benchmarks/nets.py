"""The trained peers of the benchmarks, as anybody puts a net into the classifier.

The page "Put your own net in" shows them, and the tests of such nets use them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class PerCell(nn.Module):
    """A perceptron that reads each cell by itself."""

    def __init__(self, n_markers, n_outputs, width=32, n_layers=4):
        super().__init__()
        layers = []
        for i in range(n_layers):
            layers += [nn.Linear(width if i else n_markers, width), nn.ReLU()]
            layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, n_outputs))

    def forward(self, x, offsets, context_weight):
        return self.layers(x)


class SetTransformer(nn.Module):
    """Set transformer with inducing points: Lee et al., arXiv 1810.00825, equations 6 to 10."""

    def __init__(self, n_markers, n_outputs, width=32, n_heads=4, n_layers=4, n_points=16):
        super().__init__()
        self.embed = nn.Linear(n_markers, width)
        self.blocks = nn.ModuleList(InducedBlock(width, n_heads, n_points) for _ in range(n_layers))
        self.output = nn.Linear(width, n_outputs)

    def forward(self, x, offsets, context_weight):
        cells, found = self.embed(x), []
        for start, stop in pairwise(offsets):
            h, weight = cells[start:stop], context_weight[start:stop]
            for block in self.blocks:
                h = block(h, weight)
            found.append(h)
        return self.output(torch.cat(found))


class InducedBlock(nn.Module):
    """A few points read the cells of the sample; then the cells read the points."""

    def __init__(self, width, n_heads, n_points):
        super().__init__()
        self.points = nn.Parameter(torch.randn(n_points, width))
        self.gather, self.spread = Attention(width, n_heads), Attention(width, n_heads)

    def forward(self, h, weight):
        return self.spread(h, self.gather(self.points, h, weight))


class Attention(nn.Module):
    """Rows of x read rows of y, as often as the weight of each says."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.mix, self.feedforward = (
            nn.Linear(width, width) for _ in range(5)
        )
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, y, weight=None):
        parts = (self.query(x), self.key(y), self.value(y))
        q, k, v = (part.unflatten(1, (self.n_heads, -1)).transpose(0, 1)[None] for part in parts)
        mask = None if weight is None else weight.log().expand(len(x), -1)
        read = scaled_dot_product_attention(q, k, v, mask)[0].transpose(0, 1).flatten(1)
        h = self.norm_attention(x + self.mix(read))
        return self.norm_feedforward(h + torch.relu(self.feedforward(h)))
