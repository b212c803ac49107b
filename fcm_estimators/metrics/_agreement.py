"""Statistics of two methods on the same samples: differences, regression, agreement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class BlandAltman:
    """Differences of two methods.

    Attributes
    ----------
    n : int
        Pairs.
    bias, bias_low, bias_high : float
        Mean difference with its interval.
    sd : float
        Standard deviation of the differences.
    lower, upper : float
        Limits of agreement, between which 95 % of the differences are expected.
    lower_low, lower_high, upper_low, upper_high : float
        Intervals of the limits.
    """

    n: int
    bias: float
    bias_low: float
    bias_high: float
    sd: float
    lower: float
    lower_low: float
    lower_high: float
    upper: float
    upper_low: float
    upper_high: float


@dataclass(frozen=True)
class PassingBablok:
    """Line y = intercept + slope x through pairs of which both have errors.

    Attributes
    ----------
    n : int
        Pairs.
    slope, slope_low, slope_high, intercept, intercept_low, intercept_high : float
        Estimates with their intervals.
    linearity_p : float
        P-value of the cusum test; a small one speaks against a line.
    """

    n: int
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    intercept_low: float
    intercept_high: float
    linearity_p: float


def bland_altman(x: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> BlandAltman:
    """Compute bias and limits of agreement of y - x, for 3 pairs or more.

    References
    ----------
    Bland, Altman, Lancet 327, 307-310 (1986); Statistical Methods in Medical Research 8, 135-160
    (1999), section 2: variances of bias and limits.

    Examples
    --------
    >>> import numpy as np
    >>> from fcm_estimators.metrics._agreement import bland_altman
    >>> bland_altman(np.zeros(3), np.array([1.0, 2.0, 3.0])).bias
    2.0
    """
    difference = y - x
    n = len(difference)
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    z = float(stats.norm.ppf(0.975))
    t = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    of_bias = t * sd / n**0.5
    of_limits = t * sd * (1 / n + z**2 / (2 * (n - 1))) ** 0.5
    lower, upper = bias - z * sd, bias + z * sd
    return BlandAltman(
        n,
        *(bias, bias - of_bias, bias + of_bias, sd),
        *(lower, lower - of_limits, lower + of_limits),
        *(upper, upper - of_limits, upper + of_limits),
    )


def passing_bablok(x: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> PassingBablok:
    """Fit a line by the shifted median of all slopes between two pairs.

    The ranks of the ends of the interval of the slope are rounded, as in the paper. Programs that
    take the mean of neighbours where a rank lies between them, such as the R package mcr, give
    ends up to a slope away.

    References
    ----------
    Passing, Bablok, J. Clin. Chem. Clin. Biochem. 21, 709-720 (1983).

    Examples
    --------
    >>> import numpy as np
    >>> from fcm_estimators.metrics._agreement import passing_bablok
    >>> x = np.arange(10.0)
    >>> line = passing_bablok(x, 2 * x + 3)
    >>> line.slope, line.intercept
    (2.0, 3.0)
    """
    n = len(x)
    i, j = np.triu_indices(n, 1)
    dx, dy = x[j] - x[i], y[j] - y[i]
    kept = (dx != 0) | (dy != 0)
    with np.errstate(divide="ignore"):
        slopes = dy[kept] / dx[kept]
    slopes = np.sort(slopes[slopes != -1])
    count = len(slopes)
    # Slopes below -1 are counted on the other side, so that both methods are treated alike.
    offset = int((slopes < -1).sum())
    middle = slopes[[(count - 1) // 2 + offset, count // 2 + offset]]
    slope = float(middle.mean())
    half = stats.norm.ppf((1 + confidence) / 2) * np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    first = max(round((count - half) / 2), 1)
    last = count - first + 1
    low, high = (float(slopes[min(r + offset, count) - 1]) for r in (first, last))

    def intercept_of(b: float) -> float:
        return float(np.median(y - b * x))

    intercept = intercept_of(slope)
    # Logarithms of fractions are negative, so the larger slope may have the larger intercept.
    least, most = sorted((intercept_of(low), intercept_of(high)))
    return PassingBablok(
        n,
        *(slope, low, high),
        *(intercept, least, most),
        _cusum_p(x, y, slope, intercept),
    )


def _cusum_p(x: np.ndarray, y: np.ndarray, slope: float, intercept: float) -> float:
    """P-value of the test of Passing and Bablok whether signs of residuals run along the line."""
    residual = y - intercept - slope * x
    above, below = int((residual > 0).sum()), int((residual < 0).sum())
    if not above or not below:
        return 1.0
    score = np.select(
        [residual > 0, residual < 0], [np.sqrt(below / above), -np.sqrt(above / below)]
    )
    along = np.argsort(y + x / slope, kind="stable")
    largest = np.abs(np.cumsum(score[along])).max()
    return float(stats.kstwobign.sf(largest / np.sqrt(below + 1)))


def agreement_at(
    manual: np.ndarray, automatic: np.ndarray, confidence: float = 0.95
) -> pd.DataFrame:
    """Compute positive, negative and overall agreement, with Wilson intervals.

    Parameters
    ----------
    manual, automatic : ndarray of bool of shape (S,)
        Whether a sample is positive by each method; the shares are of the manual ones.

    Returns
    -------
    DataFrame
        Index ``positive``, ``negative``, ``overall``; ``n``, ``agree``, ``share``, ``ci_low``,
        ``ci_high`` (NaN without samples).
    """
    same = manual == automatic
    rows = {}
    for name, counted in (
        ("positive", manual),
        ("negative", ~manual),
        ("overall", np.ones(len(manual), dtype=bool)),
    ):
        n, agree = int(counted.sum()), int((same & counted).sum())
        share, low, high = float("nan"), float("nan"), float("nan")
        if n:
            share = agree / n
            interval = stats.binomtest(agree, n).proportion_ci(confidence, method="wilson")
            low, high = float(interval.low), float(interval.high)
        rows[name] = {"n": n, "agree": agree, "share": share, "ci_low": low, "ci_high": high}
    return pd.DataFrame(rows).T.rename_axis("agreement").astype({"n": int, "agree": int})
