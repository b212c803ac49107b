"""Checks of the arguments of metrics: values per cell, samples, fractions, flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fcm_estimators._checks import as_flags, sample_codes
from fcm_estimators.exceptions import InvalidInputError


def per_cell(values: ArrayLike | pd.Series, name: str, n_cells: int | None = None) -> np.ndarray:
    """Return one value per cell as a one-dimensional array; mixed types are kept as objects.

    Raises InvalidInputError if it is not one-dimensional or not of length ``n_cells``.
    """
    # Lists pass through pandas: np.asarray would turn ["a", nan] into the strings "a" and "nan".
    # Nor does it meet a Series, whose names of cells it would look through.
    if isinstance(values, pd.Series | pd.Index | pd.Categorical):
        array = np.asarray(values.array if isinstance(values, pd.Series) else values)
    else:
        array = np.asarray(pd.Series(values)) if isinstance(values, list) else np.asarray(values)
    if array.ndim != 1:
        raise InvalidInputError(f"{name} has the shape {array.shape}; expected one value per cell.")
    if n_cells is not None and len(array) != n_cells:
        raise InvalidInputError(f"{name} has {len(array)} values for {n_cells} cells.")
    return array


def boolean_per_cell(values: ArrayLike, name: str, n_cells: int | None = None) -> np.ndarray:
    """Return one boolean per cell, from booleans or 0 and 1."""
    array = per_cell(values, name, n_cells)
    if array.dtype == bool:
        return array
    return as_flags(array, name, "Pass a comparison, such as y == 'blast'.")


def samples_of(groups: ArrayLike | None, n_cells: int) -> tuple[np.ndarray, pd.Index]:
    """Return the sample code of every cell and the sample names, in order of first appearance.

    Without ``groups``, all cells are one sample named ``all``.
    """
    if groups is None:
        return np.zeros(n_cells, dtype=np.intp), pd.Index(["all"], name="sample")
    if isinstance(groups, pd.Series | pd.Categorical) and len(groups) == n_cells:
        return sample_codes(groups, "groups")
    return sample_codes(per_cell(groups, "groups", n_cells), "groups")


def fraction_number(value: Any, name: str, *, open_ends: bool = False) -> float:
    """Return a number between 0 and 1; 0 and 1 are refused if ``open_ends``."""
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
    """Count the flagged cells of each sample among those ``counted``: ``n_{flag}`` to counts.

    Raises InvalidInputError if ``flags`` is not a DataFrame of booleans with a row per cell.
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
