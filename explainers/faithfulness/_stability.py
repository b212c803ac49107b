"""Does the explanation stay where it should: under noise, and from one training to the next?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

from explainers._maths.attention import assigned_heads
from explainers.attention import AttentionExplainer
from explainers.faithfulness._common import (
    CLEARLY,
    Explainer,
    explained,
    input_scale,
    read,
    require_explainer,
)
from explainers.gradient import GradientExplainer
from fcm_estimators.exceptions import InvalidInputError

_LARGEST_CHANGE = 0.5


@dataclass(frozen=True)
class Sensitivity:
    """Result of :func:`sensitivity`.

    Attributes
    ----------
    noise : ndarray of shape (P,)
        SD of the noise, in training SD of each marker.
    change : ndarray of shape (R, P)
        Mean change of a cell's explanation, relative to how much those of two cells differ; 1 is
        as good as another cell's. NaN for an explanation in which cells do not differ.
    """

    noise: np.ndarray
    change: np.ndarray

    @property
    def holds(self) -> bool:
        """Whether the smallest noise changes explanations by less than half of what cells differ.

        An explanation in which cells do not differ fails.
        """
        return bool(self.change[:, 0].mean() < _LARGEST_CHANGE)

    def frame(self) -> pd.DataFrame:
        """Return a row per noise and draw: ``noise``, ``draw``, ``change``."""
        rows = [
            (noise, draw, value)
            for i, noise in enumerate(self.noise)
            for draw, value in enumerate(self.change[:, i])
        ]
        return pd.DataFrame(rows, columns=["noise", "draw", "change"])

    def plot(self, ax: Any = None) -> Any:
        """Draw change over noise; returns the Display."""
        from explainers.plotting import CurveDisplay

        return CurveDisplay.from_sensitivity(self).plot(ax=ax)


def sensitivity(
    explainer: Explainer,
    adata: AnnData,
    *,
    noise: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.5),
    n_draws: int = 3,
    random_state: int = 0,
) -> Sensitivity:
    """Explain cells again with noise on every marker, as the detectors make it.

    Parameters
    ----------
    explainer : GradientExplainer or AttentionExplainer
    adata : AnnData
        Whole samples.
    noise : sequence of float, default (0.02, 0.05, 0.1, 0.2, 0.5)
        SD of the noise in training SD of each marker, rising.
    n_draws : int, default 3
    random_state : int, default 0

    Returns
    -------
    Sensitivity

    References
    ----------
    Yeh et al., *On the (in)fidelity and sensitivity of explanations*, arXiv 1901.09392.
    """
    require_explainer(explainer, GradientExplainer, AttentionExplainer, what="sensitivity")
    levels = np.asarray(noise, dtype=np.float64)
    if levels.ndim != 1 or len(levels) == 0 or levels[0] <= 0 or (np.diff(levels) <= 0).any():
        raise InvalidInputError(f"noise={noise!r} must be rising positive numbers.")
    samples = read(explainer, adata)
    scale = input_scale(explainer)
    rng = np.random.default_rng(random_state)
    before = explained(explainer, samples)
    apart = np.linalg.norm(before - before[rng.permutation(len(before))], axis=1).mean()
    change = np.full((n_draws, len(levels)), np.nan)
    for r in range(n_draws):
        for i, level in enumerate(levels):
            x = samples.x + level * scale * rng.normal(size=samples.x.shape)
            moved = dataclasses.replace(samples, x=x.astype(samples.x.dtype))
            distance = np.linalg.norm(explained(explainer, moved) - before, axis=1).mean()
            if apart > 0:
                change[r, i] = distance / apart
    return Sensitivity(levels, change)


@dataclass(frozen=True)
class SeedAgreement:
    """Result of :func:`seed_agreement`.

    Attributes
    ----------
    agreement : ndarray
        Adjusted Rand index of the assigned heads of each pair of models; NaN where a model
        assigns all cells alike.
    permuted : ndarray
        The same with the cells of one of the two shuffled.
    """

    agreement: np.ndarray
    permuted: np.ndarray

    @property
    def holds(self) -> bool:
        """Whether the mean agreement is above that by chance, by four of its SD."""
        bar = self.permuted.mean() + CLEARLY * self.permuted.std(ddof=1)
        return bool(self.agreement.mean() > bar)

    def frame(self) -> pd.DataFrame:
        """Return a row per pair and per shuffle: ``compared``, ``ari``."""
        rows = [("models", value) for value in self.agreement]
        rows += [("permuted", value) for value in self.permuted]
        return pd.DataFrame(rows, columns=["compared", "ari"])

    def plot(self, ax: Any = None) -> Any:
        """Draw the agreements; returns the Display."""
        from explainers.plotting import FloorDisplay

        return FloorDisplay.from_seed_agreement(self).plot(ax=ax)


def seed_agreement(
    explainers: Sequence[AttentionExplainer],
    adata: AnnData,
    *,
    n_permutations: int = 20,
    random_state: int = 0,
) -> SeedAgreement:
    """Do models that differ in the seed alone divide the cells among heads in the same way?

    Heads have no order, so the partition of the cells is compared, not the numbers of the heads.

    Parameters
    ----------
    explainers : sequence of AttentionExplainer
        Two or more.
    adata : AnnData
        Whole samples.
    n_permutations : int, default 20
        Per pair.
    random_state : int, default 0

    Returns
    -------
    SeedAgreement

    Raises
    ------
    InvalidInputError
        Fewer than two, or other explainers.
    """
    if len(explainers) < 2:
        raise InvalidInputError(
            f"seed_agreement compares two or more explainers, got {len(explainers)}."
        )
    assigned = []
    for explainer in explainers:
        require_explainer(explainer, AttentionExplainer, what="seed_agreement")
        assigned.append(assigned_heads(explained(explainer, read(explainer, adata))))
    rng = np.random.default_rng(random_state)
    pairs = list(combinations(assigned, 2))
    return SeedAgreement(
        agreement=np.array([_agreement(a, b) for a, b in pairs]),
        permuted=np.array(
            [_agreement(a, rng.permutation(b)) for a, b in pairs for _ in range(n_permutations)]
        ),
    )


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    if min(len(np.unique(a)), len(np.unique(b))) < 2:
        return np.nan
    return float(adjusted_rand_score(a, b))
