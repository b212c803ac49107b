"""Polygons fitted to cells without a net, and the final adjustment of a trained net."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcm_estimators._cells.samples import Samples
from fcm_estimators._fitting.gate_draws import GateDraws, Probes
from fcm_estimators._fitting.gate_loss import MIN_INSIDE, GateLoss
from fcm_estimators.nn import PolygonFormer
from fcm_estimators.nn.polygon_head import Shapes, StarGates
from fcm_estimators.nn.soft_gates import SoftGate
from fcm_estimators.nn.streaming import streamed_contexts

# Lower limit of the SD of the cells inside, in training SD.
_MIN_SPREAD = 0.05
# A fit starts with this quantile of the distances in each direction, and with at least this
# radius, in SD of the cells inside.
_FIRST_QUANTILE, _LEAST_RADIUS = 0.995, 0.1
# Fit of polygons, in two phases: with cross-entropy, then with Dice alone at a lower rate.
_FIT_STEPS, _FIT_RATE = 150, 0.05
# Final adjustment of the predicted changes, and the number of samples that it uses.
_ADJUSTMENT_STEPS, _ADJUSTMENT_RATE, _ADJUSTMENT_SAMPLES = 100, 0.02, 100
# Most cells of a sample, and of all samples together if that is at least as many as in training.
_ADJUSTMENT_CELLS, _ALL_ADJUSTMENT_CELLS = 6_000, 120_000
# Weight of the penalty that keeps predicted changes unless the samples show a better value.
_ADJUSTMENT_PENALTY = 0.001
# Cells per sample, and points per sample and gate, for a fit of the typical gates.
_TYPICAL_CELLS, _TYPICAL_POINTS = 2_000, 100


class Points(NamedTuple):
    """Points of the planes of the gates in the form of cells.

    Attributes
    ----------
    z : Tensor of shape (P, M)
        Standardised; 0 for markers that are not on the axes of the gate.
    target : int Tensor of shape (P, 1 + G)
        As of :class:`GateDraws`.
    sample : int Tensor of shape (P,)
    """

    z: Tensor
    target: Tensor
    sample: Tensor

    @classmethod
    def of(
        cls, module: PolygonFormer, probes: Sequence[Probes | None], rng: np.random.Generator
    ) -> Points | None:
        """Some points of each sample and gate; None if no sample has any."""
        axes = module.gates.axes.numpy()
        x, target, sample = [], [], []
        for s, found in enumerate(probes):
            if found is None:
                continue
            chosen = rng.permutation(len(found.gate))[: _TYPICAL_POINTS * len(axes)]
            gate, row = found.gate[chosen], np.arange(len(chosen))
            x.append(np.repeat(module.input_mean.numpy()[None], len(chosen), 0))
            x[-1][row[:, None], axes[gate]] = found.place[chosen]
            target.append(np.full((len(chosen), 1 + len(axes)), -1))
            target[-1][:, 0] = found.stratum[chosen]
            target[-1][row, 1 + gate] = found.inside[chosen]
            sample.append(np.full(len(chosen), s))
        if not x:
            return None
        z = module.standardise(torch.from_numpy(np.concatenate(x))).float()
        return cls(z, *(torch.from_numpy(np.concatenate(part)) for part in (target, sample)))


def fit_shapes(
    gates: StarGates,
    z: Tensor,
    member: Tensor,
    offsets: Sequence[int],
    hierarchy: Sequence[SoftGate],
    *,
    shared: bool,
    points: Points | None = None,
) -> Shapes:
    """Fit polygons to the cells inside, without a net.

    Parameters
    ----------
    gates : StarGates
        Polygons that the fit starts from; not changed.
    z : Tensor of shape (N, M)
        Standardised cells, samples packed.
    member : int Tensor of shape (N, G)
        1 inside, 0 outside, -1 unknown, -2 outside of the parent.
    offsets : sequence of S + 1 int
    hierarchy : sequence of SoftGate
        As in :class:`GateLoss`.
    shared : bool
        True: one polygon per gate for all samples. False: one per sample and gate.
    points : Points, optional
        Points of the planes, which are no cells. Needs ``shared``.

    Returns
    -------
    Shapes
        Polygons of S samples, or of one if ``shared``.
    """
    n_samples = len(offsets) - 1
    sizes = torch.tensor(offsets).diff()
    sample = torch.repeat_interleave(torch.arange(n_samples), sizes)
    change = torch.zeros(1 if shared else n_samples, len(gates.axes), gates.n_parameters)
    change = change.to(z).requires_grad_()
    target = torch.cat([torch.zeros_like(member[:, :1]), member], 1)
    if points is not None:
        z, target = torch.cat([z, points.z]), torch.cat([target, points.target])
        sample = torch.cat([sample, points.sample])
    inputs = {"sample": sample, "log_odds_ratio": z.new_zeros(len(z), 1)}
    loss = GateLoss(hierarchy, around=1.0)
    limits = [0, len(z)] if shared else offsets

    def value() -> Tensor:
        fitted: Tensor = loss(gates.membership(z, gates.shapes(change), limits), target, inputs)
        return fitted

    for progress in (0.0, 1.0):
        # At the end the loss is sharp Dice, and what lasts of the points.
        loss.progress = progress
        _minimise(value, [change], _FIT_RATE / (4 if progress else 1), _FIT_STEPS)
    return gates.shapes(change.detach())


def settled_change(
    gates: StarGates,
    change: Tensor,
    batch: tuple[dict[str, Tensor], Tensor],
    hierarchy: Sequence[SoftGate],
) -> tuple[Tensor, Tensor]:
    """Scale and offset of the predicted changes that fit samples as they were measured.

    A net that learns from distorted samples predicts outlines that are right on average for
    distorted samples. It also changes them more than the cells of a sample justify.

    Parameters
    ----------
    gates : StarGates
    change : Tensor of shape (S, G, 2 + V)
        Change that the net predicts for each sample.
    batch : pair
        Standardised cells of these samples, in the form of :class:`GateDraws`.
    hierarchy : sequence of SoftGate
        As in :class:`GateLoss`.

    Returns
    -------
    Tensor of shape (G, 1) and Tensor of shape (G, 2 + V)
        1 and 0 for gates about which the samples hold no information.
    """
    inputs, target = batch
    offsets = [0, *torch.bincount(inputs["sample"]).cumsum(0).tolist()]
    scale = torch.ones_like(change[0, :, :1]).requires_grad_()
    offset = torch.zeros_like(change[0]).requires_grad_()
    loss = GateLoss(hierarchy)
    loss.progress = 1.0

    def penalised() -> Tensor:
        shapes = gates.shapes(change * scale + offset)
        value: Tensor = loss(gates.membership(inputs["x"], shapes, offsets), target, inputs)
        size = (scale - 1).square().mean() + offset.square().mean()
        return value + _ADJUSTMENT_PENALTY * size

    _minimise(penalised, [scale, offset], _ADJUSTMENT_RATE, _ADJUSTMENT_STEPS)
    return scale.detach(), offset.detach()


def _minimise(
    value: Callable[[], Tensor], variables: Sequence[Tensor], rate: float, n_steps: int
) -> None:
    """Minimise a value by Adam with a rate that falls to zero; variables change in place."""
    optimizer = torch.optim.Adam(variables, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        value().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def first_radii(place: np.ndarray, n_vertices: int) -> np.ndarray:
    """Radii at a high quantile of the distances of cells near each direction, (V,).

    Parameters
    ----------
    place : ndarray of shape (n, 2)
        Cells inside, relative to the centre.
    n_vertices : int
    """
    step = 2 * np.pi / n_vertices
    angle, distance = np.arctan2(place[:, 1], place[:, 0]), np.hypot(*place.T)
    radii = np.full(n_vertices, _LEAST_RADIUS)
    nearest = np.round(angle / step).astype(int) % n_vertices
    for k in np.unique(nearest):
        radii[k] = max(_LEAST_RADIUS, np.quantile(distance[nearest == k], _FIRST_QUANTILE))
    return radii


def place_gates(
    gates: StarGates,
    z: np.ndarray,
    member: np.ndarray,
    offsets: list[int],
    hierarchy: Sequence[SoftGate],
    points: Points | None = None,
) -> None:
    """Set the typical centre, spread and radii of each gate from training cells.

    A gate with fewer than 20 cells inside does not change.

    Parameters
    ----------
    gates : StarGates
        Its buffers are changed.
    z : ndarray of shape (N, M)
        Standardised cells, samples packed.
    member : int ndarray of shape (N, G)
    offsets : list of S + 1 int
    hierarchy : sequence of SoftGate
        As in :class:`GateLoss`.
    points : Points, optional
        As for :func:`fit_shapes`.
    """
    axes = gates.axes.numpy()
    too_few = (member == 1).sum(0) < MIN_INSIDE
    before = [buffer.clone() for buffer in (gates.centre, gates.spread, gates.log_radius)]
    for g in np.flatnonzero(~too_few):
        places = [z[i:j][member[i:j, g] == 1][:, axes[g]] for i, j in pairwise(offsets)]
        known = [p for p in places if len(p) >= MIN_INSIDE] or [np.concatenate(places)]
        gates.centre[g] = torch.from_numpy(np.mean([p.mean(0) for p in known], axis=0))
        spread = np.sqrt(np.mean([p.var(0) for p in known], axis=0))
        gates.spread[g] = torch.from_numpy(np.maximum(spread, _MIN_SPREAD))
        deviations = np.concatenate([p - p.mean(0) for p in known]) / gates.spread[g].numpy()
        radii = first_radii(deviations, gates.log_radius.shape[1])
        gates.log_radius[g] = torch.from_numpy(np.log(radii))
    with torch.enable_grad():
        shapes = fit_shapes(
            gates,
            torch.from_numpy(z),
            torch.from_numpy(member).long(),
            offsets,
            hierarchy,
            shared=True,
            points=points,
        )
    gates.centre.copy_(shapes.centre[0])
    gates.log_radius.copy_(shapes.log_radius[0])
    unchanged = torch.from_numpy(too_few)
    for buffer, old in zip((gates.centre, gates.spread, gates.log_radius), before, strict=True):
        buffer[unchanged] = old[unchanged]


def place_typical_gates(
    module: PolygonFormer,
    samples: Samples,
    inside: np.ndarray,
    hierarchy: Sequence[SoftGate],
    probes: Sequence[Probes | None],
    is_open: np.ndarray,
    seed: int,
) -> None:
    """Set the typical gates of a new net from some cells of each sample.

    Parameters
    ----------
    module : PolygonFormer
    samples : Samples
    inside : int ndarray of shape (N, G)
    hierarchy : sequence of SoftGate
    probes : sequence of Probes or None
        One per sample.
    is_open : ndarray of bool, shape (2, G, 2)
        Ends of the axes at which each gate is open.
    seed : int
    """
    rng = np.random.default_rng(seed)
    picked = [
        np.sort(rng.choice(np.arange(i, j), min(j - i, _TYPICAL_CELLS), replace=False))
        for i, j in samples.spans()
    ]
    rows = np.concatenate(picked)
    ends = torch.from_numpy(np.stack([samples.x.min(0), samples.x.max(0)]))
    module.gates.set_limits(module.standardise(ends), torch.from_numpy(is_open))
    z = module.standardise(torch.from_numpy(samples.x[rows])).float().numpy()
    limits = [0, *np.cumsum([len(p) for p in picked]).tolist()]
    points = Points.of(module, probes, rng)
    place_gates(module.gates, z, inside[rows], limits, hierarchy, points)


def adjust_to_samples(
    module: PolygonFormer,
    samples: Samples,
    train: Sequence[int],
    draws: GateDraws,
    hierarchy: Sequence[SoftGate],
) -> None:
    """Adjust the predicted changes of a trained net to training samples without distortion.

    Parameters
    ----------
    module : PolygonFormer
        Trained net; its adjustment is set.
    samples : Samples
    train : sequence of int
        Positions of the training samples.
    draws : GateDraws
        Draws of these samples.
    hierarchy : sequence of SoftGate
    """
    device = module.input_mean.device
    draws = copy.copy(draws)
    draws.fixed = True
    n_used = min(len(train), _ADJUSTMENT_SAMPLES)
    n_cells = min(_ADJUSTMENT_CELLS, _ALL_ADJUSTMENT_CELLS // n_used)
    draws.plan = dataclasses.replace(
        draws.plan,
        samples_per_step=1,
        cells_per_sample=max(n_cells, draws.plan.cells_per_sample),
        augmentation=None,
    )
    rng = np.random.default_rng(draws.seed)
    changes, inputs, targets = [], [], []
    for number, s in enumerate(np.sort(rng.choice(len(train), n_used, replace=False))):
        start, stop = samples.offsets[train[s]], samples.offsets[train[s] + 1]
        x = torch.from_numpy(samples.x[start:stop]).float().to(device)
        with torch.no_grad():
            changes.append(module.change_in(streamed_contexts(module, x)[-1]))
        drawn, target = draws[int(s)]
        drawn["sample"] = torch.full_like(drawn["sample"], number)
        inputs.append(drawn)
        targets.append(target.to(device))
    packed = {key: torch.cat([part[key] for part in inputs]).to(device) for key in inputs[0]}
    packed["x"] = module.standardise(packed["x"])
    batch = packed, torch.cat(targets)
    module.adjust(*settled_change(module.gates, torch.cat(changes), batch, hierarchy))
