"""Functions of several checks: reading, explaining moved cells, comparing explanations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from torch import Tensor

from explainers._gradient_plan import Integrated
from explainers.attention import AttentionExplainer
from explainers.gradient import GradientExplainer
from explainers.influence import InfluenceExplainer
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.inference import Samples, fitted_net, layered_net, net_for, read_samples
from fcm_estimators.nn.reluformer import ScaledModule, SetModule

Explainer = GradientExplainer | AttentionExplainer

# An explanation is clearly better than a control from this many standard deviations of it.
CLEARLY = 4.0


def require_explainer(explainer: object, *kinds: type, what: str) -> None:
    """Raise InvalidInputError unless the explainer is one of the kinds."""
    if not isinstance(explainer, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InvalidInputError(f"{what} needs a {names}, got {type(explainer).__name__}.")


def require_classifier(explainer: Explainer, what: str) -> None:
    """Raise InvalidInputError if the estimator has no classes."""
    if not isinstance(explainer.estimator, ReluFormerClassifier):
        raise InvalidInputError(
            f"{what} is for classifiers; a {type(explainer.estimator).__name__} has no classes. "
            "Use completeness, deletion or sensitivity on gradients of its gates."
        )


def read(explainer: Explainer | InfluenceExplainer, adata: AnnData) -> Samples:
    """Samples in the form in which the estimator of the explainer reads them."""
    return read_samples(explainer.estimator, explainer.ready(adata))


def explained(
    explainer: Explainer, samples: Samples, points: np.ndarray | None = None
) -> np.ndarray:
    """Explanation of each analysed cell, with all cells as targets or queries.

    Returns
    -------
    ndarray of shape (N, K), float64
        Gradients per training SD, or contributions, for K markers; or relative attention for K
        heads.
    """
    everything = np.ones(len(samples.x), dtype=bool)
    if isinstance(explainer, AttentionExplainer):
        return explainer.plan().of_samples(samples, everything).relative.astype(np.float64)
    plan = explainer.plan()
    values = plan.of_samples(samples, everything, points).astype(np.float64)
    if not isinstance(plan.method, Integrated) and plan.units == "layer":
        values = values * input_scale(explainer)
    return values


def input_scale(explainer: Explainer) -> np.ndarray:
    """Training SD of each marker, float64."""
    return fitted_net(explainer.estimator).input_scale.double().numpy(force=True)


def input_mean(explainer: Explainer) -> np.ndarray:
    """Training mean of each marker, float64."""
    return fitted_net(explainer.estimator).input_mean.double().numpy(force=True)


def reordered(samples: Samples, seed: int) -> tuple[Samples, np.ndarray]:
    """Samples with their cells in another order, and that order."""
    rng = np.random.default_rng(seed)
    order = np.concatenate([i + rng.permutation(j - i) for i, j in samples.spans()])
    return dataclasses.replace(samples, x=samples.x[order], rows=samples.rows[order]), order


def similarity(explainer: Explainer, a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two explanations of the same cells, from 0 to 1.

    It is the absolute rank correlation over all entries. Heads have no order, so they are first
    paired for the best agreement. Two explanations whose entries are all equal have similarity 1.
    """
    if isinstance(explainer, AttentionExplainer):
        agreement = np.array([[correlation(x, y) for y in b.T] for x in a.T])
        _, paired = linear_sum_assignment(-agreement)
        b = b[:, paired]
    return abs(correlation(a.ravel(), b.ravel()))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman correlation; 1 for two constants, 0 for a constant and something else."""
    ranks = [rankdata(values) for values in (a, b)]
    spread = [values.std() for values in ranks]
    if min(spread) == 0:
        return float(max(spread) == 0)
    return float(np.corrcoef(*ranks)[0, 1])


def net_of(explainer: Explainer, samples: Samples) -> ScaledModule:
    """Return the explained net in the precision of the samples."""
    return net_for(fitted_net(explainer.estimator), samples.x.dtype)


def layers_of(explainer: Explainer, samples: Samples) -> SetModule:
    """Return the explained net, which has layers, in the precision of the samples."""
    return net_for(layered_net(explainer.estimator, "Attention"), samples.x.dtype)


def as_tensor(explainer: Explainer, x: np.ndarray) -> Tensor:
    """Cells on the device of the explained net."""
    return torch.from_numpy(x).to(fitted_net(explainer.estimator).input_mean.device)


def centred(logits: Tensor) -> Tensor:
    """Logits minus their mean over classes, which softmax ignores."""
    return logits - logits.mean(1, keepdim=True)


def places(score: np.ndarray, sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Share of a sample's entries with a higher score, for each entry; ties in random order."""
    order = np.lexsort([rng.random(len(score)), -score, sample])
    counts = np.bincount(sample)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    place = np.empty(len(score))
    place[order] = (np.arange(len(score)) - starts) / np.repeat(counts, counts)
    return place


def mean_height(curve: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean height of curves over the removed share, along the last axis."""
    return np.asarray(np.trapezoid(curve, share, axis=-1) / share[-1])


def curves_frame(
    share: np.ndarray, named: dict[str, np.ndarray], random: np.ndarray
) -> pd.DataFrame:
    """Curves as one row per order and point: ``order``, ``share``, ``value``."""
    curves = {**named, **{f"random {i}": curve for i, curve in enumerate(random)}}
    return pd.concat(
        [
            pd.DataFrame({"order": order, "share": share, "value": curve})
            for order, curve in curves.items()
        ],
        ignore_index=True,
    )
