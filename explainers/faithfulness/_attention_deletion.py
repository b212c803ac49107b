"""Check of learning: whether hiding the cells that get attention matters more than in twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from explainers.attention import AttentionExplainer
from explainers.faithfulness._common import (
    as_tensor,
    centred,
    curves_frame,
    explained,
    mean_height,
    net_of,
    places,
    read,
    require_classifier,
    require_explainer,
)
from explainers.faithfulness.controls import Twins, beyond_twins, farthest, logarithms
from fcm_estimators.inference import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from explainers.plotting import CurveDisplay

Effect = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class AttentionDeletion:
    """Result of :func:`attention_deletion`.

    Attributes
    ----------
    share : ndarray of shape (P,)
        Hidden share of the cells.
    curve, reversed, distance : ndarray of shape (P,)
        Mean change of the centred logits if cells are hidden in the order of their attention, in
        the reversed order, and in that of their distance from the mean of the sample.
    random : ndarray of shape (R, P)
        The same in random orders.
    twins : ndarray
        Effects of untrained and label-permuted twins.
    """

    share: np.ndarray
    curve: np.ndarray
    reversed: np.ndarray
    distance: np.ndarray
    random: np.ndarray
    twins: np.ndarray
    name = "mean change of the logits"

    @property
    def effect(self) -> float:
        """Mean height of the curve relative to that of random orders."""
        return relative_height(self.curve, self.random, self.share)

    @property
    def trivial(self) -> float:
        """The effect of the order by distance from the mean."""
        return relative_height(self.distance, self.random, self.share)

    @property
    def holds(self) -> bool:
        """Whether the model learnt to attend to cells that matter.

        The effect must be above that of every twin, by three SD of a further twin on a logarithmic
        scale, and above that of the reversed order and of the distance from the mean.
        """
        reversed_ = relative_height(self.reversed, self.random, self.share)
        learnt = beyond_twins(*logarithms(self.effect, self.twins))
        return learnt and self.effect > max(self.trivial, reversed_)

    def frame(self) -> pd.DataFrame:
        """Return one row per order and point: ``order``, ``share``, ``value``."""
        named = {"explained": self.curve, "reversed": self.reversed, "distance": self.distance}
        return curves_frame(self.share, named, self.random)

    def plot(self, ax: Axes | None = None) -> CurveDisplay:
        """Draw the curves; return the Display."""
        from explainers.plotting import CurveDisplay

        return CurveDisplay.from_deletion(self).plot(ax=ax)


def relative_height(curve: np.ndarray, random: np.ndarray, share: np.ndarray) -> float:
    """Mean height of a curve relative to that of random orders; 1 if nothing changes anything."""
    chance = float(mean_height(random, share).mean())
    return float(mean_height(curve, share)) / chance if chance > 0 else 1.0


def attention_deletion(
    explainer: AttentionExplainer,
    adata: AnnData,
    *,
    twins: Twins,
    n_points: int = 11,
    n_random: int = 10,
    random_state: int = 0,
) -> AttentionDeletion:
    """Hide a growing share of the cells from the contexts, the most attended first.

    A check of learning: cells are hidden beginning with those that receive most attention from any
    head, and the change of the centred logits is compared with that in twins.

    Parameters
    ----------
    explainer : AttentionExplainer
    adata : AnnData
        Whole samples.
    twins : Twins
        Controls of the model, from :func:`twins`.
    n_points : int, default 11
        Number of shares from 0 to 0.9, because some cells must stay.
    n_random : int, default 10
        Number of random orders.
    random_state : int, default 0

    Returns
    -------
    AttentionDeletion

    Raises
    ------
    InvalidInputError
        The explainer is of another kind, or the model has no classes.
    """
    require_explainer(explainer, AttentionExplainer, what="attention_deletion")
    require_classifier(explainer, "attention_deletion")
    samples = read(explainer, adata)
    share = np.linspace(0, 0.9, n_points)
    curves = _Curves(explainer, samples, share, random_state)
    score = explained(explainer, samples).max(1)
    of_twins = []
    for twin in twins.explainers(explainer):
        own = _Curves(twin, samples, share, random_state)
        curve = own.of(explained(twin, samples).max(1))
        of_twins.append(relative_height(curve, own.random(n_random), share))
    return AttentionDeletion(
        share=share,
        curve=curves.of(score),
        reversed=curves.of(-score),
        distance=curves.of(farthest(samples.x, list(samples.spans()))),
        random=curves.random(n_random),
        twins=np.array(of_twins),
    )


class _Curves:
    """Change of the logits of one net if cells are hidden in some order."""

    def __init__(
        self, explainer: AttentionExplainer, samples: Samples, share: np.ndarray, seed: int
    ) -> None:
        self._effect = _without_cells(explainer, samples)
        self._samples, self._share = samples, share
        self._rng = np.random.default_rng(seed)

    def of(self, score: np.ndarray) -> np.ndarray:
        place = places(score, self._samples.sample_of_cell, self._rng)
        return np.array([self._effect(place < hidden) for hidden in self._share])

    def random(self, n: int) -> np.ndarray:
        return np.stack([self.of(self._rng.random(len(self._samples.x))) for _ in range(n)])


def _without_cells(explainer: AttentionExplainer, samples: Samples) -> Effect:
    """Function of a mask: mean absolute change of the logits without these cells as context."""
    module = net_of(explainer, samples)
    with torch.no_grad():
        blocks = [as_tensor(explainer, samples.x[start:stop]) for start, stop in samples.spans()]
        before = [centred(module(x)) for x in blocks]

    def effect(removed: np.ndarray) -> float:
        kept = (~removed).astype(samples.x.dtype)
        with torch.no_grad():
            change = [
                (centred(module(x, context_weight=as_tensor(explainer, kept[start:stop]))) - old)
                .abs()
                .mean()
                for x, old, (start, stop) in zip(blocks, before, samples.spans(), strict=True)
            ]
        return float(torch.stack(change).mean())

    return effect
