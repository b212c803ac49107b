"""Polygons fitted to cells without a net: typical gates, own gates, the end of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fcm_estimators._fitting.gate_loss import MIN_INSIDE, GateLoss
from fcm_estimators.nn.polygon_head import Shapes, StarGates

# Where a fit starts: two SD of the cells inside, which are no less than this, in training SD.
_FIRST_LOG_RADIUS, _MIN_SPREAD = float(np.log(2.0)), 0.05
# Scale and offset of the predicted changes, in the end.
_SETTLING_STEPS, _SETTLING_RATE = 100, 0.02
# Where the samples hardly tell, changes stay as the net has learnt them.
_KEEP_CHANGE = 0.001
# Fit of free polygons: with cross-entropy first, then slower and by Dice alone.
_FIT_STEPS, _FIT_RATE = 150, 0.05


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
    enough = (member == 1).sum(0) >= MIN_INSIDE
    before = [buffer.clone() for buffer in (gates.centre, gates.spread, gates.log_radius)]
    for g in np.flatnonzero(enough):
        places = [z[i:j][member[i:j, g] == 1][:, axes[g]] for i, j in pairwise(offsets)]
        known = [p for p in places if len(p) >= MIN_INSIDE] or [np.concatenate(places)]
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
