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
from explainers.attention import NO_HEAD, AttentionExplainer
from explainers.faithfulness.controls import Twins, beyond_twins, farthest
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.inference import Samples, fitted_net, read_samples


@dataclass(frozen=True)
class Specialisation:
    """Result of :func:`specialisation`.

    Attributes
    ----------
    information : float
        Mutual information in bits between assigned head and population, given the label.
    permuted : ndarray
        Information after shuffling populations within label and sample.
    untrained, label_permuted : ndarray
        Information for the twins: untrained nets, and nets trained on shuffled labels.
    distance : float
        Information for groups of equal size by the distance from the mean of the sample, as many
        as there are heads and "none".
    kmeans : float
        Information for clusters of markers, the best of k-means with as many clusters as heads and
        one more, on values in training SD and on z-scores of each sample. A clustering can tell
        more than heads, which are what the model attends to.
    enrichment : DataFrame
        For each head and population: ``n_cells``, ``share_of_head``, ``log_odds``.
    n_cells : int
        Number of cells with population, label and assigned head.
    """

    information: float
    permuted: np.ndarray
    untrained: np.ndarray
    label_permuted: np.ndarray
    distance: float
    kmeans: float
    enrichment: pd.DataFrame
    n_cells: int

    @property
    def p_value(self) -> float:
        """Share of shuffles that reach the information; the observed value counts as one."""
        return float((1 + (self.permuted >= self.information).sum()) / (1 + len(self.permuted)))

    @property
    def holds(self) -> bool:
        """Whether the heads learnt to tell the populations apart.

        The information must exceed that of every twin, by three SD of a further twin, that of all
        shuffles, and that of the distance from the mean.
        """
        twins = np.concatenate([self.untrained, self.label_permuted])
        above = self.information > max(self.permuted.max(), self.distance)
        return bool(above and beyond_twins(self.information, twins))

    def frame(self) -> pd.DataFrame:
        """Return one row for the model and one for each control: ``source``, ``bits``."""
        rows = [("model", self.information), ("k-means", self.kmeans), ("distance", self.distance)]
        rows += [("untrained", bits) for bits in self.untrained]
        rows += [("label-permuted", bits) for bits in self.label_permuted]
        rows += [("permuted", bits) for bits in self.permuted]
        return pd.DataFrame(rows, columns=["source", "bits"])


def specialisation(
    explainer: AttentionExplainer,
    adata: AnnData,
    population: str,
    *,
    label_key: str,
    twins: Twins,
    n_permutations: int = 200,
    random_state: int = 0,
) -> Specialisation:
    """Mutual information between assigned head and population, conditional on the label.

    Heads are expected to distinguish the labels of the training. Conditional on the label, only
    populations that the training did not name count. A check of learning: controls are untrained
    and label-permuted twins, shuffled populations, the distance from the mean, and k-means.

    Parameters
    ----------
    explainer : AttentionExplainer
    adata : AnnData
        Whole samples that the model was not trained on.
    population : str
        Column of ``obs`` or of ``obsm["gates"]``. Cells without a population are left out.
    label_key : str
        Column of the label that the model was trained on.
    twins : Twins
        Controls of the model, from :func:`explainers.faithfulness.twins`.
    n_permutations : int, default 200
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
    explainer.plan().require_layer("specialisation")
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
    samples = read_samples(explainer.estimator, explainer.ready(adata))
    sample = samples.scatter(samples.sample_of_cell, -1)[known]
    strata = label * (sample.max() + 1) + sample

    def bits(groups: np.ndarray) -> float:
        return conditional_information(groups[known] + 1, codes, label)

    of_twins = np.array(
        [
            bits(assigned_heads(twin.attribute(adata).relative))
            for twin in twins.explainers(explainer)
        ]
    )
    n_untrained, n_groups = len(twins.untrained), len(explainer.heads) + 1
    far = farthest(samples.x, list(samples.spans()))
    by_distance = pd.qcut(far, n_groups, labels=False, duplicates="drop")
    heads = [*explainer.heads, NO_HEAD]
    chosen = pd.Categorical([heads[a] for a in assigned[known]], categories=heads)
    return Specialisation(
        information=bits(assigned),
        permuted=permuted_information(
            assigned[known] + 1, codes, strata, label, n_permutations, random_state
        ),
        untrained=of_twins[:n_untrained],
        label_permuted=of_twins[n_untrained:],
        distance=bits(samples.scatter(by_distance, -1)),
        kmeans=max(
            bits(samples.scatter(KMeans(k, n_init=3, random_state=random_state).fit_predict(x), -1))
            for x in _marker_spaces(explainer, samples)
            for k in (n_groups - 1, n_groups)
        ),
        enrichment=enrichment(chosen, populations[known]),
        n_cells=int(known.sum()),
    )


def _marker_spaces(explainer: AttentionExplainer, samples: Samples) -> list[np.ndarray]:
    """Markers in training SD, and as z-scores of each sample."""
    scale = fitted_net(explainer.estimator).input_scale.numpy(force=True)
    parts = [samples.x[start:stop] for start, stop in samples.spans()]
    scores = [(x - x.mean(0)) / np.maximum(x.std(0), 1e-12) for x in parts]
    return [samples.x / scale, np.concatenate(scores)]


__all__ = ["Specialisation", "specialisation"]
