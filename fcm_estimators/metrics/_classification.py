"""Agreement of predicted with expert classes, a row per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score

from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics._inputs import flag_counts, per_cell, samples_of

_RATIOS: list[Any] = ["precision", "recall", "f1"]
_FP_PER_MILLION = "false_positives_per_million"


def classification_table(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    pos_label: Any = None,
    labels: Sequence[Any] | None = None,
    flags: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Agreement with the expert's labels in every sample.

    With ``pos_label`` the table is about one population against the rest, without it about all
    classes. Cells without an expert label (NaN or None) are counted and otherwise left out.

    Parameters
    ----------
    y_true : array-like of shape (N,)
        Expert's class of each cell; NaN or None where there is none.
    y_pred : array-like of shape (N,)
        Predicted class of each cell. Cells that were not analysed need a label of their own.
    groups : array-like of shape (N,), optional
        Sample of each cell, such as ``adata.obs["sample"]``. Default: one sample, ``all``.
    pos_label : label, optional
        The population of interest.
    labels : sequence of label, optional
        Classes that exist. Without ``pos_label`` those averaged by ``macro_f1``, default all in
        ``y_true`` and ``y_pred``, sorted; cells of other classes still count as errors of these.
        With ``pos_label`` only needed where no cell is or was predicted positive.
    flags : DataFrame of bool of shape (N, F), optional
        Flags of the quality control, such as ``adata.obs.filter(like="qc_")``; flagged cells are
        counted, never left out.

    Returns
    -------
    DataFrame
        Index ``sample``, in order of first appearance; columns ``n_cells`` (all cells) and
        ``n_unlabelled`` (of them without expert label), ``n_{flag}`` for each of ``flags`` (of
        them with that flag), then

        with ``pos_label``: ``n_positive`` and ``n_predicted`` among the labelled cells;
        ``precision`` (NaN if nothing was predicted), ``recall`` and ``f1`` (both NaN in a sample
        without positives), ``false_positives_per_million`` labelled cells that are not positive
        (NaN if all are);

        without: ``macro_f1`` and ``f1_{label}`` for every label. A class that is neither in the
        sample's truth nor predicted there is NaN and not averaged; predicted without being there
        it counts as 0.

    Raises
    ------
    InvalidInputError
        If the lengths differ or are 0, a prediction or sample is missing, ``labels`` is empty or
        repeats a label, or ``pos_label`` is in none of ``y_true``, ``y_pred`` and ``labels``.

    Examples
    --------
    >>> from fcm_estimators.metrics import classification_table
    >>> table = classification_table(
    ...     ["blast", "other", "other", "other"],
    ...     ["blast", "other", "blast", "other"],
    ...     groups=["a", "a", "b", "b"],
    ...     pos_label="blast",
    ... )
    >>> table["f1"].to_dict()
    {'a': 1.0, 'b': nan}
    >>> table["false_positives_per_million"].to_dict()
    {'a': 0.0, 'b': 500000.0}
    """
    truth = per_cell(y_true, "y_true")
    predicted = per_cell(y_pred, "y_pred", len(truth))
    if len(truth) == 0:
        raise InvalidInputError("y_true is empty; expected at least one cell.")
    n_missing = np.count_nonzero(pd.isna(predicted))
    if n_missing:
        raise InvalidInputError(
            f"y_pred is missing (NaN) for {n_missing} cells. Leave these cells out, or give them "
            'a label of their own such as "not analysed".'
        )
    sample, names = samples_of(groups, len(truth))
    labelled = ~pd.isna(truth)
    known = _known_labels(truth[labelled], predicted, labels)
    table = pd.DataFrame(
        {
            "n_cells": np.bincount(sample, minlength=len(names)),
            "n_unlabelled": np.bincount(sample[~labelled], minlength=len(names)),
            **flag_counts(flags, np.ones(len(truth), dtype=bool), sample, len(names)),
        },
        index=names,
    )
    truth, predicted, sample = truth[labelled], predicted[labelled], sample[labelled]
    if pos_label is None:
        columns = _f1_per_class(truth, predicted, sample, len(names), known)
    else:
        if pos_label not in known:
            raise InvalidInputError(
                f"pos_label={pos_label!r} is in neither y_true nor y_pred; present are {known}. "
                "If it is right, and simply never occurs here, pass labels= with all classes."
            )
        columns = _against_rest(truth == pos_label, predicted == pos_label, sample, len(names))
    return table.assign(**columns)


