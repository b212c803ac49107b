"""Does taking away what the explanation names change the output more than anything else?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from explainers._gradient_plan import Integrated
from explainers._maths.outputs import ClassOutput
from explainers.attention import AttentionExplainer
from explainers.faithfulness._common import (
    CLEARLY,
    Explainer,
    as_tensor,
    centred,
    explained,
    input_mean,
    input_scale,
    net_of,
    read,
    require_classifier,
    require_explainer,
)
from explainers.gradient import GradientExplainer
from fcm_estimators.inference import Samples

Effect = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Deletion:
    """Result of :func:`deletion`.

    Attributes
    ----------
    share : ndarray of shape (P,)
        Share of what was taken away.
    curve, reversed : ndarray of shape (P,)
        Output (gradients) or its change (attention) in the explained and in the reversed order.
    distance : ndarray of shape (P,) or None
        In the order of an explanation that is the same everywhere, where gradients are explained:
        the entries farthest above the mean first.
    random : ndarray of shape (R, P)
        In random orders.
    sinks : bool
        The output falls where the explanation is right (gradients), or its change rises.
    name : str
        Of the vertical axis.
    """

    share: np.ndarray
    curve: np.ndarray
    reversed: np.ndarray
    distance: np.ndarray | None
    random: np.ndarray
    sinks: bool
    name: str

    def area(self, curve: np.ndarray) -> np.ndarray:
        """Mean height of a curve, the larger the better."""
        mean = np.trapezoid(curve, self.share, axis=-1) / self.share[-1]
        return np.asarray(-mean if self.sinks else mean)

    @property
    def holds(self) -> bool:
        """Whether the explained order is clearly better than the controls.

        By four standard deviations of the random orders, and better than the reversed order and
        than that of an explanation that is the same everywhere.
        """
        chance = self.area(self.random)
        bars = [chance.mean() + CLEARLY * chance.std(ddof=1), self.area(self.reversed)]
        if self.distance is not None:
            bars.append(self.area(self.distance) + CLEARLY * chance.std(ddof=1))
        return bool(self.area(self.curve) > max(bars))

    def frame(self) -> pd.DataFrame:
        """Return a row per order and point: ``order``, ``share``, ``value``."""
        curves = {"explained": self.curve, "reversed": self.reversed}
        if self.distance is not None:
            curves["distance"] = self.distance
        curves |= {f"random {i}": curve for i, curve in enumerate(self.random)}
        return pd.concat(
            [
                pd.DataFrame({"order": order, "share": self.share, "value": curve})
                for order, curve in curves.items()
            ],
            ignore_index=True,
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the curves; returns the Display."""
        from explainers.plotting import CurveDisplay

        return CurveDisplay.from_deletion(self).plot(ax=ax)


def deletion(
    explainer: Explainer,
    adata: AnnData,
    *,
    n_points: int = 11,
    n_random: int = 10,
    random_state: int = 0,
) -> Deletion:
    """Take away more and more, in the explained order and in control orders.

    Gradients (signed): entries, that is one marker of one cell, are set to the training mean, the
    ones that by the explanation support the target most first, and the mean output of the target
    is followed. In mode "own" the contexts stay as they are, in mode "context" only the contexts
    see the change.

    Attention (unsigned): cells are hidden from what all others see, the ones that receive most
    attention in any head first, and the mean absolute change of the (centred) logits is followed.

    Parameters
    ----------
    explainer : GradientExplainer or AttentionExplainer
    adata : AnnData
        Whole samples.
    n_points : int, default 11
        Shares from 0 to 1 (attention: to 0.9, as something has to stay).
    n_random : int, default 10
        Random orders.
    random_state : int, default 0

    Returns
    -------
    Deletion

    References
    ----------
    Samek et al., *Evaluating the visualization of what a deep neural network has learned*,
    IEEE TNNLS 28 (2017).
    """
    require_explainer(explainer, GradientExplainer, AttentionExplainer, what="deletion")
    samples = read(explainer, adata)
    rng = np.random.default_rng(random_state)
    values = explained(explainer, samples)
    distance = None
    if isinstance(explainer, GradientExplainer):
        away = (samples.x - input_mean(explainer)) / input_scale(explainer)
        contributions = isinstance(explainer.plan().method, Integrated)
        score = values if contributions else values * away
        name, last, effect = explainer.plan().output.name, 1.0, _entries(explainer, samples)
        sinks = True
    else:
        require_classifier(explainer, "deletion of attended cells")
        score, away = values.max(1), None
        name, last, effect = "mean change of the logits", 0.9, _cells(explainer, samples)
        sinks = False
    share = np.linspace(0, last, n_points)
    sample = samples.sample_of_cell
    if score.ndim == 2:
        sample = np.repeat(sample[:, None], score.shape[1], axis=1)

    def follow(score: np.ndarray) -> np.ndarray:
        # The share of each sample that goes before; ties in random order.
        place = _places(score.ravel(), sample.ravel(), rng).reshape(score.shape)
        return np.array([effect(place < cut) for cut in share])

    if away is not None:
        distance = follow(away)
    return Deletion(
        share=share,
        curve=follow(score),
        reversed=follow(-score),
        distance=distance,
        random=np.stack([follow(rng.random(score.shape)) for _ in range(n_random)]),
        sinks=sinks,
        name=name,
    )


def _places(score: np.ndarray, sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place of each entry in its sample's falling order, from 0 to below 1."""
    order = np.lexsort([rng.random(len(score)), -score, sample])
    counts = np.bincount(sample)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    place = np.empty(len(score))
    place[order] = (np.arange(len(score)) - starts) / np.repeat(counts, counts)
    return place


def _entries(explainer: GradientExplainer, samples: Samples) -> Effect:
    """Mean output when some entries are set to the training mean."""
    output, module = explainer.plan().output, net_of(explainer, samples)
    mean = input_mean(explainer).astype(samples.x.dtype)

    def one(x: Tensor, moved: Tensor) -> Tensor:
        if isinstance(output, ClassOutput) and explainer.plan().mode == "own":
            return output.mean(module, moved, module.contexts(x))
        if isinstance(output, ClassOutput) and explainer.plan().mode == "context":
            return output.mean(module, x, module.contexts(moved))
        return output.mean(module, moved)

    def effect(gone: np.ndarray) -> float:
        moved = np.where(gone, mean, samples.x)
        with torch.no_grad():
            total = [
                one(*(as_tensor(explainer, a[start:stop]) for a in (samples.x, moved)))
                for start, stop in samples.spans()
            ]
        return float(torch.stack(total).mean())

    return effect


def _cells(explainer: AttentionExplainer, samples: Samples) -> Effect:
    """Mean absolute change of the logits when some cells are hidden from the contexts."""
    module = net_of(explainer, samples)
    with torch.no_grad():
        blocks = [as_tensor(explainer, samples.x[start:stop]) for start, stop in samples.spans()]
        before = [centred(module(x)) for x in blocks]

    def effect(gone: np.ndarray) -> float:
        kept = (~gone).astype(samples.x.dtype)
        with torch.no_grad():
            change = [
                (centred(module(x, context_weight=as_tensor(explainer, kept[start:stop]))) - old)
                .abs()
                .mean()
                for x, old, (start, stop) in zip(blocks, before, samples.spans(), strict=True)
            ]
        return float(torch.stack(change).mean())

    return effect
