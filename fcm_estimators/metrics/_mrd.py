"""Measurable residual disease: counts with a named denominator, intervals and error."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import beta

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._inputs import (
    boolean_per_cell,
    flag_counts,
    fraction_number,
    per_cell,
    samples_of,
)

# Number of events that the MRD protocols require to detect and to quantify residual disease.
_EVENTS_TO_DETECT = 20
_EVENTS_TO_QUANTIFY = 50


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
    >>> from fcm_estimators.metrics._mrd import clopper_pearson
    >>> low, high = clopper_pearson([0, 20], 100_000)
    >>> low.round(6).tolist(), high.round(6).tolist()
    ([0.0, 0.000122], [3.7e-05, 0.000309])
    """
    tail = (1 - fraction_number(confidence, "confidence", open_ends=True)) / 2
    k, n = np.broadcast_arrays(_counts(k, "k"), _counts(n, "n"))
    if (k > n).any():
        raise InvalidInputError(
            f"k exceeds n in {np.count_nonzero(k > n)} places (first {k[k > n][0]:g} of "
            f"{n[k > n][0]:g}); k must be a part of the n events."
        )
    # The beta distribution is degenerate for k = 0 and k = n; the interval then ends at 0 or 1.
    low = np.where(k == 0, 0.0, beta.ppf(tail, np.maximum(k, 1), n - k + 1))
    high = np.where(k == n, 1.0, beta.ppf(1 - tail, k + 1, np.maximum(n - k, 1)))
    return low, high


