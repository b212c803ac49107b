"""The loss of the classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CellLoss(nn.Module):
    """Cross-entropy in training, Brier score in validation; each sample has equal weight.

    The Brier score is bounded. It keeps a few confident errors, whose confidence grows with
    longer training, from determining the best epoch.

    The log odds ratio of the draw is added to the logits. The logits therefore learn the class
    probabilities of the sample (case-control correction).

    Parameters
    ----------
    class_weight : Tensor of shape (C,)
    """

    class_weight: Tensor

    def __init__(self, class_weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_weight", class_weight)

    def forward(self, logits: Tensor, y: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Mean over samples of the weighted mean over their labelled cells."""
        weight = self.class_weight[y.clamp(min=0)] * (y >= 0)
        logits = logits + inputs["log_odds_ratio"]
        if self.training:
            loss = nn.functional.cross_entropy(logits, y, reduction="none", ignore_index=-1)
        else:
            truth = nn.functional.one_hot(y.clamp(min=0), logits.shape[1])
            loss = (torch.softmax(logits, 1) - truth).square().sum(1)
        sample = inputs["sample"]
        per_sample = torch.zeros(int(sample[-1]) + 1, dtype=logits.dtype, device=logits.device)
        total = per_sample.index_add(0, sample, loss * weight)
        norm = per_sample.index_add(0, sample, weight)
        counts = norm > 0
        return (total[counts] / norm[counts]).sum() / counts.sum().clamp(min=1)
