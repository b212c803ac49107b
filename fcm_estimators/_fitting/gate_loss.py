"""What the polygon regressor learns from: draws with points on the plane, loss, typical gates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators.nn.polygon_head import Shapes, StarGates

# Membership of a cell that is known to be outside of the gate's parent; -1 is not known.
OUTSIDE_PARENT = -2
# Points of an expert's plane in one draw of a sample, per gate.
_PROBES_PER_DRAW = 48
# Fewer cells inside than this say nothing about where a gate is.
_MIN_INSIDE = 20
# Weight of the cross-entropy beside Dice. Balanced cross-entropy alone draws gates wider than F1
# wants them, Dice alone has no pull on cells far from the outline.
_CROSS_ENTROPY = 0.1
# Where a fit starts: two SD of the cells inside, which are no less than this, in training SD.
_FIRST_LOG_RADIUS, _MIN_SPREAD = float(np.log(2.0)), 0.05
# Dice counts cells by an outline that is sharper by this factor: a soft one is drawn too wide
# where many cells are near the outline on one side of it.
_SHARPNESS = 8.0
# Scale and offset of the predicted changes, in the end.
_SETTLING_STEPS, _SETTLING_RATE = 100, 0.02
# Where the samples hardly tell, changes stay as the net has learnt them.
_KEEP_CHANGE = 0.001
# Fit of free polygons: with cross-entropy first, then slower and by Dice alone.
_FIT_STEPS, _FIT_RATE = 150, 0.05


class Probes(NamedTuple):
    """Points of the planes of one sample, inside or outside of the expert's polygons.

    Attributes
    ----------
    gate : ndarray of int, shape (P,)
        Position of the gate.
    place : ndarray of shape (P, 2)
        In the data's units.
    inside : ndarray of bool, shape (P,)
    """

    gate: np.ndarray
    place: np.ndarray
    inside: np.ndarray


class GateDraws(SampleDraws):
    """Training draws for gates; the target is stratum and membership.

    The target of a row has 1 + G columns: the stratum (-1 for a point that is no cell), then 1
    inside, 0 outside, -1 unknown, -2 outside of the parent, for each gate.

    Parameters
    ----------
    *args, **kwargs
        Of :class:`SampleDraws`; ``y`` is the stratum of each cell.
    axes : sequence of G pairs of int
        Markers of each gate.
    probes : sequence of Probes or None
        One per sample. Points are added to a draw with the other markers of random cells, and
        distorted as these are; they are in no context.
    """

    def __init__(
        self,
        *args: Any,
        axes: Sequence[tuple[int, int]],
        probes: Sequence[Probes | None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.axes, self.probes = np.asarray(axes).reshape(-1, 2), probes

    def _look_up(
        self, s: int, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        x, target = super()._look_up(s, rows, rng)
        probes = self.probes[s]
        if probes is None:
            return x, target
        size = min(len(probes.gate), _PROBES_PER_DRAW * len(self.axes))
        picked = rng.choice(len(probes.gate), size, replace=False, shuffle=False)
        gate, row = probes.gate[picked], np.arange(size)
        points = x[rng.integers(len(x), size=size)]
        points[row[:, None], self.axes[gate]] = probes.place[picked]
        known = np.full((size, target.shape[1]), -1, dtype=target.dtype)
        known[row, 1 + gate] = probes.inside[picked]
        return np.concatenate([x, points]), np.concatenate([target, known])


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
        enough = total(inside) >= _MIN_INSIDE
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


def fit_shapes(
    gates: StarGates,
    z: Tensor,
    member: Tensor,
    offsets: Sequence[int],
    parents: Sequence[int],
    *,
    shared: bool,
) -> Shapes:
    """Polygons that hold the cells inside best, without a net.

    Parameters
    ----------
    gates : StarGates
        Where to start; not changed.
    z : Tensor of shape (N, M)
        Standardised cells, samples packed.
    member : int Tensor of shape (N, G)
        1 inside, 0 outside, -1 unknown, -2 outside of the parent.
    offsets : sequence of S + 1 int
    parents : sequence of G int
        As in :class:`GateLoss`.
    shared : bool
        One polygon per gate for all samples (fixed gates), or one per sample and gate.

    Returns
    -------
    Shapes
        Of S samples, or of one where shared.
    """
    n_samples = len(offsets) - 1
    sizes = torch.tensor(offsets).diff()
    sample = torch.repeat_interleave(torch.arange(n_samples), sizes)
    change = torch.zeros(1 if shared else n_samples, len(gates.axes), gates.n_parameters)
    change = change.to(z).requires_grad_()
    inputs = {"sample": sample, "log_odds_ratio": z.new_zeros(len(z), 1)}
    target = torch.cat([torch.zeros_like(member[:, :1]), member], 1)
    loss = GateLoss(parents)
    limits = [0, len(z)] if shared else offsets
    for alone in (False, True):
        loss.train(not alone)
        optimizer = torch.optim.Adam([change], lr=_FIT_RATE / (4 if alone else 1))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _FIT_STEPS)
        for _ in range(_FIT_STEPS):
            optimizer.zero_grad()
            logits = gates.membership(z, gates.shapes(change), limits)
            loss(logits, target, inputs).backward()
            optimizer.step()
            schedule.step()
    return gates.shapes(change.detach())


def settled_change(
    gates: StarGates,
    change: Tensor,
    batch: tuple[dict[str, Tensor], Tensor],
    parents: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Scale and offset of predicted changes that suit samples as they were measured.

    A net that learns from distorted samples draws outlines that suit those on average, and
    follows a sample further than its cells can tell.

    Parameters
    ----------
    gates : StarGates
    change : Tensor of shape (S, G, 2 + V)
        Predicted from each sample.
    batch : pair
        Cells of these samples as :class:`GateDraws` gives them, standardised.
    parents : sequence of G int
        As in :class:`GateLoss`.

    Returns
    -------
    Tensor of shape (G, 1) and Tensor of shape (G, 2 + V)
        1 and 0 for gates of which the samples say nothing.
    """
    inputs, target = batch
    offsets = [0, *torch.bincount(inputs["sample"]).cumsum(0).tolist()]
    scale = torch.ones_like(change[0, :, :1]).requires_grad_()
    offset = torch.zeros_like(change[0]).requires_grad_()
    loss = GateLoss(parents).eval()
    optimizer = torch.optim.Adam([scale, offset], lr=_SETTLING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _SETTLING_STEPS)
    for _ in range(_SETTLING_STEPS):
        optimizer.zero_grad()
        shapes = gates.shapes(change * scale + offset)
        value = loss(gates.membership(inputs["x"], shapes, offsets), target, inputs)
        kept = (scale - 1).square().mean() + offset.square().mean()
        (value + _KEEP_CHANGE * kept).backward()
        optimizer.step()
        schedule.step()
    return scale.detach(), offset.detach()


