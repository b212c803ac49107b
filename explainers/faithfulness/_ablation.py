"""Check of learning: whether heads need the cells that they attend to, more than twins do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from explainers._maths.attention import assigned_heads
from explainers._populations import population_labels
from explainers.attention import AttentionExplainer
from explainers.faithfulness._common import (
    as_tensor,
    centred,
    explained,
    layers_of,
    read,
    require_classifier,
    require_explainer,
)
from explainers.faithfulness.controls import Twins, beyond_twins, farthest, logarithms
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
    effect : float
        Change for the assigned cells relative to that for random cells, means over heads with
        cells; NaN without such heads.
    trivial : float
        The same for as many cells farthest from the mean of the sample.
    twins : ndarray
        The effects of untrained and label-permuted twins.
    """

    effects: pd.DataFrame
    hidden: pd.DataFrame
    random: np.ndarray
    effect: float
    trivial: float
    twins: np.ndarray

    @property
    def holds(self) -> bool:
        """Whether the heads learnt to need the cells that they attend to.

        Hiding its assigned cells from a head must change the logits more, relative to random
        cells, than in every twin, by three SD of a further twin on a logarithmic scale, and more
        than hiding the cells that are farthest from the mean.
        """
        if np.isnan(self.effect):
            return False
        learnt = beyond_twins(*logarithms(self.effect, self.twins))
        return learnt and self.effect > self.trivial

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
    twins: Twins,
    n_random: int = 20,
    random_state: int = 0,
) -> HeadAblation:
    """Switch off each head of the explained layer, and hide from it the cells it attends to.

    A check of learning: an untrained net also uses the cells that its heads attend to.

    Parameters
    ----------
    explainer : AttentionExplainer
    adata : AnnData
        Whole samples.
    population : str
        Column of ``obs`` or of ``obsm["gates"]``.
    twins : Twins
        Controls of the model, from :func:`twins`.
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
    layer = explainer.plan().require_layer("head_ablation")
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
    own = _hidden(explainer, samples, n_random, random_state)
    of_twins = [
        _hidden(twin, samples, n_random, random_state).effect
        for twin in twins.explainers(explainer)
    ]
    hidden = pd.DataFrame({"head": explainer.heads, "n_cells": own.n_cells, "change": own.change})
    return HeadAblation(
        pd.DataFrame(rows),
        hidden,
        own.random,
        own.effect,
        own.trivial,
        np.nan_to_num(np.array(of_twins), nan=1.0),
    )


class _Hidden(NamedTuple):
    """What hiding cells from the heads of a net changes."""

    n_cells: np.ndarray
    change: np.ndarray
    random: np.ndarray
    far: np.ndarray

    @property
    def effect(self) -> float:
        return self._relative(self.change)

    @property
    def trivial(self) -> float:
        return self._relative(self.far)

    def _relative(self, change: np.ndarray) -> float:
        has_cells = self.n_cells > 0
        if not has_cells.any():
            return float("nan")
        chance = self.random[has_cells].mean()
        return float(change[has_cells].mean() / chance) if chance > 0 else float("nan")


def _hidden(
    explainer: AttentionExplainer, samples: Samples, n_random: int, random_state: int
) -> _Hidden:
    """Hide from each head the cells that it attends to, as many random ones, and far ones."""
    layer = explainer.plan().require_layer("head_ablation")
    assigned = assigned_heads(explained(explainer, samples))
    before = _logits(explainer, samples)
    distance = farthest(samples.x, list(samples.spans()))
    rng = np.random.default_rng(random_state)
    n_cells, change, random, far = [], [], [], []
    for h in range(len(explainer.heads)):
        effect = _effect_of_hiding(explainer, samples, layer, h, before)
        cells = assigned == h
        n_cells.append(int(cells.sum()))
        change.append(effect(cells))
        random.append([effect(_shuffled(cells, samples, rng)) for _ in range(n_random)])
        far.append(effect(_as_many(cells, distance, samples)))
    return _Hidden(np.array(n_cells), np.array(change), np.array(random), np.array(far))


def _as_many(mask: np.ndarray, score: np.ndarray, samples: Samples) -> np.ndarray:
    """Mask of the same number of cells in each sample, those with the highest score."""
    found = np.zeros(len(mask), dtype=bool)
    for start, stop in samples.spans():
        highest = np.argsort(-score[start:stop])[: mask[start:stop].sum()]
        found[start + highest] = True
    return found


def _logits(
    explainer: AttentionExplainer, samples: Samples, without: tuple[int, int] | None = None
) -> Tensor:
    """Logits of all cells, with one head switched off if ``without`` is (layer, head)."""
    module = layers_of(explainer, samples)
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
    module = layers_of(explainer, samples)

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