def summarize(table: pd.DataFrame) -> pd.Series | pd.DataFrame:
    """Mean and median over samples, with the number of samples where a metric is undefined.

    Parameters
    ----------
    table : DataFrame
        From :func:`classification_table` or :func:`gate_agreement`.

    Returns
    -------
    Series
        ``n_samples``; for each of precision, recall and f1 (or macro_f1 and every f1_{label})
        ``{metric}_mean`` and ``{metric}_median`` over the samples that have a value, and
        ``{metric}_undefined``, the number of those that have none. For one population also
        ``n_negative_samples``, the samples with labelled cells but no positive one, and
        ``false_positives_per_million_negative_samples``, the mean over them.
    DataFrame
        For a table of gates: a row per gate, with ``n_samples`` and these numbers for precision,
        recall and f1.

    Raises
    ------
    MissingKeyError
        If ``table`` has neither a column ``f1`` nor ``macro_f1``.

    Examples
    --------
    >>> from fcm_estimators.metrics import classification_table, summarize
    >>> table = classification_table([1, 0, 0], [1, 0, 1], groups=["a", "a", "b"], pos_label=1)
    >>> summarize(table)[["n_samples", "f1_mean", "f1_undefined"]].tolist()
    [2.0, 1.0, 1.0]
    """
    if "gate" in table:
        rows = {
            gate: _over_samples(part, _RATIOS) for gate, part in table.groupby("gate", sort=False)
        }
        return pd.DataFrame(rows).T.rename_axis("gate")
    if "macro_f1" in table:
        metrics = ["macro_f1", *(c for c in table if str(c).startswith("f1_"))]
    elif "f1" in table:
        metrics = _RATIOS
    else:
        raise MissingKeyError(
            f"The table has the columns {list(table.columns)}; expected one from "
            "classification_table, with f1 or macro_f1."
        )
    summary = _over_samples(table, metrics)
    if "f1" in table:
        negative = table[(table["n_positive"] == 0) & (table["n_cells"] > table["n_unlabelled"])]
        summary["n_negative_samples"] = len(negative)
        summary[f"{_FP_PER_MILLION}_negative_samples"] = negative[_FP_PER_MILLION].mean()
    return pd.Series(summary, dtype=float)


def _over_samples(table: pd.DataFrame, metrics: Sequence[Any]) -> dict[str, float]:
    summary: dict[str, float] = {"n_samples": len(table)}
    for metric in metrics:
        summary[f"{metric}_mean"] = table[metric].mean()
        summary[f"{metric}_median"] = table[metric].median()
        summary[f"{metric}_undefined"] = int(table[metric].isna().sum())
    return summary


def _known_labels(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[Any] | None
) -> list[Any]:
    if labels is not None:
        known = list(labels)
        if isinstance(labels, str) or not known or len(set(known)) < len(known):
            raise InvalidInputError(f"labels={labels!r}; expected a list of different labels.")
        return known
    # Predictions first: integer labels become floats where some truth is NaN.
    present = {*pd.unique(predicted).tolist(), *pd.unique(truth).tolist()}
    try:
        return sorted(present)
    except TypeError as error:
        raise InvalidInputError(
            f"y_true and y_pred mix types: {sorted(present, key=repr)}; expected labels of one "
            "type. Convert both, for example with astype(str)."
        ) from error


def _against_rest(
    truth: np.ndarray, predicted: np.ndarray, sample: np.ndarray, n_samples: int
) -> dict[str, np.ndarray]:
    """Columns for one population, from booleans per labelled cell."""

    def count(cells: np.ndarray) -> np.ndarray:
        return np.bincount(sample[cells], minlength=n_samples)

    n_positive, n_predicted = count(truth), count(predicted)
    hits = count(truth & predicted)
    n_negative = count(~truth)
    return {
        "n_positive": n_positive,
        "n_predicted": n_predicted,
        "precision": _ratio(hits, n_predicted),
        "recall": _ratio(hits, n_positive),
        "f1": np.where(n_positive > 0, _ratio(2 * hits, n_positive + n_predicted), np.nan),
        _FP_PER_MILLION: _ratio(1e6 * (n_predicted - hits), n_negative),
    }


def _f1_per_class(
    truth: np.ndarray, predicted: np.ndarray, sample: np.ndarray, n_samples: int, known: list[Any]
) -> dict[str, np.ndarray]:
    """Columns for all classes; scikit-learn's F1 with its NaN for what cannot be defined."""
    classes = pd.Index(known, dtype=object)
    # Cells of a class outside of labels get the code -1: an error, but no class to average.
    codes_true = classes.get_indexer(pd.Index(truth, dtype=object))
    codes_pred = classes.get_indexer(pd.Index(predicted, dtype=object))
    scores = np.full((n_samples, len(known)), np.nan)
    for s in range(n_samples):
        cells = sample == s
        if cells.any():
            scores[s] = f1_score(
                codes_true[cells],
                codes_pred[cells],
                labels=np.arange(len(known)),
                average=None,
                zero_division=np.nan,
            )
    macro = pd.DataFrame(scores).mean(axis=1).to_numpy()
    per_class = {f"f1_{label}": column for label, column in zip(known, scores.T, strict=True)}
    return {"macro_f1": macro, **per_class}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    result = np.full(len(denominator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)
