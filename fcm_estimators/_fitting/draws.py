"""Training draws: a few samples, a subset of the cells of each, rare classes topped up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from fcm_estimators._fitting.augmentation import Augmentation


@dataclass(frozen=True)
class DrawPlan:
    """How a training step is drawn.

    Parameters
    ----------
    n_steps : int
        Draws per epoch.
    samples_per_step : int
        Samples of one draw, with replacement.
    cells_per_sample : int
        Cells of each; they are the context, representative of the sample.
    min_class_fraction : float
        Each class that the sample has is topped up, as far as it has cells, to this share of
        ``cells_per_sample``. The added cells only read: they are not in the context.
    augmentation : Augmentation or None
    """

    n_steps: int
    samples_per_step: int
    cells_per_sample: int
    min_class_fraction: float
    augmentation: Augmentation | None


class SampleDraws(Dataset):
    """Random packed batches for one epoch; the same for the same seed and position.

    Items are ``(inputs, y)``; ``inputs`` holds tensors with a row per cell: ``x`` (n, M),
    ``sample`` (n,) ascending, ``context_weight`` (n,), and ``log_odds_ratio`` (n, C), the
    logarithm of how much oftener the draw holds a cell of each class than the sample does.
    ``y`` is -1 for cells without label. With ``target`` the second item is the target of the drawn
    cells instead, and ``y`` only says which cells are alike.

    The log odds ratio goes into the loss (added to the logits), so what the net learns is the
    sample's own class probabilities although rare cells are oversampled: the case-control
    correction, exact per draw.

    Parameters
    ----------
    x : ndarray of shape (N, M)
        Cells in the caller's units, samples packed.
    y : ndarray of int of shape (N,)
        Class codes, -1 without label.
    offsets : ndarray of shape (S + 1,)
    mean, scale : ndarray of shape (M,)
        Training mean and SD, the unit of the augmentation.
    n_classes : int
    plan : DrawPlan
    seed : int
    target : ndarray of shape (N, ...), optional
        What is learnt of each cell, where that is not ``y``.
    fixed : bool, default False
        Use every sample in turn and the same draws in every epoch: for validation.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        offsets: Sequence[int],
        *,
        mean: np.ndarray,
        scale: np.ndarray,
        n_classes: int,
        plan: DrawPlan,
        seed: int,
        target: np.ndarray | None = None,
        fixed: bool = False,
    ) -> None:
        self.x, self.y, self.offsets = x, y, offsets
        self.target = y if target is None else target
        self.mean, self.scale = mean, scale
        self.n_classes, self.plan, self.seed, self.fixed = n_classes, plan, seed, fixed
        self.epoch = 0

    def __len__(self) -> int:
        return self.plan.n_steps

    def __getitem__(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rng = np.random.default_rng([self.seed, 0 if self.fixed else self.epoch, step])
        n_samples, size = len(self.offsets) - 1, self.plan.samples_per_step
        if self.fixed:
            chosen = (np.arange(size) + step * size) % n_samples
        else:
            chosen = rng.integers(n_samples, size=size)
        parts = [self._draw(int(s), rng) for s in chosen]
        sample = np.repeat(np.arange(size), [len(part[1]) for part in parts])
        x, y, weight, ratio = (np.concatenate(column) for column in zip(*parts, strict=True))
        inputs = {"x": x, "sample": sample, "context_weight": weight, "log_odds_ratio": ratio}
        return {k: torch.from_numpy(v) for k, v in inputs.items()}, torch.from_numpy(y)

    def _draw(self, s: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Cells of one sample: x, target, context weight, log odds ratio."""
        plan, start, stop = self.plan, self.offsets[s], self.offsets[s + 1]
        y = self.y[start:stop]
        chosen, expected = self._choose_context(y, rng)
        extra, log_ratio = self._top_up(y, chosen, expected, rng)
        x, target = self._look_up(s, start + np.concatenate([chosen, extra]), rng)
        if plan.augmentation is not None:
            z = (x - self.mean) / self.scale
            x = plan.augmentation.distort(z, rng) * self.scale + self.mean
        weight = np.zeros(len(x), dtype=np.float32)
        weight[: len(chosen)] = 1
        ratio = np.broadcast_to(log_ratio, (len(x), self.n_classes))
        return x.astype(np.float32, copy=False), target, weight, ratio

    def _look_up(
        self, s: int, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and target of drawn rows."""
        return self.x[rows], self.target[rows]

    def _choose_context(
        self, y: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells of the context, and how many of each class such a draw holds on average.

        The draw is a simple random subset or, by augmentation, one with other class shares.
        """
        plan, size = self.plan, min(self.plan.cells_per_sample, len(y))
        # Entry 0 counts cells without label.
        counts = np.bincount(y + 1, minlength=self.n_classes + 1)
        change = plan.augmentation
        factors = None if change is None else change.class_factors(len(counts), rng)
        if factors is None:
            factors = np.ones(len(counts))
            chosen = np.arange(len(y))
        else:
            # A cell stays with a probability proportional to its class's factor.
            keep = factors / factors[counts > 0].max()
            chosen = np.flatnonzero(rng.random(len(y)) < keep[y + 1])
            if len(chosen) == 0:
                chosen = rng.choice(len(y), 1)
        if len(chosen) > size:
            chosen = rng.choice(chosen, size, replace=False, shuffle=False)
        share = counts * factors / (counts * factors).sum()
        return chosen, len(chosen) * share[1:]

    def _top_up(
        self, y: np.ndarray, chosen: np.ndarray, expected: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Extra cells of scarce classes, and by how much they change each class's share."""
        drawn = np.bincount(y[chosen] + 1, minlength=self.n_classes + 1)[1:]
        target = int(np.ceil(self.plan.min_class_fraction * self.plan.cells_per_sample))
        extra, log_ratio = [], np.zeros(self.n_classes, dtype=np.float32)
        for c in np.flatnonzero(drawn < target):
            pool = np.setdiff1d(np.flatnonzero(y == c), chosen, assume_unique=True)
            n_extra = min(target - drawn[c], len(pool))
            if n_extra:
                extra.append(rng.choice(pool, n_extra, replace=False, shuffle=False))
                log_ratio[c] = np.log((drawn[c] + n_extra) / expected[c])
        return np.concatenate([*extra, np.empty(0, dtype=np.intp)]).astype(np.intp), log_ratio
