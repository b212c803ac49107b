"""Nets as a user writes them, for the tests: one that reads the sample, one that reads cells."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class SetTransformer(nn.Module):
    """Set transformer with inducing points: Lee et al., arXiv 1810.00825, equations 9 and 10."""

    def __init__(self, n_markers, n_outputs, width=16, n_points=4, dropout=0.0):
        super().__init__()
        self.embed = nn.Linear(n_markers, width)
        self.points = nn.Parameter(torch.randn(n_points, width))
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_outputs))

    def forward(self, x, offsets, context_weight):
        h = self.embed(x)
        found = [
            self._read(h[start:stop], context_weight[start:stop])
            for start, stop in pairwise(offsets)
        ]
        return self.output(self.drop(torch.cat(found)))

    def _read(self, h, weight):
        to_points = (self.points @ h.T / h.shape[1] ** 0.5).exp() * weight
        gathered = (to_points / to_points.sum(1, keepdim=True)) @ h
        spread = torch.softmax(h @ gathered.T / h.shape[1] ** 0.5, 1) @ gathered
        return self.norm(h + spread)


class PerCell(nn.Module):
    """A perceptron on each cell by itself."""

    def __init__(self, n_markers, n_outputs, width=16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_markers, width), nn.ReLU(), nn.Linear(width, n_outputs)
        )

    def forward(self, x, offsets):
        return self.layers(x)