def place_gates(
    gates: StarGates,
    z: np.ndarray,
    member: np.ndarray,
    offsets: list[int],
    parents: Sequence[int],
) -> None:
    """Set the typical centre, spread and radii of each gate from training cells.

    A gate with fewer than 20 cells inside stays as it is.

    Parameters
    ----------
    gates : StarGates
        Its buffers are set.
    z : ndarray of shape (N, M)
        Standardised cells, samples packed.
    member : int ndarray of shape (N, G)
    offsets : list of S + 1 int
    parents : sequence of G int
        As in :class:`GateLoss`.
    """
    axes = gates.axes.numpy()
    enough = (member == 1).sum(0) >= _MIN_INSIDE
    before = [buffer.clone() for buffer in (gates.centre, gates.spread, gates.log_radius)]
    for g in np.flatnonzero(enough):
        places = [z[i:j][member[i:j, g] == 1][:, axes[g]] for i, j in pairwise(offsets)]
        known = [p for p in places if len(p) >= _MIN_INSIDE] or [np.concatenate(places)]
        gates.centre[g] = torch.from_numpy(np.mean([p.mean(0) for p in known], axis=0))
        spread = np.sqrt(np.mean([p.var(0) for p in known], axis=0))
        gates.spread[g] = torch.from_numpy(np.maximum(spread, _MIN_SPREAD))
        gates.log_radius[g] = _FIRST_LOG_RADIUS
    with torch.enable_grad():
        shapes = fit_shapes(
            gates,
            torch.from_numpy(z),
            torch.from_numpy(member).long(),
            offsets,
            parents,
            shared=True,
        )
    gates.centre.copy_(shapes.centre[0])
    gates.log_radius.copy_(shapes.log_radius[0])
    kept = torch.from_numpy(~enough)
    for buffer, old in zip((gates.centre, gates.spread, gates.log_radius), before, strict=True):
        buffer[kept] = old[kept]
