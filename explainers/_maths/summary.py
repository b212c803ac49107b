"""Mean signed gradients per population and marker, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from fcm_estimators.exceptions import InvalidInputError


def summarise(
    gradient: np.ndarray,
    markers: Sequence[str],
    labels: np.ndarray,
    sample: np.ndarray,
    *,
    confidence: float,
    n_bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """Tabulate gradients; see :func:`explainers.gradient_summary`.

    Parameters
    ----------
    gradient : ndarray of shape (N, M)
        Gradients. Cells with NaN, which are not analysed, are left out.
    markers : sequence of M str
    labels, sample : ndarray of shape (N,)
        Cells without label are left out.
    confidence : float
    n_bootstrap : int
    seed : int

    Returns
    -------
    DataFrame
    """
    if not 0 < confidence < 1:
        raise InvalidInputError(f"confidence={confidence} must lie between 0 and 1.")
    usable = ~np.isnan(gradient).any(1) & ~pd.isna(labels)
    rng = np.random.default_rng(seed)
    rows = []
    for population in pd.unique(labels[usable]):
        inside = usable & (labels == population)
        values = gradient[inside].astype(np.float64)
        codes, names = pd.factorize(sample[inside])
        draws = _bootstrap_means(values, codes, len(names), n_bootstrap, rng)
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        strongest = np.bincount(np.abs(values).argmax(1), minlength=len(markers)) / len(values)
        for j, marker in enumerate(markers):
            rows.append(
                {
                    "population": population,
                    "marker": marker,
                    "mean": values[:, j].mean(),
                    "ci_low": low[j],
                    "ci_high": high[j],
                    "share_strongest": strongest[j],
                    "n_cells": len(values),
                    "n_samples": len(names),
                    "resampled": "samples" if len(names) > 1 else "cells",
                }
            )
    return pd.DataFrame(rows)


def _bootstrap_means(
    values: np.ndarray, codes: np.ndarray, n_samples: int, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Means of resampled data, (n_draws, M); draws samples, or cells if there is one sample."""
    if n_samples > 1:
        sums = np.stack([np.bincount(codes, column) for column in values.T], axis=1)
        counts = np.bincount(codes)
        weight = rng.multinomial(n_samples, np.full(n_samples, 1 / n_samples), size=n_draws)
        return (weight @ sums) / (weight @ counts)[:, None]
    picked = (rng.integers(len(values), size=len(values)) for _ in range(n_draws))
    return np.stack([values[rows].mean(0) for rows in picked])


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Student interval of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    half = student_t.ppf((1 + confidence) / 2, len(values) - 1)
    half *= values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
