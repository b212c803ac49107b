"""Decision thresholds from held-out patients."""

from __future__ import annotations

import numpy as np

_GRID = np.round(np.arange(-12, 12.05, 0.05), 2)  # log-odds
_PLATEAU = 1e-3


def best_f1_threshold(log_odds: np.ndarray, positive: np.ndarray, sample: np.ndarray) -> float:
    """Log-odds with the best mean F1 over samples that have positives.

    The middle of the thresholds whose mean F1 is within 0.001 of the best, so that a clear
    separation gives a threshold in its middle.

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
    mean = np.mean(scores, axis=0)
    best = int(mean.argmax())
    plateau = mean >= mean[best] - _PLATEAU
    low = best - int(np.argmin(np.append(plateau[best::-1], False))) + 1
    high = best + int(np.argmin(np.append(plateau[best:], False))) - 1
    return float((_GRID[low] + _GRID[high]) / 2)


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
