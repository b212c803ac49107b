"""Summary of written gradients by population."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from explainers._maths.summary import summarise
from explainers._populations import population_labels
from fcm_estimators.exceptions import require_key
from fcm_estimators.keys import GradientKeys

__all__ = ["gradient_summary"]


def gradient_summary(
    adata: AnnData,
    population: str | None,
    *,
    key: str = GradientKeys.key,
    confidence: float = 0.95,
    n_bootstrap: int = 500,
    random_state: int = 0,
) -> pd.DataFrame:
    """Mean signed gradient of each marker in each population, with intervals.

    Parameters
    ----------
    adata : AnnData
        Data with the results of a GradientExplainer. The model is not needed.
    population : str or None
        Column of ``obs``, or of ``obsm["gates"]`` (inside and outside). None: all cells together.
    key : str, default "gradient"
        The explainer's ``key_added``.
    confidence : float, default 0.95
    n_bootstrap : int, default 500
    random_state : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        One row per population and marker: ``population``, ``marker``, ``mean``, ``ci_low``,
        ``ci_high``, ``share_strongest`` (share of the cells in which the marker has the largest
        absolute entry), ``n_cells``, ``n_samples`` and ``resampled``. The latter is "samples", or
        "cells" if the population is in one sample only; the interval then does not hold for other
        patients.

    Raises
    ------
    MissingKeyError
        The gradient or the population is missing.

    Examples
    --------
    >>> from explainers import GradientExplainer, gradient_summary
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> raw = simulate_cohort(n_samples=2, n_cells=200, random_state=0)
    >>> adata = LogicleTransform().fit_transform(raw)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... ).fit(adata)
    >>> GradientExplainer(clf).explain(adata)
    >>> sorted(gradient_summary(adata, "cell_type")["population"].unique())
    ['blast', 'other']
    """
    keys = GradientKeys(key)
    require_key(keys.values, adata.layers.keys(), "the layer")
    require_key(keys.record, adata.uns.keys(), "the run record uns")
    record: Mapping[str, Any] = adata.uns[keys.record]
    markers = [str(m) for m in record["markers"]]
    labels = np.full(adata.n_obs, "all cells", dtype=object)
    if population is not None:
        labels = population_labels(adata, population)
    columns = adata.var_names.get_indexer(markers)
    sample_key = record.get("sample_key")
    sample = adata.obs[sample_key] if sample_key in adata.obs else np.zeros(adata.n_obs)
    return summarise(
        np.asarray(adata.layers[keys.values][:, columns]),
        markers,
        labels,
        np.asarray(sample),
        confidence=confidence,
        n_bootstrap=n_bootstrap,
        seed=random_state,
    )
