"""Mutual information of two labellings, conditional on a third."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from sklearn.metrics import mutual_info_score


def conditional_information(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """Plug-in estimate of I(a; b | given) in bits.

    Parameters
    ----------
    a, b, given : ndarray of int of shape (n,)
        Codes from 0.
    """
    shape = (a.max() + 1, b.max() + 1)
    nats = 0.0
    for value in np.unique(given):
        rows = given == value
        pairs = np.ravel_multi_index((a[rows], b[rows]), shape)
        counts = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        nats += rows.sum() * mutual_info_score(None, None, contingency=counts)
    return float(nats / (len(a) * np.log(2)))


def permuted_information(
    a: np.ndarray, b: np.ndarray, strata: np.ndarray, given: np.ndarray, n: int, seed: int
) -> np.ndarray:
    """Conditional information after shuffling ``b`` within strata, ``n`` times.

    Parameters
    ----------
    a, b, given : ndarray of int of shape (n_cells,)
    strata : ndarray of int of shape (n_cells,)
        Groups within which ``b`` is shuffled. With strata of label and sample, a difference in
        composition between samples does not count as information.
    n : int
    seed : int
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(strata, kind="stable")
    limits = np.flatnonzero(np.diff(strata[order], prepend=-1, append=strata.max() + 1))
    out = np.empty(n)
    shuffled = b.copy()
    for i in range(n):
        for start, stop in pairwise(limits):
            rows = order[start:stop]
            shuffled[rows] = b[rng.permutation(rows)]
        out[i] = conditional_information(a, shuffled, given)
    return out


def enrichment(head: pd.Categorical, population: np.ndarray) -> pd.DataFrame:
    """Counts and log odds ratio of each head and population.

    Returns
    -------
    DataFrame
        ``head``, ``population``, ``n_cells``, ``share_of_head`` and ``log_odds``, the natural
        logarithm of the odds ratio with half a cell added to each count.
    """
    table = pd.crosstab(pd.Series(head), pd.Series(population), dropna=False)
    counts = table.to_numpy(dtype=float)
    row, column, total = counts.sum(1, keepdims=True), counts.sum(0, keepdims=True), counts.sum()
    with_head, without = counts + 0.5, row - counts + 0.5
    other, rest = column - counts + 0.5, total - row - column + counts + 0.5
    log_odds = np.log(with_head) + np.log(rest) - np.log(without) - np.log(other)
    share = counts / np.maximum(row, 1)
    index = pd.MultiIndex.from_product([table.index, table.columns], names=["head", "population"])
    columns = {
        "n_cells": counts.ravel().astype(int),
        "share_of_head": share.ravel(),
        "log_odds": log_odds.ravel(),
    }
    return pd.DataFrame(columns, index=index).reset_index()
