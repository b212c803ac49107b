"""Labels as class codes, and their checks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from fcm_estimators._cells.samples import Samples
from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import population_shares

_FEWEST_FOR_A_RANGE = 5


def encode_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted classes, and the class code of each label (-1 for NaN or None).

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
            "or whole numbers; NaN means no label."
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
        The labels hold a class that the model does not have.
    """
    unknown = np.setdiff1d(classes, fitted)
    if len(unknown):
        raise InvalidInputError(
            f"warm_start continues with the classes {listed(fitted)}, but the labels also hold "
            f"{listed(unknown)}. Fit a new model, or map those labels (NaN: no label)."
        )
    table = np.append(np.searchsorted(fitted, classes), -1)
    return np.asarray(table[codes])


def require_learnable(codes: np.ndarray, classes: np.ndarray, *, allow_one_class: bool) -> None:
    """Raise InvalidInputError unless the labels hold enough classes to learn from.

    Parameters
    ----------
    codes : ndarray of int of shape (N,)
        Class codes of the analysed cells.
    classes : ndarray of shape (C,)
    allow_one_class : bool
        Whether one class is enough, as in fine-tuning.
    """
    if len(codes) < 2:
        raise InvalidInputError(
            "n_samples=1: a model cannot learn from a single cell. Pass whole samples."
        )
    present = np.unique(codes[codes >= 0])
    if len(present) == 0 or (len(present) == 1 and not allow_one_class):
        raise InvalidInputError(
            f"The labelled cells are of one class only ({listed(classes[present])}); two or more "
            "are needed. Check label_key, and check that subset_key keeps cells of each class."
        )


def positive_class(pos_label: Hashable, classes: np.ndarray) -> Any:
    """Positive class of two classes.

    It is never guessed: None without ``pos_label``.

    Raises
    ------
    InvalidInputError
        ``pos_label`` is not a class, or is given for more than two classes.
    """
    require_two_classes("pos_label", pos_label, classes)
    if pos_label is None:
        return None
    if pos_label not in classes:
        raise InvalidInputError(
            f"pos_label={pos_label!r} is not among the labels {listed(classes)}."
        )
    return pos_label


def require_positive_class(rate: float | None, positive: Hashable, classes: np.ndarray) -> None:
    """Raise InvalidInputError if a false-positive rate is given without a positive class."""
    require_two_classes("false_positive_rate", rate, classes)
    if rate is not None and positive is None:
        raise InvalidInputError(
            f"false_positive_rate={rate!r} needs the positive class; name it with pos_label, one "
            f"of {listed(classes)}."
        )


def require_two_classes(name: str, value: object, classes: np.ndarray) -> None:
    """Raise InvalidInputError if a parameter for two classes is set but there are more."""
    if value is not None and len(classes) > 2:
        raise InvalidInputError(
            f"{name}={value!r} is for two classes; the labels hold {len(classes)}: "
            f"{listed(classes)}. Leave it None, or merge classes."
        )


def codes_of(samples: Samples, codes: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Codes of the cells of some samples, in the order of ``samples.take(chosen)``."""
    found: np.ndarray = codes[samples.cells_of(chosen)]
    return found


def class_presence(codes: np.ndarray, offsets: list[int], n_classes: int) -> np.ndarray:
    """Whether each sample has labelled cells of each class: bool array of shape (S, C)."""
    counts = [
        np.bincount(codes[i:j] + 1, minlength=n_classes + 1)[1:] for i, j in pairwise(offsets)
    ]
    return np.array(counts) > 0


def share_ranges(
    classes: np.ndarray, codes: np.ndarray, samples: Samples, positive: Hashable
) -> pd.DataFrame | None:
    """Range of the share of each class in the training samples.

    Parameters
    ----------
    classes : ndarray of shape (C,)
    codes : ndarray of int of shape (N,)
        Class of each cell; -1 without a label.
    samples : Samples
    positive : label or None
        The positive class, which is left out: much disease makes all other shares small.

    Returns
    -------
    DataFrame or None
        Index the classes as text; ``low``, ``high`` and ``n_samples``. None if fewer than 5
        samples have a label for every cell and other than positive ones, if a class is in none of
        these samples, or if only one class is left.
    """
    complete = np.array([(codes[i:j] >= 0).all() for i, j in samples.spans()])
    used = complete[samples.sample_of_cell]
    n_classes = len(classes)
    if positive is not None:
        used &= classes[codes] != positive
        n_classes -= 1
    if n_classes < 2 or not used.any():
        return None
    shares = population_shares(classes[codes[used]], groups=samples.sample_of_cell[used])
    if len(shares) < _FEWEST_FOR_A_RANGE or shares.shape[1] < n_classes:
        return None
    table = pd.DataFrame({"low": shares.min(), "high": shares.max()})
    return table.assign(n_samples=len(shares))


def class_weights(
    class_weight: dict[Hashable, float] | str | None, classes: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Weight of each class as scikit-learn defines ``class_weight``; float32 of shape (C,)."""
    known = codes[codes >= 0]
    if class_weight == "balanced":
        # Classes without cells, which occur in fine-tuning, keep weight 1.
        weights = np.ones(len(classes))
        present = np.unique(known)
        weights[present] = compute_class_weight("balanced", classes=present, y=known)
        return weights.astype(np.float32)
    found = compute_class_weight(class_weight, classes=classes, y=classes[known])
    return np.asarray(found, dtype=np.float32)
