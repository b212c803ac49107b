"""Check by deletion: whether removing what the explanation ranks first has the largest effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        Output (gradients) or its change (attention) in the explained and in the reversed order.
    distance : ndarray of shape (P,) or None
        Output in the order of a gradient that is the same for all entries: entries farthest above
        the mean come first. None for attention.
    random : ndarray of shape (R, P)
        Output or its change in random orders.
    sinks : bool
        Whether the curve falls (gradients) or rises (attention) if the explanation is right.
    name : str
        Label of the vertical axis.
    """

    share: np.ndarray
    curve: np.ndarray
    reversed: np.ndarray
    distance: np.ndarray | None
    random: np.ndarray
    sinks: bool
    name: str

    def area(self, curve: np.ndarray) -> np.ndarray:
        """Mean height of a curve, with the sign that makes larger values better."""
        mean = np.trapezoid(curve, self.share, axis=-1) / self.share[-1]
        return np.asarray(-mean if self.sinks else mean)

    @property
    def holds(self) -> bool:
        """Whether the explained order is clearly better than the controls.

        It must be better than the random orders, and than the order of a gradient that is the same
        for all entries, by four standard deviations of the random orders. It must also be better
        than the reversed order.
        """
        chance = self.area(self.random)
        bars = [chance.mean() + CLEARLY * chance.std(ddof=1), self.area(self.reversed)]
        if self.distance is not None:
            bars.append(self.area(self.distance) + CLEARLY * chance.std(ddof=1))
        return bool(self.area(self.curve) > max(bars))

    def frame(self) -> pd.DataFrame:
        """Return one row per order and point: ``order``, ``share``, ``value``."""
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

    def plot(self, ax: Axes | None = None) -> CurveDisplay:
        """Draw the curves; return the Display."""
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
    """Remove a growing share of the data, in the explained order and in control orders.

    Gradients (signed): an entry is one marker of one cell. Entries are set to the training mean,
    beginning with those that support the target most according to the explanation. The result is
    the mean output of the target. In mode "own" the contexts do not change. In mode "context" only
    the contexts change.

    Attention (unsigned): cells are removed from the contexts, beginning with those that receive
    most attention from any head. The result is the mean absolute change of the centred logits.

    Parameters
    ----------
    explainer : GradientExplainer or AttentionExplainer
    adata : AnnData
        Whole samples.
    n_points : int, default 11
        Number of shares from 0 to 1 (attention: from 0 to 0.9, because some cells must stay).
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
    require_explainer(explainer, GradientExplainer, AttentionExplainer, what="deletion")
    samples = read(explainer, adata)
    rng = np.random.default_rng(random_state)
    values = explained(explainer, samples)
    distance = None
    if isinstance(explainer, GradientExplainer):
        deviation = (samples.x - input_mean(explainer)) / input_scale(explainer)
        contributions = isinstance(explainer.plan().method, Integrated)
        score = values if contributions else values * deviation
        name, last, effect = explainer.plan().output.name, 1.0, _without_entries(explainer, samples)
        sinks = True
    else:
        require_classifier(explainer, "deletion of attended cells")
        score, deviation = values.max(1), None
        name, last, effect = "mean change of the logits", 0.9, _without_cells(explainer, samples)
        sinks = False
    share = np.linspace(0, last, n_points)
    sample = samples.sample_of_cell
    if score.ndim == 2:
        sample = np.repeat(sample[:, None], score.shape[1], axis=1)

    def curve(score: np.ndarray) -> np.ndarray:
        place = _places(score.ravel(), sample.ravel(), rng).reshape(score.shape)
        return np.array([effect(place < removed) for removed in share])

    if deviation is not None:
        distance = curve(deviation)
    return Deletion(
        share=share,
        curve=curve(score),
        reversed=curve(-score),
        distance=distance,
        random=np.stack([curve(rng.random(score.shape)) for _ in range(n_random)]),
        sinks=sinks,
        name=name,
    )


def _places(score: np.ndarray, sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of a sample's entries with a higher score, for each entry; ties in random order."""
    order = np.lexsort([rng.random(len(score)), -score, sample])
    counts = np.bincount(sample)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    place = np.empty(len(score))
    place[order] = (np.arange(len(score)) - starts) / np.repeat(counts, counts)
    return place


def _without_entries(explainer: GradientExplainer, samples: Samples) -> Effect:
    """Function of a mask: mean output if these entries are set to the training mean."""
    output, module = explainer.plan().output, net_of(explainer, samples)
    mean = input_mean(explainer).astype(samples.x.dtype)

    def of_sample(x: Tensor, moved: Tensor) -> Tensor:
        if isinstance(output, ClassOutput) and explainer.plan().mode == "own":
            return output.mean(module, moved, module.contexts(x))
        if isinstance(output, ClassOutput) and explainer.plan().mode == "context":
            return output.mean(module, x, module.contexts(moved))
        return output.mean(module, moved)

    def effect(removed: np.ndarray) -> float:
        moved = np.where(removed, mean, samples.x)
        with torch.no_grad():
            total = [
                of_sample(*(as_tensor(explainer, a[start:stop]) for a in (samples.x, moved)))
                for start, stop in samples.spans()
            ]
        return float(torch.stack(total).mean())

    return effect


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
