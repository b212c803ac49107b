"""Agreement of predicted classes with the expert's, a row per sample."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score

from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics._inputs import flag_counts, per_cell, samples_of

_RATIOS: list[Hashable] = ["precision", "recall", "f1"]
_FP_PER_MILLION = "false_positives_per_million"


def classification_table(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    pos_label: Hashable = None,
    labels: Sequence[Hashable] | None = None,
    flags: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compare predictions with the expert's labels in every sample.

    With ``pos_label``, one population is compared with the rest; without it, all classes are
    compared. Cells without an expert label (NaN or None) are counted but not compared.

    Parameters
    ----------
    y_true : array-like of shape (N,)
        Expert's class of each cell; NaN or None for cells without a label.
    y_pred : array-like of shape (N,)
        Predicted class of each cell. Cells that were not analysed need a label of their own.
    groups : array-like of shape (N,), optional
        Sample of each cell, such as ``adata.obs["sample"]``. Default: one sample, ``all``.
    pos_label : label, optional
        The population of interest.
    labels : sequence of label, optional
        All classes. Without ``pos_label``, ``macro_f1`` is the mean over these classes; cells of
        other classes count as errors. With ``pos_label``, needed only if no cell has that label or
        was predicted to have it. Default: all in ``y_true`` and ``y_pred``, sorted.
    flags : DataFrame of bool of shape (N, F), optional
        Flags of the quality control, such as ``adata.obs.filter(like="qc_")``. Flagged cells are
        counted, never left out.

    Returns
    -------
    DataFrame
        Index ``sample``, in order of first appearance. Columns ``n_cells`` (all cells),
        ``n_unlabelled`` (cells without an expert label) and ``n_{flag}`` for each of ``flags``
        (cells with that flag).

        With ``pos_label`` also ``n_positive`` and ``n_predicted`` among the labelled cells,
        ``precision`` (NaN if no cell was predicted positive), ``recall`` and ``f1`` (both NaN in a
        sample without positive cells), and ``false_positives_per_million`` labelled cells that are
        not positive (NaN if all are positive).

        Without ``pos_label`` also ``macro_f1``, and ``f1_{label}`` for every label. The F1 of a
        class is NaN, and left out of the mean, if no cell of the sample has or was predicted to
        have the class; it is 0 if only predictions have the class.

    Raises
    ------
    InvalidInputError
        The lengths differ or are 0, a prediction or sample is missing, ``labels`` is empty or
        repeats a label, labels are of types that cannot be sorted together, or ``pos_label`` is
        not a known class.

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
                "If the label is right but does not occur here, pass labels= with all classes."
            )
        columns = _against_rest(truth == pos_label, predicted == pos_label, sample, len(names))
    return table.assign(**columns)


def summarize(table: pd.DataFrame) -> pd.Series | pd.DataFrame:
    """Summarize metrics over samples: mean, median and number of samples without a value.

    Parameters
    ----------
    table : DataFrame
        From :func:`classification_table` or :func:`gate_agreement`.

    Returns
    -------
    Series
        For a table of classes. ``n_samples``; for each of precision, recall and f1 (or macro_f1
        and every f1_{label}), ``{metric}_mean`` and ``{metric}_median`` over the samples that have
        a value, and ``{metric}_undefined``, the number of samples without a value. For one
        population also ``n_negative_samples``, the samples with labelled cells of which none is
        positive, and ``false_positives_per_million_negative_samples``, the mean over them.
    DataFrame
        For a table of gates. A row per gate, with ``n_samples`` and the same numbers for
        precision, recall and f1.

    Raises
    ------
    MissingKeyError
        ``table`` has no column ``f1`` or ``macro_f1``.

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
            f"The table has the columns {list(table.columns)}; expected a table from "
            "classification_table, with f1 or macro_f1."
        )
    summary = _over_samples(table, metrics)
    if "f1" in table:
        negative = table[(table["n_positive"] == 0) & (table["n_cells"] > table["n_unlabelled"])]
        summary["n_negative_samples"] = len(negative)
        summary[f"{_FP_PER_MILLION}_negative_samples"] = negative[_FP_PER_MILLION].mean()
    return pd.Series(summary, dtype=float)


def _over_samples(table: pd.DataFrame, metrics: Sequence[Hashable]) -> dict[str, float]:
    summary: dict[str, float] = {"n_samples": len(table)}
    for metric in metrics:
        summary[f"{metric}_mean"] = table[metric].mean()
        summary[f"{metric}_median"] = table[metric].median()
        summary[f"{metric}_undefined"] = int(table[metric].isna().sum())
    return summary


def _known_labels(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[Hashable] | None
) -> list[Hashable]:
    if labels is not None:
        known = list(labels)
        if isinstance(labels, str) or not known or len(set(known)) < len(known):
            raise InvalidInputError(f"labels={labels!r}; expected a list of different labels.")
        return known
    # Predictions first: a truth with NaN turns integer labels into floats, which are then equal
    # to the integers already in the set.
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
    """Columns for one population; ``truth`` and ``predicted`` are bool per labelled cell."""

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
    truth: np.ndarray,
    predicted: np.ndarray,
    sample: np.ndarray,
    n_samples: int,
    known: list[Hashable],
) -> dict[str, np.ndarray]:
    """Columns for all classes; scikit-learn's F1 is NaN where it is undefined."""
    classes = pd.Index(known, dtype=object)
    # Classes that are not in labels get the code -1: they cause errors but are not averaged.
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
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result
