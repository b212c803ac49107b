"""Nets without one of their heads."""

from __future__ import annotations

import copy
from typing import cast

import torch

from fcm_estimators.nn import ReluFormer, ReluFormerLayer


def without_head(module: ReluFormer, layer: int, head: int) -> ReluFormer:
    """Copy of the net in which one head contributes nothing.

    The head's values are set to zero, so what it reads is zero whatever it attends to.
    """
    other = copy.deepcopy(module)
    target = cast(ReluFormerLayer, other.layers[layer])
    width = target.value.out_features // target.n_heads
    rows = slice(head * width, (head + 1) * width)
    with torch.no_grad():
        target.value.weight[rows] = 0
        target.value.bias[rows] = 0
    return other
