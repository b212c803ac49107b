"""Error of predicted fractions of residual disease."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._inputs import per_cell


def mrd_error(true_fraction: ArrayLike, predicted_fraction: ArrayLike) -> pd.DataFrame:
    """Compute the error of predicted fractions per order of magnitude of the true fraction.

    Parameters
    ----------
    true_fraction : array-like of shape (S,)
        Expert's fraction of each sample, between 0 and 1.
    predicted_fraction : array-like of shape (S,)
        Predicted fraction of each sample, with the same denominator.

    Returns
    -------
    DataFrame
        Index ``true_fraction``: ``0``, then ``1e-05 to 1e-04`` and so on, ascending; the lower end
        is included, and rows without samples are left out. Columns: ``n_samples``;
        ``share_detected``, the share of samples with a predicted fraction above 0 (false positives
        in row ``0``); ``median_abs_log10_ratio`` and ``bias_log10``, the median absolute and the
        mean log10(predicted / true) of the detected samples, both NaN in row ``0`` and if no sample
        was detected; ``median_predicted``.

    Raises
    ------
    InvalidInputError
        The lengths differ or are 0, or a fraction is NaN or not between 0 and 1.

    Examples
    --------
    >>> from fcm_estimators.metrics import mrd_error
    >>> mrd_error([0, 0.001, 0.002], [0, 0.01, 0.0])["share_detected"].to_dict()
    {'0': 0.0, '1e-03 to 1e-02': 0.5}
    """
    true = _fractions(true_fraction, "true_fraction")
    predicted = _fractions(predicted_fraction, "predicted_fraction")
    if len(true) != len(predicted):
        raise InvalidInputError(f"{len(predicted)} predicted for {len(true)} true fractions.")
    if len(true) == 0:
        raise InvalidInputError("true_fraction is empty; expected at least one sample.")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where((true > 0) & (predicted > 0), np.log10(predicted) - np.log10(true), np.nan)
    samples = pd.DataFrame(
        {"exponent": _order_of_magnitude(true), "predicted": predicted, "ratio": ratio}
    )
    grouped = samples.assign(detected=predicted > 0, size=np.abs(ratio)).groupby("exponent")
    table = pd.DataFrame(
        {
            "n_samples": grouped.size(),
            "share_detected": grouped["detected"].mean(),
            "median_abs_log10_ratio": grouped["size"].median(),
            "bias_log10": grouped["ratio"].mean(),
            "median_predicted": grouped["predicted"].median(),
        }
    )
    rows = ["0" if np.isinf(e) else f"{10**e:.0e} to {10 ** (e + 1):.0e}" for e in table.index]
    return table.set_axis(pd.Index(rows, name="true_fraction"), axis=0)


def _fractions(values: ArrayLike, name: str) -> np.ndarray:
    fractions = per_cell(np.atleast_1d(np.asarray(values, dtype=float)), name)
    n_bad = np.count_nonzero(~((fractions >= 0) & (fractions <= 1)))
    if n_bad:
        raise InvalidInputError(f"{name}: {n_bad} values are not between 0 and 1.")
    return fractions


def _order_of_magnitude(fractions: np.ndarray) -> np.ndarray:
    """Exponent of the largest power of ten at or below; -1 for 1, -inf for 0."""
    # Powers are read from decimal text, because computed powers and log10 have rounding errors.
    powers = [float(f"1e{e}") for e in range(-323, 0)]
    exponents = np.searchsorted(powers, fractions, side="right") - 324.0
    return np.where(fractions > 0, exponents, -np.inf)
