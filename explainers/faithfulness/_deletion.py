"""Check of correctness: whether removing what a gradient ranks first has the largest effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from explainers._gradient_plan import Integrated
from explainers.faithfulness._common import (
    CLEARLY,
    as_tensor,
    curves_frame,
    explained,
    input_mean,
    input_scale,
    mean_height,
    net_of,
    places,
    read,
    require_explainer,
)
from explainers.faithfulness._link import LEAST_LINK, link_with_model, value_of
from explainers.gradient import GradientExplainer
from fcm_estimators.inference import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from explainers.plotting import CurveDisplay

Effect = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Deletion:
    """Result of :func:`deletion`.

    Attributes
    ----------
    share : ndarray of shape (P,)
        Removed share.
    curve, reversed : ndarray of shape (P,)
        Output in the explained and in the reversed order.
    distance : ndarray of shape (P,)
        Output in the order of a gradient that is the same for all entries: entries farthest above
        the mean come first.
    random : ndarray of shape (R, P)
        Output in random orders.
    link : float
        Agreement of the explanation with the model, as in :class:`Sensitivity`.
    name : str
        Label of the vertical axis.
    """

    share: np.ndarray
    curve: np.ndarray
    reversed: np.ndarray
    distance: np.ndarray
    random: np.ndarray
    link: float
    name: str

    def area(self, curve: np.ndarray) -> np.ndarray:
        """Mean height of a curve, negative, so that larger values are better."""
        return -mean_height(curve, self.share)

    @property
    def correct(self) -> bool:
        """Whether the explained order is clearly better than the controls.

        It must be better than the random orders, and than the order of a gradient that is the same
        for all entries, by four standard deviations of the random orders. It must also be better
        than the reversed order. The link must be above 0.5: the explanation of another net of the
        same data can have a good order too.
        """
        chance = self.area(self.random)
        least = CLEARLY * chance.std(ddof=1)
        bars = [
            chance.mean() + least,
            self.area(self.distance) + least,
            self.area(self.reversed),
        ]
        return bool(self.area(self.curve) > max(bars) and self.link > LEAST_LINK)

    def frame(self) -> pd.DataFrame:
        """Return one row per order and point: ``order``, ``share``, ``value``."""
        named = {"explained": self.curve, "reversed": self.reversed, "distance": self.distance}
        return curves_frame(self.share, named, self.random)

    def plot(self, ax: Axes | None = None) -> CurveDisplay:
        """Draw the curves; return the Display."""
        from explainers.plotting import CurveDisplay

        return CurveDisplay.from_deletion(self).plot(ax=ax)


def deletion(
    explainer: GradientExplainer,
    adata: AnnData,
    *,
    n_points: int = 11,
    n_random: int = 10,
    random_state: int = 0,
) -> Deletion:
    """Remove a growing share of the data, in the order of the gradients and in control orders.

    An entry is one marker of one cell. Entries are set to the training mean, beginning with those
    that support the target most according to the explanation. The result is the mean output of the
    target. In mode "own" the contexts do not change. In mode "context" only the contexts change.
    For attention, see :func:`attention_deletion`.

    Parameters
    ----------
    explainer : GradientExplainer
    adata : AnnData
        Whole samples.
    n_points : int, default 11
        Number of shares from 0 to 1.
    n_random : int, default 10
        Number of random orders.
    random_state : int, default 0

    Returns
    -------
    Deletion

    References
    ----------
    Samek et al., *Evaluating the visualization of what a deep neural network has learned*,
    IEEE TNNLS 28 (2017).
    """
    require_explainer(explainer, GradientExplainer, what="deletion")
    samples = read(explainer, adata)
    rng = np.random.default_rng(random_state)
    values = explained(explainer, samples)
    deviation = (samples.x - input_mean(explainer)) / input_scale(explainer)
    contributions = isinstance(explainer.plan().method, Integrated)
    score = values if contributions else values * deviation
    effect = _without_entries(explainer, samples)
    share = np.linspace(0, 1, n_points)
    sample = np.repeat(samples.sample_of_cell[:, None], score.shape[1], axis=1)

    def curve(score: np.ndarray) -> np.ndarray:
        place = places(score.ravel(), sample.ravel(), rng).reshape(score.shape)
        return np.array([effect(place < removed) for removed in share])

    return Deletion(
        share=share,
        distance=curve(deviation),
        curve=curve(score),
        reversed=curve(-score),
        random=np.stack([curve(rng.random(score.shape)) for _ in range(n_random)]),
        link=link_with_model(explainer, samples, values, random_state),
        name=explainer.plan().output.name,
    )


def _without_entries(explainer: GradientExplainer, samples: Samples) -> Effect:
    """Function of a mask: mean output if these entries are set to the training mean."""
    module = net_of(explainer, samples)
    mean = input_mean(explainer).astype(samples.x.dtype)

    def effect(removed: np.ndarray) -> float:
        moved = np.where(removed, mean, samples.x)
        with torch.no_grad():
            total = [
                value_of(
                    explainer,
                    module,
                    *(as_tensor(explainer, a[start:stop]) for a in (samples.x, moved)),
                )
                for start, stop in samples.spans()
            ]
        return float(torch.stack(total).mean())

    return effect
