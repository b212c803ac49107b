"""Summaries of written gradients and influence by population."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from explainers._maths.summary import mean_interval, summarise
from explainers._populations import population_labels
from fcm_estimators.exceptions import require_key
from fcm_estimators.keys import GradientKeys, InfluenceKeys

__all__ = ["gradient_summary", "influence_summary"]

# First-order values are right for groups of up to about this share of the cells.
SMALL_GROUP = 0.02


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


def influence_summary(
    adata: AnnData, by: str, *, key: str = InfluenceKeys.key, confidence: float = 0.95
) -> pd.DataFrame:
    """Influence of the cells, summed over populations.

    Parameters
    ----------
    adata : AnnData
        Data with the results of an InfluenceExplainer. The model is not needed.
    by : str
        Column of ``obs``, such as the called classes, or of ``obsm["gates"]`` (inside and outside).
    key : str, default "influence"
        The explainer's ``key_added``.
    confidence : float, default 0.95

    Returns
    -------
    DataFrame
        One row per population; means over the samples that have it:

        - ``population``;
        - ``influence``: mean over its cells, the change of the target if 1 % of the cells of the
          sample, all of this population, are hidden;
        - ``change``, ``ci_low``, ``ci_high``: sum over its cells, to first order the change if the
          whole population is hidden, and its Student interval over samples (NaN for fewer than
          two). The sums over all populations of a sample are 0. NaN for ``AnyChange``, whose
          values have no direction and do not add up;
        - ``share`` of the sample;
        - ``small``: whether it is at most 2 % of every sample. ``change`` of a larger population
          is not what happens if it is hidden; ``InfluenceExplainer.hide`` and ``between`` tell;
        - ``n_cells``, ``n_samples``.

    Raises
    ------
    MissingKeyError
        The influence or the population is missing.

    Examples
    --------
    >>> from explainers import InfluenceExplainer, influence_summary
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> raw = simulate_cohort(n_samples=2, n_cells=200, random_state=0)
    >>> adata = LogicleTransform().fit_transform(raw)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... ).fit(adata)
    >>> InfluenceExplainer(clf).explain(adata)
    >>> table = influence_summary(adata, "cell_type")
    >>> bool(abs(table["change"].sum()) < 1e-3)
    True
    """
    keys = InfluenceKeys(key)
    require_key(keys.values, adata.obs.columns, "the obs column")
    require_key(keys.record, adata.uns.keys(), "the run record uns")
    record: Mapping[str, Any] = adata.uns[keys.record]
    sample_key = record.get("sample_key")
    cells = pd.DataFrame(
        {
            "sample": np.asarray(adata.obs[sample_key]) if sample_key in adata.obs else 0,
            "population": population_labels(adata, by),
            "influence": adata.obs[keys.values].to_numpy(dtype=np.float64),
        }
    ).dropna(subset="influence")
    size = cells.groupby("sample")["influence"].size()
    parts = cells.groupby(["population", "sample"], sort=False)["influence"].agg(
        ["mean", "sum", "size"]
    )
    n_cells = size.loc[parts.index.get_level_values("sample")].to_numpy()
    parts["share"] = parts["size"] / n_cells
    parts["change"] = parts["sum"] * (100 / n_cells if record["signed"] else np.nan)
    rows = []
    for population, part in parts.groupby("population", sort=False):
        low, high = mean_interval(part["change"].to_numpy(), confidence)
        rows.append(
            {
                "population": population,
                "influence": part["mean"].mean(),
                "change": part["change"].mean(),
                "ci_low": low,
                "ci_high": high,
                "share": part["share"].mean(),
                "small": bool(part["share"].max() <= SMALL_GROUP),
                "n_cells": int(part["size"].sum()),
                "n_samples": len(part),
            }
        )
    return pd.DataFrame(rows)
