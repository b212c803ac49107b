"""The loss of the polygon regressor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fcm_estimators._fitting.gate_draws import AROUND, DRAWN, LASTING
from fcm_estimators.nn.soft_gates import SoftGate, soft_parents

# Membership of a cell that is known to be outside of the gate's parent. -1 means unknown.
OUTSIDE_PARENT = -2
# Fewer cells inside than this do not determine the position of a gate.
MIN_INSIDE = 20
# Weight of the cross-entropy beside Dice. Balanced cross-entropy alone makes gates wider than is
# best for F1. Dice alone has almost no gradient for cells far from the outline.
_CROSS_ENTROPY = 0.1
# Points of rare gates keep this share of their weight at the end of training.
_LASTING = 0.1
# Weight of the points around hulls, which say where an outline is to be where there are no cells.
# It falls from the first to the second. More makes gates too narrow: F1 of the blasts of two of the
# eight pseudo-samples of the training half of all494, trained on the other six, is 0.9955 with 1
# falling to 0.1, 0.9977 with these weights, and 0.9970 without such points. Without, outlines are
# wider (1.5 instead of 1.3 times the area of the hulls) and follow a shifted sample less.
_AROUND, _LEAST_AROUND = 0.15, 0.06
# Dice uses an outline that is sharper by this factor. With a soft outline, gates become too wide
# if many cells are near the outline on one side of it.
_SHARPNESS = 8.0


class GateLoss(nn.Module):
    """Cross-entropy balanced between inside and outside, and soft Dice; mean over gates.

    The cross-entropy of cells, and of points in and around an expert's polygon, fades during
    training. Points of polygons of rare gates, and points around the hull of a gate that nobody
    drew, have cross-entropies of their own, which remain in part and shape outlines where there are
    no cells. The outline that Dice uses becomes sharper during training. Validation uses sharp
    Dice alone, which is bounded. A gate with fewer than 20 cells inside contributes only its cells
    outside.

    The loss of a gate covers the cells of the expert's parent. It also covers other cells, weighted
    by their soft membership in the predicted parent, because prediction applies the gate to them.

    Parameters
    ----------
    hierarchy : sequence of SoftGate
        All gates, polygons and combinations, in the form of
        :func:`~fcm_estimators.nn.soft_gates.soft_members`.
    around : float, default 0.15
        Weight of points around hulls at the start.

    Attributes
    ----------
    progress : float
        Completed share of the training, 0 to 1.
    """

    def __init__(self, hierarchy: Sequence[SoftGate], around: float = _AROUND) -> None:
        super().__init__()
        self.hierarchy = tuple(hierarchy)
        self.around = around
        self.progress = 0.0

    def forward(self, logits: Tensor, y: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Mean over the pairs of sample and gate for which the loss is defined."""
        stratum, member = y[:, 0].long(), y[:, 1:]
        ratio = inputs["log_odds_ratio"].gather(1, stratum.clamp(min=0).unsqueeze(1))
        # The weight undoes the oversampling of rare strata.
        weight = torch.exp(-ratio) * (stratum >= 0).unsqueeze(1)
        sample = inputs["sample"]
        n_samples = int(sample[-1]) + 1

        def total(values: Tensor) -> Tensor:
            zeros = values.new_zeros(n_samples, values.shape[1])
            return zeros.index_add(0, sample, values)

        inside = (member == 1).to(logits.dtype)
        in_parent = soft_parents(self.hierarchy, torch.sigmoid(_SHARPNESS * logits.detach()))
        outside = (member == 0).to(logits.dtype) + (member == OUTSIDE_PARENT) * in_parent
        enough = total(inside) >= MIN_INSIDE
        n_inside_cells = total(weight * inside)

        def dice_loss(sharpness: float) -> Tensor:
            soft = weight * torch.sigmoid(sharpness * logits)
            sizes = total(soft * (inside + outside)) + n_inside_cells
            return 1 - 2 * total(soft * inside) / sizes.clamp(min=1e-6)

        # A sample that only has points has no cells for Dice.
        with_dice = enough & (n_inside_cells > 0)
        if not self.training:
            return _mean(dice_loss(_SHARPNESS), with_dice)
        dice = dice_loss(_SHARPNESS**self.progress)

        def cross_entropy(each: Tensor, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
            missed = total(each * inside * nn.functional.softplus(-logits, sharpness))
            taken = total(each * outside * nn.functional.softplus(logits, sharpness))
            n_inside, n_outside = total(each * inside), total(each * outside)
            loss_inside = torch.where(enough, missed / n_inside.clamp(min=1e-6), 0.0)
            loss_outside = taken / n_outside.clamp(min=1e-6)
            return (loss_inside + loss_outside) / 2, n_outside > 0

        # Each drawn point counts as one cell.
        drawn, rare, hull = (
            (stratum == kind).unsqueeze(1).to(logits.dtype) for kind in (DRAWN, LASTING, AROUND)
        )
        sharp = _SHARPNESS**self.progress
        fading, outside_drawn = cross_entropy(torch.maximum(drawn, weight))
        lasting, outside_rare = cross_entropy(rare, sharp)
        around, outside_hull = cross_entropy(hull, sharp)
        left = 1 - self.progress
        points = max(left, _LASTING) * lasting + max(left * self.around, _LEAST_AROUND) * around
        loss = _CROSS_ENTROPY * (left * fading + points)
        loss = loss + torch.where(with_dice, dice, 0.0)
        return _mean(loss, enough | outside_drawn | outside_rare | outside_hull)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
