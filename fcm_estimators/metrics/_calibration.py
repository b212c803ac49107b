"""Compare predicted probabilities with observed shares of a class."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._inputs import per_cell, samples_of


def reliability_table(
    y_true: ArrayLike,
    probability: pd.DataFrame,
    *,
    groups: ArrayLike | None = None,
    pos_label: Hashable = None,
    n_bins: int = 10,
) -> pd.DataFrame:
    """Compare predicted probabilities with the share of cells that have the class.

    Parameters
    ----------
    y_true : array-like of shape (N,)
        Expert's class of each cell. Cells with NaN or None are left out.
    probability : DataFrame of shape (N, C)
        A column per class, such as ``adata.obsm["reluformer_proba"]``. Rows with NaN, cells that
        were not analysed, are left out.
    groups : array-like of shape (N,), optional
        Sample of each cell; every sample has the same weight. Default: one sample.
    pos_label : label, optional
        Class whose probability is compared. Default: the most probable class of each cell.
    n_bins : int, default 10
        Number of bins of equal width between 0 and 1.

    Returns
    -------
    DataFrame
        Index ``bin`` (Interval), without empty bins. Columns: ``n_cells``; ``n_samples``, the
        samples with cells in the bin; ``predicted``, the mean probability; ``observed``, the share
        of cells that have the class; ``gap``, observed minus predicted. Means and shares weight
        samples equally. ``attrs["expected_calibration_error"]`` is the weighted mean of the
        absolute gap.

    Raises
    ------
    InvalidInputError
        Lengths differ, ``probability`` is not a DataFrame, ``n_bins`` is not a positive integer, no
        cell has both a label and a probability, a probability is not between 0 and 1, or
        ``pos_label`` has no column.

    References
    ----------
    Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import reliability_table
    >>> shares = pd.DataFrame({"blast": [0.9, 0.8, 0.2, 0.1]}).assign(other=lambda t: 1 - t.blast)
    >>> table = reliability_table(["blast", "other", "other", "other"], shares, n_bins=2)
    >>> table[["n_cells", "predicted", "observed"]].round(3).to_dict("records")
    [{'n_cells': 4, 'predicted': 0.85, 'observed': 0.75}]
    """
    if not isinstance(probability, pd.DataFrame):
        raise InvalidInputError(
            f"probability is a {type(probability).__name__}; expected a DataFrame with a column "
            "per class."
        )
    if not isinstance(n_bins, int | np.integer) or n_bins < 1:
        raise InvalidInputError(f"n_bins is {n_bins!r}; expected an integer of at least 1.")
    truth = per_cell(y_true, "y_true", len(probability))
    values = probability.to_numpy(dtype=np.float64)
    sample, names = samples_of(groups, len(truth))
    used = ~pd.isna(truth) & ~np.isnan(values).any(1)
    if not used.any():
        raise InvalidInputError("No cell has both a label and a probability.")
    truth, values, sample = truth[used], values[used], sample[used]
    if values.min() < 0 or values.max() > 1 + 1e-5:
        raise InvalidInputError(
            f"Probabilities range from {values.min():g} to {values.max():g}; expected 0 to 1."
        )
    # Column names are text, so labels are compared as text.
    classes = probability.columns.astype(str).to_numpy()
    truth = pd.Series(truth).convert_dtypes().astype(str).to_numpy()
    if pos_label is None:
        best = values.argmax(1)
        predicted, correct = values[np.arange(len(values)), best], classes[best] == truth
    else:
        if str(pos_label) not in classes:
            raise InvalidInputError(
                f"pos_label={pos_label!r} has no column; there are {classes.tolist()}."
            )
        predicted = values[:, int(np.flatnonzero(classes == str(pos_label))[0])]
        correct = truth == str(pos_label)
    weight = 1 / np.bincount(sample, minlength=len(names))[sample]
    edges = np.linspace(0, 1, n_bins + 1)
    bins = pd.cut(pd.Series(np.clip(predicted, 0, 1)), edges.tolist(), include_lowest=True)
    frame = pd.DataFrame(
        {
            "bin": bins,
            "sample": sample,
            "weight": weight,
            "predicted": weight * predicted,
            "observed": weight * correct,
        }
    )
    grouped = frame.groupby("bin", observed=True)
    total = grouped["weight"].sum()
    table = pd.DataFrame(
        {
            "n_cells": grouped.size(),
            "n_samples": grouped["sample"].nunique(),
            "predicted": grouped["predicted"].sum() / total,
            "observed": grouped["observed"].sum() / total,
        }
    )
    table["gap"] = table["observed"] - table["predicted"]
    table.attrs["expected_calibration_error"] = float(
        (table["gap"].abs() * total).sum() / total.sum()
    )
    return table
