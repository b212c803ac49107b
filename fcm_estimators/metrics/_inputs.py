"""Checks that the metrics share: one value per cell, and the cells of each sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fcm_estimators.exceptions import InvalidInputError


def per_cell(values: ArrayLike | pd.Series, name: str, n_cells: int | None = None) -> np.ndarray:
    """One-dimensional object-safe array of one value per cell.

    Raises InvalidInputError if it is not one-dimensional or not of length ``n_cells``.
    """
    # pandas first: np.asarray would turn ["a", nan] into the strings "a" and "nan".
    if isinstance(values, pd.Series | pd.Index | pd.Categorical):
        array = np.asarray(values)
    else:
        array = np.asarray(pd.Series(values)) if isinstance(values, list) else np.asarray(values)
    if array.ndim != 1:
        raise InvalidInputError(f"{name} has the shape {array.shape}; expected one value per cell.")
    if n_cells is not None and len(array) != n_cells:
        raise InvalidInputError(f"{name} has {len(array)} values for {n_cells} cells.")
    return array


def boolean_per_cell(values: Any, name: str, n_cells: int | None = None) -> np.ndarray:
    """Boolean array of one value per cell, from booleans or 0 and 1."""
    array = per_cell(values, name, n_cells)
    if array.dtype == bool:
        return array
    missing = np.count_nonzero(pd.isna(array))
    if missing:
        raise InvalidInputError(
            f"{name} is missing (NaN) for {missing} cells; expected True or False. Decide whether "
            "these cells count, and fill them."
        )
    if not np.isin(array, [0, 1]).all():
        raise InvalidInputError(
            f"{name} holds values other than True and False (or 1 and 0), such as "
            f"{array[~np.isin(array, [0, 1])][0]!r}. Pass a comparison, such as y == 'blast'."
        )
    return array.astype(bool)


def samples_of(groups: Any, n_cells: int) -> tuple[np.ndarray, pd.Index]:
    """Sample code of every cell and the sample names, in order of first appearance.

    Without groups all cells are one sample named ``all``.
    """
    if groups is None:
        return np.zeros(n_cells, dtype=np.intp), pd.Index(["all"], name="sample")
    codes, names = pd.factorize(per_cell(groups, "groups", n_cells))
    missing = np.count_nonzero(codes < 0)
    if missing:
        raise InvalidInputError(
            f"groups is missing (NaN) for {missing} cells; expected a sample for every cell."
        )
    return codes, pd.Index(names, name="sample")


def fraction_number(value: Any, name: str, *, open_ends: bool = False) -> float:
    """A number between 0 and 1, without the ends if ``open_ends``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (0 < number < 1 if open_ends else 0 <= number <= 1):
        raise InvalidInputError(f"{name} is {value!r}; expected a number between 0 and 1.")
    return number


def flag_counts(
    flags: pd.DataFrame | None, counted: np.ndarray, sample: np.ndarray, n_samples: int
) -> dict[str, np.ndarray]:
    """Cells of each sample that carry each flag, among those ``counted``; a column ``n_{flag}``.

    Raises InvalidInputError if it is no DataFrame of True and False with a row per cell.
    """
    if flags is None:
        return {}
    if not isinstance(flags, pd.DataFrame):
        raise InvalidInputError(
            f"flags is a {type(flags).__name__}; expected a DataFrame with a column per flag, "
            'such as adata.obs.filter(like="qc_").'
        )
    return {
        f"n_{name}": np.bincount(
            sample[boolean_per_cell(column, f"flags[{name!r}]", len(sample)) & counted],
            minlength=n_samples,
        )
        for name, column in flags.items()
    }
