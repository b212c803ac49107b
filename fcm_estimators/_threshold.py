"""Decision thresholds from held-out patients."""

from __future__ import annotations

import numpy as np

_GRID = np.round(np.arange(-12, 12.05, 0.05), 2)  # log-odds
_TOLL = 5e-3  # mean F1 that a step of one in log-odds away from even odds has to gain


def best_f1_threshold(log_odds: np.ndarray, positive: np.ndarray, sample: np.ndarray) -> float:
    """Log-odds with the best mean F1 over samples, 0 unless another value is worth it.

    Each step of one away from even odds has to gain 0.005 in mean F1. A few held-out samples
    often prefer an extreme threshold by very little, and new samples pay for it.

    Parameters
    ----------
    log_odds : ndarray of shape (n,)
    positive : bool ndarray of shape (n,)
    sample : ndarray of int of shape (n,)

    Returns
    -------
    float
        0 where no sample has positives.
    """
    scores = []
    for s in np.unique(sample):
        inside = sample == s
        truth = positive[inside]
        if not truth.any():
            continue
        values = log_odds[inside]
        reached = np.searchsorted(_GRID, values, side="right")
        scores.append(2 * _at_least(reached[truth]) / (_at_least(reached) + truth.sum()))
    if not scores:
        return 0.0
    return float(_GRID[(np.mean(scores, axis=0) - _TOLL * np.abs(_GRID)).argmax()])


def _at_least(reached: np.ndarray) -> np.ndarray:
    """For every grid value, how many cells reach it; ``reached`` counts the values per cell."""
    counts = np.bincount(reached, minlength=len(_GRID) + 1)
    return counts[::-1].cumsum()[::-1][1:]


def false_positive_threshold(log_odds: np.ndarray, positive: np.ndarray, rate: float) -> float:
    """Smallest log-odds that at most a share ``rate`` of the negative cells reach."""
    negatives = np.sort(log_odds[~positive])
    allowed = int(np.floor(rate * len(negatives)))
    # The cell just below the allowed ones must stay negative, and so must its ties.
    return float(np.nextafter(negatives[len(negatives) - allowed - 1], np.inf))
