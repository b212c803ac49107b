"""Training draws: some samples, a subset of the cells of each, and more of the rare classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.scale import MarkerScale

# The chance that no further marker is hidden.
_LAST_HIDDEN = 0.7


@dataclass(frozen=True)
class DrawPlan:
    """Plan of the draws of an epoch.

    Parameters
    ----------
    n_steps : int
        Draws per epoch.
    samples_per_step : int
        Samples of one draw, with replacement.
    cells_per_sample : int
        Cells drawn from each sample. They are the context and represent the sample.
    min_class_fraction : float
        Cells of each class are added up to this share of ``cells_per_sample``, as far as the
        sample has such cells. Added cells are not in the context.
    augmentation : Augmentation or None
    may_hide : sequence of int
        Markers that may be hidden. If there are any, every step has one sample more, in which some
        of them are NaN. The others are drawn whole, as without hidden markers.
    """

    n_steps: int
    samples_per_step: int
    cells_per_sample: int
    min_class_fraction: float
    augmentation: Augmentation | None
    may_hide: Sequence[int] = ()

    def hidden(self, rng: np.random.Generator) -> np.ndarray:
        """Markers that are hidden in a sample: mostly one, at most half of them."""
        n_hidden = min(rng.geometric(_LAST_HIDDEN), max(1, len(self.may_hide) // 2))
        return rng.choice(self.may_hide, n_hidden, replace=False)


class SampleDraws(Dataset[tuple[dict[str, torch.Tensor], torch.Tensor]]):
    """Random packed batches for one epoch. Equal seed, epoch and step give equal batches.

    Items are ``(inputs, y)``. ``inputs`` holds tensors with one row per cell: ``x`` (n, M),
    ``sample`` (n,) ascending, ``context_weight`` (n,), and ``log_odds_ratio`` (n, C). The latter
    is the logarithm of the factor by which the draw oversamples each class. ``y`` is -1 for cells
    without label. If ``target`` is given, the second item is the target of the drawn cells, and
    ``y`` only defines the classes that are drawn alike.

    The loss adds the log odds ratio to the logits. The net therefore learns the class
    probabilities of the sample although the draw oversamples rare classes. This is the
    case-control correction, exact for each draw.

    Parameters
    ----------
    x : ndarray of shape (N, M)
        Cells in the user's units, samples packed.
    y : ndarray of int of shape (N,)
        Class codes, -1 without label.
    offsets : ndarray of shape (S + 1,)
    scale : MarkerScale
        Its SD is the unit of the augmentation.
    n_classes : int
    plan : DrawPlan
    seed : int
    target : ndarray of shape (N, ...), optional
        Training target of each cell. Default: ``y``.
    fixed : bool, default False
        Use the samples in turn and the same draws in every epoch, as validation needs it.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        offsets: Sequence[int],
        *,
        scale: MarkerScale,
        n_classes: int,
        plan: DrawPlan,
        seed: int,
        target: np.ndarray | None = None,
        fixed: bool = False,
    ) -> None:
        self.x, self.y, self.offsets = x, y, offsets
        self.target = y if target is None else target
        self.scale = scale
        self.n_classes, self.plan, self.seed, self.fixed = n_classes, plan, seed, fixed
        self.epoch = 0

    def __len__(self) -> int:
        return self.plan.n_steps

    def __getitem__(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rng = np.random.default_rng([self.seed, 0 if self.fixed else self.epoch, step])
        n_samples, may_hide = len(self.offsets) - 1, bool(self.plan.may_hide)
        size = self.plan.samples_per_step + may_hide
        if self.fixed:
            chosen = (np.arange(size) + step * size) % n_samples
        else:
            chosen = rng.integers(n_samples, size=size)
        parts = [self._draw(int(s), rng) for s in chosen]
        if may_hide:
            parts[-1][0][:, self.plan.hidden(rng)] = np.nan
        sample = np.repeat(np.arange(size), [len(part[1]) for part in parts])
        x, y, weight, ratio = (np.concatenate(column) for column in zip(*parts, strict=True))
        inputs = {"x": x, "sample": sample, "context_weight": weight, "log_odds_ratio": ratio}
        return {k: torch.from_numpy(v) for k, v in inputs.items()}, torch.from_numpy(y)

    def _draw(self, s: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Drawn cells of one sample: x, target, context weight and log odds ratio."""
        plan, start, stop = self.plan, self.offsets[s], self.offsets[s + 1]
        y = self.y[start:stop]
        chosen, expected = self._choose_context(y, rng)
        extra, log_ratio = self._top_up(y, chosen, expected, rng)
        x, target = self._look_up(s, start + np.concatenate([chosen, extra]), rng)
        if plan.augmentation is not None:
            z = self.scale.standardised(x)
            x = self.scale.restored(plan.augmentation.distort(z, rng))
        weight = np.zeros(len(x), dtype=np.float32)
        weight[: len(chosen)] = 1
        ratio = np.broadcast_to(log_ratio, (len(x), self.n_classes))
        return x.astype(np.float32, copy=False), target, weight, ratio

    def _look_up(
        self, s: int, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and targets of drawn rows."""
        return self.x[rows], self.target[rows]

    def _choose_context(
        self, y: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cells of the context, and the expected number of each class in such a draw.

        The draw is a simple random subset. Augmentation may change the class shares.
        """
        plan, size = self.plan, min(self.plan.cells_per_sample, len(y))
        # Entry 0 counts cells without label.
        counts = np.bincount(y + 1, minlength=self.n_classes + 1)
        augmentation = plan.augmentation
        factors = None if augmentation is None else augmentation.class_factors(len(counts), rng)
        if factors is None:
            factors = np.ones(len(counts))
            chosen = np.arange(len(y))
        else:
            # A cell is kept with a probability proportional to the factor of its class.
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
        """Extra cells of rare classes, and the log odds ratio of each class that results."""
        drawn = np.bincount(y[chosen] + 1, minlength=self.n_classes + 1)[1:]
        target = int(np.ceil(self.plan.min_class_fraction * self.plan.cells_per_sample))
        extra, log_ratio = [], np.zeros(self.n_classes, dtype=np.float32)
        free = np.ones(len(y), dtype=bool)
        free[chosen] = False
        for c in np.flatnonzero(drawn < target):
            pool = np.flatnonzero(free & (y == c))
            n_extra = min(target - drawn[c], len(pool))
            if n_extra:
                extra.append(rng.choice(pool, n_extra, replace=False, shuffle=False))
                log_ratio[c] = np.log((drawn[c] + n_extra) / expected[c])
        return np.concatenate([*extra, np.empty(0, dtype=np.intp)]).astype(np.intp), log_ratio
