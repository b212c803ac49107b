"""Check of attention: the effect of each head on each population."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from explainers._maths.attention import assigned_heads
from explainers._populations import population_labels
from explainers.attention import AttentionExplainer
from explainers.faithfulness._common import (
    CLEARLY,
    as_tensor,
    centred,
    explained,
    net_of,
    read,
    require_classifier,
    require_explainer,
)
from fcm_estimators.inference import Samples
from fcm_estimators.nn.relu_attention import AttentionContext, attention_context
from fcm_estimators.nn.reluformer import ReluFormerLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from explainers.plotting import HeadMatrixDisplay


@dataclass(frozen=True)
class HeadAblation:
    """Result of :func:`head_ablation`.

    Attributes
    ----------
    effects : DataFrame
        One row per head and population: ``head``, ``population``, ``n_cells``, ``attention``
        (mean received attention, 1 = uniform), ``share_of_head`` (share of the cells assigned to
        the head), ``change`` (mean absolute change of the centred logits without the head) and
        ``switched`` (share of the cells whose most probable class changes).
    hidden : DataFrame
        One row per head: ``n_cells`` assigned to it, and the mean absolute ``change`` of the
        logits of all cells if these cells are hidden from the head.
    random : ndarray of shape (H, R)
        The same change for an equal number of random cells.
    """

    effects: pd.DataFrame
    hidden: pd.DataFrame
    random: np.ndarray

    @property
    def holds(self) -> bool:
        """Whether the heads need the cells that they attend to.

        Hiding its assigned cells from a head must change the logits more than hiding the same
        number of random cells. The difference of the means over heads with cells must exceed four
        standard deviations of the random draws.
        """
        has_cells = self.hidden["n_cells"].to_numpy() > 0
        if not has_cells.any():
            return False
        chance = self.random[has_cells].mean(0)
        change = self.hidden["change"].to_numpy()[has_cells].mean()
        return bool(change > chance.mean() + CLEARLY * chance.std(ddof=1))

    def frame(self) -> pd.DataFrame:
        """Return the effects, one row per head and population."""
        return self.effects.copy()

    def plot(self, ax: Axes | None = None) -> HeadMatrixDisplay:
        """Draw the effects as a matrix of heads and populations; return the Display."""
        from explainers.plotting import HeadMatrixDisplay

        return HeadMatrixDisplay.from_head_ablation(self).plot(ax=ax)


def head_ablation(
    explainer: AttentionExplainer,
    adata: AnnData,
    population: str,
    *,
    n_random: int = 20,
    random_state: int = 0,
) -> HeadAblation:
    """Switch off each head of the explained layer, and hide from it the cells it attends to.

    Parameters
    ----------
    explainer : AttentionExplainer
    adata : AnnData
        Whole samples.
    population : str
        Column of ``obs`` or of ``obsm["gates"]``.
    n_random : int, default 20
        Number of random choices of as many cells, as a control.
    random_state : int, default 0

    Returns
    -------
    HeadAblation

    Raises
    ------
    InvalidInputError, MissingKeyError
        The explainer is of another kind, or the layer or the population does not exist.

    References
    ----------
    Michel et al., *Are sixteen heads really better than one?*, arXiv 1905.10650.
    """
    require_explainer(explainer, AttentionExplainer, what="head_ablation")
    require_classifier(explainer, "head_ablation")
    samples = read(explainer, adata)
    layer = explainer.plan().net_layer
    labels = population_labels(adata, population)[samples.rows]
    relative = explained(explainer, samples)
    assigned = assigned_heads(relative)
    before = _logits(explainer, samples)
    rows = []
    for h, head in enumerate(explainer.heads):
        after = _logits(explainer, samples, without=(layer, h))
        change = (centred(after) - centred(before)).abs().mean(1).double().cpu().numpy()
        switched = (after.argmax(1) != before.argmax(1)).cpu().numpy()
        for name in pd.unique(labels[~pd.isna(labels)]):
            inside = labels == name
            rows.append(
                {
                    "head": head,
                    "population": name,
                    "n_cells": int(inside.sum()),
                    "attention": relative[inside, h].mean(),
                    "share_of_head": (assigned[inside] == h).sum() / max((assigned == h).sum(), 1),
                    "change": change[inside].mean(),
                    "switched": switched[inside].mean(),
                }
            )
    hidden, random = [], []
    rng = np.random.default_rng(random_state)
    for h, head in enumerate(explainer.heads):
        effect = _effect_of_hiding(explainer, samples, layer, h, before)
        cells = assigned == h
        hidden.append({"head": head, "n_cells": int(cells.sum()), "change": effect(cells)})
        random.append([effect(_shuffled(cells, samples, rng)) for _ in range(n_random)])
    return HeadAblation(pd.DataFrame(rows), pd.DataFrame(hidden), np.array(random))


def _logits(
    explainer: AttentionExplainer, samples: Samples, without: tuple[int, int] | None = None
) -> Tensor:
    """Logits of all cells, with one head switched off if ``without`` is (layer, head)."""
    module = net_of(explainer, samples)
    if without is not None:
        layer, head = without
        module = copy.deepcopy(module)
        changed = cast(ReluFormerLayer, module.layers[layer])
        width = changed.value.out_features // changed.n_heads
        rows = slice(head * width, (head + 1) * width)
        with torch.no_grad():
            changed.value.weight[rows] = 0
            changed.value.bias[rows] = 0
    with torch.no_grad():
        parts = [
            module(as_tensor(explainer, samples.x[start:stop])) for start, stop in samples.spans()
        ]
    return torch.cat(parts)


def _shuffled(mask: np.ndarray, samples: Samples, rng: np.random.Generator) -> np.ndarray:
    """Mask of the same number of random cells in each sample."""
    return np.concatenate([rng.permutation(mask[start:stop]) for start, stop in samples.spans()])


def _effect_of_hiding(
    explainer: AttentionExplainer, samples: Samples, layer: int, head: int, before: Tensor
) -> Callable[[np.ndarray], float]:
    """Function of a mask: mean absolute change of the logits if a head does not see its cells."""
    module = net_of(explainer, samples)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        h, limits = module.standardise(x), [0, len(x)]
        for i, block in enumerate(module.layers):
            part = cast(ReluFormerLayer, block)
            context = None
            if i == layer:
                k, v = part.key(h), part.value(h)
                context = attention_context(k, v, limits, part.n_heads)
                reduced = attention_context(k, v, limits, part.n_heads, weight=weight)
                chosen = torch.arange(part.n_heads, device=x.device) == head
                context = AttentionContext(
                    torch.where(chosen[:, None, None], reduced.key_value, context.key_value),
                    torch.where(chosen[:, None], reduced.key, context.key),
                )
            h = part.trace(h, limits, context=context).output
        return module.read_out(x, h, limits)

    def effect(hidden: np.ndarray) -> float:
        kept = (~hidden).astype(samples.x.dtype)
        with torch.no_grad():
            parts = [
                run(*(as_tensor(explainer, a[start:stop]) for a in (samples.x, kept)))
                for start, stop in samples.spans()
            ]
        return float((centred(torch.cat(parts)) - centred(before)).abs().mean())

    return effect
