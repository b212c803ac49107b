"""Temperature and decision thresholds from held-out patients."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

_GRID = np.round(np.arange(-12, 12.05, 0.05), 2)  # log-odds
_NEGLIGIBLE = 1e-3  # difference in F1
# Beyond these a few held-out cells that are told apart without error would set the temperature.
_LOG_TEMPERATURES = np.linspace(np.log(0.5), np.log(10), 121)


def best_temperature(logits: np.ndarray, codes: np.ndarray, sample: np.ndarray) -> float:
    """Number by which to divide logits, so that the probabilities are those of held-out cells.

    Each sample has one with which its cross-entropy is least (Guo et al., ICML 2017); the median
    over samples is taken, so that a single hard patient does not set it, and never less than 1:
    what a few easy patients leave of errors is no reason for more confidence.

    Parameters
    ----------
    logits : ndarray of shape (n, C)
    codes : ndarray of int of shape (n,)
        Classes.
    sample : ndarray of int of shape (n,)

    Returns
    -------
    float
        Within 1 to 10.
    """
    logits = logits.astype(np.float64)
    _, position = np.unique(sample, return_inverse=True)
    table = np.empty((position.max() + 1, len(_LOG_TEMPERATURES)))
    for k, log_temperature in enumerate(_LOG_TEMPERATURES):
        scaled = logits / np.exp(log_temperature)
        loss = logsumexp(scaled, axis=1) - scaled[np.arange(len(codes)), codes]
        table[:, k] = np.bincount(position, weights=loss)
    return float(np.exp(max(0.0, np.median(_LOG_TEMPERATURES[table.argmin(1)]))))


def best_f1_threshold(log_odds: np.ndarray, positive: np.ndarray, sample: np.ndarray) -> float:
    """Log-odds nearest to 0 whose mean F1 over samples is not clearly below the best one.

    Not clearly: by no more than the standard error of the difference over samples, or 0.001. A
    few held-out samples seldom show that another threshold than even odds is better, and where
    they do not, even odds are kept, which a calibrated model needs no samples to find.

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
    table = np.array(scores)
    mean = table.mean(0)
    best = int(mean.argmax())
    lost = table[:, [best]] - table
    error = lost.std(0, ddof=1) / np.sqrt(len(table)) if len(table) > 1 else np.zeros(len(_GRID))
    allowed = _GRID[lost.mean(0) <= np.maximum(error, _NEGLIGIBLE)]
    return float(allowed[np.abs(allowed).argmin()])


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
