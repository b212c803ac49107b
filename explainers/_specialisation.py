"""Do heads attend to different populations, beyond what the training label explains?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.cluster import KMeans

from explainers._maths.attention import assigned_heads
from explainers._maths.information import conditional_information, enrichment, permuted_information
from explainers._populations import population_labels
from explainers._twins import of_untrained
from explainers.attention import NO_HEAD, AttentionExplainer
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.inference import fitted_net, read_samples


@dataclass(frozen=True)
class Specialisation:
    """Result of :func:`specialisation`.

    Attributes
    ----------
    information : float
        Mutual information in bits between assigned head and population, given the label.
    permuted : ndarray
        Information after shuffling populations within label and sample.
    untrained : ndarray
        Information for untrained nets of the same shape.
    kmeans : float
        Information for k-means on markers in training SD, with one cluster per head.
    enrichment : DataFrame
        For each head and population: ``n_cells``, ``share_of_head``, ``log_odds``.
    n_cells : int
        Number of cells with population, label and assigned head.
    """

    information: float
    permuted: np.ndarray
    untrained: np.ndarray
    kmeans: float
    enrichment: pd.DataFrame
    n_cells: int

    @property
    def p_value(self) -> float:
        """Share of shuffles that reach the information; the observed value counts as one."""
        return float((1 + (self.permuted >= self.information).sum()) / (1 + len(self.permuted)))

    def frame(self) -> pd.DataFrame:
        """Return one row for the model and one for each control: ``source``, ``bits``."""
        rows = [("model", self.information), ("k-means", self.kmeans)]
        rows += [("untrained", bits) for bits in self.untrained]
        rows += [("permuted", bits) for bits in self.permuted]
        return pd.DataFrame(rows, columns=["source", "bits"])


def specialisation(
    explainer: AttentionExplainer,
    adata: AnnData,
    population: str,
    *,
    label_key: str,
    n_permutations: int = 200,
    n_untrained: int = 5,
    random_state: int = 0,
) -> Specialisation:
    """Mutual information between assigned head and population, conditional on the label.

    Heads are expected to distinguish the labels of the training. Conditional on the label, only
    populations that the training did not name count. There are three controls: shuffled
    populations, untrained nets, and k-means.

    Parameters
    ----------
    explainer : AttentionExplainer
    adata : AnnData
        Whole samples that the model was not trained on.
    population : str
        Column of ``obs`` or of ``obsm["gates"]``. Cells without a population are left out.
    label_key : str
        Column of the label that the model was trained on.
    n_permutations : int, default 200
    n_untrained : int, default 5
    random_state : int, default 0

    Returns
    -------
    Specialisation

    Raises
    ------
    MissingKeyError
        The population or the label is missing.
    InvalidInputError
        The cells have fewer than two populations.
    """
    populations = population_labels(adata, population)
    labels = population_labels(adata, label_key)
    received = explainer.attribute(adata).relative
    assigned = assigned_heads(received)
    known = ~pd.isna(populations) & ~pd.isna(labels) & (assigned > -2)
    codes, names = pd.factorize(populations[known])
    if len(names) < 2:
        raise InvalidInputError(
            f"population {population!r} has {len(names)} value(s) among the {known.sum()} usable "
            "cells; two or more are needed."
        )
    label, _ = pd.factorize(labels[known])
    samples = read_samples(explainer.estimator, adata)
    sample = samples.scatter(samples.sample_of_cell, -1)[known]
    strata = label * (sample.max() + 1) + sample

    def bits(groups: np.ndarray) -> float:
        return conditional_information(groups[known] + 1, codes, label)

    untrained = [
        bits(assigned_heads(of_untrained(explainer, random_state + i).attribute(adata).relative))
        for i in range(n_untrained)
    ]
    scale = fitted_net(explainer.estimator).input_scale.numpy(force=True)
    clusters = KMeans(len(explainer.heads), n_init=3, random_state=random_state)
    cluster = samples.scatter(clusters.fit_predict(samples.x / scale), -1)
    heads = [*explainer.heads, NO_HEAD]
    chosen = pd.Categorical([heads[a] for a in assigned[known]], categories=heads)
    return Specialisation(
        information=bits(assigned),
        permuted=permuted_information(
            assigned[known] + 1, codes, strata, label, n_permutations, random_state
        ),
        untrained=np.array(untrained),
        kmeans=bits(cluster),
        enrichment=enrichment(chosen, populations[known]),
        n_cells=int(known.sum()),
    )


__all__ = ["Specialisation", "specialisation"]
