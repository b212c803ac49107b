"""The loss by which gates are learnt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Membership of a cell that is known to be outside of the gate's parent; -1 is not known.
OUTSIDE_PARENT = -2
# Fewer cells inside than this say nothing about where a gate is.
MIN_INSIDE = 20
# Weight of the cross-entropy beside Dice. Balanced cross-entropy alone draws gates wider than F1
# wants them, Dice alone has no pull on cells far from the outline.
_CROSS_ENTROPY = 0.1
# Dice counts cells by an outline that is sharper by this factor: a soft one is drawn too wide
# where many cells are near the outline on one side of it.
_SHARPNESS = 8.0


class GateLoss(nn.Module):
    """Cross-entropy balanced between inside and outside, and soft Dice; mean over gates.

    The outline by which Dice counts becomes sharper as training goes on. In validation sharp Dice
    alone, which is bounded. A gate with fewer than 20 cells inside says only where it is not.

    A gate is judged on the cells of the expert's parent, and on those others that the predicted
    parent lets through, as far as it does: in prediction they will come.

    Parameters
    ----------
    parents : sequence of G int
        Position of each gate's parent, -1 for none; parents come first.

    Attributes
    ----------
    progress : float
        Share of the training that is done, 0 to 1.
    """

    def __init__(self, parents: Sequence[int]) -> None:
        super().__init__()
        self.parents = list(parents)
        self.progress = 0.0

    def forward(self, logits: Tensor, y: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Mean over samples and gates that have something to say."""
        stratum, member = y[:, 0].long(), y[:, 1:]
        ratio = inputs["log_odds_ratio"].gather(1, stratum.clamp(min=0).unsqueeze(1))
        # Topped-up cells count as often as the sample has them.
        weight = torch.exp(-ratio) * (stratum >= 0).unsqueeze(1)
        sample = inputs["sample"]
        n_samples = int(sample[-1]) + 1

        def total(values: Tensor) -> Tensor:
            zeros = values.new_zeros(n_samples, values.shape[1])
            return zeros.index_add(0, sample, values)

        inside = (member == 1).to(logits.dtype)
        let_through = self._let_through(logits.detach())
        outside = (member == 0).to(logits.dtype) + (member == OUTSIDE_PARENT) * let_through
        enough = total(inside) >= MIN_INSIDE
        n_inside_cells = total(weight * inside)

        def dice_loss(sharpness: float) -> Tensor:
            soft = weight * torch.sigmoid(sharpness * logits)
            sizes = total(soft * (inside + outside)) + n_inside_cells
            return 1 - 2 * total(soft * inside) / sizes.clamp(min=1e-6)

        # A sample known by points alone has no cells for Dice.
        with_dice = enough & (n_inside_cells > 0)
        if not self.training:
            return _mean(dice_loss(_SHARPNESS), with_dice)
        dice = dice_loss(_SHARPNESS**self.progress)
        # Points of the plane count as one cell each.
        each = torch.where(stratum.unsqueeze(1) >= 0, weight, 1.0)
        missed = total(each * inside * nn.functional.softplus(-logits))
        taken = total(each * outside * nn.functional.softplus(logits))
        n_inside, n_outside = total(each * inside), total(each * outside)
        loss_inside = torch.where(enough, missed / n_inside.clamp(min=1e-6), 0.0)
        loss_outside = taken / n_outside.clamp(min=1e-6)
        cross_entropy = _CROSS_ENTROPY * (1 - self.progress) * (loss_inside + loss_outside) / 2
        loss = cross_entropy + torch.where(with_dice, dice, 0.0)
        return _mean(loss, enough | (n_outside > 0))

    def _let_through(self, logits: Tensor) -> Tensor:
        """Soft membership of each cell in all predicted ancestors of each gate."""
        own = torch.sigmoid(_SHARPNESS * logits)
        found = [torch.ones_like(logits[:, 0])] * len(self.parents)
        for gate, parent in enumerate(self.parents):
            if parent >= 0:
                found[gate] = found[parent] * own[:, parent]
        return torch.stack(found, 1)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