def mrd_table(
    positive: ArrayLike,
    *,
    denominator: ArrayLike,
    denominator_name: str,
    groups: ArrayLike | None = None,
    limit_of_blank: float | None = None,
    uncertain: Mapping[str, bool] | None = None,
    tested: bool = True,
    sensitivity: float = 1e-4,
    confidence: float = 0.95,
    flags: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compute the residual disease of every sample, with denominator, interval and limits.

    The interval contains only the counting error, not errors from wrongly classified cells, from
    sampling of the marrow or from haemodilution. ``lod`` and ``lloq`` are theoretical limits: the
    20 and 50 events that the protocols require, divided by the number of events measured. They
    are not the validated limits of an assay.

    Parameters
    ----------
    positive : array-like of bool of shape (N,)
        Cells predicted to be residual disease, such as ``clf.predict(adata) == "blast"``.
    denominator : array-like of bool of shape (N,)
        Cells of the gate to which the fraction refers, such as intact nucleated cells.
    denominator_name : str
        Name of that gate; a fraction cannot be read without it.
    groups : array-like of shape (N,), optional
        Sample of each cell. Default: one sample, ``all``.
    limit_of_blank : float, optional
        Fraction that the same classifier finds in samples without disease: the ``value`` of
        :func:`limit_of_blank` for the same denominator.
    uncertain : mapping of str to bool, optional
        Samples on which the members of the model disagree: ``sample`` and ``uncertain`` in
        ``adata.uns[key]["members"]``. Samples that are not named are certain.
    tested : bool, default True
        Whether the model was tested with the markers that the data have: ``tested`` in
        ``adata.uns[key]``.
    sensitivity : float, default 1e-4
        Fraction that a sample must be able to show before it can be called negative.
    confidence : float, default 0.95
        Level of the Clopper-Pearson interval.
    flags : DataFrame of bool of shape (N, F), optional
        Flags of the quality control, such as ``adata.obs.filter(like="qc_")``. Flagged cells are
        counted, never left out.

    Returns
    -------
    DataFrame
        Index ``sample``, in order of first appearance. Columns ``numerator`` (positive cells
        inside the denominator), ``denominator``, ``denominator_name``, ``n_outside`` (positive
        cells outside of the denominator, which the fraction leaves out), ``fraction``, ``ci_low``,
        ``ci_high``, ``lod`` (20 / denominator), ``lloq`` (50 / denominator) and ``status``, the
        first of these that is true:

        1. ``not tested``: ``tested`` is False. Cells are counted; the fraction and its interval
           are NaN, because nobody knows how far they could be relied on.
        2. ``members disagree``: the sample is ``uncertain``. The fraction may be wrong by a
           factor of two or more; it is neither quantifiable nor negative.
        3. ``insufficient events``: there is no cell in the denominator; or fewer than 20 cells are
           positive and 20 / denominator exceeds ``sensitivity``. Nothing can be concluded.
        4. ``not detected``: fewer than 20 cells are positive.
        5. ``within blank``: ``limit_of_blank`` is given and the fraction does not exceed it.
        6. ``detected below LLOQ``: 20 to 49 cells are positive.
        7. ``quantifiable``: 50 or more cells are positive.

        With ``flags`` also ``n_{flag}``, the flagged cells of the denominator, and
        ``n_positive_{flag}``, the flagged cells of the numerator.

        If the denominator is empty, ``fraction``, ``lod`` and ``lloq`` are NaN and the interval is
        (0, 1).

    Raises
    ------
    InvalidInputError
        The lengths differ or are 0, a value is missing or not boolean, ``denominator_name`` is
        empty, ``limit_of_blank`` is not between 0 and 1, or ``sensitivity`` or ``confidence`` is
        not strictly between 0 and 1.

    References
    ----------
    Theunissen et al., Blood 129, 347-357 (2017), EuroFlow: number of events and sensitivity.
    Arroz et al., Cytometry B 90B, 31-39 (2016), consensus on myeloma: 20 events to detect, 50 to
    quantify. Clopper, Pearson, Biometrika 26, 404-413 (1934).

    Examples
    --------
    >>> import numpy as np
    >>> from fcm_estimators.metrics import mrd_table
    >>> blast, intact = np.arange(500_000) < 60, np.ones(500_000, dtype=bool)
    >>> table = mrd_table(blast, denominator=intact, denominator_name="intact")
    >>> table[["numerator", "denominator", "fraction", "status"]].to_dict("records")
    [{'numerator': 60, 'denominator': 500000, 'fraction': 0.00012, 'status': 'quantifiable'}]
    """
    positive = boolean_per_cell(positive, "positive")
    inside = boolean_per_cell(denominator, "denominator", len(positive))
    if len(positive) == 0:
        raise InvalidInputError("positive is empty; expected at least one cell.")
    if not isinstance(denominator_name, str) or not denominator_name.strip():
        raise InvalidInputError(
            f"denominator_name is {denominator_name!r}; expected the name of the gate to "
            'which the fraction refers, such as "intact".'
        )
    sensitivity = fraction_number(sensitivity, "sensitivity", open_ends=True)
    blank = None if limit_of_blank is None else fraction_number(limit_of_blank, "limit_of_blank")
    sample, names = samples_of(groups, len(positive))
    k = np.bincount(sample[positive & inside], minlength=len(names))
    n = np.bincount(sample[inside], minlength=len(names))
    low, high = clopper_pearson(k, n, confidence)
    disputed = np.array([bool((uncertain or {}).get(str(name), False)) for name in names])
    counts = flag_counts(flags, inside, sample, len(names))
    of_positive = flag_counts(flags, inside & positive, sample, len(names))
    table = pd.DataFrame(
        {
            "numerator": k,
            "denominator": n,
            "denominator_name": denominator_name,
            "n_outside": np.bincount(sample[positive & ~inside], minlength=len(names)),
            "fraction": _per_event(k, n),
            "ci_low": low,
            "ci_high": high,
            "lod": _per_event(_EVENTS_TO_DETECT, n),
            "lloq": _per_event(_EVENTS_TO_QUANTIFY, n),
            "status": _status(k, n, blank, sensitivity, disputed) if tested else "not tested",
        },
        index=names,
    )
    if not tested:
        table[["fraction", "ci_low", "ci_high"]] = np.nan
    for name, values in counts.items():
        table[name] = values
        table[name.replace("n_", "n_positive_", 1)] = of_positive[name]
    return table


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


def _status(
    k: np.ndarray, n: np.ndarray, blank: float | None, sensitivity: float, disputed: np.ndarray
) -> np.ndarray:
    few = k < _EVENTS_TO_DETECT
    # The blank is a quotient of counts too, so equal fractions compare equal.
    within = np.zeros(len(k), dtype=bool) if blank is None else _per_event(k, n) <= blank
    return np.select(
        [
            disputed,
            (n == 0) | (few & (_per_event(_EVENTS_TO_DETECT, n) > sensitivity)),
            few,
            within,
            k < _EVENTS_TO_QUANTIFY,
        ],
        [
            "members disagree",
            "insufficient events",
            "not detected",
            "within blank",
            "detected below LLOQ",
        ],
        default="quantifiable",
    ).astype(object)


def _per_event(events: ArrayLike, n: np.ndarray) -> np.ndarray:
    """``events`` divided by ``n``, NaN where ``n`` is 0."""
    share = np.full(len(n), np.nan)
    np.divide(events, n, out=share, where=n > 0)
    return share


def _counts(values: ArrayLike, name: str) -> np.ndarray:
    counts = np.asarray(values, dtype=float)
    if not ((counts >= 0) & (counts == np.floor(counts)) & np.isfinite(counts)).all():
        raise InvalidInputError(f"{name} holds values that are not counts; expected 0, 1, 2, ...")
    return counts


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
