"""Check by randomisation: whether the explanation depends on what the model has learnt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from explainers._twins import of_untrained, with_estimator
from explainers.attention import AttentionExplainer
from explainers.faithfulness._common import (
    Explainer,
    explained,
    read,
    reordered,
    require_classifier,
    require_explainer,
    similarity,
)
from explainers.faithfulness.controls import permuted_twin
from explainers.gradient import GradientExplainer
from fcm_estimators.inference import Samples, fitted_net, layered_net, with_net

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from explainers.plotting import CurveDisplay, FloorDisplay

# Lowest similarity of two explanations of the same model, which only differ by rounding.
_LOWEST_REPEAT = 0.99
# Highest similarity of explanations of untrained nets. Above it there is nothing to compare with.
_HIGHEST_FLOOR = 0.9


class _Randomised:
    """Base class of the results of both randomisations."""

    repeat: float
    floor: np.ndarray

    @property
    def _upper(self) -> float:
        """Similarity that explanations of unrelated nets rarely exceed."""
        spread = self.floor.std(ddof=1) if len(self.floor) > 1 else 0.0
        return float(self.floor.mean() + 2 * spread)

    def _passes(self, after: np.ndarray) -> bool:
        comparable = self.repeat >= _LOWEST_REPEAT and self._upper < _HIGHEST_FLOOR
        return bool(comparable and np.mean(after) <= self._upper)


@dataclass(frozen=True)
class ParameterRandomisation(_Randomised):
    """Result of :func:`parameter_randomisation`.

    Attributes
    ----------
    stages : list of str
        What was randomised last: "nothing", "output", "layer 3", ... down to "layer 0".
    similarity : ndarray of shape (R, stages)
        Similarity with the explanation of the trained model, for R randomisations. In stage
        "nothing" the trained model is explained again, on cells in another order.
    changed : ndarray of int of shape (stages,)
        Number of parameters that differ from the trained model.
    n_parameters : int
    floor : ndarray
        Similarity of the explanations of pairs of untrained nets.
    """

    stages: list[str]
    similarity: np.ndarray
    changed: np.ndarray
    n_parameters: int
    floor: np.ndarray

    @property
    def repeat(self) -> float:  # type: ignore[override]
        """Similarity of the explanation with itself, on cells in another order."""
        return float(self.similarity[:, 0].min())

    @property
    def holds(self) -> bool:
        """Whether the explanation repeats, and falls to the floor if all parameters are random.

        The mean similarity in the last stage must not exceed that of pairs of untrained nets by
        more than two standard deviations.
        """
        return self._passes(self.similarity[:, -1])

    def frame(self) -> pd.DataFrame:
        """Return one row per stage and randomisation, and one per pair of untrained nets.

        Columns ``stage``, ``changed`` (share of the parameters), ``similarity``.
        """
        rows = [
            (stage, self.changed[i] / self.n_parameters, value)
            for i, stage in enumerate(self.stages)
            for value in self.similarity[:, i]
        ]
        rows += [("untrained pair", 1.0, value) for value in self.floor]
        return pd.DataFrame(rows, columns=["stage", "changed", "similarity"])

    def plot(self, ax: Axes | None = None) -> CurveDisplay:
        """Draw similarity over the stages; return the Display."""
        from explainers.plotting import CurveDisplay

        return CurveDisplay.from_parameter_randomisation(self).plot(ax=ax)


@dataclass(frozen=True)
class LabelRandomisation(_Randomised):
    """Result of :func:`label_randomisation`.

    Attributes
    ----------
    similarity : float
        Similarity of the explanations of the model and of a model trained on shuffled labels.
    repeat : float
        Similarity of the explanation with itself, on cells in another order.
    floor : ndarray
        Similarity of the explanations of pairs of untrained nets.
    """

    similarity: float
    repeat: float
    floor: np.ndarray

    @property
    def holds(self) -> bool:
        """Whether the explanation repeats, and differs if the labels are shuffled."""
        return self._passes(np.array([self.similarity]))

    def frame(self) -> pd.DataFrame:
        """Return one row per comparison: ``compared``, ``similarity``."""
        rows = [("same model", self.repeat), ("shuffled labels", self.similarity)]
        rows += [("untrained pair", value) for value in self.floor]
        return pd.DataFrame(rows, columns=["compared", "similarity"])

    def plot(self, ax: Axes | None = None) -> FloorDisplay:
        """Draw the similarities; return the Display."""
        from explainers.plotting import FloorDisplay

        return FloorDisplay.from_label_randomisation(self).plot(ax=ax)


def parameter_randomisation(
    explainer: Explainer,
    adata: AnnData,
    *,
    n_repeats: int = 3,
    n_untrained: int = 5,
    random_state: int = 0,
) -> ParameterRandomisation:
    """Replace the trained parameters by initial ones, from the output to the first layer.

    An explanation of the model must change until its similarity is that of two untrained nets. An
    explanation that does not change describes the data, not the model.

    Parameters
    ----------
    explainer : GradientExplainer or AttentionExplainer
    adata : AnnData
        Whole samples.
    n_repeats : int, default 3
        Number of randomisations.
    n_untrained : int, default 5
        Number of untrained nets; all their pairs are the floor.
    random_state : int, default 0

    Returns
    -------
    ParameterRandomisation

    References
    ----------
    Adebayo et al., *Sanity checks for saliency maps*, arXiv 1810.03292.
    """
    require_explainer(
        explainer, GradientExplainer, AttentionExplainer, what="parameter_randomisation"
    )
    require_classifier(explainer, "parameter_randomisation")
    samples = read(explainer, adata)
    trained = explained(explainer, samples)
    estimator = explainer.estimator
    module = layered_net(estimator, "parameter_randomisation")
    blocks = ["output", *[f"layer {i}" for i in reversed(range(len(module.layers)))]]
    table = np.empty((n_repeats, 1 + len(blocks)))
    table[:, 0] = _repeat(explainer, samples, trained, random_state)
    changed = np.zeros(1 + len(blocks), dtype=int)
    for r in range(n_repeats):
        fresh = fitted_net(estimator.untrained_twin(random_state + r))
        mixed = copy.deepcopy(module)
        for i, block in enumerate(blocks, start=1):
            _block(mixed, block).load_state_dict(_block(fresh, block).state_dict())
            other = with_estimator(explainer, with_net(estimator, mixed))
            table[r, i] = similarity(explainer, trained, explained(other, samples))
            changed[i] = _n_changed(module, mixed)
    return ParameterRandomisation(
        stages=["nothing", *blocks],
        similarity=table,
        changed=changed,
        n_parameters=sum(p.numel() for p in module.parameters()),
        floor=_floor(explainer, samples, n_untrained, random_state + n_repeats),
    )


def label_randomisation(
    explainer: Explainer,
    train: AnnData,
    adata: AnnData,
    *,
    y: Any = None,
    n_untrained: int = 5,
    random_state: int = 0,
) -> LabelRandomisation:
    """Train the estimator again on labels shuffled within each sample, and compare explanations.

    Parameters
    ----------
    explainer : GradientExplainer or AttentionExplainer
    train : AnnData
        Training data of the explained estimator.
    adata : AnnData
        Whole samples to explain.
    y : array-like of shape (n_train_cells,), optional
        Labels of ``train``. Default: its column ``label_key``.
    n_untrained : int, default 5
        Number of untrained nets; all their pairs are the floor.
    random_state : int, default 0
        Seed of the shuffle and of the second training.

    Returns
    -------
    LabelRandomisation

    References
    ----------
    Adebayo et al., *Sanity checks for saliency maps*, arXiv 1810.03292.
    """
    require_explainer(explainer, GradientExplainer, AttentionExplainer, what="label_randomisation")
    require_classifier(explainer, "label_randomisation")
    samples = read(explainer, adata)
    shuffled = permuted_twin(explainer.estimator, train, y, random_state)
    trained = explained(explainer, samples)
    return LabelRandomisation(
        similarity=similarity(
            explainer, trained, explained(with_estimator(explainer, shuffled), samples)
        ),
        repeat=_repeat(explainer, samples, trained, random_state),
        floor=_floor(explainer, samples, n_untrained, random_state),
    )


def _repeat(explainer: Explainer, samples: Samples, before: np.ndarray, seed: int) -> float:
    """Similarity of the explanation with that of the same cells in another order."""
    moved, order = reordered(samples, seed)
    again = np.empty_like(before)
    again[order] = explained(explainer, moved)
    return similarity(explainer, before, again)


def _floor(explainer: Explainer, samples: Samples, n: int, seed: int) -> np.ndarray:
    """Similarity of the explanations of all pairs of n untrained nets."""
    values = [explained(of_untrained(explainer, seed + i), samples) for i in range(n)]
    return np.array([similarity(explainer, a, b) for a, b in combinations(values, 2)])


def _block(module: nn.Module, name: str) -> nn.Module:
    if name == "output":
        return module.get_submodule("output")
    return module.get_submodule(f"layers.{name.removeprefix('layer ')}")


def _n_changed(a: nn.Module, b: nn.Module) -> int:
    """Number of parameters that differ."""
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]] = list(
        zip(a.parameters(), b.parameters(), strict=True)
    )
    return sum(int((x != y).sum()) for x, y in pairs)
