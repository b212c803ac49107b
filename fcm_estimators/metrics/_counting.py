"""Counts of cells: checks, shares, and the interval that counting alone gives."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._inputs import fraction_number


def clopper_pearson(
    k: ArrayLike, n: ArrayLike, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the exact binomial interval of a fraction.

    Parameters
    ----------
    k : array-like of int
        Number of positive events, between 0 and ``n``.
    n : array-like of int
        Number of all events, broadcast against ``k``. For 0 the interval is (0, 1).
    confidence : float, default 0.95
        Between 0 and 1, both excluded. The interval is central.

    Returns
    -------
    low, high : ndarray of float64
        Ends of the interval, which always contains ``k / n``.

    Raises
    ------
    InvalidInputError
        A count is negative, not a whole number or NaN, ``k`` exceeds ``n``, or ``confidence`` is
        not between 0 and 1.

    References
    ----------
    Clopper, Pearson, Biometrika 26, 404-413 (1934).

    Examples
    --------
    >>> from fcm_estimators.metrics._counting import clopper_pearson
    >>> low, high = clopper_pearson([0, 20], 100_000)
    >>> low.round(6).tolist(), high.round(6).tolist()
    ([0.0, 0.000122], [3.7e-05, 0.000309])
    """
    tail = (1 - fraction_number(confidence, "confidence", open_ends=True)) / 2
    k, n = np.broadcast_arrays(counts(k, "k"), counts(n, "n"))
    if (k > n).any():
        raise InvalidInputError(
            f"k exceeds n in {np.count_nonzero(k > n)} places (first {k[k > n][0]:g} of "
            f"{n[k > n][0]:g}); k must be a part of the n events."
        )
    # The beta distribution is degenerate for k = 0 and k = n; the interval then ends at 0 or 1.
    low = np.where(k == 0, 0.0, beta.ppf(tail, np.maximum(k, 1), n - k + 1))
    high = np.where(k == n, 1.0, beta.ppf(1 - tail, k + 1, np.maximum(n - k, 1)))
    return low, high


def per_event(events: ArrayLike, n: np.ndarray) -> np.ndarray:
    """``events`` divided by ``n``, NaN where ``n`` is 0."""
    share = np.full(len(n), np.nan)
    np.divide(events, n, out=share, where=n > 0)
    return share


def counts(values: ArrayLike, name: str) -> np.ndarray:
    """Return counts as floats.

    Raises InvalidInputError if a value is negative, not a whole number or NaN.
    """
    found = np.asarray(values, dtype=float)
    if not ((found >= 0) & (found == np.floor(found)) & np.isfinite(found)).all():
        raise InvalidInputError(f"{name} holds values that are not counts; expected 0, 1, 2, ...")
    return found
