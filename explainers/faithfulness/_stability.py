"""Checks under noise (correctness) and between trainings with other seeds (learning)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

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
from explainers.faithfulness._link import LEAST_LINK, link_with_model
from explainers.faithfulness.controls import Twins, beyond_twins
from explainers.gradient import GradientExplainer
from fcm_estimators.exceptions import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from explainers.plotting import CurveDisplay, FloorDisplay

# A larger relative change fails the check.
_LARGEST_CHANGE = 0.5


@dataclass(frozen=True)
class Sensitivity:
    """Result of :func:`sensitivity`.

    Attributes
    ----------
    noise : ndarray of shape (P,)
        SD of the noise, in training SD of each marker.
    change : ndarray of shape (R, P)
        Mean change of the explanation of a cell, relative to the difference between two cells. At
        1 the explanation is no better than that of another cell. NaN if all cells have the same
        explanation.
    link : float
        Agreement of the explanation with the model. Gradients: correlation of the change of the
        output that they predict for small random steps with the actual change. Integrated
        gradients: 1 minus the relative error of their sums as the change of the output from the
        training mean. Attention: correlation with that of the model, computed directly from
        queries and keys.
    """

    noise: np.ndarray
    change: np.ndarray
    link: float

    @property
    def correct(self) -> bool:
        """Whether the explanation is steady, and that of this model.

        The smallest noise must have less than half the effect of choosing another cell, and the
        link must be above 0.5. An explanation that is the same for all cells fails, and so does
        one of another net, which is just as steady.
        """
        steady = self.change[:, 0].mean() < _LARGEST_CHANGE
        return bool(steady and self.link > LEAST_LINK)

    def frame(self) -> pd.DataFrame:
        """Return one row per noise and draw: ``noise``, ``draw``, ``change``."""
        rows = [
            (noise, draw, value)
            for i, noise in enumerate(self.noise)
            for draw, value in enumerate(self.change[:, i])
        ]
        return pd.DataFrame(rows, columns=["noise", "draw", "change"])

    def plot(self, ax: Axes | None = None) -> CurveDisplay:
        """Draw change over noise; return the Display."""
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
    """Explain cells again with noise on each marker, like that of detectors.

    A check of correctness. Steadiness alone would not tell whose explanation it is, so the
    explanation is also held against the model.

    Parameters
    ----------
    explainer : GradientExplainer or AttentionExplainer
    adata : AnnData
        Whole samples.
    noise : sequence of float, default (0.02, 0.05, 0.1, 0.2, 0.5)
        Rising SD of the noise, in training SD of each marker.
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
    between_cells = np.linalg.norm(before - before[rng.permutation(len(before))], axis=1).mean()
    change = np.full((n_draws, len(levels)), np.nan)
    for r in range(n_draws):
        for i, level in enumerate(levels):
            x = samples.x + level * scale * rng.normal(size=samples.x.shape)
            moved = dataclasses.replace(samples, x=x.astype(samples.x.dtype))
            distance = np.linalg.norm(explained(explainer, moved) - before, axis=1).mean()
            if between_cells > 0:
                change[r, i] = distance / between_cells
    return Sensitivity(levels, change, link_with_model(explainer, samples, before, random_state))


@dataclass(frozen=True)
class SeedAgreement:
    """Result of :func:`seed_agreement`.

    Attributes
    ----------
    agreement : ndarray
        Adjusted Rand index of the assigned heads of each pair of models; NaN if a model assigns
        all cells to the same head.
    permuted : ndarray
        The same after shuffling the cells of one of the two models.
    twins : ndarray
        The same for all pairs of untrained twins, and of label-permuted twins.
    """

    agreement: np.ndarray
    permuted: np.ndarray
    twins: np.ndarray

    @property
    def holds(self) -> bool:
        """Whether training makes heads divide the cells alike.

        The mean agreement must exceed that of shuffled cells by four of its SD, and that of all
        pairs of twins, which the data alone make agree, by three SD of a further pair.
        """
        bar = self.permuted.mean() + CLEARLY * self.permuted.std(ddof=1)
        mean = float(self.agreement.mean())
        return mean > bar and beyond_twins(mean, self.twins)

    def frame(self) -> pd.DataFrame:
        """Return one row per pair and per shuffle: ``compared``, ``ari``."""
        rows = [("models", value) for value in self.agreement]
        rows += [("twins", value) for value in self.twins]
        rows += [("permuted", value) for value in self.permuted]
        return pd.DataFrame(rows, columns=["compared", "ari"])

    def plot(self, ax: Axes | None = None) -> FloorDisplay:
        """Draw the agreements; return the Display."""
        from explainers.plotting import FloorDisplay

        return FloorDisplay.from_seed_agreement(self).plot(ax=ax)


def seed_agreement(
    explainers: Sequence[AttentionExplainer],
    adata: AnnData,
    *,
    twins: Twins,
    n_permutations: int = 20,
    random_state: int = 0,
) -> SeedAgreement:
    """Compare how models that only differ in the seed divide the cells among heads.

    A check of learning: untrained nets agree too, since populations are far from each other.
    Heads have no order, so partitions of the cells are compared, not numbers of heads.

    Parameters
    ----------
    explainers : sequence of AttentionExplainer
        Two or more explainers.
    adata : AnnData
        Whole samples.
    twins : Twins
        Controls of the first model, from :func:`twins`.
    n_permutations : int, default 20
        Number of shuffles per pair.
    random_state : int, default 0

    Returns
    -------
    SeedAgreement

    Raises
    ------
    InvalidInputError
        There are fewer than two explainers, or one is of another kind.
    """
    if len(explainers) < 2:
        raise InvalidInputError(
            f"seed_agreement compares two or more explainers, got {len(explainers)}."
        )
    for explainer in explainers:
        require_explainer(explainer, AttentionExplainer, what="seed_agreement")

    def assigned_by(explainer: AttentionExplainer) -> np.ndarray:
        return assigned_heads(explained(explainer, read(explainer, adata)))

    assigned = [assigned_by(explainer) for explainer in explainers]
    of_twins = [assigned_by(twin) for twin in twins.explainers(explainers[0])]
    n_untrained = len(twins.untrained)
    kinds = of_twins[:n_untrained], of_twins[n_untrained:]
    rng = np.random.default_rng(random_state)
    pairs = list(combinations(assigned, 2))
    return SeedAgreement(
        agreement=np.array([_agreement(a, b) for a, b in pairs]),
        permuted=np.array(
            [_agreement(a, rng.permutation(b)) for a, b in pairs for _ in range(n_permutations)]
        ),
        twins=np.nan_to_num([_agreement(a, b) for kind in kinds for a, b in combinations(kind, 2)]),
    )


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    if min(len(np.unique(a)), len(np.unique(b))) < 2:
        return np.nan
    return float(adjusted_rand_score(a, b))
