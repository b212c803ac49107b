"""Labels as class codes; which class each sample can teach."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from fcm_estimators._exceptions import InvalidInputError
from fcm_estimators._validation import listed


def encode_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted classes, and the class code of each label (-1 where NaN or None).

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Text, integers, booleans, or floats with whole values.

    Returns
    -------
    classes : ndarray of shape (C,)
    codes : ndarray of int of shape (n,)

    Raises
    ------
    InvalidInputError
        Infinite values, or labels of mixed types.
    ValueError
        Continuous values (scikit-learn's "Unknown label type").
    """
    if labels.dtype.kind == "f" and np.isinf(labels).any():
        raise InvalidInputError(
            "Input y contains infinity or a value too large for dtype('float64'). Labels are text "
            "or whole numbers, NaN where a cell has none."
        )
    known = ~pd.isna(labels)
    kept = labels[known]
    if kept.dtype == object and len({isinstance(v, str) for v in pd.unique(kept)}) > 1:
        raise InvalidInputError(
            f"Labels mix text and other types: {listed(pd.unique(kept), 8)}. Use one type."
        )
    if kept.dtype == object and len(kept) and isinstance(kept[0], str):
        kept = kept.astype(str)
    elif kept.dtype == object:
        kept = np.array(kept.tolist())
    check_classification_targets(kept)
    classes, inverse = np.unique(kept, return_inverse=True)
    codes = np.full(len(labels), -1, dtype=np.int64)
    codes[known] = inverse
    return classes, codes


def recode(classes: np.ndarray, codes: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Codes of new labels in the order of a fitted model's classes.

    Raises
    ------
    InvalidInputError
        If there is a class that the model does not have.
    """
    unknown = np.setdiff1d(classes, fitted)
    if len(unknown):
        raise InvalidInputError(
            f"warm_start goes on with the classes {listed(fitted)}, but the labels hold "
            f"{listed(unknown)} too. Fit a new model, or map those labels (NaN: no label)."
        )
    table = np.append(np.searchsorted(fitted, classes), -1)
    return table[codes]


def class_presence(codes: np.ndarray, offsets: list[int], n_classes: int) -> np.ndarray:
    """Which sample has labelled cells of which class: bool array of shape (S, C)."""
    counts = [
        np.bincount(codes[i:j] + 1, minlength=n_classes + 1)[1:] for i, j in pairwise(offsets)
    ]
    return np.array(counts) > 0


def class_weights(
    class_weight: dict[Any, float] | str | None, classes: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Weight of each class, scikit-learn's meaning of ``class_weight``; float32 of shape (C,)."""
    known = codes[codes >= 0]
    if class_weight == "balanced":
        # Classes without a cell (fine-tuning) keep weight 1.
        weights = np.ones(len(classes))
        present = np.unique(known)
        weights[present] = compute_class_weight("balanced", classes=present, y=known)
        return weights.astype(np.float32)
    return compute_class_weight(class_weight, classes=classes, y=classes[known]).astype(np.float32)
